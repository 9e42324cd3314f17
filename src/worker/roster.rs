//! Which attempts a worker holds, what is wanted of each, what it has to say on its session.
//!
//! Pure but for the watches through which attempts learn of their orders. Must never know: streams, processes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ado_proto::record::Answer;
use ado_proto::request::{Load, WorkerDesired, WorkerWant};
use ado_proto::session::{Answers, Assignment, Bridge, Draining, Heartbeat, HeartbeatAnswer, Want};
use ado_proto::{AskId, Epoch, TaskId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::attempt::Ended;
use super::course::{GiveUp, Orders};
use super::guard::BootTime;

/// Ended attempts that are remembered: a repeated assignment of one of them is not run again.
const REMEMBERED: usize = 4096;
/// Unanswered heartbeats of which the time of sending is known.
const UNANSWERED: usize = 64;
/// Longest part of a lease that is given away for clocks that run at different speeds.
const MARGIN: Duration = Duration::from_secs(1);

/// What was answered to an attempt's questions and is not known to have reached its agent.
pub(super) type Given = Vec<(AskId, Answer)>;

/// One assignment.
pub(super) type Key = (TaskId, Epoch);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    held: BTreeMap<Key, Held>,
    ended: BTreeSet<Key>,
    ended_in_order: VecDeque<Key>,
    /// Length of a lease, as the controller said last.
    lease: Duration,
    /// Number of the last heartbeat.
    number: u64,
    /// The unanswered ones: when they were sent, and what had been said about leaving before.
    sent: BTreeMap<u64, (BootTime, u64)>,
    /// When the last heartbeat was sent that was answered on this stream. Whatever comes on it was said after that.
    heard_since: Option<BootTime>,
    /// It ends, whatever anybody wants.
    leaving: bool,
    /// What somebody wants of it.
    wish: WorkerWant,
    handed_back: Vec<Key>,
}

#[derive(Debug)]
struct Held {
    orders: watch::Sender<Orders>,
    answers: watch::Sender<Given>,
    /// Cancelled when nothing of the attempt is left.
    gone: CancellationToken,
}

/// An attempt that has to be started.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) orders: watch::Sender<Orders>,
    /// What is answered to its questions.
    pub(super) answers: watch::Receiver<Given>,
    /// Older attempts of the same task that end now; it starts after them.
    pub(super) after: Vec<CancellationToken>,
}

impl Roster {
    /// A stream with a controller begins: nothing sent before it will be answered.
    pub(super) fn connected(&mut self, lease: Duration) {
        self.lease = lease;
        self.sent.clear();
        self.heard_since = None;
    }

    /// Whether something is to be done about an assignment: nothing, if it is known.
    pub(super) fn assign(&mut self, assignment: &Assignment) -> Option<Begin> {
        let key = (assignment.task, assignment.epoch);
        if self.ended.contains(&key) {
            return None;
        }
        if let Some(held) = self.held.get(&key) {
            let want = Want {
                task: assignment.task,
                epoch: assignment.epoch,
                desired: assignment.desired,
                generation: assignment.generation,
                force: false,
            };
            held.orders.send_if_modified(|orders| orders.want(&want));
            return None;
        }
        let task = (assignment.task, Epoch(0))..=(assignment.task, Epoch(u64::MAX));
        let others: Vec<_> = self.held.range(task).map(|(key, held)| (key.1, held.gone.clone())).collect();
        if others.iter().any(|(epoch, _)| *epoch > assignment.epoch) {
            // Long overtaken.
            return None;
        }
        if self.is_draining() {
            // It ran nothing.
            self.remember(key);
            self.handed_back.push(key);
            return None;
        }
        for (epoch, _) in &others {
            self.give_up((assignment.task, *epoch), GiveUp::Discard);
        }
        // It may have been under way for longer than it is good for, so it does not count from now. With no lease left the
        // attempt waits for a renewal.
        let lease =
            self.heard_since.map_or(BootTime(0), |since| deadline(since, Duration::from_millis(assignment.lease_ms)));
        let orders = watch::Sender::new(Orders::new(assignment, lease));
        let (answers, given) = watch::channel(Given::new());
        self.held.insert(key, Held { orders: orders.clone(), answers, gone: CancellationToken::new() });
        Some(Begin { orders, answers: given, after: others.into_iter().map(|(_, gone)| gone).collect() })
    }

