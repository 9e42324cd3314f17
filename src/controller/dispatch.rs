//! Hands queued tasks to workers with free slots.
//!
//! Hints say what is worth trying; the claim is a compare-and-set in the store that raises the epoch. Losing a hint costs
//! until the next sweep, trying a stale one costs nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::session::Assignment;
use ado_proto::{Audience, TaskId};
use tokio::time::Instant;

use super::Shared;
use crate::queue::{Class, Hint};
use crate::scheduler::{self, Candidate};
use crate::store::{self, Change, Committed, Lease, NewEvent, Outcome, Row, Unit, Write};
use crate::task::{self, Command, Holder, Refusal, State};

/// How often the store is asked for what the queue may have lost.
const SWEEP: Duration = Duration::from_secs(5);
/// Most tasks one sweep hints.
const SWEEP_LIMIT: usize = 1000;
/// Hints tried beyond the free slots: some are stale, some fit no worker.
const SPARE: usize = 64;

/// The hint of a queued task.
pub(super) fn hint(task: &task::Task) -> Option<(Class, Hint)> {
    let State::Queued { not_before } = task.state else { return None };
    let class =
        Class { namespace: task.namespace.clone(), pool: task.spec.pool.clone(), agent: task.spec.agent.clone() };
    Some((class, Hint { score: store::score(not_before, task.spec.priority), task: task.id }))
}

/// Gives the queue the hints of rows that may be claimed.
pub(super) async fn give_hints(shared: &Shared, rows: &[Row]) {
    let mut classes: BTreeMap<Class, Vec<Hint>> = BTreeMap::new();
    for (class, hint) in rows.iter().filter_map(|row| hint(&row.task)) {
        classes.entry(class).or_default().push(hint);
    }
    for (class, hints) in classes {
        if let Err(error) = shared.queue.push(&class, &hints).await {
            tracing::warn!(%error, "hints are lost until the next sweep");
        }
    }
}

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared) {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = sweep_once(&shared).await;
    // Hints that fitted nobody. They come back when the fleet changes, or by the sweep: giving them back at once would
    // only wake this loop again.
    let mut unplaced = Unplaced::new();
    loop {
        place_all(&shared, &mut unplaced).await;
        let until_due = async {
            match due {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.tasks.stopping() => return,
            _ = sweep.tick() => {
                unplaced.clear();
                due = sweep_once(&shared).await;
            }
            () = until_due => due = sweep_once(&shared).await,
            () = shared.fleet.chance() => {
                give_back(&shared, &mut unplaced).await;
                due = next_due(&shared).await;
            }
            () = shared.queue.pushed() => {}
        }
    }
}

type Unplaced = BTreeMap<Class, Vec<Hint>>;

async fn give_back(shared: &Shared, unplaced: &mut Unplaced) {
    for (class, hints) in std::mem::take(unplaced) {
        if let Err(error) = shared.queue.push(&class, &hints).await {
            tracing::warn!(%error, "hints are lost until the next sweep");
        }
    }
}

/// Hints everything claimable. Returns how long until the next delayed task is due.
async fn sweep_once(shared: &Shared) -> Option<Duration> {
    match shared.store.claimable(SWEEP_LIMIT).await {
        Ok(rows) => give_hints(shared, &rows).await,
        Err(error) => tracing::warn!(%error, "cannot look for queued tasks"),
    }
    next_due(shared).await
}

async fn next_due(shared: &Shared) -> Option<Duration> {
    let due = shared.store.next_due().await.ok().flatten()?;
    let now = shared.store.now().await.ok()?;
    // A millisecond more: timers may fire early by less than their resolution.
    Some(due.since(now) + Duration::from_millis(1))
}

/// Tries hints until there are no free slots or no fitting hints.
async fn place_all(shared: &Shared, unplaced: &mut Unplaced) {
    let classes = match shared.queue.classes().await {
        Ok(classes) => classes,
        Err(error) => return tracing::warn!(%error, "cannot read the queue"),
    };
    for class in classes {
        loop {
            let fleet = shared.fleet.candidates();
            let free = free_slots(&fleet, &class);
            if free == 0 || shared.tasks.is_stopping() {
                break;
            }
            let hints = shared.queue.pop(&class, free + SPARE).await.unwrap_or_default();
            if hints.is_empty() {
                break;
            }
            claim(shared, fleet, &class, hints, unplaced).await;
        }
    }
}

fn free_slots(fleet: &[Candidate], class: &Class) -> usize {
    let serves = |worker: &&Candidate| {
        worker.namespace == class.namespace && worker.pool == class.pool && worker.agents.contains(&class.agent)
    };
    fleet.iter().filter(serves).map(|worker| worker.free() as usize).sum()
}

/// Claims what can be placed. Hints beyond the free slots go back to the queue, those that fit nobody are set aside.
async fn claim(shared: &Shared, fleet: Vec<Candidate>, class: &Class, hints: Vec<Hint>, unplaced: &mut Unplaced) {
    let fleet = Arc::new(Mutex::new(fleet));
    // Leases of this commit begin after this.
    let begun = Instant::now();
    let changes = hints.iter().map(|hint| claim_one(shared, hint.task, fleet.clone())).collect();
    let outcomes = match shared.committer.commit(Unit { changes, once: None, audit: None }).await {
        Ok(Committed::Done(outcomes, _)) => outcomes,
        Ok(_) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot claim");
            return unplaced.entry(class.clone()).or_default().extend(hints);
        }
    };
    for (hint, outcome) in hints.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Applied(write) => {
                assign(shared, &write.row, shared.timing.lease().saturating_sub(begun.elapsed()));
            }
            Outcome::Locked => unplaced.entry(class.clone()).or_default().push(hint),
            // Still claimable: no worker with a free slot fits.
            Outcome::Refused(Refusal::NotClaimable, row) if hint_is_live(&row) => {
                unplaced.entry(class.clone()).or_default().push(hint);
            }
            Outcome::Refused(..) | Outcome::Missing => {}
        }
    }
}

