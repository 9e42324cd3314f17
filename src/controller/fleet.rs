//! The workers connected to this controller, and what they hold.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ado_proto::request::{Load, WorkerDesired, WorkerWant};
use ado_proto::session::{Answers, ToWorker, Want};
use ado_proto::spec::Resources;
use ado_proto::{Incarnation, TaskId, Timestamp, WorkerId};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::scheduler::{Candidate, Cordon, Taken, Tripped};
use crate::store::{self, Row, Wish, Worker};
use crate::task::Task;

/// Messages waiting for one worker. When full, the message is dropped: all of them are state, and the next heartbeat's
/// answer says it again.
pub(super) const TO_WORKER: usize = 1024;

/// Everybody who is connected.
pub(super) struct Fleet {
    /// A worker that has not reported for this long gets no new work.
    silent_after: Duration,
    inner: Mutex<Inner>,
    /// Something may be placeable now: a slot was freed, a worker came or was heard of again.
    chance: Notify,
}

#[derive(Default)]
struct Inner {
    members: BTreeMap<WorkerId, Member>,
    /// Who holds what, whether connected or not.
    holders: BTreeMap<TaskId, WorkerId>,
    /// What is wanted of workers, whether connected or not, and when their time is over.
    wishes: BTreeMap<WorkerId, (Wish, Option<Instant>)>,
    /// Sessions so far.
    sessions: u64,
    /// Workers whose breakers are not closed.
    tripped: BTreeMap<WorkerId, Tripped>,
}

/// One session of a worker. A newer one replaces it: what the older says about the worker counts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    worker: WorkerId,
    number: u64,
}

struct Member {
    worker: Worker,
    session: u64,
    /// With what each may use.
    holds: BTreeMap<TaskId, Resources>,
    /// The only sender: with the member the session ends.
    messages: mpsc::Sender<ToWorker>,
    reported_at: Instant,
    report: Option<Report>,
    /// The others have not been told of the report.
    fresh: bool,
    /// The attempt that was let through its breaker.
    probe: Option<TaskId>,
}

/// What a worker's last heartbeat told about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    /// How busy its machine is, as it says itself.
    pub(super) load: Load,
    /// Round trip to it, as its connection has measured it.
    pub(super) rtt: Duration,
}

/// A connected worker, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// What placement goes by.
    pub(super) candidate: Candidate,
    /// What it holds, in order of id.
    pub(super) holds: Vec<TaskId>,
    /// `None` before its first heartbeat.
    pub(super) report: Option<Report>,
}

/// A worker whose session has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) draining: bool,
    /// Attempts it held.
    pub(super) holds: usize,
}

impl Fleet {
    /// Nobody is connected yet.
    pub(super) fn new(silent_after: Duration) -> Self {
        Self { silent_after, inner: Mutex::default(), chance: Notify::new() }
    }

    /// A worker's session begins, and replaces an older one, which ends. `held` is what the worker holds in the store; no
    /// commit comes between reading it and this.
    pub(super) fn join(&self, worker: Worker, held: &[Row], messages: mpsc::Sender<ToWorker>) -> Session {
        let id = worker.id;
        let mut inner = self.lock();
        inner.sessions += 1;
        let session = Session { worker: id, number: inner.sessions };
        let member = Member {
            worker,
            session: session.number,
            holds: BTreeMap::new(),
            messages,
            reported_at: Instant::now(),
            report: None,
            fresh: false,
            probe: None,
        };
        inner.members.insert(id, member);
        drop(inner);
        self.recount(id, held);
        session
    }

    /// A session ends. `None` when a newer one has replaced it.
    pub(super) fn leave(&self, session: Session) -> Option<Left> {
        let mut inner = self.lock();
        inner.of(session)?;
        let member = inner.members.remove(&session.worker)?;
        Some(Left { draining: member.worker.draining, holds: member.holds.len() })
    }

    /// A worker has sent a heartbeat.
    pub(super) fn reported(&self, session: Session, report: Report) {
        let mut inner = self.lock();
        let Some(member) = inner.of(session) else { return };
        let was_silent = member.reported_at.elapsed() > self.silent_after;
        member.reported_at = Instant::now();
        member.report = Some(report);
        member.fresh = true;
        drop(inner);
        if was_silent {
            self.chance.notify_one();
        }
    }

