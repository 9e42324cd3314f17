//! The clock of a store that has no database server to ask: the injected one, but it never goes backwards or stands still,
//! so that commit times rise with offsets and leases end even when somebody sets the machine's clock back.

use std::sync::{Mutex, PoisonError};

use ado_proto::Timestamp;

use crate::env::Env;

/// Never goes backwards, from the time it began with.
pub(super) struct Clock {
    env: Env,
    state: Mutex<State>,
}

struct State {
    /// What the injected clock showed last.
    seen: i64,
    /// How far this clock is ahead of it: the sum of its jumps back.
    lead: i64,
}

impl Clock {
    /// A clock that has shown `last` already.
    pub(super) fn new(env: Env, last: Timestamp) -> Self {
        let seen = env.now().0;
        let lead = last.0.saturating_sub(seen).max(0);
        Self { env, state: Mutex::new(State { seen, lead }) }
    }

    /// The time now, at least every time shown before.
    pub(super) fn now(&self) -> Timestamp {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.env.now().0;
        state.lead = state.lead.saturating_add(state.seen.saturating_sub(seen).max(0));
        state.seen = seen;
        Timestamp(seen.saturating_add(state.lead))
    }
}
