//! The real binary: a controller and a worker as processes of their own, everything durable, in a home of its own.

use std::cell::OnceCell;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ado::client::{self, Client, Step};
use ado::env::Env;
use ado::local::{self, Home};
use ado::net::{Call, Channel, Link, LinkConfig};
use ado::tasks::Tasks;
use ado_certs::{ClientTls, JoinString};
use ado_proto::record::{Body, Outcome};
use ado_proto::request::{CreateToken, ListTasks, Load, StartAt, Submit, Submitted, TaskInfo, WorkerSession};
use ado_proto::session::{FromWorker, Heartbeat, ToWorker};
use ado_proto::spec::{Containment, Input, TaskSpec};
use ado_proto::{Incarnation, Namespace, Offset, Role};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::lines::monotonic_ns;
use crate::peer::{Agent, Idle, Peer, Running, own, stamp_in};
use crate::queue::{Distributed, Servers};

/// Room for the row of 50.
pub(crate) const SLOTS: &str = "64";
/// How often it is asked whether all tasks have ended.
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often an idle worker reports: as by default.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Idle workers that join at a time.
const JOINING: usize = 20;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) struct Ado {
    mesh: Mesh,
    /// Whether `run` makes groups.
    groups: bool,
    runtime: Runtime,
    tasks: Tasks,
    client: Client,
    servers: Option<Rc<Servers>>,
    /// Made when it is first asked for.
    distributed: OnceCell<Distributed>,
}

/// One home with its processes; stopped when dropped.
struct Mesh {
    folder: TempDir,
}

impl Mesh {
    fn start() -> io::Result<Self> {
        let mesh = Self { folder: TempDir::new()? };
        let status = mesh.command(&["up"]).stdout(Stdio::null()).status()?;
        if status.success() { Ok(mesh) } else { Err(io::Error::other("ado does not come up")) }
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A command that knows nothing of this machine's user.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ado"));
        command.args(args).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.folder.path());
        command.env("ADO_HOME", self.home()).env("ADO_WORKER_SLOTS", SLOTS).current_dir(self.folder.path());
        command
    }

    fn connect(&self, env: &Env, tasks: &Tasks) -> Result<Client, Failure> {
        Ok(local::connect(&Home::at(self.home())?, None, env, tasks)?)
    }

    /// The controller's process and addresses.
    fn controller(&self) -> io::Result<(u32, Vec<String>)> {
        let endpoint = Home::at(self.home())?.endpoint().ok_or_else(|| io::Error::other("there is no controller"))?;
        Ok((endpoint.pid, endpoint.quic))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).stdout(Stdio::null()).status();
    }
}

impl Ado {
    pub(crate) fn start(servers: Option<Rc<Servers>>) -> io::Result<Self> {
        let mesh = Mesh::start()?;
        let help = mesh.command(&["run", "--help"]).output()?;
        let groups = String::from_utf8_lossy(&help.stdout).contains("--workers");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let tasks = Tasks::new();
        let client = runtime.block_on(async { mesh.connect(&Env::system(), &tasks) }).map_err(io::Error::other)?;
        Ok(Self { mesh, groups, runtime, tasks, client, servers, distributed: OnceCell::new() })
    }

    /// `None`: there are no servers for it.
    fn distributed(&self) -> io::Result<Option<&Distributed>> {
        let Some(servers) = &self.servers else { return Ok(None) };
        if self.distributed.get().is_none() {
            let started = self.runtime.block_on(Distributed::start(servers, &Env::system(), &self.tasks));
            let _ = self.distributed.set(started.map_err(io::Error::other)?);
        }
        Ok(self.distributed.get())
    }
}

async fn submit(client: &Client, spec: TaskSpec, copies: u32) -> Result<Submitted, client::Error> {
    let submit = Submit { name: None, specs: vec![spec], copies };
    client.submit(&submit, client.request_id()).await
}

async fn stamp(client: &Client) -> Result<u64, Failure> {
    let submitted = submit(client, TaskSpec::new("shell", Input::Argv(own(&["stamp"]))), 1).await?;
    let mut stream = client.follow(submitted.tasks[0], StartAt::Offset(Offset(0)), true);
    let mut text = Vec::new();
    while let Some(step) = stream.next().await {
        match step? {
            Step::Record(record) => {
                if let Body::Output(output) = record.body {
                    text.extend_from_slice(&output.data);
                }
            }
            Step::End => break,
            _ => {}
        }
    }
    stamp_in(&text).ok_or_else(|| "the task did not say when it began".into())
}

