//! Every spawned task has an owner and an end.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Spawns, and later stops, the tasks of one component. Clones share the tasks.
#[derive(Clone, Default)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Tasks {
    /// An owner with no tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An owner whose tasks stop when this one's do. It is waited for with this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: self.tracker.clone(), running: self.running.clone() }
    }

    /// Runs `future` to its end. It must watch [`Tasks::stopping`] itself if it does not end by itself.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running::start(name, &self.running);
        let work = async move {
            future.await;
            drop(running);
        };
        self.tracker.spawn(work.instrument(tracing::Span::current()));
    }

    /// Runs `future` until its end or until the owner stops, whichever is first.
    pub fn spawn_until_stop<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            token.run_until_cancelled(future).await;
        });
    }

    /// Resolves when the owner stops.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Whether the owner stops.
    pub fn is_stopping(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Tells all tasks to stop, without waiting.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Tells all tasks to stop and waits for them. Names in the log those that take longer than `patience`.
    pub async fn stop(&self, patience: Duration) {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            let late: Vec<_> = self.running.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
            tracing::warn!(?late, ?patience, "tasks did not stop in time");
        }
    }
}

struct Running {
    name: &'static str,
    all: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Running {
    fn start(name: &'static str, all: &Arc<Mutex<BTreeMap<&'static str, usize>>>) -> Self {
        *all.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { name, all: all.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                all.remove(self.name);
            }
        }
    }
}
