//! Records: the entries of a task's log.
//!
//! On the wire and in a store's chunk a record is its header in postcard form (frozen for ever) and then the body's
//! bytes. Records are laid end to end; [`Reader`] walks them.

use std::ops::Range;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

use crate::payload::{Payload, payloads, postcard_payload, to_postcard};
use crate::spec::{Containment, Exit, Limit, TaskSpec, Usage};
use crate::{
    AskDigest, AskId, CheckpointId, DecodeError, Epoch, GroupId, Namespace, Offset, Seq, Snapshot, TaskId, Timestamp,
    WorkerId,
};

/// Longest body of one record, bytes. Output records are at most [`MAX_OUTPUT`].
pub const MAX_BODY: usize = 256 * 1024;
/// Kinds of record from this one are bulk: output and the like. Those below are lifecycle, which is never truncated.
pub const FIRST_BULK_KIND: u16 = 100;
/// Most bytes of output in one record.
pub const MAX_OUTPUT: usize = 32 * 1024;
/// Most bytes of the JSON text in one checkpoint. It reaches the next attempt in a variable of its environment, and Linux
/// takes 128 KiB for one (`MAX_ARG_STRLEN`, execve(2)).
pub const MAX_CHECKPOINT: usize = 64 * 1024;
/// Most bytes of a task's own words about itself: the message of its progress, a note.
pub const MAX_MESSAGE: usize = 4 * 1024;
/// Most questions of one task that wait at the same time. They stand in its row.
pub const MAX_ASKS: usize = 16;
/// Most answers to choose from. More than a person reads.
pub const MAX_CHOICES: usize = 16;
/// Most bytes of a choice's id, of its label, and of an answer in words.
pub const MAX_ANSWER: usize = 1024;

/// Who wrote a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A controller.
    Controller,
    /// The worker that held this epoch; `seq` is dense in the epoch.
    Worker {
        /// The assignment.
        epoch: Epoch,
        /// Position in the epoch.
        seq: Seq,
    },
}

/// One entry of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Position in the log. Zero in records a worker has not yet had appended.
    pub offset: Offset,
    /// Who wrote it.
    pub origin: Origin,
    /// When it was committed, on the store's clock; the worker's clock before that.
    pub time: Timestamp,
    /// What happened.
    pub body: Body,
}

#[derive(Serialize, Deserialize)]
struct Header {
    kind: u16,
    version: u8,
    offset: u64,
    origin: Origin,
    time: i64,
    len: u32,
}

impl Record {
    /// Appends the record to `out`. Its body must not be longer than [`MAX_BODY`]: nobody could read it again.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let bulk = self.body.encode_body_head(&mut body);
        let len = body.len() + bulk.len();
        debug_assert!(len <= MAX_BODY, "a body of {len} bytes");
        let (kind, version) = self.body.kind();
        let header = Header {
            kind,
            version,
            offset: self.offset.0,
            origin: self.origin,
            time: self.time.0,
            len: u32::try_from(len).expect("a body is at most MAX_BODY long"),
        };
        to_postcard(&header, out);
        out.reserve(len);
        out.extend_from_slice(&body);
        out.extend_from_slice(&bulk);
    }

    /// The offsets it stands for: its own, or those of the records in whose place it is.
    pub fn span(&self) -> Range<Offset> {
        match &self.body {
            Body::Truncated(gap) => gap.from..gap.to,
            Body::Skipped(run) => run.from..run.to,
            _ => self.offset..self.offset.next(),
        }
    }

    /// Bytes this record takes in memory and on the wire, about.
    pub fn weight(&self) -> usize {
        48 + match &self.body {
            Body::Output(output) => output.data.len(),
            Body::Checkpointed(checkpoint) => checkpoint.data.len(),
            Body::Unknown { bytes, .. } => bytes.len(),
            _ => 256,
        }
    }
}

/// Encodes `records` end to end.
pub fn encode_all<'a>(records: impl IntoIterator<Item = &'a Record, IntoIter: Clone>) -> Bytes {
    let records = records.into_iter();
    let mut out = Vec::with_capacity(records.clone().map(Record::weight).sum());
    for record in records {
        record.encode(&mut out);
    }
    out.into()
}

/// Walks records laid end to end. Output data is a slice of the input: nothing is copied.
#[derive(Debug, Clone)]
pub struct Reader(Bytes);

