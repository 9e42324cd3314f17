//! The truth: tasks and their logs, workers, tokens, certificates, events.
//!
//! Owns: transactions, schemas, migrations, chunk formats.
//! Must never know: policy (it runs the pure decisions it is handed, under the row's lock), the network.
//!
//! [`Store`] is thin so that logic lives above it, once. Every implementation passes the same conformance suite.

mod batch;
mod clock;
#[cfg(test)]
mod conformance;
mod fold;
mod log;
mod memory;
mod postgres;
mod rules;
mod sqlite;

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::record::{Desired, Record};
use ado_proto::request::{AuditLine, Events, EventsFrom, ListAudit, Load, SecretInfo, WorkerBounds, WorkerDesired};
use ado_proto::spec::{Containment, Resources};
use ado_proto::{
    Audience, ControllerId, Epoch, GroupId, Incarnation, Namespace, Offset, RequestId, Role, TaskId, Timestamp,
    WorkerId,
};
use async_trait::async_trait;
use bytes::Bytes;

pub use memory::Memory;
pub use postgres::Postgres;
pub use sqlite::Sqlite;

use crate::task::{Breaker, Refusal, Scope, Settled, Task};

/// What a store keeps of a task beside its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The fold of the log.
    pub task: Task,
    /// The right to act for it, while a worker holds it.
    pub lease: Option<Lease>,
    /// What became of it once it had failed for good; `None` of a failed task: it is in the dead letter.
    pub settled: Option<Settled>,
}

impl Row {
    /// Of a task that has not ended, or only now.
    pub fn new(task: Task, lease: Option<Lease>) -> Self {
        Self { task, lease, settled: None }
    }
}

/// The right to act for (task, epoch) until a deadline. The epoch is the task's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub worker: WorkerId,
    /// The start of it that was given the task: no other one may run this epoch.
    pub incarnation: Incarnation,
    /// Whether that start has shown that it knows the attempt. Until then it may be told again.
    pub is_known: bool,
    /// End, on the store's clock. The task is not re-assigned before this and a margin.
    pub expires_at: Timestamp,
}

/// A pure decision, run under the row's lock with the store's clock.
pub type Decide = Box<dyn FnOnce(&Row, Timestamp) -> std::result::Result<Write, Refusal> + Send>;

/// Says what happened to a worker.
pub type WorkerEvent<'a> = &'a (dyn Fn(&Worker) -> NewEvent + Send + Sync);

/// Changes a breaker, which is new if there was none, under its lock and with the store's clock: what it is then, and what
/// happened.
pub type ChangeBreaker = Box<dyn FnOnce(&Breaker, Timestamp) -> (Breaker, Vec<NewEvent>) + Send>;

/// Makes a task with the store's clock; `None`: it is not to be made after all, as an earlier change of the unit showed.
pub type Make = Box<dyn FnOnce(Timestamp) -> Option<Write> + Send>;

/// What a decision writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// The row afterwards. `records` lead to `row.task`.
    pub row: Row,
    /// In offset order, the first at the old row's `next_offset`. May be empty (a lease changed).
    pub records: Vec<Record>,
    /// For `ado events`.
    pub events: Vec<NewEvent>,
}

/// A system event before it has a cursor. Its time is the transaction's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Who may read it.
    pub audience: Audience,
    /// `task.submitted`, `worker.lost`, …
    pub kind: &'static str,
    /// The task, if about one.
    pub task: Option<TaskId>,
    /// The worker, if about one.
    pub worker: Option<WorkerId>,
    /// In words.
    pub text: String,
}

/// One change of one task.
pub enum Change {
    /// A new task.
    Create {
        /// Its id.
        id: TaskId,
        /// Its row and first records.
        make: Make,
    },
    /// A change of an existing one.
    Update {
        /// Its id.
        id: TaskId,
        /// What to write, decided under the row's lock.
        decide: Decide,
    },
}

/// What became of a [`Change`].
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Written.
    Applied(Box<Write>),
    /// The decision refused; the row as it is.
    Refused(Refusal, Box<Row>),
    /// There is no such task.
    Missing,
    /// The row is locked by another transaction: try again in the next batch.
    Locked,
}

/// Changes that become durable together with the memory of the request that asked for them.
pub struct Unit {
    /// In order.
    pub changes: Vec<Change>,
    /// Makes the unit happen once.
    pub once: Option<Once>,
    /// Written to the audit log, if it is a user's mutation.
    pub audit: Option<Audit>,
}

