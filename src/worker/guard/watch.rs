//! When an agent may run: the lease, the reasons to freeze it, its time limit, and how it is told to stop.
//!
//! Pure: messages and instants in, acts out.

use std::collections::BTreeSet;
use std::time::Duration;

use ado_proto::spec::{Exit, Limit};

use super::BootTime;
use super::protocol::{FromGuard, Reason, Start, ToGuard};

/// What the guard has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing of the agent runs after this.
    Freeze,
    /// It goes on.
    Thaw,
    /// SIGTERM to the agent's process group.
    Terminate,
    /// Kill everything, and report the end.
    Kill,
    /// Say this to the worker.
    Tell(FromGuard),
}

/// One agent's right to run.
#[derive(Debug)]
pub(super) struct Watch {
    lease: BootTime,
    reasons: BTreeSet<Reason>,
    mark: u64,
    /// The limit of running time that is over first.
    limit: Option<(Duration, Limit)>,
    /// Running time before `since`.
    ran: Duration,
    /// Start of the current stretch of running; of no meaning while frozen or waiting.
    since: BootTime,
    /// It waits for somebody.
    waits: bool,
    /// Why it is being ended, if it is not by itself.
    verdict: Option<Exit>,
    /// End of the grace after SIGTERM.
    kill_at: Option<BootTime>,
}

impl Watch {
    pub(super) fn new(start: &Start, now: BootTime) -> Self {
        Self {
            lease: start.lease,
            reasons: BTreeSet::new(),
            mark: 0,
            limit: first_limit(start),
            ran: Duration::ZERO,
            since: now,
            waits: false,
            verdict: None,
            kill_at: None,
        }
    }

    /// The worker says something.
    pub(super) fn hear(&mut self, now: BootTime, message: &ToGuard) -> Vec<Act> {
        match message {
            // A second start would be a second agent.
            ToGuard::Start(_) => Vec::new(),
            ToGuard::Renew(lease) => {
                self.lease = self.lease.max(*lease);
                if now < self.lease { self.thaw(now, Reason::Lease) } else { Vec::new() }
            }
            // An agent that is told to stop must be able to.
            ToGuard::Freeze { .. } if self.kill_at.is_some() => Vec::new(),
            ToGuard::Freeze { reason, mark } => {
                self.mark = *mark;
                self.freeze(now, *reason)
            }
            ToGuard::Thaw { reason, mark } => {
                self.mark = *mark;
                self.thaw(now, *reason)
            }
            ToGuard::Stop { grace_ms } => self.stop(now, Duration::from_millis(*grace_ms)),
            ToGuard::Kill => {
                self.verdict.get_or_insert(Exit::Cancelled);
                vec![Act::Kill]
            }
            ToGuard::Waits(waits) => {
                self.waits(now, *waits);
                Vec::new()
            }
            ToGuard::TimeOut(limit) => {
                self.verdict.get_or_insert(Exit::TimedOut(*limit));
                vec![Act::Kill]
            }
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: BootTime) -> Vec<Act> {
        if self.kill_at.is_some_and(|at| now >= at) {
            return vec![Act::Kill];
        }
        if let Some((_, limit)) = self.limit_at().filter(|(at, _)| *at <= now.min(self.lease)) {
            self.verdict.get_or_insert(Exit::TimedOut(limit));
            return vec![Act::Kill];
        }
        if now >= self.lease { self.freeze(now, Reason::Lease) } else { Vec::new() }
    }

    /// When [`Watch::tick`] has something to do.
    pub(super) fn next_tick(&self) -> BootTime {
        let lease = if self.reasons.contains(&Reason::Lease) { BootTime::NEVER } else { self.lease };
        [self.kill_at, self.limit_at().map(|(at, _)| at)].into_iter().flatten().fold(lease, BootTime::min)
    }

    /// How the attempt ended, given how the agent's first process did.
    pub(super) fn conclude(&self, exit: Exit) -> Exit {
        self.verdict.clone().unwrap_or(exit)
    }

    fn limit_at(&self) -> Option<(BootTime, Limit)> {
        let (length, limit) = self.limit?;
        let left = length.saturating_sub(self.ran);
        (self.reasons.is_empty() && !self.waits).then(|| (self.since.after(left), limit))
    }

    fn waits(&mut self, now: BootTime, waits: bool) {
        if self.reasons.is_empty() && waits && !self.waits {
            self.ran += now.min(self.lease).since(self.since);
        }
        if !waits && self.waits {
            self.since = now;
        }
        self.waits = waits;
    }

    fn stop(&mut self, now: BootTime, grace: Duration) -> Vec<Act> {
        self.verdict.get_or_insert(Exit::Cancelled);
        let first = self.kill_at.is_none();
        let kill_at = now.after(grace);
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        if !first {
            return Vec::new();
        }
        let mut acts = self.thaw(now, Reason::User);
        acts.extend(self.thaw(now, Reason::Snapshot));
        // A frozen agent (its lease ran out) gets the signal when it runs again.
        acts.push(Act::Terminate);
        acts
    }

    fn freeze(&mut self, now: BootTime, reason: Reason) -> Vec<Act> {
        let running = self.reasons.is_empty();
        if !self.reasons.insert(reason) {
            return Vec::new();
        }
        let tell = Act::Tell(FromGuard::Frozen { reasons: self.reasons.clone(), mark: self.mark });
        if !running {
            return vec![tell];
        }
        // What a sleeping machine slept beyond the lease is not running time.
        if !self.waits {
            self.ran += now.min(self.lease).since(self.since);
        }
        vec![Act::Freeze, tell]
    }

    fn thaw(&mut self, now: BootTime, reason: Reason) -> Vec<Act> {
        if !self.reasons.remove(&reason) {
            return Vec::new();
        }
        if self.reasons.is_empty() {
            self.since = now;
            return vec![Act::Thaw, Act::Tell(FromGuard::Thawed { mark: self.mark })];
        }
        vec![Act::Tell(FromGuard::Frozen { reasons: self.reasons.clone(), mark: self.mark })]
    }
}

fn first_limit(start: &Start) -> Option<(Duration, Limit)> {
    let limits = [(start.time_limit_ms, Limit::Attempt), (start.total_left_ms, Limit::Total)];
    limits
        .into_iter()
        .filter_map(|(ms, limit)| Some((Duration::from_millis(ms?), limit)))
        .min_by_key(|(length, _)| *length)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ado_proto::spec::Containment;

    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime(0).after(Duration::from_secs(seconds))
    }

