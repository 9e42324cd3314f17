//! Tasks: submitting, finding, steering and following them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{Answer, Asked, Desired, Member, Outcome, Progress};
use crate::spec::{Exit, TaskSpec, Usage};
use crate::{AskId, CheckpointId, Epoch, GroupId, Namespace, Offset, Snapshot, TaskId, Timestamp, WorkerId};

/// Submits tasks: one, or the members of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// A label for people.
    pub name: Option<String>,
    /// At least one.
    pub specs: Vec<TaskSpec>,
    /// A task for every spec this often, at least once: spec by spec. More than one task make a group.
    pub copies: u32,
}

/// Answer to [`Submit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// In order of their index: copies of the first spec, copies of the second, ...
    pub tasks: Vec<TaskId>,
    /// The group, if there is more than one.
    pub group: Option<GroupId>,
    /// Workers that could take them now or when a slot is free. Zero: they wait.
    pub eligible_workers: u32,
}

/// Finds tasks by reference: one task, or all of a group in order of index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetTasks {
    /// An id, a prefix, a group id or a `--name`.
    pub reference: String,
}

/// Lists tasks, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTasks {
    /// Only these states (words of [`TaskInfo::state`]); empty means all.
    pub states: Vec<String>,
    /// Only tasks that fit all of these.
    pub only: TaskFilter,
    /// Only tasks older than this one: the cursor of the next page.
    pub before: Option<TaskId>,
    /// At most this many (capped at 1,000).
    pub limit: u32,
    /// Only tasks in the dead letter.
    pub dead: bool,
}

/// Which tasks are meant. What is `None` or empty fits all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFilter {
    /// Of this group: its id or the beginning of one.
    pub group: Option<String>,
    /// With this label (`--name`).
    pub name: Option<String>,
    /// Submitted by this owner: `role/name`, or the name alone.
    pub owner: Option<String>,
    /// For this agent.
    pub agent: Option<String>,
    /// For this pool.
    pub pool: Option<String>,
    /// Held, or last held, by this worker: its name or id.
    pub worker: Option<String>,
    /// Asking for workers with these labels.
    pub labels: BTreeMap<String, String>,
    /// Submitted at or after this instant.
    pub since: Option<Timestamp>,
}

/// Answer to [`ListTasks`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPage {
    /// Newest first. May be fewer than asked for, or none, though there are more: a controller looks at a bounded number
    /// of tasks for one answer.
    pub tasks: Vec<TaskInfo>,
    /// Go on with this as `before`; `None`: there are no more.
    pub next: Option<TaskId>,
}

/// What is known of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its id.
    pub id: TaskId,
    /// Where it lives.
    pub namespace: Namespace,
    /// Who submitted it.
    pub owner: String,
    /// Its label.
    pub name: Option<String>,
    /// Its group.
    pub group: Option<Member>,
    /// `queued`, `starting`, `running`, `paused`, `waiting`, `completed`, `failed`, `cancelled`.
    pub state: String,
    /// What somebody wants it to be.
    pub desired: Desired,
    /// What was asked.
    pub spec: TaskSpec,
    /// Who holds or last held it.
    pub worker: Option<WorkerId>,
    /// That worker's name.
    pub worker_name: Option<String>,
    /// Its current or last epoch.
    pub epoch: Epoch,
    /// Executions so far that count.
    pub attempt: u32,
    /// Losses of workers that do not count.
    pub losses: u32,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its agent first ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Not claimed before this instant.
    pub not_before: Timestamp,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// How its process ended.
    pub exit: Option<Exit>,
    /// What went wrong.
    pub error: Option<String>,
    /// Length of its log.
    pub next_offset: Offset,
    /// How far the current or last attempt says it is.
    pub progress: Option<Progress>,
    /// Where the next attempt would go on from.
    pub checkpoint: Option<CheckpointInfo>,
    /// One sentence: why it is where it is, and what to do.
    pub reason: Option<String>,
    /// The task that it does again.
    pub retry_of: Option<TaskId>,
    /// What became of it after it had failed for good; `None` of a failed task: it is in the dead letter.
    pub settled: Option<Settled>,
    /// What it asks and nobody has answered, oldest first.
    pub asks: Vec<Asked>,
    /// What its AI agent has used, over all attempts.
    pub usage: Usage,
}