fn hint_is_live(row: &Row) -> bool {
    matches!(row.task.state, State::Queued { .. }) && row.task.desired == ado_proto::record::Desired::Running
}

fn claim_one(shared: &Shared, id: TaskId, fleet: Arc<Mutex<Vec<Candidate>>>) -> Change {
    let (policy, lease) = (shared.policy, shared.timing.lease());
    let decide = move |row: &Row, now| {
        if !store::is_claimable(&row.task, now) {
            return Err(Refusal::NotClaimable);
        }
        let mut fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = scheduler::place(&mut fleet, &row.task.namespace, &row.task.spec).ok_or(Refusal::NotClaimable)?;
        let (worker, name) = (chosen.id, chosen.name.clone());
        let command = Command::Claim { worker: Holder { id: worker, name: name.clone() } };
        let decision = task::decide(&row.task, command, now, &policy, 0.0)?;
        let event = NewEvent {
            audience: Audience::Namespace(row.task.namespace.clone()),
            kind: "task.assigned",
            task: Some(id),
            worker: Some(worker),
            text: format!("{} to {name}, attempt {}", id.short(), decision.task.attempt()),
        };
        let lease = Lease { worker, incarnation: None, expires_at: now.after(lease) };
        Ok(Write {
            row: Row { task: decision.task, lease: Some(lease) },
            records: decision.records,
            events: vec![event],
        })
    };
    Change::Update { id, decide: Box::new(decide) }
}

/// Tells a worker that it holds a task, by a lease that is good for `left` from now. It may be said again: the worker knows
/// the epoch then.
pub(super) fn assign(shared: &Shared, row: &Row, left: Duration) {
    let (task, Some(lease)) = (&row.task, &row.lease) else { return };
    let assignment = Assignment {
        task: task.id,
        epoch: task.epoch,
        namespace: task.namespace.clone(),
        name: task.name.clone(),
        group: task.group,
        attempt: task.attempt(),
        spec: task.spec.clone(),
        lease_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        desired: task.desired,
        generation: task.generation,
    };
    shared.fleet.tell(lease.worker, assignment);
}
