//! The table of keys: every setting there is, with its type, variable, default and meaning. Nothing else lists them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::values::{
    AuthKind, ByteSize, Endpoint, MilliCpu, Millis, Name, Positive, Protocol, Seconds, Secret, Setting, Switch, UrlPath,
};
use super::yaml::{At, Node};
use super::{Context, Error, Given, Origin, Shown};

/// One key, as `ado config` explains it.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its full path.
    pub path: &'static str,
    /// What may be written.
    pub expected: &'static str,
    /// The variable that sets it.
    pub env: Option<&'static str>,
    /// What holds when nothing sets it.
    pub default: Option<&'static str>,
    /// A good value.
    pub example: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Whether its value is never shown.
    pub secret: bool,
}

macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $path:literal, $env:expr, $default:expr, $example:literal;)+) => {
        /// Every key.
        pub const KEYS: &[Key] = &[$(Key {
            path: $path,
            expected: <$type as Setting>::EXPECTED,
            env: $env,
            default: $default,
            example: $example,
            doc: concat!($($doc),+),
            secret: <$type as Setting>::SECRET,
        }),+];

        /// Settings as given in one place, or laid over each other.
        #[derive(Debug, Default)]
        pub(super) struct Raw {
            $($(#[doc = $doc])+ pub(super) $field: Option<Given<$type>>,)+
        }

        impl Raw {
            /// Sets a key from text. `None`: it has no such key; `Some(false)`: the text is no value of it.
            fn put_text(&mut self, path: &str, text: &str, origin: &Origin) -> Option<bool> {
                match path {
                    $($path => {
                        self.$field = Setting::from_text(text).map(|value| Given { value, origin: origin.clone() });
                        Some(self.$field.is_some())
                    })+
                    _ => None,
                }
            }

            /// Sets the key `at` from the file.
            pub(super) fn set_node(&mut self, node: &Node, at: &At<'_>, origin: &Origin) -> Result<(), Error> {
                match at.path() {
                    $($path => {
                        let value = Setting::from_node(node, at)?;
                        self.$field = Some(Given { value, origin: origin.clone() });
                    })+
                    _ => {}
                }
                Ok(())
            }

            /// These settings, and those of `lower` for keys that are not set.
            pub(super) fn over(self, lower: Self) -> Self {
                Self { $($field: self.$field.or(lower.$field)),+ }
            }

            /// Every key with its value and where that came from.
            pub(super) fn shown(&self) -> Vec<Shown> {
                vec![$(Shown {
                    key: $path,
                    value: self.$field.as_ref().map(|given| given.value.to_json()),
                    origin: self.$field.as_ref().map_or(Origin::Default, |given| given.origin.clone()),
                }),+]
            }
        }
    };
}

impl Raw {
    /// Sets a key from the text of a flag or variable.
    pub(super) fn set_text(&mut self, path: &str, text: &str, origin: &Origin) -> Result<(), Error> {
        match self.put_text(path, text, origin) {
            Some(true) => Ok(()),
            None => Err(super::yaml::unknown(origin.clone().into(), "", path, KEYS.iter().map(|key| key.path))),
            Some(false) => {
                let key = KEYS.iter().find(|key| key.path == path).expect("a key that takes text is in the table");
                Err(Error::Wrong {
                    place: Box::new(origin.clone().into()),
                    key: path.into(),
                    value: if key.secret { "something else".into() } else { format!("\"{text}\"") },
                    expected: key.expected,
                    example: key.example,
                })
            }
        }
    }

    /// The settings of the environment. An empty variable is as good as none.
    pub(super) fn from_env(env: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut raw = Self::default();
        for (key, name) in KEYS.iter().filter_map(|key| Some((key, key.env?))) {
            if let Some(text) = env.get(name).filter(|text| !text.is_empty()) {
                raw.set_text(key.path, text, &Origin::Env(name.into()))?;
            }
        }
        Ok(raw)
    }

    /// What holds when nothing is set.
    pub(super) fn defaults() -> Self {
        let mut raw = Self::default();
        for key in KEYS {
            if let Some(text) = key.default {
                raw.set_text(key.path, text, &Origin::Default).expect("every default is a value of its key");
            }
        }
        raw
    }
}

keys! {
    /// Directory of everything ado keeps on this machine. Unset: `$XDG_DATA_HOME/ado` or `~/.local/share/ado`.
    home: PathBuf = "home", Some("ADO_HOME"), None, "/var/lib/ado";
    /// The context commands talk to: `local`, `remote` (where `distributed.controller.url` points) or one of `contexts`.
    context: Name = "context", Some("ADO_CONTEXT"), Some("local"), "local";
    /// Named meshes, each with the addresses of its controllers.
    contexts: BTreeMap<String, Context> = "contexts", None, None, "contexts: {staging: {controllers: [ado.example.com:4433]}}";

    /// Whether what commands see is kept on this machine, so that known tasks can be shown while their mesh does not answer.
    cache: Switch = "cache.enabled", Some("ADO_CACHE"), Some("true"), "false";
    /// Most bytes of logs that are kept so. Those used least recently go first.
    cache_bytes: ByteSize = "cache.maxBytes", Some("ADO_CACHE_MAX_BYTES"), Some("256Mi"), "64Mi";

    /// Whether `distributed.controller.url` is used: `false` keeps the section without its effect.
    enabled: bool = "distributed.enabled", Some("ADO_DISTRIBUTED"), Some("true"), "true";
    /// Where `--remote` goes: one controller or several of one mesh. Defines the context `remote`. Port 4433 unless given.
    url: Vec<Endpoint> = "distributed.controller.url", Some("ADO_CONTROLLER_URL"), None, "https://ado.example.com";
    /// How this machine proves who it is to that controller.
    auth_type: AuthKind = "distributed.controller.auth.type", Some("ADO_AUTH_TYPE"), Some("api-key"), "api-key";
    /// An API key or join string, exchanged for a certificate on first use.
    auth_key: Secret = "distributed.controller.auth.key", Some("ADO_API_KEY"), None, "${ADO_API_KEY}";

    /// The transport: `quic` is the mesh's own, `trpc` is for networks that block UDP.
    protocol: Protocol = "distributed.communication.protocol", Some("ADO_PROTOCOL"), Some("quic"), "quic";
    /// Whether a WebSocket carries what UDP cannot: offered by a controller on TCP ports of the same numbers, used by all others.
    websocket: bool = "distributed.communication.websocket", Some("ADO_WEBSOCKET"), Some("true"), "true";
    /// Longest wait between failed attempts to connect. Milliseconds.
    reconnect_interval: Millis = "distributed.communication.reconnectInterval", Some("ADO_RECONNECT_INTERVAL"), Some("5000"), "5000";
    /// How often a worker says that it lives. Milliseconds.
    heartbeat_interval: Millis = "distributed.communication.heartbeatInterval", Some("ADO_HEARTBEAT_INTERVAL"), Some("5000"), "30000";

    /// Workers of a pool when nothing else is asked.
    workers_default: u32 = "distributed.workers.default", Some("ADO_WORKERS_DEFAULT"), Some("3"), "3";
    /// Fewest workers of a pool. 0 lets it shrink to nothing without work.
    workers_min: u32 = "distributed.workers.min", Some("ADO_WORKERS_MIN"), Some("1"), "1";
    /// Most workers of a pool.
    workers_max: u32 = "distributed.workers.max", Some("ADO_WORKERS_MAX"), Some("50"), "50";
    /// Whether the number of workers follows the queue.
    autoscale: bool = "distributed.workers.autoscale.enabled", Some("ADO_AUTOSCALE"), Some("false"), "true";
    /// Waiting tasks per worker that are worth another worker.
    target_queue: Positive = "distributed.workers.autoscale.targetQueueLength", Some("ADO_AUTOSCALE_TARGET_QUEUE"), Some("10"), "10";
    /// Shortest time between two increases. Seconds.
    up_cooldown: Seconds = "distributed.workers.autoscale.scaleUpCooldown", Some("ADO_AUTOSCALE_UP_COOLDOWN"), Some("60"), "60";
    /// Shortest time between two decreases. Seconds.
    down_cooldown: Seconds = "distributed.workers.autoscale.scaleDownCooldown", Some("ADO_AUTOSCALE_DOWN_COOLDOWN"), Some("300"), "300";

    /// Silence after which a worker is lost and its tasks go elsewhere. Milliseconds; above `heartbeatInterval`.
    heartbeat_timeout: Millis = "distributed.failover.heartbeatTimeout", Some("ADO_HEARTBEAT_TIMEOUT"), Some("20000"), "60000";
    /// How often a failed attempt is tried again. Unset: 3 for AI agents, 0 for plain commands, whose exit code is an answer.
    max_retries: u32 = "distributed.failover.maxRetries", Some("ADO_MAX_RETRIES"), Some("3"), "3";
    /// How often a running task's progress is made durable. Milliseconds.
    checkpoint_interval: Millis = "distributed.failover.checkpointInterval", Some("ADO_CHECKPOINT_INTERVAL"), Some("30000"), "30000";

    /// Addresses a controller listens on, UDP; with WebSockets, TCP as well.
    controller_listen: Vec<SocketAddr> = "controller.listen", Some("ADO_CONTROLLER_LISTEN"), Some("0.0.0.0:4433"), "0.0.0.0:4433";
    /// Addresses a controller tells others to reach it at. Unset: those it listens on.
    controller_advertise: Vec<Endpoint> = "controller.advertise", Some("ADO_CONTROLLER_ADVERTISE"), None, "ado.example.com:4433";
    /// Address of a controller's HTTP side (health, metrics), TCP.
    controller_http: SocketAddr = "controller.http", Some("ADO_CONTROLLER_HTTP"), Some("127.0.0.1:4434"), "127.0.0.1:4434";
    /// Redis where controllers that share a store keep their queue: `redis://`, `rediss://` (TLS) or `unix://`. Unset: in the process.
    controller_redis: Secret = "controller.redis.url", Some("ADO_REDIS_URL"), None, "redis://redis.example.com:6379";
    /// What every key in that Redis begins with.
    controller_redis_prefix: String = "controller.redis.prefix", Some("ADO_REDIS_PREFIX"), Some("ado:"), "\"ado:\"";
    /// PostgreSQL database where controllers keep tasks and logs together: `postgres://user:password@host/name?sslmode=verify-full`. Unset: a file.
    controller_database: Secret = "controller.database.url", Some("ADO_DATABASE_URL"), None, "postgres://ado@db.example.com/ado?sslmode=verify-full";
    /// Master key of controllers that share a database: 32 random bytes in base64 or hexadecimal, or the absolute path of a file with them. It opens what they keep closed there. Unset: `master.key` in the controller's directory, made when there is none.
    controller_master_key: Secret = "controller.masterKey", Some("ADO_MASTER_KEY"), None, "/etc/ado/master.key";
    /// Where snapshots of tasks' folders are kept: `file:///folder` or `s3://bucket/prefix`. Unset: `blobs` in the controller's directory; controllers that share a database then keep none.
    controller_blobs: String = "controller.blobs.url", Some("ADO_BLOBS_URL"), None, "s3://bucket/ado";
    /// Server that speaks S3. Unset: Amazon's, or what `AWS_ENDPOINT_URL` says.
    controller_blobs_endpoint: String = "controller.blobs.endpoint", Some("ADO_BLOBS_ENDPOINT"), None, "https://s3.example.com";
    /// Region of the bucket. Unset: what `AWS_REGION` says.
    controller_blobs_region: String = "controller.blobs.region", Some("ADO_BLOBS_REGION"), None, "eu-central-1";
    /// Name of the key to the bucket. Unset: what `AWS_ACCESS_KEY_ID` says, or the machine's own role.
    controller_blobs_key: String = "controller.blobs.accessKeyId", Some("ADO_BLOBS_ACCESS_KEY_ID"), None, "AKIAEXAMPLE";
    /// The key itself.
    controller_blobs_secret: Secret = "controller.blobs.secretAccessKey", Some("ADO_BLOBS_SECRET_ACCESS_KEY"), None, "wJalrEXAMPLEKEY";
    /// How long what no checkpoint needs any more stays there. Milliseconds; longer than half an hour, after which a worker gives up sending a snapshot.
    controller_blobs_grace: Millis = "controller.blobs.grace", Some("ADO_BLOBS_GRACE"), Some("1h"), "2h";
    /// How long tasks and their logs are kept after their end. Milliseconds.
    controller_retention_logs: Millis = "controller.retention.logs", Some("ADO_RETENTION_LOGS"), Some("720h"), "2160h";
    /// Most output of one task that is kept, before compression; what is older goes first.
    controller_max_log_bytes: ByteSize = "controller.retention.maxLogBytes", Some("ADO_MAX_LOG_BYTES"), Some("1Gi"), "\"256Mi\"";

    /// Name of a worker started here. Unset: the host's name.
    worker_name: Name = "worker.name", Some("ADO_WORKER_NAME"), None, "builder-1";
    /// Tasks a worker runs at a time. Unset: as many as there are processors.
    worker_slots: Positive = "worker.slots", Some("ADO_WORKER_SLOTS"), None, "4";
    /// Template a worker belongs to; tasks name the pool they want.
    worker_pool: Name = "worker.pool", Some("ADO_WORKER_POOL"), Some("default"), "default";
    /// Labels of a worker; tasks may ask for them.
    worker_labels: BTreeMap<String, String> = "worker.labels", Some("ADO_WORKER_LABELS"), None, "{gpu: \"yes\"}";
    /// Where a worker keeps its tasks' directories. Unset: below `home`.
    worker_dir: PathBuf = "worker.dir", Some("ADO_WORKER_DIR"), None, "/var/lib/ado/work";
    /// Most bytes of a task's folder that a worker keeps as a part of a checkpoint, before compression.
    worker_snapshot_bytes: ByteSize = "worker.snapshots.maxBytes", Some("ADO_SNAPSHOT_MAX_BYTES"), Some("2Gi"), "\"512Mi\"";
    /// Most files, folders and links in it.
    worker_snapshot_files: Positive = "worker.snapshots.maxFiles", Some("ADO_SNAPSHOT_MAX_FILES"), Some("200000"), "50000";
    /// Longest time that a task stands still for it. Milliseconds.
    worker_snapshot_freeze: Millis = "worker.snapshots.maxFreeze", Some("ADO_SNAPSHOT_MAX_FREEZE"), Some("10s"), "2s";
    /// Container image of workers that are launched.
    worker_image: String = "worker.image", Some("ADO_WORKER_IMAGE"), Some("ado-worker:latest"), "ado-worker:latest";
    /// Processors a worker has for tasks that ask for some. Unset: all there are.
    worker_cpu: MilliCpu = "worker.resources.cpu", Some("ADO_WORKER_CPU"), None, "\"2\"";
    /// Memory a worker has for tasks that ask for some. Unset: all there is.
    worker_memory: ByteSize = "worker.resources.memory", Some("ADO_WORKER_MEMORY"), None, "\"4Gi\"";
    /// Agents a worker offers. Unset: all it finds.
    worker_capabilities: Vec<Name> = "worker.capabilities", Some("ADO_WORKER_CAPABILITIES"), None, "[claude-code, shell]";
    /// Path of a worker's health check.
    worker_health: UrlPath = "worker.healthCheck.endpoint", Some("ADO_WORKER_HEALTH_ENDPOINT"), Some("/health"), "/health";
    /// How often a worker's health is checked.
    worker_health_interval: Millis = "worker.healthCheck.interval", Some("ADO_WORKER_HEALTH_INTERVAL"), Some("30s"), "30s";

    /// The agent of tasks that name none.
    task_agent: Name = "task.agent", Some("ADO_AGENT"), Some("shell"), "claude-code";
    /// Longest time a task may run. Milliseconds. Unset: no limit.
    task_time_limit: Millis = "task.timeLimit", Some("ADO_TIME_LIMIT"), None, "2h";
    /// Longest time from an assignment until the agent runs. Milliseconds. Unset: no limit.
    task_setup_limit: Millis = "task.setupLimit", Some("ADO_SETUP_LIMIT"), None, "5m";
    /// Longest time an agent may say nothing: no output, no progress. Milliseconds. Unset: no limit.
    task_silence_limit: Millis = "task.silenceLimit", Some("ADO_SILENCE_LIMIT"), None, "10m";
    /// Longest time from a task's submission to its end, over all attempts. Milliseconds. Unset: no limit.
    task_total_limit: Millis = "task.totalLimit", Some("ADO_TOTAL_LIMIT"), None, "24h";
    /// How often a failed attempt is tried again, whatever the agent. Unset: see `distributed.failover.maxRetries`.
    task_retries: u32 = "task.retries", Some("ADO_RETRIES"), None, "1";
}
