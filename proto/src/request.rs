//! Requests: a bidirectional stream each. The caller's first frame is a [`Header`] and the request's body; the answer's
//! first frame is `Result<Response, ErrorReply>`. Streaming requests go on with frames of [`crate::session`]'s messages.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::payload::{from_postcard, to_postcard};
use crate::record::{Desired, Member, Outcome};
use crate::spec::{Exit, TaskSpec};
use crate::{
    ControllerId, DecodeError, Epoch, GroupId, Incarnation, Namespace, Offset, RequestId, Role, Seq, TaskId, Timestamp,
    WorkerId,
};

/// What repeating a request may do: whether it may travel as 0-RTT data, and whether a client may resend it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safety {
    /// Changes nothing.
    Read,
    /// Changes something once, however often it comes with the same request id.
    Idempotent,
    /// Must not be repeated by the transport (enrolment, tokens).
    Once,
}

/// A typed request. Kinds and versions are never reused.
pub trait Request: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Which request.
    const KIND: u16;
    /// Which form of it.
    const VERSION: u8;
    /// For errors, audit and spans.
    const NAME: &'static str;
    /// What repeating it may do.
    const SAFETY: Safety;
    /// The answer.
    type Response: Serialize + DeserializeOwned + Send + 'static;
}

/// What comes before a request's body. Frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The sender's minor version.
    pub minor: u16,
    /// [`Request::KIND`].
    pub kind: u16,
    /// [`Request::VERSION`].
    pub version: u8,
    /// Present on mutations: the key of idempotency.
    pub id: Option<RequestId>,
    /// The namespace the caller means; `None` is its certificate's.
    pub namespace: Option<Namespace>,
}

/// The first frame of a request.
pub fn encode_request<R: Request>(header: &Header, request: &R) -> Vec<u8> {
    let mut out = Vec::new();
    to_postcard(header, &mut out);
    to_postcard(request, &mut out);
    out
}

/// Splits a request's first frame into its header and the body for [`decode_body`].
///
/// # Errors
/// [`DecodeError`] when the bytes do not begin with a header.
pub fn decode_header(frame: &Bytes) -> Result<(Header, Bytes), DecodeError> {
    let (header, rest) =
        postcard::take_from_bytes(frame).map_err(|_| DecodeError::Malformed { what: "request header" })?;
    Ok((header, frame.slice(frame.len() - rest.len()..)))
}

/// Reads the body of a request whose header names `R`.
///
/// # Errors
/// [`DecodeError`] when the bytes are not exactly an `R`.
pub fn decode_body<R: Request>(body: &[u8]) -> Result<R, DecodeError> {
    from_postcard(body, R::NAME)
}

/// The first frame of an answer.
pub fn encode_response<T: Serialize>(response: &Result<T, ErrorReply>) -> Vec<u8> {
    let mut out = Vec::new();
    to_postcard(response, &mut out);
    out
}

/// Reads the first frame of an answer to an `R`.
///
/// # Errors
/// [`DecodeError`] when the bytes are not exactly an answer.
pub fn decode_response<R: Request>(frame: &[u8]) -> Result<Result<R::Response, ErrorReply>, DecodeError> {
    from_postcard(frame, R::NAME)
}

/// A refusal. Frozen; codes are added, never reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// See [`ErrorCode`]; a number, so that unknown ones can be read.
    pub code: u16,
    /// What was wrong, with which value.
    pub message: String,
    /// What to do next.
    pub hints: Vec<String>,
}

impl ErrorReply {
    /// A refusal without hints.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: code as u16, message: message.into(), hints: Vec::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Whether this is a refusal of the given kind.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code as u16
    }
}

/// Kinds of refusal a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// There is no such thing, or the caller may not know of it.
    NotFound = 1,
    /// More than one thing fits.
    Ambiguous = 2,
    /// The request cannot be right.
    Invalid = 3,
    /// The caller may not do that.
    Denied = 4,
    /// It contradicts what already is (already completed; same key, other body).
    Conflict = 5,
    /// The epoch is over.
    Stale = 6,
    /// The store is not to be had right now; try again.
    Unavailable = 7,
    /// A limit is reached; try again later.
    Busy = 8,
    /// Kind, version or minor version is not spoken here.
    UnsupportedVersion = 9,
    /// A token is unknown, expired, used up or revoked.
    BadToken = 10,
    /// The certificate is expired or revoked.
    BadCertificate = 11,
    /// The controller failed; it has logged why.
    Internal = 12,
    /// The controller is stopping; ask another or try again.
    Stopping = 13,
}

macro_rules! requests {
    ($($request:ty: $kind:literal / $version:literal, $safety:ident => $response:ty;)+) => {
        $(impl Request for $request {
            const KIND: u16 = $kind;
            const VERSION: u8 = $version;
            const NAME: &'static str = stringify!($request);
            const SAFETY: Safety = Safety::$safety;
            type Response = $response;
        })+

        /// Every request this build knows: kind, version, name, safety.
        pub const KNOWN: &[(u16, u8, &str, Safety)] =
            &[$(($kind, $version, stringify!($request), Safety::$safety)),+];
    };
}

requests! {
    Hello: 1/1, Read => Welcome;
    Enrol: 2/1, Once => Enrolled;
    Renew: 3/1, Once => Renewed;
    CreateToken: 10/1, Once => CreatedToken;
    ListTokens: 11/1, Read => Vec<TokenInfo>;
    RevokeToken: 12/1, Idempotent => ();
    RevokeIdentity: 13/1, Idempotent => RevokedIdentity;
    Submit: 20/1, Idempotent => Submitted;
    GetTasks: 21/1, Read => Vec<TaskInfo>;
    ListTasks: 22/1, Read => Vec<TaskInfo>;
    SetDesired: 23/1, Idempotent => Vec<DesiredSet>;
    Follow: 24/1, Read => Following;
    ListWorkers: 30/1, Read => Vec<WorkerInfo>;
    ListEvents: 40/1, Read => Events;
    WorkerSession: 60/1, Read => WorkerAccepted;
    TaskOutput: 61/1, Read => OutputAccepted;
}

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

