//! Moves what was committed from the write-ahead log into the file, beside the commits: by itself SQLite does so within
//! every commit that finds the log long, which then waits for two more syncs and all that is moved.
//!
//! Owns: when, and the thread. Must never know: what is in the log.

use std::cell::Cell;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use rusqlite::Connection;

use super::super::{Error, Result};
use super::transact;

/// Pages of the log from which on it is moved: 4 MiB. Shorter, the same pages would be moved again and again.
const FROM: i32 = 512;
/// Pages of the log from which on the next commit waits until it is moved: 32 MiB. While commits go on, the log begins anew
/// only if one of them finds that all of it was moved.
const AT_MOST: i32 = 4096;

thread_local! {
    /// Pages of the log after the last commit of this thread's connection: SQLite tells a plain function.
    static PAGES: Cell<i32> = const { Cell::new(0) };
}

/// Notes how long the log is after each commit of this thread's connection.
pub(super) fn watch(connection: &Connection) {
    PAGES.set(0);
    connection.wal_hook(Some(|_, pages| {
        PAGES.set(pages);
        Ok(())
    }));
}

/// The thread that moves.
pub(super) struct Checkpointer {
    wanted: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts it for the store at `path`.
    pub(super) fn start(path: &Path) -> Result<Self> {
        // One waits: what is committed until its turn is moved with it.
        let (wanted, asked) = sync_channel(1);
        let path = path.to_owned();
        let work = move || {
            let mut connection = None;
            while asked.recv().is_ok() {
                let result = match &connection {
                    Some(connection) => run(connection),
                    None => transact::connect(&path).and_then(|new| run(connection.insert(new))),
                };
                if let Err(error) = result {
                    tracing::debug!(%error, "what was committed is not moved yet");
                    connection = None;
                }
            }
        };
        let thread = Builder::new()
            .name("checkpoints".into())
            .spawn(work)
            .map_err(|error| Error::Unavailable(format!("no thread for checkpoints: {error}")))?;
        Ok(Self { wanted: Some(wanted), thread: Some(thread) })
    }

    /// After a commit: asks for it if the log has become long.
    pub(super) fn after_commit(&self) {
        if PAGES.get() >= FROM {
            // Full: it is asked already.
            let _ = self.wanted.as_ref().map(|wanted| wanted.try_send(()));
        }
    }
}

impl Drop for Checkpointer {
    /// Its connection is closed afterwards.
    fn drop(&mut self) {
        drop(self.wanted.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of checkpoints has panicked");
        }
    }
}

/// Before a transaction: moves the log if it has become too long. Nobody else writes, so all of it is moved, unless
/// somebody reads from it or the thread is at it: then the next one tries again.
pub(super) fn before_transaction(connection: &Connection) {
    if PAGES.get() >= AT_MOST
        && let Err(error) = run(connection)
    {
        tracing::debug!(%error, "the log of writes stays long");
    }
}

/// Waits for nobody.
fn run(connection: &Connection) -> Result<()> {
    Ok(connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
}