    /// Nothing of an attempt is left.
    pub(super) fn end(&mut self, key: Key, how: Ended) {
        if let Some(held) = self.held.remove(&key) {
            held.gone.cancel();
        }
        self.remember(key);
        if how == Ended::HandedBack {
            self.handed_back.push(key);
        }
    }

    fn remember(&mut self, key: Key) {
        if self.ended.insert(key) {
            self.ended_in_order.push_back(key);
        }
        if self.ended_in_order.len() > REMEMBERED
            && let Some(oldest) = self.ended_in_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }

    /// The next heartbeat, about to be sent. `told` comes back with its answer.
    pub(super) fn heartbeat(&mut self, now: BootTime, told: u64, load: Load) -> Heartbeat {
        self.number += 1;
        self.sent.insert(self.number, (now, told));
        if self.sent.len() > UNANSWERED {
            self.sent.pop_first();
        }
        let holds = self.held.keys().copied().collect();
        Heartbeat { number: self.number, holds, load, draining: self.is_draining() }
    }

    /// A heartbeat was answered: renewals count from when it was sent. What the heartbeat was made with; `None` if it is
    /// not known.
    pub(super) fn answered(&mut self, answer: &HeartbeatAnswer) -> Option<u64> {
        let (sent, told) = self.sent.get(&answer.number).copied()?;
        self.sent = self.sent.split_off(&(answer.number + 1));
        self.heard_since = Some(sent);
        let lease = deadline(sent, self.lease);
        for want in &answer.renewed {
            if let Some(held) = self.held.get(&(want.task, want.epoch)) {
                held.orders.send_if_modified(|orders| orders.want(want) | orders.renew(lease));
            }
        }
        answer.answers.iter().for_each(|answers| self.answers(answers));
        for key in &answer.lost {
            self.give_up(*key, GiveUp::Discard);
        }
        Some(told)
    }

    /// The store does not answer, and some attempts may go on nevertheless, counted from when the heartbeat was sent.
    pub(super) fn bridge(&self, bridge: &Bridge) {
        let Some((sent, _)) = self.sent.get(&bridge.number) else { return };
        let lease = deadline(*sent, Duration::from_millis(bridge.left_ms));
        for held in bridge.holds.iter().filter_map(|key| self.held.get(key)) {
            held.orders.send_if_modified(|orders| orders.renew(lease));
        }
    }

    /// Something is wanted of an attempt.
    pub(super) fn want(&self, want: &Want) {
        if let Some(held) = self.held.get(&(want.task, want.epoch)) {
            held.orders.send_if_modified(|orders| orders.want(want));
        }
    }

    /// Questions of an attempt are answered.
    pub(super) fn answers(&self, answers: &Answers) {
        if let Some(held) = self.held.get(&(answers.task, answers.epoch)) {
            held.answers.send_if_modified(|given| {
                let is_new = *given != answers.given;
                given.clone_from(&answers.given);
                is_new
            });
        }
    }

    /// No more work is taken, for good.
    pub(super) fn drain(&mut self) {
        self.leaving = true;
    }

    /// Something is wanted of the worker. Whether that is new.
    pub(super) fn wish(&mut self, wish: &WorkerWant) -> bool {
        let is_new = wish.generation > self.wish.generation;
        if is_new {
            self.wish = *wish;
        }
        is_new
    }

    /// Whether work is refused.
    pub(super) fn is_draining(&self) -> bool {
        self.leaving || self.wish.desired == WorkerDesired::Drained
    }

