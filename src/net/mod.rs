//! Connections: streams of frames over QUIC, typed calls, reconnecting.
//!
//! Owns: endpoints, streams and messages, priorities, back-off, where a connection goes and how it comes back.
//! Must never know: tasks. The rest of the program sees streams that pause, not connections that break.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ado_certs::{ClientTls, Denied, Peer, ServerTls};
use ado_proto::request::{ErrorReply, Header, Request};
use ado_proto::session::Message;
use ado_proto::{Namespace, RequestId};
use bytes::Bytes;
use tokio::sync::watch;

use crate::env::Env;
use crate::tasks::Tasks;

/// What a call or a stream can end with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The other side answered no.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
    /// No address could be reached in the time given.
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

/// Order in which streams of a connection are served: higher first, strictly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Uploads, checkpoints, replays of old logs.
    Bulk,
    /// Live output.
    #[default]
    Live,
    /// Requests and heartbeats.
    Control,
}

/// A stream of frames in both directions.
pub struct Channel {
    /// To the other side.
    pub tx: Sender,
    /// From the other side.
    pub rx: Receiver,
}

/// The sending half. Dropping it without [`Sender::finish`] resets the stream.
pub struct Sender {}

impl Sender {
    /// Sends one frame; waits while the other side does not read. Not cancel safe: a cancelled send breaks the stream.
    pub async fn send(&mut self, _body: &[u8]) -> Result<(), Error> {
        unimplemented!()
    }

    /// Sends one message. Not cancel safe.
    pub async fn send_message<M: Message>(&mut self, message: &M) -> Result<(), Error> {
        self.send(&message.to_frame()).await
    }

    /// No more frames: the other side reads the end of the stream after the last one.
    pub fn finish(&mut self) {
        unimplemented!()
    }
}

/// The receiving half. Dropping it tells the other side to stop sending.
pub struct Receiver {}

impl Receiver {
    /// The next frame; `None` at the end of the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        unimplemented!()
    }

    /// The next message; `None` at the end of the stream. Cancel safe.
    pub async fn next_message<M: Message>(&mut self) -> Result<Option<M>, Error> {
        match self.next().await? {
            Some(frame) => M::from_frame(&frame).map(Some).map_err(|error| Error::Protocol(error.to_string())),
            None => Ok(None),
        }
    }
}

// ---- client side ------------------------------------------------------------------------------------------------

/// Gives `host:port` of one or several controllers of one mesh, in order of preference. It may change between calls (a
/// local controller that was restarted on another port).
pub type Addresses = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// How a [`Link`] finds and treats its peer.
#[derive(Clone)]
pub struct LinkConfig {
    /// Asked before every round of dials.
    pub addresses: Addresses,
    /// Who we are, and whom we trust.
    pub tls: ClientTls,
    /// Longest wait between failed dials. First dials are immediate.
    pub reconnect_interval: Duration,
    /// Keep-alive interval.
    pub keep_alive: Duration,
    /// A connection silent for this long is given up.
    pub idle_timeout: Duration,
}

/// Where a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected; with the last failure, if any.
    Connecting(Option<String>),
    /// Connected to this address. `number` rises with every connection.
    Connected {
        /// The peer's address.
        to: SocketAddr,
        /// Counts connections, from 1.
        number: u64,
    },
    /// It will not connect any more: closed, or a failure that trying again cannot mend.
    Closed(String),
}

/// How a call is made.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// Key of idempotency for mutations.
    pub id: Option<RequestId>,
    /// The namespace meant; `None` is the certificate's.
    pub namespace: Option<Namespace>,
    /// Longest time in all, reconnects included; `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// Its stream's priority.
    pub priority: Priority,
}

/// A session with a mesh's controllers: connected when it can be, reconnecting when it was not. Clones share it.
#[derive(Clone)]
pub struct Link {}

impl Link {
    /// Starts dialling.
    pub fn start(_config: LinkConfig, _env: Env, _tasks: &Tasks) -> Result<Self, Error> {
        unimplemented!()
    }