impl Reader {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    fn read(&mut self) -> Result<Record, DecodeError> {
        const WHAT: &str = "record header";
        let (header, rest) =
            postcard::take_from_bytes::<Header>(&self.0).map_err(|_| DecodeError::Malformed { what: WHAT })?;
        let len = header.len as usize;
        if len > MAX_BODY || len > rest.len() {
            return Err(DecodeError::Malformed { what: WHAT });
        }
        let skip = self.0.len() - rest.len();
        self.0.advance(skip);
        let body = self.0.split_to(len);
        Ok(Record {
            offset: Offset(header.offset),
            origin: header.origin,
            time: Timestamp(header.time),
            body: Body::decode_body(header.kind, header.version, &body)?,
        })
    }
}

impl Iterator for Reader {
    type Item = Result<Record, DecodeError>;

    /// After an error the walk ends: what follows cannot be found.
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.0.clear();
        }
        Some(read)
    }
}

/// Reads all records of `bytes`.
pub fn decode_all(bytes: Bytes) -> Result<Vec<Record>, DecodeError> {
    Reader::new(bytes).collect()
}

payloads! {
    /// What happened to a task. Kinds below 100 are lifecycle (never truncated), from 100 bulk.
    pub enum Body {
        /// The task exists. Always at offset 0.
        1 / 1 => Submitted(Box<Submitted>),
        /// A worker holds the task under a new epoch.
        2 / 1 => Assigned(Assigned),
        /// The agent's process runs.
        3 / 1 => Started(Started),
        /// The agent's process ended, and nothing of it is left.
        4 / 1 => Exited(Exited),
        /// Somebody asked for another state.
        5 / 1 => DesiredChanged(DesiredChanged),
        /// The agent is frozen because a user asked.
        6 / 1 => Paused(Paused),
        /// The agent runs again.
        7 / 1 => Resumed(Resumed),
        /// The worker was given up; its epoch is over.
        8 / 1 => WorkerLost(WorkerLost),
        /// The task goes back to the queue.
        9 / 1 => Requeued(Requeued),
        /// The task is over. Always the last record.
        10 / 1 => Ended(Ended),
        /// Records that are no longer kept; made up on reading, never stored.
        11 / 1 => Truncated(Truncated),
        /// Something people should know.
        12 / 1 => Note(Note),
        /// The task can go on from here, on another worker too.
        13 / 1 => Checkpointed(Checkpointed),
        /// Output that the reader did not ask for; made up on reading, never stored.
        14 / 1 => Skipped(Skipped),
        /// The agent asks somebody something, and waits.
        15 / 1 => Asked(Asked),
        /// Somebody answered; nobody else can any more.
        16 / 1 => Answered(Answered),
        /// A question is no longer open: the agent has its answer, or wants none.
        17 / 1 => AskClosed(AskClosed),
        /// What the agent of this epoch has used.
        18 / 1 => Used(Used),
        /// A limit of time is over that the controller measures; so is the epoch, if a worker holds one.
        20 / 1 => Expired(Expired),
        /// The task does another again that had failed for good.
        21 / 1 => Retries(Retries),
        /// One read of the agent's stdout or stderr.
        100 / 1 => Output(Output),
        /// How far the task says it is.
        101 / 1 => Progress(Progress),
    }
}

impl Body {
    /// Whether a record of this can be read again once written: it is within [`MAX_BODY`] and [`MAX_OUTPUT`].
    pub fn is_readable(&self) -> bool {
        match self {
            Self::Output(output) => output.data.len() <= MAX_OUTPUT,
            Self::Progress(progress) => {
                progress.percent.is_none_or(|percent| percent <= 100)
                    && progress.message.as_ref().is_none_or(|message| message.len() <= MAX_MESSAGE)
            }
            Self::Checkpointed(checkpoint) => checkpoint.data.len() <= MAX_CHECKPOINT,
            Self::Asked(ask) => ask.is_within_limits(),
            Self::Unknown { bytes, .. } => bytes.len() <= MAX_BODY,
            lifecycle => {
                let mut body = Vec::new();
                lifecycle.encode_body(&mut body);
                body.len() <= MAX_BODY
            }
        }
    }
}

impl From<Submitted> for Body {
    fn from(submitted: Submitted) -> Self {
        Self::Submitted(Box::new(submitted))
    }
}

/// See [`Body::Submitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Where the task lives.
    pub namespace: Namespace,
    /// Who submitted it, as `role/name`.
    pub owner: String,
    /// Its label, if any.
    pub name: Option<String>,
    /// The group it belongs to, if any.
    pub group: Option<Member>,
    /// What was asked.
    pub spec: TaskSpec,
}

