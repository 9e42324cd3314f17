//! What a task is and how it changes. A task is a log: its state is the fold of its records.
//!
//! Owns: states, the conflict table, retry arithmetic, the dead letter, circuit breakers.
//! Must never know: stores, networks, the clock, a generator of random numbers. Callers pass `now` and a jitter.
//!
//! Two functions carry it all: [`decide()`] turns a command into records or a [`Refusal`]; [`Task::apply`] folds one record.
//! A decision's new state *is* the fold of its records, so the row a store keeps beside the log cannot differ from it.

mod breaker;
mod dead;
mod decide;
mod retry;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ado_proto::record::{self, Answer, Body, Desired, Member, Outcome, Progress, Record};
use ado_proto::spec::{Exit, Limit, TaskSpec, Usage};
use ado_proto::{
    AskDigest, AskId, CheckpointId, Epoch, Namespace, Offset, Origin, Seq, Snapshot, TaskId, Timestamp, WorkerId,
};
use serde::{Deserialize, Serialize};

pub use ado_proto::request::Settled;
pub use breaker::{Breaker, BreakerPolicy, Gate, Open, Scope, Signal};
pub use dead::{again, settle};
pub use decide::{Command, Decision, Refusal, decide, submit};
pub use retry::backoff;

/// The fold of a task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Where it lives.
    pub namespace: Namespace,
    /// Who submitted it, as `role/name`.
    pub owner: String,
    /// Its label.
    pub name: Option<String>,
    /// Its group.
    pub group: Option<Member>,
    /// What was asked.
    pub spec: TaskSpec,
    /// Where it is.
    pub state: State,
    /// Where somebody wants it to be.
    pub desired: Desired,
    /// Who wanted it there, and when; `None`: as submitted.
    pub asked: Option<Asked>,
    /// Rises with every change of `desired`.
    pub generation: u64,
    /// With [`Desired::Cancelled`]: kill at once.
    pub force: bool,
    /// The last assignment's epoch; 0 before the first.
    pub epoch: Epoch,
    /// Failed attempts that counted against `max_retries`.
    pub failures: u32,
    /// Losses attributed to the task.
    pub charged_losses: u32,
    /// Losses that are nobody's fault.
    pub uncharged_losses: u32,
    /// Who holds or last held it.
    pub worker: Option<Holder>,
    /// How far the current or last attempt says it is.
    pub progress: Option<Progress>,
    /// Where the next attempt goes on from.
    pub checkpoint: Option<Checkpoint>,
    /// Length of the log.
    pub next_offset: Offset,
    /// The first seq of the current epoch that is not in the log.
    pub next_seq: Seq,
    /// Whether the agent of the current epoch has been started (it may be frozen since).
    pub agent_started: bool,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its agent first ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The task that it does again.
    pub retry_of: Option<TaskId>,
    /// Attempts that did not count, since what they needed was not to be had.
    pub deferrals: u32,
    /// For the limits that are not its worker's to measure.
    pub times: Times,
    /// What it asks, oldest first: at most [`record::MAX_ASKS`].
    pub asks: Vec<OpenAsk>,
    /// What was answered in epochs that are over, oldest first: at most [`MAX_GIVEN`].
    pub given: Vec<(AskDigest, Answer)>,
    /// What its agent has used, over all attempts.
    pub usage: Usage,
}

/// Answers that are remembered for a question that is asked again. A resumed agent repeats the last few.
pub const MAX_GIVEN: usize = 32;

/// A question that is open: its agent has no answer yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAsk {
    /// The question.
    pub ask: record::Asked,
    /// When it was asked.
    pub at: Timestamp,
    /// What was answered; the agent does not have it yet.
    pub answer: Option<Answer>,
}

impl OpenAsk {
    /// When nobody has answered in time.
    fn ends_at(&self) -> Option<Timestamp> {
        let wait = self.ask.wait_ms.filter(|_| self.answer.is_none())?;
        Some(self.at.after(Duration::from_millis(wait)))
    }
}

/// What limits of time are counted with, all on the store's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The last assignment; later by as long as it has been paused since, before its agent ran.
    pub assigned_at: Option<Timestamp>,
    /// Since when it is paused.
    pub paused_at: Option<Timestamp>,
    /// How long it was paused before.
    pub paused_for: Duration,
}

