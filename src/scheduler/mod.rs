//! Which worker gets which task.
//!
//! Must never know: stores, networks, the clock. Callers pass a snapshot of the fleet.

mod eligible;

use std::collections::BTreeMap;

use ado_proto::spec::{Resource, Resources, TaskSpec};
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
    /// What it has for tasks with limits; see [`Resources`].
    pub resources: Resources,
    /// What those that it holds may use at most.
    pub taken: Taken,
    /// Takes no more work.
    pub draining: bool,
    /// Somebody wants it to get no more work.
    pub cordon: Option<Cordon>,
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

/// Why a worker gets no more work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cordon {
    /// Who wants it, as `role/name`.
    pub by: String,
    /// Whether it is to end or hand back what it has, too.
    pub drain: bool,
}

/// The sum of what tasks ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    cpu_milli: u64,
    memory: u64,
    pids: u64,
}

impl Taken {
    /// And another task's.
    pub fn add(&mut self, asked: &Resources) {
        self.cpu_milli = self.cpu_milli.saturating_add(asked.cpu_milli.unwrap_or(0).into());
        self.memory = self.memory.saturating_add(asked.memory.unwrap_or(0));
        self.pids = self.pids.saturating_add(asked.pids.unwrap_or(0).into());
    }

    /// Of several tasks.
    pub fn of<'a>(asked: impl IntoIterator<Item = &'a Resources>) -> Self {
        asked.into_iter().fold(Self::default(), |mut taken, asked| {
            taken.add(asked);
            taken
        })
    }

    fn get(&self, kind: Resource) -> u64 {
        match kind {
            Resource::Cpu => self.cpu_milli,
            Resource::Memory => self.memory,
            Resource::Pids => self.pids,
        }
    }
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
    /// What it may use at most, and the worker must have for it.
    pub resources: Resources,
}

impl<'a> Demand<'a> {
    /// Of a task of this namespace.
    pub fn of(namespace: &'a Namespace, spec: &'a TaskSpec) -> Self {
        let resources = spec.resources;
        Self { namespace, pool: &spec.pool, agent: &spec.agent, labels: &spec.labels, resources }
    }
}

impl Candidate {
    /// Slots that are free for new work.
    pub fn free(&self) -> u32 {
        let free = if self.draining || self.silent || self.cordon.is_some() {
            0
        } else {
            self.slots.saturating_sub(self.busy)
        };
        match &self.tripped {
            None => free,
            Some(tripped) => free.min(u32::from(tripped.probe)),
        }
    }

    /// How many such tasks it has room for now, if it can run them at all.
    pub fn room(&self, demand: &Demand<'_>) -> u32 {
        let left = self.left(demand).map(|(_, left, asked)| u32::try_from(left / asked).unwrap_or(u32::MAX));
        left.fold(self.free(), u32::min)
    }

    /// Of each kind that the task asks for: how much is left, and how much it asks.
    fn left(&self, demand: &Demand<'_>) -> impl Iterator<Item = (Resource, u64, u64)> {
        let pairs = self.resources.kinds().into_iter().zip(demand.resources.kinds());
        pairs.filter_map(|((kind, has), (_, asked))| {
            // What cannot be enforced is nothing to give away.
            Some((kind, has.unwrap_or(0).saturating_sub(self.taken.get(kind)), asked?.max(1)))
        })
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
        if let Some((key, value)) = demand.labels.iter().find(|(key, value)| self.labels.get(*key) != Some(*value)) {
            return Some(Unfit::Label(key.clone(), value.clone()));
        }
        let pairs = self.resources.kinds().into_iter().zip(demand.resources.kinds());
        pairs.into_iter().find_map(|((kind, has), (_, asked))| match (has, asked?) {
            (None, _) => Some(Unfit::Unlimited(kind)),
            (Some(has), asked) if has < asked => Some(Unfit::Small { kind, has, asked }),
            (Some(_), _) => None,
        })
    }
}