/// What tells a request from others. The body's hash is not part of it: the same key with another body is a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Who asked (`ado://…`).
    pub principal: String,
    /// The request's kind.
    pub kind: u16,
    /// The caller's request id.
    pub id: RequestId,
    /// Hash of the request's body.
    pub body: [u8; 32],
}

/// Idempotency: the key, and what to answer when it comes again.
pub struct Once {
    /// Of the request.
    pub key: Key,
    /// The answer to keep, made from the outcomes.
    #[expect(clippy::type_complexity, reason = "one use; a name would only hide it")]
    pub answer: Box<dyn FnOnce(&[Outcome]) -> Bytes + Send>,
}

/// One line of the audit log. Its time is the transaction's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Where.
    pub namespace: Namespace,
    /// Who (`ado://…`).
    pub principal: String,
    /// What was asked: the request's name.
    pub action: &'static str,
    /// Of what.
    pub target: String,
    /// `ok`, or why not. A store puts the refusal here when it refuses everything that was asked.
    pub result: String,
    /// How often.
    pub count: u32,
}

impl Audit {
    /// Something that was asked once, and done.
    pub fn done(namespace: Namespace, principal: String, action: &'static str, target: impl Into<String>) -> Self {
        Self { namespace, principal, action, target: target.into(), result: "ok".into(), count: 1 }
    }
}

/// What became of a [`Unit`].
#[derive(Debug, Clone, PartialEq)]
pub enum Committed {
    /// Durable now: one outcome a change, and the answer kept for the key.
    Done(Vec<Outcome>, Option<Bytes>),
    /// The key was seen before with the same body: the answer given then.
    Replayed(Bytes),
    /// The key was seen before with another body.
    KeyConflict,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// In offset order without gaps; the first at the asked offset, unless that is past the end. Runs of output and
    /// progress that are no longer kept come as a [`ado_proto::record::Truncated`] each.
    pub records: Vec<Record>,
    /// Length of the log.
    pub next_offset: Offset,
    /// Whether the task is over: no record follows `next_offset`.
    pub ended: bool,
}

/// Which tasks to list; newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFilter {
    /// Whose.
    pub audience: Audience,
    /// Words of [`Task::state_word`]; empty means all.
    pub states: Vec<String>,
    /// Only members of this group.
    pub group: Option<GroupId>,
    /// Only those with this label.
    pub name: Option<String>,
    /// Only those in the dead letter, whatever `states` says: they have failed.
    pub dead: bool,
    /// Only tasks with a lower id.
    pub before: Option<TaskId>,
    /// At most this many.
    pub limit: usize,
}

/// How people name tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Find {
    /// By id.
    Id(TaskId),
    /// By the first characters of the short id, without `task-`.
    Prefix(String),
    /// By group, in order of index.
    Group(GroupId),
    /// By the first characters of the group's short id, without `group-`.
    GroupPrefix(String),
    /// By label; the newest first.
    Name(String),
}

/// A worker as registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Its current start.
    pub incarnation: Incarnation,
    /// Its name.
    pub name: String,
    /// Where it belongs.
    pub namespace: Namespace,
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
    /// What it has for tasks with limits; see [`Resources`].
    pub resources: Resources,
    /// Takes no more work.
    pub draining: bool,
    /// Last heartbeat, on the store's clock.
    pub seen_at: Timestamp,
    /// The start of the controller that renewed its leases last.
    pub via: Option<Incarnation>,
}

/// What somebody wants of a worker. It is kept when the worker is started anew, and when it is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// The state wanted.
    pub desired: WorkerDesired,
    /// Rises with every change.
    pub generation: u64,
    /// When it is to hand back what it still holds.
    pub deadline: Option<Timestamp>,
    /// Who wants it, as `role/name`.
    pub by: String,
}

/// A wish before it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWish {
    /// The state wanted.
    pub desired: WorkerDesired,
    /// How long from now on the worker may keep what it holds.
    pub within: Option<Duration>,
    /// Who wants it.
    pub by: String,
}

/// A controller as it has said that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Its id.
    pub id: ControllerId,
    /// This start of it.
    pub incarnation: Incarnation,
    /// For people.
    pub name: String,
    /// `host:port` it is reached at.
    pub addresses: Vec<String>,
    /// Its build.
    pub build: String,
    /// When this start was first heard of, on the store's clock.
    pub since: Timestamp,
    /// When it was last heard of.
    pub seen_at: Timestamp,
    /// A time of the store's that this start has been told: it bridges nothing that this rules out.
    pub in_touch: Timestamp,
    /// Workers connected to it.
    pub workers: u32,
    /// Viewers that follow logs through it.
    pub viewers: u32,
}

