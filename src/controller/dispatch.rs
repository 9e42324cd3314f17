//! Hands queued tasks to workers with free slots.
//!
//! Hints say what is worth trying; the claim is a compare-and-set in the store that raises the epoch. Losing a hint costs
//! until the next sweep, trying a stale one costs nothing. While the queue is away, tasks are tried in the store's own
//! order, which is the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::record::Desired;
use ado_proto::session::Assignment;
use ado_proto::{Audience, Incarnation, TaskId, Timestamp, WorkerId};
use tokio::time::Instant;

use super::aside::Aside;
use super::bridge::Moment;
use super::leased::Leased;
use super::source::{Place, Source};
use super::{Shared, secrets};
use crate::queue::{self, Class, Hint, Word};
use crate::scheduler::{self, Candidate, Demand};
use crate::store::{self, Change, Committed, Lease, NewEvent, Outcome, Row, Unit, Waiting, Write};
use crate::task::{self, Command, Holder, Refusal, State};

/// Tasks that one look through the store reads at once.
const LOOK_LIMIT: usize = 1000;
/// Most reads of one look while there is no queue.
const LOOK_PAGES: usize = 4;
/// Hints tried beyond the free slots: some are stale, some fit no worker.
const SPARE: usize = 64;
/// Between two tries of a claim that the store did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// How long what the queue has lost stays lost when the controller that looks for it dies.
const SWEEP_LEASE: Duration = Duration::from_secs(10);
/// The store's clock may be set: an instant to come is looked at again after this.
const CLOCK: Duration = Duration::from_secs(5);

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
        shared.metrics.queue_failed();
        // Not a warning: it is one for every submission while the queue is away, and the queue has said so itself.
        tracing::debug!(%error, "not hinted: found in the store");
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
    let mut source = Source::new();
    let mut aside = Aside::default();
    let mut look_at = Instant::now();
    let mut looked_at = look_at;
    let mut lease = Leased::new("sweep", SWEEP_LEASE);
    loop {
        // Before what is hinted: those that were set aside come first in order.
        give_fitting(&shared, &mut aside).await;
        let former = source;
        source = match place_hinted(&shared, &mut aside).await {
            Ok(()) => source.answered(),
            Err(error) => {
                shared.metrics.queue_failed();
                tracing::debug!(%error, "no hints: claiming in the store's own order");
                place_waiting(&shared, source.failed(), &mut aside).await
            }
        };
        if source != former {
            look_at = look_at.min(Instant::now() + source.pause());
        }
        if give_fitting(&shared, &mut aside).await && !shared.tasks.is_stopping() {
            continue;
        }
        tokio::select! {
            biased;
            () = shared.tasks.stopping() => return,
            due = due(&shared, aside.next_due()) => give(&shared, aside.take_due(due)).await,
            () = tokio::time::sleep_until(look_at) => {
                let swept = sweep(&shared, source, &mut aside, &mut lease).await;
                looked_at = Instant::now();
                look_at = Instant::now() + swept.map_or(RETRY, Source::pause);
                source = swept.unwrap_or(source);
            }
            // Others have tasks that they cannot place.
            () = shared.unplaced.notified() => look_at = look_at.min(looked_at + RETRY),
            () = shared.fleet.chance() => {}
            () = shared.queue.pushed() => {}
        }
    }
}

/// Gives back what was set aside and fits now. Whether there was any.
async fn give_fitting(shared: &Shared, aside: &mut Aside) -> bool {
    let fitting = aside.take_fitting(&shared.fleet.candidates());
    let any = !fitting.is_empty();
    give(shared, fitting).await;
    any
}

