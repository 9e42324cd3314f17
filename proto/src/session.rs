//! Messages on long-lived streams. Each frame is `kind, version` in postcard form and then the body, so that a reader can
//! skip what it does not know.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::payload::{Payload, payloads, postcard_payload, to_postcard};
use crate::record::{Answer, Desired, Member, Record, decode_all, encode_all};
use crate::request::{Load, WorkerWant};
use crate::spec::TaskSpec;
use crate::{AskDigest, AskId, DecodeError, Epoch, Namespace, Offset, Secret, Seq, Snapshot, TaskId};

/// One message as the body of a frame.
pub trait Message: Sized {
    /// The frame's body.
    fn to_frame(&self) -> Vec<u8>;
    /// The frame's body in two pieces, the second of which is bulk that nobody has copied.
    fn to_pieces(&self) -> (Vec<u8>, Bytes);
    /// Reads a frame's body.
    ///
    /// # Errors
    /// [`DecodeError`] when it is malformed; an unknown kind is not an error.
    fn from_frame(frame: &Bytes) -> Result<Self, DecodeError>;
}

macro_rules! messages {
    ($($name:ident),+) => {$(
        impl Message for $name {
            fn to_frame(&self) -> Vec<u8> {
                let mut out = Vec::new();
                to_postcard(&self.kind(), &mut out);
                self.encode_body(&mut out);
                out
            }
            fn to_pieces(&self) -> (Vec<u8>, Bytes) {
                let mut head = Vec::new();
                to_postcard(&self.kind(), &mut head);
                let bulk = self.encode_body_head(&mut head);
                (head, bulk)
            }
            fn from_frame(frame: &Bytes) -> Result<Self, DecodeError> {
                let ((kind, version), rest) = postcard::take_from_bytes::<(u16, u8)>(frame)
                    .map_err(|_| DecodeError::Malformed { what: stringify!($name) })?;
                Self::decode_body(kind, version, &frame.slice(frame.len() - rest.len()..))
            }
        }
    )+};
}
messages!(FromWorker, ToWorker, FromAttempt, ToAttempt, FollowItem);

payloads! {
    /// What a worker says on its session.
    pub enum FromWorker {
        /// It lives, and holds these attempts.
        1 / 1 => Heartbeat(Heartbeat),
        /// It takes no more work and will leave.
        2 / 1 => Draining(Draining),
    }
}

payloads! {
    #[expect(clippy::large_enum_variant, reason = "made and read one at a time, never kept in numbers")]
    /// What a controller says on a worker's session. All of it is state, none of it events: a lost message is said again.
    pub enum ToWorker {
        /// Answer to a heartbeat.
        1 / 1 => HeartbeatAnswer(HeartbeatAnswer),
        /// The worker holds this attempt; it starts it unless it knows the epoch already.
        2 / 1 => Assign(Assignment),
        /// What is wanted of an attempt it holds.
        3 / 1 => Want(Want),
        /// What was answered to an attempt's questions.
        4 / 1 => Answers(Answers),
        /// Where the controllers of the mesh are now.
        31 / 1 => Controllers(Controllers),
        /// What is wanted of the worker itself.
        32 / 1 => Wish(WorkerWant),
        /// Answer to a heartbeat while the store does not answer: nothing is renewed, and nothing is taken away yet.
        33 / 1 => Bridge(Bridge),
    }
}

payloads! {
    /// What a worker says on an attempt's stream.
    pub enum FromAttempt {
        /// Records in seq order.
        1 / 1 => Records(Records),
    }
}

payloads! {
    /// What a controller says on an attempt's stream.
    pub enum ToAttempt {
        /// Everything before this seq is in the log.
        1 / 1 => Acknowledged(Acknowledged),
        /// The epoch is over: stop the attempt, throw away what is not acknowledged.
        2 / 1 => Stale(Stale),
    }
}

payloads! {
    /// What a viewer gets.
    pub enum FollowItem {
        /// The next records, in offset order, without gaps.
        1 / 1 => Records(Records),
        /// There will be no more. Without this, the end of the stream means "reconnect".
        2 / 1 => End(End),
        /// The store is not the one the cursor was made for (restored from a backup): begin anew.
        3 / 1 => LogReset(LogReset),
        /// Nothing for a while; the stream lives.
        4 / 1 => Idle(Idle),
        /// Somebody asked for this viewer to leave; the task goes on.
        5 / 1 => Detached(Detached),
    }
}

/// See [`FromWorker::Heartbeat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Rises by one; the answer repeats it, so that the worker knows when the renewal was sent.
    pub number: u64,
    /// Every attempt it holds.
    pub holds: Vec<(TaskId, Epoch)>,
    /// How busy its machine is.
    pub load: Load,
    /// It takes no more work, for whatever reason.
    pub draining: bool,
}

