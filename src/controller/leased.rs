//! A loop that one controller of those that share a store runs: a lease, kept while it is held.
//!
//! What the loops do is safe when two of them do it: every write is a compare-and-set. The lease saves work, no more.

use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use crate::store;

/// See the module.
pub(super) struct Leased {
    name: &'static str,
    ttl: Duration,
    /// Its term, and when it was last asked for. `None`: another holds it, or nobody was asked.
    held: Option<(u64, Instant)>,
}

impl Leased {
    /// Of a loop of this name; `ttl` is how long another waits when its holder dies.
    pub(super) fn new(name: &'static str, ttl: Duration) -> Self {
        Self { name, ttl, held: None }
    }

    /// Its term, if it is this controller's. Asks the store when a third of the lease is over, or another held it. A
    /// controller that shares its store with nobody holds everything and asks nobody.
    pub(super) async fn hold(&mut self, shared: &Shared) -> store::Result<Option<u64>> {
        if !shared.shared {
            return Ok(Some(1));
        }
        // Counted from before the question: the store's count begins later.
        let now = Instant::now();
        if let Some((term, _)) = self.held.filter(|(_, at)| now.duration_since(*at) < self.ttl / 3) {
            return Ok(Some(term));
        }
        let former = self.held.take();
        let term = shared.store.hold_loop(self.name, shared.incarnation, self.ttl).await?;
        if term != former.map(|(term, _)| term) && (term.is_some() || former.is_some()) {
            tracing::info!(name = self.name, ?term, "a loop moved");
        }
        self.held = term.map(|term| (term, now));
        Ok(term)
    }
}
