//! Words for people: why a worker would get no work, and what to do about it.

use std::fmt;

use ado_proto::spec::Resource;
use ado_proto::{Namespace, Role};

use super::{Candidate, Demand};

/// Why a worker cannot run a task, however long one waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It belongs elsewhere.
    Namespace {
        /// The worker's.
        its: Namespace,
        /// The task's.
        wanted: Namespace,
    },
    /// It has another template.
    Pool {
        /// The worker's.
        its: String,
        /// The task's.
        wanted: String,
    },
    /// It does not offer the agent.
    Agent(String),
    /// It lacks a label: name and value.
    Label(String, String),
    /// It cannot enforce such a limit.
    Unlimited(Resource),
    /// All it has is less than the task asks for.
    Small {
        /// Of what.
        kind: Resource,
        /// The worker's.
        has: u64,
        /// The task's.
        asked: u64,
    },
}

impl fmt::Display for Unfit {
    /// What follows the worker's name in a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace { its, .. } => write!(f, "belongs to namespace {its}"),
            Self::Pool { its, wanted } => write!(f, "is of pool {its}, not {wanted}"),
            Self::Agent(agent) => write!(f, "cannot run {agent}"),
            Self::Label(name, value) => write!(f, "lacks the label {name}={value}"),
            Self::Unlimited(kind) => write!(f, "cannot limit {}", kind.as_str()),
            Self::Small { kind, has, asked } => {
                write!(f, "has {} for tasks, less than the {} it asks for", kind.amount(*has), kind.amount(*asked))
            }
        }
    }
}

impl Unfit {
    /// What somebody can do about it.
    pub fn advice(&self) -> String {
        match self {
            Self::Namespace { wanted, .. } => format!(
                "let one join there, with a join string from `ado token create --role {} --namespace {wanted}`",
                Role::Worker
            ),
            Self::Pool { its, wanted } => {
                format!("start one with `ado worker --pool {wanted}`, or submit with `--pool {its}`")
            }
            Self::Agent(agent) => format!("start one that offers it with `ado worker --agents {agent}`"),
            Self::Label(name, value) => format!("start one with `ado worker --label {name}={value}`"),
            Self::Unlimited(kind) => format!(
                "leave out `--{}`, or start one that may make control groups: as root, or by systemd with `Delegate=yes`",
                kind.as_str()
            ),
            Self::Small { kind, .. } => {
                format!("ask for less with `--{}`, or start a worker that has more", kind.as_str())
            }
        }
    }
}

/// Whether a worker can be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has a session.
    Connected,
    /// It has none.
    Disconnected,
    /// It has not reported for so long that its tasks were given to others.
    Lost,
}

