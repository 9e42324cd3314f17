//! Hands queued tasks to workers with free slots.
//!
//! Hints say what is worth trying; the claim is a compare-and-set in the store that raises the epoch. Losing a hint costs
//! until the next sweep, trying a stale one costs nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::record::Desired;
use ado_proto::session::Assignment;
use ado_proto::{Audience, TaskId, Timestamp};
use tokio::time::Instant;

use super::Shared;
use super::aside::Aside;
use crate::queue::{self, Class, Hint};
use crate::scheduler::{self, Candidate, Demand};
use crate::store::{self, Change, Committed, Lease, NewEvent, Outcome, Row, Unit, Waiting, Write};
use crate::task::{self, Command, Holder, Refusal, State};

/// How often the store is asked for what the queue may have lost.
const SWEEP: Duration = Duration::from_secs(5);
/// Tasks of one sweep. The next one goes on where it ended, so that those nobody can run hide no others.
const SWEEP_LIMIT: usize = 1000;
/// Hints tried beyond the free slots: some are stale, some fit no worker.
const SPARE: usize = 64;
/// Between two tries of a claim that the store did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// The hint of a queued task.
pub(super) fn hint(task: &task::Task) -> Option<(Class, Hint)> {
    let State::Queued { not_before } = task.state else { return None };
    let class =
        Class { namespace: task.namespace.clone(), pool: task.spec.pool.clone(), agent: task.spec.agent.clone() };
    Some((class, Hint { score: store::score(not_before, task.spec.priority), task: task.id }))
}

/// Gives the queue the hints of rows that are queued.
pub(super) async fn give_hints(shared: &Shared, rows: &[Row]) {
    give(shared, rows.iter().filter_map(|row| hint(&row.task))).await;
}

async fn give(shared: &Shared, hints: impl IntoIterator<Item = (Class, Hint)>) {
    if let Err(error) = push(shared, hints).await {
        tracing::warn!(%error, "hints are lost until the sweep finds them");
    }
}

async fn push(shared: &Shared, hints: impl IntoIterator<Item = (Class, Hint)>) -> Result<(), queue::Error> {
    let mut classes: BTreeMap<Class, Vec<Hint>> = BTreeMap::new();
    for (class, hint) in hints {
        classes.entry(class).or_default().push(hint);
    }
    for (class, hints) in classes {
        shared.queue.push(&class, &hints).await?;
    }
    Ok(())
}

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared) {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut swept = None;
    let mut aside = Aside::default();
    loop {
        place_all(&shared, &mut aside).await;
        let fitting = aside.take_fitting(&shared.fleet.candidates());
        if !fitting.is_empty() && !shared.tasks.is_stopping() {
            give(&shared, fitting).await;
            continue;
        }
        tokio::select! {
            biased;
            () = shared.tasks.stopping() => return,
            _ = sweep.tick() => swept = sweep_once(&shared, swept).await,
            due = due(&shared, aside.next_due()) => give(&shared, aside.take_due(due)).await,
            () = shared.fleet.chance() => {}
            () = shared.queue.pushed() => {}
        }
    }
}

