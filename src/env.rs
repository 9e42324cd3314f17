//! What a component may not take from its surroundings: wall clock, randomness, ids. Injected, so that a simulation with
//! the same seed replays the same run.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ado_proto::Timestamp;
use uuid::Uuid;

/// The source of time of day and of randomness. Timers and monotonic time are tokio's, which a simulation can pause.
pub trait Source: Send + Sync {
    /// Time of day.
    fn now(&self) -> Timestamp;
    /// Fills `bytes` with random ones. Cryptographically strong outside simulations.
    fn fill(&self, bytes: &mut [u8]);
}

/// Handed to every component.
#[derive(Clone)]
pub struct Env {
    source: Arc<dyn Source>,
    // The last UUIDv7's time and tail: ids made by one process rise.
    last: Arc<Mutex<u64>>,
}

impl Env {
    /// Uses the given source.
    pub fn new(source: impl Source + 'static) -> Self {
        Self { source: Arc::new(source), last: Arc::default() }
    }

    /// The operating system's clock and generator.
    pub fn system() -> Self {
        Self::new(System)
    }

    /// Time of day.
    pub fn now(&self) -> Timestamp {
        self.source.now()
    }

    /// Fills `bytes` with random ones.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.source.fill(bytes);
    }

    /// Uniform in `[0, 1)`.
    pub fn jitter(&self) -> f64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        // 53 bits: the mantissa of an f64.
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A UUIDv7 (RFC 9562 section 5.7). Those of one process rise, to the millisecond.
    pub fn uuid(&self) -> Uuid {
        let millis = {
            let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *last = (*last).max(u64::try_from(self.now().0 / 1000).unwrap_or(0));
            *last
        };
        let mut random = [0; 10];
        self.fill(&mut random);
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }
}

struct System;

impl Source for System {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock of the machine")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives random bytes");
    }
}