    /// Asks and waits for the answer. Waits for a connection first; a request that is safe to repeat (a read, or a
    /// mutation with a request id) is sent again when the connection is lost.
    pub async fn call<R: Request>(&self, _request: &R, _call: Call) -> Result<R::Response, Error> {
        unimplemented!()
    }

    /// Opens a streaming request on the current connection (waits for one): the answer, then the stream. When the
    /// connection is lost the stream fails with [`Error::Lost`], and the caller opens another from its cursor.
    pub async fn open<R: Request>(&self, _request: &R, _call: Call) -> Result<(R::Response, Channel), Error> {
        unimplemented!()
    }

    /// Where the link is.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        unimplemented!()
    }

    /// The seam of roaming: the network has changed. Rebinds the socket, and dials at once if not connected.
    pub fn network_changed(&self) {
        unimplemented!()
    }

    /// Closes the connection, after what was sent has arrived or a short time has passed.
    pub async fn close(&self) {
        unimplemented!()
    }
}

// ---- server side ------------------------------------------------------------------------------------------------

/// Keys a server keeps over restarts, so that its peers notice a restart at their next packet (stateless reset needs the
/// reset key and the connection-id key), and address tokens stay valid.
#[derive(Clone)]
pub struct ServerKeys {
    /// 64 random bytes for stateless resets.
    pub reset: [u8; 64],
    /// Key of connection ids.
    pub connection_id: u64,
    /// 64 random bytes for address-validation tokens.
    pub token: [u8; 64],
}

/// What a server is made of.
pub struct ServerConfig {
    /// Addresses to listen on; port 0 picks one.
    pub listen: Vec<SocketAddr>,
    /// Who we are.
    pub tls: ServerTls,
    /// Kept over restarts.
    pub keys: ServerKeys,
    /// Certificates that are denied.
    pub denied: Denied,
    /// Most connections at once. More are refused.
    pub max_connections: usize,
    /// Most connections at once that have not proved who they are (handshakes and `ado-join/1`).
    pub max_strangers: usize,
    /// A connection silent for this long is given up.
    pub idle_timeout: Duration,
}

/// Accepts connections.
pub struct Server {}

impl Server {
    /// Binds the sockets.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when an address cannot be bound.
    pub fn bind(_config: ServerConfig, _env: Env, _tasks: &Tasks) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The addresses bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        unimplemented!()
    }

    /// The next connection whose peer is verified or joining. `None` after [`Server::close`].
    pub async fn accept(&self) -> Option<Connection> {
        unimplemented!()
    }

    /// Stops accepting, tells peers to go elsewhere, waits until what was sent has arrived, at most `patience`.
    pub async fn close(&self, _patience: Duration) {
        unimplemented!()
    }
}

/// One connection, seen from the server. Clones share it; the last one dropped closes it.
#[derive(Clone)]
pub struct Connection {}

impl Connection {
    /// Who is on the other side. Changes when the peer renews its certificate.
    pub fn peer(&self) -> Peer {
        unimplemented!()
    }

    /// The peer has a new certificate.
    pub fn renewed(&self, _peer: Peer) {
        unimplemented!()
    }

    /// Where the peer is.
    pub fn remote(&self) -> SocketAddr {
        unimplemented!()
    }

    /// The next request; `None` when the connection is over. A stream whose first frame is late, too large or no request
    /// is refused here and never seen.
    pub async fn accept(&self) -> Option<Incoming> {
        unimplemented!()
    }

    /// Ends the connection with a reason people can read.
    pub fn close(&self, _reason: &str) {
        unimplemented!()
    }

    /// Resolves when the connection is over.
    pub async fn closed(&self) {
        unimplemented!()
    }
}

/// A request as it came.
pub struct Incoming {
    /// What is asked.
    pub header: Header,
    /// The request's body.
    pub body: Bytes,
    /// For the answer, and what follows it.
    pub channel: Channel,
}
