//! Flags, environment and YAML file into one [`Config`].
//!
//! Owns: every key there is ([`KEYS`]), the order in which they win, their defaults, and what of them makes sense together.
//! Must never know: files after the start ([`read`] is the one place that reads), components. Each is handed what it needs.
//!
//! A setting is given by a flag, else by its `ADO_…` variable, else by the file, else by its default.

mod error;
mod file;
mod keys;
mod show;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{Error, Place};
pub use file::read;
pub use keys::{KEYS, Key};
pub use show::Shown;
pub use values::{AuthKind, ByteSize, Endpoint, MilliCpu, Protocol, Secret};

use keys::Raw;
use values::show_duration;

/// A controller's port, unless another is given.
pub const DEFAULT_PORT: u16 = 4433;
/// The context of this machine's own controller and worker.
pub const LOCAL: &str = "local";
/// The context `distributed.controller.url` defines.
pub const REMOTE: &str = "remote";

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag, as typed.
    Flag(&'static str),
    /// A variable.
    Env(String),
    /// A file.
    File(PathBuf),
    /// Nobody set it.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Env(name) => f.write_str(name),
            Self::File(path) => path.display().fmt(f),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

impl<T> Given<T> {
    /// Whether somebody asked for it.
    pub fn is_explicit(&self) -> bool {
        self.origin != Origin::Default
    }
}

/// What the command line sets.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`: the file to read.
    pub config: Option<PathBuf>,
    settings: Vec<(&'static str, &'static str, String)>,
}

impl Flags {
    /// The flag `flag` sets `key` (a path of [`KEYS`]) to `text`.
    pub fn set(&mut self, key: &'static str, flag: &'static str, text: impl Into<String>) {
        self.settings.push((key, flag, text.into()));
    }
}

/// Everything ado was told. Complete, validated, immutable.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of everything ado keeps on this machine.
    pub home: PathBuf,
    /// The context commands talk to: [`LOCAL`] or one of `contexts`.
    pub context: String,
    /// Meshes by name, [`REMOTE`] among them if it is configured.
    pub contexts: BTreeMap<String, Context>,
    /// How this machine proves who it is to the context [`REMOTE`].
    pub auth: Auth,
    /// What is kept of what commands see.
    pub cache: Cache,
    /// How processes talk.
    pub communication: Communication,
    /// How many workers there are.
    pub workers: Workers,
    /// What happens when something fails.
    pub failover: Failover,
    /// A controller started here.
    pub controller: Controller,
    /// A worker started or launched here.
    pub worker: Worker,
    /// What tasks get that do not say otherwise.
    pub task: TaskDefaults,
    shown: Vec<Shown>,
}

/// A mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its controllers, in order of preference; at least one.
    pub controllers: Vec<Endpoint>,
}

/// How a caller proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// By what.
    pub kind: AuthKind,
    /// The API key or join string, if there is one.
    pub key: Option<Secret>,
}

/// What is kept of what commands see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Whether anything is.
    pub enabled: bool,
    /// Most bytes of logs.
    pub max_bytes: u64,
}

/// How processes talk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Communication {
    /// The transport.
    pub protocol: Protocol,
    /// Whether a WebSocket carries what UDP cannot.
    pub websocket: bool,
    /// Longest wait between failed attempts to connect.
    pub reconnect_interval: Duration,
    /// How often a worker says that it lives.
    pub heartbeat_interval: Duration,
}

/// How many workers there are: `min <= default <= max`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// When nothing else is asked.
    pub default: u32,
    /// Fewest.
    pub min: u32,
    /// Most.
    pub max: u32,
    /// How their number follows the queue.
    pub autoscale: Autoscale,
}

/// How the number of workers follows the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autoscale {
    /// Whether it does.
    pub enabled: bool,
    /// Waiting tasks per worker that are worth another worker.
    pub target_queue_length: u32,
    /// Shortest time between two increases.
    pub scale_up_cooldown: Duration,
    /// Shortest time between two decreases.
    pub scale_down_cooldown: Duration,
}

/// What happens when something fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// Silence after which a worker is lost; longer than the heartbeat interval.
    pub heartbeat_timeout: Duration,
    /// See [`Config::max_retries`].
    pub max_retries: Given<u32>,
    /// How often a running task's progress is made durable.
    pub checkpoint_interval: Duration,
}