/// See [`FromWorker::Draining`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Attempts it stopped and hands back: they ran nothing that counts, or their agent is gone.
    pub hand_back: Vec<(TaskId, Epoch)>,
}

/// See [`ToWorker::HeartbeatAnswer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// The heartbeat's number.
    pub number: u64,
    /// Attempts whose lease is renewed, with what is wanted of each.
    pub renewed: Vec<Want>,
    /// Attempts that are no longer the worker's: kill them.
    pub lost: Vec<(TaskId, Epoch)>,
    /// What is wanted of the worker itself.
    pub wish: WorkerWant,
    /// What was answered to questions of these attempts, of which no worker has said that its agent has it.
    pub answers: Vec<Answers>,
}

/// See [`ToWorker::Answers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// The task.
    pub task: TaskId,
    /// The assignment.
    pub epoch: Epoch,
    /// To which of its questions what was answered.
    pub given: Vec<(AskId, Answer)>,
}

/// See [`ToWorker::Bridge`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The heartbeat's number.
    pub number: u64,
    /// Attempts that may go on.
    pub holds: Vec<(TaskId, Epoch)>,
    /// For how long, milliseconds, counted from when the heartbeat was sent.
    pub left_ms: u64,
}

/// What is wanted of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The task.
    pub task: TaskId,
    /// The assignment.
    pub epoch: Epoch,
    /// The state wanted.
    pub desired: Desired,
    /// Rises with every change; an older one is ignored.
    pub generation: u64,
    /// With [`Desired::Cancelled`]: kill at once.
    pub force: bool,
}

/// See [`ToWorker::Controllers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controllers {
    /// `host:port` of all that live, the one that says it first.
    pub addresses: Vec<String>,
}

/// Everything a worker needs to run an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The task.
    pub task: TaskId,
    /// The assignment.
    pub epoch: Epoch,
    /// Where the task lives.
    pub namespace: Namespace,
    /// Its label.
    pub name: Option<String>,
    /// Its group.
    pub group: Option<Member>,
    /// Number of this execution, from 1.
    pub attempt: u32,
    /// What was asked.
    pub spec: TaskSpec,
    /// Data of the checkpoint it goes on from: JSON text.
    pub checkpoint: Option<String>,
    /// What its folder holds at the beginning, if that is a part of the checkpoint.
    pub snapshot: Option<Snapshot>,
    /// How long the lease that came with the claim is good for, milliseconds. Counted from when this was sent, which the
    /// worker does not know: it counts from when it sent the last heartbeat that was answered before on the same stream,
    /// and before there is one it has no lease.
    pub lease_ms: u64,
    /// What is wanted.
    pub desired: Desired,
    /// Its generation.
    pub generation: u64,
    /// What is left of the time it may take as a whole, milliseconds, while it runs.
    pub total_left_ms: Option<u64>,
    /// What its secrets are at this moment.
    pub secrets: Vec<GivenSecret>,
    /// What was answered in earlier epochs: the same question is not asked again.
    pub answers: Vec<(AskDigest, Answer)>,
}

/// A secret as an attempt gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenSecret {
    /// The variable of the agent's environment.
    pub variable: String,
    /// Its value; or why there is none: the attempt fails, and says so.
    pub value: Result<Secret, String>,
}

/// Records laid end to end; see [`crate::record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records(pub Bytes);

impl Records {
    /// Encodes records.
    pub fn new<'a>(records: impl IntoIterator<Item = &'a Record, IntoIter: Clone>) -> Self {
        Self(encode_all(records))
    }

    /// Reads them all.
    ///
    /// # Errors
    /// [`DecodeError`] when a record is malformed.
    pub fn decode(&self) -> Result<Vec<Record>, DecodeError> {
        decode_all(self.0.clone())
    }
}

impl Payload for Records {
    const WHAT: &'static str = "Records";

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn encode_head(&self, _: &mut Vec<u8>) -> Bytes {
        self.0.clone()
    }

    fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        Ok(Self(bytes.clone()))
    }
}

/// See [`ToAttempt::Acknowledged`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The first seq that is not yet in the log.
    pub next_seq: Seq,
}

/// See [`ToAttempt::Stale`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale;

/// See [`FollowItem::End`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// One after the last record.
    pub next: Offset,
    /// Whether the task is over (`false`: the reader did not ask to stay).
    pub ended: bool,
}

/// See [`FollowItem::LogReset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReset {
    /// Generation of the log that is there now.
    pub generation: u64,
}

/// See [`FollowItem::Idle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// One after the last record sent.
    pub next: Offset,
}

/// See [`FollowItem::Detached`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Who asked, as `role/name`.
    pub by: String,
}

postcard_payload!(
    Detached,
    Heartbeat,
    Draining,
    HeartbeatAnswer,
    Bridge,
    Answers,
    Want,
    Controllers,
    WorkerWant,
    Assignment,
    Acknowledged,
    Stale,
    End,
    LogReset,
    Idle
);
