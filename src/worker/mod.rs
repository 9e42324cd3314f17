//! The worker: registers, holds leases, runs agents under guards, delivers what they write.
//!
//! Owns: attempts on this machine, from assignment to the last acknowledged record.
//! Must never know: stores, queues, the scheduler. What it may do is what a controller leased it.
//!
//! Order of a stop: no more work, attempts end or are handed back, the controller has heard, the session ends.

pub mod attempt;
pub mod checkpoints;
pub mod containment;
pub mod course;
mod dialogue;
mod former;
pub mod guard;
pub mod inside;
mod keeper;
mod load;
mod metrics;
pub mod outbox;
mod pipes;
pub mod programs;
mod redact;
mod removal;
mod roster;
mod session;
mod silence;
pub mod snapshot;
pub mod spool;
pub mod tool;
mod track;
mod uplink;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ado_proto::Incarnation;
use ado_proto::request::{WorkerDesired, WorkerSession};
use ado_proto::spec::{Containment, Resources};
use tokio::time::timeout;
use tracing::Instrument;

use self::attempt::Place;
use self::checkpoints::Archive;
use self::inside::Sockets;
use self::programs::Programs;
use self::session::{Shared, Status};
use crate::env::Env;
use crate::net::{self, LinkState};
use crate::tasks::Tasks;

/// For agents to die once they are killed, and for a controller to hear of it.
const HAND_BACK_FOR: Duration = Duration::from_secs(10);
const HEARD_WITHIN: Duration = Duration::from_secs(3);
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What a worker is made of.
#[derive(Clone)]
pub struct Config {
    /// Its directory, made if it is not there. One worker at a time uses it.
    pub dir: PathBuf,
    /// To the controllers.
    pub link: net::Link,
    /// For people.
    pub name: String,
    /// Template.
    pub pool: String,
    /// Parallel capacity. Told to the controller, which keeps to it.
    pub slots: u32,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Agents it offers, of [`crate::agents::ALL`]; those whose program is not there it does not.
    pub agents: Vec<String>,
    /// A folder in which programs of AI agents are looked for before those of `PATH`.
    pub programs: Option<PathBuf>,
    /// What it has for tasks with limits; `None`: all the machine has. Kinds of limits that it cannot enforce it never has.
    pub capacity: Resources,
    /// The program whose subcommand `guard` is the guard; `None`: this program.
    pub executable: Option<PathBuf>,
    /// Most bytes of one attempt's spool file. When it is full, what the agent writes next waits in its pipe.
    pub spool_limit: u64,
    /// What a snapshot of a task's folder may take at most.
    pub snapshots: snapshot::Limits,
    /// Told whenever a controller says where the controllers are.
    pub learned: Learned,
    /// How long attempts may go on once the worker is to leave.
    pub drain_for: Duration,
    /// This process's environment. Agents get the part that [`attempt::base_environment`] picks.
    pub env_base: BTreeMap<String, String>,
}

