//! Ends the epochs of workers that are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::record::Loss;
use ado_proto::{Audience, Timestamp};

use super::leased::Leased;
use super::{Shared, bridge, dispatch, session};
use crate::store::{self, Change, Committed, NewEvent, Outcome, Row, Unit, Worker, Write};
use crate::task::{self, Command, Refusal};

/// Most epochs ended in one round.
const LIMIT: usize = 500;

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared) {
    let round = (shared.timing.lost_after / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
    let mut grace = Grace::new(shared.timing.lost_after);
    let mut lease = Leased::new("reaper", round * 5);
    let mut losses = shared.mesh.losses();
    loop {
        if losses.has_changed().unwrap_or(false) {
            // Its workers have to find another controller first.
            losses.mark_unchanged();
            grace.begin();
        }
        if let Err(error) = reap(&shared, &mut grace, &mut lease).await {
            // Renewals are not written either.
            grace.begin();
            tracing::warn!(%error, "cannot look for dead workers");
        }
        tokio::time::sleep(round).await;
    }
}

/// Nobody is judged until all could have been heard: not after a start, nor after this process or its machine stood still,
/// the clock was set, or the store took no writes.
struct Grace {
    length: Duration,
    began_at: Option<Timestamp>,
    looked_at: Timestamp,
}

impl Grace {
    fn new(length: Duration) -> Self {
        Self { length, began_at: None, looked_at: Timestamp(0) }
    }

    /// Begins anew with the next look.
    fn begin(&mut self) {
        self.began_at = None;
    }

    /// Whether it is over. Asked much more often than it is long.
    fn is_over(&mut self, now: Timestamp) -> bool {
        if now.since(self.looked_at) > self.length / 2 {
            self.begin();
        }
        self.looked_at = now;
        now.since(*self.began_at.get_or_insert(now)) >= self.length
    }
}

async fn reap(shared: &Shared, grace: &mut Grace, lease: &mut Leased) -> store::Result<()> {
    let now = shared.store.now().await?;
    let is_over = grace.is_over(now);
    // Held in the grace, too: it is seen who will judge.
    if lease.hold(shared).await?.is_none() || !is_over {
        return Ok(());
    }
    let expired = shared.store.expired(before(now, shared.timing.margin()), LIMIT).await?;
    let expired = may_be_lost(shared, expired, now).await?;
    if !expired.is_empty() {
        let is_known = |row: &Row| row.lease.as_ref().is_some_and(|lease| lease.is_known);
        let (known, unknown): (Vec<_>, Vec<_>) = expired.into_iter().partition(is_known);
        lose(shared, &known, Loss::Silent, false).await?;
        lose(shared, &unknown, Loss::NotDelivered, false).await?;
    }
    let lost_after = shared.timing.lost_after;
    let event = |worker: &Worker| {
        session::event("worker.lost", worker, format!("{} has not reported for {lost_after:?}", worker.name))
    };
    for worker in shared.store.lose_workers(before(now, lost_after), &event).await? {
        shared.hub.news();
        tracing::warn!(worker = %worker.id, name = worker.name, "lost");
    }
    Ok(())
}

/// Those of which no worker can be acting any more: their lease is over, and nobody bridges it.
async fn may_be_lost(shared: &Shared, mut expired: Vec<Row>, now: Timestamp) -> store::Result<Vec<Row>> {
    // Who shares its store with nobody bridges nothing.
    if expired.is_empty() || !shared.shared {
        return Ok(expired);
    }
    // In this order: what a controller has been told only rises, and a worker that has moved to another since has renewed
    // what it holds there.
    let workers = shared.store.workers().await?;
    let vias: BTreeMap<_, _> = workers.iter().filter_map(|worker| Some((worker.id, worker.via?))).collect();
    let controllers = shared.store.controllers().await?;
    expired.retain(|row| {
        let via = row.lease.as_ref().and_then(|lease| vias.get(&lease.worker));
        via.is_none_or(|via| bridge::is_over(shared.timing, row, *via, &controllers, now))
    });
    Ok(expired)
}

pub(super) fn before(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
}

/// Ends the epochs of rows, all in one transaction: of those that are still held, and under that lease.
pub(super) async fn lose(shared: &Shared, rows: &[Row], why: Loss, charged: bool) -> store::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let changes = rows.iter().map(|row| lose_one(shared.policy, row, why, charged)).collect();
    let Committed::Done(outcomes, _) = shared.committer.commit(Unit { changes, once: None, audit: None }).await? else {
        return Ok(());
    };
    let mut lost = Vec::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        if let Outcome::Applied(write) = outcome {
            let worker = row.task.worker.as_ref().map(|holder| &holder.name);
            tracing::warn!(task = %row.task.id, epoch = %row.task.epoch, worker, ?why, charged, "epoch ended");
            lost.push(write.row);
        }
    }
    dispatch::give_hints(shared, &lost).await;
    Ok(())
}