/// Resolves at an instant, with the store's time then.
async fn due(shared: &Shared, at: Option<Timestamp>) -> Timestamp {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        match shared.store.now().await {
            Ok(now) if now >= at => return now,
            // Looks again every now and then: the store's clock may be set.
            Ok(now) => tokio::time::sleep(at.since(now).clamp(Duration::from_millis(1), SWEEP)).await,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Where a sweep ended: score and id.
type Place = Option<(i64, TaskId)>;

/// Hints what the store says waits, from a place on: one page, or everything when the queue has lost its hints.
async fn sweep_once(shared: &Shared, from: Place) -> Place {
    match try_sweep(shared, from).await {
        Ok(place) => place,
        Err(error) => {
            tracing::warn!(%error, "cannot look for queued tasks");
            from
        }
    }
}

async fn try_sweep(shared: &Shared, from: Place) -> Result<Place, Box<dyn std::error::Error + Send + Sync>> {
    let intact = shared.queue.is_intact().await?;
    let mut from = from.filter(|_| intact);
    loop {
        let page = shared.store.waiting(from, SWEEP_LIMIT).await?;
        let last = page.last().filter(|_| page.len() == SWEEP_LIMIT);
        from = last.map(|waiting| (waiting.score, waiting.id));
        push(shared, page.into_iter().map(hint_of)).await?;
        if intact {
            return Ok(from);
        }
        if from.is_none() {
            shared.queue.mark_rebuilt().await?;
            return Ok(None);
        }
    }
}

fn hint_of(waiting: Waiting) -> (Class, Hint) {
    let Waiting { score, id, namespace, pool, agent } = waiting;
    (Class { namespace, pool, agent }, Hint { score, task: id })
}

/// Tries hints until there are no free slots or no fitting hints. The classes take turns: a long one hides no other.
async fn place_all(shared: &Shared, aside: &mut Aside) {
    loop {
        let classes = match shared.queue.classes().await {
            Ok(classes) => classes,
            Err(error) => return tracing::warn!(%error, "cannot read the queue"),
        };
        let mut tried = false;
        for class in classes {
            let fleet = shared.fleet.candidates();
            let free = free_slots(&fleet, &class);
            if shared.tasks.is_stopping() {
                return;
            }
            if free == 0 {
                continue;
            }
            let hints = shared.queue.pop(&class, free + SPARE).await.unwrap_or_default();
            if !hints.is_empty() {
                tried = true;
                claim(shared, fleet, &class, hints, aside).await;
            }
        }
        if !tried {
            return;
        }
    }
}

fn free_slots(fleet: &[Candidate], class: &Class) -> usize {
    let serves = |worker: &&Candidate| {
        worker.namespace == class.namespace && worker.pool == class.pool && worker.agents.contains(&class.agent)
    };
    fleet.iter().filter(serves).map(|worker| worker.free() as usize).sum()
}

/// Claims what can be placed. The other hints are set aside.
async fn claim(shared: &Shared, fleet: Vec<Candidate>, class: &Class, hints: Vec<Hint>, aside: &mut Aside) {
    // Before the decisions: what is not due by this time was not due for them, or is tried again at once.
    let Ok(now) = shared.store.now().await else { return };
    let fleet = Arc::new(Mutex::new(fleet));
    // Leases of this commit begin after this.
    let begun = Instant::now();
    let changes = hints.iter().map(|hint| claim_one(shared, hint.task, fleet.clone())).collect();
    let outcomes = match shared.committer.commit(Unit { changes, once: None, audit: None }).await {
        Ok(Committed::Done(outcomes, _)) => outcomes,
        Ok(_) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot claim");
            return hints.into_iter().for_each(|hint| aside.early(now.after(RETRY), class, hint));
        }
    };
    for (hint, outcome) in hints.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Applied(write) => {
                assign(shared, &write.row, shared.timing.lease().saturating_sub(begun.elapsed()));
            }
            Outcome::Locked => aside.early(now.after(RETRY), class, hint),
            Outcome::Refused(Refusal::NotClaimable, row) => match row.task.state {
                State::Queued { not_before } if row.task.desired == Desired::Running => {
                    if not_before > now {
                        aside.early(not_before, class, hint);
                    } else {
                        aside.unfit(class, row.task.spec.labels, hint);
                    }
                }
                // Claimed meanwhile, over, or not wanted: whoever wants it again gives another hint.
                _ => {}
            },
            Outcome::Refused(refusal, _) => tracing::error!(task = %hint.task, %refusal, "cannot be claimed"),
            Outcome::Missing => {}
        }
    }
}

fn claim_one(shared: &Shared, id: TaskId, fleet: Arc<Mutex<Vec<Candidate>>>) -> Change {
    let (policy, lease) = (shared.policy, shared.timing.lease());
    let decide = move |row: &Row, now| {
        if !store::is_claimable(&row.task, now) {
            return Err(Refusal::NotClaimable);
        }
        let mut fleet = fleet.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = scheduler::place(&mut fleet, &Demand::of(&row.task.namespace, &row.task.spec));
        let chosen = chosen.ok_or(Refusal::NotClaimable)?;
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
        checkpoint: task.checkpoint.as_ref().map(|checkpoint| checkpoint.data.to_string()),
        lease_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        desired: task.desired,
        generation: task.generation,
    };
    shared.fleet.tell(lease.worker, assignment);
}
