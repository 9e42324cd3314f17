//! Workers: their list, their sessions, the streams of their attempts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::{Containment, Resources};
use crate::{Epoch, Incarnation, Namespace, Seq, TaskId, Timestamp, WorkerId};

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
    /// `ready`, `draining`, `disconnected`, `lost`.
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

/// Answer to [`TaskOutput`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputAccepted {
    /// The first seq that is not yet in the log: the worker goes on from here.
    pub next_seq: Seq,
}
