//! Circuit breakers: what fails again and again is left alone for a while, and then tried with one attempt.
//!
//! Each scope has its own, and what happens in one is never counted in another. A task that fails by itself feeds none:
//! only what its worker could not do counts against a worker, only what was not to be had against what asks for it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ado_proto::record::{Body, Exited};
use ado_proto::spec::{Exit, TaskSpec};
use ado_proto::{Namespace, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use super::backoff;

/// Agents that use no credential of anybody's: what one of their tasks finds away is away for that task alone.
const WITHOUT_CREDENTIAL: [&str; 2] = ["shell", "noop"];

/// What a breaker is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One worker: it gets no work while the breaker is open.
    Worker(WorkerId),
    /// An agent with a credential, of one namespace: its tasks wait.
    Agent {
        /// Where the tasks are.
        namespace: Namespace,
        /// The agent.
        agent: String,
        /// Name of the credential; empty: the worker's own.
        credential: String,
    },
}

impl Scope {
    /// The one in which a task asks for things; `None`: it asks for itself alone.
    pub fn of_agent(namespace: &Namespace, spec: &TaskSpec) -> Option<Self> {
        (!WITHOUT_CREDENTIAL.contains(&spec.agent.as_str())).then(|| Self::Agent {
            namespace: namespace.clone(),
            agent: spec.agent.clone(),
            credential: String::new(),
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(id) => write!(f, "worker/{id}"),
            Self::Agent { namespace, agent, credential } => write!(f, "agent/{namespace}/{agent}/{credential}"),
        }
    }
}

/// The text names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no scope of a breaker")]
pub struct NoScope(String);

impl FromStr for Scope {
    type Err = NoScope;

    /// Reads what [`Scope`] displays. Names have no `/`.
    fn from_str(text: &str) -> Result<Self, NoScope> {
        let no = || NoScope(text.into());
        match text.split('/').collect::<Vec<_>>()[..] {
            ["worker", id] => id.parse().map(Self::Worker).map_err(|_| no()),
            ["agent", namespace, agent, credential] => Ok(Self::Agent {
                namespace: Namespace(namespace.into()),
                agent: agent.into(),
                credential: credential.into(),
            }),
            _ => Err(no()),
        }
    }
}

/// What happened in a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// Something failed that may be chance; several in a row are not.
    Failed {
        /// What.
        why: String,
    },
    /// It is away, beyond doubt.
    Away {
        /// What.
        why: String,
        /// For so long, if anybody said.
        retry_after: Option<Duration>,
    },
    /// An attempt has begun well.
    Began,
    /// An attempt came to an end of its own.
    Finished,
}

impl Signal {
    /// What a record of an attempt says about its worker.
    pub fn of_worker(body: &Body) -> Option<Self> {
        let Body::Exited(Exited { exit }) = body else {
            return matches!(body, Body::Started(_)).then_some(Self::Began);
        };
        match exit {
            Exit::NotStarted { error, permanent: false } => {
                Some(Self::Failed { why: format!("it could not start an agent: {error}") })
            }
            Exit::Lost { error } => Some(Self::Failed { why: format!("it lost hold of an agent: {error}") }),
            // No program, no directory: the task's own fault. A worker that could not even begin has shown nothing else.
            Exit::NotStarted { permanent: true, .. } => None,
            Exit::Code(_)
            | Exit::Signal(_)
            | Exit::TimedOut(_)
            | Exit::Cancelled
            | Exit::Unavailable { .. }
            | Exit::OutOfMemory { .. }
            | Exit::Failed { .. }
            | Exit::Hopeless { .. } => Some(Self::Finished),
        }
    }

    /// What it says about what its agent needs.
    pub fn of_agent(body: &Body) -> Option<Self> {
        let Body::Exited(Exited { exit }) = body else { return None };
        match exit {
            Exit::Unavailable { what, retry_after_ms } => {
                Some(Self::Away { why: what.clone(), retry_after: retry_after_ms.map(Duration::from_millis) })
            }
            Exit::Code(_) | Exit::Hopeless { .. } | Exit::Failed { .. } => Some(Self::Finished),
            // Nobody can tell how far it came.
            Exit::Signal(_)
            | Exit::TimedOut(_)
            | Exit::Cancelled
            | Exit::NotStarted { .. }
            | Exit::Lost { .. }
            | Exit::OutOfMemory { .. } => None,
        }
    }
}

