//! Requests: a bidirectional stream each. The caller's first frame is a [`Header`] and the request's body; the answer's
//! first frame is `Result<Response, ErrorReply>`. Streaming requests go on with frames of [`crate::session`]'s messages.

mod admin;
mod task;
mod worker;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::payload::{from_postcard, to_postcard};
use crate::{DecodeError, Namespace, RequestId};

pub use admin::{
    AuditLine, CreateToken, CreatedToken, Enrol, Enrolled, Events, EventsFrom, Hello, ListAudit, ListEvents,
    ListSecrets, ListTokens, RemoveSecret, Renew, Renewed, RevokeIdentity, RevokeToken, RevokedIdentity, SecretInfo,
    SetSecret, SystemEvent, TokenInfo, Welcome, WorkerBounds,
};
pub use task::{
    AnswerGiven, CheckpointInfo, DeadOnes, DesiredSet, Detach, DetachedViewers, Follow, Following, GetTasks,
    GiveAnswer, ListTasks, PurgeDead, RetryDead, SetDesired, Settled, SettledDead, SettledTask, StartAt, Submit,
    Submitted, TaskFilter, TaskInfo, TaskPage,
};
pub use worker::{
    BlobFollows, BreakerInfo, ControllerInfo, GetBlob, ListControllers, ListWorkers, Load, OutputAccepted, PutBlob,
    SetWorker, TaskOutput, WorkerAccepted, WorkerDesired, WorkerInfo, WorkerSession, WorkerSet, WorkerWant,
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
    ListTasks: 22/1, Read => TaskPage;
    SetDesired: 23/1, Idempotent => Vec<DesiredSet>;
    Follow: 24/1, Read => Following;
    Detach: 25/1, Idempotent => DetachedViewers;
    RetryDead: 26/1, Idempotent => SettledDead;
    PurgeDead: 27/1, Idempotent => SettledDead;
    GiveAnswer: 28/1, Idempotent => AnswerGiven;
    ListWorkers: 30/1, Read => Vec<WorkerInfo>;
    SetWorker: 31/1, Idempotent => WorkerSet;
    ListEvents: 40/1, Read => Events;
    ListAudit: 45/1, Read => Vec<AuditLine>;
    ListControllers: 50/1, Read => Vec<ControllerInfo>;
    // No value in 0-RTT data, which can be played again.
    SetSecret: 46/1, Once => SecretInfo;
    ListSecrets: 47/1, Read => Vec<SecretInfo>;
    RemoveSecret: 48/1, Once => ();
    // Registers a start of the worker: a replay would bring back an old one.
    WorkerSession: 60/1, Once => WorkerAccepted;
    TaskOutput: 61/1, Read => OutputAccepted;
    PutBlob: 62/1, Read => ();
    GetBlob: 63/1, Read => BlobFollows;
}
