//! What this controller counts, for Prometheus.
//!
//! Owns: names, units and meaning. What happens to tasks is counted from the records that a commit made durable: once, by
//! the controller that committed it. What is a state (what waits, who is there) is looked up when somebody asks.
//! Must never know: HTTP. No label names a task, a worker or a person: nobody knows how many there will be.
//!
//! Another metric is a field, a line in [`Metrics::new`] that registers it, and a call where it happens. A state is a
//! gauge in [`scrape`].

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ado_proto::record::{Body, Loss, Outcome as TaskOutcome, Record};
use ado_proto::spec::Exit;
use ado_proto::{Epoch, TaskId, Timestamp};
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::timeout;

use super::Shared;
use crate::store::{Backlog, Committed, Outcome};
use crate::task::Refusal;

/// Kinds of waiting tasks that are told apart; what others there are is summed up under the pool `(other)`. Users name
/// pools as they like.
const MAX_CLASSES: usize = 100;
/// Assignments whose agent has not started yet: those of workers that went elsewhere are never heard of again.
const MAX_STARTING: usize = 16 * 1024;
/// Longest wait for the store when somebody asks.
const LOOK_FOR: Duration = Duration::from_secs(2);

/// Why something happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

/// Whatever has few states.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// What waits together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    namespace: String,
    pool: String,
    agent: String,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// See the module.
pub(super) struct Metrics {
    registry: Registry,
    submitted: Counter,
    claims: Counter,
    started: Counter,
    ended: Family<Ended, Counter>,
    retries: Counter,
    out_of_memory: Counter,
    reassigned: Family<Reason, Counter>,
    stale: Counter,
    dispatch_wait: Histogram,
    start_wait: Histogram,
    records: Counter,
    output_bytes: Counter,
    append: Histogram,
    commit: Histogram,
    commit_units: Histogram,
    commit_records: Histogram,
    commit_bytes: Histogram,
    commit_failures: Counter,
    queue_failures: Counter,
    heartbeats: Counter,
    viewer_records: Counter,
    viewer_bytes: Counter,
    /// When the agents that do not run yet were assigned, and under which epoch.
    starting: Mutex<BTreeMap<TaskId, (Epoch, Timestamp)>>,
}

/// From a quarter of a millisecond to half a minute.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 18))
}

fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 14))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let new = Self {
            registry: Registry::with_prefix("ado"),
            submitted: Counter::default(),
            claims: Counter::default(),
            started: Counter::default(),
            ended: Family::default(),
            retries: Counter::default(),
            out_of_memory: Counter::default(),
            reassigned: Family::default(),
            stale: Counter::default(),
            dispatch_wait: seconds(),
            start_wait: seconds(),
            records: Counter::default(),
            output_bytes: Counter::default(),
            append: seconds(),
            commit: seconds(),
            commit_units: sizes(),
            commit_records: sizes(),
            commit_bytes: Histogram::new(exponential_buckets(256.0, 4.0, 10)),
            commit_failures: Counter::default(),
            queue_failures: Counter::default(),
            heartbeats: Counter::default(),
            viewer_records: Counter::default(),
            viewer_bytes: Counter::default(),
            starting: Mutex::default(),
        };
        // What has not happened yet is a zero and not missing.
        for outcome in [TaskOutcome::Completed, TaskOutcome::Failed, TaskOutcome::Cancelled] {
            new.ended.get_or_create_owned(&ended(outcome));
        }
        for why in [Loss::Silent, Loss::Restarted, Loss::NotDelivered, Loss::HandedBack] {
            new.reassigned.get_or_create_owned(&reason(why));
        }
        new.registered()
    }

    fn registered(mut self) -> Self {
        let all = &mut self.registry;
        all.register("tasks_submitted", "Tasks accepted", self.submitted.clone());
        all.register("claims", "Assignments of a task to a worker", self.claims.clone());
        all.register("attempts_started", "Agents that began to run", self.started.clone());
        all.register("tasks_ended", "Tasks that are over, by how they ended", self.ended.clone());
        all.register("task_retries", "Failed attempts that will be tried again", self.retries.clone());
        let help = "Attempts killed because they took more memory than they may";
        all.register("attempts_out_of_memory", help, self.out_of_memory.clone());
        let help = "Assignments given up because of their worker, by why; the task is placed anew unless it is over";
        all.register("reassignments", help, self.reassigned.clone());
        all.register("stale_writes", "Refused writes of an epoch that is over", self.stale.clone());
        let help = "From when a task was due until a worker had it";
        all.register_with_unit("dispatch_wait", help, Unit::Seconds, self.dispatch_wait.clone());
        let help = "From when a worker had a task until its agent ran";
        all.register_with_unit("start_wait", help, Unit::Seconds, self.start_wait.clone());
        all.register("records", "Records made durable", self.records.clone());
        let help = "Agents' output made durable";
        all.register_with_unit("output", help, Unit::Bytes, self.output_bytes.clone());
        let help = "From when a worker's records were there until they were durable";
        all.register_with_unit("append", help, Unit::Seconds, self.append.clone());
        all.register_with_unit("commit", "Transactions of the group commit", Unit::Seconds, self.commit.clone());
        all.register("commit_units", "Callers' changes in one transaction", self.commit_units.clone());
        all.register("commit_records", "Records in one transaction", self.commit_records.clone());
        all.register_with_unit("commit_output", "Output in one transaction", Unit::Bytes, self.commit_bytes.clone());
        all.register("commit_failures", "Transactions that the store did not answer", self.commit_failures.clone());
        all.register("queue_failures", "Calls that the queue did not answer", self.queue_failures.clone());
        all.register("heartbeats", "Heartbeats of workers answered", self.heartbeats.clone());
        all.register("viewer_records", "Records sent to viewers", self.viewer_records.clone());
        let help = "Records sent to viewers, before compression";
        all.register_with_unit("viewer", help, Unit::Bytes, self.viewer_bytes.clone());
        self
    }

    /// A transaction is durable. It took that long.
    pub(super) fn committed(&self, units: &[Committed], took: Duration) {
        self.commit.observe(took.as_secs_f64());
        self.commit_units.observe(units.len() as f64);
        let (mut records, mut bytes) = (0, 0);
        let outcomes = units.iter().flat_map(|unit| match unit {
            Committed::Done(outcomes, _) => outcomes.as_slice(),
            Committed::Replayed(_) | Committed::KeyConflict => &[],
        });
        for outcome in outcomes {
            match outcome {
                Outcome::Applied(write) => {
                    records += write.records.len() as u64;
                    bytes += write.records.iter().map(|record| self.happened(write.row.task.id, record)).sum::<u64>();
                }
                Outcome::Refused(Refusal::Stale { .. }, _) => self.stale_write(),
                Outcome::Refused(..) | Outcome::Missing | Outcome::Locked => {}
            }
        }
        self.records.inc_by(records);
        self.output_bytes.inc_by(bytes);
        self.commit_records.observe(records as f64);
        self.commit_bytes.observe(bytes as f64);
    }

    /// Counts what a record tells. Its bytes of output.
    fn happened(&self, task: TaskId, record: &Record) -> u64 {
        match &record.body {
            Body::Output(output) => return output.data.len() as u64,
            Body::Submitted(_) => drop(self.submitted.inc()),
            Body::Assigned(assigned) => {
                self.claims.inc();
                let mut starting = self.starting();
                starting.insert(task, (assigned.epoch, record.time));
                if starting.len() > MAX_STARTING {
                    starting.pop_first();
                }
            }
            Body::Started(_) => {
                self.started.inc();
                if let Some((_, since)) = self.starting().remove(&task) {
                    self.start_wait.observe(record.time.since(since).as_secs_f64());
                }
            }
            Body::Exited(exited) if matches!(exited.exit, Exit::OutOfMemory { .. }) => drop(self.out_of_memory.inc()),
            Body::WorkerLost(lost) => {
                self.starting().remove(&task);
                self.reassigned.get_or_create(&reason(lost.why)).inc();
            }
            Body::Requeued(requeued) if requeued.charged => drop(self.retries.inc()),
            Body::Ended(over) => {
                self.starting().remove(&task);
                self.ended.get_or_create(&ended(over.outcome)).inc();
            }
            _ => {}
        }
        0
    }

    /// Whether a transaction happened is not known.
    pub(super) fn commit_failed(&self) {
        self.commit_failures.inc();
    }

    /// Somebody spoke for an epoch that is over.
    pub(super) fn stale_write(&self) {
        self.stale.inc();
    }

    /// A task waited that long for a worker once it was due.
    pub(super) fn dispatched(&self, waited: Duration) {
        self.dispatch_wait.observe(waited.as_secs_f64());
    }

    /// A worker's records waited that long until they were durable.
    pub(super) fn appended(&self, waited: Duration) {
        self.append.observe(waited.as_secs_f64());
    }

    /// The queue did not answer.
    pub(super) fn queue_failed(&self) {
        self.queue_failures.inc();
    }

    /// A worker's leases are renewed.
    pub(super) fn heartbeat(&self) {
        self.heartbeats.inc();
    }

    /// A viewer is sent these.
    pub(super) fn viewed(&self, records: usize, bytes: usize) {
        self.viewer_records.inc_by(records as u64);
        self.viewer_bytes.inc_by(bytes as u64);
    }

    fn starting(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, (Epoch, Timestamp)>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ended(outcome: TaskOutcome) -> Ended {
    let outcome = match outcome {
        TaskOutcome::Completed => "completed",
        TaskOutcome::Failed => "failed",
        TaskOutcome::Cancelled => "cancelled",
    };
    Ended { outcome }
}

fn reason(why: Loss) -> Reason {
    let reason = match why {
        Loss::Silent => "silent",
        Loss::Restarted => "restarted",
        Loss::NotDelivered => "not_delivered",
        Loss::HandedBack => "handed_back",
    };
    Reason { reason }
}

/// All there is, as text. What the store or the queue do not say in time is left out.
pub(super) async fn scrape(shared: &Shared) -> String {
    let mut now = Registry::with_prefix("ado");
    let builds = Family::<Build, Gauge>::default();
    builds.get_or_create(&Build { version: crate::BUILD }).set(1);
    now.register("build_info", "The version that runs", builds);
    gauge(&mut now, "connections", "Connections of commands, workers and others", shared.server.connections());
    gauge(&mut now, "viewers", "Viewers that follow a log", shared.viewers.count());
    fleet(&mut now, shared);
    let (backlog, queue) = tokio::join!(
        timeout(LOOK_FOR, async { tokio::try_join!(shared.store.backlog(), shared.store.now()) }),
        timeout(LOOK_FOR, shared.queue.classes()),
    );
    gauge(&mut now, "store_up", "Whether the store answers", usize::from(matches!(backlog, Ok(Ok(_)))));
    gauge(&mut now, "queue_up", "Whether the queue answers", usize::from(matches!(queue, Ok(Ok(_)))));
    if let Ok(Ok((backlog, at))) = backlog {
        waiting(&mut now, backlog, at);
    }
    let mut text = String::new();
    for registry in [&shared.metrics.registry, &now] {
        prometheus_text::encode(&mut text, registry).expect("a string takes everything");
    }
    text
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge = Gauge::<i64>::default();
    gauge.set(signed(value as u64));
    registry.register(name, help, gauge);
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Who is connected here, and what they hold.
fn fleet(registry: &mut Registry, shared: &Shared) {
    let (workers, slots) = (Family::<State, Gauge>::default(), Family::<State, Gauge>::default());
    for state in ["ready", "draining", "silent"] {
        workers.get_or_create(&State { state }).set(0);
    }
    for state in ["free", "busy"] {
        slots.get_or_create(&State { state }).set(0);
    }
    for worker in shared.fleet.candidates() {
        let state = match (worker.draining, worker.silent) {
            (true, _) => "draining",
            (_, true) => "silent",
            (false, false) => "ready",
        };
        workers.get_or_create(&State { state }).inc();
        slots.get_or_create(&State { state: "free" }).inc_by(worker.free().into());
        slots.get_or_create(&State { state: "busy" }).inc_by(worker.busy.into());
    }
    registry.register("workers", "Workers connected to this controller, by state", workers);
    registry.register("slots", "Slots of these workers that take tasks now, and those that are taken", slots);
    let help = "Workers and agents left alone for a while since they failed too often, in the whole mesh";
    gauge(registry, "breakers_open", help, shared.breakers.open());
    gauge(registry, "leases", "Tasks held by workers, as far as this controller knows", shared.fleet.leases());
}

/// What waits, in the whole mesh.
fn waiting(registry: &mut Registry, backlog: Vec<Backlog>, now: Timestamp) {
    let (tasks, oldest) = (Family::<Class, Gauge>::default(), Family::<Class, Gauge<f64, AtomicU64>>::default());
    for (index, kind) in backlog.into_iter().enumerate() {
        let class = if index < MAX_CLASSES {
            Class { namespace: kind.namespace.0, pool: kind.pool, agent: kind.agent }
        } else {
            Class { namespace: "(other)".into(), pool: "(other)".into(), agent: "(other)".into() }
        };
        let age = made_at(kind.oldest).map_or(Duration::ZERO, |made_at| now.since(made_at)).as_secs_f64();
        tasks.get_or_create(&class).inc_by(signed(kind.tasks));
        let so_far = oldest.get_or_create_owned(&class);
        so_far.set(so_far.get().max(age));
    }
    let help = "Tasks that wait for a worker, in the whole mesh";
    registry.register("queued_tasks", help, tasks);
    let help = "Time since the oldest waiting task was submitted";
    registry.register_with_unit("queued_oldest", help, Unit::Seconds, oldest);
}

/// The time in an id, to the millisecond.
fn made_at(task: TaskId) -> Option<Timestamp> {
    let (seconds, nanos) = task.0.get_timestamp()?.to_unix();
    Some(Timestamp(i64::try_from(seconds * 1_000_000 + u64::from(nanos / 1000)).ok()?))
}