/// What a controller knows of a worker that is connected to it, for the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The worker.
    pub worker: WorkerId,
    /// The start of the controller.
    pub controller: Incarnation,
    /// Attempts it holds.
    pub busy: u32,
    /// How busy its machine is.
    pub load: Load,
    /// Round trip to it.
    pub rtt: Duration,
}

/// A loop that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLoop {
    /// Which.
    pub name: String,
    /// Who.
    pub holder: Incarnation,
    /// Rises with every new holder.
    pub term: u64,
}

/// A queued task that is wanted running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the order of claims; see [`score`].
    pub score: i64,
    /// Which.
    pub id: TaskId,
    /// Where it lives.
    pub namespace: Namespace,
    /// Which workers may take it.
    pub pool: String,
    /// Which agent it needs.
    pub agent: String,
}

/// What waits of one kind: queued tasks that are wanted running and may be claimed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Where they live.
    pub namespace: Namespace,
    /// Which workers may take them.
    pub pool: String,
    /// Which agent they need.
    pub agent: String,
    /// How many there are, due or not.
    pub tasks: u64,
    /// The lowest id, which was submitted first.
    pub oldest: TaskId,
}

/// What a worker's heartbeat says of its leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Who.
    pub worker: WorkerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The start of the controller that heard it.
    pub via: Incarnation,
    /// What it holds, as far as it knows.
    pub holds: Vec<(TaskId, Epoch)>,
    /// It takes no more work.
    pub draining: bool,
}

/// A heartbeat's result.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Renewal {
    /// Pairs whose lease was extended, with the row.
    pub renewed: Vec<Row>,
    /// Pairs that are no longer the worker's.
    pub lost: Vec<(TaskId, Epoch)>,
    /// Tasks the worker holds here but did not name.
    pub unnamed: Vec<Row>,
}

/// A join token or API key. Only a hash of the secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Public id.
    pub id: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// What its holder becomes.
    pub role: Role,
    /// Where.
    pub namespace: Namespace,
    /// The holder's fixed name.
    pub name: Option<String>,
    /// Uses left; `None` is any number.
    pub uses_left: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// End of its life.
    pub expires_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// What its holder may say of itself, if it is a worker.
    pub bounds: WorkerBounds,
}

/// A secret to keep. The store sees it closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedSecret {
    /// What tasks call it by.
    pub name: String,
    /// Where.
    pub namespace: Namespace,
    /// Who sets it.
    pub owner: String,
    /// Its value, closed under a key that is not in the store.
    pub closed: Vec<u8>,
}

/// Why a token was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No token has this secret, or it was revoked.
    #[error("the token is unknown or revoked")]
    Unknown,
    /// Its life is over.
    #[error("the token has expired")]
    Expired,
    /// It has been used as often as it may be.
    #[error("the token has been used already")]
    UsedUp,
}

/// A certificate the CA issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// `ado://…`.
    pub identity: String,
    /// End of its life.
    pub not_after: Timestamp,
}

/// What a store can fail with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, is restarting, or timed out. Whether the last write happened is unknown.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// No space is left where it writes. Nothing was written.
    #[error("the store is out of space: {0}")]
    Full(String),
    /// Its schema is newer than this build, or is not ado's.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
    /// It holds something that cannot be read.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_))
    }
}

/// The result of a store's call.
pub type Result<T> = std::result::Result<T, Error>;