/// Submits tasks: one, or the members of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// A label for people.
    pub name: Option<String>,
    /// One a task, at least one; more than one make a group.
    pub specs: Vec<TaskSpec>,
}

/// Answer to [`Submit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// In the order of the specs.
    pub tasks: Vec<TaskId>,
    /// The group, if there is more than one.
    pub group: Option<GroupId>,
    /// Workers that could take them now or when a slot is free. Zero: they wait.
    pub eligible_workers: u32,
}

/// Finds tasks by reference: one task, or all of a group in order of index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetTasks {
    /// An id, a prefix, a group id or a `--name`.
    pub reference: String,
}

/// Lists tasks, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTasks {
    /// Only these states (words of [`TaskInfo::state`]); empty means all.
    pub states: Vec<String>,
    /// Only tasks older than this one: the cursor of the next page.
    pub before: Option<TaskId>,
    /// At most this many (capped at 1,000).
    pub limit: u32,
}

/// What is known of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its id.
    pub id: TaskId,
    /// Where it lives.
    pub namespace: Namespace,
    /// Who submitted it.
    pub owner: String,
    /// Its label.
    pub name: Option<String>,
    /// Its group.
    pub group: Option<Member>,
    /// `queued`, `starting`, `running`, `paused`, `waiting`, `completed`, `failed`, `cancelled`.
    pub state: String,
    /// What somebody wants it to be.
    pub desired: Desired,
    /// What was asked.
    pub spec: TaskSpec,
    /// Who holds or last held it.
    pub worker: Option<WorkerId>,
    /// That worker's name.
    pub worker_name: Option<String>,
    /// Its current or last epoch.
    pub epoch: Epoch,
    /// Executions so far that count.
    pub attempt: u32,
    /// Losses of workers that do not count.
    pub losses: u32,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its agent first ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Not claimed before this instant.
    pub not_before: Timestamp,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// How its process ended.
    pub exit: Option<Exit>,
    /// What went wrong.
    pub error: Option<String>,
    /// Length of its log.
    pub next_offset: Offset,
    /// One sentence: why it is where it is, and what to do.
    pub reason: Option<String>,
}

/// Asks for another state of a task or of all tasks of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDesired {
    /// An id, a prefix or a group id.
    pub reference: String,
    /// What is wanted.
    pub desired: Desired,
    /// With [`Desired::Cancelled`]: kill at once.
    pub force: bool,
}

/// Answer to [`SetDesired`], one a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSet {
    /// The task.
    pub task: TaskId,
    /// Its state after the request.
    pub state: String,
    /// Why nothing changed (`already completed`), if so.
    pub unchanged: Option<String>,
}

/// Where a viewer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAt {
    /// At this offset.
    Offset(Offset),
    /// This many lines of output before the end.
    Tail(u32),
    /// At the first record committed at or after this instant.
    Since(Timestamp),
}

/// Reads a log from a position and, if asked, stays for more. Answered by frames of
/// [`crate::session::FollowItem`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The task.
    pub task: TaskId,
    /// Where to begin.
    pub from: StartAt,
    /// Stay after the last record until the task ends.
    pub follow: bool,
    /// The generation a cursor belongs to; another one is answered `LogReset`.
    pub generation: Option<u64>,
}

/// Answer to [`Follow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// Where reading begins.
    pub from: Offset,
    /// Bytes of the first output record that come before the lines asked for ([`StartAt::Tail`]).
    pub skip: u32,
    /// Generation of the log.
    pub generation: u64,
}

/// Lists workers of the caller's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListWorkers;

/// What is known of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its id.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// `ready`, `draining`, `lost`.
    pub state: String,
    /// Template.
    pub pool: String,
    /// Parallel capacity.
    pub slots: u32,
    /// Attempts it holds.
    pub busy: u32,
    /// Agents it can run.
    pub agents: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How it holds processes.
    pub containment: crate::spec::Containment,
    /// Milliseconds since its last heartbeat.
    pub heartbeat_age_ms: u64,
    /// Its build.
    pub build: String,
}

/// Reads system events after a cursor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEvents {
    /// The last cursor seen; 0 is the beginning.
    pub after: u64,
    /// At most this many (capped at 1,000).
    pub limit: u32,
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

/// A worker's long-lived stream: it sends [`crate::session::FromWorker`], the controller
/// [`crate::session::ToWorker`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSession {
    /// This start of the worker.
    pub incarnation: Incarnation,
    /// For people.
    pub name: String,
    /// Template.
    pub pool: String,
    /// Parallel capacity.
    pub slots: u32,
    /// Agents it can run.
    pub agents: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How it holds processes.
    pub containment: crate::spec::Containment,
    /// Its build.
    pub build: String,
}

/// Answer to [`WorkerSession`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerAccepted {
    /// How often to send a heartbeat, milliseconds.
    pub heartbeat_ms: u64,
    /// How long a renewal is good for, counted from when it was sent, milliseconds.
    pub lease_ms: u64,
}

/// The stream of one attempt's records: the worker sends [`crate::session::FromAttempt`], the controller
/// [`crate::session::ToAttempt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOutput {
    /// The task.
    pub task: TaskId,
    /// The assignment.
    pub epoch: Epoch,
    /// This start of the worker.
    pub incarnation: Incarnation,
}

/// Answer to [`TaskOutput`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputAccepted {
    /// The first seq that is not yet in the log: the worker goes on from here.
    pub next_seq: Seq,
}
