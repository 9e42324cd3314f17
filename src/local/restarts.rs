//! When a missing process is started again. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A process that lived this long was well.
const WELL_AFTER: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Starts a missing process at once, and more and more slowly when it dies again and again.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    started_at: Option<Instant>,
    wait: Duration,
    /// When to start it, while it is known to be missing.
    due: Option<Instant>,
}

impl Restarts {
    /// Takes one look: whether to start it now.
    pub(super) fn look(&mut self, alive: bool, now: Instant) -> bool {
        if alive {
            self.due = None;
            return false;
        }
        let due = *self.due.get_or_insert_with(|| {
            let died_young = self.started_at.is_some_and(|started| now < started + WELL_AFTER);
            self.wait = if died_young { (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT) } else { Duration::ZERO };
            now + self.wait
        });
        if now < due {
            return false;
        }
        self.due = None;
        self.started_at = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds at which a process that dies at once is started, looked at every half second for a minute.
    fn starts(lives: Duration) -> Vec<f64> {
        let zero = Instant::now();
        let mut restarts = Restarts::default();
        let mut started: Option<Instant> = None;
        (0..120)
            .filter_map(|tick| {
                let now = zero + Duration::from_millis(500) * tick;
                let alive = started.is_some_and(|at| now < at + lives);
                restarts.look(alive, now).then(|| {
                    started = Some(now);
                    (now - zero).as_secs_f64()
                })
            })
            .collect()
    }

    #[test]
    fn one_that_dies_at_once_is_started_more_and_more_slowly() {
        // Each death is noticed half a second later; the waits after it are 0.5, 1, 2, 4, 8 and 16 seconds.
        assert_eq!(starts(Duration::ZERO), [0.0, 1.0, 2.5, 5.0, 9.5, 18.0, 34.5]);
    }

    #[test]
    fn one_that_was_well_is_started_at_once() {
        assert_eq!(starts(Duration::from_secs(20)), [0.0, 20.0, 40.0]);
    }
}
