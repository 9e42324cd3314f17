//! The bridge over a store that does not answer: for how long agents go on without a renewal, and when their tasks may be
//! taken away nevertheless. Pure.
//!
//! A lease that its controller cannot renew could end an agent's work for nothing: nobody else may reach the store either.
//! But somebody might, so two rules go together. A controller lets a worker go on only while it has *not* been answered by
//! the store for longer than a heartbeat takes since the worker's last renewal, and it says in the store what it was told last.
//! Whoever judges takes a lease for over once the controller that renewed it has been in touch for so long without renewing it
//! again (it bridges nothing then: the worker is silent), or after the longest bridge. What a controller says that it was told
//! lags behind what it knows, so it never rules out a bridge that it may yet make; and while one stands, it says nothing new.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_proto::session::{Bridge, Heartbeat};
use ado_proto::{Epoch, Incarnation, TaskId, Timestamp, WorkerId};
use tokio::time::Instant;

use super::Timing;
use super::reaper::before;
use crate::env::Env;
use crate::store::{Controller, Renewal, Row};

/// Whether nobody bridges an expired lease that `via` has renewed.
pub(super) fn is_over(timing: Timing, row: &Row, via: Incarnation, controllers: &[Controller], now: Timestamp) -> bool {
    let Some(lease) = &row.lease else { return true };
    let said = controllers.iter().find(|controller| controller.incarnation == via);
    let is_silent = said.is_some_and(|said| is_silent(timing, lease.expires_at, said.in_touch));
    is_silent || now > lease.expires_at.after(timing.margin() + timing.bridge())
}

/// Whether a controller that has been answered at `told` knows that a worker is silent.
fn is_silent(timing: Timing, expires_at: Timestamp, told: Timestamp) -> bool {
    told.since(before(expires_at, timing.lease())) >= timing.silence()
}

/// A point in time. Of its two clocks one stands still while the machine sleeps, and the other may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    instant: Instant,
    wall: Timestamp,
}

impl Moment {
    pub(super) fn now(env: &Env) -> Self {
        Self { instant: Instant::now(), wall: env.now() }
    }

    fn since(self, earlier: Self) -> Duration {
        self.instant.saturating_duration_since(earlier.instant).max(self.wall.since(earlier.wall))
    }
}

/// What this controller may bridge, and does.
pub(super) struct Bridges {
    timing: Timing,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The store's time of its last answer.
    told: Timestamp,
    /// What the store was told of that.
    said: Timestamp,
    /// All bridges are over then.
    stands_until: Option<Instant>,
    /// Of workers that have renewed here, on their present session.
    granted: BTreeMap<WorkerId, BTreeMap<(TaskId, Epoch), Grant>>,
}

#[derive(Debug, Clone, Copy)]
struct Grant {
    /// Before it was written.
    asked: Moment,
    expires_at: Timestamp,
}

impl Grant {
    fn of(row: &Row, asked: Moment) -> Option<((TaskId, Epoch), Self)> {
        let expires_at = row.lease.as_ref()?.expires_at;
        Some(((row.task.id, row.task.epoch), Self { asked, expires_at }))
    }
}

impl Bridges {
    pub(super) fn new(timing: Timing) -> Self {
        Self { timing, inner: Mutex::default() }
    }

    /// What to say next in the store: see [`Controller::in_touch`].
    pub(super) fn in_touch(&self) -> Timestamp {
        let mut inner = self.lock();
        if inner.stands_until.is_none_or(|until| until < Instant::now()) {
            inner.said = inner.told;
        }
        inner.said
    }

    /// The store has answered, and that it was `now`.
    pub(super) fn told(&self, now: Timestamp) {
        let mut inner = self.lock();
        inner.told = inner.told.max(now);
    }

    /// A worker's leases were renewed, as was asked at `asked`.
    pub(super) fn renewed(&self, worker: WorkerId, renewal: &Renewal, asked: Moment) {
        let mut inner = self.lock();
        let mut former = inner.granted.remove(&worker).unwrap_or_default();
        let mut granted: BTreeMap<_, _> = renewal.renewed.iter().filter_map(|row| Grant::of(row, asked)).collect();
        // What it has not named yet, but may have begun.
        let unnamed = renewal.unnamed.iter().map(|row| (row.task.id, row.task.epoch));
        granted.extend(unnamed.filter_map(|key| former.remove_entry(&key)));
        inner.granted.insert(worker, granted);
    }

    /// A worker was given a task, as was asked at `asked`.
    pub(super) fn claimed(&self, row: &Row, asked: Moment) {
        let Some((worker, (key, grant))) = row.lease.as_ref().map(|lease| lease.worker).zip(Grant::of(row, asked))
        else {
            return;
        };
        // Of one that has not renewed here, another controller may say that it is silent.
        if let Some(granted) = self.lock().granted.get_mut(&worker) {
            granted.insert(key, grant);
        }
    }

