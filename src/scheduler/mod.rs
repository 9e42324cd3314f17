//! Which worker gets which task.
//!
//! Must never know: stores, networks, the clock. Callers pass a snapshot of the fleet.

mod eligible;

use std::collections::BTreeMap;

use ado_proto::spec::TaskSpec;
use ado_proto::{Namespace, Role, WorkerId};

pub use eligible::{Presence, Unfit, ineligible};

/// What placement knows of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// Where it belongs.
    pub namespace: Namespace,
    /// Template.
    pub pool: String,
    /// Agents it can run.
    pub agents: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Parallel capacity.
    pub slots: u32,
    /// Attempts it holds.
    pub busy: u32,
    /// Takes no more work.
    pub draining: bool,
    /// Connected, but has not reported for longer than a lease: it may be dead.
    pub silent: bool,
    /// Its breaker, unless that is closed.
    pub tripped: Option<Tripped>,
}

/// A worker that failed again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tripped {
    /// Whether one attempt may pass.
    pub probe: bool,
    /// What went wrong last.
    pub why: String,
}

/// What a task asks of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Demand<'a> {
    /// Where the task lives.
    pub namespace: &'a Namespace,
    /// The worker's template.
    pub pool: &'a str,
    /// The agent it runs.
    pub agent: &'a str,
    /// Labels the worker must have.
    pub labels: &'a BTreeMap<String, String>,
}

impl<'a> Demand<'a> {
    /// Of a task of this namespace.
    pub fn of(namespace: &'a Namespace, spec: &'a TaskSpec) -> Self {
        Self { namespace, pool: &spec.pool, agent: &spec.agent, labels: &spec.labels }
    }
}

impl Candidate {
    /// Slots that are free for new work.
    pub fn free(&self) -> u32 {
        let free = if self.draining || self.silent { 0 } else { self.slots.saturating_sub(self.busy) };
        match &self.tripped {
            None => free,
            Some(tripped) => free.min(u32::from(tripped.probe)),
        }
    }

    /// Why it cannot run such a task, however long one waits; `None`: it can.
    pub fn unfit(&self, demand: &Demand<'_>) -> Option<Unfit> {
        if self.namespace != *demand.namespace {
            return Some(Unfit::Namespace { its: self.namespace.clone(), wanted: demand.namespace.clone() });
        }
        if self.pool != demand.pool {
            return Some(Unfit::Pool { its: self.pool.clone(), wanted: demand.pool.into() });
        }
        if !self.agents.iter().any(|agent| agent == demand.agent) {
            return Some(Unfit::Agent(demand.agent.into()));
        }
        demand
            .labels
            .iter()
            .find(|(key, value)| self.labels.get(*key) != Some(*value))
            .map(|(key, value)| Unfit::Label(key.clone(), value.clone()))
    }
}

/// The worker for a task: of those that fit and have a free slot the one with the most free slots, so that work spreads;
/// the lowest id among equals. Takes the slot.
pub fn place<'a>(fleet: &'a mut [Candidate], demand: &Demand<'_>) -> Option<&'a Candidate> {
    let best = fleet
        .iter_mut()
        .filter(|worker| worker.free() > 0 && worker.unfit(demand).is_none())
        .max_by_key(|worker| (worker.free(), std::cmp::Reverse(worker.id)))?;
    best.busy += 1;
    if let Some(tripped) = &mut best.tripped {
        tripped.probe = false;
    }
    Some(best)
}

/// One sentence: why a task that could run now does not, and what to do.
pub fn why_waiting(fleet: &[Candidate], demand: &Demand<'_>) -> String {
    if fleet.is_empty() {
        return format!(
            "no worker is connected: start one with `ado worker`, or get a join string with `ado token create --role {}`",
            Role::Worker
        );
    }
    let fit: Vec<_> = fleet.iter().filter(|worker| worker.unfit(demand).is_none()).collect();
    if fit.is_empty() {
        let unfit: Vec<_> = fleet.iter().filter_map(|worker| Some((worker, worker.unfit(demand)?))).collect();
        let each: Vec<_> = unfit.iter().take(3).map(|(worker, why)| format!("{} {why}", worker.name)).collect();
        // One that lacks the least says best what to do: causes are looked for in order of how much they part.
        let nearest = unfit.iter().max_by_key(|(_, why)| match why {
            Unfit::Namespace { .. } => 0,
            Unfit::Pool { .. } => 1,
            Unfit::Agent(_) => 2,
            Unfit::Label(..) => 3,
        });
        let advice = nearest.map_or_else(String::new, |(_, why)| format!("; {}", why.advice()));
        let more = if unfit.len() > 3 { ", …" } else { "" };
        return match fleet.len() {
            1 => format!("the only connected worker cannot run it: {}{advice}", each.join(", ")),
            count => format!("none of {count} connected workers can run it: {}{more}{advice}", each.join(", ")),
        };
    }
    if fit.iter().all(|worker| worker.draining) {
        return "every worker that could run it is shutting down: start another with `ado worker`".into();
    }
    if let Some(tripped) = fit.iter().find_map(|worker| worker.tripped.as_ref().map(|tripped| (worker, tripped)))
        && fit.iter().all(|worker| worker.draining || worker.silent || worker.tripped.is_some())
    {
        let (worker, Tripped { why, .. }) = tripped;
        return format!(
            "every worker that could run it failed too often and gets no work for now ({}: {why}): mend it, or start \
             another with `ado worker`; it is tried again by itself",
            worker.name
        );
    }
    if fit.iter().all(|worker| worker.draining || worker.silent) {
        return "no worker that could run it has reported lately: it starts when one does, or start another with \
                `ado worker`"
            .into();
    }
    let slots: u32 = fit.iter().map(|worker| worker.slots).sum();
    if fit.iter().all(|worker| worker.free() == 0) {
        let which = match (slots, fit.len()) {
            (1, _) => "the only fitting slot is".into(),
            (_, 1) => format!("all {slots} slots of the only fitting worker are"),
            (_, workers) => format!("all {slots} slots of {workers} fitting workers are"),
        };
        return format!("{which} busy: it starts when one is free; `ado worker` adds more");
    }
    "it is about to be placed".into()
}

