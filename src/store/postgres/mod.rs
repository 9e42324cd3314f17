//! The store of many controllers: one PostgreSQL database, in a schema `ado` of its own.
//!
//! Owns: the schema, transactions and their locks, partitions, the pool. Must never know: what a decision decides.
//!
//! A commit locks the rows of its tasks in order of id and skips those that somebody else holds; what is left is tried
//! once more and then waits a moment for them, so that a flood on one controller cannot keep another's change out for
//! ever. Every transaction takes its locks in the same order (worker, tasks by id, request keys by key, meta), so none
//! waits in a circle.
//!
//! Needs sessions: a pooler between us and the server must not share a session between transactions.

mod access;
mod clock;
mod commit;
mod error;
mod events;
mod fleet;
mod logs;
mod mesh;
mod schema;
mod secrets;
mod tasks;
#[cfg(test)]
mod tests;
mod write;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::request::{AuditLine, Events, EventsFrom, ListAudit, SecretInfo, WorkerBounds};
use ado_proto::{Audience, ControllerId, Incarnation, Namespace, Offset, TaskId, Timestamp, WorkerId};
use async_trait::async_trait;
use bytes::Bytes;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool, Row as _, Transaction, query};
use tokio::time::Instant;

use self::clock::Clock;
use self::error::Tried;
use super::{
    Audit, Backlog, Beat, Certificate, ChangeBreaker, ClosedSecret, Committed, Controller, Error, Find, HeldLoop, Key,
    ListFilter, NewEvent, NewWish, Page, Renewal, Report, Result, Row, Store, Token, TokenRefusal, Unit, Waiting, Wish,
    Worker, WorkerEvent, rules,
};
use crate::env::Env;
use crate::task::{Breaker, Scope};

/// Connections of one controller: one commits, some renew leases, the others read. A server allows 100 unless told.
const CONNECTIONS: u32 = 12;
/// How long to wait for a connection, new or given back.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection that was unused for so long is asked whether it still is one.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// The server gives up a statement after this, and we a call after a little more: an answer that is lost on the way must
/// not hold a caller for ever.
const STATEMENT_WITHIN: Duration = Duration::from_secs(15);
const CALL_WITHIN: Duration = Duration::from_secs(20);
/// The same for calls that delete or ask for much.
const SWEEP_WITHIN: Duration = Duration::from_secs(600);
/// How long anybody waits for a lock.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
/// A transaction whose controller froze half-way is undone after this: its rows are free for the others.
const IDLE_WITHIN: Duration = Duration::from_secs(5);
/// Days for which partitions are made ahead of time.
const DAYS_AHEAD: i32 = 2;
/// A day's length.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// A store in a PostgreSQL database.
pub struct Postgres {
    env: Env,
    pool: PgPool,
    clock: Clock,
    generation: AtomicU64,
    faults: Arc<Faults>,
    /// Days whose partition is there.
    days: Mutex<BTreeSet<i32>>,
}

/// When connections were last found to be dead. Those that are older are not used again.
#[derive(Default)]
struct Faults(Mutex<Option<Instant>>);

impl Faults {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection of this age was there already.
    fn reach(&self, age: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| age >= at.elapsed())
    }
}

impl Postgres {
    /// Opens the store in the database at `url` (`postgres://user:password@host:port/database?sslmode=verify-full`), making
    /// or migrating its schema if need be.
    ///
    /// # Errors
    /// [`Error::Unusable`] when the schema is newer than this build or not ado's, or the server does not let us in;
    /// [`Error::Unavailable`] when it cannot be reached.
    pub async fn open(url: &str, env: Env) -> Result<Self> {
        Self::open_at(url, env, None).await
    }

    /// Opens it with a clock that tests set instead of the server's.
    #[cfg(test)]
    pub(super) async fn open_by_hand(url: &str, hand: Env) -> Result<Self> {
        Self::open_at(url, hand.clone(), Some(hand)).await
    }

    async fn open_at(url: &str, env: Env, hand: Option<Env>) -> Result<Self> {
        let options = options(url)?;
        let prepared = tokio::time::timeout(SWEEP_WITHIN, schema::prepare(&options, &env)).await;
        let meta = prepared.map_err(|_| too_late(SWEEP_WITHIN))??;
        let faults = Arc::new(Faults::default());
        let store = Self {
            pool: pool(options, faults.clone()),
            clock: Clock::new(meta.clock, hand),
            env,
            generation: AtomicU64::new(meta.generation),
            faults,
            days: Mutex::default(),
        };
        let now = store.now().await?;
        store.within(CALL_WITHIN, store.make_ahead(now)).await?;
        Ok(store)
    }

