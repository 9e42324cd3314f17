//! The embedded default: a controller and a worker of one user, in the background, on this machine.
//!
//! Whoever finds one of them missing starts it: a command, a viewer, the other one. They are found by lock files that the
//! kernel releases when a process ends, however it ends.
//!
//! Must never know: tasks, arguments, what the processes do.

mod home;
mod lock;
mod process;
mod restarts;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use ado_certs::Identity;
use ado_proto::Namespace;
use tokio::time::Instant;

use crate::client::{self, Client};
use crate::env::Env;
use crate::tasks::Tasks;

pub use home::{Endpoint, Home, Role, read_json, write_json};
pub use lock::{Holder, Lock, holder};
use restarts::Restarts;

/// Longest time a process may take to start: it may have to recover a large store.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Longest time a process may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for an answer of a process on this machine.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How often a state that has no event is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often a supervisor looks.
const SUPERVISE_EVERY: Duration = Duration::from_millis(500);
/// Looks in a row that find the two taken down: one may fall between a [`down`] and the [`ensure`] right after it.
const LOOKS_TAKEN_DOWN: u32 = 2;

/// Why the local processes are not there, or do not go.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error("cannot use {path}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A process could not be started.
    #[error("cannot start the local {role}", role = role.as_str())]
    Start {
        /// Which.
        role: Role,
        /// Why.
        source: io::Error,
    },
    /// A process ended as soon as it was started.
    #[error("the local {role} ended at once ({status}); the end of {log}:\n{words}", role = role.as_str(), log = log.display())]
    Died {
        /// Which.
        role: Role,
        /// How it ended.
        status: ExitStatus,
        /// Where it writes.
        log: PathBuf,
        /// What it wrote last.
        words: String,
    },
    /// A process is there and does not become ready.
    #[error("the local {role} is not ready after {START_PATIENCE:?}; see {log}", role = role.as_str(), log = log.display())]
    NotReady {
        /// Which.
        role: Role,
        /// Where it writes.
        log: PathBuf,
    },
    /// Somebody else has been starting processes for too long.
    #[error("another process has held {path} for {START_PATIENCE:?}", path = .0.display())]
    StartLock(PathBuf),
    /// A process did not stop.
    #[error("the local {role} (pid {pid}) has not stopped after {STOP_PATIENCE:?}", role = role.as_str())]
    WillNotStop {
        /// Which.
        role: Role,
        /// Its process.
        pid: u32,
    },
    /// Directories or identities cannot be used.
    #[error(transparent)]
    Certs(#[from] ado_certs::Error),
    /// The controller does not answer.
    #[error("the local controller does not answer")]
    Silent(#[source] client::Error),
}

/// Makes sure that both processes are there and that the controller answers. Lifts [`down`].
///
/// # Errors
/// See [`Error`].
pub async fn ensure(home: &Home, env: &Env) -> Result<(), Error> {
    remove_if_there(&home.down_marker())?;
    if is_up(home, Role::Controller) && is_up(home, Role::Worker) {
        return Ok(());
    }
    prepare(home)?;
    let path = home.start_lock();
    let lock = Lock::wait(&path, START_PATIENCE).await.map_err(at(&path))?;
    let _lock = lock.ok_or(Error::StartLock(path))?;
    // The worker's identity is made by the controller: the order matters on the first start.
    raise(home, Role::Controller).await?;
    probe(home, env).await?;
    raise(home, Role::Worker).await
}

/// A session with the local controller as its administrator.
///
/// # Errors
/// [`Error::Certs`] when the identity cannot be read.
pub fn connect(home: &Home, namespace: Option<Namespace>, env: &Env, tasks: &Tasks) -> Result<Client, Error> {
    let identity = Identity::load(&home.admin())?;
    let place = home.clone();
    let config = client::Config {
        addresses: Arc::new(move || live_endpoint(&place).map(|endpoint| endpoint.quic).unwrap_or_default()),
        identity,
        namespace,
        // A restart on this machine takes tens of milliseconds.
        reconnect_interval: Duration::from_millis(200),
        timeout: ANSWER_PATIENCE,
        // Nobody blocks loopback.
        websocket: None,
    };
    Client::connect(config, env.clone(), tasks).map_err(Error::Silent)
}

/// Where the controller is, if it lives and has said so.
pub fn live_endpoint(home: &Home) -> Option<Endpoint> {
    let Holder::Process(pid) = holder(&home.lock(Role::Controller)) else { return None };
    home.endpoint().filter(|endpoint| endpoint.pid == pid)
}

/// Restarts those of `roles` that are missing, until it is dropped or [`down`] was asked for.
pub async fn supervise(home: Home, roles: &[Role]) {
    let mut watched: Vec<_> = roles.iter().map(|role| (*role, Restarts::default())).collect();
    let mut look = tokio::time::interval(SUPERVISE_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if home.down_marker().exists() {
            continue;
        }
        for (role, restarts) in &mut watched {
            let alive = holder(&home.lock(*role)) != Holder::Nobody;
            if restarts.look(alive, Instant::now()) {
                restart(&home, *role).await;
            }
        }
    }
}

/// Resolves when [`down`] was asked for, the controller is gone, and nobody brings it back. Cancel safe.
pub async fn taken_down(home: &Home) {
    let mut seen = 0;
    while seen < LOOKS_TAKEN_DOWN {
        tokio::time::sleep(SUPERVISE_EVERY).await;
        let down = home.down_marker().exists() && holder(&home.lock(Role::Controller)) == Holder::Nobody;
        seen = if down { seen + 1 } else { 0 };
    }
}

async fn restart(home: &Home, role: Role) {
    // Somebody else who starts things will see to it.
    let Ok(Some(_lock)) = Lock::now(&home.start_lock()) else { return };
    match raise(home, role).await {
        Ok(()) => tracing::info!(role = role.as_str(), "started again"),
        Err(error) => tracing::warn!(%error, role = role.as_str(), "cannot be started again"),
    }
}

/// Stops both processes and keeps them down until the next [`ensure`]. Returns those that were there.
///
/// # Errors
/// [`Error::WillNotStop`] when one of them takes too long.
pub async fn down(home: &Home) -> Result<Vec<(Role, u32)>, Error> {
    prepare(home)?;
    let marker = home.down_marker();
    std::fs::write(&marker, "").map_err(at(&marker))?;
    let path = home.start_lock();
    let lock = Lock::wait(&path, START_PATIENCE).await.map_err(at(&path))?;
    let _lock = lock.ok_or(Error::StartLock(path))?;
    let mut stopped = Vec::new();
    // The worker first: it hands back what it holds.
    for role in [Role::Worker, Role::Controller] {
        stopped.extend(stop(home, role).await?.map(|pid| (role, pid)));
    }
    Ok(stopped)
}

async fn stop(home: &Home, role: Role) -> Result<Option<u32>, Error> {
    let lock = home.lock(role);
    let until = Instant::now() + STOP_PATIENCE;
    let mut told = None;
    loop {
        match holder(&lock) {
            Holder::Nobody => return Ok(told),
            Holder::Process(pid) if told != Some(pid) => {
                process::terminate(pid).map_err(at(&lock))?;
                told = Some(pid);
            }
            Holder::Process(_) | Holder::Unnamed => {}
        }
        if Instant::now() >= until {
            return Err(Error::WillNotStop { role, pid: told.unwrap_or_default() });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Leaves the caller's session, so that closing its terminal does not reach this process.
pub fn leave_session() {
    // Fails only for a process that leads a group: it was started by hand and stays where it is.
    let _ = nix::unistd::setsid();
}

/// Lets this process leave no image of its memory behind when it crashes: secrets pass through it. What it starts inherits
/// that, and may ask for one again.
pub fn leave_no_core() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let limited = getrlimit(Resource::RLIMIT_CORE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_CORE, 0, most));
    if let Err(error) = limited {
        tracing::warn!(%error, "a crash may leave secrets behind in a core file");
    }
}

/// Makes the directories, readable by their owner only: keys are in them.
///
/// # Errors
/// [`Error::Certs`] when one cannot be made.
pub fn prepare(home: &Home) -> Result<(), Error> {
    for dir in [home.path(), &home.dir(Role::Controller), &home.dir(Role::Worker)] {
        ado_certs::create_private_folder(dir)?;
    }
    Ok(())
}

fn is_up(home: &Home, role: Role) -> bool {
    match role {
        Role::Controller => live_endpoint(home).is_some(),
        Role::Worker => holder(&home.lock(role)) != Holder::Nobody,
    }
}

/// Starts a process unless it is there, and waits until it is up. The caller holds the start lock.
async fn raise(home: &Home, role: Role) -> Result<(), Error> {
    let failed = |source| Error::Start { role, source };
    let mut started = None;
    let until = Instant::now() + START_PATIENCE;
    while !is_up(home, role) {
        if started.is_none() && holder(&home.lock(role)) == Holder::Nobody {
            started = Some(process::spawn(home, role).map_err(failed)?);
        }
        if let Some(process) = &mut started
            && let Some(status) = process.ended().map_err(failed)?
        {
            return Err(Error::Died { role, status, log: home.log(role), words: process.last_words() });
        }
        if Instant::now() >= until {
            return Err(Error::NotReady { role, log: home.log(role) });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn probe(home: &Home, env: &Env) -> Result<(), Error> {
    let tasks = Tasks::new();
    let client = connect(home, None, env, &tasks)?;
    let answer = client.hello().await;
    client.close().await;
    tasks.stop(Duration::from_secs(1)).await;
    answer.map(drop).map_err(Error::Silent)
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}