/// A task's place in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The group.
    pub id: GroupId,
    /// From 0.
    pub index: u32,
    /// Tasks in the group.
    pub count: u32,
}

/// See [`Body::Assigned`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Who holds the task now.
    pub worker: WorkerId,
    /// The worker's name for people.
    pub worker_name: String,
    /// The new epoch.
    pub epoch: Epoch,
    /// Number of this execution, from 1; uncharged losses do not count.
    pub attempt: u32,
    /// Offset of the [`Body::Checkpointed`] record it goes on from; `None` begins anew.
    pub resumes: Option<Offset>,
}

/// See [`Body::Started`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id on the worker.
    pub pid: u32,
    /// How its descendants are held.
    pub containment: Containment,
}

/// See [`Body::Exited`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// How it ended.
    pub exit: Exit,
}

/// The state somebody wants a task in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Desired {
    /// Running as soon as there is a worker.
    Running,
    /// Frozen, or not started.
    Paused,
    /// Over.
    Cancelled,
}

/// See [`Body::DesiredChanged`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredChanged {
    /// What is wanted now.
    pub desired: Desired,
    /// Rises with every change.
    pub generation: u64,
    /// Who asked, as `role/name`.
    pub by: String,
    /// Kill at once instead of asking the agent to stop first.
    pub force: bool,
}

/// See [`Body::Paused`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// The desired state's generation this answers.
    pub generation: u64,
}

/// See [`Body::Resumed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The desired state's generation this answers.
    pub generation: u64,
}

/// Why a worker was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// Its lease ran out.
    Silent,
    /// It came back as a new process and no longer runs the attempt.
    Restarted,
    /// It never started the attempt and does not know it.
    NotDelivered,
    /// It handed the attempt back while shutting down.
    HandedBack,
}

/// See [`Body::WorkerLost`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerLost {
    /// Who was lost.
    pub worker: WorkerId,
    /// The epoch that is over.
    pub epoch: Epoch,
    /// Why.
    pub why: Loss,
    /// Whether the loss counts against the task (three charged losses end it).
    pub charged: bool,
}

/// See [`Body::Requeued`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// Not claimed before this instant.
    pub not_before: Timestamp,
    /// Whether the attempt that ended counts against `max_retries`.
    pub charged: bool,
    /// Why, in words.
    pub why: String,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The agent exited with 0.
    Completed,
    /// It did not, and will not be tried again.
    Failed,
    /// A user cancelled it.
    Cancelled,
}

/// See [`Body::Ended`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// How the last attempt's process ended, if one ran.
    pub exit: Option<Exit>,
    /// What went wrong, in words.
    pub error: Option<String>,
}

/// See [`Body::Truncated`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncated {
    /// First offset that is gone.
    pub from: Offset,
    /// First offset after the gap.
    pub to: Offset,
    /// Bytes that are gone.
    pub bytes: u64,
}

/// See [`Body::Note`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What people should know.
    pub text: String,
}

/// See [`Body::Checkpointed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointed {
    /// Made by the worker.
    pub id: CheckpointId,
    /// What the task wants to be told when it goes on: JSON text of at most [`MAX_CHECKPOINT`] bytes.
    pub data: String,
    /// What the task's folder held, if that is a part of it. It is there before this record is.
    pub snapshot: Option<Snapshot>,
}

/// See [`Body::Expired`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// Which.
    pub limit: Limit,
}

/// See [`Body::Retries`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// The one that failed.
    pub task: TaskId,
    /// Who asked, as `role/name`.
    pub by: String,
}

/// See [`Body::Skipped`]. Its offset is the last one it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// First offset it stands for.
    pub from: Offset,
    /// First offset after it.
    pub to: Offset,
    /// Bytes of output it stands for.
    pub bytes: u64,
}

/// See [`Body::Progress`]. What is `None` is as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100.
    pub percent: Option<u8>,
    /// What it does now: one line of at most [`MAX_MESSAGE`] bytes.
    pub message: Option<String>,
}

impl Progress {
    /// Takes what is newer: what that leaves out stays.
    pub fn take(&mut self, newer: &Self) {
        self.percent = newer.percent.or(self.percent);
        if newer.message.is_some() {
            self.message.clone_from(&newer.message);
        }
    }
}