    /// Begins another generation of the logs: their cursors are good no more. For a store restored from a backup.
    ///
    /// # Errors
    /// As every write.
    pub async fn regenerate(&self) -> Result<u64> {
        let generation = rules::generation(&self.env);
        self.within(CALL_WITHIN, async {
            query("UPDATE meta SET generation = $1").bind(int(generation)).execute(&self.pool).await?;
            Ok(())
        })
        .await?;
        self.generation.store(generation, Ordering::Release);
        Ok(generation)
    }

    /// Does one call's work, if it does not take too long.
    async fn within<T>(&self, limit: Duration, work: impl Future<Output = Tried<T>>) -> Result<T> {
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => {
                if failure.is_severed() {
                    self.faults.note();
                }
                Err(failure.into())
            }
            Err(_) => {
                self.faults.note();
                Err(too_late(limit))
            }
        }
    }

    async fn call<T>(&self, work: impl Future<Output = Tried<T>>) -> Result<T> {
        self.within(CALL_WITHIN, work).await
    }

    async fn begin(&self) -> Tried<Transaction<'static, sqlx::Postgres>> {
        Ok(self.pool.begin().await?)
    }

    /// Makes the partitions that tasks of these days need. In transactions of their own: a commit changes no schema.
    async fn make_days(&self, days: BTreeSet<i32>) -> Tried<()> {
        let known = |day: &i32| self.days.lock().unwrap_or_else(PoisonError::into_inner).contains(day);
        for day in days.into_iter().filter(|day| !known(day)) {
            query("SELECT make_partition($1)").bind(day).execute(&self.pool).await?;
            self.days.lock().unwrap_or_else(PoisonError::into_inner).insert(day);
        }
        Ok(())
    }

    async fn make_ahead(&self, now: Timestamp) -> Tried<()> {
        let today = day_of(u64::try_from(now.0 / 1000).unwrap_or(0));
        self.make_days((today..=today + DAYS_AHEAD).collect()).await
    }

    async fn read_clock(&self) -> Tried<Timestamp> {
        self.clock.read(&mut *self.pool.acquire().await?).await
    }

    async fn answer(&self) -> Tried<()> {
        let standby = query("SELECT pg_is_in_recovery() FROM meta").fetch_one(&self.pool).await?;
        match standby.try_get(0)? {
            true => Err(Error::Unavailable("the server is a standby".into()).into()),
            false => Ok(()),
        }
    }
}

fn options(url: &str) -> Result<PgConnectOptions> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Error::Unusable("the database's URL does not begin with postgres://".into()));
    }
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| Error::Unusable(format!("the database's URL is not one: {error}")))?;
    let ms = |limit: Duration| format!("{}ms", limit.as_millis());
    Ok(options
        .application_name("ado")
        .options([
            ("search_path", "ado".into()),
            // Acknowledged is on the disk, whatever the server's own setting is.
            ("synchronous_commit", "on".into()),
            ("default_transaction_isolation", "read committed".into()),
            ("statement_timeout", ms(STATEMENT_WITHIN)),
            ("lock_timeout", ms(LOCK_WITHIN)),
            ("idle_in_transaction_session_timeout", ms(IDLE_WITHIN)),
            // A plan that was made while a table was empty must not read all of it later: walk down an index, in its order.
            ("enable_seqscan", "off".into()),
            ("enable_bitmapscan", "off".into()),
            // Small statements, many of them: compiling one would take a hundred times as long as running it.
            ("jit", "off".into()),
            ("client_min_messages", "error".into()),
        ])
        .disable_statement_logging())
}

fn pool(options: PgConnectOptions, faults: Arc<Faults>) -> PgPool {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_WITHIN)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .before_acquire(move |connection, meta| {
            let dead = faults.reach(meta.age);
            Box::pin(async move {
                let doubtful = !dead && meta.idle_for >= DOUBT_AFTER;
                Ok(!dead && (!doubtful || connection.ping().await.is_ok()))
            })
        })
        .connect_lazy_with(options)
}

fn too_late(limit: Duration) -> Error {
    Error::Unavailable(format!("no answer within {} s", limit.as_secs()))
}

