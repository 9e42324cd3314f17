//! Writes what a session sees, in a thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::request::TaskInfo;
use ado_proto::session::Records;
use ado_proto::{TaskId, Timestamp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::logs::{self, Name};
use super::tasks::{self, KnownTask};
use super::{Place, logs as log_files};
use crate::env::Env;

/// Messages that may wait for the thread. When it is full, what comes is skipped.
const QUEUE: usize = 256;
/// Bytes of records that may wait for the thread.
const QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// How long records wait for others to be written with.
const LINGER: Duration = Duration::from_millis(100);
/// Bytes written between two looks at how much all logs take.
const SWEEP_EVERY: u64 = 16 * 1024 * 1024;
/// Bytes of records that are kept as they come, and how many are added to them a second. What comes faster is a flood: to
/// keep all of it would take the time that showing it needs.
const BURST: u64 = 8 * 1024 * 1024;
const STEADY: u64 = 1024 * 1024;
/// Bytes of a flood that wait for a quieter moment, or for the end: the newest.
const LATE: usize = 1024 * 1024;
/// Logs held open at a time; those of a group are followed all at once.
const OPEN_LOGS: usize = 64;

/// Is told what a session sees. Clones share the thread; it ends when [`Recorder::finish`] is called or the last is dropped.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Option<SyncSender<Seen>>>,
    done: Mutex<Option<oneshot::Receiver<()>>>,
    load: Arc<Load>,
    env: Env,
}

/// What both sides know of the queue.
#[derive(Default)]
struct Load {
    /// Bytes of records in it.
    bytes: AtomicUsize,
    /// The thread has met a disk that does not take what it writes.
    broken: AtomicBool,
}

enum Seen {
    Tasks(Vec<KnownTask>),
    Records { name: Name, records: Records, at: Timestamp },
    Reset { generation: u64 },
}

impl Recorder {
    /// Starts the thread. Nothing is written, and no folder is made, before there is something to keep.
    pub fn start(place: Place, env: Env) -> Self {
        let (tx, rx) = sync_channel(QUEUE);
        let (done_tx, done_rx) = oneshot::channel();
        let load = Arc::<Load>::default();
        let shared = load.clone();
        let started = std::thread::Builder::new().name("cache".into()).spawn(move || {
            let broken = |error: &io::Error| {
                tracing::debug!(%error, "nothing more is kept for later");
                shared.broken.store(true, Ordering::Relaxed);
            };
            if let Err(error) = Thread::new(place, &shared).run(&rx) {
                broken(&error);
            }
            drop(done_tx);
        });
        if let Err(error) = started {
            tracing::debug!(%error, "nothing is kept for later");
        }
        let (queue, done) = (Mutex::new(Some(tx)), Mutex::new(Some(done_rx)));
        Self { shared: Arc::new(Shared { queue, done, load, env }) }
    }

    /// These tasks are so now.
    pub fn tasks(&self, infos: &[TaskInfo]) {
        if !infos.is_empty() {
            let seen_at = self.shared.env.now();
            let known = |info: &TaskInfo| KnownTask { seen_at, info: info.clone() };
            self.tell(|| Seen::Tasks(infos.iter().map(known).collect()));
        }
    }

    /// These records were received, as they are in the log.
    pub fn records(&self, task: TaskId, generation: u64, records: &Records) {
        let (load, length) = (&self.shared.load, records.0.len());
        if load.bytes.fetch_add(length, Ordering::Relaxed) + length > QUEUED_BYTES {
            load.bytes.fetch_sub(length, Ordering::Relaxed);
            return;
        }
        let name = Name { task, generation };
        let at = self.shared.env.now();
        if !self.tell(|| Seen::Records { name, records: records.clone(), at }) {
            load.bytes.fetch_sub(length, Ordering::Relaxed);
        }
    }

    /// The store is another one now: what was seen before is of no use.
    pub fn reset(&self, generation: u64) {
        self.tell(|| Seen::Reset { generation });
    }

