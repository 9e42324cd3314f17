//! Ends what has taken too long by the controller's own measure: tasks that wait, and attempts whose agent does not start.
//!
//! The instant stands in the store, on its clock, so that it does not matter which controller looks, nor how many.

use std::time::Duration;

use ado_proto::Timestamp;

use super::leased::Leased;
use super::session::event_of;
use super::{Shared, dispatch};
use crate::store::{self, Change, Committed, Outcome, Row, Unit, Write};
use crate::task::{self, Command};

/// Most tasks of one round.
const LIMIT: usize = 500;
/// Between two looks.
const ROUND: Duration = Duration::from_millis(500);
/// The lease of the loop, so that of several controllers one does the work.
const LOOP: &str = "deadlines";

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared) {
    let mut lease = Leased::new(LOOP, ROUND * 10);
    loop {
        if let Err(error) = look(&shared, &mut lease).await {
            tracing::warn!(%error, "cannot look for what has taken too long");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn look(shared: &Shared, lease: &mut Leased) -> store::Result<()> {
    let now = shared.store.now().await?;
    let overdue = shared.store.overdue(now, LIMIT).await?;
    if overdue.is_empty() || lease.hold(shared).await?.is_none() {
        return Ok(());
    }
    let changes = overdue.iter().map(|row| expire(shared, row)).collect();
    let Committed::Done(outcomes, _) = shared.committer.commit(Unit { changes, once: None, audit: None }).await? else {
        return Ok(());
    };
    let mut queued = Vec::new();
    for (before, outcome) in overdue.iter().zip(outcomes) {
        // Refused: it went on, ended or was paused just now. A worker that held it hears so with the next thing it says.
        let Outcome::Applied(write) = outcome else { continue };
        tracing::info!(task = %before.task.id, limit = ?before.task.expires().map(|(_, limit)| limit), "timed out");
        shared.tell_answers(&write.row);
        queued.push(write.row);
    }
    dispatch::give_hints(shared, &queued).await;
    Ok(())
}

fn expire(shared: &Shared, row: &Row) -> Change {
    let (id, policy, jitter) = (row.task.id, shared.policy, shared.env.jitter());
    let decide = move |row: &Row, now: Timestamp| {
        let decision = task::decide(&row.task, Command::Expire, now, &policy, jitter)?;
        let events = decision.records.iter().filter_map(|record| event_of(id, &decision.task, record)).collect();
        let lease = row.lease.clone().filter(|_| decision.task.is_held());
        Ok(Write { row: Row::new(decision.task, lease), records: decision.records, events })
    };
    Change::Update { id, decide: Box::new(decide) }
}
