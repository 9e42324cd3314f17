//! What a user asked for, and how it ended. Frozen parts of version-1 payloads.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::is_name;
use crate::payload::to_postcard;

/// Most bytes of a [`TaskSpec`] in postcard form. It fits a record ([`crate::record::MAX_BODY`]) with room for names.
pub const MAX_SPEC: usize = 192 * 1024;

/// Most secrets of one task: with their values they fit a message.
pub const MAX_SECRETS: usize = 16;
/// Bytes of a secret's value. What is shorter cannot be hidden in output without hiding half of it.
pub const SECRET_BYTES: std::ops::RangeInclusive<usize> = 4..=16 * 1024;

/// Shortest time between two snapshots of a task's folder that nobody asked for, milliseconds.
pub const MIN_SNAPSHOT_EVERY_MS: u64 = 1000;

/// What the agent is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Text: a prompt for an AI agent, a command line for `shell` (run by `/bin/sh -c`).
    Text(String),
    /// Program and arguments, run as they are.
    Argv(Vec<String>),
}

impl Input {
    /// One line that tells people what the task is.
    pub fn summary(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Argv(argv) => argv.join(" "),
        }
    }
}

/// What a task may use at most, it and all it starts together: `None` is no limit. And what a worker has for tasks that
/// ask for limits: `None` is a kind of limit that it cannot enforce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_milli: Option<u32>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads at once.
    pub pids: Option<u32>,
}

impl Resources {
    /// What there is of each kind: in words, and how much.
    pub fn kinds(&self) -> [(Resource, Option<u64>); 3] {
        [
            (Resource::Cpu, self.cpu_milli.map(u64::from)),
            (Resource::Memory, self.memory),
            (Resource::Pids, self.pids.map(u64::from)),
        ]
    }
}

/// A kind of [`Resources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// In thousandths of a processor.
    Cpu,
    /// In bytes.
    Memory,
    /// In processes.
    Pids,
}

impl Resource {
    /// The name of the flag that asks for it, without its dashes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// An amount, for people.
    pub fn amount(self, amount: u64) -> String {
        match self {
            Self::Cpu => format!("{} CPU", amount as f64 / 1000.0),
            Self::Memory => bytes(amount),
            Self::Pids => format!("{amount} processes"),
        }
    }
}

/// Bytes, for people: in the largest unit of which there is at least one, to a tenth.
pub fn bytes(amount: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| amount >= *unit) {
        Some((name, unit)) => format!("{} {name}", (amount as f64 / unit as f64 * 10.0).round() / 10.0),
        None => format!("{amount} bytes"),
    }
}

/// A task as submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Driver: `shell`, `noop`; later `claude-code` and others.
    pub agent: String,
    /// What the agent is given.
    pub input: Input,
    /// Environment beside the worker's own. Public: shown to whoever may see the task.
    pub env: BTreeMap<String, String>,
    /// Working directory on the worker; `None` is a fresh directory made for the task.
    pub cwd: Option<String>,
    /// Longest time the agent may run, in milliseconds. Time paused or waiting does not count.
    pub time_limit_ms: Option<u64>,
    /// How often a failed attempt is tried again.
    pub max_retries: u32,
    /// Higher runs earlier: one step is worth one minute of waiting.
    pub priority: i32,
    /// Workers' template.
    pub pool: String,
    /// Labels a worker must have.
    pub labels: BTreeMap<String, String>,
    /// Longest time from an assignment until the agent runs, in milliseconds.
    pub setup_limit_ms: Option<u64>,
    /// Longest time the agent may say nothing, in milliseconds: no output, progress, note or checkpoint.
    pub silence_limit_ms: Option<u64>,
    /// Longest time from the submission to the end, over all attempts and the waiting between them, in milliseconds.
    pub total_limit_ms: Option<u64>,
    /// Variables of its environment, and the names of the secrets whose values they get. The values are not here.
    pub secrets: BTreeMap<String, String>,
    /// What it may use at most.
    pub resources: Resources,
    /// How often its folder is kept as a checkpoint, in milliseconds; `None`: when the task says so.
    pub snapshot_every_ms: Option<u64>,
    /// The model an AI agent is to use; `None`: its own choice.
    pub model: Option<String>,
    /// What an AI agent may do without asking, and what it may not do at all.
    pub rules: Rules,
    /// How long an answer of a person is waited for, in milliseconds; `None`: for ever.
    pub answer_limit_ms: Option<u64>,
    /// What one attempt of an AI agent may use.
    pub quota: Quota,
}