/// The day of an instant, counted from the epoch.
fn day_of(ms: u64) -> i32 {
    i32::try_from(ms / DAY_MS).unwrap_or(i32::MAX)
}

/// The day of a task's creation: the first 48 bits of a UUIDv7 are milliseconds.
fn day(task: TaskId) -> i32 {
    day_of((task.0.as_u128() >> 80) as u64)
}

/// A count as PostgreSQL keeps it. What callers ask for may be larger than anything that is there.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A length or limit as PostgreSQL keeps it.
fn size(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Text as PostgreSQL can keep it: without the one character it refuses.
fn text(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => Cow::Owned(text.replace('\0', "\u{fffd}")),
        false => Cow::Borrowed(text),
    }
}

/// The namespace to restrict a query to.
fn scope(audience: &Audience) -> Option<Cow<'_, str>> {
    match audience {
        Audience::Everywhere => None,
        Audience::Namespace(namespace) => Some(text(&namespace.0)),
    }
}

#[async_trait]
impl Store for Postgres {
    async fn now(&self) -> Result<Timestamp> {
        self.call(self.read_clock()).await
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    async fn commit(&self, units: Vec<Unit>) -> Result<Vec<Committed>> {
        self.call(self.commit_units(units)).await
    }

    async fn answered(&self, key: &Key) -> Result<Option<Committed>> {
        self.call(self.seen(key)).await
    }

    async fn row(&self, id: TaskId) -> Result<Option<Row>> {
        self.call(self.find_row(id)).await
    }

    async fn find(&self, audience: &Audience, what: &Find, limit: usize) -> Result<Vec<Row>> {
        self.call(self.find_rows(audience, what, limit)).await
    }

    async fn list(&self, filter: &ListFilter) -> Result<Vec<Row>> {
        self.call(self.list_rows(filter)).await
    }

    async fn read(&self, task: TaskId, from: Offset, max_bytes: usize) -> Result<Option<Page>> {
        self.call(self.read_forward(task, from, max_bytes)).await
    }

    async fn read_back(&self, task: TaskId, before: Offset, max_bytes: usize) -> Result<Option<Page>> {
        self.call(self.read_backward(task, before, max_bytes)).await
    }

    async fn offset_since(&self, task: TaskId, since: Timestamp) -> Result<Option<Offset>> {
        self.call(self.first_since(task, since)).await
    }

    async fn waiting(&self, after: Option<(i64, TaskId)>, limit: usize) -> Result<Vec<Waiting>> {
        self.call(self.waiting_after(after, limit)).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>> {
        self.call(self.waiting_of_each()).await
    }

    async fn expired(&self, before: Timestamp, limit: usize) -> Result<Vec<Row>> {
        self.call(self.expired_rows(before, limit)).await
    }

    async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<Row>> {
        self.call(self.overdue_rows(now, limit)).await
    }

    async fn held_by(&self, worker: WorkerId) -> Result<Vec<Row>> {
        self.call(self.held_rows(worker)).await
    }

    async fn register(&self, worker: Worker) -> Result<Option<Worker>> {
        self.call(self.register_worker(worker)).await
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration) -> Result<Vec<Option<Renewal>>> {
        self.call(self.renew_leases(&beats, lease)).await
    }

    async fn workers(&self) -> Result<Vec<Worker>> {
        self.call(self.all_workers()).await
    }

    async fn lose_workers(&self, before: Timestamp, event: WorkerEvent<'_>) -> Result<Vec<Worker>> {
        self.call(self.silent_workers(before, event)).await
    }

    async fn remove_worker(&self, id: WorkerId) -> Result<()> {
        self.call(self.forget_worker(id)).await
    }

    async fn breakers(&self) -> Result<BTreeMap<Scope, Breaker>> {
        self.call(self.all_breakers()).await
    }

    async fn change_breaker(&self, scope: &Scope, change: ChangeBreaker) -> Result<Breaker> {
        self.call(self.one_breaker(scope, change)).await
    }

    async fn hold_loop(&self, name: &str, holder: Incarnation, ttl: Duration) -> Result<Option<u64>> {
        self.call(self.take_loop(name, holder, ttl)).await
    }

    async fn release_loop(&self, name: &str, holder: Incarnation) -> Result<()> {
        self.call(self.give_back_loop(name, holder)).await
    }

    async fn loops(&self) -> Result<Vec<HeldLoop>> {
        self.call(self.held_loops()).await
    }

    async fn report(&self, controller: Controller, workers: Vec<Report>) -> Result<Timestamp> {
        self.call(self.keep_report(controller, workers)).await
    }

    async fn controllers(&self) -> Result<Vec<Controller>> {
        self.call(self.all_controllers()).await
    }

    async fn remove_controller(&self, id: ControllerId, incarnation: Incarnation) -> Result<()> {
        self.call(self.forget_controller(id, incarnation)).await
    }

    async fn reports(&self) -> Result<Vec<Report>> {
        self.call(self.all_reports()).await
    }

    async fn wishes(&self) -> Result<BTreeMap<WorkerId, Wish>> {
        self.call(self.all_wishes()).await
    }

    async fn wish(
        &self,
        worker: WorkerId,
        wish: NewWish,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
        event: Option<NewEvent>,
    ) -> Result<Wish> {
        self.call(self.keep_wish(worker, wish, kept, audit, event)).await
    }

    async fn item(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.call(self.find_item(name)).await
    }

    async fn put_item(&self, name: &str, item: &[u8]) -> Result<Vec<u8>> {
        self.call(self.keep_item(name, item)).await
    }

    async fn put_token(&self, token: Token, audit: Audit) -> Result<()> {
        self.call(self.keep_token(token, audit)).await
    }

    async fn take_token(&self, hash: &[u8; 32]) -> Result<std::result::Result<Token, TokenRefusal>> {
        self.call(self.use_token(hash)).await
    }

    async fn tokens(&self, audience: &Audience) -> Result<Vec<Token>> {
        self.call(self.all_tokens(audience)).await
    }

    async fn revoke_token(
        &self,
        audience: &Audience,
        id: &str,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
    ) -> Result<bool> {
        self.call(self.forget_token(audience, id, kept, audit)).await
    }

    async fn bind(&self, identity: &str, bounds: &WorkerBounds) -> Result<()> {
        self.call(self.keep_bounds(identity, bounds)).await
    }

    async fn bounds(&self, identity: &str) -> Result<WorkerBounds> {
        self.call(self.read_bounds(identity)).await
    }

    async fn put_secret(
        &self,
        secret: ClosedSecret,
        only: Option<&str>,
        audit: Audit,
    ) -> Result<std::result::Result<SecretInfo, SecretInfo>> {
        self.call(self.keep_secret(secret, only, audit)).await
    }

    async fn secrets(&self, audience: &Audience) -> Result<Vec<SecretInfo>> {
        self.call(self.all_secrets(audience)).await
    }

    async fn secret(&self, namespace: &Namespace, name: &str) -> Result<Option<(SecretInfo, Vec<u8>)>> {
        self.call(self.read_secret(namespace, name)).await
    }

    async fn remove_secret(&self, namespace: &Namespace, name: &str, audit: Audit) -> Result<bool> {
        self.call(self.forget_secret(namespace, name, audit)).await
    }

    async fn put_certificate(&self, certificate: Certificate) -> Result<bool> {
        self.call(self.keep_certificate(certificate)).await
    }

    async fn revoke_identity(&self, identity: &str, audit: Audit) -> Result<Vec<String>> {
        self.call(self.deny_identity(identity, audit)).await
    }

    async fn denied(&self) -> Result<Vec<String>> {
        self.call(self.denied_serials()).await
    }

    async fn events(&self, audience: &Audience, from: EventsFrom, limit: usize) -> Result<Events> {
        self.call(self.read_events(audience, from, limit)).await
    }

    async fn add_events(&self, events: Vec<NewEvent>) -> Result<()> {
        self.call(self.keep_events(events)).await
    }

    async fn audit(&self, audience: &Audience, wanted: &ListAudit) -> Result<Vec<AuditLine>> {
        self.call(self.audit_lines(audience, wanted)).await
    }

    async fn sweep(&self) -> Result<()> {
        self.within(SWEEP_WITHIN, self.delete_outlived()).await
    }

    async fn cap_log(&self, task: TaskId, most: u64) -> Result<u64> {
        self.within(SWEEP_WITHIN, self.shorten_log(task, most)).await
    }

    async fn forget_tasks(&self, ended_for: Duration) -> Result<u64> {
        self.within(SWEEP_WITHIN, self.forget_ended(ended_for)).await
    }

    async fn ping(&self) -> Result<()> {
        self.call(self.answer()).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