    /// A worker takes no more work, or does again.
    pub(super) fn drains(&self, session: Session, draining: bool) {
        let mut inner = self.lock();
        let Some(member) = inner.of(session) else { return };
        let was_draining = std::mem::replace(&mut member.worker.draining, draining);
        drop(inner);
        if was_draining && !draining {
            self.chance.notify_one();
        }
    }

    /// What is wanted of workers, as the store says at its time `now`. Those whose wish is another now are told.
    pub(super) fn wish(&self, wishes: &BTreeMap<WorkerId, Wish>, now: Timestamp) {
        for (worker, wish) in wishes {
            self.wished(*worker, wish, now);
        }
    }

    /// Something is wanted of a worker. What was wanted before changes nothing.
    pub(super) fn wished(&self, worker: WorkerId, wish: &Wish, now: Timestamp) {
        let mut inner = self.lock();
        if inner.wishes.get(&worker).is_some_and(|(known, _)| known.generation >= wish.generation) {
            return;
        }
        let deadline = wish.deadline.map(|deadline| Instant::now() + deadline.since(now));
        inner.wishes.insert(worker, (wish.clone(), deadline));
        let want = inner.want(worker);
        if let Some(member) = inner.members.get(&worker) {
            let _ = member.messages.try_send(want.into());
        }
        drop(inner);
        self.chance.notify_one();
    }

    /// What is wanted of a worker, to be told now.
    pub(super) fn want(&self, worker: WorkerId) -> WorkerWant {
        self.lock().want(worker)
    }

    /// What is wanted of a worker; `None`: nobody ever wanted anything.
    pub(super) fn wish_of(&self, worker: WorkerId) -> Option<Wish> {
        self.lock().wishes.get(&worker).map(|(wish, _)| wish.clone())
    }

    /// What workers have told since this was last asked, for other controllers.
    pub(super) fn reports(&self, controller: Incarnation) -> Vec<store::Report> {
        let mut inner = self.lock();
        let report = |(id, member): (&WorkerId, &mut Member)| {
            let Report { load, rtt } = member.report.filter(|_| std::mem::take(&mut member.fresh))?;
            let busy = u32::try_from(member.holds.len()).unwrap_or(u32::MAX);
            Some(store::Report { worker: *id, controller, busy, load, rtt })
        };
        inner.members.iter_mut().filter_map(report).collect()
    }

    /// Says something to everybody who is connected. Lost to those who do not keep up; see [`TO_WORKER`].
    pub(super) fn tell_all<T: Clone + Into<ToWorker>>(&self, message: &T) {
        for member in self.lock().members.values() {
            let _ = member.messages.try_send(message.clone().into());
        }
    }

    /// Says something on a session. Lost if it has been replaced or the worker does not keep up; see [`TO_WORKER`].
    pub(super) fn answer(&self, session: Session, message: impl Into<ToWorker>) {
        if let Some(member) = self.lock().of(session) {
            let _ = member.messages.try_send(message.into());
        }
    }

    /// Everybody who is connected.
    pub(super) fn connected(&self) -> Vec<WorkerId> {
        self.lock().members.keys().copied().collect()
    }

    /// Whether a worker is connected.
    pub(super) fn is_connected(&self, id: WorkerId) -> bool {
        self.lock().members.contains_key(&id)
    }

    /// What a worker holds, read from the store with no commit between that and this.
    pub(super) fn recount(&self, id: WorkerId, held: &[Row]) {
        let held = held.iter().filter(|row| row.task.is_held());
        let holds: BTreeMap<_, _> = held.map(|row| (row.task.id, row.task.spec.resources)).collect();
        let mut inner = self.lock();
        inner.holders.retain(|_, holder| *holder != id);
        inner.holders.extend(holds.keys().map(|task| (*task, id)));
        if let Some(member) = inner.members.get_mut(&id) {
            member.holds = holds;
        }
        drop(inner);
        self.chance.notify_one();
    }