/// What an AI agent may do. The first rule that fits counts, those that deny before those that allow; what none fits is
/// asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Not to be done: `TOOL` or `TOOL(PATTERN)`.
    pub deny: Vec<String>,
    /// To be done without asking.
    pub allow: Vec<String>,
}

/// What an AI agent has used, as it says itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Answers of its model.
    pub turns: u32,
    /// Millionths of a dollar, if it says.
    pub cost_micros: Option<u64>,
    /// Tokens its model read.
    pub input_tokens: u64,
    /// Tokens its model wrote.
    pub output_tokens: u64,
}

impl Usage {
    /// With what another attempt used.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let cost = match (self.cost_micros, other.cost_micros) {
            (None, None) => None,
            (one, two) => Some(one.unwrap_or(0).saturating_add(two.unwrap_or(0))),
        };
        Self {
            turns: self.turns.saturating_add(other.turns),
            cost_micros: cost,
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
        }
    }
}

/// Limits of [`Usage`]: `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Answers of its model.
    pub turns: Option<u32>,
    /// Millionths of a dollar.
    pub cost_micros: Option<u64>,
    /// Tokens read and written.
    pub tokens: Option<u64>,
}

impl TaskSpec {
    /// A task for `agent` with everything else at its default.
    pub fn new(agent: impl Into<String>, input: Input) -> Self {
        Self {
            agent: agent.into(),
            input,
            env: BTreeMap::new(),
            cwd: None,
            time_limit_ms: None,
            max_retries: 0,
            priority: 0,
            pool: "default".into(),
            labels: BTreeMap::new(),
            setup_limit_ms: None,
            silence_limit_ms: None,
            total_limit_ms: None,
            secrets: BTreeMap::new(),
            resources: Resources::default(),
            snapshot_every_ms: None,
            model: None,
            rules: Rules::default(),
            answer_limit_ms: None,
            quota: Quota::default(),
        }
    }

    /// How long a limit is, if there is one. While a task is paused the time of none of them runs.
    pub fn limit(&self, limit: Limit) -> Option<Duration> {
        let milliseconds = match limit {
            Limit::Attempt => self.time_limit_ms,
            Limit::SetUp => self.setup_limit_ms,
            Limit::Silence => self.silence_limit_ms,
            Limit::Total => self.total_limit_ms,
        };
        milliseconds.map(Duration::from_millis)
    }

    /// Whether any worker anywhere could be asked this. A controller refuses what fails here.
    ///
    /// # Errors
    /// [`SpecError`] names the first thing that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        for (what, name) in [("an agent", &self.agent), ("a pool", &self.pool)] {
            if !is_name(name) {
                return Err(SpecError::Name { what, name: name.clone() });
            }
        }
        if let Some(name) = self.labels.keys().find(|name| !is_name(name)) {
            return Err(SpecError::Name { what: "a label", name: name.clone() });
        }
        if let Some(name) = self.secrets.values().find(|name| !is_name(name)) {
            return Err(SpecError::Name { what: "a secret", name: name.clone() });
        }
        if self.secrets.len() > MAX_SECRETS {
            return Err(SpecError::Secrets(self.secrets.len()));
        }
        if let Some(name) = self.secrets.keys().find(|name| self.env.contains_key(*name)) {
            return Err(SpecError::Twice(name.clone()));
        }
        if let Some(name) =
            self.env.keys().chain(self.secrets.keys()).find(|name| name.is_empty() || name.contains('='))
        {
            return Err(SpecError::Variable(name.clone()));
        }
        let texts = match &self.input {
            Input::Argv(argv) if argv.first().is_none_or(String::is_empty) => return Err(SpecError::NoProgram),
            Input::Argv(argv) => argv.as_slice(),
            Input::Text(text) => std::slice::from_ref(text),
        };
        let all = texts
            .iter()
            .chain(self.env.keys())
            .chain(self.secrets.keys())
            .chain(self.env.values())
            .chain(&self.cwd)
            .chain(&self.model);
        if let Some(text) = all.into_iter().find(|text| text.contains('\0')) {
            return Err(SpecError::Nul(text.replace('\0', "\\0")));
        }
        if let Some(limit) = Limit::ALL.into_iter().find(|limit| self.limit(*limit) == Some(Duration::ZERO)) {
            return Err(SpecError::NoTime(limit));
        }
        if let Some((kind, _)) = self.resources.kinds().into_iter().find(|(_, amount)| *amount == Some(0)) {
            return Err(SpecError::Nothing(kind.as_str()));
        }
        if let Some(every) = self.snapshot_every_ms {
            if every < MIN_SNAPSHOT_EVERY_MS {
                return Err(SpecError::TooOften(every));
            }
            if let Some(cwd) = &self.cwd {
                return Err(SpecError::NotItsFolder(cwd.clone()));
            }
        }
        let mut encoded = Vec::new();
        to_postcard(self, &mut encoded);
        if encoded.len() > MAX_SPEC { Err(SpecError::TooLong(encoded.len())) } else { Ok(()) }
    }
}

