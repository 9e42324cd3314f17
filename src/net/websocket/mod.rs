//! QUIC where UDP is blocked: its packets travel as messages of a WebSocket over TLS on TCP, to the same port.
//!
//! A WebSocket is a path, not another transport: it carries the packets of one connection, sealed as on any network.
//! Streams, priorities, identity, sessions and their resumption are QUIC's, so all that works over UDP works over it, and
//! whoever ends the outer TLS (a reverse proxy, an inspecting middlebox) sees ciphertext. What it costs is TCP: one lost
//! packet holds up all that follow.
//!
//! Owns: the handshakes outside of QUIC, and the socket quinn sends through. Must never know: what is sent.

mod carry;
mod client;
mod server;
mod socket;

pub(super) use client::Outer;
pub(super) use server::{Arrived, Listener, bind};

use std::io;

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// What is asked for in the handshake. Others may share the port, behind a reverse proxy.
const PATH: &str = "/ado/1";

/// Largest message: the largest packet that quinn makes or takes, and a margin.
const MESSAGE: usize = 2048;
/// What the kernel may hold of a stream that it has not sent yet. More would be a queue that nobody can look into, in
/// which control waits behind bulk.
const UNSENT: u32 = 32 * 1024;

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE))
        .read_buffer_size(16 * 1024)
        .write_buffer_size(16 * 1024)
}

/// Packets leave at once, and few of them wait in the kernel.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}
