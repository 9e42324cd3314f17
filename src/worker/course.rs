//! An attempt's course: what is wanted of it, what its guard reports, what goes into the log.
//!
//! Pure: orders and reports in, messages and bodies out.

use std::time::Duration;

use ado_proto::record::{Body, Desired, Exited, Paused, Resumed, Started};
use ado_proto::session::{Assignment, Want};
use ado_proto::spec::Exit;

use super::guard::BootTime;
use super::guard::protocol::{FromGuard, Reason, ToGuard};

/// From SIGTERM to SIGKILL when a task is cancelled.
const GRACE: Duration = Duration::from_secs(10);

/// What an attempt has to do: state, not events. Only the newest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// The lease holds until then.
    pub lease: BootTime,
    /// What a user wants.
    pub desired: Desired,
    /// Its generation.
    pub generation: u64,
    /// With [`Desired::Cancelled`]: kill at once.
    pub force: bool,
    /// Whether the attempt is to be given up.
    pub give_up: GiveUp,
}

/// Why an attempt is ended by its worker. The later one includes the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GiveUp {
    /// It is not.
    No,
    /// The worker leaves: what the agent wrote is delivered, its end is not reported.
    HandBack,
    /// The epoch is over: nothing it says counts.
    Discard,
}

impl Orders {
    /// As the assignment has them.
    pub fn new(assignment: &Assignment, lease: BootTime) -> Self {
        Self {
            lease,
            desired: assignment.desired,
            generation: assignment.generation,
            force: false,
            give_up: GiveUp::No,
        }
    }

    /// Takes over what is wanted, unless it is older than what is known. Whether anything changed.
    pub fn want(&mut self, want: &Want) -> bool {
        if want.generation <= self.generation {
            return false;
        }
        self.desired = want.desired;
        self.generation = want.generation;
        self.force = want.force;
        true
    }

    /// The lease is renewed. Whether anything changed.
    pub fn renew(&mut self, lease: BootTime) -> bool {
        let later = lease > self.lease;
        self.lease = self.lease.max(lease);
        later
    }

