//! Who is who and what happened: probes, certificates, tokens, system events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ControllerId, Incarnation, Namespace, Role, Secret, TaskId, Timestamp, WorkerId};

/// Who is there? Also the health probe of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The caller's build, for people.
    pub build: String,
}

/// Answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The controller.
    pub controller: ControllerId,
    /// Its start.
    pub incarnation: Incarnation,
    /// Its build, for people.
    pub build: String,
    /// Newest minor version it speaks.
    pub minor: u16,
    /// Generation of the logs (see [`crate::session::FollowItem::LogReset`]).
    pub generation: u64,
    /// The store's clock.
    pub now: Timestamp,
    /// Who the controller says the caller is.
    pub you: String,
    /// `address:port` where the controller sees the caller: with a NAT between them, the NAT.
    pub observed: String,
    /// `host:port` of all controllers that live, this one first.
    pub controllers: Vec<String>,
}

/// Asks for a first certificate. The only request of `ado-join/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// A join token's secret or an API key.
    pub secret: String,
    /// PKCS#10 request, DER (RFC 2986): proves that the caller holds the key. Its names are ignored.
    pub csr: Vec<u8>,
    /// What the caller would like to be called; the token may fix another.
    pub name: String,
}

/// Answer to [`Enrol`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Who the caller is now.
    pub identity: String,
    /// Leaf first, then the CA; DER.
    pub chain: Vec<Vec<u8>>,
    /// Addresses of controllers, `host:port`.
    pub controllers: Vec<String>,
    /// End of the certificate's life.
    pub not_after: Timestamp,
}

/// Asks for the next certificate of the caller's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// PKCS#10 request, DER.
    pub csr: Vec<u8>,
}

/// Answer to [`Renew`]. The connection it came on is valid as long as the new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// Leaf first, then the CA; DER.
    pub chain: Vec<Vec<u8>>,
    /// End of the certificate's life.
    pub not_after: Timestamp,
}

/// Makes a join token or an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateToken {
    /// What its holder will be.
    pub role: Role,
    /// Where.
    pub namespace: Namespace,
    /// The holder's name; `None` lets it choose one.
    pub name: Option<String>,
    /// How often it may be used; `None` is an API key: any number of times.
    pub uses: Option<u32>,
    /// How long it is good for, milliseconds.
    pub ttl_ms: u64,
    /// What its holder may say of itself, if it is a worker.
    pub bounds: WorkerBounds,
}

/// What a worker may say of itself. What is `None` or empty is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerBounds {
    /// It belongs to one of these pools.
    pub pools: Vec<String>,
    /// It offers none but these agents.
    pub agents: Vec<String>,
    /// It carries none but these labels.
    pub labels: BTreeMap<String, String>,
    /// It runs at most this many attempts at a time.
    pub max_slots: Option<u32>,
}

/// Answer to [`CreateToken`]: the only time the secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    /// For `token list` and `token revoke`.
    pub id: String,
    /// The join string, `ado1:<host:port,…>:<sha256 of the CA key>:<secret>`.
    pub join: String,
    /// End of its life.
    pub expires_at: Timestamp,
}

/// Lists tokens of the caller's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTokens;

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// What its holder becomes.
    pub role: Role,
    /// Where.
    pub namespace: Namespace,
    /// The holder's fixed name.
    pub name: Option<String>,
    /// Uses left; `None` is any number.
    pub uses_left: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// End of its life.
    pub expires_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// What its holder may say of itself, if it is a worker.
    pub bounds: WorkerBounds,
}

/// Makes a token useless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeToken {
    /// Its id.
    pub id: String,
}

/// Denies every certificate of an identity, at once and on live connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeIdentity {
    /// `ado://<namespace>/<role>/<name>`.
    pub identity: String,
}

/// Answer to [`RevokeIdentity`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedIdentity {
    /// Certificates denied.
    pub certificates: u32,
}

/// Where reading system events begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventsFrom {
    /// After this cursor; 0 is the beginning.
    After(u64),
    /// This many before the end.
    Tail(u32),
    /// With the first at or after this instant.
    Since(Timestamp),
}

/// Reads system events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEvents {
    /// Where to begin.
    pub from: EventsFrom,
    /// At most this many (capped at 1,000).
    pub limit: u32,
    /// When there is none yet, wait so long for one, milliseconds (capped at 20,000).
    pub wait_ms: u32,
}

/// Answer to [`ListEvents`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// In order.
    pub events: Vec<SystemEvent>,
    /// Cursor for the next call.
    pub next: u64,
}

/// Something that happened to the fleet or to a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemEvent {
    /// Position.
    pub cursor: u64,
    /// When.
    pub time: Timestamp,
    /// `task.submitted`, `task.assigned`, `task.ended`, `worker.joined`, `worker.lost`, …
    pub kind: String,
    /// The task, if about one.
    pub task: Option<TaskId>,
    /// The worker, if about one.
    pub worker: Option<WorkerId>,
    /// In words.
    pub text: String,
}

/// Reads the audit log, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAudit {
    /// Only what somebody did whose identity contains this.
    pub principal: Option<String>,
    /// Only requests with this name ([`crate::request::Request::NAME`]).
    pub action: Option<String>,
    /// Only lines whose target or result contains this.
    pub about: Option<String>,
    /// Only what was refused.
    pub refused: bool,
    /// Only lines at or after this instant.
    pub since: Option<Timestamp>,
    /// Only lines with a lower number: the cursor of the next page.
    pub before: Option<u64>,
    /// At most this many (capped at 1,000).
    pub limit: u32,
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLine {
    /// Its number.
    pub no: u64,
    /// When; the last time, if it happened several times.
    pub time: Timestamp,
    /// Where it was to happen.
    pub namespace: Namespace,
    /// Who: an identity (`ado://…`), `controller`, or `stranger`.
    pub principal: String,
    /// What was asked: the request's name.
    pub action: String,
    /// Of what.
    pub target: String,
    /// `ok`, or why not.
    pub result: String,
    /// How often: what is refused again and again is counted, not repeated.
    pub count: u32,
}

/// Keeps a secret, or a new version of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSecret {
    /// What tasks call it by.
    pub name: String,
    /// Its value.
    pub value: Secret,
}

/// Lists secrets of the caller's namespace, without their values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSecrets;

/// What is known of a secret: all but its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretInfo {
    /// What tasks call it by.
    pub name: String,
    /// Where.
    pub namespace: Namespace,
    /// How often it has been set.
    pub version: u64,
    /// Who set it: `role/name`.
    pub owner: String,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was set last.
    pub updated_at: Timestamp,
}

/// Forgets a secret. Tasks that name it fail when they are to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveSecret {
    /// Which.
    pub name: String,
}
