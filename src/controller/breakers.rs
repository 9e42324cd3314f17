//! Circuit breakers: what attempts tell about their workers and about what agents need, kept in the store so that every
//! controller knows it, also after a restart. What it means is decided in `task`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_proto::request::BreakerInfo;
use ado_proto::{Audience, Namespace, TaskId, Timestamp, WorkerId};

use super::Shared;
use crate::scheduler::Tripped;
use crate::store::{self, NewEvent, Worker, Write};
use crate::task::{Breaker, BreakerPolicy, Gate, Open, Scope, Signal, Task};

/// Between two looks at what other controllers have heard, and at whose time has come.
const ROUND: Duration = Duration::from_secs(1);

/// What this controller knows of all breakers.
#[derive(Default)]
pub(super) struct Breakers {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    known: BTreeMap<Scope, Breaker>,
    /// The store's time at the last look.
    now: Timestamp,
    /// The task that was let through to an agent's scope.
    probes: BTreeMap<Scope, TaskId>,
}

impl Breakers {
    /// Why a worker's breaker is not closed.
    pub(super) fn of_worker(&self, id: WorkerId) -> Option<BreakerInfo> {
        let inner = self.lock();
        let open = inner.known.get(&Scope::Worker(id)).and_then(Breaker::open)?;
        Some(BreakerInfo { why: open.why.clone(), opened_at: open.since, probe_at: open.probe_at })
    }

    /// Why a task that could run is not to be tried before an instant: what its agent needs is away.
    pub(super) fn of_task(&self, task: &Task) -> Option<Open> {
        let scope = Scope::of_agent(&task.namespace, &task.spec)?;
        self.lock().known.get(&scope).and_then(Breaker::open).cloned()
    }

    /// Whether a task may be claimed as far as its agent's scope goes; one that is let through as the only one is noted.
    pub(super) fn pass(&self, task: &Task, now: Timestamp) -> bool {
        let Some(scope) = Scope::of_agent(&task.namespace, &task.spec) else { return true };
        let mut inner = self.lock();
        match inner.known.get(&scope).map_or(Gate::Free, |breaker| breaker.gate(now)) {
            Gate::Free => true,
            Gate::Shut => false,
            Gate::Probe => *inner.probes.entry(scope).or_insert(task.id) == task.id,
        }
    }

    /// How many are not closed.
    pub(super) fn open(&self) -> usize {
        self.lock().known.values().filter(|breaker| breaker.open().is_some()).count()
    }

    fn is_known(&self, scope: &Scope) -> bool {
        self.lock().known.contains_key(scope)
    }