    /// Gives up everything that is held, and leaves.
    pub(super) fn hand_back(&mut self) {
        self.drain();
        self.hand_back_held();
    }

    /// Gives up everything that is held.
    pub(super) fn hand_back_held(&mut self) {
        for key in self.held.keys().copied().collect::<Vec<_>>() {
            self.give_up(key, GiveUp::HandBack);
        }
    }

    /// Nothing that is held counts any more.
    pub(super) fn discard_all(&mut self) {
        self.drain();
        for key in self.held.keys().copied().collect::<Vec<_>>() {
            self.give_up(key, GiveUp::Discard);
        }
    }

    fn give_up(&self, key: Key, how: GiveUp) {
        if let Some(held) = self.held.get(&key) {
            held.orders.send_if_modified(|orders| orders.give_up(how));
        }
    }

    /// What to say about leaving; `None` while the worker stays and hands nothing back.
    pub(super) fn draining(&self) -> Option<Draining> {
        let says = self.is_draining() || !self.handed_back.is_empty();
        says.then(|| Draining { hand_back: self.handed_back.clone() })
    }

    /// Attempts held.
    pub(super) fn load(&self) -> usize {
        self.held.len()
    }
}

/// The end of a lease that began at `from`, a margin before the controller's.
fn deadline(from: BootTime, lease: Duration) -> BootTime {
    from.after(lease - MARGIN.min(lease / 10))
}

#[cfg(test)]
mod tests {
    use ado_proto::Namespace;
    use ado_proto::record::Desired;
    use ado_proto::spec::{Input, TaskSpec};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn task(number: u128) -> TaskId {
        TaskId(uuid::Uuid::from_u128(number))
    }