/// Resolves at an instant, with the store's time then.
async fn due(shared: &Shared, at: Option<Timestamp>) -> Timestamp {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        match shared.store.now().await {
            Ok(now) if now >= at => return now,
            // Looks again every now and then: the store's clock may be set.
            Ok(now) => tokio::time::sleep(at.since(now).clamp(Duration::from_millis(1), CLOCK)).await,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Looks through the store for what the queue does not know: a page, the next one next time. `None`: it failed, the same
/// is to be tried again. While there is no queue, [`place_waiting`] looks for itself.
async fn sweep(shared: &Shared, source: Source, aside: &mut Aside, lease: &mut Leased) -> Option<Source> {
    match source {
        Source::Store { .. } => Some(source),
        Source::Queue { .. } => match try_sweep(shared, source, aside, lease).await {
            Ok(source) => Some(source),
            Err(error) => {
                tracing::warn!(%error, "cannot look for queued tasks");
                None
            }
        },
    }
}

async fn try_sweep(
    shared: &Shared,
    source: Source,
    aside: &mut Aside,
    lease: &mut Leased,
) -> Result<Source, Box<dyn std::error::Error + Send + Sync>> {
    // All look, each for its own workers; one gives the queue what it lacks. And whoever was cut off from the queue: what
    // was submitted to him meanwhile.
    let leads = lease.hold(shared).await?.is_some();
    let source = if leads { source.checked(shared.queue.is_intact().await?) } else { source };
    let (page, to) = look(shared, source.from()).await?;
    // Tried before they are given away: of several controllers each must have seen a task that only its workers fit.
    let left = try_page(shared, page, aside).await;
    let rebuilds = matches!(source, Source::Queue { rebuilding: true, .. });
    if leads || rebuilds {
        push(shared, left).await?;
    }
    if rebuilds && to.is_none() {
        shared.queue.mark_rebuilt().await?;
    }
    Ok(source.looked(to))
}

/// One page of what waits, and where the next one begins; `None`: there is no more.
async fn look(shared: &Shared, from: Place) -> store::Result<(Vec<Waiting>, Place)> {
    let page = shared.store.waiting(from, LOOK_LIMIT).await?;
    let last = page.last().filter(|_| page.len() == LOOK_LIMIT);
    let to = last.map(|waiting| (waiting.score, waiting.id));
    Ok((page, to))
}

/// Claims in the store's own order while there is no queue, as long as there are free slots.
async fn place_waiting(shared: &Shared, mut source: Source, aside: &mut Aside) -> Source {
    for _ in 0..LOOK_PAGES {
        if shared.tasks.is_stopping() || shared.fleet.candidates().iter().all(|worker| worker.free() == 0) {
            return source.looked(None);
        }
        let (page, to) = match look(shared, source.from()).await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(%error, "cannot look for queued tasks");
                return source;
            }
        };
        let left = try_page(shared, page, aside).await;
        // While slots are short, what comes first in order is looked at first again.
        let to = to.filter(|_| left.is_empty());
        source = source.looked(to);
        if to.is_none() {
            break;
        }
    }
    source
}

/// Tries what waits as if it had been hinted. Returns what there were no free slots for.
async fn try_page(shared: &Shared, page: Vec<Waiting>, aside: &mut Aside) -> Vec<(Class, Hint)> {
    let mut classes: BTreeMap<Class, VecDeque<Hint>> = BTreeMap::new();
    for (class, hint) in page.into_iter().map(hint_of).filter(|(_, hint)| !aside.holds(hint)) {
        classes.entry(class).or_default().push_back(hint);
    }
    for (class, hints) in &mut classes {
        while !hints.is_empty() {
            let fleet = shared.fleet.candidates();
            let free = free_slots(&fleet, class);
            if free == 0 || shared.tasks.is_stopping() {
                break;
            }
            // Slots that were freed since are not for those further down, but for whom there was none before.
            let fitting = aside.take_fitting(&fleet);
            if !fitting.is_empty() {
                give(shared, fitting).await;
                break;
            }
            let first = hints.drain(..hints.len().min(free + SPARE)).collect();
            claim(shared, fleet, class, first, aside).await;
        }
    }
    let of_class = |(class, hints): (Class, VecDeque<Hint>)| hints.into_iter().map(move |hint| (class.clone(), hint));
    classes.into_iter().flat_map(of_class).collect()
}

fn hint_of(waiting: Waiting) -> (Class, Hint) {
    let Waiting { score, id, namespace, pool, agent } = waiting;
    (Class { namespace, pool, agent }, Hint { score, task: id })
}

/// Tries hints until there are no free slots or no fitting hints. The classes take turns: a long one hides no other.
async fn place_hinted(shared: &Shared, aside: &mut Aside) -> Result<(), queue::Error> {
    loop {
        let classes = shared.queue.classes().await?;
        let mut tried = false;
        for class in classes {
            let fleet = shared.fleet.candidates();
            let free = free_slots(&fleet, &class);
            if shared.tasks.is_stopping() {
                return Ok(());
            }
            if free == 0 {
                continue;
            }
            // Slots that were freed since are first for whom there was none before: for those that this look shows, too.
            give(shared, aside.take_fitting(&fleet)).await;
            // What is not placed here is wanted elsewhere.
            let spare = if shared.mesh.others() > 0 { 0 } else { SPARE };
            let hints = shared.queue.pop(&class, free + spare).await?;
            if !hints.is_empty() {
                tried = true;
                claim(shared, fleet, &class, hints, aside).await;
            }
        }
        if !tried {
            return Ok(());
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
    let placing = Arc::new(Mutex::new(Placing { fleet, starts: shared.fleet.starts(), waited: BTreeMap::new() }));
    // Leases of this commit begin after this.
    let (begun, moment) = (Instant::now(), Moment::now(&shared.env));
    let changes = hints.iter().map(|hint| claim_one(shared, hint.task, placing.clone())).collect();
    let outcomes = match shared.committer.commit(Unit { changes, once: None, audit: None }).await {
        Ok(Committed::Done(outcomes, _)) => outcomes,
        Ok(_) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot claim");
            return hints.into_iter().for_each(|hint| aside.early(now.after(RETRY), class, hint));
        }
    };
    let mut back = Vec::new();
    let mut unplaced = false;
    // Asked when somebody is not placed; what was placed here counts already.
    let mut is_full = None;
    for (hint, outcome) in hints.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Applied(write) => {
                let waited = placing.lock().unwrap_or_else(PoisonError::into_inner).waited.remove(&hint.task);
                shared.metrics.dispatched(waited.unwrap_or_default());
                shared.bridges.claimed(&write.row, moment);
                assign(shared, &write.row, shared.timing.lease().saturating_sub(begun.elapsed()), now);
            }
            Outcome::Locked => aside.early(now.after(RETRY), class, hint),
            Outcome::Refused(Refusal::NotClaimable, row) => match row.task.state {
                State::Queued { not_before } if row.task.desired == Desired::Running => {
                    let away = shared.breakers.of_task(&row.task).map(|open| open.probe_at.max(now.after(RETRY)));
                    let not_before = not_before.max(away.unwrap_or(not_before));
                    if not_before > now {
                        aside.early(not_before, class, hint);
                    } else if shared.mesh.others() > 0
                        && *is_full.get_or_insert_with(|| free_slots(&shared.fleet.candidates(), class) == 0)
                    {
                        // The slots it was popped for are taken: another controller's may be free. With others free, it
                        // would only be popped again.
                        back.push((class.clone(), hint));
                    } else {
                        unplaced = true;
                        aside.unfit(class, row.task.spec.labels, row.task.spec.resources, hint);
                    }
                }
                // Claimed meanwhile, over, or not wanted: whoever wants it again gives another hint.
                _ => {}
            },
            Outcome::Refused(refusal, _) => tracing::error!(task = %hint.task, %refusal, "cannot be claimed"),
            Outcome::Missing => {}
        }
    }
    if !back.is_empty() {
        give(shared, back).await;
    }
    if unplaced {
        shared.say(Word::Unplaced);
    }
}

