//! Sockets, and what quinn is told about them: buffers, windows, limits, keys.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{Error, code};
use super::kick::Kick;
use super::server::ServerKeys;

/// What the kernel may hold for a socket in each direction. Its defaults (about 200 KiB) drop packets of a single busy
/// stream when the process is not scheduled for a few milliseconds.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// What one stream may have under way or unread. quinn-proto kills connections whose stream has more than a thousand
/// gaps, which needs more than 2 MiB of packets.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What one connection may have under way or unread: this many streams' readers can stand still, each with a full
/// window, before the others of the connection are held up.
const CONNECTION_WINDOW: u32 = 32 * STREAM_WINDOW;
/// What one connection may have sent without acknowledgement.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;
/// What a connection holds of datagrams in each direction.
const DATAGRAMS: usize = 32 * 1024;

/// Largest packet within a machine. Its own network takes 64 KiB, but what is handed to the kernel at once is ten packets
/// of one size and no more than 64 KiB.
const LOOPBACK_PACKET: u16 = 6 * 1024;

/// Streams a stranger may have open, and what it may send before it is verified.
const STRANGER_STREAMS: u32 = 4;
const STRANGER_WINDOW: u32 = 64 * 1024;
/// Streams a peer of the mesh may have open. quinn pays some 35 bytes for each one permitted, used or not.
const MESH_STREAMS: u32 = 256;

/// First guess of the round-trip time. Decides after how long (3 × this) a lost first packet is sent again; quinn's own
/// guess makes that a second. A path that is slower costs a packet or two.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Packets of handshakes that were not accepted yet, one and all. A full handshake of ours has two.
const INCOMING_BUFFER: u64 = 16 * 1024;
const INCOMING_BUFFERS: u64 = 4 * 1024 * 1024;

/// Where sockets come from: the operating system, or a simulated network. The one place where quinn's types are seen
/// outside of this module, by simulations only.
pub trait Sockets: fmt::Debug + Send + Sync {
    /// Binds a UDP socket. The wildcard address means: wherever packets can come from.
    ///
    /// # Errors
    /// When the address cannot be bound.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// Timers and tasks that go with the sockets.
    fn runtime(&self) -> Arc<dyn quinn::Runtime>;
}

/// The operating system's.
#[derive(Debug)]
struct SystemSockets;

impl Sockets for SystemSockets {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            // One socket a family: a v4-mapped peer would lose its congestion state whenever its port changes.
            socket.set_only_v6(true)?;
        }
        enlarge_buffers(&socket);
        socket.bind(&address.into())?;
        quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket.into())
    }

    fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }
}

fn enlarge_buffers(socket: &Socket) {
    let receive = socket.set_recv_buffer_size(SOCKET_BUFFER).and_then(|()| socket.recv_buffer_size());
    let send = socket.set_send_buffer_size(SOCKET_BUFFER).and_then(|()| socket.send_buffer_size());
    for (direction, size) in [("receive", receive), ("send", send)] {
        if !size.as_ref().is_ok_and(|size| *size >= SOCKET_BUFFER) {
            tracing::debug!(direction, ?size, wanted = SOCKET_BUFFER, "the kernel clamps socket buffers");
        }
    }
}

pub(super) fn sockets(given: Option<Arc<dyn Sockets>>) -> Arc<dyn Sockets> {
    given.unwrap_or_else(|| Arc::new(SystemSockets))
}

/// How far the other side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// On this machine. Packets cost by their number, not by their length: they may be long.
    Loopback,
    /// Anywhere else.
    Network,
}

impl Reach {
    /// How far an address is.
    pub(super) fn of(address: SocketAddr) -> Self {
        if address.ip().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

fn transport(idle_timeout: Duration, reach: Reach, kick: &Kick) -> TransportConfig {
    let mut config = TransportConfig::default();
    if reach == Reach::Loopback {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(LOOPBACK_PACKET);
        config.mtu_discovery_config(Some(discovery));
    }
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(idle_timeout).unwrap_or(IdleTimeout::from(VarInt::MAX))))
        .stream_receive_window(STREAM_WINDOW.into())
        .send_window(SEND_WINDOW)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(DATAGRAMS))
        .datagram_send_buffer_size(DATAGRAMS)
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(kick.clone()));
    config
}

/// What is told to quinn for dials.
pub(super) struct Dialling {
    // Made once: address tokens belong to it.
    config: quinn::ClientConfig,
    keep_alive: Duration,
    idle_timeout: Duration,
}

impl Dialling {
    pub(super) fn new(
        tls: Arc<rustls::ClientConfig>,
        keep_alive: Duration,
        idle_timeout: Duration,
    ) -> Result<Self, Error> {
        let tls = QuicClientConfig::try_from(tls)
            .map_err(|error| Error::Certificate(format!("the TLS configuration does not fit QUIC: {error}")))?;
        Ok(Self { config: quinn::ClientConfig::new(Arc::new(tls)), keep_alive, idle_timeout })
    }