    fn assignment(number: u128, epoch: u64) -> Assignment {
        Assignment {
            task: task(number),
            epoch: Epoch(epoch),
            namespace: Namespace::default(),
            name: None,
            group: None,
            attempt: 1,
            spec: TaskSpec::new("noop", Input::Text(String::new())),
            checkpoint: None,
            snapshot: None,
            lease_ms: 20_000,
            desired: Desired::Running,
            generation: 0,
            total_left_ms: None,
            secrets: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn want(number: u128, epoch: u64, desired: Desired, generation: u64) -> Want {
        Want { task: task(number), epoch: Epoch(epoch), desired, generation, force: false }
    }

    fn roster() -> Roster {
        let mut roster = Roster::default();
        roster.connected(Duration::from_secs(20));
        roster
    }

    #[test]
    fn an_epoch_is_started_once() {
        let mut roster = roster();
        assert!(roster.assign(&assignment(1, 1)).is_some());
        assert!(roster.assign(&assignment(1, 1)).is_none());
        roster.end((task(1), Epoch(1)), Ended::Reported);
        assert!(roster.assign(&assignment(1, 1)).is_none(), "it has ended already");
        assert!(roster.assign(&assignment(1, 2)).is_some());
        assert!(roster.assign(&assignment(1, 1)).is_none());
        assert_eq!(roster.load(), 1);
    }

    #[test]
    fn a_newer_epoch_waits_for_the_end_of_the_older_one() {
        let mut roster = roster();
        let old = roster.assign(&assignment(1, 1)).unwrap();
        let new = roster.assign(&assignment(1, 2)).unwrap();
        assert_eq!(old.orders.borrow().give_up, GiveUp::Discard);
        assert!(!new.after[0].is_cancelled());
        roster.end((task(1), Epoch(1)), Ended::Discarded);
        assert!(new.after[0].is_cancelled());
        let mut other = Roster::default();
        other.assign(&assignment(1, 5)).unwrap();
        assert!(other.assign(&assignment(1, 4)).is_none(), "an older one never comes after");
    }

    #[test]
    fn a_lease_counts_from_when_the_heartbeat_was_sent() {
        let mut roster = roster();
        let begin = roster.assign(&assignment(1, 1)).unwrap();
        assert_eq!(begin.orders.borrow().lease, BootTime(0), "it may have been said long ago");
        let first = roster.heartbeat(BootTime(5 * SECOND), 0, Load::default());
        assert_eq!(first.holds, [(task(1), Epoch(1))]);
        let second = roster.heartbeat(BootTime(10 * SECOND), 0, Load::default());
        let answer = |number| HeartbeatAnswer {
            number,
            renewed: vec![want(1, 1, Desired::Running, 0)],
            lost: vec![],
            wish: WorkerWant::default(),
            answers: vec![],
        };
        roster.answered(&answer(second.number));
        assert_eq!(begin.orders.borrow().lease, BootTime(29 * SECOND));
        roster.answered(&answer(first.number));
        roster.answered(&answer(99));
        assert_eq!(begin.orders.borrow().lease, BootTime(29 * SECOND), "neither late nor invented answers count");
        roster.heartbeat(BootTime(20 * SECOND), 0, Load::default());
        roster.connected(Duration::from_secs(20));
        roster.answered(&answer(3));
        assert_eq!(begin.orders.borrow().lease, BootTime(29 * SECOND), "nor those of another stream");
    }

    #[test]
    fn a_bridge_counts_from_when_the_heartbeat_was_sent_and_shortens_nothing() {
        let mut roster = roster();
        let begin = roster.assign(&assignment(1, 1)).unwrap();
        let lease = || begin.orders.borrow().lease;
        let first = roster.heartbeat(BootTime(5 * SECOND), 0, Load::default());
        let second = roster.heartbeat(BootTime(10 * SECOND), 0, Load::default());
        let bridge = |number, epoch, seconds: u64| Bridge {
            number,
            holds: vec![(task(1), Epoch(epoch)), (task(2), Epoch(1))],
            left_ms: seconds * 1000,
        };
        roster.bridge(&bridge(first.number, 2, 20));
        roster.bridge(&bridge(99, 1, 20));
        assert_eq!(lease(), BootTime(0), "neither another epoch's nor an invented one");
        roster.bridge(&bridge(second.number, 1, 20));
        assert_eq!(lease(), BootTime(29 * SECOND));
        roster.bridge(&bridge(first.number, 1, 20));
        assert_eq!(lease(), BootTime(29 * SECOND));
        roster.connected(Duration::from_secs(20));
        roster.bridge(&bridge(second.number, 1, 60));
        assert_eq!(lease(), BootTime(29 * SECOND), "nor one of another stream");
    }

    #[test]
    fn an_assignments_lease_counts_from_the_last_answered_heartbeat() {
        let mut roster = roster();
        let number = roster.heartbeat(BootTime(5 * SECOND), 0, Load::default()).number;
        roster.answered(&HeartbeatAnswer {
            number,
            renewed: vec![],
            lost: vec![],
            wish: WorkerWant::default(),
            answers: vec![],
        });
        roster.heartbeat(BootTime(10 * SECOND), 0, Load::default());
        let begin = roster.assign(&assignment(1, 1)).unwrap();
        assert_eq!(begin.orders.borrow().lease, BootTime(24 * SECOND), "a margin before its end");
        roster.connected(Duration::from_secs(20));
        assert_eq!(
            roster.assign(&assignment(2, 1)).unwrap().orders.borrow().lease,
            BootTime(0),
            "not of another stream"
        );
    }

    #[test]
    fn answers_carry_what_is_wanted_and_what_is_lost() {
        let mut roster = roster();
        let one = roster.assign(&assignment(1, 1)).unwrap();
        let two = roster.assign(&assignment(2, 1)).unwrap();
        let number = roster.heartbeat(BootTime(0), 0, Load::default()).number;
        roster.answered(&HeartbeatAnswer {
            number,
            renewed: vec![want(1, 1, Desired::Paused, 1)],
            lost: vec![(task(2), Epoch(1)), (task(3), Epoch(1))],
            wish: WorkerWant::default(),
            answers: vec![],
        });
        assert_eq!(one.orders.borrow().desired, Desired::Paused);
        assert_eq!(two.orders.borrow().give_up, GiveUp::Discard);
        roster.want(&want(1, 1, Desired::Cancelled, 2));
        roster.want(&want(1, 9, Desired::Running, 3));
        assert_eq!(one.orders.borrow().desired, Desired::Cancelled);
    }

    #[test]
    fn a_worker_that_leaves_hands_back() {
        let mut roster = roster();
        let one = roster.assign(&assignment(1, 1)).unwrap();
        assert_eq!(roster.draining(), None);
        roster.drain();
        assert!(roster.assign(&assignment(2, 1)).is_none());
        assert_eq!(roster.draining().unwrap().hand_back, [(task(2), Epoch(1))], "it ran nothing");
        roster.hand_back();
        assert_eq!(one.orders.borrow().give_up, GiveUp::HandBack);
        assert_eq!(roster.draining().unwrap().hand_back.len(), 1, "not before its process is gone");
        roster.end((task(1), Epoch(1)), Ended::HandedBack);
        assert_eq!(roster.draining().unwrap().hand_back, [(task(2), Epoch(1)), (task(1), Epoch(1))]);
    }

    #[test]
    fn a_worker_that_is_drained_refuses_work_until_that_is_taken_back() {
        let mut roster = roster();
        let one = roster.assign(&assignment(1, 1)).unwrap();
        let wish = |desired, generation| WorkerWant { desired, generation, left_ms: None };
        assert!(roster.wish(&wish(WorkerDesired::Cordoned, 1)));
        assert!(!roster.is_draining(), "the controllers see to it");
        assert!(roster.wish(&wish(WorkerDesired::Drained, 3)));
        assert!(!roster.wish(&wish(WorkerDesired::Active, 2)), "an older one");
        assert!(roster.heartbeat(BootTime(0), 0, Load::default()).draining);
        assert!(roster.assign(&assignment(2, 1)).is_none());
        roster.hand_back_held();
        assert_eq!(one.orders.borrow().give_up, GiveUp::HandBack);
        roster.end((task(1), Epoch(1)), Ended::HandedBack);
        assert!(roster.wish(&wish(WorkerDesired::Active, 4)));
        assert!(!roster.heartbeat(BootTime(0), 0, Load::default()).draining);
        assert!(roster.assign(&assignment(2, 2)).is_some());
        let said = roster.draining().unwrap().hand_back;
        assert_eq!(said, [(task(2), Epoch(1)), (task(1), Epoch(1))], "also when nobody has heard it yet");
        roster.drain();
        roster.wish(&wish(WorkerDesired::Active, 5));
        assert!(roster.is_draining(), "it ends, whatever anybody wants");
    }

    #[test]
    fn a_worker_that_was_sent_away_discards() {
        let mut roster = roster();
        let one = roster.assign(&assignment(1, 1)).unwrap();
        roster.discard_all();
        assert_eq!(one.orders.borrow().give_up, GiveUp::Discard);
        assert!(roster.assign(&assignment(2, 1)).is_none());
    }

    #[test]
    fn heartbeats_nobody_answers_cost_no_more_and_more_memory() {
        let mut roster = roster();
        for second in 0..10 * UNANSWERED as u64 {
            roster.heartbeat(BootTime(second * SECOND), 0, Load::default());
        }
        assert_eq!(roster.sent.len(), UNANSWERED);
        assert!(roster.sent.contains_key(&roster.number), "the newest are known");
    }

    #[test]
    fn memory_of_the_ended_is_bounded() {
        let mut roster = roster();
        for epoch in 0..REMEMBERED as u64 + 10 {
            roster.end((task(1), Epoch(epoch)), Ended::Reported);
        }
        assert_eq!(roster.ended.len(), REMEMBERED);
        assert_eq!(roster.ended_in_order.len(), REMEMBERED);
    }
}
