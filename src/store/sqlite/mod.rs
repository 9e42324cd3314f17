//! The embedded store: one SQLite file, opened by one controller at a time.
//!
//! Owns: the schema, the one writer, the readers. Commits are serialised: whoever holds the writer has all rows locked. It
//! writes through one of two connections: commits and heartbeats as whole transactions on a thread (see [`transact`]), all
//! else a statement at a time.
//! Must never know: what a decision decides.

mod access;
mod checkpoint;
mod commit;
mod error;
mod fleet;
mod logs;
mod mesh;
mod schema;
mod secrets;
mod tasks;
#[cfg(test)]
mod tests;
mod transact;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ado_proto::request::{AuditLine, Events, EventsFrom, ListAudit, SecretInfo, WorkerBounds};
use ado_proto::{Audience, ControllerId, Incarnation, Namespace, Offset, TaskId, Timestamp, WorkerId};
use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool, query};
use tokio::sync::{Mutex, MutexGuard};

use self::transact::{End, Transaction, Transactor};
use super::clock::Clock;
use super::{
    Audit, Backlog, Beat, Certificate, ChangeBreaker, ClosedSecret, Committed, Controller, Error, Find, HeldLoop, Key,
    ListFilter, NewEvent, NewWish, Page, Renewal, Report, Result, Row, Store, Token, TokenRefusal, Unit, Waiting, Wish,
    Worker, WorkerEvent, rules,
};
use crate::env::Env;
use crate::task::{Breaker, Scope};

/// How long to wait for a lock of another process: a backup, a shell.
const BUSY_AFTER: Duration = Duration::from_secs(5);
/// Connections that read beside the writer. Two cores do not serve more at once.
const READERS: u32 = 4;
/// Rows a reader runs ahead of whoever takes them: chunks are up to half a megabyte each.
const ROWS_AHEAD: usize = 8;

/// A store in one file.
pub struct Sqlite {
    env: Env,
    clock: Arc<Clock>,
    generation: AtomicU64,
    readers: SqlitePool,
    writer: Arc<Mutex<Writer>>,
    transactor: Transactor,
}

/// The right to write, and the connection for what is written a statement at a time. It is taken out for a transaction and
/// put back at its clean end: after an error, or when a caller gives up half-way, it is closed, which undoes what it had
/// done.
struct Writer {
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
}

/// A transaction of the writer. Dropped, it is undone.
struct Writing<'a> {
    writer: MutexGuard<'a, Writer>,
    connection: SqliteConnection,
    /// Its time.
    now: Timestamp,
}

impl Sqlite {
    /// Opens the store at `path`, making or migrating it if need be. The file is readable by its owner only.
    ///
    /// # Errors
    /// [`Error::Unusable`] when its schema is newer than this build, or it is not ado's; [`Error::Unavailable`] when it
    /// cannot be opened.
    pub async fn open(path: &Path, env: Env) -> Result<Self> {
        let meta = schema::prepare(path, &env).await?;
        let options = connect(path).foreign_keys(true).synchronous(SqliteSynchronous::Full);
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY_AFTER)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone().read_only(true).row_buffer_size(ROWS_AHEAD));
        Ok(Self {
            clock: Arc::new(Clock::new(env.clone(), meta.clock)),
            env,
            generation: AtomicU64::new(meta.generation),
            readers,
            writer: Arc::new(Mutex::new(Writer {
                // See [`checkpoint`].
                options: options.journal_mode(SqliteJournalMode::Wal).pragma("wal_autocheckpoint", "0"),
                connection: None,
            })),
            transactor: Transactor::start(path)?,
        })
    }

    /// Begins another generation of the logs: their cursors are good no more. For a store restored from a backup.
    ///
    /// # Errors
    /// As every write.
    pub async fn regenerate(&self) -> Result<u64> {
        let generation = rules::generation(&self.env);
        let mut tx = self.write().await?;
        query("UPDATE meta SET generation = ?").bind(int(generation)).execute(&mut tx.connection).await?;
        tx.commit().await?;
        self.generation.store(generation, Ordering::Release);
        Ok(generation)
    }

    /// Runs `work` as one transaction: nobody else writes meanwhile. It is done or not done when the caller gives up.
    async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<(T, End)> + Send + 'static,
    ) -> Result<T> {
        let writer = self.writer.clone().lock_owned().await;
        if self.readers.is_closed() {
            return Err(Error::Unavailable("it is closed".into()));
        }
        let clock = self.clock.clone();
        self.transactor.run(writer, move || clock.now(), work).await
    }

    /// Begins a transaction: nobody else writes until it ends.
    async fn write(&self) -> Result<Writing<'_>> {
        let mut writer = self.writer.lock().await;
        if self.readers.is_closed() {
            return Err(Error::Unavailable("it is closed".into()));
        }
        let mut connection = match writer.connection.take() {
            Some(connection) => connection,
            None => writer.options.connect().await?,
        };
        query("BEGIN IMMEDIATE").execute(&mut connection).await?;
        Ok(Writing { writer, connection, now: self.clock.now() })
    }
}