/// One sentence: why a worker would get no work now, or not a certain task, and what to do. `None`: it could.
pub fn ineligible(worker: &Candidate, presence: Presence, demand: Option<&Demand<'_>>) -> Option<String> {
    if let Some(unfit) = demand.and_then(|demand| worker.unfit(demand)) {
        return Some(format!("{unfit}: {}", unfit.advice()));
    }
    Some(match presence {
        Presence::Lost => {
            "was given up after a long silence: look at its machine, or start another with `ado worker`".into()
        }
        // Before whether it is there: a drained one has left.
        _ if worker.cordon.is_some() => {
            let cordon = worker.cordon.as_ref();
            let (drain, by) = cordon.map_or((false, ""), |cordon| (cordon.drain, cordon.by.as_str()));
            let what = if drain { "is drained" } else { "is cordoned" };
            format!("{what} by {by}: `ado workers uncordon {}` lets it take work again", worker.name)
        }
        Presence::Disconnected => {
            "is not connected: look whether `ado worker` runs on its machine and reaches this controller".into()
        }
        Presence::Connected if worker.draining => {
            "is shutting down and takes no more work: start another with `ado worker`".into()
        }
        Presence::Connected if worker.silent => {
            "has not reported lately: it gets work again once it does, and is given up if it does not".into()
        }
        Presence::Connected if worker.tripped.is_some() => {
            let why = worker.tripped.as_ref().map_or("", |tripped| tripped.why.as_str());
            format!("failed too often and gets no work for now ({why}): mend it; it is tried again by itself")
        }
        Presence::Connected if worker.free() == 0 => {
            let slots =
                if worker.slots == 1 { "its slot is".into() } else { format!("all its {} slots are", worker.slots) };
            format!("{slots} busy: wait, or start another with `ado worker`, or this one with more `--slots`")
        }
        Presence::Connected if demand.is_some_and(|demand| worker.room(demand) == 0) => {
            "has a free slot, and less left than it asks for: it starts when other tasks there end".into()
        }
        Presence::Connected => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ado_proto::WorkerId;
    use ado_proto::spec::{Input, TaskSpec};
    use uuid::Uuid;

    use super::*;
    use crate::scheduler::{Cordon, Tripped};

    fn worker() -> Candidate {
        Candidate {
            id: WorkerId(Uuid::from_u128(1)),
            name: "box-1".into(),
            namespace: Namespace::default(),
            pool: "default".into(),
            agents: vec!["shell".into()],
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            slots: 2,
            busy: 1,
            resources: ado_proto::spec::Resources::default(),
            taken: crate::scheduler::Taken::default(),
            draining: false,
            cordon: None,
            silent: false,
            tripped: None,
        }
    }

    #[test]
    fn says_why_and_what_to_do() {
        use Presence::{Connected, Disconnected, Lost};
        let spec = TaskSpec::new("shell", Input::Text("true".into()));
        let home = Namespace::default();
        let check = |presence, change: &dyn Fn(&mut Candidate), expected: Option<&str>| {
            let mut worker = worker();
            change(&mut worker);
            let why = ineligible(&worker, presence, None);
            assert_eq!(why.as_deref(), expected, "{worker:?}");
            assert_eq!(ineligible(&worker, presence, Some(&Demand::of(&home, &spec))), why, "of a task that fits");
        };
        check(Connected, &|_| (), None);
        check(
            Connected,
            &|worker| worker.draining = true,
            Some("is shutting down and takes no more work: start another with `ado worker`"),
        );
        check(
            Connected,
            &|worker| worker.cordon = Some(Cordon { by: "admin/ann".into(), drain: false }),
            Some("is cordoned by admin/ann: `ado workers uncordon box-1` lets it take work again"),
        );
        check(
            Disconnected,
            &|worker| worker.cordon = Some(Cordon { by: "admin/ann".into(), drain: true }),
            Some("is drained by admin/ann: `ado workers uncordon box-1` lets it take work again"),
        );
        check(
            Connected,
            &|worker| worker.silent = true,
            Some("has not reported lately: it gets work again once it does, and is given up if it does not"),
        );
        check(
            Connected,
            &|worker| worker.tripped = Some(Tripped { probe: false, why: "no space left".into() }),
            Some("failed too often and gets no work for now (no space left): mend it; it is tried again by itself"),
        );
        check(
            Connected,
            &|worker| worker.busy = 2,
            Some("all its 2 slots are busy: wait, or start another with `ado worker`, or this one with more `--slots`"),
        );
        check(
            Connected,
            &|worker| worker.slots = 1,
            Some("its slot is busy: wait, or start another with `ado worker`, or this one with more `--slots`"),
        );
        check(
            Disconnected,
            &|worker| worker.draining = true,
            Some("is not connected: look whether `ado worker` runs on its machine and reaches this controller"),
        );
        check(
            Lost,
            &|_| (),
            Some("was given up after a long silence: look at its machine, or start another with `ado worker`"),
        );
    }

    #[test]
    fn what_never_fits_comes_first() {
        let check = |change: &dyn Fn(&mut Candidate, &mut TaskSpec), expected: &str| {
            let (mut worker, mut spec) = (worker(), TaskSpec::new("shell", Input::Text("true".into())));
            (worker.draining, worker.silent, worker.busy) = (true, true, 9);
            change(&mut worker, &mut spec);
            let home = Namespace::default();
            for presence in [Presence::Connected, Presence::Disconnected, Presence::Lost] {
                let why = ineligible(&worker, presence, Some(&Demand::of(&home, &spec)));
                assert_eq!(why.as_deref(), Some(expected));
            }
        };
        check(
            &|worker, _| worker.namespace = Namespace("red".into()),
            "belongs to namespace red: let one join there, with a join string from \
             `ado token create --role worker --namespace default`",
        );
        check(
            &|_, spec| spec.pool = "gpu".into(),
            "is of pool default, not gpu: start one with `ado worker --pool gpu`, or submit with `--pool default`",
        );
        check(
            &|_, spec| spec.agent = "gemini-cli".into(),
            "cannot run gemini-cli: start one that offers it with `ado worker --agents gemini-cli`",
        );
        check(
            &|_, spec| drop(spec.labels.insert("zone".into(), "b".into())),
            "lacks the label zone=b: start one with `ado worker --label zone=b`",
        );
    }
}