/// A controller started here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Addresses it listens on, UDP; with WebSockets, TCP as well.
    pub listen: Given<Vec<SocketAddr>>,
    /// Addresses it tells others to reach it at; empty: those it listens on.
    pub advertise: Vec<Endpoint>,
    /// Address of its HTTP side, TCP.
    pub http: Given<SocketAddr>,
    /// Redis where its queue is. `None`: in the process.
    pub redis_url: Option<Secret>,
    /// What every key there begins with.
    pub redis_prefix: String,
    /// Database where it keeps tasks and logs. `None`: in a file.
    pub database_url: Option<Secret>,
    /// Opens what controllers keep closed in the database, or the path of a file with it. `None`: in its directory.
    pub master_key: Option<Secret>,
    /// Where snapshots are. `None`: in its directory.
    pub blobs: Blobs,
    /// How long tasks and logs are kept after their end.
    pub retention_logs: Duration,
    /// Most output of one task that is kept.
    pub max_log_bytes: ByteSize,
}

/// Where snapshots of tasks' folders are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blobs {
    /// `file:///folder` or `s3://bucket/prefix`. `None`: in the controller's directory.
    pub url: Option<String>,
    /// Server that speaks S3.
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: Option<String>,
    /// Name of the key to it.
    pub access_key_id: Option<String>,
    /// The key.
    pub secret_access_key: Option<Secret>,
    /// How long what no checkpoint needs stays there.
    pub grace: Duration,
}

/// A worker started or launched here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// `None`: the host's name.
    pub name: Option<String>,
    /// Tasks it runs at a time. `None`: as many as there are processors.
    pub slots: Option<u32>,
    /// Its template.
    pub pool: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it keeps its tasks' directories. `None`: below `home`.
    pub dir: Option<PathBuf>,
    /// Most bytes of a snapshot of a task's folder.
    pub snapshot_bytes: ByteSize,
    /// Most files in one.
    pub snapshot_files: u32,
    /// Longest time that a task stands still for one.
    pub snapshot_freeze: Duration,
    /// Container image, when launched.
    pub image: String,
    /// Processors for tasks that ask for some. `None`: all there are.
    pub cpu: Option<MilliCpu>,
    /// Memory for tasks that ask for some. `None`: all there is.
    pub memory: Option<ByteSize>,
    /// Agents it offers. `None`: all it finds.
    pub capabilities: Option<Vec<String>>,
    /// Path of its health check.
    pub health_endpoint: String,
    /// How often its health is checked.
    pub health_interval: Duration,
}

/// What tasks get that do not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDefaults {
    /// The agent.
    pub agent: String,
    /// Longest time it may run.
    pub time_limit: Option<Duration>,
    /// Longest time until its agent runs.
    pub setup_limit: Option<Duration>,
    /// Longest time it may say nothing.
    pub silence_limit: Option<Duration>,
    /// Longest time from its submission to its end.
    pub total_limit: Option<Duration>,
    /// See [`Config::max_retries`].
    pub retries: Option<u32>,
}

/// Resolves the configuration from what was typed, the environment, and the file's path and text.
///
/// # Errors
/// [`Error`] at the first thing that is wrong.
pub fn resolve(flags: &Flags, env: &BTreeMap<String, String>, file: Option<(&Path, &str)>) -> Result<Config, Error> {
    let mut typed = Raw::default();
    for (key, flag, text) in &flags.settings {
        typed.set_text(key, text, &Origin::Flag(flag))?;
    }
    let from_file = file.map(|(path, text)| yaml::read(path, text, env)).transpose()?.unwrap_or_default();
    let mut raw = typed.over(Raw::from_env(env)?).over(from_file).over(Raw::defaults());
    for directory in [&mut raw.home, &mut raw.worker_dir].into_iter().flatten() {
        directory.value = file::expand_home(&directory.value, env)?;
    }
    if raw.home.is_none() {
        raw.home = Some(Given { value: file::data_home(env)?, origin: Origin::Default });
    }
    check(&raw)?;
    Config::build(raw)
}

