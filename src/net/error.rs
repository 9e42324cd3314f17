//! What connections end with, and what that means to a caller.

use std::time::Duration;

use ado_certs::PeerError;
use ado_proto::frame::FrameError;
use ado_proto::request::ErrorReply;
use quinn::{ConnectionError, ReadError, TransportErrorCode, VarInt, WriteError};

/// What a call or a stream can end with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The other side answered no.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
    /// No address could be reached in the time given, or none could be bound.
    #[error("cannot reach {addresses}: {cause}")]
    Unreachable {
        /// What was tried.
        addresses: String,
        /// The last failure.
        cause: String,
    },
    /// The connection was lost while waiting. The other side may or may not have done what was asked.
    #[error("connection lost: {0}")]
    Lost(String),
    /// No answer in the time given.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The other side does not accept our certificate, or we not its: another CA, expired, revoked.
    #[error("{0}")]
    Certificate(String),
    /// The other side speaks another major version.
    #[error("{0}")]
    Version(String),
    /// It sent something that is not our protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// This end is closed.
    #[error("closed")]
    Closed,
}

impl Error {
    /// Whether trying again, perhaps elsewhere, may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost(_) | Self::Timeout(_) => true,
            Self::Refused(reply) => {
                use ado_proto::ErrorCode::{Busy, Stopping, Unavailable};
                [Busy, Stopping, Unavailable].into_iter().any(|code| reply.is(code))
            }
            Self::Certificate(_) | Self::Version(_) | Self::Protocol(_) | Self::Closed => false,
        }
    }
}

/// Codes of connections closed and streams ended by ado. Part of the protocol: never reused.
pub(super) mod code {
    use quinn::VarInt;

    /// Nothing is wrong.
    pub(crate) const DONE: VarInt = VarInt::from_u32(0);
    /// The server stops: another one, or the next one, will answer.
    pub(crate) const STOPPING: VarInt = VarInt::from_u32(1);
    /// The peer has shown no identity of the mesh.
    pub(crate) const NO_IDENTITY: VarInt = VarInt::from_u32(2);
    /// The peer's certificate is denied or its life is over.
    pub(crate) const DENIED: VarInt = VarInt::from_u32(3);
    /// The peer sent what is not our protocol.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(4);
    /// Too much to do: try again later.
    pub(crate) const BUSY: VarInt = VarInt::from_u32(5);
}

/// With which code a peer that may not come in is sent away.
pub(super) fn refusal(error: &PeerError) -> VarInt {
    match error {
        PeerError::NoCertificate | PeerError::NoIdentity => code::NO_IDENTITY,
        PeerError::Expired(_) | PeerError::Revoked(_) => code::DENIED,
        PeerError::UnknownProtocol => code::PROTOCOL,
    }
}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                match close.error_code {
                    code::NO_IDENTITY | code::DENIED => Self::Certificate(reason),
                    code::PROTOCOL => Self::Protocol(reason),
                    code::BUSY => Self::Lost(format!("the other side is busy: {reason}")),
                    _ if reason.is_empty() => Self::Lost("the other side closed it".into()),
                    _ => Self::Lost(reason),
                }
            }
            ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                Self::Lost("the other side is busy and takes no connection".into())
            }
            ConnectionError::ConnectionClosed(close) => {
                alert(close.error_code, Side::Theirs).unwrap_or_else(|| Self::Lost(close.to_string()))
            }
            ConnectionError::TransportError(error) => {
                alert(error.code, Side::Ours).unwrap_or_else(|| Self::Lost(error.to_string()))
            }
            ConnectionError::VersionMismatch => Self::Version("the other side speaks another version of QUIC".into()),
            ConnectionError::Reset => Self::Lost("the other side has restarted".into()),
            ConnectionError::TimedOut => Self::Lost("the other side was silent for too long".into()),
            ConnectionError::LocallyClosed => Self::Lost("this side closed it".into()),
            ConnectionError::CidsExhausted => Self::Lost("connection ids are exhausted".into()),
        }
    }
}

/// Who found fault in a handshake.
#[derive(Clone, Copy)]
enum Side {
    Ours,
    Theirs,
}

/// QUIC carries TLS alerts as 0x100 + the alert's number (RFC 9001 section 4.8).
fn alert(code: TransportErrorCode, found_by: Side) -> Option<Error> {
    let alert = u64::from(code).checked_sub(0x100).filter(|alert| *alert <= 0xff)?;
    Some(match (alert, found_by) {
        // no_application_protocol
        (120, _) => Error::Version("no protocol version in common: the other side runs another release of ado".into()),
        // bad, unsupported, revoked, expired and unknown certificate; unknown CA; access denied; decrypt error (the
        // other side does not hold the key of its certificate)
        (42..=46 | 48 | 49 | 51, Side::Ours) => Error::Certificate(format!(
            "the other side is no controller of this mesh ({}): check the address, or `ado join` again",
            alert_name(alert)
        )),
        // also certificate_required
        (42..=46 | 48 | 49 | 51 | 116, Side::Theirs) => Error::Certificate(format!(
            "the other side does not accept our certificate ({}): `ado join` its mesh",
            alert_name(alert)
        )),
        _ => return None,
    })
}

/// RFC 8446 section 6.
fn alert_name(alert: u64) -> &'static str {
    match alert {
        44 => "revoked",
        45 => "expired",
        48 => "issued by another CA",
        49 => "access denied",
        51 => "wrong key",
        116 => "none was shown",
        _ => "invalid",
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => error.into(),
            ReadError::Reset(code::PROTOCOL) => Self::Protocol("the other side refused the stream".into()),
            ReadError::Reset(_) => Self::Lost("the other side gave the stream up".into()),
            ReadError::ClosedStream => Self::Closed,
            ReadError::IllegalOrderedRead => unreachable!("streams are read in order only"),
            ReadError::ZeroRttRejected => Self::Lost("early data was rejected".into()),
        }
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            WriteError::Stopped(code::PROTOCOL) => Self::Protocol("the other side refused the stream".into()),
            WriteError::Stopped(_) => Self::Lost("the other side has stopped reading".into()),
            WriteError::ClosedStream => Self::Closed,
            WriteError::ZeroRttRejected => Self::Lost("early data was rejected".into()),
        }
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}