#[cfg(test)]
mod tests {
    use ado_proto::spec::Input;
    use uuid::Uuid;

    use super::*;

    fn worker(id: u128, slots: u32, busy: u32) -> Candidate {
        Candidate {
            id: WorkerId(Uuid::from_u128(id)),
            name: format!("w{id}"),
            namespace: Namespace::default(),
            pool: "default".into(),
            agents: vec!["shell".into()],
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            slots,
            busy,
            draining: false,
            silent: false,
            tripped: None,
        }
    }

    #[test]
    fn a_worker_that_failed_too_often_is_tried_with_one() {
        let tripped = |probe| Some(Tripped { probe, why: "no space left".into() });
        let demand = |fleet: &mut [Candidate]| {
            place(fleet, &Demand::of(&Namespace::default(), &spec())).map(|chosen| chosen.name.clone())
        };
        let mut fleet = [Candidate { tripped: tripped(false), ..worker(1, 4, 0) }];
        assert_eq!(demand(&mut fleet), None);
        let why = why_waiting(&fleet, &Demand::of(&Namespace::default(), &spec()));
        assert!(why.contains("failed too often and gets no work for now (w1: no space left)"), "{why}");
        fleet[0].tripped = tripped(true);
        assert_eq!(demand(&mut fleet).as_deref(), Some("w1"));
        assert_eq!(demand(&mut fleet), None, "one at a time");
        let mut both = [Candidate { tripped: tripped(true), ..worker(1, 4, 0) }, worker(2, 2, 0)];
        let order: Vec<_> = std::iter::from_fn(|| demand(&mut both)).collect();
        assert_eq!(order, ["w2", "w1", "w2"]);
    }

    fn spec() -> TaskSpec {
        TaskSpec::new("shell", Input::Text("true".into()))
    }

    #[test]
    fn spreads_and_takes_the_slot() {
        let mut fleet = [worker(1, 2, 0), worker(2, 2, 0), worker(3, 4, 3)];
        let mut order = Vec::new();
        while let Some(chosen) = place(&mut fleet, &Demand::of(&Namespace::default(), &spec())) {
            order.push(chosen.name.clone());
        }
        assert_eq!(order, ["w1", "w2", "w1", "w2", "w3"]);
    }

    #[test]
    fn fits_by_namespace_pool_agent_and_labels() {
        let check = |change: &dyn Fn(&mut Candidate, &mut TaskSpec), says: &str| {
            let (mut candidate, mut spec) = (worker(1, 1, 0), spec());
            change(&mut candidate, &mut spec);
            let why = why_waiting(&[candidate.clone()], &Demand::of(&Namespace::default(), &spec));
            assert!(why.contains(says), "{why}");
            assert_eq!(place(&mut [candidate], &Demand::of(&Namespace::default(), &spec)), None);
        };
        check(&|worker, _| worker.namespace = Namespace("other".into()), "belongs to namespace other");
        check(&|_, spec| spec.pool = "gpu".into(), "is of pool default, not gpu");
        check(&|_, spec| spec.agent = "gemini-cli".into(), "cannot run gemini-cli; start one");
        check(&|_, spec| drop(spec.labels.insert("zone".into(), "b".into())), "lacks the label zone=b");
        check(&|worker, _| worker.draining = true, "shutting down");
        check(&|worker, _| worker.silent = true, "has reported lately");
        check(&|worker, _| worker.busy = 1, "the only fitting slot is busy");
    }
}