    /// The attempt is given up. Whether anything changed.
    pub fn give_up(&mut self, how: GiveUp) -> bool {
        let more = how > self.give_up;
        self.give_up = self.give_up.max(how);
        more
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Course {
    /// The last orders followed.
    orders: Orders,
    /// Whether the log says that it is paused.
    paused: bool,
    exit: Option<Exit>,
}

impl Course {
    /// Begins to follow `orders`. The messages come after the guard's start.
    pub(super) fn begin(orders: Orders) -> (Self, Vec<ToGuard>) {
        let idle = Orders { desired: Desired::Running, give_up: GiveUp::No, ..orders };
        let mut course = Self { orders: idle, paused: false, exit: None };
        let messages = course.change_to(orders);
        (course, messages)
    }

    /// Newer orders have come.
    pub(super) fn follow(&mut self, orders: Orders) -> Vec<ToGuard> {
        if self.exit.is_some() && orders.give_up < GiveUp::Discard {
            // It has ended by itself: there is nothing to hand back.
            return Vec::new();
        }
        self.change_to(orders)
    }

    fn change_to(&mut self, new: Orders) -> Vec<ToGuard> {
        let old = std::mem::replace(&mut self.orders, new);
        let mut messages = Vec::new();
        if new.lease > old.lease {
            messages.push(ToGuard::Renew(new.lease));
        }
        let mark = new.generation;
        match new.desired {
            _ if new.give_up > old.give_up => messages.push(ToGuard::Kill),
            Desired::Cancelled if new.force && !old.force => messages.push(ToGuard::Kill),
            Desired::Cancelled if old.desired != Desired::Cancelled => {
                messages.push(ToGuard::Stop { grace_ms: u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX) });
            }
            Desired::Paused if old.desired != Desired::Paused => {
                messages.push(ToGuard::Freeze { reason: Reason::User, mark });
            }
            Desired::Running if old.desired == Desired::Paused => {
                messages.push(ToGuard::Thaw { reason: Reason::User, mark });
            }
            Desired::Running | Desired::Paused | Desired::Cancelled => {}
        }
        messages
    }

    /// The guard reports something.
    pub(super) fn hear(&mut self, report: FromGuard) -> Option<Body> {
        match report {
            FromGuard::Started { pid, containment } => Some(Started { pid, containment }.into()),
            FromGuard::NotStarted { error, permanent } => {
                self.exit = Some(Exit::NotStarted { error, permanent });
                None
            }
            FromGuard::Frozen { reasons, mark } => self.paused(reasons.contains(&Reason::User), mark),
            FromGuard::Thawed { mark } => self.paused(false, mark),
            FromGuard::Exited(exit) => {
                self.exit = Some(exit);
                None
            }
        }
    }

    /// The log says "paused" once, and "resumed" only after it.
    fn paused(&mut self, now: bool, generation: u64) -> Option<Body> {
        let before = std::mem::replace(&mut self.paused, now);
        match (before, now) {
            (false, true) => Some(Paused { generation }.into()),
            (true, false) => Some(Resumed { generation }.into()),
            (false, false) | (true, true) => None,
        }
    }

    /// The attempt's last record, if the end is to be reported at all.
    pub(super) fn last_words(self) -> Option<Body> {
        let lost = || Exit::Lost { error: "its guard died".into() };
        (self.orders.give_up == GiveUp::No).then(|| Exited { exit: self.exit.unwrap_or_else(lost) }.into())
    }

    /// Why it is being given up.
    pub(super) fn give_up(&self) -> GiveUp {
        self.orders.give_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: Orders =
        Orders { lease: BootTime(10), desired: Desired::Running, generation: 0, force: false, give_up: GiveUp::No };

    fn wanting(orders: Orders, desired: Desired, generation: u64, force: bool) -> Orders {
        Orders { desired, generation, force, ..orders }
    }

    fn frozen(reasons: impl IntoIterator<Item = Reason>, mark: u64) -> FromGuard {
        FromGuard::Frozen { reasons: reasons.into_iter().collect(), mark }
    }

    #[test]
    fn older_generations_and_leases_are_ignored() {
        let want = |desired, generation| Want {
            task: ado_proto::TaskId(uuid::Uuid::nil()),
            epoch: ado_proto::Epoch(1),
            desired,
            generation,
            force: false,
        };
        let mut orders = ORDERS;
        assert!(orders.want(&want(Desired::Paused, 2)));
        assert!(!orders.want(&want(Desired::Cancelled, 1)));
        assert!(!orders.want(&want(Desired::Running, 2)));
        assert_eq!((orders.desired, orders.generation), (Desired::Paused, 2));
        assert!(!orders.renew(BootTime(9)));
        assert!(orders.renew(BootTime(11)));
        assert!(orders.give_up(GiveUp::Discard));
        assert!(!orders.give_up(GiveUp::HandBack));
        assert_eq!(orders.give_up, GiveUp::Discard);
    }

    #[test]
    fn a_renewal_reaches_the_guard() {
        let (mut course, _) = Course::begin(ORDERS);
        let renewed = Orders { lease: BootTime(20), ..ORDERS };
        assert_eq!(course.follow(renewed), [ToGuard::Renew(BootTime(20))]);
        assert_eq!(course.follow(renewed), []);
        let both = wanting(Orders { lease: BootTime(30), ..ORDERS }, Desired::Paused, 1, false);
        let expected = [ToGuard::Renew(BootTime(30)), ToGuard::Freeze { reason: Reason::User, mark: 1 }];
        assert_eq!(course.follow(both), expected);
    }

    #[test]
    fn pausing_and_resuming_are_reported_once_each() {
        let (mut course, first) = Course::begin(ORDERS);
        assert_eq!(first, []);
        let pause = wanting(ORDERS, Desired::Paused, 1, false);
        assert_eq!(course.follow(pause), [ToGuard::Freeze { reason: Reason::User, mark: 1 }]);
        assert_eq!(course.follow(pause), []);
        assert_eq!(course.hear(frozen([Reason::Lease], 0)), None, "the lease's freeze is nobody's business");
        assert_eq!(course.hear(frozen([Reason::User, Reason::Lease], 1)), Some(Paused { generation: 1 }.into()));
        assert_eq!(course.hear(frozen([Reason::User], 1)), None);
        let resume = wanting(ORDERS, Desired::Running, 2, false);
        assert_eq!(course.follow(resume), [ToGuard::Thaw { reason: Reason::User, mark: 2 }]);
        assert_eq!(course.hear(FromGuard::Thawed { mark: 2 }), Some(Resumed { generation: 2 }.into()));
        assert_eq!(course.hear(FromGuard::Thawed { mark: 2 }), None);
    }

    #[test]
    fn what_was_wanted_before_the_start_is_said_after_it() {
        let (_, messages) = Course::begin(wanting(ORDERS, Desired::Paused, 4, false));
        assert_eq!(messages, [ToGuard::Freeze { reason: Reason::User, mark: 4 }]);
    }

    #[test]
    fn a_cancel_asks_and_force_kills() {
        let (mut course, _) = Course::begin(ORDERS);
        assert_eq!(course.follow(wanting(ORDERS, Desired::Cancelled, 1, false)), [ToGuard::Stop { grace_ms: 10_000 }]);
        assert_eq!(course.follow(wanting(ORDERS, Desired::Cancelled, 2, true)), [ToGuard::Kill]);
        course.hear(FromGuard::Exited(Exit::Cancelled));
        assert_eq!(course.last_words(), Some(Exited { exit: Exit::Cancelled }.into()));
    }

    #[test]
    fn an_attempt_given_up_has_no_last_words() {
        for how in [GiveUp::HandBack, GiveUp::Discard] {
            let (mut course, _) = Course::begin(ORDERS);
            assert_eq!(course.follow(Orders { give_up: how, ..ORDERS }), [ToGuard::Kill]);
            course.hear(FromGuard::Exited(Exit::Cancelled));
            assert_eq!(course.last_words(), None);
        }
    }

    #[test]
    fn an_end_of_its_own_is_reported_even_by_a_worker_that_leaves() {
        let (mut course, _) = Course::begin(ORDERS);
        course.hear(FromGuard::Exited(Exit::Code(0)));
        assert_eq!(course.follow(Orders { give_up: GiveUp::HandBack, ..ORDERS }), []);
        assert_eq!(course.last_words(), Some(Exited { exit: Exit::Code(0) }.into()));
    }

    #[test]
    fn a_guard_that_says_nothing_is_a_loss() {
        let (course, _) = Course::begin(ORDERS);
        let Some(Body::Exited(Exited { exit: Exit::Lost { .. } })) = course.last_words() else { panic!("no loss") };
    }
}
