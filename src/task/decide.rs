//! Commands into records: the conflict table.

use std::time::Duration;

use ado_proto::record::{
    Answer, Answered, AskKind, Asked, Assigned, Body, Desired, DesiredChanged, Ended, Expired, FIRST_BULK_KIND, Loss,
    MAX_ANSWER, MAX_ASKS, Outcome, Record, Requeued, Submitted, WorkerLost,
};
use ado_proto::request::Settled;
use ado_proto::spec::{Exit, Limit, Resource, TaskSpec, span};
use ado_proto::{AskId, Epoch, Origin, Seq, TaskId, Timestamp};

use super::{FoldError, Holder, Policy, State, Task, backoff};

/// Most bytes of a worker's own words in the records that conclude an attempt. Its `Exited` record has all of them.
const MAX_ERROR: usize = 4096;

/// Longest wait that somebody may ask for because something is away.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// First wait after a task lost a worker for the second time.
const LOSS_BASE: Duration = Duration::from_millis(100);
/// Longest of these waits.
const LOSS_CAP: Duration = Duration::from_secs(5);

/// What somebody wants done to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A worker takes it.
    Claim {
        /// Who.
        worker: Holder,
    },
    /// The worker that holds the epoch reports what happened.
    Append {
        /// Its assignment.
        epoch: Epoch,
        /// Seq of the first body.
        first: Seq,
        /// What happened, in order.
        bodies: Vec<Body>,
    },
    /// Somebody answers a question.
    Answer {
        /// Which; `None`: the only one that is open.
        ask: Option<AskId>,
        /// What, its choice in words of [`Asked::choice`].
        answer: Answer,
        /// Who, as `role/name`.
        by: String,
    },
    /// A user wants another state.
    Desire {
        /// Which.
        desired: Desired,
        /// Who, as `role/name`.
        by: String,
        /// With [`Desired::Cancelled`]: kill at once.
        force: bool,
    },
    /// The worker that holds the epoch is given up.
    Lose {
        /// The epoch that ends.
        epoch: Epoch,
        /// Why.
        why: Loss,
        /// Whether it counts against the task.
        charged: bool,
    },
    /// A limit of time is over; see [`Task::expires`].
    Expire,
}

