//! A mesh of real processes that can be mistreated: controllers behind relays, workers, a database and a queue.

#![allow(dead_code, reason = "a bench uses a part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ado::client::{self, Client};
use ado::env::Env;
use ado::tasks::Tasks;
use ado_certs::Identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::processes::{is_frozen, marked};
use crate::relay::Relay;
use crate::servers::postgres::Cluster;
use crate::servers::redis::Redis;

/// Far above what anything takes: a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(25);

/// Numbers of a mesh.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) controllers: usize,
    pub(crate) workers: usize,
    pub(crate) slots: usize,
    pub(crate) heartbeat: Duration,
    pub(crate) lost_after: Duration,
}

/// A process that can be killed and started again.
pub(crate) struct Daemon {
    command: Box<dyn Fn() -> Command + Send>,
    child: Option<Child>,
    log: PathBuf,
}

impl Daemon {
    fn new(log: PathBuf, command: impl Fn() -> Command + Send + 'static) -> Self {
        Self { command: Box::new(command), child: None, log }
    }

    /// Starts it, if it does not run.
    pub(crate) fn start(&mut self) {
        if self.pid().is_none() {
            let log = File::options().create(true).append(true).open(&self.log).expect("a log");
            let mut command = (self.command)();
            self.child = Some(command.stdin(Stdio::null()).stderr(log).spawn().expect("ado starts"));
        }
    }

    /// Its process, while it lives.
    pub(crate) fn pid(&mut self) -> Option<i32> {
        let child = self.child.as_mut()?;
        match child.try_wait().expect("it is ours") {
            None => Some(i32::try_from(child.id()).expect("a pid")),
            Some(_) => None,
        }
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if let Some(pid) = self.pid() {
            kill(Pid::from_raw(pid), signal).expect("it runs");
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop, and waits for that.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let child = self.child.as_mut().expect("it was started");
        let mut status = None;
        until("a process ends", async || {
            status = child.try_wait().expect("it is ours");
            status.is_some()
        })
        .await;
        status.expect("it has ended")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks again and again until it holds.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) struct Controller {
    pub(crate) daemon: Daemon,
    pub(crate) relay: Relay,
}

/// All of it. What it wrote stays where it is when a test fails.
pub(crate) struct Mesh {
    pub(crate) size: Size,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) workers: Vec<Daemon>,
    pub(crate) redis: Redis,
    pub(crate) postgres: Cluster,
    pub(crate) disk: Option<Disk>,
    dir: Option<tempfile::TempDir>,
    /// In the environment of all agents.
    marker: String,
    pub(crate) env: Env,
    tasks: Tasks,
}

/// A command that knows nothing of the machine but this folder.
fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ado"));
    command.args(args).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", home).env("ADO_HOME", home);
    command.current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Nobody else has it now; somebody may have it soon, which is loud.
fn free_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn free_tcp_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port()
}

