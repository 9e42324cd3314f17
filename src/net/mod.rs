//! Connections: streams of frames over QUIC, typed calls, reconnecting.
//!
//! Owns: endpoints, streams and messages, priorities, back-off, where a connection goes and how it comes back.
//! Must never know: tasks. The rest of the program sees streams that pause, not connections that break.
//!
//! A [`Link`] calls, a [`Server`] answers. A request is a stream of its own: its first frame, the answer's first frame,
//! and, if it is a streaming request, frames both ways on a [`Channel`] for as long as both sides like. What a peer may
//! use before it is known who it is (streams, bytes, time) is bounded apart from what members of the mesh may.

mod blocked;
mod changes;
mod channel;
mod dial;
mod endpoint;
mod error;
mod incoming;
mod kick;
mod link;
mod pulse;
mod renewal;
mod server;
mod survey;
#[cfg(test)]
mod tests;
mod websocket;

pub use blocked::Blocked;
pub use channel::{Channel, Priority, Receiver, Sender};
pub use dial::{Via, own_address};
pub use endpoint::Sockets;
pub use error::Error;
pub use incoming::Incoming;
pub use link::{Addresses, Call, Link, LinkConfig, LinkState};
pub use renewal::keep_renewed;
pub use server::{Connection, Server, ServerConfig, ServerKeys};
pub use survey::{Measured, Reached, Survey};
