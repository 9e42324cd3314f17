//! A task's row as a database keeps it: the log's first record, which holds all that never changes, and the fold of the
//! others, which is small and rewritten by every append. The columns beside them are derived, for indexes.

use std::borrow::Cow;

use ado_proto::record::{Answer, Body, Desired, Progress};
use ado_proto::spec::Usage;
use ado_proto::{AskDigest, Epoch, Offset, Seq, TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Error, Lease, Result, Row, log, score};
use crate::task::{Asked, Checkpoint, Holder, OpenAsk, Settled, State, Task, Times};

/// First byte of a stored fold; the rest is the fold in postcard form. Another form gets another byte.
const FOLD: u8 = 1;

/// The columns that are derived from a row and may change, as far as indexes need them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) state: &'static str,
    pub(super) ended_at: Option<Timestamp>,
    pub(super) score: Option<i64>,
    pub(super) lease: Option<Lease>,
    pub(super) checkpoint: Option<Offset>,
    /// When a limit of time is over that a controller measures.
    pub(super) due_at: Option<Timestamp>,
    /// See [`settled`].
    pub(super) settled: Option<Uuid>,
}

impl Columns {
    pub(super) fn of(row: &Row) -> Self {
        let task = &row.task;
        let score = match task.state {
            State::Queued { not_before } if task.desired == Desired::Running => {
                Some(score(not_before, task.spec.priority))
            }
            _ => None,
        };
        Self {
            state: task.state_word(),
            ended_at: task.ended_at,
            score,
            lease: row.lease.clone(),
            checkpoint: task.checkpoint.as_ref().map(|checkpoint| checkpoint.offset),
            due_at: task.due_at(),
            settled: row.settled.map(|settled| match settled {
                Settled::Retried(task) => task.0,
                Settled::Purged => Uuid::nil(),
            }),
        }
    }
}

/// What a column says that names the task which does this one again; nobody has the nil id.
pub(super) fn settled(column: Option<Uuid>) -> Option<Settled> {
    column.map(|id| if id.is_nil() { Settled::Purged } else { Settled::Retried(TaskId(id)) })
}

/// A short id without `task-` or `group-`.
pub(super) fn tail(short: String) -> String {
    short.rsplit_once('-').map(|(_, tail)| tail.to_owned()).unwrap_or(short)
}

/// What a database holds of a task.
pub(super) struct Parts<'a> {
    pub(super) id: TaskId,
    pub(super) next_offset: Offset,
    pub(super) fold: &'a [u8],
    /// The record at offset 0.
    pub(super) first: Vec<u8>,
    /// The record of the newest checkpoint.
    pub(super) checkpoint: Option<Vec<u8>>,
}

/// The task of a row.
pub(super) fn decode(parts: Parts<'_>) -> Result<Task> {
    let fold = read(parts.fold)?;
    let first = log::decode_one(parts.first)?;
    let (Body::Submitted(submitted), created_at) = (first.body, first.time) else {
        return Err(Error::Damaged(format!("the log of {} begins with something else", parts.id)));
    };
    Ok(Task {
        id: parts.id,
        namespace: submitted.namespace,
        owner: submitted.owner,
        name: submitted.name,
        group: submitted.group,
        spec: submitted.spec,
        state: fold.state.into_owned(),
        desired: fold.desired,
        asked: fold.asked.into_owned(),
        generation: fold.generation,
        force: fold.force,
        epoch: fold.epoch,
        failures: fold.failures,
        charged_losses: fold.charged_losses,
        uncharged_losses: fold.uncharged_losses,
        worker: fold.worker.into_owned(),
        progress: fold.progress.into_owned(),
        checkpoint: parts.checkpoint.map(checkpoint).transpose()?,
        next_offset: parts.next_offset,
        next_seq: fold.next_seq,
        agent_started: fold.agent_started,
        created_at,
        started_at: fold.started_at,
        ended_at: fold.ended_at,
        retry_of: fold.retry_of,
        deferrals: fold.deferrals,
        times: fold.times,
        asks: fold.asks.into_owned(),
        given: fold.given.into_owned(),
        usage: fold.usage,
    })
}

fn checkpoint(record: Vec<u8>) -> Result<Checkpoint> {
    let record = log::decode_one(record)?;
    Checkpoint::of(&record).ok_or_else(|| Error::Damaged(format!("record {} is no checkpoint", record.offset)))
}

/// The part of a task that records after the first may change. Without the log's length and the checkpoint's offset, which
/// are columns.
#[derive(Serialize, Deserialize)]
struct Fold<'a> {
    state: Cow<'a, State>,
    desired: Desired,
    asked: Cow<'a, Option<Asked>>,
    generation: u64,
    force: bool,
    epoch: Epoch,
    failures: u32,
    charged_losses: u32,
    uncharged_losses: u32,
    worker: Cow<'a, Option<Holder>>,
    progress: Cow<'a, Option<Progress>>,
    next_seq: Seq,
    agent_started: bool,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    retry_of: Option<TaskId>,
    deferrals: u32,
    times: Times,
    asks: Cow<'a, [OpenAsk]>,
    given: Cow<'a, [(AskDigest, Answer)]>,
    usage: Usage,
}

/// The fold of a task as stored.
pub(super) fn encode(task: &Task) -> Vec<u8> {
    let fold = Fold {
        state: Cow::Borrowed(&task.state),
        desired: task.desired,
        asked: Cow::Borrowed(&task.asked),
        generation: task.generation,
        force: task.force,
        epoch: task.epoch,
        failures: task.failures,
        charged_losses: task.charged_losses,
        uncharged_losses: task.uncharged_losses,
        worker: Cow::Borrowed(&task.worker),
        progress: Cow::Borrowed(&task.progress),
        next_seq: task.next_seq,
        agent_started: task.agent_started,
        started_at: task.started_at,
        ended_at: task.ended_at,
        retry_of: task.retry_of,
        deferrals: task.deferrals,
        times: task.times,
        asks: Cow::Borrowed(&task.asks),
        given: Cow::Borrowed(&task.given),
        usage: task.usage,
    };
    postcard::to_extend(&fold, vec![FOLD]).expect("serialising to memory cannot fail")
}

fn read(bytes: &[u8]) -> Result<Fold<'static>> {
    match bytes {
        [FOLD, bytes @ ..] => {
            postcard::from_bytes(bytes).map_err(|error| Error::Damaged(format!("a task's row: {error}")))
        }
        _ => Err(Error::Damaged("a task's row has an unknown form".into())),
    }
}