/// See [`Body::Asked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Made by the worker.
    pub id: AskId,
    /// The same for the same question in another epoch: its answer may be used again.
    pub digest: AskDigest,
    /// What kind of question.
    pub kind: AskKind,
    /// The question, or what is to be allowed, for people: at most [`MAX_MESSAGE`] bytes.
    pub text: String,
    /// All of what is to be allowed, as the agent has it (JSON); cut off at [`MAX_MESSAGE`] bytes.
    pub detail: String,
    /// What can be answered; at most [`MAX_CHOICES`].
    pub choices: Vec<Choice>,
    /// Whether words of one's own are an answer.
    pub free_text: bool,
    /// What is answered when nobody does in time: a choice's id.
    pub default: Option<String>,
    /// How long is waited for somebody, milliseconds; `None`: for ever.
    pub wait_ms: Option<u64>,
}

impl Asked {
    fn is_within_limits(&self) -> bool {
        let fits = |text: &String| text.len() <= MAX_ANSWER;
        self.text.len() <= MAX_MESSAGE
            && self.detail.len() <= MAX_MESSAGE
            && self.choices.len() <= MAX_CHOICES
            && self.choices.iter().all(|choice| fits(&choice.id) && fits(&choice.label))
            && self.default.as_ref().is_none_or(fits)
    }

    /// The choice that people mean: its id, its label, or the beginning of one of them that no other has. Capitals do not
    /// matter.
    pub fn choice(&self, words: &str) -> Option<&Choice> {
        let words = words.trim().to_lowercase();
        let exact = |choice: &&Choice| choice.id.to_lowercase() == words || choice.label.to_lowercase() == words;
        let begins = |choice: &&Choice| {
            choice.id.to_lowercase().starts_with(&words) || choice.label.to_lowercase().starts_with(&words)
        };
        self.choices.iter().find(exact).or_else(|| {
            let mut found = self.choices.iter().filter(begins);
            found.next().filter(|_| found.next().is_none() && !words.is_empty())
        })
    }
}

/// See [`Asked::kind`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AskKind {
    /// Whether a tool may be used.
    Permission {
        /// Its name.
        tool: String,
    },
    /// Something only a person knows.
    Question,
}

/// An answer to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What is said to the agent.
    pub id: String,
    /// What it means, for people.
    pub label: String,
}

/// See [`Body::Answered`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Which question.
    pub ask: AskId,
    /// What was answered.
    pub answer: Answer,
    /// Who did, as `role/name`; `None`: nobody did in time.
    pub by: Option<String>,
}

/// An answer to an [`Asked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// A choice's id, unless it is in words.
    pub choice: Option<String>,
    /// Words of one's own: at most [`MAX_ANSWER`] bytes.
    pub text: Option<String>,
}

/// See [`Body::AskClosed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskClosed {
    /// Which question.
    pub ask: AskId,
}

/// See [`Body::Used`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// In this epoch.
    pub usage: Usage,
    /// The agent's own name of its conversation.
    pub session: Option<String>,
}

postcard_payload!(
    Asked,
    Answered,
    AskClosed,
    Used,
    Submitted,
    Assigned,
    Started,
    Exited,
    DesiredChanged,
    Paused,
    Resumed,
    WorkerLost,
    Requeued,
    Ended,
    Truncated,
    Note,
    Checkpointed,
    Skipped,
    Progress,
    Expired,
    Retries,
);

/// Which of the agent's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// What an AI agent's tools write, and which they are; its own words are on the others.
    Tool,
}

/// See [`Body::Output`]. Encoded by hand (stream and position in postcard form, then the bytes) so that reading copies
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where it was written.
    pub stream: Stream,
    /// Position of the first byte in (epoch, stream).
    pub position: u64,
    /// At most [`MAX_OUTPUT`] bytes, as the agent wrote them.
    pub data: Bytes,
}

impl Payload for Output {
    const WHAT: &'static str = "Output";

    fn encode(&self, out: &mut Vec<u8>) {
        let data = self.encode_head(out);
        out.extend_from_slice(&data);
    }

    fn encode_head(&self, out: &mut Vec<u8>) -> Bytes {
        to_postcard(&(self.stream, self.position), out);
        self.data.clone()
    }

    fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let ((stream, position), rest) = postcard::take_from_bytes::<(Stream, u64)>(bytes)
            .map_err(|_| DecodeError::Malformed { what: Self::WHAT })?;
        if rest.len() > MAX_OUTPUT {
            return Err(DecodeError::Malformed { what: Self::WHAT });
        }
        Ok(Self { stream, position, data: bytes.slice(bytes.len() - rest.len()..) })
    }
}
