//! Hints that were tried in vain and wait for what they lack: a worker, or their time. Giving them back to the queue at
//! once would only have them tried again at once.

use std::collections::{BTreeMap, BTreeSet};

use ado_proto::spec::Resources;
use ado_proto::{TaskId, Timestamp};

use crate::queue::{Class, Hint};
use crate::scheduler::{Candidate, Demand};

/// Most hints of each kind. Beyond, all of the kind are forgotten until the sweep finds them again.
const LIMIT: usize = 10_000;

/// What tasks ask of a worker beside their class.
pub(super) type Labels = BTreeMap<String, String>;

/// See the module.
#[derive(Default)]
pub(super) struct Aside {
    /// No worker with a free slot fits. Tasks that ask for the same lie together: one look decides about all of them.
    unfit: BTreeMap<(Class, Labels, Resources), BTreeSet<Hint>>,
    unfit_len: usize,
    /// Not to be tried before an instant.
    early: BTreeMap<(Timestamp, TaskId), (Class, Hint)>,
    /// Tasks among the early ones.
    early_tasks: BTreeSet<TaskId>,
}

impl Aside {
    /// No worker with a free slot fits.
    pub(super) fn unfit(&mut self, class: &Class, labels: Labels, resources: Resources, hint: Hint) {
        if self.unfit_len >= LIMIT {
            self.unfit.clear();
            self.unfit_len = 0;
        }
        let added = self.unfit.entry((class.clone(), labels, resources)).or_default().insert(hint);
        self.unfit_len += usize::from(added);
    }

    /// Not to be tried before `at`.
    pub(super) fn early(&mut self, at: Timestamp, class: &Class, hint: Hint) {
        if self.early.len() >= LIMIT {
            self.early.clear();
            self.early_tasks.clear();
        }
        self.early.insert((at, hint.task), (class.clone(), hint));
        self.early_tasks.insert(hint.task);
    }

    /// Whether a hint is here: trying it would be in vain again.
    pub(super) fn holds(&self, hint: &Hint) -> bool {
        self.early_tasks.contains(&hint.task) || self.unfit.values().any(|hints| hints.contains(hint))
    }

    /// When the next early one's time comes.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.early.keys().next().map(|(at, _)| *at)
    }

    /// Takes those whose time has come.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Vec<(Class, Hint)> {
        let later = self.early.split_off(&(now.after(std::time::Duration::from_micros(1)), TaskId(uuid::Uuid::nil())));
        let due: Vec<_> = std::mem::replace(&mut self.early, later).into_values().collect();
        self.early_tasks = self.early.keys().map(|(_, task)| *task).collect();
        due
    }

    /// Takes as many of the first as there are free slots they fit in.
    pub(super) fn take_fitting(&mut self, fleet: &[Candidate]) -> Vec<(Class, Hint)> {
        let mut taken = Vec::new();
        for ((class, labels, resources), hints) in &mut self.unfit {
            let (namespace, resources) = (&class.namespace, *resources);
            let demand = Demand { namespace, pool: &class.pool, agent: &class.agent, labels, resources };
            let fits = fleet.iter().filter(|worker| worker.unfit(&demand).is_none());
            for _ in 0..fits.map(|worker| worker.room(&demand)).sum() {
                let Some(hint) = hints.pop_first() else { break };
                taken.push((class.clone(), hint));
            }
        }
        self.unfit.retain(|_, hints| !hints.is_empty());
        self.unfit_len -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::{Namespace, WorkerId};
    use uuid::Uuid;

    use super::*;

    fn class() -> Class {
        Class { namespace: Namespace::default(), pool: "default".into(), agent: "shell".into() }
    }

    fn hint(n: u64) -> Hint {
        Hint { score: n as i64, task: TaskId(Uuid::from_u128(n.into())) }
    }

    fn labels(zone: &str) -> Labels {
        Labels::from([("zone".into(), zone.into())])
    }

    fn worker(zone: &str, free: u32) -> Candidate {
        Candidate {
            id: WorkerId(Uuid::from_u128(1)),
            name: "w".into(),
            namespace: Namespace::default(),
            pool: "default".into(),
            agents: vec!["shell".into()],
            labels: labels(zone),
            slots: 9,
            busy: 9 - free,
            resources: Resources { memory: Some(8), ..Resources::default() },
            taken: crate::scheduler::Taken::default(),
            draining: false,
            cordon: None,
            silent: false,
            tripped: None,
        }
    }

    fn numbers(taken: Vec<(Class, Hint)>) -> Vec<i64> {
        taken.into_iter().map(|(_, hint)| hint.score).collect()
    }

    #[test]
    fn comes_back_when_it_fits_first_hints_first() {
        let mut aside = Aside::default();
        for n in (1..=4).rev() {
            aside.unfit(&class(), labels("a"), Resources::default(), hint(n));
            aside.unfit(&class(), labels("a"), Resources::default(), hint(n));
        }
        aside.unfit(&class(), labels("b"), Resources::default(), hint(9));
        assert_eq!(numbers(aside.take_fitting(&[worker("c", 9), worker("b", 0)])), [0i64; 0]);
        assert_eq!(numbers(aside.take_fitting(&[worker("a", 1), worker("a", 1)])), [1, 2]);
        assert_eq!(numbers(aside.take_fitting(&[worker("a", 9), worker("b", 9)])), [3, 4, 9]);
        assert_eq!(aside.unfit_len, 0);
    }

    #[test]
    fn comes_back_when_there_is_room() {
        let mut aside = Aside::default();
        let of = |memory| Resources { memory: Some(memory), ..Resources::default() };
        for n in 1..=4 {
            aside.unfit(&class(), labels("a"), of(3), hint(n));
        }
        aside.unfit(&class(), labels("a"), of(9), hint(9));
        assert_eq!(numbers(aside.take_fitting(&[worker("a", 9)])), [1, 2], "a third has no room, and 9 never will");
        let mut full = worker("a", 9);
        full.taken.add(&of(6));
        assert_eq!(numbers(aside.take_fitting(&[full])), [0i64; 0]);
    }

    #[test]
    fn comes_back_when_its_time_has_come() {
        let mut aside = Aside::default();
        assert_eq!(aside.next_due(), None);
        for n in [3, 1, 2, 1] {
            aside.early(Timestamp(n), &class(), hint(n as u64));
        }
        assert_eq!(aside.next_due(), Some(Timestamp(1)));
        assert_eq!(numbers(aside.take_due(Timestamp(0))), [0i64; 0]);
        assert_eq!(numbers(aside.take_due(Timestamp(2))), [1, 2]);
        assert_eq!(aside.next_due(), Some(Timestamp(3)));
    }

    #[test]
    fn is_bounded() {
        let mut aside = Aside::default();
        for n in 0..LIMIT as u64 * 2 + 1 {
            aside.unfit(&class(), labels("a"), Resources::default(), hint(n));
            aside.early(Timestamp(n as i64), &class(), hint(n));
        }
        assert_eq!((aside.unfit_len, aside.early.len()), (1, 1));
        assert_eq!(numbers(aside.take_fitting(&[worker("a", 9)])), [LIMIT as i64 * 2]);
    }
}