    fn watch(limit: Option<u64>, lease: u64) -> Watch {
        Watch::new(&start(limit, lease), at(0))
    }

    fn start(limit: Option<u64>, lease: u64) -> Start {
        Start {
            argv: vec!["x".into()],
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            cwd: "/".into(),
            stdin: None,
            time_limit_ms: limit.map(|seconds| seconds * 1000),
            total_left_ms: None,
            lease: at(lease),
            containment: Containment::Subreaper,
            limits: ado_proto::spec::Resources::default(),
        }
    }

    fn frozen(reasons: impl IntoIterator<Item = Reason>, mark: u64) -> Act {
        Act::Tell(FromGuard::Frozen { reasons: reasons.into_iter().collect(), mark })
    }

    fn thawed(mark: u64) -> Act {
        Act::Tell(FromGuard::Thawed { mark })
    }

    #[test]
    fn the_lease_freezes_and_its_renewal_thaws() {
        let mut watch = watch(None, 10);
        assert_eq!(watch.next_tick(), at(10));
        assert_eq!(watch.tick(at(9)), []);
        assert_eq!(watch.tick(at(10)), [Act::Freeze, frozen([Reason::Lease], 0)]);
        assert_eq!(watch.next_tick(), BootTime::NEVER);
        assert_eq!(watch.hear(at(12), &ToGuard::Renew(at(11))), [], "over before it came");
        assert_eq!(watch.hear(at(12), &ToGuard::Renew(at(20))), [Act::Thaw, thawed(0)]);
        assert_eq!(watch.hear(at(12), &ToGuard::Renew(at(5))), []);
        assert_eq!(watch.next_tick(), at(20), "an older renewal takes nothing back");
    }

