//! The clock leases are measured on.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
/// Here the monotonic clock goes on while the machine sleeps.
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

/// Nanoseconds on a clock that all processes of a machine share, never steps, and goes on while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// An instant that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Reads the clock.
    pub fn now() -> Self {
        let now = Duration::from(clock_gettime(CLOCK).expect("every kernel we run on has the clock"));
        Self(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
    }

    /// This instant moved forward, saturating.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this instant; zero when it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
