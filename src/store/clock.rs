//! The clock of a store that has no database server to ask: the injected one, but never backwards, so that commit times
//! rise with offsets even when somebody sets the machine's clock.

use std::sync::atomic::{AtomicI64, Ordering};

use ado_proto::Timestamp;

use crate::env::Env;

/// Never goes backwards, from `last` on.
pub(super) struct Clock {
    env: Env,
    last: AtomicI64,
}

impl Clock {
    /// A clock that has shown `last` already.
    pub(super) fn new(env: Env, last: Timestamp) -> Self {
        Self { env, last: AtomicI64::new(last.0) }
    }

    /// The time now, at least every time shown before.
    pub(super) fn now(&self) -> Timestamp {
        let now = self.env.now().0;
        Timestamp(self.last.fetch_max(now, Ordering::Relaxed).max(now))
    }
}