/// Why a task could be run nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It does not fit a record.
    #[error("the task takes {0} bytes, more than {MAX_SPEC}: put long input into a file")]
    TooLong(usize),
    /// `Argv` without a program.
    #[error("there is no program to run")]
    NoProgram,
    /// An agent, pool or label that is no name.
    #[error(
        "`{name}` cannot name {what}: names are 1 to 63 letters, digits, `.`, `_`, `@` or `-`, beginning with none of `.-`"
    )]
    Name {
        /// Of what.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// A name of an environment variable that is empty or has a `=`.
    #[error("`{0}` cannot name an environment variable")]
    Variable(String),
    /// A variable that is to hold a text and a secret.
    #[error("the variable `{0}` is given a value and a secret: give it one of them")]
    Twice(String),
    /// More secrets than an assignment carries.
    #[error("a task has at most {MAX_SECRETS} secrets, not {0}")]
    Secrets(usize),
    /// A limit that leaves nothing.
    #[error("a limit of 0 for {0} leaves nothing to run with: leave it out for none")]
    Nothing(&'static str),
    /// Text with a NUL byte, which no process can be given.
    #[error("`{0}` has a NUL byte in it")]
    Nul(String),
    /// Its folder would be looked through all the time.
    #[error("a folder is kept every {MIN_SNAPSHOT_EVERY_MS} ms at most, not every {0} ms")]
    TooOften(u64),
    /// Only what was made for a task can be made again elsewhere.
    #[error("a folder that is kept is the task's own: it cannot run in `{0}`; leave the directory out")]
    NotItsFolder(String),
    /// A limit of nothing.
    #[error("a {} limit of 0 leaves no time: leave it out for none", .0.as_str())]
    NoTime(Limit),
}

/// What may take too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Limit {
    /// One attempt: its agent ran too long.
    Attempt,
    /// Getting the agent to run.
    SetUp,
    /// The agent said nothing for too long.
    Silence,
    /// The whole, from the submission on.
    Total,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Attempt, Self::SetUp, Self::Silence, Self::Total];

    /// The word people see, and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attempt => "time",
            Self::SetUp => "setup",
            Self::Silence => "silence",
            Self::Total => "total",
        }
    }

    /// Whether another attempt may keep to it.
    pub fn is_retryable(self) -> bool {
        self != Self::Total
    }
}

/// A duration as people type it: in the largest unit that leaves no rest.
pub fn span(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".into(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// How an agent's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// A limit of time was over, and it was killed.
    TimedOut(Limit),
    /// It was killed because the task was cancelled.
    Cancelled,
    /// It could not be started. Permanent errors (no such program or directory) are not retried.
    NotStarted {
        /// What was attempted and why it failed.
        error: String,
        /// Whether another try would fail the same way.
        permanent: bool,
    },
    /// The worker lost hold of the attempt (guard died, spool failed).
    Lost {
        /// What happened.
        error: String,
    },
    /// What the agent needs was not to be had, for no fault of the task's: no attempt is charged.
    Unavailable {
        /// What, and why not.
        what: String,
        /// How long it is of no use to try again, milliseconds, if anybody said.
        retry_after_ms: Option<u64>,
    },
    /// It exited, and says that it has failed and would fail again in the same way.
    Hopeless {
        /// Why.
        error: String,
        /// Its exit code.
        code: i32,
    },
    /// The agent says that it has failed, or ended without a word of how.
    Failed {
        /// Why.
        error: String,
    },
    /// It used more memory than it may, and was killed with all it had started.
    OutOfMemory {
        /// What it may use, bytes.
        limit: u64,
    },
}

impl Exit {
    /// Whether the agent did what it was asked.
    pub fn is_success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// How a process and its descendants are held together, weakest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Containment {
    /// A control group (v2): freezes and kills everything in it at once.
    Cgroup,
    /// Child subreaper and a walk over descendants.
    Subreaper,
    /// A process group: development on macOS only.
    Group,
}

impl Containment {
    /// The word people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Subreaper => "subreaper",
            Self::Group => "group",
        }
    }
}
