//! Who waits for hints, and who has heard of which push.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Pushes into one queue. Each [`Clone`] is one consumer: of two that wait on the same one at different times, one may
/// miss a push.
#[derive(Default)]
pub(super) struct Pushes {
    shared: Arc<Shared>,
    /// The pushes that this one's last [`Pushes::next`] told of.
    seen: AtomicU64,
}

#[derive(Default)]
struct Shared {
    /// How many there were.
    count: AtomicU64,
    more: Notify,
}

impl Clone for Pushes {
    /// Another consumer. It has seen no push yet.
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: AtomicU64::new(0) }
    }
}

impl Pushes {
    /// There was one. Said after the hints are there, or a consumer could look, find none, and take this push for one it
    /// has seen.
    pub(super) fn add(&self) {
        self.shared.count.fetch_add(1, Ordering::Release);
        self.shared.more.notify_waiters();
    }

    /// Resolves when there was one that this has not told of.
    pub(super) async fn next(&self) {
        let mut more = pin!(self.shared.more.notified());
        // From here on no push is missed: either it is counted, or it notifies.
        more.as_mut().enable();
        let count = self.shared.count.load(Ordering::Acquire);
        if self.seen.swap(count, Ordering::AcqRel) != count {
            return;
        }
        more.await;
        self.seen.store(self.shared.count.load(Ordering::Acquire), Ordering::Release);
    }
}
