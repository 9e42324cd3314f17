//! Workers: their list, their sessions, the streams of their attempts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::{Containment, Resources};
use crate::{BlobId, ControllerId, Epoch, Incarnation, Namespace, Seq, TaskId, Timestamp, WorkerId};

/// Lists workers of the caller's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListWorkers {
    /// Say of each why it could not take this task (an id, a prefix or a name).
    pub task: Option<String>,
}

/// How busy a worker's machine is, as it says itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Processors it may use.
    pub cpus: u32,
    /// Processes that ran or wanted to, averaged over a minute (getloadavg(3)), in thousandths.
    pub load_milli: u32,
    /// Memory it may use, bytes.
    pub memory: u64,
    /// Memory that is free for new processes, bytes.
    pub memory_available: u64,
}

/// What is known of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its id.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// `ready`, `cordoned`, `draining`, `drained`, `disconnected`, `lost`.
    pub state: String,
    /// Where it belongs.
    pub namespace: Namespace,
    /// Template.
    pub pool: String,
    /// Parallel capacity.
    pub slots: u32,
    /// Attempts it holds.
    pub busy: u32,
    /// Agents it can run.
    pub agents: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How it holds processes.
    pub containment: Containment,
    /// Milliseconds since its last heartbeat.
    pub heartbeat_age_ms: u64,
    /// Its build.
    pub build: String,
    /// How busy its machine is; `None` while it is not connected.
    pub load: Option<Load>,
    /// Round trip between the controller and it, microseconds; `None` while it is not connected.
    pub rtt_us: Option<u64>,
    /// Attempts it holds.
    pub holds: Vec<TaskId>,
    /// One sentence: why it would not get a task now, or the task asked about; `None`: it could.
    pub ineligible: Option<String>,
    /// Its breaker, unless it is closed.
    pub breaker: Option<BreakerInfo>,
    /// What somebody wants of it.
    pub desired: WorkerDesired,
    /// Who wants that, as `role/name`; `None`: nobody ever wanted anything.
    pub desired_by: Option<String>,
    /// When it hands back what it still holds, if it is to drain.
    pub deadline: Option<Timestamp>,
    /// The controller it is connected to.
    pub controller: Option<ControllerId>,
}

/// A breaker that is not closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerInfo {
    /// What went wrong last.
    pub why: String,
    /// When it opened.
    pub opened_at: Timestamp,
    /// From then on one attempt at a time finds out whether all is well again.
    pub probe_at: Timestamp,
}

/// What somebody may want of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkerDesired {
    /// It works.
    #[default]
    Active,
    /// It gets no more work; what it has goes on.
    Cordoned,
    /// It gets no more work, ends or hands back what it has, and leaves.
    Drained,
}

impl WorkerDesired {
    /// The word programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Drained => "drained",
        }
    }
}

/// What is wanted of a worker, as it is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerWant {
    /// The state wanted.
    pub desired: WorkerDesired,
    /// Rises with every change; an older one is ignored.
    pub generation: u64,
    /// Milliseconds until it hands back what it still holds, counted from when this was sent; `None`: it does not.
    pub left_ms: Option<u64>,
}

/// Asks for another state of a worker: for administrators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetWorker {
    /// Its name, its id, or the beginning of that.
    pub worker: String,
    /// What is wanted.
    pub desired: WorkerDesired,
    /// With [`WorkerDesired::Drained`]: how long what it has may go on, milliseconds.
    pub within_ms: Option<u64>,
}

/// Answer to [`SetWorker`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSet {
    /// The worker.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// Its state before the request, as in [`WorkerInfo::state`].
    pub state: String,
    /// Attempts it holds.
    pub busy: u32,
    /// When it hands back what it still holds, if it is to drain.
    pub deadline: Option<Timestamp>,
    /// Why nothing changed (`cordoned already`), if so.
    pub unchanged: Option<String>,
}

/// Lists the controllers of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListControllers;

/// What is known of a controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerInfo {
    /// Its id.
    pub id: ControllerId,
    /// Its name.
    pub name: String,
    /// `live`, or `lost`: it has not been heard of lately.
    pub state: String,
    /// `host:port` it is reached at.
    pub addresses: Vec<String>,
    /// Its build.
    pub build: String,
    /// When it started.
    pub since: Timestamp,
    /// Milliseconds since it was last heard of.
    pub seen_age_ms: u64,
    /// Loops it runs for the mesh, in order.
    pub loops: Vec<String>,
    /// Workers connected to it.
    pub workers: u32,
    /// Viewers that follow logs through it.
    pub viewers: u32,
    /// Whether it is the one that answers.
    pub answers: bool,
}

/// A worker's long-lived stream: it sends [`crate::session::FromWorker`], the controller
/// [`crate::session::ToWorker`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSession {
    /// This start of the worker.
    pub incarnation: Incarnation,
    /// For people.
    pub name: String,
    /// Template.
    pub pool: String,
    /// Parallel capacity.
    pub slots: u32,
    /// Agents it can run.
    pub agents: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How it holds processes.
    pub containment: Containment,
    /// Its build.
    pub build: String,
    /// What it has for tasks with limits, of the kinds that it can enforce.
    pub resources: Resources,
}

/// Answer to [`WorkerSession`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerAccepted {
    /// How often to send a heartbeat, milliseconds.
    pub heartbeat_ms: u64,
    /// How long a renewal is good for, counted from when it was sent, milliseconds.
    pub lease_ms: u64,
    /// `host:port` of all controllers that live, this one first.
    pub controllers: Vec<String>,
    /// What is wanted of the worker.
    pub wish: WorkerWant,
}

/// The stream of one attempt's records: the worker sends [`crate::session::FromAttempt`], the controller
/// [`crate::session::ToAttempt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOutput {
    /// The task.
    pub task: TaskId,
    /// The assignment.
    pub epoch: Epoch,
    /// This start of the worker.
    pub incarnation: Incarnation,
}

/// Keeps a blob of a task that the worker holds. After the answer the worker sends the bytes, in frames, and the controller
/// answers once more when they are durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBlob {
    /// The task.
    pub task: TaskId,
    /// The assignment.
    pub epoch: Epoch,
    /// This start of the worker.
    pub incarnation: Incarnation,
    /// Its name, which is its hash.
    pub id: BlobId,
    /// Its bytes: at most [`crate::snapshot::MAX_BLOB`].
    pub len: u64,
}

/// Reads a blob of the snapshot that a task goes on from which the worker holds. After the answer come the bytes, in frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetBlob {
    /// The task.
    pub task: TaskId,
    /// The assignment.
    pub epoch: Epoch,
    /// This start of the worker.
    pub incarnation: Incarnation,
    /// Its name.
    pub id: BlobId,
}

/// Answer to [`GetBlob`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobFollows {
    /// Its bytes.
    pub len: u64,
}

/// Answer to [`TaskOutput`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputAccepted {
    /// The first seq that is not yet in the log: the worker goes on from here.
    pub next_seq: Seq,
}
