//! Queues of tasks behind servers: ado with PostgreSQL and Redis, graphile-worker with the same PostgreSQL, BullMQ with the
//! same Redis. Of ado everything is a real process: a controller, a worker, this client.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use ado::client::{self, Client};
use ado::env::Env;
use ado::tasks::Tasks;
use ado_certs::Identity;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ado::{Failure, PATIENCE, POLL, SLOTS};
use crate::peer::{Peer, Running};
use crate::servers::postgres::Cluster;
use crate::servers::redis::Redis;

/// Where `benches/peers.sh` has installed them.
pub(crate) const NODE_MODULES: &str = "ADO_PEERS_NODE_MODULES";
/// Between two starts that are measured one at a time.
const PAUSE_MS: u64 = 20;

/// The servers that all of them share.
pub(crate) struct Servers {
    postgres: Cluster,
    redis: Redis,
}

impl Servers {
    /// `None`, said loudly: they are not installed.
    pub(crate) fn start() -> Option<Rc<Self>> {
        let (redis, postgres) = (Redis::start()?, Cluster::start()?);
        Some(Rc::new(Self { postgres, redis }))
    }
}

/// A queue of Node's.
pub(crate) struct Queue {
    name: &'static str,
    process: RefCell<Process>,
    _servers: Rc<Servers>,
}

struct Process {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Queue {
    /// `None`: it is not installed.
    pub(crate) fn start(name: &'static str, servers: &Rc<Servers>) -> io::Result<Option<Self>> {
        let Some(modules) = std::env::var_os(NODE_MODULES) else { return Ok(None) };
        let url = if name == "bullmq" { servers.redis.url() } else { servers.postgres.url("postgres") };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/queue.mjs");
        let mut command = Command::new("node");
        command.arg(script).args([name, &url, SLOTS]).env(NODE_MODULES, modules);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let asks = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut process = Process { child, asks, answers };
        process.answer()?;
        Ok(Some(Self { name, process: RefCell::new(process), _servers: servers.clone() }))
    }

    fn ask(&self, question: &Value) -> io::Result<Value> {
        let mut process = self.process.borrow_mut();
        writeln!(process.asks, "{question}")?;
        process.answer()
    }
}

impl Process {
    fn answer(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("its process has ended"));
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer for Queue {
    fn name(&self) -> &'static str {
        self.name
    }

    fn runs_programs(&self) -> bool {
        false
    }

    fn start(&self, _argv: &[String]) -> io::Result<Running> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn queued_per_second(&self, count: u32) -> io::Result<Option<f64>> {
        let answer = self.ask(&json!({ "rate": count }))?;
        let seconds = answer["seconds"].as_f64().ok_or_else(|| io::Error::other(format!("not a time: {answer}")))?;
        Ok(Some(f64::from(count) / seconds))
    }

    fn queued_starts(&self, count: usize) -> io::Result<Option<Vec<(u64, u64)>>> {
        let answer = self.ask(&json!({ "starts": count, "everyMs": PAUSE_MS }))?;
        let nanos = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        let pair = |pair: &Value| Some((nanos(&pair[0])?, nanos(&pair[1])?));
        let pairs = answer["pairs"].as_array().and_then(|pairs| pairs.iter().map(pair).collect::<Option<Vec<_>>>());
        Ok(Some(pairs.ok_or_else(|| io::Error::other(format!("not times: {answer}")))?))
    }
}

/// A controller with PostgreSQL and Redis, a worker, and a client of theirs.
pub(crate) struct Distributed {
    pub(crate) client: Client,
    processes: Vec<Child>,
    _folder: TempDir,
    _servers: Rc<Servers>,
}

impl Distributed {
    pub(crate) async fn start(servers: &Rc<Servers>, env: &Env, tasks: &Tasks) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let home = |name: &str| folder.path().join(name);
        let mut controller = command(&home("controller"))?;
        controller.args(["controller", "-o", "json", "--listen", &listen, "--http", "127.0.0.1:0"]);
        controller.env("ADO_DATABASE_URL", servers.postgres.url("postgres"));
        controller.env("ADO_REDIS_URL", servers.redis.url());
        let mut controller = controller.stdout(Stdio::piped()).stderr(log(&home("controller.log"))?).spawn()?;
        let mut said = String::new();
        BufReader::new(controller.stdout.take().expect("it is piped")).read_line(&mut said)?;
        let mut processes = vec![controller];
        let said: Value = serde_json::from_str(&said)?;
        let join = said["join"].as_str().ok_or("the controller does not say how to join it")?;
        well(command(&home("user"))?.args(["join", join]))?;
        let token = ["token", "create", "--role", "worker"];
        let token = well(command(&home("user"))?.args(token).env("ADO_CONTEXT", "remote"))?;
        let mut worker = command(&home("worker"))?;
        worker.args(["worker", "--slots", SLOTS, "--join", token.trim()]);
        processes.push(worker.stderr(log(&home("worker.log"))?).stdout(Stdio::null()).spawn()?);
        let config = client::Config {
            addresses: std::sync::Arc::new(move || vec![listen.clone()]),
            identity: Identity::load(&home("user").join("contexts/remote/identity"))?,
            namespace: None,
            reconnect_interval: Duration::from_millis(500),
            timeout: PATIENCE,
            websocket: None,
        };
        let client = Client::connect(config, env.clone(), tasks)?;
        while client.workers(None).await?.is_empty() {
            tokio::time::sleep(POLL).await;
        }
        Ok(Self { client, processes, _folder: folder, _servers: servers.clone() })
    }
}

impl Drop for Distributed {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn command(home: &PathBuf) -> io::Result<Command> {
    std::fs::create_dir_all(home)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_ado"));
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", home).env("ADO_HOME", home);
    command.current_dir(home).stdin(Stdio::null());
    Ok(command)
}

fn log(path: &Path) -> io::Result<File> {
    File::create(path)
}

/// What a command printed that must do well.
fn well(command: &mut Command) -> Result<String, Failure> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