/// From the first submission to the last end, on the store's clock: asking does not lengthen it.
async fn rate(client: &Client, agent: Agent, count: u32) -> Result<f64, Failure> {
    let spec = match agent {
        Agent::Noop => TaskSpec::new("noop", Input::Text("nothing".into())),
        Agent::True => TaskSpec::new("shell", Input::Argv(vec!["true".into()])),
    };
    let submitted = submit(client, spec, count).await?;
    let living = ["queued", "starting", "running"].map(Into::into).into();
    let page = ListTasks { states: living, limit: 1, ..ListTasks::default() };
    let ended = async {
        loop {
            let left = client.list(&page).await?;
            if left.tasks.is_empty() && left.next.is_none() {
                return Ok::<_, Failure>(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await??;
    let group = submitted.group.ok_or("several tasks are a group")?;
    let tasks = client.tasks(&group.short()).await?;
    let completed = tasks.iter().filter(|task| task.outcome == Some(Outcome::Completed)).count();
    if completed != count as usize {
        return Err(format!("{completed} of {count} tasks completed").into());
    }
    Ok(f64::from(count) / span(&tasks).as_secs_f64())
}

fn span(tasks: &[TaskInfo]) -> Duration {
    let begun = tasks.iter().map(|task| task.created_at).min();
    let ended = tasks.iter().filter_map(|task| task.ended_at).max();
    begun.zip(ended).map_or(Duration::ZERO, |(begun, ended)| ended.since(begun))
}

impl Peer for Ado {
    fn name(&self) -> &'static str {
        "ado"
    }

    fn start(&self, argv: &[String]) -> io::Result<Running> {
        let mut command = self.mesh.command(&["run", "--quiet", "--"]);
        command.args(argv);
        Running::start(command)
    }

    fn start_many(&self, argv: &[String], times: usize) -> io::Result<Option<Vec<Running>>> {
        if !self.groups {
            return (0..times).map(|_| self.start(argv)).collect::<io::Result<_>>().map(Some);
        }
        let mut command = self.mesh.command(&["run", "--quiet", "--workers", &times.to_string(), "--"]);
        command.args(argv);
        Ok(Some(vec![Running::start(command)?]))
    }

    fn spawn_warm(&self) -> io::Result<Option<(u64, u64)>> {
        let begun = monotonic_ns();
        let stamp = self.runtime.block_on(stamp(&self.client)).map_err(io::Error::other)?;
        Ok(Some((begun, stamp)))
    }

    fn list(&self) -> Option<Command> {
        Some(self.mesh.command(&["list"]))
    }

    fn tasks_per_second(&self, agent: Agent, count: u32) -> io::Result<Option<f64>> {
        self.runtime.block_on(rate(&self.client, agent, count)).map(Some).map_err(io::Error::other)
    }

    fn queued_per_second(&self, count: u32) -> io::Result<Option<f64>> {
        let Some(mesh) = self.distributed()? else { return Ok(None) };
        self.runtime.block_on(rate(&mesh.client, Agent::Noop, count)).map(Some).map_err(io::Error::other)
    }

    fn queued_starts(&self, count: usize) -> io::Result<Option<Vec<(u64, u64)>>> {
        let Some(mesh) = self.distributed()? else { return Ok(None) };
        let starts = async {
            let mut starts = Vec::new();
            for _ in 0..count {
                let begun = monotonic_ns();
                starts.push((begun, stamp(&mesh.client).await?));
                tokio::time::sleep(POLL * 2).await;
            }
            Ok::<_, Failure>(starts)
        };
        self.runtime.block_on(starts).map(Some).map_err(io::Error::other)
    }

    fn idle_workers(&self, count: u32) -> io::Result<Option<Idle>> {
        self.runtime.block_on(idle_workers(count)).map(Some).map_err(io::Error::other)
    }
}

impl Drop for Ado {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            self.client.close().await;
            self.tasks.stop(Duration::from_secs(1)).await;
        });
    }
}

