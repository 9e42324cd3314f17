//! The thread on which whole transactions run: group commits and heartbeats.
//!
//! Owns: the connection they have, its statements, a transaction's end. Must never know: what is written.
//!
//! Through sqlx every statement is a message to a thread and one back. A group commit has hundreds, and each would wait
//! for its turn on a busy machine: so all of it goes over at once, as one closure. What is written rarely stays with sqlx.

use std::path::{Path, PathBuf};

use ado_proto::Timestamp;
use rusqlite::{Connection, OpenFlags, Params, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::super::{Error, Result};
use super::BUSY_AFTER;
use super::checkpoint::{self, Checkpointer};

/// Transactions that wait for the thread. Whoever asks for one holds the writer, so there is one, and one more that nobody
/// waits for any longer.
const WAITING: usize = 4;
/// Statements that are kept prepared: more than there are.
const STATEMENTS: usize = 32;

type Job = Box<dyn FnOnce(&mut Seat) + Send>;

/// How a transaction ends that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// What it wrote becomes durable.
    Keep,
    /// It wrote nothing worth a write to the disk.
    Undo,
}

/// Hands work to the thread, which ends when this is dropped.
pub(super) struct Transactor {
    jobs: mpsc::Sender<Job>,
}

/// The thread's own.
struct Seat {
    path: PathBuf,
    /// Most pages of the file, as a full disk would have it.
    most_pages: Option<u32>,
    /// `None` before the first transaction, and after one that failed: closing it undid whatever there was.
    connection: Option<Connection>,
    /// `None` before the first transaction.
    checkpointer: Option<Checkpointer>,
}

/// A transaction under way.
pub(super) struct Transaction<'a> {
    connection: &'a Connection,
    /// Its time.
    pub(super) now: Timestamp,
}

impl Transactor {
    /// Starts the thread for the store at `path`, which exists.
    pub(super) fn start(path: &Path) -> Result<Self> {
        let mut seat = Seat { path: path.to_owned(), most_pages: None, connection: None, checkpointer: None };
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING);
        let work = move || {
            while let Some(job) = waiting.blocking_recv() {
                job(&mut seat);
            }
        };
        std::thread::Builder::new()
            .name("transactions".into())
            .spawn(work)
            .map_err(|error| Error::Unavailable(format!("no thread for transactions: {error}")))?;
        Ok(Self { jobs })
    }

    /// Runs `work` in one transaction whose time is `now`'s once it has begun. It goes on when the caller gives up, and what
    /// it returns is dropped then, together with `held`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        held: impl Send + 'static,
        now: impl FnOnce() -> Timestamp + Send + 'static,
        work: impl FnOnce(&Transaction<'_>) -> Result<(T, End)> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        self.send(Box::new(move |seat| {
            let done = seat.transact(now, work);
            drop(held);
            // Whoever gave up finds out from the store what became of it.
            let _ = answer.send(done);
        }))
        .await?;
        result.await.map_err(|_| ended())?
    }

    /// Closes the connections; the next transaction makes others.
    pub(super) async fn close(&self) -> Result<()> {
        let (answer, result) = oneshot::channel();
        self.send(Box::new(move |seat| {
            (seat.connection, seat.checkpointer) = (None, None);
            let _ = answer.send(());
        }))
        .await?;
        result.await.map_err(|_| ended())
    }

    async fn send(&self, job: Job) -> Result<()> {
        self.jobs.send(job).await.map_err(|_| ended())
    }

    /// Lets the file grow to at most this many pages.
    #[cfg(test)]
    pub(super) async fn limit_pages(&self, pages: u32) {
        let limit = move |seat: &mut Seat| (seat.most_pages, seat.connection) = (Some(pages), None);
        self.send(Box::new(limit)).await.unwrap();
    }

    /// Asks the connection that commits.
    #[cfg(test)]
    pub(super) async fn pragma(&self, name: &'static str) -> rusqlite::types::Value {
        let (answer, result) = oneshot::channel();
        let ask = move |seat: &mut Seat| {
            let connection = seat.connection.as_ref().expect("it is kept after a commit");
            let _ = answer.send(connection.pragma_query_value(None, name, |columns| columns.get(0)));
        };
        self.send(Box::new(ask)).await.unwrap();
        result.await.unwrap().unwrap()
    }
}

fn ended() -> Error {
    Error::Unavailable("the thread of transactions has ended".into())
}

impl Seat {
    fn transact<T>(
        &mut self,
        now: impl FnOnce() -> Timestamp,
        work: impl FnOnce(&Transaction<'_>) -> Result<(T, End)>,
    ) -> Result<T> {
        // Put back at a clean end only.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        checkpoint::before_transaction(&connection);
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let writing = Transaction { connection: &tx, now: now() };
        let (value, end) = work(&writing)?;
        match end {
            End::Undo => tx.rollback()?,
            End::Keep => {
                writing.execute("UPDATE meta SET clock = ?", [writing.now.0])?;
                tx.commit().map_err(|error| match error.into() {
                    full @ Error::Full(_) => full,
                    // The commit may be on the disk or not.
                    other => Error::Unavailable(other.to_string()),
                })?;
            }
        }
        self.connection = Some(connection);
        if let Some(checkpointer) = &self.checkpointer {
            checkpointer.after_commit();
        }
        Ok(value)
    }

    fn connect(&mut self) -> Result<Connection> {
        let connection = connect(&self.path)?;
        if let Some(pages) = self.most_pages {
            connection.pragma_update(None, "max_page_count", pages)?;
        }
        checkpoint::watch(&connection);
        if self.checkpointer.is_none() {
            self.checkpointer = Some(Checkpointer::start(&self.path)?);
        }
        Ok(connection)
    }
}

/// A connection that writes and never moves the log by itself.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_AFTER)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

impl Transaction<'_> {
    /// Runs a statement that returns nothing, prepared the first time. How many rows it changed.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        Ok(self.connection.prepare_cached(sql)?.execute(params)?)
    }

    /// What a query finds, each read by `read`.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut read: impl FnMut(&rusqlite::Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut all = Vec::new();
        while let Some(columns) = rows.next()? {
            all.push(read(columns)?);
        }
        Ok(all)
    }

    /// The first thing a query finds.
    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        rows.next()?.map(read).transpose()
    }

    /// The `INTEGER PRIMARY KEY` of the row that was inserted last.
    pub(super) fn last_inserted(&self) -> i64 {
        self.connection.last_insert_rowid()
    }
}