impl Writing<'_> {
    /// Makes it durable.
    async fn commit(mut self) -> Result<()> {
        query("UPDATE meta SET clock = ?").bind(self.now.0).execute(&mut self.connection).await?;
        match query("COMMIT").execute(&mut self.connection).await.map_err(Error::from) {
            Ok(_) => self.writer.connection = Some(self.connection),
            Err(full @ Error::Full(_)) => return Err(full),
            // The commit may be on the disk or not.
            Err(other) => return Err(Error::Unavailable(other.to_string())),
        }
        Ok(())
    }

    /// Ends it without a trace.
    async fn undo(mut self) -> Result<()> {
        query("ROLLBACK").execute(&mut self.connection).await?;
        self.writer.connection = Some(self.connection);
        Ok(())
    }
}

fn connect(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_AFTER).disable_statement_logging()
}

/// A count as SQLite keeps it. What callers ask for may be larger than anything that is there.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A length or limit as SQLite keeps it.
fn size(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The namespace to restrict a query to.
fn scope(audience: &Audience) -> Option<&str> {
    match audience {
        Audience::Everywhere => None,
        Audience::Namespace(namespace) => Some(&namespace.0),
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn now(&self) -> Result<Timestamp> {
        Ok(self.clock.now())
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    async fn commit(&self, units: Vec<Unit>) -> Result<Vec<Committed>> {
        self.commit_units(units).await
    }

    async fn answered(&self, key: &Key) -> Result<Option<Committed>> {
        self.seen(key).await
    }

    async fn row(&self, id: TaskId) -> Result<Option<Row>> {
        self.find_row(id).await
    }

    async fn find(&self, audience: &Audience, what: &Find, limit: usize) -> Result<Vec<Row>> {
        self.find_rows(audience, what, limit).await
    }

    async fn list(&self, filter: &ListFilter) -> Result<Vec<Row>> {
        self.list_rows(filter).await
    }

    async fn read(&self, task: TaskId, from: Offset, max_bytes: usize) -> Result<Option<Page>> {
        self.read_forward(task, from, max_bytes).await
    }

    async fn read_back(&self, task: TaskId, before: Offset, max_bytes: usize) -> Result<Option<Page>> {
        self.read_backward(task, before, max_bytes).await
    }

    async fn offset_since(&self, task: TaskId, since: Timestamp) -> Result<Option<Offset>> {
        self.first_since(task, since).await
    }

    async fn waiting(&self, after: Option<(i64, TaskId)>, limit: usize) -> Result<Vec<Waiting>> {
        self.waiting_after(after, limit).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>> {
        self.waiting_of_each().await
    }

    async fn expired(&self, before: Timestamp, limit: usize) -> Result<Vec<Row>> {
        self.expired_rows(before, limit).await
    }

    async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<Row>> {
        self.overdue_rows(now, limit).await
    }

    async fn held_by(&self, worker: WorkerId) -> Result<Vec<Row>> {
        self.held_rows(worker).await
    }

    async fn register(&self, worker: Worker) -> Result<Option<Worker>> {
        self.register_worker(worker).await
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration) -> Result<Vec<Option<Renewal>>> {
        self.renew_leases(beats, lease).await
    }

    async fn workers(&self) -> Result<Vec<Worker>> {
        self.all_workers().await
    }

    async fn lose_workers(&self, before: Timestamp, event: WorkerEvent<'_>) -> Result<Vec<Worker>> {
        self.silent_workers(before, event).await
    }

    async fn remove_worker(&self, id: WorkerId) -> Result<()> {
        self.forget_worker(id).await
    }

    async fn breakers(&self) -> Result<BTreeMap<Scope, Breaker>> {
        self.all_breakers().await
    }

    async fn change_breaker(&self, scope: &Scope, change: ChangeBreaker) -> Result<Breaker> {
        self.one_breaker(scope, change).await
    }

    async fn hold_loop(&self, name: &str, holder: Incarnation, ttl: Duration) -> Result<Option<u64>> {
        self.take_loop(name, holder, ttl).await
    }

    async fn release_loop(&self, name: &str, holder: Incarnation) -> Result<()> {
        self.give_back_loop(name, holder).await
    }

    async fn loops(&self) -> Result<Vec<HeldLoop>> {
        self.held_loops().await
    }

    async fn report(&self, controller: Controller, workers: Vec<Report>) -> Result<Timestamp> {
        self.keep_report(controller, workers).await
    }

    async fn controllers(&self) -> Result<Vec<Controller>> {
        self.all_controllers().await
    }

    async fn remove_controller(&self, id: ControllerId, incarnation: Incarnation) -> Result<()> {
        self.forget_controller(id, incarnation).await
    }

    async fn reports(&self) -> Result<Vec<Report>> {
        self.all_reports().await
    }

    async fn wishes(&self) -> Result<BTreeMap<WorkerId, Wish>> {
        self.all_wishes().await
    }

    async fn wish(
        &self,
        worker: WorkerId,
        wish: NewWish,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
        event: Option<NewEvent>,
    ) -> Result<Wish> {
        self.keep_wish(worker, wish, kept, audit, event).await
    }

    async fn item(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.find_item(name).await
    }

    async fn put_item(&self, name: &str, item: &[u8]) -> Result<Vec<u8>> {
        self.keep_item(name, item).await
    }

    async fn put_token(&self, token: Token, audit: Audit) -> Result<()> {
        self.keep_token(token, audit).await
    }

    async fn take_token(&self, hash: &[u8; 32]) -> Result<std::result::Result<Token, TokenRefusal>> {
        self.use_token(hash).await
    }

    async fn tokens(&self, audience: &Audience) -> Result<Vec<Token>> {
        self.all_tokens(audience).await
    }

    async fn revoke_token(
        &self,
        audience: &Audience,
        id: &str,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
    ) -> Result<bool> {
        self.forget_token(audience, id, kept, audit).await
    }

    async fn bind(&self, identity: &str, bounds: &WorkerBounds) -> Result<()> {
        self.keep_bounds(identity, bounds).await
    }

    async fn bounds(&self, identity: &str) -> Result<WorkerBounds> {
        self.read_bounds(identity).await
    }

    async fn put_secret(
        &self,
        secret: ClosedSecret,
        only: Option<&str>,
        audit: Audit,
    ) -> Result<std::result::Result<SecretInfo, SecretInfo>> {
        self.keep_secret(secret, only, audit).await
    }

    async fn secrets(&self, audience: &Audience) -> Result<Vec<SecretInfo>> {
        self.all_secrets(audience).await
    }

    async fn secret(&self, namespace: &Namespace, name: &str) -> Result<Option<(SecretInfo, Vec<u8>)>> {
        self.read_secret(namespace, name).await
    }

    async fn remove_secret(&self, namespace: &Namespace, name: &str, audit: Audit) -> Result<bool> {
        self.forget_secret(namespace, name, audit).await
    }

    async fn put_certificate(&self, certificate: Certificate) -> Result<bool> {
        self.keep_certificate(certificate).await
    }

    async fn revoke_identity(&self, identity: &str, audit: Audit) -> Result<Vec<String>> {
        self.deny_identity(identity, audit).await
    }

    async fn denied(&self) -> Result<Vec<String>> {
        self.denied_serials().await
    }

    async fn events(&self, audience: &Audience, from: EventsFrom, limit: usize) -> Result<Events> {
        self.read_events(audience, from, limit).await
    }

    async fn add_events(&self, events: Vec<NewEvent>) -> Result<()> {
        self.keep_events(events).await
    }

    async fn audit(&self, audience: &Audience, wanted: &ListAudit) -> Result<Vec<AuditLine>> {
        self.audit_lines(audience, wanted).await
    }

    async fn sweep(&self) -> Result<()> {
        self.delete_outlived().await
    }

    async fn cap_log(&self, task: TaskId, most: u64) -> Result<u64> {
        self.shorten_log(task, most).await
    }

    async fn forget_tasks(&self, ended_for: Duration) -> Result<u64> {
        self.forget_ended(ended_for).await
    }

    async fn ping(&self) -> Result<()> {
        query("SELECT clock FROM meta").fetch_one(&self.readers).await?;
        Ok(())
    }

    async fn close(&self) {
        let mut writer = self.writer.lock().await;
        self.readers.close().await;
        if let Err(error) = self.transactor.close().await {
            tracing::warn!(%error, "the store did not close cleanly");
        }
        if let Some(connection) = writer.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the store did not close cleanly");
        }
    }
}

#[cfg(test)]
impl Sqlite {
    /// Lets the file grow to at most this many pages, as a full disk would; `u32::MAX` is the normal bound.
    pub(super) async fn limit_pages(&self, pages: u32) {
        let mut writer = self.writer.lock().await;
        writer.options = writer.options.clone().pragma("max_page_count", pages.to_string());
        writer.connection = None;
        self.transactor.limit_pages(pages).await;
    }
}
