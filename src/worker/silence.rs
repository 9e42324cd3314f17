//! How long an agent has said nothing. Pure: its worker's clock is handed in.
//!
//! While it is frozen no time runs; nor while its worker does not listen, since it may wait for just that.

use std::time::Duration;

use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub(super) struct Silence {
    limit: Option<Duration>,
    /// It was silent for so long before `since`.
    before: Duration,
    /// Since when it runs, or said something; `None` while it cannot say anything.
    since: Option<Instant>,
}

impl Silence {
    /// Nothing runs yet.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, before: Duration::ZERO, since: None }
    }

    /// The agent runs, or runs again.
    pub(super) fn runs(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// It is frozen, or has ended.
    pub(super) fn stands(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.before += now.saturating_duration_since(since);
        }
    }

    /// It said something, or could not.
    pub(super) fn broken(&mut self, now: Instant) {
        self.before = Duration::ZERO;
        self.since = self.since.map(|_| now);
    }

    /// When it has been silent for too long.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        Some(self.since? + self.limit?.saturating_sub(self.before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_it_could_say_something_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(Some(Duration::from_secs(10)));
        assert_eq!(silence.ends_at(), None, "it does not run yet");
        silence.broken(at(1));
        assert_eq!(silence.ends_at(), None);
        silence.runs(at(2));
        assert_eq!(silence.ends_at(), Some(at(12)));
        silence.broken(at(5));
        assert_eq!(silence.ends_at(), Some(at(15)));
        silence.stands(at(9));
        assert_eq!(silence.ends_at(), None, "frozen");
        silence.stands(at(50));
        silence.runs(at(100));
        silence.runs(at(101));
        assert_eq!(silence.ends_at(), Some(at(106)), "4 of 10 seconds were over before");
        silence.broken(at(105));
        assert_eq!(silence.ends_at(), Some(at(115)));
        let mut endless = Silence::new(None);
        endless.runs(at(0));
        assert_eq!(endless.ends_at(), None);
    }
}