/// A worker, as a log names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
}

/// A user's wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Whose, as `role/name`.
    pub by: String,
    /// When it was said.
    pub at: Timestamp,
}

/// The newest point to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its id.
    pub id: CheckpointId,
    /// Its record's place in the log.
    pub offset: Offset,
    /// JSON text for the task. Shared: a task is cloned for every decision.
    pub data: Arc<str>,
    /// What its folder held.
    pub snapshot: Option<Snapshot>,
}

impl Checkpoint {
    /// The checkpoint that a record of a log makes; `None` for other records.
    pub fn of(record: &Record) -> Option<Self> {
        match &record.body {
            Body::Checkpointed(made) => {
                let data = made.data.as_str().into();
                Some(Self { id: made.id, offset: record.offset, data, snapshot: made.snapshot })
            }
            _ => None,
        }
    }
}

/// Where a task is. Who holds it is in [`Task::worker`], under which epoch in [`Task::epoch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Waits for a worker.
    Queued {
        /// Not claimed before this instant.
        not_before: Timestamp,
    },
    /// A worker holds it; its agent does not run yet.
    Starting,
    /// Its agent runs.
    Running,
    /// Its agent is frozen because a user asked.
    Paused,
    /// Its agent's process ended; the decision what follows is the next record.
    Exited(Exit),
    /// A worker was given up; the decision what follows is the next record.
    Lost,
    /// Over.
    Ended {
        /// How.
        outcome: Outcome,
        /// How the last attempt's process ended.
        exit: Option<Exit>,
        /// What went wrong.
        error: Option<String>,
    },
}

/// Numbers of the retry rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// First wait.
    pub backoff_base: Duration,
    /// Longest wait.
    pub backoff_cap: Duration,
    /// This many charged losses end a task.
    pub max_charged_losses: u32,
    /// When workers, and what agents need, are left alone for a while.
    pub breaker: BreakerPolicy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(300),
            max_charged_losses: 3,
            breaker: BreakerPolicy::USUAL,
        }
    }
}

/// Why a record cannot follow a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The first record is not `Submitted`, or `Submitted` comes again.
    #[error("a log begins with one `Submitted` record")]
    NotTheBeginning,
    /// Its offset is not the log's next one.
    #[error("record at offset {found} where {expected} is due")]
    Offset {
        /// The record's.
        found: Offset,
        /// The log's.
        expected: Offset,
    },
    /// Its epoch or seq is not the next one.
    #[error("record {epoch}/{seq} is not the next of its epoch")]
    Origin {
        /// The record's epoch.
        epoch: Epoch,
        /// The record's seq.
        seq: Seq,
    },
    /// An assignment whose epoch does not rise.
    #[error("epoch {found} is assigned after {current}")]
    Epoch {
        /// The assignment's.
        found: Epoch,
        /// The log's.
        current: Epoch,
    },
    /// The log has ended.
    #[error("a record after the end of the log")]
    AfterEnd,
    /// Longer than anybody would read.
    #[error("record {0} is longer than a record may be")]
    TooLong(Offset),
}

impl Task {
    /// Starts a log: folds its first record.
    ///
    /// # Errors
    /// [`FoldError::NotTheBeginning`] when the record is not `Submitted` at offset 0.
    pub fn begin(id: TaskId, record: &Record) -> Result<Self, FoldError> {
        let (Body::Submitted(submitted), Offset(0)) = (&record.body, record.offset) else {
            return Err(FoldError::NotTheBeginning);
        };
        Ok(Self {
            id,
            namespace: submitted.namespace.clone(),
            owner: submitted.owner.clone(),
            name: submitted.name.clone(),
            group: submitted.group,
            spec: submitted.spec.clone(),
            state: State::Queued { not_before: record.time },
            desired: Desired::Running,
            asked: None,
            generation: 0,
            force: false,
            epoch: Epoch(0),
            failures: 0,
            charged_losses: 0,
            uncharged_losses: 0,
            worker: None,
            progress: None,
            checkpoint: None,
            next_offset: Offset(1),
            next_seq: Seq(0),
            agent_started: false,
            created_at: record.time,
            started_at: None,
            ended_at: None,
            retry_of: None,
            deferrals: 0,
            times: Times::default(),
            asks: Vec::new(),
            given: Vec::new(),
            usage: Usage::default(),
        })
    }

