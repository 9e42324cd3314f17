//! The clock of a store that has no database server to ask: the injected one, but it never goes backwards or stands still,
//! so that commit times rise with offsets and leases end even when somebody sets the machine's clock back.

use std::sync::{Mutex, PoisonError};

use ado_proto::Timestamp;
use tokio::time::Instant;

use crate::env::Env;

/// Never goes backwards, from the time it began with.
pub(super) struct Clock {
    env: Env,
    last: Mutex<(Timestamp, Instant)>,
}

impl Clock {
    /// A clock that has shown `last` already.
    pub(super) fn new(env: Env, last: Timestamp) -> Self {
        Self { env, last: Mutex::new((last, Instant::now())) }
    }

    /// The injected clock's time; while that is behind, the time shown before and what has passed since.
    pub(super) fn now(&self) -> Timestamp {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        let passed = last.0.after(at.duration_since(last.1));
        *last = (self.env.now().max(passed), at);
        last.0
    }
}