/// What the decisions of one claim share.
struct Placing {
    fleet: Vec<Candidate>,
    /// Which start of each is meant.
    starts: BTreeMap<WorkerId, Incarnation>,
    /// How long the tasks that were placed had been due.
    waited: BTreeMap<TaskId, Duration>,
}

fn claim_one(shared: &Shared, id: TaskId, placing: Arc<Mutex<Placing>>) -> Change {
    let (policy, lease, breakers) = (shared.policy, shared.timing.lease(), shared.breakers.clone());
    let decide = move |row: &Row, now| {
        if !store::is_claimable(&row.task, now) {
            return Err(Refusal::NotClaimable);
        }
        let mut placing = placing.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = scheduler::place(&mut placing.fleet, &Demand::of(&row.task.namespace, &row.task.spec));
        let chosen = chosen.filter(|_| breakers.pass(&row.task, now)).ok_or(Refusal::NotClaimable)?;
        let (worker, name) = (chosen.id, chosen.name.clone());
        // It has left since.
        let incarnation = *placing.starts.get(&worker).ok_or(Refusal::NotClaimable)?;
        let command = Command::Claim { worker: Holder { id: worker, name: name.clone() } };
        let decision = task::decide(&row.task, command, now, &policy, 0.0)?;
        if let State::Queued { not_before } = row.task.state {
            placing.waited.insert(id, now.since(not_before));
        }
        let event = NewEvent {
            audience: Audience::Namespace(row.task.namespace.clone()),
            kind: "task.assigned",
            task: Some(id),
            worker: Some(worker),
            text: format!("{} to {name}, attempt {}", id.short(), decision.task.attempt()),
        };
        let lease = Lease { worker, incarnation, is_known: false, expires_at: now.after(lease) };
        Ok(Write { row: Row::new(decision.task, Some(lease)), records: decision.records, events: vec![event] })
    };
    Change::Update { id, decide: Box::new(decide) }
}

/// Tells a worker that it holds a task, by a lease that is good for `left` from now. It may be said again: the worker knows
/// the epoch then.
pub(super) fn assign(shared: &Shared, row: &Row, left: Duration, now: Timestamp) {
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
        snapshot: task.checkpoint.as_ref().and_then(|checkpoint| checkpoint.snapshot),
        lease_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        desired: task.desired,
        generation: task.generation,
        total_left_ms: task.total_ends().map(|end| u64::try_from(end.since(now).as_millis()).unwrap_or(u64::MAX)),
        secrets: Vec::new(),
        answers: task.given.clone(),
    };
    let (worker, start) = (lease.worker, lease.incarnation);
    if assignment.spec.secrets.is_empty() {
        shared.fleet.tell(worker, start, assignment);
    } else {
        let own = shared.clone();
        let assigning = async move { assign_with_secrets(&own, worker, start, assignment, left).await };
        shared.tasks.spawn_until_stop("secrets", assigning);
    }
}

/// The same, with what its secrets are. While the store does not answer nothing is said: the worker's next heartbeat shows
/// that it does not know of the task.
async fn assign_with_secrets(
    shared: &Shared,
    worker: WorkerId,
    start: Incarnation,
    assignment: Assignment,
    left: Duration,
) {
    let begun = Instant::now();
    match secrets::given(shared, &assignment.namespace, &assignment.spec.secrets).await {
        Ok(secrets) => {
            let left = left.saturating_sub(begun.elapsed());
            let lease_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            shared.fleet.tell(worker, start, Assignment { secrets, lease_ms, ..assignment });
        }
        Err(error) => tracing::warn!(task = %assignment.task, %error, "not assigned yet: its secrets cannot be read"),
    }
}
