//! Identities and positions. Ids are newtypes: a worker is never mistaken for a task.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($($(#[$meta:meta])* $name:ident;)+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    )+};
}

uuid_id! {
    /// What a user submitted. A server-made UUIDv7 (RFC 9562 section 5.7).
    TaskId;
    /// The tasks one `ado run --workers N` made.
    GroupId;
    /// A process that runs agents. Survives its restarts; see [`Incarnation`].
    WorkerId;
    /// One start of a worker or controller process.
    Incarnation;
    /// A controller process's identity.
    ControllerId;
    /// A user's mutation, made by the caller: the key of idempotency. A UUIDv7: its age is known from the id.
    RequestId;
    /// A durable point to resume from.
    CheckpointId;
    /// One question of an agent's, made by its worker.
    AskId;
    /// What is asked, whoever asks it again: the first 16 bytes of a SHA-256 over it.
    AskDigest;
}

/// Crockford's base 32 (<https://www.crockford.com/base32.html>): no I, L, O, U.
const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Characters in a short id: 50 bits of a UUIDv7's random tail.
pub const SHORT_LEN: usize = 10;
/// Fewest characters of a short id that are accepted as a prefix.
pub const MIN_PREFIX: usize = 4;

fn short_tail(id: Uuid) -> String {
    let tail = id.as_u128();
    (0..SHORT_LEN).rev().map(|place| CROCKFORD[((tail >> (5 * place)) & 31) as usize] as char).collect()
}

impl TaskId {
    /// The id for people: `task-` and ten Crockford base-32 characters of the random tail.
    pub fn short(self) -> String {
        format!("task-{}", short_tail(self.0))
    }
}

impl GroupId {
    /// The id for people: `group-` and ten Crockford base-32 characters of the random tail.
    pub fn short(self) -> String {
        format!("group-{}", short_tail(self.0))
    }
}

/// A typed reference to a task or group, as people type it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A full UUID.
    Full(Uuid),
    /// `task-` and at least [`MIN_PREFIX`] characters, normalised to Crockford's alphabet.
    Task(String),
    /// `group-` and at least [`MIN_PREFIX`] characters.
    Group(String),
}

/// Why text is not a reference to a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Fewer than [`MIN_PREFIX`] characters.
    #[error("`{0}` is too short: give at least {MIN_PREFIX} characters after the dash")]
    TooShort(String),
    /// Not an id at all.
    #[error("`{0}` is not a task id: ids look like `task-7k2m9x0qvb`")]
    NotAnId(String),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = Uuid::parse_str(text) {
            return Ok(Self::Full(id));
        }
        let lower = text.to_ascii_lowercase();
        let (tail, group) = match (lower.strip_prefix("task-"), lower.strip_prefix("group-")) {
            (Some(tail), _) => (tail, false),
            (_, Some(tail)) => (tail, true),
            _ => (lower.as_str(), false),
        };
        let normal: Option<String> = tail.chars().map(normalise).collect();
        match normal {
            Some(tail) if tail.len() > SHORT_LEN || tail.is_empty() => Err(ReferenceError::NotAnId(text.into())),
            Some(tail) if tail.len() < MIN_PREFIX => Err(ReferenceError::TooShort(text.into())),
            Some(tail) if group => Ok(Self::Group(tail)),
            Some(tail) => Ok(Self::Task(tail)),
            None => Err(ReferenceError::NotAnId(text.into())),
        }
    }
}

fn normalise(c: char) -> Option<char> {
    let c = match c {
        'i' | 'l' => '1',
        'o' => '0',
        c => c,
    };
    (c.is_ascii() && CROCKFORD.contains(&(c as u8))).then_some(c)
}

macro_rules! number {
    ($($(#[$meta:meta])* $name:ident($int:ty);)+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $int);

        impl $name {
            /// The next one. The last one stays: a position from a peer may be anything, and must not wrap to 0.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

number! {
    /// Fencing number of one assignment to a worker. 0 means "never assigned"; it only rises.
    Epoch(u64);
    /// Dense position of a worker's record in its epoch, from 0, given by the worker.
    Seq(u64);
    /// Dense position of a record in its task's log, from 0, given on append.
    Offset(u64);
}

/// Microseconds since the Unix epoch on the store's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This instant moved forward, saturating.
    #[must_use]
    pub fn after(self, wait: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to this instant; zero when it is not later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// The space tasks, tokens and pools live in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Namespace(pub String);

impl Default for Namespace {
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a certificate's holder may do. Which request asks for which role is one table in the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Everything, in every namespace.
    Admin,
    /// Submits and controls tasks of its namespace.
    User,
    /// Reads tasks of its namespace.
    Viewer,
    /// Runs agents.
    Worker,
    /// Serves.
    Controller,
}

impl Role {
    /// The word used in certificates, configuration and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::User => "user",
            Self::Viewer => "viewer",
            Self::Worker => "worker",
            Self::Controller => "controller",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Admin, Self::User, Self::Viewer, Self::Worker, Self::Controller]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a role: admin, user, viewer, worker"))
    }
}

/// Who somebody is: the content of a certificate's SAN URI `ado://<namespace>/<role>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// What it may do.
    pub role: Role,
    /// Where it may do it.
    pub namespace: Namespace,
    /// A worker's or controller's UUID, a person's name.
    pub name: String,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ado://{}/{}/{}", self.namespace, self.role, self.name)
    }
}

/// Why a SAN URI names no principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an identity: they look like ado://default/user/ann")]
pub struct PrincipalError(pub String);

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || PrincipalError(text.into());
        let mut parts = text.strip_prefix("ado://").ok_or_else(wrong)?.splitn(3, '/');
        let namespace = parts.next().filter(|part| is_name(part)).ok_or_else(wrong)?;
        let role = parts.next().and_then(|part| part.parse().ok()).ok_or_else(wrong)?;
        let name = parts.next().filter(|part| is_name(part)).ok_or_else(wrong)?;
        Ok(Self { role, namespace: Namespace(namespace.into()), name: name.into() })
    }
}

/// Whether `text` may name a namespace, a person, a pool or a worker: 1 to 63 of `a-z A-Z 0-9 . _ @ -`, not beginning
/// with `.` or `-`, so that it is a file's name and never a flag, a parent directory or hidden.
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b'-'))
}

/// Who may see a system event or a task: one namespace, or everybody of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Audience {
    /// Every namespace (administrators).
    Everywhere,
    /// One namespace.
    Namespace(Namespace),
}