/// Why a command changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It speaks for an epoch that is over.
    #[error("epoch {given} is over, the current one is {current}")]
    Stale {
        /// The command's.
        given: Epoch,
        /// The task's.
        current: Epoch,
    },
    /// It skips records: the log's next seq is another.
    #[error("the next seq of the epoch is {expected}")]
    Gap {
        /// What is due.
        expected: Seq,
    },
    /// Everything in it is in the log already.
    #[error("already in the log")]
    Known,
    /// A worker may not write such a record, or not now.
    #[error("a worker may not report `{0}` here")]
    Misplaced(&'static str),
    /// It is not queued, not due, or shall not run.
    #[error("not claimable")]
    NotClaimable,
    /// It is over.
    #[error("already {}", outcome_word(*.0))]
    Already(Outcome),
    /// It is wanted so already.
    #[error("already asked for")]
    Unchanged,
    /// A cancelled task cannot be wanted otherwise.
    #[error("being cancelled")]
    Cancelling,
    /// No limit of time is over.
    #[error("no limit of its time is over")]
    NotExpired,
    /// It has not ended.
    #[error("not over yet")]
    NotOver,
    /// It asks nothing, or not that.
    #[error("it does not ask that")]
    NotAsked,
    /// Another answer came before.
    #[error("already answered")]
    Answered,
    /// It asks several things.
    #[error("it asks {0} things: say which one is answered")]
    SeveralAsked(usize),
    /// The question does not have such an answer.
    #[error("{0}")]
    NoAnswer(String),
    /// It has been taken out of the dead letter.
    #[error("{}", settled_words(*.0))]
    Settled(Settled),
    /// The log is not what it should be.
    #[error(transparent)]
    Fold(#[from] FoldError),
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

fn settled_words(settled: Settled) -> String {
    match settled {
        Settled::Retried(task) => format!("already done again as {}", task.short()),
        Settled::Purged => "already purged".into(),
    }
}

/// The records a command leads to, and their fold.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The task after the records.
    pub task: Task,
    /// With their offsets; at least one.
    pub records: Vec<Record>,
}

impl Decision {
    fn from(task: &Task) -> Self {
        Self { task: task.clone(), records: Vec::new() }
    }

    fn push(&mut self, origin: Origin, now: Timestamp, body: impl Into<Body>) -> Result<(), Refusal> {
        let record = Record { offset: self.task.next_offset, origin, time: now, body: body.into() };
        self.task.apply(&record)?;
        self.records.push(record);
        Ok(())
    }

    pub(super) fn own(&mut self, now: Timestamp, body: impl Into<Body>) -> Result<(), Refusal> {
        self.push(Origin::Controller, now, body)
    }
}

/// A new task and its first record.
pub fn submit(id: TaskId, submitted: Submitted, now: Timestamp) -> Decision {
    let record = Record { offset: ado_proto::Offset(0), origin: Origin::Controller, time: now, body: submitted.into() };
    let task = Task::begin(id, &record).expect("the record is `Submitted` at offset 0");
    Decision { task, records: vec![record] }
}

/// What a command does to a task. `jitter` is uniform in `[0, 1)`.
///
/// # Errors
/// [`Refusal`] when it changes nothing.
pub fn decide(
    task: &Task,
    command: Command,
    now: Timestamp,
    policy: &Policy,
    jitter: f64,
) -> Result<Decision, Refusal> {
    match command {
        Command::Claim { worker } => claim(task, worker, now),
        Command::Append { epoch, first, bodies } => append(task, epoch, first, bodies, now, policy, jitter),
        Command::Answer { ask, answer, by } => give(task, ask, answer, by, now),
        Command::Desire { desired, by, force } => desire(task, desired, by, force, now),
        Command::Lose { epoch, why, charged } => lose(task, epoch, why, charged, now, policy),
        Command::Expire => expire(task, now, policy, jitter),
    }
}

fn claim(task: &Task, worker: Holder, now: Timestamp) -> Result<Decision, Refusal> {
    match task.state {
        State::Queued { not_before } if not_before <= now && task.desired == Desired::Running => {}
        _ => return Err(Refusal::NotClaimable),
    }
    let mut decision = Decision::from(task);
    let assigned = Assigned {
        worker: worker.id,
        worker_name: worker.name,
        epoch: task.epoch.next(),
        attempt: task.attempt(),
        resumes: task.checkpoint.as_ref().map(|checkpoint| checkpoint.offset),
    };
    decision.own(now, assigned)?;
    Ok(decision)
}

/// Only the holder of the current epoch speaks for a task. Returns the holder.
fn fence(task: &Task, epoch: Epoch) -> Result<&Holder, Refusal> {
    match &task.worker {
        Some(holder) if task.is_held() && task.epoch == epoch => Ok(holder),
        _ => Err(Refusal::Stale { given: epoch, current: task.epoch }),
    }
}

fn append(
    task: &Task,
    epoch: Epoch,
    first: Seq,
    bodies: Vec<Body>,
    now: Timestamp,
    policy: &Policy,
    jitter: f64,
) -> Result<Decision, Refusal> {
    // The worker's last words may be repeated after they ended the epoch: an answer got lost.
    if task.epoch == epoch && first.0.saturating_add(bodies.len() as u64) <= task.next_seq.0 {
        return Err(Refusal::Known);
    }
    fence(task, epoch)?;
    if first > task.next_seq {
        return Err(Refusal::Gap { expected: task.next_seq });
    }
    let known = usize::try_from(task.next_seq.0 - first.0).unwrap_or(usize::MAX);
    let mut decision = Decision::from(task);
    for body in bodies.into_iter().skip(known) {
        check_placed(&decision.task, &body)?;
        let origin = Origin::Worker { epoch, seq: decision.task.next_seq };
        decision.push(origin, now, body)?;
    }
    if let State::Exited(exit) = decision.task.state.clone() {
        conclude(&mut decision, exit, now, policy, jitter)?;
    }
    Ok(decision)
}

/// What a worker may report of the attempt it holds. Everything else is the controller's to write.
fn check_placed(task: &Task, body: &Body) -> Result<(), Refusal> {
    let (placed, what) = match body {
        Body::Started(_) => (!task.agent_started, "started"),
        Body::Paused(_) => (task.state != State::Paused, "paused"),
        Body::Resumed(_) => (task.state == State::Paused, "resumed"),
        Body::Exited(_) => (true, "exited"),
        Body::Output(_) | Body::Note(_) | Body::Progress(_) => (true, "output"),
        // Nobody could be asked to go on from before the agent was there, nor from what is another task's.
        Body::Checkpointed(made) => {
            let is_own = made.snapshot.is_none_or(|snapshot| snapshot.home == task.id);
            (task.agent_started && is_own, "checkpoint")
        }
        Body::Asked(asked) => {
            let is_new = task.asks.iter().all(|open| open.ask.id != asked.id);
            (task.agent_started && is_new && task.asks.len() < MAX_ASKS, "asked")
        }
        Body::AskClosed(_) | Body::Used(_) => (true, "used"),
        // Bulk a newer worker knows and we do not. An unknown lifecycle record could change what a task is.
        Body::Unknown { kind, .. } if *kind >= FIRST_BULK_KIND => (true, "output"),
        _ => (false, "a controller's record"),
    };
    // Not held any more: `Exited` came earlier in the same list.
    if placed && task.is_held() { Ok(()) } else { Err(Refusal::Misplaced(what)) }
}

/// The agent's process has ended: what now?
fn conclude(
    decision: &mut Decision,
    mut exit: Exit,
    now: Timestamp,
    policy: &Policy,
    jitter: f64,
) -> Result<(), Refusal> {
    shorten(&mut exit);
    let task = &decision.task;
    if task.desired == Desired::Cancelled {
        return decision.own(now, Ended { outcome: Outcome::Cancelled, exit: Some(exit), error: None });
    }
    if exit.is_success() {
        return decision.own(now, Ended { outcome: Outcome::Completed, exit: Some(exit), error: None });
    }
    let error = describe(&exit, &task.spec);
    if let Exit::Unavailable { retry_after_ms, .. } = &exit {
        // Nobody's attempt: what it needs is away. It comes back later each time, and not before it is said to be of use.
        let wait = backoff(policy.backoff_base, policy.backoff_cap, task.deferrals, jitter);
        let wait = wait.max(Duration::from_millis(retry_after_ms.unwrap_or(0)).min(MAX_RETRY_AFTER));
        return decision.own(now, Requeued { not_before: now.after(wait), charged: false, why: error });
    }
    let hopeless = match &exit {
        Exit::NotStarted { permanent, .. } => *permanent,
        Exit::TimedOut(limit) => !limit.is_retryable(),
        Exit::Hopeless { .. } => true,
        _ => false,
    };
    // What its worker could not do is no answer of the agent's: it is tried again as often as after a worker's death.
    let retries = match exit {
        Exit::Lost { .. } | Exit::NotStarted { .. } => {
            task.spec.max_retries.max(policy.max_charged_losses.saturating_sub(1))
        }
        _ => task.spec.max_retries,
    };
    if hopeless || task.failures >= retries {
        return decision.own(now, Ended { outcome: Outcome::Failed, exit: Some(exit), error: Some(error) });
    }
    let wait = backoff(policy.backoff_base, policy.backoff_cap, task.failures, jitter);
    decision.own(now, Requeued { not_before: now.after(wait), charged: true, why: error })
}

/// Keeps a worker's words to a length that is fit for a row, and for a record that holds them twice.
fn shorten(exit: &mut Exit) {
    if let Exit::NotStarted { error, .. }
    | Exit::Lost { error }
    | Exit::Unavailable { what: error, .. }
    | Exit::Hopeless { error, .. }
    | Exit::Failed { error } = exit
        && error.len() > MAX_ERROR
    {
        error.truncate(error.floor_char_boundary(MAX_ERROR));
        error.push('…');
    }
}

fn describe(exit: &Exit, spec: &TaskSpec) -> String {
    match exit {
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal(signal) => format!("killed by signal {signal}"),
        Exit::TimedOut(limit) => {
            let long = spec.limit(*limit).map_or_else(|| "its limit".into(), span);
            match limit {
                Limit::Attempt => format!("timed out: ran for {long}"),
                Limit::SetUp => format!("timed out: not started within {long}"),
                Limit::Silence => format!("timed out: silent for {long}"),
                Limit::Total => format!("timed out: not over within {long} of its submission"),
            }
        }
        Exit::Cancelled => "was stopped".into(),
        Exit::NotStarted { error, .. } => format!("could not be started: {error}"),
        Exit::Lost { error } => format!("its worker lost hold of it: {error}"),
        Exit::Unavailable { what, .. } => format!("not available: {what}"),
        Exit::Hopeless { error, .. } | Exit::Failed { error } => error.clone(),
        Exit::OutOfMemory { limit } => {
            format!("killed: it used more than its {} of memory", Resource::Memory.amount(*limit))
        }
    }
}

fn desire(task: &Task, desired: Desired, by: String, force: bool, now: Timestamp) -> Result<Decision, Refusal> {
    if let State::Ended { outcome, .. } = task.state {
        return Err(Refusal::Already(outcome));
    }
    let harder = desired == Desired::Cancelled && force && !task.force;
    if task.desired == desired && !harder {
        return Err(Refusal::Unchanged);
    }
    if task.desired == Desired::Cancelled && desired != Desired::Cancelled {
        return Err(Refusal::Cancelling);
    }
    let mut decision = Decision::from(task);
    let force = force && desired == Desired::Cancelled;
    decision.own(now, DesiredChanged { desired, generation: task.generation + 1, by, force })?;
    if desired == Desired::Cancelled && matches!(task.state, State::Queued { .. }) {
        decision.own(now, Ended { outcome: Outcome::Cancelled, exit: None, error: None })?;
    }
    Ok(decision)
}

fn lose(
    task: &Task,
    epoch: Epoch,
    why: Loss,
    charged: bool,
    now: Timestamp,
    policy: &Policy,
) -> Result<Decision, Refusal> {
    let worker = fence(task, epoch)?.id;
    // The first loss costs no time. One after the other shows that something is wrong.
    let earlier = task.charged_losses.saturating_add(task.uncharged_losses);
    let wait = earlier.checked_sub(1).map_or(Duration::ZERO, |more| backoff(LOSS_BASE, LOSS_CAP, more, 1.0));
    let mut decision = Decision::from(task);
    decision.own(now, WorkerLost { worker, epoch, why, charged })?;
    let task = &decision.task;
    if task.desired == Desired::Cancelled {
        decision.own(now, Ended { outcome: Outcome::Cancelled, exit: None, error: None })?;
    } else if task.charged_losses >= policy.max_charged_losses {
        let error = format!("{} workers died while running only this task", task.charged_losses);
        decision.own(now, Ended { outcome: Outcome::Failed, exit: None, error: Some(error) })?;
    } else {
        let why = match why {
            Loss::Silent => "its worker went silent",
            Loss::Restarted => "its worker died and came back",
            Loss::NotDelivered => "its worker never started it",
            Loss::HandedBack => "its worker is shutting down",
        };
        decision.own(now, Requeued { not_before: now.after(wait), charged: false, why: why.into() })?;
    }
    Ok(decision)
}

/// One answer is accepted; whoever comes later is told so.
fn give(task: &Task, ask: Option<AskId>, answer: Answer, by: String, now: Timestamp) -> Result<Decision, Refusal> {
    if let State::Ended { outcome, .. } = task.state {
        return Err(Refusal::Already(outcome));
    }
    let unanswered = || task.asks.iter().filter(|open| open.answer.is_none());
    let open = match (ask, unanswered().count()) {
        (Some(id), _) => task.asks.iter().find(|open| open.ask.id == id).ok_or(Refusal::NotAsked)?,
        (None, 0) if task.asks.is_empty() => return Err(Refusal::NotAsked),
        (None, 0) => return Err(Refusal::Answered),
        (None, 1) => unanswered().next().ok_or(Refusal::NotAsked)?,
        (None, several) => return Err(Refusal::SeveralAsked(several)),
    };
    if open.answer.is_some() {
        return Err(Refusal::Answered);
    }
    let answer = understood(&open.ask, answer)?;
    let mut decision = Decision::from(task);
    decision.own(now, Answered { ask: open.ask.id, answer, by: Some(by) })?;
    Ok(decision)
}

/// The answer as the question has it.
fn understood(asked: &Asked, answer: Answer) -> Result<Answer, Refusal> {
    let listed = || asked.choices.iter().map(|choice| choice.id.as_str()).collect::<Vec<_>>().join(", ");
    if answer.text.as_ref().is_some_and(|text| text.len() > MAX_ANSWER) {
        return Err(Refusal::NoAnswer(format!("an answer in words has at most {MAX_ANSWER} bytes")));
    }
    match &answer.choice {
        Some(words) => match asked.choice(words) {
            Some(choice) => Ok(Answer { choice: Some(choice.id.clone()), text: answer.text }),
            // A question is answered in words as well; a permission is not given, or refused, by a slip of the pen.
            None if asked.kind == AskKind::Question
                && asked.free_text
                && answer.text.is_none()
                && words.len() <= MAX_ANSWER =>
            {
                Ok(Answer { choice: None, text: answer.choice })
            }
            None => Err(Refusal::NoAnswer(format!("`{words}` is no answer to it: these are {}", listed()))),
        },
        None if answer.text.is_some() && asked.free_text => Ok(answer),
        None => Err(Refusal::NoAnswer(format!("it wants one of its answers: {}", listed()))),
    }
}

/// Nobody answered in time.
fn give_up_waiting(task: &Task, ask: AskId, now: Timestamp) -> Result<Decision, Refusal> {
    let open = task.asks.iter().find(|open| open.ask.id == ask).ok_or(Refusal::NotAsked)?;
    let answer = Answer { choice: open.ask.default.clone(), text: None };
    let mut decision = Decision::from(task);
    decision.own(now, Answered { ask, answer, by: None })?;
    Ok(decision)
}

/// The controller's own limits. Whoever holds the task holds it no more.
fn expire(task: &Task, now: Timestamp, policy: &Policy, jitter: f64) -> Result<Decision, Refusal> {
    if let Some((_, ask)) = task.unanswered_at().filter(|(at, _)| *at <= now) {
        return give_up_waiting(task, ask, now);
    }
    let Some((_, limit)) = task.expires().filter(|(at, _)| *at <= now) else { return Err(Refusal::NotExpired) };
    let mut decision = Decision::from(task);
    decision.own(now, Expired { limit })?;
    conclude(&mut decision, Exit::TimedOut(limit), now, policy, jitter)?;
    Ok(decision)
}
