//! Ends the epochs of workers that are gone.

use std::time::Duration;

use ado_proto::Audience;
use ado_proto::record::Loss;

use super::{Shared, dispatch};
use crate::store::{self, Change, NewEvent, Outcome, Row, Write};
use crate::task::{self, Command, Refusal};

/// Most epochs ended in one round.
const LIMIT: usize = 500;
/// The lease of the loop itself, so that of several controllers one does the work.
const LOOP: &str = "reaper";

/// Runs until the controller stops. Nobody is judged in the first `lost_after`: workers need that long to find a
/// controller that has just started.
pub(super) async fn run(shared: Shared) {
    let round = (shared.timing.lost_after / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
    tokio::time::sleep(shared.timing.lost_after).await;
    loop {
        match reap(&shared, round).await {
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "cannot look for dead workers"),
        }
        tokio::time::sleep(round).await;
    }
}

async fn reap(shared: &Shared, round: Duration) -> store::Result<()> {
    if shared.store.hold_loop(LOOP, shared.incarnation, round * 5).await?.is_none() {
        return Ok(());
    }
    let now = shared.store.now().await?;
    let margin = i64::try_from(shared.timing.margin().as_micros()).unwrap_or(i64::MAX);
    let before = ado_proto::Timestamp(now.0.saturating_sub(margin));
    for row in shared.store.expired(before, LIMIT).await? {
        let known = row.lease.as_ref().is_some_and(|lease| lease.incarnation.is_some());
        lose(shared, &row, if known { Loss::Silent } else { Loss::NotDelivered }, false).await?;
    }
    Ok(())
}

/// Ends a row's epoch, if it is still held under that lease.
pub(super) async fn lose(shared: &Shared, row: &Row, why: Loss, charged: bool) -> store::Result<()> {
    let (id, epoch, lease, policy) = (row.task.id, row.task.epoch, row.lease.clone(), shared.policy);
    let decide = move |row: &Row, now| {
        // A renewal may have come between the look and the decision.
        if matches!(why, Loss::Silent | Loss::NotDelivered) && row.lease != lease {
            return Err(Refusal::Unchanged);
        }
        let decision = task::decide(&row.task, Command::Lose { epoch, why, charged }, now, &policy, 0.0)?;
        let event = NewEvent {
            audience: Audience::Namespace(row.task.namespace.clone()),
            kind: "task.worker_lost",
            task: Some(id),
            worker: lease.as_ref().map(|lease| lease.worker),
            text: format!("{}: {why:?}", id.short()),
        };
        Ok(Write { row: Row { task: decision.task, lease: None }, records: decision.records, events: vec![event] })
    };
    let change = Change::Update { id, decide: Box::new(decide) };
    if let Outcome::Applied(write) = shared.committer.update(change).await? {
        tracing::warn!(task = %id, %epoch, ?why, charged, "epoch ended");
        dispatch::give_hints(shared, &[write.row]).await;
    }
    Ok(())
}