/// What of the settings makes no sense together.
fn check(raw: &Raw) -> Result<(), Error> {
    fn both<T>(a: (&str, &Option<Given<T>>), b: (&str, &Option<Given<T>>), show: impl Fn(&T) -> String) -> String {
        let side = |(key, given): (&str, &Option<Given<T>>)| match given {
            Some(given) => format!("`{key}` is {} ({})", show(&given.value), given.origin),
            None => format!("`{key}` is not set"),
        };
        format!("{}, and {}", side(a), side(b))
    }
    let number = |given: &Option<Given<u32>>| given.as_ref().map_or(0, |given| given.value);
    let time = |given: &Option<Given<values::Millis>>| given.as_ref().map_or(Duration::ZERO, |given| given.value.0);
    let (min, default, max) = [&raw.workers_min, &raw.workers_default, &raw.workers_max].map(number).into();
    let names = ["distributed.workers.min", "distributed.workers.default", "distributed.workers.max"];
    if min > default {
        let problem = both((names[0], &raw.workers_min), (names[1], &raw.workers_default), u32::to_string);
        return Err(Error::Contradiction { problem, advice: "raise `default` or lower `min`".into() });
    }
    if default > max {
        let problem = both((names[1], &raw.workers_default), (names[2], &raw.workers_max), u32::to_string);
        return Err(Error::Contradiction { problem, advice: "lower `default` or raise `max`".into() });
    }
    if time(&raw.heartbeat_timeout) <= time(&raw.heartbeat_interval) {
        let problem = both(
            ("distributed.failover.heartbeatTimeout", &raw.heartbeat_timeout),
            ("distributed.communication.heartbeatInterval", &raw.heartbeat_interval),
            |time| show_duration(time.0),
        );
        let advice = "a worker would be lost between two heartbeats; make the timeout two or three intervals".into();
        return Err(Error::Contradiction { problem, advice });
    }
    Ok(())
}

/// A key that has a default has a value.
fn given<T>(setting: Option<Given<T>>) -> T {
    setting.expect("the defaults were laid under").value
}

impl Config {
    fn build(raw: Raw) -> Result<Self, Error> {
        let shown = raw.shown();
        let home = given(raw.home);
        let mut contexts = raw.contexts.map(|contexts| contexts.value).unwrap_or_default();
        if let (Some(url), true) = (raw.url, given(raw.enabled)) {
            let context = Context { controllers: url.value };
            if contexts.get(REMOTE).is_some_and(|other| *other != context) {
                return Err(Error::Contradiction {
                    problem: format!("`distributed.controller.url` ({}) and `contexts.{REMOTE}` differ", url.origin),
                    advice: "keep one of them, or give the context another name".into(),
                });
            }
            contexts.insert(REMOTE.into(), context);
        }
        let context = raw.context.expect("the defaults were laid under");
        check_context(&contexts, &context.value.0, &context.origin)?;
        let config = Self {
            context: context.value.0,
            contexts,
            auth: Auth { kind: given(raw.auth_type), key: raw.auth_key.map(|key| key.value) },
            cache: Cache { enabled: given(raw.cache).0, max_bytes: given(raw.cache_bytes).0 },
            communication: Communication {
                protocol: given(raw.protocol),
                websocket: given(raw.websocket),
                reconnect_interval: given(raw.reconnect_interval).0,
                heartbeat_interval: given(raw.heartbeat_interval).0,
            },
            workers: Workers {
                default: given(raw.workers_default),
                min: given(raw.workers_min),
                max: given(raw.workers_max),
                autoscale: Autoscale {
                    enabled: given(raw.autoscale),
                    target_queue_length: given(raw.target_queue).0,
                    scale_up_cooldown: given(raw.up_cooldown).0,
                    scale_down_cooldown: given(raw.down_cooldown).0,
                },
            },
            failover: Failover {
                heartbeat_timeout: given(raw.heartbeat_timeout).0,
                max_retries: raw.max_retries.expect("the defaults were laid under"),
                checkpoint_interval: given(raw.checkpoint_interval).0,
            },
            controller: Controller {
                listen: raw.controller_listen.expect("the defaults were laid under"),
                advertise: raw.controller_advertise.map(|given| given.value).unwrap_or_default(),
                http: raw.controller_http.expect("the defaults were laid under"),
                redis_url: raw.controller_redis.map(|url| url.value),
                redis_prefix: given(raw.controller_redis_prefix),
                database_url: raw.controller_database.map(|url| url.value),
                master_key: raw.controller_master_key.map(|key| key.value),
                blobs: Blobs {
                    url: raw.controller_blobs.map(|url| url.value),
                    endpoint: raw.controller_blobs_endpoint.map(|endpoint| endpoint.value),
                    region: raw.controller_blobs_region.map(|region| region.value),
                    access_key_id: raw.controller_blobs_key.map(|key| key.value),
                    secret_access_key: raw.controller_blobs_secret.map(|key| key.value),
                    grace: given(raw.controller_blobs_grace).0,
                },
                retention_logs: given(raw.controller_retention_logs).0,
                max_log_bytes: given(raw.controller_max_log_bytes),
            },
            worker: Worker {
                name: raw.worker_name.map(|name| name.value.0),
                slots: raw.worker_slots.map(|slots| slots.value.0),
                pool: given(raw.worker_pool).0,
                labels: raw.worker_labels.map(|labels| labels.value).unwrap_or_default(),
                dir: raw.worker_dir.map(|dir| dir.value),
                snapshot_bytes: given(raw.worker_snapshot_bytes),
                snapshot_files: given(raw.worker_snapshot_files).0,
                snapshot_freeze: given(raw.worker_snapshot_freeze).0,
                image: given(raw.worker_image),
                cpu: raw.worker_cpu.map(|cpu| cpu.value),
                memory: raw.worker_memory.map(|memory| memory.value),
                capabilities: raw.worker_capabilities.map(|names| names.value.into_iter().map(|name| name.0).collect()),
                health_endpoint: given(raw.worker_health).0,
                health_interval: given(raw.worker_health_interval).0,
            },
            task: TaskDefaults {
                agent: given(raw.task_agent).0,
                time_limit: raw.task_time_limit.map(|limit| limit.value.0),
                setup_limit: raw.task_setup_limit.map(|limit| limit.value.0),
                silence_limit: raw.task_silence_limit.map(|limit| limit.value.0),
                total_limit: raw.task_total_limit.map(|limit| limit.value.0),
                retries: raw.task_retries.map(|retries| retries.value),
            },
            home,
            shown,
        };
        Ok(config)
    }