    /// A task's row has changed.
    pub(super) fn observe(&self, row: &Row) {
        let task = &row.task;
        let holder = row.lease.as_ref().filter(|_| task.is_held()).map(|lease| lease.worker);
        let mut inner = self.lock();
        let inner = &mut *inner;
        let former = match holder {
            Some(id) => inner.holders.insert(task.id, id),
            None => inner.holders.remove(&task.id),
        };
        if former != holder {
            if let Some(member) = former.and_then(|id| inner.members.get_mut(&id)) {
                member.holds.remove(&task.id);
            }
            if let Some((id, member)) = holder.and_then(|id| Some((id, inner.members.get_mut(&id)?))) {
                member.holds.insert(task.id, task.spec.resources);
                let may_probe = inner.tripped.get(&id).is_some_and(|tripped| tripped.probe);
                if may_probe && member.probe.is_none_or(|probe| !member.holds.contains_key(&probe)) {
                    member.probe = Some(task.id);
                }
            }
        }
        if holder.is_none() && former.is_some() {
            self.chance.notify_one();
        }
    }

    /// Says something to this start of a worker. Lost if it is not connected or does not keep up; see [`TO_WORKER`].
    pub(super) fn tell(&self, id: WorkerId, start: Incarnation, message: impl Into<ToWorker>) {
        if let Some(member) = self.lock().members.get(&id).filter(|member| member.worker.incarnation == start) {
            let _ = member.messages.try_send(message.into());
        }
    }

    /// Which start of every worker is connected.
    pub(super) fn starts(&self) -> BTreeMap<WorkerId, Incarnation> {
        self.lock().members.iter().map(|(id, member)| (*id, member.worker.incarnation)).collect()
    }

    /// Whether any worker holds a task.
    pub(super) fn is_held(&self, task: TaskId) -> bool {
        self.lock().holders.contains_key(&task)
    }

    /// Workers whose breakers are not closed, all of them.
    pub(super) fn trip(&self, tripped: BTreeMap<WorkerId, Tripped>) {
        let mut inner = self.lock();
        let changed = inner.tripped != tripped;
        inner.tripped = tripped;
        drop(inner);
        if changed {
            self.chance.notify_one();
        }
    }

    /// Tasks that workers hold, whether connected or not.
    pub(super) fn leases(&self) -> usize {
        self.lock().holders.len()
    }

    /// What placement knows of everybody.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let inner = self.lock();
        inner.members.values().map(|member| self.candidate(&inner, member)).collect()
    }

    /// Everybody who is connected, for people.
    pub(super) fn seen(&self) -> BTreeMap<WorkerId, Seen> {
        let inner = self.lock();
        let seen = |member: &Member| Seen {
            candidate: self.candidate(&inner, member),
            holds: member.holds.keys().copied().collect(),
            report: member.report,
        };
        inner.members.iter().map(|(id, member)| (*id, seen(member))).collect()
    }

    fn candidate(&self, inner: &Inner, member: &Member) -> Candidate {
        let silent = member.reported_at.elapsed() > self.silent_after;
        // One at a time: while the one that was let through is there, no other is.
        let is_tried = member.probe.is_some_and(|probe| member.holds.contains_key(&probe));
        let tripped = inner.tripped.get(&member.worker.id).cloned();
        let tripped = tripped.map(|tripped| Tripped { probe: tripped.probe && !is_tried, ..tripped });
        let wish = inner.wishes.get(&member.worker.id).map(|(wish, _)| wish);
        let taken = Taken::of(member.holds.values());
        Candidate { silent, tripped, ..candidate(&member.worker, wish, member.holds.len(), taken) }
    }

    /// Resolves when something may be placeable.
    pub(super) async fn chance(&self) {
        self.chance.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The member whose session this is; `None` when a newer one has replaced it.
    fn of(&mut self, session: Session) -> Option<&mut Member> {
        self.members.get_mut(&session.worker).filter(|member| member.session == session.number)
    }

    fn want(&self, worker: WorkerId) -> WorkerWant {
        let Some((wish, deadline)) = self.wishes.get(&worker) else { return WorkerWant::default() };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        WorkerWant { desired: wish.desired, generation: wish.generation, left_ms }
    }
}