    #[test]
    fn it_thaws_when_no_reason_is_left() {
        let mut watch = watch(None, 10);
        let user = |mark| ToGuard::Freeze { reason: Reason::User, mark };
        assert_eq!(watch.hear(at(1), &user(4)), [Act::Freeze, frozen([Reason::User], 4)]);
        assert_eq!(watch.hear(at(1), &user(4)), []);
        assert_eq!(watch.tick(at(10)), [frozen([Reason::User, Reason::Lease], 4)]);
        let thaw = ToGuard::Thaw { reason: Reason::User, mark: 5 };
        assert_eq!(watch.hear(at(11), &thaw), [frozen([Reason::Lease], 5)]);
        assert_eq!(watch.hear(at(12), &ToGuard::Renew(at(30))), [Act::Thaw, thawed(5)]);
    }

    #[test]
    fn time_frozen_does_not_count() {
        let mut watch = watch(Some(10), 1000);
        watch.hear(at(4), &ToGuard::Freeze { reason: Reason::User, mark: 1 });
        assert_eq!(watch.tick(at(100)), []);
        watch.hear(at(100), &ToGuard::Thaw { reason: Reason::User, mark: 2 });
        assert_eq!(watch.next_tick(), at(106));
        assert_eq!(watch.tick(at(105)), []);
        assert_eq!(watch.tick(at(106)), [Act::Kill]);
        assert_eq!(watch.conclude(Exit::Signal(9)), Exit::TimedOut(Limit::Attempt));
    }

    #[test]
    fn a_night_asleep_is_not_running_time() {
        let mut watch = watch(Some(60), 20);
        assert_eq!(watch.tick(at(30_000)), [Act::Freeze, frozen([Reason::Lease], 0)]);
        watch.hear(at(30_001), &ToGuard::Renew(at(30_100)));
        assert_eq!(watch.next_tick(), at(30_041), "40 of 60 seconds are left");
    }

    #[test]
    fn a_stop_thaws_asks_and_then_kills() {
        let mut watch = watch(None, 1000);
        watch.hear(at(1), &ToGuard::Freeze { reason: Reason::User, mark: 1 });
        let stop = ToGuard::Stop { grace_ms: 10_000 };
        assert_eq!(watch.hear(at(2), &stop), [Act::Thaw, thawed(1), Act::Terminate]);
        assert_eq!(watch.hear(at(5), &stop), [], "a repeated stop neither asks again nor gives more time");
        assert_eq!(watch.hear(at(5), &ToGuard::Freeze { reason: Reason::User, mark: 2 }), []);
        assert_eq!(watch.next_tick(), at(12));
        assert_eq!(watch.tick(at(12)), [Act::Kill]);
        assert_eq!(watch.conclude(Exit::Code(0)), Exit::Cancelled);
    }

    #[test]
    fn of_two_limits_the_first_counts() {
        let conclude = |time, total| {
            let start = Start { time_limit_ms: Some(time), total_left_ms: Some(total), ..start(None, 1000) };
            let mut watch = Watch::new(&start, at(0));
            assert_eq!(watch.tick(at(1)), [Act::Kill]);
            watch.conclude(Exit::Signal(9))
        };
        assert_eq!(conclude(1_000, 2_000), Exit::TimedOut(Limit::Attempt));
        assert_eq!(conclude(2_000, 1_000), Exit::TimedOut(Limit::Total));
        assert_eq!(conclude(2_000, 0), Exit::TimedOut(Limit::Total), "nothing is left of it");
    }

    #[test]
    fn the_worker_may_end_it_for_its_silence() {
        let mut watch = watch(None, 1000);
        assert_eq!(watch.hear(at(1), &ToGuard::TimeOut(Limit::Silence)), [Act::Kill]);
        assert_eq!(watch.conclude(Exit::Signal(9)), Exit::TimedOut(Limit::Silence));
    }

    #[test]
    fn the_first_verdict_stands() {
        let mut watch = watch(Some(5), 1000);
        assert_eq!(watch.tick(at(5)), [Act::Kill]);
        assert_eq!(watch.hear(at(5), &ToGuard::Kill), [Act::Kill]);
        assert_eq!(watch.conclude(Exit::Signal(9)), Exit::TimedOut(Limit::Attempt));
    }
}
