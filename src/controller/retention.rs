//! What has outlived its retention goes: tasks that ended long ago, and what is too much of a log. One controller at a time
//! sees to it.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::{Offset, TaskId, Timestamp};
use tokio::time::Instant;

use super::Shared;
use super::leased::Leased;
use crate::store;

/// How often what is old is looked for.
const SWEEP: Duration = Duration::from_secs(3600);
/// The lease of the loop.
const LOOP: &str = "retention";
/// Most running tasks whose logs are looked after.
const LIMIT: usize = 10_000;
/// More than a record has.
const RECORD_BYTES: u64 = 64 * 1024;

/// How long tasks are kept, and how much of their logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// After their end.
    pub logs: Duration,
    /// Most bytes of output and progress of one task, before compression.
    pub max_log_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { logs: Duration::from_secs(30 * 24 * 3600), max_log_bytes: 1 << 30 }
    }
}

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared, retention: Retention) {
    let round = (shared.timing.heartbeat * 2).min(Duration::from_secs(60));
    let mut lease = Leased::new(LOOP, round * 5);
    let mut sweep_at = Instant::now();
    let mut logs = Logs::default();
    loop {
        match lease.hold(&shared).await {
            Ok(Some(_)) => {
                if Instant::now() >= sweep_at {
                    sweep_at = Instant::now() + SWEEP;
                    report(sweep(&shared, retention.logs).await);
                }
                report(logs.cap(&shared, retention.max_log_bytes).await);
            }
            // Another one sees to it.
            Ok(None) => logs = Logs::default(),
            Err(error) => report(Err(error)),
        }
        tokio::time::sleep(round).await;
    }
}

fn report(done: store::Result<()>) {
    if let Err(error) = done {
        tracing::warn!(%error, "cannot delete what is past its retention");
    }
}

async fn sweep(shared: &Shared, logs: Duration) -> store::Result<()> {
    shared.store.sweep().await?;
    let forgotten = shared.store.forget_tasks(logs).await?;
    if forgotten > 0 {
        tracing::info!(forgotten, "tasks that ended long ago are no longer kept");
    }
    Ok(())
}

/// The logs of running tasks, and how long each may be before it is looked at again.
#[derive(Default)]
struct Logs(BTreeMap<TaskId, Offset>);

impl Logs {
    async fn cap(&mut self, shared: &Shared, most: u64) -> store::Result<()> {
        let held = shared.store.expired(Timestamp(i64::MAX), LIMIT).await?;
        let mut grown = BTreeMap::new();
        for row in &held {
            let (id, next) = (row.task.id, row.task.next_offset);
            // Not looked at yet counts as grown; so does one that has ended since, once.
            match self.0.remove(&id) {
                Some(look_at) if next < look_at => {
                    grown.insert(id, look_at);
                }
                _ => {
                    let kept = shared.store.cap_log(id, most).await?;
                    grown.insert(id, Offset(next.0 + (most.saturating_sub(kept) / RECORD_BYTES).max(1)));
                }
            }
        }
        for id in std::mem::replace(&mut self.0, grown).into_keys() {
            shared.store.cap_log(id, most).await?;
        }
        Ok(())
    }
}