    /// Waits until what was seen is written, at most `patience`.
    pub async fn finish(&self, patience: Duration) {
        drop(self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let done = self.shared.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = done {
            let _ = tokio::time::timeout(patience, done).await;
        }
    }

    /// Whether the thread will hear of it. Never waits.
    fn tell(&self, seen: impl FnOnce() -> Seen) -> bool {
        if self.shared.load.broken.load(Ordering::Relaxed) {
            return false;
        }
        let queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().is_some_and(|queue| queue.try_send(seen()).is_ok())
    }
}

struct Thread<'a> {
    place: Place,
    load: &'a Load,
    tasks: tasks::Writer,
    logs: BTreeMap<Name, logs::Writer>,
    /// Bytes written since the last sweep.
    written: u64,
    /// Bytes of records that may be kept at once, and when it was last counted.
    budget: u64,
    counted_at: Instant,
    late: VecDeque<(Name, Records, Timestamp)>,
    late_bytes: usize,
}

impl<'a> Thread<'a> {
    fn new(place: Place, load: &'a Load) -> Self {
        // The first log written is worth a look at what the others take.
        let (tasks, written) = (tasks::Writer::new(&place), SWEEP_EVERY);
        Self {
            place,
            load,
            tasks,
            logs: BTreeMap::new(),
            written,
            budget: BURST,
            counted_at: Instant::now(),
            late: VecDeque::new(),
            late_bytes: 0,
        }
    }

    /// Writes until nobody is left who tells anything.
    fn run(mut self, queue: &Receiver<Seen>) -> io::Result<()> {
        if self.place.dir.exists() {
            // While the session is still being made.
            self.tasks.look()?;
        } else if let Ok(first) = queue.recv() {
            ado_certs::create_private_folder(&self.place.dir).map_err(io::Error::other)?;
            self.take(first)?;
        }
        let mut flushed = Instant::now();
        loop {
            match queue.recv_timeout(LINGER) {
                Ok(seen) => self.take(seen)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.budget = u64::MAX;
                    self.catch_up()?;
                    return self.flush();
                }
            }
            if flushed.elapsed() >= LINGER {
                self.refill();
                self.catch_up()?;
                self.flush()?;
                flushed = Instant::now();
            }
        }
    }

    fn take(&mut self, seen: Seen) -> io::Result<()> {
        match seen {
            Seen::Tasks(tasks) => self.tasks.write(tasks),
            Seen::Records { name, records, at } => {
                self.load.bytes.fetch_sub(records.0.len(), Ordering::Relaxed);
                self.late_bytes += records.0.len();
                self.late.push_back((name, records, at));
                self.catch_up()?;
                while self.late_bytes > LATE {
                    let Some((_, oldest, _)) = self.late.pop_front() else { break };
                    self.late_bytes -= oldest.0.len();
                }
                Ok(())
            }
            Seen::Reset { generation } => {
                self.late.retain(|(name, _, _)| name.generation == generation);
                self.late_bytes = self.late.iter().map(|(_, records, _)| records.0.len()).sum();
                self.logs.retain(|name, _| name.generation == generation);
                log_files::forget_others(&self.place.dir, generation);
                self.tasks.forget()
            }
        }
    }

    fn refill(&mut self) {
        let passed = self.counted_at.elapsed();
        self.counted_at += passed;
        let more = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(STEADY / 1000);
        self.budget = self.budget.saturating_add(more).min(BURST);
    }

    /// Keeps what waits, as far as the budget goes.
    fn catch_up(&mut self) -> io::Result<()> {
        while let Some((_, next, _)) = self.late.front()
            && let Some(left) = self.budget.checked_sub(next.0.len() as u64)
            && let Some((name, records, at)) = self.late.pop_front()
        {
            self.budget = left;
            self.late_bytes -= records.0.len();
            self.keep(name, records, at)?;
        }
        Ok(())
    }

    fn keep(&mut self, name: Name, records: Records, at: Timestamp) -> io::Result<()> {
        if self.logs.len() >= OPEN_LOGS && !self.logs.contains_key(&name) {
            self.flush()?;
            self.logs.clear();
        }
        let log = self.logs.entry(name).or_insert_with(|| logs::Writer::new(&self.place, name));
        self.written += log.take(records.0, at)?;
        self.sweep()
    }

    fn flush(&mut self) -> io::Result<()> {
        for log in self.logs.values_mut() {
            self.written += log.flush()?;
        }
        self.sweep()
    }

    fn sweep(&mut self) -> io::Result<()> {
        if self.written < SWEEP_EVERY || self.logs.is_empty() {
            return Ok(());
        }
        self.written = 0;
        logs::sweep(&self.place.root, self.place.max_bytes)
    }
}
