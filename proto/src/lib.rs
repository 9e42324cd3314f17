//! The words ado's processes say to each other: ids, records, requests, frames, compression, versions.
//!
//! Owns: what every byte on the wire and in a log chunk means, and how it may change.
//! Must never know: tokio, sockets, storage, policy. Everything here is a value or a pure function.
//!
//! **Evolution.** postcard cannot skip unknown fields or variants, so change is explicit. Every payload travels as
//! `(kind, version, length, bytes)`: a reader that does not know a kind or version can skip it. A payload type is frozen
//! once released; a change is a new version of its kind, and every old version stays decodable. Golden files under
//! `proto/tests/golden` hold every released version.

pub mod compress;
pub mod frame;
pub mod ids;
pub mod inside;
mod payload;
pub mod record;
pub mod request;
mod secret;
pub mod session;
pub mod snapshot;
pub mod spec;
pub mod version;

pub use ids::{
    AskDigest, AskId, Audience, CheckpointId, ControllerId, Epoch, GroupId, Incarnation, Namespace, Offset, Principal,
    RequestId, Role, Seq, TaskId, Timestamp, WorkerId,
};
pub use payload::{DecodeError, Payload};
pub use record::{Body, Origin, Record};
pub use request::{ErrorCode, ErrorReply, Request};
pub use secret::Secret;
pub use snapshot::{BlobId, Snapshot};