    /// The workers that are tripped, after one breaker has changed or all were read.
    fn learn(
        &self,
        change: impl FnOnce(&mut BTreeMap<Scope, Breaker>),
        now: Option<Timestamp>,
    ) -> BTreeMap<WorkerId, Tripped> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        change(&mut inner.known);
        inner.now = inner.now.max(now.unwrap_or_default());
        let (known, now) = (&inner.known, inner.now);
        inner.probes.retain(|scope, _| known.get(scope).is_some_and(|breaker| breaker.gate(now) == Gate::Probe));
        let tripped = |(scope, breaker): (&Scope, &Breaker)| match (scope, breaker.open()) {
            (Scope::Worker(id), Some(open)) => {
                Some((*id, Tripped { probe: breaker.gate(now) == Gate::Probe, why: open.why.clone() }))
            }
            _ => None,
        };
        known.iter().filter_map(tripped).collect()
    }

    /// A task is held no more: if it was a probe, another one may be.
    fn gone(&self, task: TaskId) {
        self.lock().probes.retain(|_, probe| *probe != task);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared) {
    loop {
        if let Err(error) = look(&shared).await {
            tracing::warn!(%error, "cannot look at the breakers");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn look(shared: &Shared) -> store::Result<()> {
    let known = shared.store.breakers().await?;
    let now = if known.is_empty() { None } else { Some(shared.store.now().await?) };
    // One that was let through and did not get to a worker, or was cancelled, holds up nobody.
    shared.breakers.lock().probes.retain(|_, task| shared.fleet.is_held(*task));
    shared.fleet.trip(shared.breakers.learn(|all| *all = known, now));
    Ok(())
}

/// What the records of an attempt tell.
pub(super) async fn heed(shared: &Shared, write: &Write) {
    let task = &write.row.task;
    if !task.is_held() {
        shared.breakers.gone(task.id);
    }
    let Some(holder) = &task.worker else { return };
    for record in &write.records {
        if let Some(signal) = Signal::of_worker(&record.body) {
            let of = Subject { name: holder.name.clone(), namespace: task.namespace.clone(), worker: Some(holder.id) };
            hear(shared, Scope::Worker(holder.id), of, signal).await;
        }
        if let Some(signal) = Signal::of_agent(&record.body)
            && let Some(scope) = Scope::of_agent(&task.namespace, &task.spec)
        {
            let of = Subject { name: task.spec.agent.clone(), namespace: task.namespace.clone(), worker: None };
            hear(shared, scope, of, signal).await;
        }
    }
}

/// A worker's process has died with attempts of which none did it.
pub(super) async fn worker_died(shared: &Shared, worker: &Worker, attempts: usize) {
    let of = Subject { name: worker.name.clone(), namespace: worker.namespace.clone(), worker: Some(worker.id) };
    let why = format!("its process died with {attempts} attempts");
    hear(shared, Scope::Worker(worker.id), of, Signal::Failed { why }).await;
}

/// Whom a breaker is about, for people.
struct Subject {
    name: String,
    namespace: Namespace,
    worker: Option<WorkerId>,
}

/// A signal that is lost with its controller costs time: what goes on failing is heard of again.
async fn hear(shared: &Shared, scope: Scope, of: Subject, signal: Signal) {
    // Nearly always: all is well, and was before.
    if matches!(signal, Signal::Began | Signal::Finished) && !shared.breakers.is_known(&scope) {
        return;
    }
    let policy = shared.policy.breaker;
    let change = Box::new(move |before: &Breaker, now| changed(before, signal, now, &policy, &of));
    match shared.store.change_breaker(&scope, change).await {
        Ok(breaker) => {
            shared.hub.news();
            let learn = |all: &mut BTreeMap<Scope, Breaker>| {
                if breaker.is_new() {
                    all.remove(&scope);
                } else {
                    all.insert(scope.clone(), breaker);
                }
            };
            shared.fleet.trip(shared.breakers.learn(learn, None));
        }
        Err(error) => tracing::warn!(%scope, %error, "a breaker was not told"),
    }
}

fn changed(
    before: &Breaker,
    signal: Signal,
    now: Timestamp,
    policy: &BreakerPolicy,
    of: &Subject,
) -> (Breaker, Vec<NewEvent>) {
    let after = before.after(signal, now, policy);
    let name = &of.name;
    let said = match (before.open(), after.open()) {
        (_, Some(open)) if before.open() != after.open() => {
            let wait = open.probe_at.since(now);
            Some(("breaker.opened", format!("{name} gets no work for {wait:?}: {}", open.why)))
        }
        (Some(_), None) => Some(("breaker.closed", format!("{name} gets work again"))),
        _ => None,
    };
    let event = |(kind, text)| {
        tracing::warn!(kind, text, "breaker");
        NewEvent { audience: Audience::Namespace(of.namespace.clone()), kind, task: None, worker: of.worker, text }
    };
    (after, said.map(event).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use ado_proto::record::Submitted;
    use ado_proto::spec::{Input, TaskSpec};
    use uuid::Uuid;

    use super::*;
    use crate::task;

    const AWAY: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp(1_800_000_000_000_000 + seconds * 1_000_000)
    }

    fn task(n: u128, agent: &str) -> Task {
        let submitted = Submitted {
            namespace: Namespace::default(),
            owner: "user/ann".into(),
            name: None,
            group: None,
            spec: TaskSpec::new(agent, Input::Text("x".into())),
        };
        task::submit(TaskId(Uuid::from_u128(n)), submitted, at(0)).task
    }

    fn subject() -> Subject {
        Subject { name: "box".into(), namespace: Namespace::default(), worker: None }
    }

    #[test]
    fn tasks_wait_while_what_their_agent_needs_is_away_and_one_at_a_time_tries() {
        let breakers = Breakers::default();
        let scope = Scope::of_agent(&Namespace::default(), &task(1, "claude-code").spec).expect("it has a credential");
        let away = Signal::Away { why: "quota".into(), retry_after: Some(AWAY) };
        let (breaker, _) = changed(&Breaker::default(), away, at(0), &BreakerPolicy::USUAL, &subject());
        assert_eq!(
            breakers.learn(|all| drop(all.insert(scope.clone(), breaker.clone())), Some(at(0))),
            BTreeMap::new()
        );
        assert!(!breakers.pass(&task(1, "claude-code"), at(59)));
        assert!(breakers.pass(&task(1, "gemini-cli"), at(59)) && breakers.pass(&task(1, "shell"), at(59)));
        assert_eq!(breakers.of_task(&task(1, "claude-code")).map(|open| open.why).as_deref(), Some("quota"));
        assert_eq!(breakers.of_task(&task(1, "shell")), None);
        let pass = |n| breakers.pass(&task(n, "claude-code"), at(60));
        assert!(pass(1) && pass(1) && !pass(2), "one at a time");
        breakers.learn(|_| (), Some(at(60)));
        assert!(!pass(2), "a look changes nothing");
        breakers.gone(task(1, "claude-code").id);
        assert!(pass(2) && !pass(1));
        breakers.learn(|all| drop(all.remove(&scope)), None);
        assert!(pass(1) && pass(2) && pass(3));
    }

    #[test]
    fn events_say_when_a_breaker_opens_and_when_it_closes() {
        let failed = || Signal::Failed { why: "no space left".into() };
        let mut breaker = Breaker::default();
        let mut said = Vec::new();
        for (second, signal) in [
            (0, failed()),
            (1, failed()),
            (2, failed()),
            (3, failed()),
            (32, failed()),
            (100, Signal::Began),
            (101, Signal::Finished),
        ] {
            let (after, events) = changed(&breaker, signal, at(second), &BreakerPolicy::USUAL, &subject());
            said.extend(events.into_iter().map(|event| (second, event.kind, event.text)));
            breaker = after;
        }
        let opened = |wait: &str| format!("box gets no work for {wait}: no space left");
        let expected = [
            (2, "breaker.opened", opened("30s")),
            (32, "breaker.opened", opened("60s")),
            (100, "breaker.closed", "box gets work again".to_owned()),
        ];
        assert_eq!(said, expected);
        assert!(breaker.is_new());
    }
}