/// Numbers of the breakers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// So many failures in a row open it.
    pub failures: u32,
    /// Those that lie further apart are no row.
    pub window: Duration,
    /// How long it is open at first.
    pub base: Duration,
    /// How long at most.
    pub cap: Duration,
}

impl BreakerPolicy {
    /// Three, as for losses: one may be chance, and the second its retry.
    pub const USUAL: Self = Self {
        failures: 3,
        window: Duration::from_secs(600),
        base: Duration::from_secs(30),
        cap: Duration::from_secs(900),
    };
}

/// The state of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// Failures in a row, while it is closed.
    failures: u32,
    /// When the last of them was.
    failed_at: Timestamp,
    /// How often it has opened since an attempt came to an end.
    trips: u32,
    open: Option<Open>,
}

/// A breaker that is open, or lets one attempt through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// What went wrong last.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
    /// From then on one attempt at a time is let through.
    pub probe_at: Timestamp,
}

/// What may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// Nothing.
    Shut,
    /// One attempt at a time.
    Probe,
    /// All.
    Free,
}

impl Breaker {
    /// What may pass now.
    pub fn gate(&self, now: Timestamp) -> Gate {
        match &self.open {
            None => Gate::Free,
            Some(open) if now < open.probe_at => Gate::Shut,
            Some(_) => Gate::Probe,
        }
    }

    /// Why it is not closed, and until when.
    pub fn open(&self) -> Option<&Open> {
        self.open.as_ref()
    }

    /// Whether nothing is known against it: such a one need not be kept.
    pub fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// The breaker after a signal.
    #[must_use]
    pub fn after(&self, signal: Signal, now: Timestamp, policy: &BreakerPolicy) -> Self {
        match (self.gate(now), signal) {
            // What began before it opened, or nearly so, says nothing new.
            (Gate::Shut, _) => self.clone(),
            (Gate::Probe, Signal::Failed { why }) => self.opened(why, None, now, policy),
            (_, Signal::Away { why, retry_after }) => self.opened(why, retry_after, now, policy),
            (Gate::Free, Signal::Failed { why }) => {
                let in_a_row = now.since(self.failed_at) <= policy.window;
                let failures = if in_a_row { self.failures.saturating_add(1) } else { 1 };
                if failures >= policy.failures {
                    return self.opened(why, None, now, policy);
                }
                Self { failures, failed_at: now, ..self.clone() }
            }
            // One more failure opens it again, and for longer.
            (Gate::Probe, Signal::Began) => {
                Self { failures: policy.failures.saturating_sub(1), failed_at: now, trips: self.trips, open: None }
            }
            (Gate::Free, Signal::Began) => self.clone(),
            (Gate::Probe | Gate::Free, Signal::Finished) => Self::default(),
        }
    }