fn lose_one(policy: task::Policy, row: &Row, why: Loss, charged: bool) -> Change {
    let (id, epoch, lease) = (row.task.id, row.task.epoch, row.lease.clone());
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
        Ok(Write { row: Row::new(decision.task, None), records: decision.records, events: vec![event] })
    };
    Change::Update { id, decide: Box::new(decide) }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::Submitted;
    use ado_proto::spec::{Input, TaskSpec};
    use ado_proto::{Incarnation, Namespace, TaskId, WorkerId};
    use uuid::Uuid;

    use super::*;
    use crate::store::Lease;

    /// A task held until `expires_at`.
    fn held(expires_at: i64) -> Row {
        let submitted = Submitted {
            namespace: Namespace::default(),
            owner: "user/ann".into(),
            name: None,
            group: None,
            spec: TaskSpec::new("noop", Input::Text(String::new())),
        };
        let task = task::submit(TaskId(Uuid::from_u128(1)), submitted, Timestamp(0)).task;
        let id = WorkerId(Uuid::from_u128(2));
        let claim = Command::Claim { worker: task::Holder { id, name: "w".into() } };
        let task = task::decide(&task, claim, Timestamp(0), &task::Policy::default(), 0.0).unwrap().task;
        let incarnation = Incarnation(Uuid::from_u128(3));
        let lease = Lease { worker: id, incarnation, is_known: true, expires_at: Timestamp(expires_at) };
        Row::new(task, Some(lease))
    }

    #[test]
    fn who_renewed_between_the_look_and_the_decision_is_not_lost() {
        let lose = |why, now: &Row| match lose_one(task::Policy::default(), &held(10), why, false) {
            Change::Update { decide, .. } => decide(now, Timestamp(20)).map(|write| write.row.task.is_held()),
            Change::Create { .. } => panic!("nothing is made"),
        };
        for why in [Loss::Silent, Loss::NotDelivered] {
            assert_eq!(lose(why, &held(10)), Ok(false));
            assert_eq!(lose(why, &held(30)), Err(Refusal::Unchanged));
        }
        assert_eq!(lose(Loss::HandedBack, &held(30)), Ok(false), "it has said so itself");
    }

    #[test]
    fn nobody_is_judged_before_all_could_have_been_heard() {
        let mut grace = Grace::new(Duration::from_secs(20));
        let mut over = |second: i64| grace.is_over(Timestamp(1_800_000_000_000_000 + second * 1_000_000));
        assert!((0..20).all(|second| !over(second)), "after a start");
        assert!((20..25).all(&mut over));
        assert!((3600..3620).all(|second| !over(second)), "the lid was closed for an hour");
        assert!((3620..3625).all(&mut over));
        grace.begin();
        let mut over = |second: i64| grace.is_over(Timestamp(1_800_000_000_000_000 + second * 1_000_000));
        assert!((3625..3645).all(|second| !over(second)), "the store was away");
        assert!(over(3645));
    }
}