    /// A worker's session begins or has ended.
    pub(super) fn forget(&self, worker: WorkerId) {
        self.lock().granted.remove(&worker);
    }

    /// What of a heartbeat that cannot be written may go on, and for how long. `None`: nothing.
    pub(super) fn bridge(&self, worker: WorkerId, heartbeat: &Heartbeat, now: Moment) -> Option<Bridge> {
        let timing = self.timing;
        let longest = timing.lease() + timing.bridge();
        let mut inner = self.lock();
        let granted = inner.granted.get(&worker)?;
        let mut left = timing.lease();
        let mut holds = Vec::new();
        for key in &heartbeat.holds {
            let Some(grant) = granted.get(key) else { continue };
            let remains = longest.saturating_sub(now.since(grant.asked));
            if !remains.is_zero() && !is_silent(timing, grant.expires_at, inner.told) {
                left = left.min(remains);
                holds.push(*key);
            }
        }
        if holds.is_empty() {
            return None;
        }
        let until = now.instant + left;
        inner.stands_until = Some(inner.stands_until.map_or(until, |former| former.max(until)));
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Some(Bridge { number: heartbeat.number, holds, left_ms })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::request::Load;
    use ado_proto::spec::{Input, TaskSpec};
    use ado_proto::{ControllerId, Namespace};
    use uuid::Uuid;

    use super::*;
    use crate::store::Lease;
    use crate::task::{self, Command, Holder, Policy};

    const WORKER: WorkerId = WorkerId(Uuid::from_u128(1));
    const START: Incarnation = Incarnation(Uuid::from_u128(9));
    const TIMING: Timing = Timing { heartbeat: Duration::from_secs(5), lost_after: Duration::from_secs(20) };

    /// On the store's clock.
    fn at(second: i64) -> Timestamp {
        Timestamp(1_800_000_000_000_000 + second * 1_000_000)
    }

    /// A task whose lease was renewed at a second.
    fn held(n: u128, second: i64) -> Row {
        let submitted = ado_proto::record::Submitted {
            namespace: Namespace::default(),
            owner: "user/ann".into(),
            name: None,
            group: None,
            spec: TaskSpec::new("noop", Input::Text(String::new())),
        };
        let task = task::submit(TaskId(Uuid::from_u128(n)), submitted, Timestamp(0)).task;
        let claim = Command::Claim { worker: Holder { id: WORKER, name: "w".into() } };
        let task = task::decide(&task, claim, Timestamp(0), &Policy::default(), 0.0).unwrap().task;
        let expires_at = at(second).after(TIMING.lease());
        Row::new(task, Some(Lease { worker: WORKER, incarnation: START, is_known: true, expires_at }))
    }

    fn renewal(rows: &[Row]) -> Renewal {
        Renewal { renewed: rows.to_vec(), ..Renewal::default() }
    }

    fn heartbeat(tasks: &[u128]) -> Heartbeat {
        let holds = tasks.iter().map(|n| (TaskId(Uuid::from_u128(*n)), Epoch(1))).collect();
        Heartbeat { number: 7, holds, load: Load::default(), draining: false }
    }

    struct Bed {
        bridges: Bridges,
        began: Moment,
    }

    impl Bed {
        fn new() -> Self {
            Self { bridges: Bridges::new(TIMING), began: Moment { instant: Instant::now(), wall: at(0) } }
        }

        /// This process's clocks at a second.
        fn moment(&self, second: u64) -> Moment {
            let later = Duration::from_secs(second);
            Moment { instant: self.began.instant + later, wall: self.began.wall.after(later) }
        }

        /// Which tasks may go on for how many seconds.
        fn bridged(&self, tasks: &[u128], second: u64) -> Option<(Vec<u128>, u64)> {
            let bridge = self.bridges.bridge(WORKER, &heartbeat(tasks), self.moment(second))?;
            Some((bridge.holds.iter().map(|(task, _)| task.0.as_u128()).collect(), bridge.left_ms / 1000))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_renewed_here_goes_on_for_a_while() {
        let bed = Bed::new();
        assert_eq!(bed.bridged(&[1], 0), None, "it has not renewed here");
        bed.bridges.claimed(&held(1, 0), bed.moment(0));
        assert_eq!(bed.bridged(&[1], 0), None, "nor by being given something");
        bed.bridges.told(at(1));
        bed.bridges.renewed(WORKER, &renewal(&[held(1, 1), held(2, 1)]), bed.moment(1));
        bed.bridges.claimed(&held(3, 2), bed.moment(2));
        assert_eq!(bed.bridged(&[1, 3, 4], 6), Some((vec![1, 3], 15)), "a lease; nothing that it was not given");
        assert_eq!(bed.bridged(&[1], 40), Some((vec![1], 6)), "no longer than to the end of the bridge");
        assert_eq!(bed.bridged(&[1, 3], 46), Some((vec![3], 1)));
        assert_eq!(bed.bridged(&[1, 3], 47), None);
        bed.bridges.renewed(WORKER, &renewal(&[held(2, 50)]), bed.moment(50));
        assert_eq!(bed.bridged(&[1, 2, 3], 50), Some((vec![2], 15)), "what was lost is gone");
        bed.bridges.forget(WORKER);
        assert_eq!(bed.bridged(&[2], 50), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_kept_and_a_sleep_counts() {
        let bed = Bed::new();
        bed.bridges.renewed(WORKER, &renewal(&[]), bed.moment(0));
        bed.bridges.claimed(&held(1, 1), bed.moment(1));
        let unnamed = Renewal { unnamed: vec![held(1, 1)], ..Renewal::default() };
        bed.bridges.renewed(WORKER, &unnamed, bed.moment(2));
        assert_eq!(bed.bridged(&[1], 3), Some((vec![1], 15)));
        // The machine has slept: only one of the clocks shows that.
        let slept = Moment { wall: at(60), ..bed.moment(4) };
        assert_eq!(bed.bridges.bridge(WORKER, &heartbeat(&[1]), slept), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whom_the_store_answered_all_the_time_bridges_nothing() {
        let bed = Bed::new();
        bed.bridges.renewed(WORKER, &renewal(&[held(1, 0)]), bed.moment(0));
        bed.bridges.told(at(9));
        assert!(bed.bridged(&[1], 9).is_some(), "one heartbeat was late");
        bed.bridges.told(at(10));
        assert_eq!(bed.bridged(&[1], 10), None, "the worker was silent for too long");
        bed.bridges.told(at(3));
        assert_eq!(bed.bridged(&[1], 10), None, "an answer that comes late takes nothing back");
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_bridge_stands_nothing_is_said_that_would_end_it() {
        let bed = Bed::new();
        bed.bridges.told(at(1));
        assert_eq!(bed.bridges.in_touch(), at(1));
        bed.bridges.renewed(WORKER, &renewal(&[held(1, 1)]), bed.moment(1));
        assert!(bed.bridged(&[1], 2).is_some());
        bed.bridges.told(at(30));
        assert_eq!(bed.bridges.in_touch(), at(1));
        tokio::time::advance(Duration::from_secs(17)).await;
        assert_eq!(bed.bridges.in_touch(), at(1), "to the end of the lease");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(bed.bridges.in_touch(), at(30));
    }

    #[test]
    fn a_lease_is_over_when_its_controller_rules_a_bridge_out_or_after_the_longest() {
        let said = |start, in_touch| Controller {
            id: ControllerId(Uuid::from_u128(5)),
            incarnation: start,
            name: "c".into(),
            addresses: Vec::new(),
            build: String::new(),
            since: at(0),
            seen_at: at(100),
            in_touch,
            workers: 0,
            viewers: 0,
        };
        let over = |controllers: &[Controller], second| is_over(TIMING, &held(1, 0), START, controllers, at(second));
        assert!(over(&[said(START, at(10))], 21));
        assert!(!over(&[said(START, at(9))], 21), "it may not know that the worker is silent");
        assert!(!over(&[said(Incarnation(Uuid::from_u128(8)), at(20))], 21), "its next start knows nothing of it");
        assert!(!over(&[], 50));
        assert!(over(&[], 51), "no bridge is longer");
    }

    /// Whatever the order and however late: no task is judged lost that a worker may still act for.
    #[test]
    fn nobody_is_judged_who_was_bridged() {
        let mut judged = 0;
        let cases = (0..20).step_by(5).flat_map(|renewed| (0..60).map(move |told| (renewed, told)));
        for (renewed, last_told, beat) in cases.flat_map(|(a, b)| (0..60).step_by(3).map(move |beat| (a, b, beat))) {
            let bed = Bed::new();
            bed.bridges.renewed(WORKER, &renewal(&[held(1, renewed)]), bed.moment(renewed.unsigned_abs()));
            bed.bridges.told(at(last_told));
            let bridged = bed.bridged(&[1], beat).map(|(_, left)| at(0).after(Duration::from_secs(beat + left)));
            let acts_until = bridged.unwrap_or(at(renewed).after(TIMING.lease()));
            // What is said is at most what it was told before.
            for said in [last_told - 1, last_told] {
                let row = held(1, renewed);
                let silent = is_silent(TIMING, row.lease.as_ref().unwrap().expires_at, at(said));
                let first = at(renewed).after(TIMING.lost_after);
                let first = if silent { first } else { first.after(TIMING.bridge()) };
                judged += usize::from(silent);
                assert!(acts_until < first, "renewed {renewed}, told {last_told}, heartbeat {beat}");
            }
        }
        assert!(judged > 1000);
    }
}