/// Answers a question of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveAnswer {
    /// An id, a prefix or a name of one task.
    pub reference: String,
    /// Which question; `None`: the only one that is open.
    pub ask: Option<AskId>,
    /// What. Its choice may be in words that [`Asked::choice`] takes.
    pub answer: Answer,
}

/// Answer to [`GiveAnswer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerGiven {
    /// The task.
    pub task: TaskId,
    /// The question that was answered.
    pub ask: AskId,
    /// What its agent is told.
    pub answer: Answer,
    /// Why nothing changed (`already answered`), if so.
    pub unchanged: Option<String>,
}

/// What was done about a task in the dead letter. Its log has ended and stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settled {
    /// This task does it again.
    Retried(TaskId),
    /// It was taken out.
    Purged,
}

/// Which tasks of the dead letter are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeadOnes {
    /// Those that a reference means: an id, a prefix, a name or a group id.
    Named(String),
    /// All that fit, newest first; a bounded number at once.
    All {
        /// What they fit.
        only: TaskFilter,
        /// Only those that ended at least so long ago, milliseconds.
        ended_for_ms: u64,
        /// Only those older than this one: the cursor of the next page. What is done again is younger than all of them.
        before: Option<TaskId>,
    },
}

/// Does tasks of the dead letter again: each as a new task, which names the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryDead {
    /// Which.
    pub which: DeadOnes,
    /// From the beginning; otherwise from the last checkpoint.
    pub fresh: bool,
}

/// Takes tasks out of the dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeDead {
    /// Which.
    pub which: DeadOnes,
}

/// Answer to [`RetryDead`] and [`PurgeDead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledDead {
    /// What became of each.
    pub tasks: Vec<SettledTask>,
    /// Go on with this as `before`; `None`: there are no more.
    pub next: Option<TaskId>,
}

/// See [`SettledDead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledTask {
    /// The task in the dead letter.
    pub task: TaskId,
    /// What was done, now or before.
    pub settled: Option<Settled>,
    /// Why nothing was done (`completed`, `already purged`), if so.
    pub unchanged: Option<String>,
}

/// A checkpoint of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Its id.
    pub id: CheckpointId,
    /// Its place in the log.
    pub offset: Offset,
    /// JSON text; `None` when it was left out of a long list.
    pub data: Option<String>,
    /// What the task's folder held, if that is a part of it.
    pub snapshot: Option<Snapshot>,
}

/// Asks for another state of a task or of all tasks of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDesired {
    /// An id, a prefix or a group id.
    pub reference: String,
    /// What is wanted.
    pub desired: Desired,
    /// With [`Desired::Cancelled`]: kill at once.
    pub force: bool,
}

/// Answer to [`SetDesired`], one a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSet {
    /// The task.
    pub task: TaskId,
    /// Its state after the request.
    pub state: String,
    /// Why nothing changed (`already completed`), if so.
    pub unchanged: Option<String>,
}

/// Where a viewer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAt {
    /// At this offset.
    Offset(Offset),
    /// This many lines of output before the end.
    Tail(u32),
    /// At the first record committed at or after this instant.
    Since(Timestamp),
}

/// Reads a log from a position and, if asked, stays for more. Answered by frames of
/// [`crate::session::FollowItem`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The task.
    pub task: TaskId,
    /// Where to begin.
    pub from: StartAt,
    /// Stay after the last record until the task ends.
    pub follow: bool,
    /// Runs of output come as one [`crate::record::Skipped`] each; one that lasts comes in several pieces.
    pub without_output: bool,
    /// The generation a cursor belongs to; another one is answered `LogReset`.
    pub generation: Option<u64>,
}

/// Answer to [`Follow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// Where reading begins.
    pub from: Offset,
    /// Bytes of the first output record that come before the lines asked for ([`StartAt::Tail`]).
    pub skip: u32,
    /// Generation of the log.
    pub generation: u64,
}

/// Ends viewers of tasks; the tasks go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// An id, a prefix, a name or a group id.
    pub reference: String,
    /// Everybody's viewers, not only the caller's: for administrators.
    pub all: bool,
}

/// Answer to [`Detach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedViewers {
    /// Viewers that were told to leave.
    pub viewers: u32,
}