    /// How often a failed attempt of a task for `agent` is tried again when its submitter did not say. A plain command's
    /// exit code is an answer: it is not tried again unless somebody asked for that.
    pub fn max_retries(&self, agent: &str) -> u32 {
        let failover = &self.failover.max_retries;
        match self.task.retries {
            Some(retries) => retries,
            None if agent == "shell" && !failover.is_explicit() => 0,
            None => failover.value,
        }
    }

    /// The context `--remote` means: where `distributed.controller.url` points, else the current one unless it is local,
    /// else the only one there is.
    ///
    /// # Errors
    /// [`Error::Missing`] names the key to set.
    pub fn remote(&self) -> Result<(&str, &Context), Error> {
        let only = || self.contexts.iter().next().filter(|_| self.contexts.len() == 1);
        self.contexts
            .get_key_value(REMOTE)
            .or_else(|| self.contexts.get_key_value(&self.context))
            .or_else(only)
            .map(|(name, context)| (name.as_str(), context))
            .ok_or(Error::Missing {
                key: "distributed.controller.url",
                advice: "give the controller's address there, in ADO_CONTROLLER_URL, or name a context with --context",
            })
    }
}

fn check_context(contexts: &BTreeMap<String, Context>, name: &str, origin: &Origin) -> Result<(), Error> {
    if contexts.contains_key(LOCAL) {
        return Err(Error::Contradiction {
            problem: format!("`contexts.{LOCAL}` is defined"),
            advice: format!("`{LOCAL}` is always this machine; choose another name"),
        });
    }
    if name == LOCAL || contexts.contains_key(name) {
        return Ok(());
    }
    if name == REMOTE {
        return Err(Error::Missing {
            key: "distributed.controller.url",
            advice: "the context `remote` is the controller named there or in ADO_CONTROLLER_URL",
        });
    }
    let known = [LOCAL].into_iter().map(String::from).chain(contexts.keys().cloned()).collect();
    Err(Error::UnknownContext { place: origin.clone().into(), name: name.into(), known })
}