    /// Folds one more record.
    ///
    /// # Errors
    /// [`FoldError`] when the record cannot be the log's next; the task is unchanged then.
    pub fn apply(&mut self, record: &Record) -> Result<(), FoldError> {
        if record.offset != self.next_offset {
            return Err(FoldError::Offset { found: record.offset, expected: self.next_offset });
        }
        if self.is_ended() {
            return Err(FoldError::AfterEnd);
        }
        match (&record.body, record.origin) {
            (Body::Submitted(_), _) => return Err(FoldError::NotTheBeginning),
            (Body::Assigned(assigned), _) if assigned.epoch <= self.epoch => {
                return Err(FoldError::Epoch { found: assigned.epoch, current: self.epoch });
            }
            (_, Origin::Worker { epoch, seq }) if (epoch, seq) != (self.epoch, self.next_seq) => {
                return Err(FoldError::Origin { epoch, seq });
            }
            (_, Origin::Worker { seq, .. }) => self.next_seq = seq.next(),
            (_, Origin::Controller) => {}
        }
        let stood = self.stands();
        self.fold(record);
        self.count(stood, record.time);
        self.next_offset = record.offset.next();
        Ok(())
    }

    /// While it is paused, or waits for somebody, no limit's time runs.
    fn count(&mut self, stood: bool, now: Timestamp) {
        match (stood, self.stands()) {
            (false, true) => self.times.paused_at = Some(now),
            (true, false) => {
                let paused = self.times.paused_at.take().map_or(Duration::ZERO, |at| now.since(at));
                self.times.paused_for += paused;
                self.times.assigned_at = self.times.assigned_at.map(|at| at.after(paused));
            }
            (false, false) | (true, true) => {}
        }
    }

    fn fold(&mut self, record: &Record) {
        match &record.body {
            Body::Assigned(assigned) => {
                self.worker = Some(Holder { id: assigned.worker, name: assigned.worker_name.clone() });
                self.epoch = assigned.epoch;
                self.next_seq = Seq(0);
                self.agent_started = false;
                self.progress = None;
                self.close_asks();
                self.times.assigned_at = Some(record.time);
                self.state = State::Starting;
            }
            Body::Started(_) => {
                self.started_at.get_or_insert(record.time);
                self.agent_started = true;
                if self.state != State::Paused {
                    self.state = State::Running;
                }
            }
            Body::Paused(_) => self.state = State::Paused,
            Body::Resumed(_) => self.state = if self.agent_started { State::Running } else { State::Starting },
            Body::Exited(exited) => {
                self.close_asks();
                self.state = State::Exited(exited.exit.clone());
            }
            Body::DesiredChanged(change) => {
                self.desired = change.desired;
                self.asked = Some(Asked { by: change.by.clone(), at: record.time });
                self.generation = change.generation;
                self.force = change.force;
            }
            Body::WorkerLost(lost) => {
                if lost.charged {
                    self.charged_losses = self.charged_losses.saturating_add(1);
                } else {
                    self.uncharged_losses = self.uncharged_losses.saturating_add(1);
                }
                self.close_asks();
                self.state = State::Lost;
            }
            Body::Requeued(requeued) => {
                if requeued.charged {
                    self.failures = self.failures.saturating_add(1);
                } else if matches!(self.state, State::Exited(_)) {
                    self.deferrals = self.deferrals.saturating_add(1);
                }
                self.state = State::Queued { not_before: requeued.not_before };
            }
            Body::Ended(ended) => {
                self.ended_at = Some(record.time);
                self.state =
                    State::Ended { outcome: ended.outcome, exit: ended.exit.clone(), error: ended.error.clone() };
            }
            Body::Expired(expired) => {
                self.close_asks();
                self.state = State::Exited(Exit::TimedOut(expired.limit));
            }
            Body::Retries(retries) => self.retry_of = Some(retries.task),
            Body::Checkpointed(_) => self.checkpoint = Checkpoint::of(record),
            Body::Progress(progress) => {
                self.progress.get_or_insert_default().take(progress);
            }
            Body::Asked(asked) => self.asks.push(OpenAsk { ask: asked.clone(), at: record.time, answer: None }),
            Body::Answered(answered) => {
                if let Some(open) = self.asks.iter_mut().find(|open| open.ask.id == answered.ask) {
                    open.answer = Some(answered.answer.clone());
                }
            }
            Body::AskClosed(closed) => {
                let open = self.asks.iter().position(|open| open.ask.id == closed.ask);
                if let Some(open) = open.map(|at| self.asks.remove(at)) {
                    self.remember(open);
                }
            }
            Body::Used(used) => self.usage = self.usage.and(used.usage),
            Body::Submitted(_)
            | Body::Output(_)
            | Body::Note(_)
            | Body::Truncated(_)
            | Body::Skipped(_)
            | Body::Unknown { .. } => {}
        }
    }