    fn opened(&self, why: String, at_least: Option<Duration>, now: Timestamp, policy: &BreakerPolicy) -> Self {
        let wait = backoff(policy.base, policy.cap, self.trips, 1.0).max(at_least.unwrap_or_default().min(policy.cap));
        let since = self.open.as_ref().map_or(now, |open| open.since);
        Self {
            failures: 0,
            failed_at: now,
            trips: self.trips.saturating_add(1),
            open: Some(Open { why, since, probe_at: now.after(wait) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ado_proto::record::Started;
    use ado_proto::spec::{Containment, Input, Limit};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy {
        failures: 3,
        window: Duration::from_secs(100),
        base: Duration::from_secs(10),
        cap: Duration::from_secs(60),
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp(1_800_000_000_000_000 + seconds * 1_000_000)
    }

    fn failed() -> Signal {
        Signal::Failed { why: "no space left".into() }
    }

    /// The breaker after signals at these seconds.
    fn after(signals: &[(i64, Signal)]) -> Breaker {
        let hear =
            |breaker: Breaker, (second, signal): &(i64, Signal)| breaker.after(signal.clone(), at(*second), &POLICY);
        signals.iter().fold(Breaker::default(), hear)
    }

    #[test]
    fn three_failures_in_a_row_open_it() {
        let two = [(0, failed()), (1, failed())];
        assert_eq!(after(&two).gate(at(1)), Gate::Free);
        let three = [&two[..], &[(2, failed())]].concat();
        let open = after(&three);
        assert_eq!((open.gate(at(2)), open.gate(at(11)), open.gate(at(12))), (Gate::Shut, Gate::Shut, Gate::Probe));
        let known = open.open().expect("it is open");
        assert_eq!((known.why.as_str(), known.since, known.probe_at), ("no space left", at(2), at(12)));
        for no_row in [
            [&two[..], &[(2, Signal::Finished), (3, failed())]].concat(),
            [&two[..], &[(102, failed())]].concat(),
            vec![(0, failed()), (101, failed()), (202, failed())],
        ] {
            assert_eq!(after(&no_row).gate(at(202)), Gate::Free, "{no_row:?}");
        }
        let began = [(0, failed()), (1, Signal::Began), (1, failed()), (2, Signal::Began), (2, failed())];
        assert_eq!(after(&began).gate(at(2)), Gate::Shut, "an agent that was lost had begun");
    }

    #[test]
    fn a_probe_closes_it_on_probation_or_opens_it_for_longer() {
        let open = [(0, failed()), (0, failed()), (0, failed())];
        let then = |more: &[(i64, Signal)]| after(&[&open[..], more].concat());
        assert_eq!(then(&[(5, failed())]), then(&[]), "what began before counts no more");
        assert_eq!(then(&[(5, Signal::Finished)]), then(&[]));
        let again = then(&[(10, failed())]);
        assert_eq!((again.gate(at(29)), again.gate(at(30))), (Gate::Shut, Gate::Probe), "20 s");
        assert_eq!(again.open().map(|open| open.since), Some(at(0)));
        let probation = then(&[(10, Signal::Began)]);
        assert_eq!(probation.gate(at(10)), Gate::Free);
        let relapsed = then(&[(10, Signal::Began), (11, failed())]);
        assert_eq!((relapsed.gate(at(30)), relapsed.gate(at(31))), (Gate::Shut, Gate::Probe));
        let well = then(&[(10, Signal::Began), (11, Signal::Finished)]);
        assert!(well.is_new(), "all is forgotten");
        assert!(then(&[(10, Signal::Finished)]).is_new());
        let often: Vec<_> = (0..20).map(|n| (n * 100, failed())).collect();
        assert_eq!(then(&often).gate(at(1900 + 59)), Gate::Shut);
        assert_eq!(then(&often).gate(at(1900 + 60)), Gate::Probe, "never for longer than the cap");
    }

    #[test]
    fn what_is_away_opens_at_once_and_for_as_long_as_was_said() {
        let away = |retry_after| Signal::Away { why: "401".into(), retry_after };
        let probe_at = |seconds: Option<u64>| {
            let breaker = after(&[(0, away(seconds.map(Duration::from_secs)))]);
            assert_eq!(breaker.gate(at(0)), Gate::Shut);
            breaker.open().unwrap().probe_at.since(at(0)).as_secs()
        };
        assert_eq!([None, Some(1), Some(45), Some(9_999)].map(probe_at), [10, 10, 45, 60]);
    }

    fn exited(exit: Exit) -> Body {
        Exited { exit }.into()
    }

    #[test]
    fn a_tasks_own_failure_feeds_none() {
        let not_started = |permanent| Exit::NotStarted { error: "x".into(), permanent };
        for exit in [
            Exit::Code(0),
            Exit::Code(1),
            Exit::Signal(9),
            Exit::Cancelled,
            not_started(true),
            Exit::Hopeless { error: "x".into(), code: 1 },
            Exit::Unavailable { what: "x".into(), retry_after_ms: None },
            Exit::OutOfMemory { limit: 1 },
        ]
        .into_iter()
        .chain(Limit::ALL.map(Exit::TimedOut))
        {
            let signal = Signal::of_worker(&exited(exit.clone()));
            assert!(!matches!(signal, Some(Signal::Failed { .. } | Signal::Away { .. })), "{exit:?}: {signal:?}");
            let away = matches!(exit, Exit::Unavailable { .. });
            let signal = Signal::of_agent(&exited(exit.clone()));
            assert_eq!(matches!(signal, Some(Signal::Failed { .. } | Signal::Away { .. })), away, "{exit:?}");
        }
        for exit in [not_started(false), Exit::Lost { error: "x".into() }] {
            assert!(matches!(Signal::of_worker(&exited(exit.clone())), Some(Signal::Failed { .. })), "{exit:?}");
            assert_eq!(Signal::of_agent(&exited(exit)), None, "its worker's failure is none of what it needs");
        }
        let started = Started { pid: 1, containment: Containment::Group }.into();
        assert_eq!((Signal::of_worker(&started), Signal::of_agent(&started)), (Some(Signal::Began), None));
    }

    #[test]
    fn scopes_are_told_apart_and_come_back_from_their_text() {
        let agent = |namespace: &str, agent: &str, credential: &str| Scope::Agent {
            namespace: Namespace(namespace.into()),
            agent: agent.into(),
            credential: credential.into(),
        };
        let all = [
            Scope::Worker(WorkerId(Uuid::from_u128(1))),
            Scope::Worker(WorkerId(Uuid::from_u128(2))),
            agent("red", "claude-code", ""),
            agent("red", "claude-code", "work"),
            agent("blue", "claude-code", ""),
            agent("red", "gemini-cli", ""),
        ];
        let texts: BTreeMap<_, _> = all.iter().map(|scope| (scope.to_string(), scope.clone())).collect();
        assert_eq!(texts.len(), all.len());
        assert!(texts.iter().all(|(text, scope)| text.parse().as_ref() == Ok(scope)));
        assert!(["", "worker/x", "agent/a/b", "pool/x"].iter().all(|text| text.parse::<Scope>().is_err()));
        let of =
            |agent: &str| Scope::of_agent(&Namespace("red".into()), &TaskSpec::new(agent, Input::Text("x".into())));
        assert_eq!(of("claude-code"), Some(agent("red", "claude-code", "")));
        assert_eq!((of("shell"), of("noop")), (None, None));
    }

    fn signals() -> impl Strategy<Value = Signal> {
        prop_oneof![
            4 => Just(failed()),
            1 => (0..200u64).prop_map(|s| Signal::Away { why: "quota".into(), retry_after: Some(Duration::from_secs(s)) }),
            2 => Just(Signal::Began),
            1 => Just(Signal::Finished),
        ]
    }

    proptest! {
        #[test]
        fn whatever_comes_it_opens_for_a_reason_and_always_lets_somebody_try(
            steps in prop::collection::vec((0..4usize, 0..40u64, signals()), 0..200)
        ) {
            let mut now = at(0);
            let mut breakers = vec![Breaker::default(); 4];
            let mut in_a_row = [0u32; 4];
            for (scope, pause, signal) in steps {
                now = now.after(Duration::from_secs(pause));
                let before = breakers.clone();
                let was = before[scope].gate(now);
                breakers[scope] = before[scope].after(signal.clone(), now, &POLICY);
                let (breaker, is) = (&breakers[scope], breakers[scope].gate(now));
                // Never mixed.
                for other in (0..4).filter(|other| *other != scope) {
                    prop_assert_eq!(&breakers[other], &before[other]);
                }
                in_a_row[scope] = match (&signal, was) {
                    (_, Gate::Shut) => in_a_row[scope],
                    (Signal::Failed { .. }, _) => in_a_row[scope] + 1,
                    (Signal::Finished, _) => 0,
                    (Signal::Began, Gate::Probe) => in_a_row[scope].max(POLICY.failures - 1),
                    _ => in_a_row[scope],
                };
                match (was, is, &signal) {
                    (Gate::Shut, Gate::Shut, _) => prop_assert_eq!(breaker, &before[scope]),
                    (Gate::Free, Gate::Shut, Signal::Failed { .. }) => prop_assert!(in_a_row[scope] >= POLICY.failures),
                    (Gate::Probe, Gate::Shut, Signal::Failed { .. }) | (_, Gate::Shut, Signal::Away { .. }) => {}
                    (Gate::Probe, Gate::Free, Signal::Began | Signal::Finished) | (Gate::Free, Gate::Free, _) => {}
                    unexpected => panic!("{unexpected:?}"),
                }
                if let Some(open) = breaker.open() {
                    // It ends, and nobody waits for longer than the cap.
                    prop_assert!(open.probe_at <= now.after(POLICY.cap));
                    prop_assert_eq!(breaker.gate(open.probe_at), Gate::Probe);
                    prop_assert!(open.since <= now);
                }
                // What a store keeps is the same.
                let kept = serde_json::to_string(breaker).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Breaker>(&kept).unwrap(), breaker);
            }
        }
    }
}