/// What placement would know of a worker that is heard and holds this many tasks, which may use this together.
pub(super) fn candidate(worker: &Worker, wish: Option<&Wish>, holds: usize, taken: Taken) -> Candidate {
    let cordon = |wish: &Wish| Cordon { by: wish.by.clone(), drain: wish.desired == WorkerDesired::Drained };
    Candidate {
        id: worker.id,
        name: worker.name.clone(),
        namespace: worker.namespace.clone(),
        pool: worker.pool.clone(),
        agents: worker.agents.clone(),
        labels: worker.labels.clone(),
        slots: worker.slots,
        busy: u32::try_from(holds).unwrap_or(u32::MAX),
        resources: worker.resources,
        taken,
        draining: worker.draining,
        cordon: wish.filter(|wish| wish.desired != WorkerDesired::Active).map(cordon),
        silent: false,
        tripped: None,
    }
}

/// What is wanted of the attempt that holds a task.
pub(super) fn want(task: &Task) -> Want {
    Want { task: task.id, epoch: task.epoch, desired: task.desired, generation: task.generation, force: task.force }
}

/// What was answered and its worker has not passed on yet.
pub(super) fn answers(task: &Task) -> Option<Answers> {
    let given: Vec<_> = task.asks.iter().filter_map(|open| Some((open.ask.id, open.answer.clone()?))).collect();
    (!given.is_empty()).then_some(Answers { task: task.id, epoch: task.epoch, given })
}

#[cfg(test)]
mod tests {
    use ado_proto::Namespace;
    use ado_proto::spec::{Containment, Input, TaskSpec};
    use uuid::Uuid;

    use super::*;
    use crate::store::Lease;
    use crate::task::{self, Command, Holder, Policy};

    fn worker(slots: u32) -> Worker {
        Worker {
            id: WorkerId(Uuid::from_u128(1)),
            incarnation: Incarnation(Uuid::from_u128(2)),
            name: "w".into(),
            namespace: Namespace::default(),
            pool: "default".into(),
            slots,
            agents: vec!["shell".into()],
            labels: BTreeMap::new(),
            containment: Containment::Group,
            build: String::new(),
            resources: Resources::default(),
            draining: false,
            seen_at: Timestamp(0),
            via: None,
        }
    }

    /// A task that the worker holds.
    fn held(n: u128) -> Row {
        let submitted = ado_proto::record::Submitted {
            namespace: Namespace::default(),
            owner: "user/ann".into(),
            name: None,
            group: None,
            spec: TaskSpec::new("shell", Input::Text("true".into())),
        };
        let task = task::submit(TaskId(Uuid::from_u128(n)), submitted, Timestamp(0)).task;
        let holder = Holder { id: worker(1).id, name: "w".into() };
        let claim = Command::Claim { worker: holder.clone() };
        let task = task::decide(&task, claim, Timestamp(0), &Policy::default(), 0.0).unwrap().task;
        let incarnation = worker(1).incarnation;
        let lease = Lease { worker: holder.id, incarnation, is_known: false, expires_at: Timestamp(9) };
        Row::new(task, Some(lease))
    }

    fn ended(mut row: Row) -> Row {
        row.task.state = task::State::Ended { outcome: ado_proto::record::Outcome::Completed, exit: None, error: None };
        row.lease = None;
        row
    }

    fn fleet() -> Fleet {
        Fleet::new(Duration::from_secs(15))
    }