    /// Nobody is left who asks.
    fn close_asks(&mut self) {
        for open in std::mem::take(&mut self.asks) {
            self.remember(open);
        }
    }

    fn remember(&mut self, open: OpenAsk) {
        let Some(answer) = open.answer else { return };
        self.given.retain(|(digest, _)| *digest != open.ask.digest);
        self.given.push((open.ask.digest, answer));
        let surplus = self.given.len().saturating_sub(MAX_GIVEN);
        self.given.drain(..surplus);
    }

    /// Whether it waits for somebody's answer.
    pub fn is_waiting(&self) -> bool {
        self.state == State::Running && self.asks.iter().any(|open| open.answer.is_none())
    }

    /// Whether the time of no limit runs.
    fn stands(&self) -> bool {
        self.is_paused() || self.is_waiting()
    }

    /// When the first question is to be answered as it says itself, since nobody does.
    pub fn unanswered_at(&self) -> Option<(Timestamp, AskId)> {
        let waiting = self.is_waiting() && self.desired == Desired::Running;
        let open = self.asks.iter().filter(|_| waiting);
        open.filter_map(|open| Some((open.ends_at()?, open.ask.id))).min_by_key(|(at, _)| *at)
    }

    /// When a controller has to look at it, if nothing happens until then.
    pub fn due_at(&self) -> Option<Timestamp> {
        let limit = self.expires().map(|(at, _)| at);
        limit.into_iter().chain(self.unanswered_at().map(|(at, _)| at)).min()
    }

    /// Number of the current or next execution, from 1. Uncharged losses do not count.
    pub fn attempt(&self) -> u32 {
        self.failures.saturating_add(self.charged_losses).saturating_add(1)
    }

    /// Whether it is over.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// Whether a worker holds it.
    pub fn is_held(&self) -> bool {
        matches!(self.state, State::Starting | State::Running | State::Paused)
    }

    /// Whether it stands still because a user asked.
    pub fn is_paused(&self) -> bool {
        matches!((&self.state, self.desired), (State::Queued { .. }, Desired::Paused) | (State::Paused, _))
    }

    /// When the first limit is over that a controller measures, if nothing happens until then: the agent's own time is its
    /// worker's to measure while it runs.
    pub fn expires(&self) -> Option<(Timestamp, Limit)> {
        if self.is_paused() || self.desired == Desired::Cancelled {
            return None;
        }
        let total = || Some((self.total_ends()?, Limit::Total));
        let set_up = || Some((self.times.assigned_at?.after(self.spec.limit(Limit::SetUp)?), Limit::SetUp));
        match self.state {
            State::Queued { .. } => total(),
            State::Starting => total().into_iter().chain(set_up()).min_by_key(|(at, _)| *at),
            _ => None,
        }
    }

    /// When the time it may take as a whole is over, if it is not paused until then.
    pub fn total_ends(&self) -> Option<Timestamp> {
        Some(self.created_at.after(self.spec.limit(Limit::Total)?).after(self.times.paused_for))
    }

    /// The word people see: a queued task that shall be paused is paused.
    pub fn state_word(&self) -> &'static str {
        match &self.state {
            State::Queued { .. } if self.is_paused() => "paused",
            State::Paused => "paused",
            State::Queued { .. } | State::Lost => "queued",
            State::Starting => "starting",
            State::Running if self.is_waiting() => "waiting",
            State::Running | State::Exited(_) => "running",
            State::Ended { outcome: Outcome::Completed, .. } => "completed",
            State::Ended { outcome: Outcome::Failed, .. } => "failed",
            State::Ended { outcome: Outcome::Cancelled, .. } => "cancelled",
        }
    }
}