/// Where the truth is kept. All times are the store's own clock.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The store's clock.
    async fn now(&self) -> Result<Timestamp>;

    /// Generation of the logs: another one after a restore from a backup. Cursors belong to a generation.
    fn generation(&self) -> u64;

    /// Commits units in one durable transaction, in order. A refused change or a replayed unit never fails the batch;
    /// changes of the same task within a batch see each other.
    async fn commit(&self, units: Vec<Unit>) -> Result<Vec<Committed>>;

    /// What was answered to a request: [`Committed::Replayed`] or [`Committed::KeyConflict`]; `None`: it is new.
    async fn answered(&self, key: &Key) -> Result<Option<Committed>>;

    /// One task.
    async fn row(&self, id: TaskId) -> Result<Option<Row>>;

    /// Finds tasks; at most `limit`.
    async fn find(&self, audience: &Audience, what: &Find, limit: usize) -> Result<Vec<Row>>;

    /// Lists tasks, newest first.
    async fn list(&self, filter: &ListFilter) -> Result<Vec<Row>>;

    /// Reads a log from `from`: whole records, at least one if there is one, about `max_bytes` in all.
    async fn read(&self, task: TaskId, from: Offset, max_bytes: usize) -> Result<Option<Page>>;

    /// Reads backwards: whole records that end just before `before`, about `max_bytes`, in offset order.
    async fn read_back(&self, task: TaskId, before: Offset, max_bytes: usize) -> Result<Option<Page>>;

    /// The first offset committed at or after `since`; the log's length if there is none.
    async fn offset_since(&self, task: TaskId, since: Timestamp) -> Result<Option<Offset>>;

    /// Queued tasks that are wanted running, due or not, by [`score`] and id; those after a place in this order.
    async fn waiting(&self, after: Option<(i64, TaskId)>, limit: usize) -> Result<Vec<Waiting>>;

    /// How much of each kind [`Store::waiting`] has to tell, in order of namespace, pool and agent.
    async fn backlog(&self) -> Result<Vec<Backlog>>;

    /// Held tasks whose lease ended before `before`.
    async fn expired(&self, before: Timestamp, limit: usize) -> Result<Vec<Row>>;

    /// Tasks of which a limit of time is over, see [`Task::expires`]: the longest first.
    async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<Row>>;

    /// Held tasks of a worker.
    async fn held_by(&self, worker: WorkerId) -> Result<Vec<Row>>;

    /// Registers a worker's start, or the worker anew. Sets `seen_at`, and keeps `via`. A start that was draining still is.
    /// Returns the former row.
    async fn register(&self, worker: Worker) -> Result<Option<Worker>>;

    /// Heartbeats, all together. Each extends leases of the pairs it names by `lease` from now and marks them as known, if
    /// they were given to its start and that is the worker's registered one; sets `seen_at`, `draining` and `via`. One
    /// result for each; `None`: the worker's registered start is another.
    async fn renew(&self, beats: Vec<Beat>, lease: Duration) -> Result<Vec<Option<Renewal>>>;

    /// All workers.
    async fn workers(&self) -> Result<Vec<Worker>>;

    /// Finds the workers not seen since `before` and adds an event for each: one for every silence. Returns them.
    async fn lose_workers(&self, before: Timestamp, event: WorkerEvent<'_>) -> Result<Vec<Worker>>;

    /// Forgets a worker.
    async fn remove_worker(&self, id: WorkerId) -> Result<()>;

    /// Breakers about which anything is known.
    async fn breakers(&self) -> Result<BTreeMap<Scope, Breaker>>;

    /// Changes a breaker. A new one is not kept. Returns it as it is then.
    async fn change_breaker(&self, scope: &Scope, change: ChangeBreaker) -> Result<Breaker>;

    /// Takes or keeps the lease of a loop for `ttl`. Returns its term, which rises with every new holder; `None` while
    /// another holds it.
    async fn hold_loop(&self, name: &str, holder: Incarnation, ttl: Duration) -> Result<Option<u64>>;

    /// Gives a loop's lease back.
    async fn release_loop(&self, name: &str, holder: Incarnation) -> Result<()>;

    /// Loops that are held, in order of name.
    async fn loops(&self) -> Result<Vec<HeldLoop>>;

    /// A controller lives, and knows this of workers connected to it. Sets `seen_at`, and `since` unless it is known. Returns
    /// `seen_at`.
    async fn report(&self, controller: Controller, workers: Vec<Report>) -> Result<Timestamp>;

    /// Controllers that have said that they live, in order of id; those that died too, until the sweep.
    async fn controllers(&self) -> Result<Vec<Controller>>;

    /// Forgets a controller, if this is its newest start.
    async fn remove_controller(&self, id: ControllerId, incarnation: Incarnation) -> Result<()>;

    /// What controllers said last of workers, in order of the worker's id.
    async fn reports(&self) -> Result<Vec<Report>>;

    /// What is wanted of workers; nothing of those who are not there.
    async fn wishes(&self) -> Result<BTreeMap<WorkerId, Wish>>;

    /// Wants something of a worker, and remembers the answer for the key. Returns the wish.
    async fn wish(
        &self,
        worker: WorkerId,
        wish: NewWish,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
        event: Option<NewEvent>,
    ) -> Result<Wish>;

    /// What is kept for all controllers under a name: closed, for none but them.
    async fn item(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Keeps it unless there is one. Returns what is there afterwards.
    async fn put_item(&self, name: &str, item: &[u8]) -> Result<Vec<u8>>;

    /// Keeps a token.
    async fn put_token(&self, token: Token, audit: Audit) -> Result<()>;

    /// Uses a token once.
    async fn take_token(&self, hash: &[u8; 32]) -> Result<std::result::Result<Token, TokenRefusal>>;

    /// Tokens, newest first.
    async fn tokens(&self, audience: &Audience) -> Result<Vec<Token>>;

    /// Forgets a token, and remembers the answer for the key. `false`: there was none, and nothing is remembered.
    async fn revoke_token(
        &self,
        audience: &Audience,
        id: &str,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
    ) -> Result<bool>;

    /// Keeps what a worker may say of itself, in the place of what it might before.
    async fn bind(&self, identity: &str, bounds: &WorkerBounds) -> Result<()>;

    /// What a worker may say of itself.
    async fn bounds(&self, identity: &str) -> Result<WorkerBounds>;

    /// Keeps a secret in the place of the version there was. `only`: not if that one belongs to somebody else, whom it
    /// returns.
    async fn put_secret(
        &self,
        secret: ClosedSecret,
        only: Option<&str>,
        audit: Audit,
    ) -> Result<std::result::Result<SecretInfo, SecretInfo>>;

    /// Secrets, by namespace and name.
    async fn secrets(&self, audience: &Audience) -> Result<Vec<SecretInfo>>;

    /// A secret and its closed value.
    async fn secret(&self, namespace: &Namespace, name: &str) -> Result<Option<(SecretInfo, Vec<u8>)>>;

    /// Forgets a secret. `false`: there was none.
    async fn remove_secret(&self, namespace: &Namespace, name: &str, audit: Audit) -> Result<bool>;

    /// Remembers an issued certificate. `false`: its identity has been revoked, and the certificate must not be used.
    async fn put_certificate(&self, certificate: Certificate) -> Result<bool>;

    /// Denies every live certificate of an identity. Returns their serials. The identity itself is denied renewal. One
    /// without a live certificate is left alone.
    async fn revoke_identity(&self, identity: &str, audit: Audit) -> Result<Vec<String>>;

    /// Serials that are denied and have not expired.
    async fn denied(&self) -> Result<Vec<String>>;

    /// System events from a place on, in order; at most `limit`. Of a tail longer than that the newest.
    async fn events(&self, audience: &Audience, from: EventsFrom, limit: usize) -> Result<Events>;

    /// Adds events that belong to no task.
    async fn add_events(&self, events: Vec<NewEvent>) -> Result<()>;

    /// The audit log, newest first; at most `limit` lines of it.
    async fn audit(&self, audience: &Audience, wanted: &ListAudit) -> Result<Vec<AuditLine>>;

    /// Deletes what has outlived its retention: idempotency keys (24 h), events, breakers, controllers and lost workers that
    /// hold nothing (7 days), lines of the audit log (a year), expired tokens and certificates.
    async fn sweep(&self) -> Result<()>;

    /// Drops the oldest output and progress of a log until what is left has `most` bytes or less: about an eighth more than
    /// necessary. Lifecycle records, notes and checkpoints stay. Returns how many bytes are left, before compression.
    async fn cap_log(&self, task: TaskId, most: u64) -> Result<u64>;

    /// Forgets tasks that ended at least this long ago, and their logs. Returns how many.
    async fn forget_tasks(&self, ended_for: Duration) -> Result<u64>;

    /// Whether the store answers: for `/ready`.
    async fn ping(&self) -> Result<()>;

    /// Flushes and closes.
    async fn close(&self);
}

/// How long an idempotency key is kept. A request id older than this (its UUIDv7 tells) is refused.
pub const KEY_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long system events are kept, and workers that have gone without a word.
pub const EVENT_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long lines of the audit log are kept.
pub const AUDIT_RETENTION: Duration = Duration::from_secs(366 * 24 * 3600);

/// The order of claims: earlier is lower. One step of priority is worth one minute of waiting, so that nothing starves.
pub fn score(not_before: Timestamp, priority: i32) -> i64 {
    not_before.0 / 1000 - i64::from(priority) * 60_000
}

/// Whether a task may be claimed: queued, due, and wanted running.
pub fn is_claimable(task: &Task, now: Timestamp) -> bool {
    task.desired == Desired::Running
        && matches!(task.state, crate::task::State::Queued { not_before } if not_before <= now)
}
