//! Workers: their list, their sessions, the streams of their attempts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::Containment;
use crate::{Epoch, Incarnation, Seq, TaskId, WorkerId};

/// Lists workers of the caller's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListWorkers;

/// What is known of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its id.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// `ready`, `draining`, `lost`.
    pub state: String,
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