impl Mesh {
    /// Servers, controllers and a user of them; no worker yet. `None`: skip the test.
    pub(crate) async fn start(size: Size, small_disk: Option<&str>) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("ado-chaos-").tempdir().expect("a folder");
        // The database is somebody else's when we are root.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("it is ours");
        let folder = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("a folder");
            path
        };
        let redis = Redis::start()?;
        let (disk, postgres) = match small_disk.and_then(|size| Disk::mount(folder("disk"), size)) {
            Some(disk) => {
                let data = disk.at.join("pg");
                fs::create_dir(&data).expect("a folder");
                (Some(disk), Cluster::start_in(data)?)
            }
            None => (None, Cluster::start()?),
        };
        for name in ["notes", "user", "logs"] {
            folder(name);
        }
        let marker = format!("ADO_CHAOS={}", dir.path().display());
        let (env, tasks) = (Env::system(), Tasks::new());
        let mut mesh = Self {
            size,
            controllers: Vec::new(),
            workers: Vec::new(),
            redis,
            postgres,
            disk,
            dir: Some(dir),
            marker,
            env,
            tasks,
        };
        for number in 0..size.controllers {
            let controller = mesh.controller(number).await;
            mesh.controllers.push(controller);
        }
        Some(mesh)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().expect("it is there until the end").path().join(name)
    }

    async fn controller(&self, number: usize) -> Controller {
        let quic = free_port();
        let relay = Relay::start(quic).await.expect("a relay");
        let home = self.path(&format!("c{number}"));
        fs::create_dir_all(&home).expect("a folder");
        let (url, redis, timing) = (self.postgres.url("postgres"), self.redis.url(), self.size);
        let (listen, http) = (format!("127.0.0.1:{quic}"), format!("127.0.0.1:{}", free_tcp_port()));
        let advertise = relay.address().to_string();
        // One mesh: the others open what the first one has sealed.
        let master_key = (number > 0).then(|| {
            let file = self.path("c0/serve/controller/master.key");
            fs::read_to_string(file).expect("the first one has made it").trim().to_owned()
        });
        let greeting = self.path(&format!("logs/c{number}.out"));
        let out = greeting.clone();
        let mut daemon = Daemon::new(self.path(&format!("logs/c{number}.log")), move || {
            let mut command = command(&home, &["controller", "-o", "json", "--listen", &listen, "--http", &http]);
            command.args(["--advertise", &advertise]).env("ADO_DATABASE_URL", &url).env("ADO_REDIS_URL", &redis);
            command.env("ADO_HEARTBEAT_INTERVAL", timing.heartbeat.as_millis().to_string());
            command.env("ADO_HEARTBEAT_TIMEOUT", timing.lost_after.as_millis().to_string());
            if let Some(key) = &master_key {
                command.env("ADO_MASTER_KEY", key);
            }
            command.stdout(File::options().create(true).append(true).open(&out).expect("a file"));
            command
        });
        daemon.start();
        let mut said = String::new();
        until("a controller listens", async || {
            assert!(
                daemon.pid().is_some(),
                "a controller ended: {}",
                fs::read_to_string(&daemon.log).unwrap_or_default()
            );
            said = fs::read_to_string(&greeting).unwrap_or_default();
            said.ends_with('\n')
        })
        .await;
        let said: Value = serde_json::from_str(said.lines().next().expect("a line")).expect("JSON");
        if let Some(join) = said["join"].as_str().filter(|_| number == 0) {
            let joined = self.ado(&["join", join]).await;
            assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        }
        Controller { daemon, relay }
    }

    /// A user's command.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(&self.path("user"), args);
        // Before it is joined there is no such mesh.
        if args[0] != "join" {
            command.env("ADO_CONTEXT", "remote");
        }
        command
    }

    /// A user's command, to its end.
    pub(crate) async fn ado(&self, args: &[&str]) -> std::process::Output {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = tokio::task::spawn_blocking(move || command.output().expect("ado starts"));
        tokio::time::timeout(PATIENCE, run).await.expect("a command ends").expect("it does not panic")
    }

    /// The same, where it must do well: what it printed.
    pub(crate) async fn well(&self, args: &[&str]) -> String {
        let ran = self.ado(args).await;
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).expect("text")
    }

    /// As [`Mesh::well`], a JSON value a line.
    pub(crate) async fn json(&self, args: &[&str]) -> Vec<Value> {
        let text = self.well(args).await;
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// One more worker; it is ready when this returns.
    pub(crate) async fn add_worker(&mut self) -> usize {
        let number = self.workers.len();
        let join = self.well(&["token", "create", "--role", "worker"]).await.trim().to_owned();
        let home = self.worker_home(number);
        fs::create_dir_all(&home).expect("a folder");
        let (slots, name) = (self.size.slots.to_string(), format!("w{number}"));
        let mut daemon = Daemon::new(self.path(&format!("logs/{name}.log")), move || {
            let mut command = command(&home, &["worker", "--name", &name, "--slots", &slots, "--drain-for", "1s"]);
            command.arg("--dir").arg(&home).args(["--join", &join]);
            command
        });
        daemon.start();
        self.workers.push(daemon);
        let name = format!("w{number}");
        until("a worker is there", async || {
            let workers = self.json(&["workers", "list", "-o", "json"]).await;
            let all = workers.iter().flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]));
            all.into_iter().any(|worker| worker["name"] == name.as_str())
        })
        .await;
        number
    }

    fn worker_home(&self, number: usize) -> PathBuf {
        self.path(&format!("w{number}"))
    }

    /// A worker's guards that hold an agent, each with its task.
    pub(crate) fn guards(&self, worker: usize) -> BTreeMap<i32, String> {
        let entries = fs::read_dir(self.worker_home(worker).join("guards")).into_iter().flatten().flatten();
        let guard = |entry: fs::DirEntry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let noted = fs::read_to_string(entry.path()).ok()?;
            let task = noted.lines().find_map(|line| line.strip_prefix("ADO_TASK_ID="))?;
            Some((pid, task.to_owned()))
        };
        entries.filter_map(guard).collect()
    }

    /// The guards of all workers.
    pub(crate) fn all_guards(&self) -> Vec<(i32, String)> {
        (0..self.workers.len()).flat_map(|worker| self.guards(worker)).collect()
    }

    /// A variable that all agents of this mesh shall have.
    pub(crate) fn marker(&self) -> (String, String) {
        let (name, value) = self.marker.split_once('=').expect("it is a variable");
        (name.into(), value.into())
    }

    /// Processes that agents started, however deep.
    pub(crate) fn agents(&self) -> Vec<i32> {
        marked(&self.marker)
    }

    /// Whether there are agents, and none of them can do anything.
    pub(crate) fn are_frozen(&self) -> bool {
        let agents = self.agents();
        !agents.is_empty() && agents.into_iter().all(is_frozen)
    }

    /// A session of the user's, in this process.
    pub(crate) fn client(&self, timeout: Duration) -> Client {
        let addresses: Vec<_> = self.controllers.iter().map(|one| one.relay.address().to_string()).collect();
        let identity = Identity::load(&self.path("user/contexts/remote/identity")).expect("the user's identity");
        let config = client::Config {
            addresses: Arc::new(move || addresses.clone()),
            identity,
            namespace: None,
            reconnect_interval: Duration::from_millis(500),
            timeout,
            websocket: None,
        };
        Client::connect(config, self.env.clone(), &self.tasks).expect("a session")
    }

    /// Everything is there again.
    pub(crate) fn heal(&mut self) {
        if let Some(disk) = &self.disk {
            disk.empty();
        }
        if !self.postgres.runs() {
            self.postgres.launch();
        }
        self.redis.revive();
        for controller in &mut self.controllers {
            controller.relay.heal();
            controller.daemon.signal(Signal::SIGCONT);
            controller.daemon.start();
        }
        for (guard, _) in self.all_guards() {
            let _ = kill(Pid::from_raw(guard), Signal::SIGCONT);
        }
        for worker in &mut self.workers {
            worker.signal(Signal::SIGCONT);
            worker.start();
        }
    }

    /// Everything is stopped in order; nothing that an agent started is left.
    pub(crate) async fn stop(mut self) {
        for worker in &mut self.workers {
            worker.stop().await;
        }
        until("no process of an agent is left", async || self.agents().is_empty()).await;
        for controller in &mut self.controllers {
            controller.daemon.stop().await;
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("what everybody wrote is kept in {}", dir.keep().display());
        }
    }
}

/// A small file system.
pub(crate) struct Disk {
    at: PathBuf,
}

impl Disk {
    /// `None`: this user may not mount.
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("mode=755,size={size}"), "tmpfs"]).arg(&at);
        let mounted = mount.stdin(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("SKIPPED in part: no small file system can be mounted here (root can)");
        }
        mounted.then_some(Self { at })
    }

    /// Leaves no room on it.
    pub(crate) fn fill(&self) {
        let file = File::create(self.at.join("filler")).expect("a file");
        let mut step = 64 << 20;
        let mut length = 0;
        while step >= 4096 {
            match nix::fcntl::posix_fallocate(&file, length, step) {
                Ok(()) => length += step,
                Err(_) => step /= 2,
            }
        }
    }

    /// There is room again.
    pub(crate) fn empty(&self) {
        let _ = fs::remove_file(self.at.join("filler"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what lies on it may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// The lines of a file that are whole.
pub(crate) fn whole_lines(path: &Path) -> Vec<String> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let mut file = BufReader::new(file);
    let mut lines = Vec::new();
    let mut line = String::new();
    while file.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
        lines.push(std::mem::take(&mut line));
    }
    lines
}
