//! Where the tasks to try come from: the queue's hints, or the store itself while there is no queue. Pure.

use std::time::Duration;

use ado_proto::TaskId;

/// How often the store is asked for what the queue may have lost.
const SWEEP: Duration = Duration::from_secs(5);
/// The same while there is no queue: nothing else says what was submitted elsewhere.
const POLL: Duration = Duration::from_millis(500);

/// A place in the store's order of claims: score and id. `None` is its beginning.
pub(super) type Place = Option<(i64, TaskId)>;

/// See the module. Looks through the store go on where the last one ended, so that those nobody can run hide no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The queue answers.
    Queue {
        /// Where the next look begins.
        from: Place,
        /// It has lost hints: looks follow each other until the end, and all that is found is given to it.
        rebuilding: bool,
    },
    /// It does not.
    Store {
        /// Where the next look begins.
        from: Place,
    },
}

impl Source {
    /// Nothing is known of the queue.
    pub(super) fn new() -> Self {
        Self::Queue { from: None, rebuilding: false }
    }

    /// The queue has answered. One that did not before may have missed any hint meanwhile.
    pub(super) fn answered(self) -> Self {
        match self {
            Self::Queue { .. } => self,
            Self::Store { .. } => Self::Queue { from: None, rebuilding: true },
        }
    }

    /// The queue has failed.
    pub(super) fn failed(self) -> Self {
        match self {
            Self::Queue { .. } => Self::Store { from: None },
            Self::Store { .. } => self,
        }
    }

    /// The queue has said whether it holds what it was given.
    pub(super) fn checked(self, is_intact: bool) -> Self {
        match self {
            Self::Queue { rebuilding: false, .. } if !is_intact => Self::Queue { from: None, rebuilding: true },
            _ => self,
        }
    }

    /// A look has gone as far as `to`; `None`: to the end.
    pub(super) fn looked(self, to: Place) -> Self {
        match self {
            Self::Queue { rebuilding, .. } => Self::Queue { from: to, rebuilding: rebuilding && to.is_some() },
            Self::Store { .. } => Self::Store { from: to },
        }
    }

    /// Where the next look begins.
    pub(super) fn from(self) -> Place {
        match self {
            Self::Queue { from, .. } | Self::Store { from } => from,
        }
    }

    /// How long after the last look the next one is due.
    pub(super) fn pause(self) -> Duration {
        match self {
            Self::Queue { rebuilding: true, .. } => Duration::ZERO,
            Self::Queue { .. } => SWEEP,
            Self::Store { .. } => POLL,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A_PLACE: Place = Some((7, TaskId(Uuid::from_u128(7))));

    #[test]
    fn a_queue_that_comes_back_is_rebuilt_from_the_beginning() {
        let away = Source::new().looked(A_PLACE).failed();
        assert_eq!(away, Source::Store { from: None }, "the first of all is tried first");
        let away = away.looked(A_PLACE);
        assert_eq!((away.failed(), away.from(), away.pause()), (away, A_PLACE, POLL));
        let back = away.answered();
        assert_eq!(back, Source::Queue { from: None, rebuilding: true });
        assert_eq!(back.answered(), back);
        assert_eq!(back.pause(), Duration::ZERO);
        let half = back.looked(A_PLACE);
        assert_eq!(half, Source::Queue { from: A_PLACE, rebuilding: true });
        assert_eq!(half.failed().answered(), back, "half a rebuild is none");
        let whole = half.looked(None);
        assert_eq!((whole, whole.pause()), (Source::new(), SWEEP));
    }

    #[test]
    fn a_queue_that_lost_its_hints_is_rebuilt_once() {
        let swept = Source::new().checked(true).looked(A_PLACE);
        assert_eq!(swept, Source::Queue { from: A_PLACE, rebuilding: false });
        let lost = swept.checked(false);
        assert_eq!(lost, Source::Queue { from: None, rebuilding: true });
        let half = lost.looked(A_PLACE);
        assert_eq!(half.checked(false), half, "it is not intact before the rebuild has ended");
    }
}