    /// For one dial, whose connection `kick` is for.
    pub(super) fn config(&self, kick: &Kick, reach: Reach) -> quinn::ClientConfig {
        let mut transport = transport(self.idle_timeout, reach, kick);
        transport
            .keep_alive_interval(Some(self.keep_alive))
            .receive_window(CONNECTION_WINDOW.into())
            // Controllers open no streams.
            .max_concurrent_bidi_streams(VarInt::from_u32(0));
        let mut config = self.config.clone();
        config.transport_config(Arc::new(transport));
        config
    }
}

/// How connections are taken, whatever socket they come through. What it grants is for strangers; see [`grant`].
pub(super) struct Listening {
    endpoint: EndpointConfig,
    server: quinn::ServerConfig,
    idle_timeout: Duration,
}

impl Listening {
    pub(super) fn new(
        tls: Arc<rustls::ServerConfig>,
        keys: &ServerKeys,
        idle_timeout: Duration,
        max_incoming: usize,
    ) -> Result<Self, Error> {
        let tls = QuicServerConfig::try_from(tls)
            .map_err(|error| Error::Certificate(format!("the TLS configuration does not fit QUIC: {error}")))?;
        let token_key = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &[]).extract(&keys.token);
        let mut server = quinn::ServerConfig::new(Arc::new(tls), Arc::new(token_key));
        server
            .max_incoming(max_incoming)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFERS);
        let mut endpoint = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys.reset)));
        take_long_packets(&mut endpoint);
        let key = keys.connection_id;
        endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
        Ok(Self { endpoint, server, idle_timeout })
    }

    /// Begins a connection, which `kick` is for.
    pub(super) fn accept(
        &self,
        incoming: quinn::Incoming,
        kick: &Kick,
    ) -> Result<quinn::Connecting, quinn::ConnectionError> {
        let reach = Reach::of(incoming.remote_address());
        let mut transport = transport(self.idle_timeout, reach, kick);
        transport.max_concurrent_bidi_streams(STRANGER_STREAMS.into()).receive_window(STRANGER_WINDOW.into());
        let mut server = self.server.clone();
        server.transport_config(Arc::new(transport));
        incoming.accept_with(Arc::new(server))
    }

    /// An endpoint that takes them through `socket`.
    pub(super) fn on(
        &self,
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        runtime: Arc<dyn quinn::Runtime>,
    ) -> io::Result<quinn::Endpoint> {
        quinn::Endpoint::new_with_abstract_socket(self.endpoint.clone(), Some(self.server.clone()), socket, runtime)
    }
}

/// Takes the longest packets that anybody sends.
fn take_long_packets(config: &mut EndpointConfig) {
    config.max_udp_payload_size(LOOPBACK_PACKET).expect("more than the least that QUIC asks for");
}

/// Raises what a peer may use to what verified peers of the mesh get.
pub(super) fn grant(connection: &quinn::Connection) {
    connection.set_receive_window(CONNECTION_WINDOW.into());
    permit_streams(connection, 0);
}

/// Lets a verified peer have this many streams open at once, and no fewer than every peer of the mesh.
pub(super) fn permit_streams(connection: &quinn::Connection, streams: u32) {
    connection.set_max_concurrent_bi_streams(streams.max(MESH_STREAMS).into());
}

/// The dialling endpoints: one an address family, each made when it is first needed, on a wildcard address so that it
/// outlives the network it was made on.
pub(super) struct Endpoints {
    sockets: Arc<dyn Sockets>,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    v4: Option<quinn::Endpoint>,
    v6: Option<quinn::Endpoint>,
}

impl Endpoints {
    pub(super) fn new(sockets: Arc<dyn Sockets>) -> Self {
        Self { sockets, made: Mutex::default() }
    }

    /// The endpoint that can reach `address`.
    pub(super) fn reaching(&self, address: SocketAddr) -> io::Result<quinn::Endpoint> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = if address.is_ipv4() { &mut made.v4 } else { &mut made.v6 };
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let socket = self.sockets.bind(wildcard(address.is_ipv4()))?;
        let runtime = self.sockets.runtime();
        let mut config = EndpointConfig::default();
        take_long_packets(&mut config);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime)?;
        Ok(slot.insert(endpoint).clone())
    }

    /// Moves all connections to fresh sockets. Those that cannot be had leave the old ones in place.
    pub(super) fn rebind(&self) {
        for endpoint in self.all() {
            let v4 = endpoint.local_addr().is_ok_and(|address| address.is_ipv4());
            let moved = self.sockets.bind(wildcard(v4)).and_then(|socket| endpoint.rebind_abstract(socket));
            if let Err(error) = moved {
                tracing::debug!(%error, v4, "cannot rebind");
            }
        }
    }

    /// Closes all connections, without waiting. A peer that does not hear of it finds out when the connection has been
    /// silent for its idle timeout.
    pub(super) fn close(&self) {
        for endpoint in self.all() {
            endpoint.close(code::DONE, b"");
        }
    }

    fn all(&self) -> Vec<quinn::Endpoint> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        [&made.v4, &made.v6].into_iter().flatten().cloned().collect()
    }
}

pub(super) fn wildcard(v4: bool) -> SocketAddr {
    if v4 { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}