    #[tokio::test]
    async fn a_newer_session_ends_the_older_one() {
        let fleet = fleet();
        let (tx, mut inbox) = mpsc::channel(1);
        let older = fleet.join(worker(4), &[], tx);
        let (tx, _newer_inbox) = mpsc::channel(1);
        let newer = fleet.join(worker(4), &[held(1)], tx);
        assert!(inbox.recv().await.is_none(), "nobody can say anything on it");
        fleet.drains(older, true);
        let report = Report { load: Load { cpus: 4, ..Load::default() }, rtt: Duration::from_millis(3) };
        fleet.reported(older, report);
        assert_eq!(fleet.seen()[&worker(4).id].report, None);
        fleet.reported(newer, report);
        assert_eq!(fleet.seen()[&worker(4).id].report, Some(report));
        assert!(!fleet.candidates()[0].draining, "late words of the older session");
        assert_eq!(fleet.leave(older), None);
        assert_eq!(fleet.seen()[&worker(4).id].holds, [held(1).task.id]);
        fleet.drains(newer, true);
        assert_eq!(fleet.leave(newer), Some(Left { draining: true, holds: 1 }));
        assert!(fleet.candidates().is_empty());
    }

    #[tokio::test]
    async fn the_newest_wish_counts_and_is_told_once() {
        let fleet = fleet();
        let id = worker(4).id;
        let wish = |desired, generation, deadline: Option<i64>| Wish {
            desired,
            generation,
            deadline: deadline.map(Timestamp),
            by: "admin/ann".into(),
        };
        // Before it comes, too.
        fleet.wished(id, &wish(WorkerDesired::Cordoned, 1, None), Timestamp(0));
        let (tx, mut inbox) = mpsc::channel(9);
        fleet.join(worker(4), &[], tx);
        assert_eq!(fleet.want(id), WorkerWant { desired: WorkerDesired::Cordoned, generation: 1, left_ms: None });
        assert_eq!(fleet.candidates()[0].free(), 0);
        let drained = wish(WorkerDesired::Drained, 3, Some(5_000_000));
        for older in [&drained, &drained, &wish(WorkerDesired::Active, 2, None)] {
            fleet.wished(id, older, Timestamp(0));
        }
        let Some(ToWorker::Wish(told)) = inbox.recv().await else { panic!("nothing is told") };
        assert_eq!((told.desired, told.generation), (WorkerDesired::Drained, 3));
        assert!(told.left_ms.is_some_and(|left| left > 4_000 && left <= 5_000), "{told:?}");
        assert!(inbox.try_recv().is_err());
        assert!(fleet.candidates()[0].cordon.as_ref().is_some_and(|cordon| cordon.drain));
        fleet.wished(id, &wish(WorkerDesired::Active, 4, None), Timestamp(0));
        assert_eq!(fleet.candidates()[0].free(), 4);
    }

    #[test]
    fn a_probe_is_alone_until_it_has_gone() {
        let fleet = fleet();
        let (tx, _inbox) = mpsc::channel(1);
        fleet.join(worker(4), &[held(1)], tx);
        let tripped = |probe| BTreeMap::from([(worker(4).id, Tripped { probe, why: "x".into() })]);
        let free = || fleet.candidates()[0].free();
        fleet.trip(tripped(false));
        assert_eq!(free(), 0);
        fleet.trip(tripped(true));
        assert_eq!(free(), 1, "what it held before is no probe");
        fleet.observe(&held(2));
        assert_eq!(free(), 0);
        fleet.observe(&ended(held(1)));
        assert_eq!(free(), 0);
        fleet.observe(&ended(held(2)));
        assert_eq!(free(), 1);
        fleet.trip(BTreeMap::new());
        assert_eq!(free(), 4);
    }

    #[test]
    fn counts_what_is_held_and_can_be_corrected() {
        let fleet = fleet();
        let (tx, _inbox) = mpsc::channel(1);
        fleet.join(worker(4), &[held(1), held(2)], tx);
        fleet.observe(&held(2));
        fleet.observe(&held(3));
        assert_eq!(fleet.candidates()[0].busy, 3);
        fleet.observe(&ended(held(1)));
        fleet.observe(&ended(held(1)));
        assert_eq!(fleet.candidates()[0].busy, 2);
        fleet.recount(worker(4).id, &[held(3), held(4), held(5)]);
        assert_eq!(fleet.candidates()[0].busy, 3);
        for n in [2, 3, 4, 5] {
            fleet.observe(&ended(held(n)));
        }
        assert_eq!(fleet.candidates()[0].busy, 0);
    }
}
