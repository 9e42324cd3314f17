//! Ends the epochs of workers that are gone.

use std::time::Duration;

use ado_proto::record::Loss;
use ado_proto::{Audience, Timestamp};

use super::{Shared, Timing, dispatch};
use crate::store::{self, Change, NewEvent, Outcome, Row, Write};
use crate::task::{self, Command, Refusal};

/// Most epochs ended in one round.
const LIMIT: usize = 500;
/// The lease of the loop itself, so that of several controllers one does the work.
const LOOP: &str = "reaper";

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared) {
    let round = (shared.timing.lost_after / 10).min(Duration::from_secs(1));
    let mut vigil = Vigil::default();
    loop {
        match reap(&shared, round, &mut vigil).await {
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "cannot look for dead workers"),
        }
        tokio::time::sleep(round).await;
    }
}

/// Since when this controller has listened to workers without a gap. A worker is silent only to somebody who listened:
/// after a start, a failover, an outage of the store, a stopped process or a machine that slept, workers get as long as
/// ever to be heard.
#[derive(Debug, Default)]
struct Vigil {
    /// When it began, and when somebody last looked.
    kept: Option<(Timestamp, Timestamp)>,
}

impl Vigil {
    /// Somebody looks, at `now`. Whether workers may be judged.
    fn look(&mut self, now: Timestamp, timing: &Timing) -> bool {
        let since = match self.kept {
            // A gap this short costs nobody a lease: it is the margin they all have.
            Some((since, last)) if now.since(last) <= timing.margin() => since,
            _ => now,
        };
        self.kept = Some((since, now));
        now.since(since) >= timing.lost_after
    }
}

async fn reap(shared: &Shared, round: Duration, vigil: &mut Vigil) -> store::Result<()> {
    if shared.store.hold_loop(LOOP, shared.incarnation, round * 5).await?.is_none() {
        return Ok(());
    }
    let now = shared.store.now().await?;
    if !vigil.look(now, &shared.timing) {
        return Ok(());
    }
    let margin = i64::try_from(shared.timing.margin().as_micros()).unwrap_or(i64::MAX);
    let before = Timestamp(now.0.saturating_sub(margin));
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

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { heartbeat: Duration::from_secs(5), lost_after: Duration::from_secs(20) };

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    #[test]
    fn nobody_is_judged_by_who_has_not_listened() {
        let mut vigil = Vigil::default();
        assert!((100..120).all(|second| !vigil.look(at(second), &TIMING)), "it has just begun");
        assert!(vigil.look(at(120), &TIMING));
        assert!(vigil.look(at(125), &TIMING), "a short gap is within the margin");
        assert!((3600..3620).all(|second| !vigil.look(at(second), &TIMING)), "it slept, or had no store");
        assert!(vigil.look(at(3620), &TIMING));
    }
}