/// What the controller's memory grows by for each of `count` workers that have joined and said one heartbeat, and what their
/// heartbeats cost it from then on.
async fn idle_workers(count: u32) -> Result<Idle, Failure> {
    let mesh = Mesh::start()?;
    let (env, tasks) = (Env::system(), Tasks::new());
    let client = mesh.connect(&env, &tasks)?;
    let (pid, addresses) = mesh.controller()?;
    let token = CreateToken {
        role: Role::Worker,
        namespace: Namespace::default(),
        name: None,
        uses: None,
        ttl_ms: PATIENCE.as_millis() as u64 * 10,
        bounds: Default::default(),
    };
    let join: JoinString = client.create_token(&token).await?.join.parse()?;
    // What the first of them needs once is not what each needs.
    let mut workers = vec![IdleWorker::start("first", &join, &addresses, &env, &tasks).await?];
    let before = resident_kib(pid)?;
    let names: Vec<_> = (0..count).map(|number| format!("idle-{number}")).collect();
    for names in names.chunks(JOINING) {
        let joining = names.iter().map(|name| IdleWorker::start(name, &join, &addresses, &env, &tasks));
        workers.extend(futures_util::future::try_join_all(joining).await?);
    }
    let after = resident_kib(pid)?;
    let (begun, busy) = (monotonic_ns(), cpu_seconds(pid)?);
    let beating = async {
        loop {
            let at = tokio::time::Instant::now() + HEARTBEAT;
            // Spread over the interval, as those of workers that came one after the other are.
            for some in workers.chunks_mut(20) {
                for worker in &mut *some {
                    worker.beat().await?;
                }
                tokio::time::sleep(HEARTBEAT * 20 / (count + 20)).await;
            }
            tokio::time::sleep_until(at).await;
        }
    };
    if let Ok(failure) = tokio::time::timeout(HEARTBEAT * 3, beating).await {
        let failure: Result<(), Failure> = failure;
        failure?;
    }
    let seconds = monotonic_ns().saturating_sub(begun) as f64 / 1e9;
    let cpu = (cpu_seconds(pid)? - busy) / seconds * 100.0;
    drop(workers);
    client.close().await;
    tasks.stop(Duration::from_secs(1)).await;
    Ok(Idle { kib: (after - before) / f64::from(count), cpu })
}

/// A worker that holds nothing and has room for nothing else to happen.
struct IdleWorker {
    _link: Link,
    channel: Channel,
    number: u64,
}

impl IdleWorker {
    async fn start(
        name: &str,
        join: &JoinString,
        addresses: &[String],
        env: &Env,
        tasks: &Tasks,
    ) -> Result<Self, Failure> {
        let enrolment = client::enrol(join, name, PATIENCE, None, env.clone(), tasks).await?;
        let addresses = addresses.to_vec();
        // As `ado worker` dials.
        let config = LinkConfig {
            addresses: Arc::new(move || addresses.clone()),
            tls: ClientTls::mesh(enrolment.identity)?,
            reconnect_interval: Duration::from_secs(1),
            keep_alive: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            websocket: None,
            sockets: None,
        };
        let link = Link::start(config, env.clone(), tasks)?;
        let session = WorkerSession {
            incarnation: Incarnation(env.uuid()),
            name: name.into(),
            pool: "idle".into(),
            slots: 1,
            agents: vec!["noop".into()],
            labels: std::collections::BTreeMap::new(),
            containment: Containment::Group,
            build: "bench".into(),
            resources: Default::default(),
        };
        let (_, channel) = link.open(&session, Call { timeout: Some(PATIENCE), ..Call::default() }).await?;
        let mut worker = Self { _link: link, channel, number: 0 };
        worker.beat().await?;
        Ok(worker)
    }

    /// A heartbeat, and its answer.
    async fn beat(&mut self) -> Result<(), Failure> {
        self.number += 1;
        let heartbeat = Heartbeat { number: self.number, holds: Vec::new(), load: Load::default(), draining: false };
        self.channel.tx.send_message(&FromWorker::from(heartbeat)).await?;
        while let Some(said) = self.channel.rx.next_message::<ToWorker>().await? {
            if let ToWorker::HeartbeatAnswer(_) = said {
                return Ok(());
            }
        }
        Err("the controller ended a worker's session".into())
    }
}

fn resident_kib(pid: u32) -> io::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.ok_or_else(|| io::Error::other("a process without memory"))
}

/// What a process has computed so far.
fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before the last bracket may contain anything.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    // The kernel counts in hundredths of a second, whatever its own tick is.
    Ok(ticks / 100.0)
}