/// Is told `host:port` of all controllers that live.
pub type Learned = Arc<dyn Fn(&[String]) + Send + Sync>;

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory cannot be used.
    #[error("cannot use the worker's directory `{path}`")]
    Directory {
        /// What was to be made, read or locked.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another worker uses its directory.
    #[error("another worker uses `{0}`")]
    InUse(PathBuf),
    /// Agents of an earlier worker cannot be stopped.
    #[error("an earlier worker's agents are still there")]
    FormerAgents(#[source] io::Error),
    /// This program's own path is not known.
    #[error("cannot tell which program this is")]
    Executable(#[source] io::Error),
    /// The link is closed.
    #[error("the link is closed")]
    Closed,
}

/// A running worker. Clones share it.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    dir: PathBuf,
    drain_for: Duration,
    session: Tasks,
    /// Held as long as the worker lives.
    _lock: Arc<File>,
}

/// Starts a worker. It registers only once no agent of an earlier worker of the same directory is left, which may take
/// seconds.
///
/// # Errors
/// See [`Error`].
pub async fn start(config: Config, env: Env) -> Result<Handle, Error> {
    let mut config = config;
    config.dir = make_directories(&config.dir)?;
    let lock = lock(&config.dir).await?;
    let guards = config.dir.join("guards");
    former::wait_for_guards(&guards).await.map_err(Error::FormerAgents)?;
    for left in ["tasks", "spool", "snapshots"] {
        let path = config.dir.join(left);
        empty(&path).map_err(|source| Error::Directory { path, source })?;
    }
    let executable = match &config.executable {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(Error::Executable)?,
    };
    let programs = Programs::find(&config.env_base, config.programs.as_deref());
    config.agents.retain(|agent| programs.can_run(agent));
    let forced = config.env_base.get(containment::FORCE).map(String::as_str);
    let place = Place {
        guards,
        tasks: config.dir.join("tasks"),
        sockets: sockets(&config, &env),
        bin: bin(&executable, &config.dir),
        executable,
        containment: containment::choose(forced),
        archive: Archive::new(config.snapshots, config.dir.join("snapshots")),
        environment: attempt::base_environment(config.env_base.clone()),
        programs,
    };
    let request = WorkerSession {
        incarnation: Incarnation(env.uuid()),
        name: config.name.clone(),
        pool: config.pool.clone(),
        slots: config.slots,
        agents: config.agents.clone(),
        labels: config.labels.clone(),
        containment: place.containment,
        build: env!("CARGO_PKG_VERSION").into(),
        resources: resources(&config, place.containment),
    };
    tracing::info!(name = config.name, containment = place.containment.as_str(), "worker starts");
    let shared = Arc::new(Shared::new(&config, env, request, place, Tasks::new()));
    let session = Tasks::new();
    let span = tracing::info_span!("worker", worker = config.name);
    session.spawn_until_stop("worker session", Box::pin(session::run(shared.clone()).instrument(span)));
    session.spawn_until_stop("drain", session::keep_deadlines(shared.clone()));
    Ok(Handle { shared, dir: config.dir, drain_for: config.drain_for, session, _lock: Arc::new(lock) })
}

impl Handle {
    /// Takes no more work, lets attempts end for as long as the configuration says, hands back the rest, and ends.
    pub async fn drain(&self) {
        self.shared.change(roster::Roster::drain);
        let idle = self.until(|status| status.load == 0);
        if timeout(self.drain_for, idle).await.is_err() {
            tracing::info!(attempts = self.load(), "handing back what has not ended");
        }
        self.stop().await;
    }

    /// Hands everything back at once, and ends.
    pub async fn stop(&self) {
        self.shared.change(roster::Roster::hand_back);
        if timeout(HAND_BACK_FOR, self.until(|status| status.load == 0)).await.is_err() {
            tracing::warn!(attempts = self.load(), "attempts do not end");
        }
        let heard = self.until(|status| status.heard >= status.leaving || status.over);
        if timeout(HEARD_WITHIN, heard).await.is_err() {
            tracing::warn!("no controller has heard that this worker leaves");
        }
        self.session.stop(STOP_PATIENCE).await;
        self.shared.attempts.stop(STOP_PATIENCE).await;
        if let Some(sockets) = &self.shared.place.sockets {
            sockets.remove(&self.dir);
        }
    }

    /// Waits for the end of its link: what it ended with. No controller will ever take it again, and its agents are killed.
    pub async fn sent_away(&self) -> net::Error {
        self.until(|status| status.over).await;
        let state = self.shared.link.state();
        match &*state.borrow() {
            LinkState::Closed(why) => net::Error::Certificate(why.clone()),
            LinkState::Connecting(_) | LinkState::Connected { .. } => net::Error::Closed,
        }
    }

    /// Whether it has registered and takes work.
    pub fn is_ready(&self) -> bool {
        let status = *self.shared.status.borrow();
        status.connected && !status.draining
    }

    /// Waits until somebody has drained it and a controller has heard that it holds nothing any more.
    pub async fn drained(&self) {
        let is_drained = |status: &Status| {
            status.wish.desired == WorkerDesired::Drained && status.load == 0 && status.heard >= status.leaving
        };
        self.until(is_drained).await;
    }

    /// What it counts, in the text format of Prometheus.
    pub fn metrics(&self) -> String {
        let status = *self.shared.status.borrow();
        self.shared.metrics.scrape(status, self.shared.request.slots)
    }

    /// Attempts it holds.
    pub fn load(&self) -> usize {
        self.shared.status.borrow().load
    }

    async fn until(&self, is_so: impl FnMut(&Status) -> bool) {
        // The sender is ours: it does not go while we wait.
        let _ = self.shared.status.subscribe().wait_for(is_so).await;
    }
}

/// What this worker has for tasks with limits.
fn resources(config: &Config, grade: Containment) -> Resources {
    let (can, machine) = (containment::enforceable(grade), load::read());
    let processes = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    let has = Resources {
        cpu_milli: can.cpu_milli.map(|_| config.capacity.cpu_milli.unwrap_or(machine.cpus.saturating_mul(1000))),
        memory: can.memory.map(|_| config.capacity.memory.unwrap_or(machine.memory)),
        pids: can.pids.map(|_| config.capacity.pids.or(processes).unwrap_or(32_768)),
    };
    for ((kind, wanted), (_, has)) in config.capacity.kinds().into_iter().zip(has.kinds()) {
        if wanted.is_some() && has.is_none() {
            tracing::warn!(
                kind = kind.as_str(),
                "no limit of this kind can be enforced here: tasks that ask for it go elsewhere"
            );
        }
    }
    has
}

/// Without any, agents run on and cannot say how far they are.
fn sockets(config: &Config, env: &Env) -> Option<Sockets> {
    let mut random = [0; 8];
    env.fill(&mut random);
    let shorter = [std::env::temp_dir(), "/tmp".into()];
    let sockets = Sockets::prepare(&config.dir, &shorter, u64::from_ne_bytes(random));
    sockets.inspect_err(|error| tracing::warn!(%error, "tasks cannot report progress or checkpoints")).ok()
}

fn bin(executable: &Path, dir: &Path) -> Option<PathBuf> {
    let linked = inside::link_to(executable, dir);
    linked.inspect_err(|error| tracing::warn!(%error, "tasks may not find `ado`")).ok()
}

/// First wait before another try.
const BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait.
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// How long to wait after so many failures in a row: nothing after none, then growing, with a `jitter` in `[0, 1)`.
fn backoff(failures: u32, jitter: f64) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(earlier) => BACKOFF.saturating_mul(1 << earlier.min(10)).min(BACKOFF_CAP).mul_f64(0.5 + jitter / 2.0),
    }
}

/// Makes what is missing, for this user only. The directory as an absolute path.
fn make_directories(dir: &Path) -> Result<PathBuf, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Directory { path, source }
    };
    for part in ["guards", "tasks", "spool", "snapshots"] {
        let path = dir.join(part);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed(&path))?;
    }
    dir.canonicalize().map_err(failed(dir))
}

/// Locks the directory. An earlier worker's lock may last a moment longer than it does, in a child between fork and exec.
async fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let failed = |source| Error::Directory { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Err(Error::InUse(dir.to_owned()))
}

/// Removes what an earlier worker left in a directory.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { removal::remove(&entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_cap() {
        assert_eq!(backoff(0, 0.9), Duration::ZERO);
        assert_eq!(backoff(1, 0.0), BACKOFF / 2);
        assert!(backoff(1, 0.99) <= BACKOFF);
        assert!(backoff(3, 0.5) > backoff(2, 0.5));
        assert_eq!(backoff(u32::MAX, 0.0), BACKOFF_CAP / 2);
    }
}