/// The worker for a task: of those that fit and have room for it the one with the most free slots, so that work spreads;
/// the lowest id among equals. Takes the slot, and what the task may use.
pub fn place<'a>(fleet: &'a mut [Candidate], demand: &Demand<'_>) -> Option<&'a Candidate> {
    let best = fleet
        .iter_mut()
        .filter(|worker| worker.unfit(demand).is_none() && worker.room(demand) > 0)
        .max_by_key(|worker| (worker.free(), std::cmp::Reverse(worker.id)))?;
    best.busy += 1;
    if let Some(tripped) = &mut best.tripped {
        tripped.probe = false;
    }
    best.taken.add(&demand.resources);
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
            Unfit::Unlimited(_) => 4,
            Unfit::Small { .. } => 5,
        });
        let advice = nearest.map_or_else(String::new, |(_, why)| format!("; {}", why.advice()));
        let more = if unfit.len() > 3 { ", …" } else { "" };
        return match fleet.len() {
            1 => format!("the only connected worker cannot run it: {}{advice}", each.join(", ")),
            count => format!("none of {count} connected workers can run it: {}{more}{advice}", each.join(", ")),
        };
    }
    if fit.iter().all(|worker| worker.draining && worker.cordon.is_none()) {
        return "every worker that could run it is shutting down: start another with `ado worker`".into();
    }
    let is_closed = |worker: &&&Candidate| worker.draining || worker.cordon.is_some();
    if fit.iter().all(|worker| is_closed(&worker)) {
        let cordoned = fit.iter().find(|worker| worker.cordon.is_some()).map_or("", |worker| worker.name.as_str());
        return format!(
            "every worker that could run it is cordoned, drained or shutting down: `ado workers uncordon {cordoned}` lets \
             one work again, `ado worker` starts another"
        );
    }
    if let Some(tripped) = fit.iter().find_map(|worker| worker.tripped.as_ref().map(|tripped| (worker, tripped)))
        && fit.iter().all(|worker| is_closed(&worker) || worker.silent || worker.tripped.is_some())
    {
        let (worker, Tripped { why, .. }) = tripped;
        return format!(
            "every worker that could run it failed too often and gets no work for now ({}: {why}): mend it, or start \
             another with `ado worker`; it is tried again by itself",
            worker.name
        );
    }
    if fit.iter().all(|worker| is_closed(&worker) || worker.silent) {
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
    if fit.iter().all(|worker| worker.room(demand) == 0) {
        // Of the worker that lacks the least, what it lacks the most of.
        let lacking = |(_, left, asked): &(Resource, u64, u64)| u128::from(asked - left) * 1000 / u128::from(*asked);
        let shortest = |worker: &&Candidate| {
            worker.left(demand).filter(|(_, left, asked)| left < asked).max_by_key(|short| lacking(short))
        };
        let nearest = fit.iter().filter(|worker| worker.free() > 0).filter_map(shortest).min_by_key(lacking);
        if let Some((kind, left, asked)) = nearest {
            let (asked, left) = (kind.amount(asked), kind.amount(left));
            return format!(
                "it asks for {asked}, and other tasks leave {left} at most on the workers with a free slot: it starts when \
                 some of them end; ask for less with `--{}`, or start another worker with `ado worker`",
                kind.as_str()
            );
        }
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
            resources: Resources::default(),
            taken: Taken::default(),
            draining: false,
            cordon: None,
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

    /// A worker that can enforce everything.
    fn large(id: u128, cpu_milli: u32, memory: u64) -> Candidate {
        let resources = Resources { cpu_milli: Some(cpu_milli), memory: Some(memory), pids: Some(1000) };
        Candidate { resources, ..worker(id, 8, 0) }
    }

    fn asking(cpu_milli: Option<u32>, memory: Option<u64>) -> TaskSpec {
        TaskSpec { resources: Resources { cpu_milli, memory, pids: None }, ..spec() }
    }

    fn placed(fleet: &mut [Candidate], spec: &TaskSpec) -> Option<String> {
        place(fleet, &Demand::of(&Namespace::default(), spec)).map(|worker| worker.name.clone())
    }

    #[test]
    fn what_tasks_may_use_is_taken_from_what_there_is() {
        let mut fleet = [large(1, 4000, 8 << 30), large(2, 2000, 64 << 30)];
        let two = asking(Some(1500), Some(3 << 30));
        let home = Namespace::default();
        let demand = Demand::of(&home, &two);
        assert_eq!(fleet.each_ref().map(|worker| worker.room(&demand)), [2, 1]);
        let order: Vec<_> = std::iter::from_fn(|| placed(&mut fleet, &two)).collect();
        assert_eq!(order, ["w1", "w2", "w1"], "no processors for a fourth");
        assert_eq!(placed(&mut fleet, &asking(None, Some(3 << 30))).as_deref(), Some("w2"), "memory alone there is");
        assert_eq!(placed(&mut fleet, &asking(Some(500), None)).as_deref(), Some("w1"));
        assert_eq!(placed(&mut fleet, &asking(Some(501), None)), None);
        assert!(placed(&mut fleet, &spec()).is_some(), "who asks for nothing takes a slot");
        let why = why_waiting(&fleet, &demand);
        let says = "it asks for 1.5 CPU, and other tasks leave 0.5 CPU at most on the workers with a free slot";
        assert!(why.starts_with(says), "{why}");
    }

    #[test]
    fn what_nobody_can_enforce_or_has_is_said() {
        let mut fleet = [worker(1, 4, 0), large(2, 2000, 1 << 30)];
        let unfit = |worker: &Candidate, spec: &TaskSpec| worker.unfit(&Demand::of(&Namespace::default(), spec));
        let memory = asking(None, Some(256 << 20));
        assert_eq!(unfit(&fleet[0], &memory), Some(Unfit::Unlimited(Resource::Memory)));
        assert_eq!(placed(&mut fleet, &memory).as_deref(), Some("w2"));
        let large = asking(None, Some(4 << 30));
        let small = Unfit::Small { kind: Resource::Memory, has: 1 << 30, asked: 4 << 30 };
        assert_eq!((unfit(&fleet[1], &large), placed(&mut fleet, &large)), (Some(small), None));
        let why = why_waiting(&fleet, &Demand::of(&Namespace::default(), &large));
        let expected = "none of 2 connected workers can run it: w1 cannot limit memory, w2 has 1 GiB for tasks, less than the \
                        4 GiB it asks for; ask for less with `--memory`";
        assert!(why.starts_with(expected), "{why}");
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
        let by = || Some(Cordon { by: "admin/ann".into(), drain: true });
        check(&|worker, _| worker.cordon = by(), "`ado workers uncordon ");
        check(&|worker, _| worker.silent = true, "has reported lately");
        check(&|worker, _| worker.busy = 1, "the only fitting slot is busy");
    }
}
