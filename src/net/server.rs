//! The answering side: who may come in, for how long, and how many.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ado_certs::{Denied, Peer, PeerError, ServerTls, VerifiedPeer, verify_peer};
use ado_proto::frame::Limits;
use futures_util::future::join_all;
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::channel::Carrier;
use super::endpoint::{self, Listening, Sockets};
use super::error::{Error, code, refusal};
use super::incoming::{Incoming, Reading};
use super::kick::Kick;
use super::pulse::{self, End};
use super::websocket;
use crate::env::Env;
use crate::tasks::Tasks;

/// Longest handshake.
const HANDSHAKE_FOR: Duration = Duration::from_secs(10);
/// Longest `ado-join/1` connection: one question, one answer.
const JOINING_FOR: Duration = Duration::from_secs(60);
/// How much longer than its certificate a connection may live: no less than the difference of clocks that [`verify_peer`]
/// allows, or peers it lets in would be sent away again.
const GRACE: Duration = Duration::from_secs(60);
/// Connections not yet taken by [`Server::accept`]. When full, more of them wait, each with its task; they count as
/// connections.
const ACCEPTED: usize = 64;

/// Ports that are tried when any will do, until one is free for UDP and for TCP.
const PORTS: usize = 16;

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
    /// Most connections at once that have not proved who they are: this many in handshakes, and this many of
    /// `ado-join/1`, so that those who join do not keep members out. From half of the handshakes on, strangers must show
    /// that they are where they say they are; more are refused.
    pub max_strangers: usize,
    /// A connection silent for this long is given up.
    pub idle_timeout: Duration,
    /// Whether those whose network blocks UDP may come by WebSocket, on TCP ports of the same numbers.
    pub websocket: bool,
    /// Where sockets come from; `None`: the operating system.
    pub sockets: Option<Arc<dyn Sockets>>,
}

/// Accepts connections.
pub struct Server {
    shared: Arc<Shared>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Connection>>,
}

struct Shared {
    listening: Listening,
    // On UDP.
    endpoints: Vec<quinn::Endpoint>,
    websockets: Mutex<WebSockets>,
    registry: Arc<Registry>,
    denied: Denied,
    env: Env,
    max_connections: usize,
    max_strangers: usize,
    handshakes: Arc<Semaphore>,
    joining: Arc<Semaphore>,
    // One a WebSocket, for its life.
    carried: Arc<Semaphore>,
    // No new connections are taken.
    stop: CancellationToken,
}

impl Server {
    /// Binds the sockets and accepts connections until closed or `tasks` stop.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when an address cannot be bound; [`Error::Certificate`] when `tls` does not fit QUIC.
    pub fn bind(config: ServerConfig, env: Env, tasks: &Tasks) -> Result<Self, Error> {
        let sockets = endpoint::sockets(config.sockets);
        let listening = Listening::new(config.tls.config(), &config.keys, config.idle_timeout, config.max_strangers)?;
        let outer = config.websocket.then(|| ado_certs::outer::server(&config.tls)).transpose();
        let outer = outer.map_err(|error| Error::Certificate(error.to_string()))?;
        let mut endpoints = Vec::new();
        let mut listeners = Vec::new();
        for address in config.listen {
            let bind = || bind(address, &listening, &*sockets, outer.as_ref());
            let mut bound = bind();
            for _ in 1..PORTS {
                match bound {
                    Err(Unbound::Taken(_)) if address.port() == 0 => bound = bind(),
                    _ => break,
                }
            }
            let (endpoint, listener) = bound.map_err(Unbound::error)?;
            listeners.extend(listener);
            endpoints.push(endpoint);
        }
        let shared = Arc::new(Shared {
            listening,
            endpoints,
            websockets: Mutex::default(),
            registry: Arc::default(),
            denied: config.denied,
            env,
            max_connections: config.max_connections,
            max_strangers: config.max_strangers,
            handshakes: Arc::new(Semaphore::new(config.max_strangers)),
            joining: Arc::new(Semaphore::new(config.max_strangers)),
            carried: Arc::new(Semaphore::new(config.max_connections)),
            stop: CancellationToken::new(),
        });
        let (tx, rx) = mpsc::channel(ACCEPTED);
        for endpoint in &shared.endpoints {
            tasks.spawn_until_stop("server", shared.clone().welcome(endpoint.clone(), tx.clone(), tasks.clone()));
        }
        for listener in listeners {
            tasks.spawn_until_stop("server", shared.clone().wait_for_websockets(listener, tx.clone(), tasks.clone()));
        }
        Ok(Self { shared, accepted: rx.into() })
    }

    /// The addresses bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.shared.endpoints.iter().filter_map(|endpoint| endpoint.local_addr().ok()).collect()
    }

    /// The next connection whose peer is verified or joining. `None` after [`Server::close`]. Cancel safe.
    pub async fn accept(&self) -> Option<Connection> {
        let mut accepted = self.accepted.lock().await;
        self.shared.stop.run_until_cancelled(accepted.recv()).await.flatten()
    }

    /// Connections that live now.
    pub fn connections(&self) -> usize {
        self.shared.registry.lock().connections.len()
    }

    /// Closes every connection whose certificate is denied or whose life is over. To be called after a revocation, and
    /// every now and then.
    pub fn enforce(&self) {
        self.shared.registry.enforce(&self.shared.denied, &self.shared.env);
    }

    /// Stops accepting, tells peers to go elsewhere once what was sent on finished streams has arrived or half of
    /// `patience` is over, and waits for the rest of it at most until they know.
    pub async fn close(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.shared.stop.cancel();
        let live = self.shared.registry.carriers();
        join_all(live.iter().map(|carrier| carrier.drained(patience / 2))).await;
        let endpoints = self.shared.all_endpoints();
        for endpoint in &endpoints {
            endpoint.close(code::STOPPING, b"the controller is stopping");
        }
        let idle = join_all(endpoints.iter().map(quinn::Endpoint::wait_idle));
        // Who does not hear of it finds out by a stateless reset, or by silence.
        let _ = timeout_at(deadline, idle).await;
    }
}

impl Shared {
    /// Decides about every connection that wants to be made, until the endpoint is closed.
    async fn welcome(self: Arc<Self>, endpoint: quinn::Endpoint, accepted: mpsc::Sender<Connection>, tasks: Tasks) {
        while let Some(incoming) = endpoint.accept().await {
            let open: usize = self.all_endpoints().iter().map(quinn::Endpoint::open_connections).sum();
            if open >= self.max_connections || self.stop.is_cancelled() {
                tracing::debug!(from = %incoming.remote_address(), open, "refused: too many connections, or closing");
                incoming.refuse();
                continue;
            }
            let busy = self.handshakes.available_permits() <= self.max_strangers / 2;
            if busy && !incoming.remote_address_validated() && incoming.may_retry() {
                // Cannot fail: it may retry. Dropping it would refuse it.
                let _ = incoming.retry();
                continue;
            }
            let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
                tracing::debug!(from = %incoming.remote_address(), "refused: too many handshakes");
                incoming.refuse();
                continue;
            };
            let work = self.clone().shake_hands(incoming, permit, accepted.clone(), tasks.clone());
            tasks.spawn_until_stop("handshake", work);
        }
    }

    /// Every endpoint there is, on UDP and on WebSockets.
    fn all_endpoints(&self) -> Vec<quinn::Endpoint> {
        self.endpoints.iter().chain(lock(&self.websockets).endpoints.values()).cloned().collect()
    }

    /// Decides about every TCP connection, until the server stops.
    async fn wait_for_websockets(
        self: Arc<Self>,
        listener: websocket::Listener,
        accepted: mpsc::Sender<Connection>,
        tasks: Tasks,
    ) {
        while let Some(arriving) = self.stop.run_until_cancelled(listener.accept()).await {
            let from = arriving.from();
            let permits = (self.handshakes.clone().try_acquire_owned(), self.carried.clone().try_acquire_owned());
            let (Ok(handshake), Ok(carried)) = permits else {
                tracing::debug!(%from, "refused: too many handshakes or WebSockets");
                continue;
            };
            let (shared, accepted, all) = (self.clone(), accepted.clone(), tasks.clone());
            tasks.spawn_until_stop("websocket", async move {
                let arrived = timeout(HANDSHAKE_FOR, arriving.shake_hands()).await;
                drop(handshake);
                match arrived {
                    Ok(Ok(arrived)) => shared.take_websocket(arrived, accepted, all).await,
                    Ok(Err(error)) => tracing::debug!(%from, %error, "no WebSocket"),
                    Err(_) => tracing::debug!(%from, "the handshake of a WebSocket took too long"),
                }
                drop(carried);
            });
        }
    }

    /// Takes what connects through a WebSocket, and carries it to the end: of the WebSocket, or of its connection.
    async fn take_websocket(
        self: Arc<Self>,
        websocket: websocket::Arrived,
        accepted: mpsc::Sender<Connection>,
        tasks: Tasks,
    ) {
        let endpoint = match self.listening.on(websocket.socket, Arc::new(quinn::TokioRuntime)) {
            Ok(endpoint) => endpoint,
            Err(error) => return tracing::warn!(%error, "cannot take a WebSocket"),
        };
        let number = lock(&self.websockets).add(endpoint.clone());
        tasks.spawn_until_stop("server", self.clone().welcome(endpoint.clone(), accepted, tasks.clone()));
        tokio::select! {
            biased;
            () = websocket.carrying => {}
            () = async {
                sleep(HANDSHAKE_FOR).await;
                endpoint.wait_idle().await;
            } => {}
        }
        endpoint.close(code::DONE, b"the WebSocket ended");
        lock(&self.websockets).endpoints.remove(&number);
    }

    async fn shake_hands(
        self: Arc<Self>,
        incoming: quinn::Incoming,
        handshake: OwnedSemaphorePermit,
        accepted: mpsc::Sender<Connection>,
        tasks: Tasks,
    ) {
        let from = incoming.remote_address();
        let kick = Kick::default();
        let connecting = match self.listening.accept(incoming, &kick) {
            Ok(connecting) => connecting,
            Err(error) => return tracing::debug!(%from, %error, "handshake failed"),
        };
        let quic = match timeout(HANDSHAKE_FOR, connecting).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(error)) => return tracing::debug!(%from, %error, "handshake failed"),
            Err(_) => return tracing::debug!(%from, "handshake took too long"),
        };
        let peer = match identify(&quic, &self.denied, &self.env) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::info!(%from, %error, "peer refused");
                return quic.close(refusal(&error), error.to_string().as_bytes());
            }
        };
        let connection = match &peer {
            Peer::Joining => {
                let Ok(permit) = self.joining.clone().try_acquire_owned() else {
                    return quic.close(code::BUSY, b"too many are joining");
                };
                let connection = self.registry.add(quic, peer, Some(permit), self.denied.clone());
                tasks.spawn_until_stop("joining", end_after(Arc::downgrade(&connection.carrier), JOINING_FOR));
                connection
            }
            Peer::Verified(_) => {
                endpoint::grant(&quic);
                let ends = CancellationToken::new();
                tasks.spawn_until_stop("pulse", tend(quic.clone(), kick, ends.clone()));
                self.registry.add(quic, peer, Some(ends.drop_guard()), self.denied.clone())
            }
        };
        drop(handshake);
        // Fails when the server is gone, and the connection goes with it.
        let _ = accepted.send(connection).await;
    }
}

/// An endpoint for each WebSocket.
#[derive(Default)]
struct WebSockets {
    next: u64,
    endpoints: BTreeMap<u64, quinn::Endpoint>,
}

impl WebSockets {
    fn add(&mut self, endpoint: quinn::Endpoint) -> u64 {
        self.next += 1;
        self.endpoints.insert(self.next, endpoint);
        self.next
    }
}

/// Why an address could not be bound.
enum Unbound {
    /// UDP has the port, and TCP has not.
    Taken(Error),
    Failed(Error),
}

impl Unbound {
    fn error(self) -> Error {
        let (Self::Taken(error) | Self::Failed(error)) = self;
        error
    }
}

/// One port, on UDP and, with `outer`, on TCP.
fn bind(
    address: SocketAddr,
    listening: &Listening,
    sockets: &dyn Sockets,
    outer: Option<&Arc<rustls::ServerConfig>>,
) -> Result<(quinn::Endpoint, Option<websocket::Listener>), Unbound> {
    let failed = |error: io::Error| Unbound::Failed(cannot_bind(address, "UDP", &error));
    let endpoint = listening.on(sockets.bind(address).map_err(failed)?, sockets.runtime()).map_err(failed)?;
    let Some(outer) = outer else { return Ok((endpoint, None)) };
    let address = endpoint.local_addr().map_err(failed)?;
    let listener = websocket::bind(address, outer.clone());
    let listener = listener.map_err(|error| Unbound::Taken(cannot_bind(address, "TCP (for WebSockets)", &error)))?;
    Ok((endpoint, Some(listener)))
}

fn cannot_bind(address: SocketAddr, protocol: &str, error: &io::Error) -> Error {
    Error::Unreachable { addresses: format!("{address} ({protocol})"), cause: error.to_string() }
}

/// Tends a connection as long as somebody uses it.
async fn tend(quic: quinn::Connection, kick: Kick, ends: CancellationToken) {
    // A server does not move.
    let changed = Notify::new();
    ends.run_until_cancelled(pulse::tend(&quic, &kick, End::Server, &changed)).await;
}

async fn end_after(carrier: Weak<Carrier>, time: Duration) {
    sleep(time).await;
    if let Some(carrier) = carrier.upgrade() {
        carrier.quic.close(code::BUSY, b"joining took too long");
    }
}

/// Who it is, now that TLS has verified the certificate, if there is one.
fn identify(quic: &quinn::Connection, denied: &Denied, env: &Env) -> Result<Peer, PeerError> {
    let handshake = quic.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let alpn = handshake.and_then(|data| data.protocol).unwrap_or_default();
    let chain = quic.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    verify_peer(&alpn, chain.as_ref().map(|chain| chain.as_slice()), denied, env.now())
}

/// Every live connection and who is at its other end.
#[derive(Default)]
struct Registry(Mutex<Live>);

#[derive(Default)]
struct Live {
    next: u64,
    connections: BTreeMap<u64, Entry>,
}

struct Entry {
    carrier: Weak<Carrier>,
    peer: Arc<Mutex<Peer>>,
}

/// Takes its connection out of the registry when dropped.
struct Registered {
    registry: Weak<Registry>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.lock().connections.remove(&self.number);
        }
    }
}

impl Registry {
    fn add(
        self: &Arc<Self>,
        quic: quinn::Connection,
        peer: Peer,
        kept: impl Send + Sync + 'static,
        denied: Denied,
    ) -> Connection {
        let reading = Reading::new(match peer {
            Peer::Joining => Limits::STRANGER,
            Peer::Verified(_) => Limits::MESH,
        });
        let peer = Arc::new(Mutex::new(peer));
        let mut live = self.lock();
        let number = live.next;
        live.next += 1;
        let registered = Registered { registry: Arc::downgrade(self), number };
        let carrier = Carrier::new(quic, (kept, registered));
        live.connections.insert(number, Entry { carrier: Arc::downgrade(&carrier), peer: peer.clone() });
        drop(live);
        Connection { carrier, peer, registry: self.clone(), reading: Arc::new(reading.into()), denied }
    }

    fn carriers(&self) -> Vec<Arc<Carrier>> {
        self.lock().connections.values().filter_map(|entry| entry.carrier.upgrade()).collect()
    }

    fn enforce(&self, denied: &Denied, env: &Env) {
        let now = env.now();
        let mut over = Vec::new();
        for entry in self.lock().connections.values() {
            let verdict = match &*lock(&entry.peer) {
                Peer::Joining => None,
                Peer::Verified(peer) if peer.is_denied(denied) => Some(revoked(peer)),
                Peer::Verified(peer) if peer.not_after().after(GRACE) < now => {
                    Some(PeerError::Expired(peer.principal().to_string()))
                }
                Peer::Verified(_) => None,
            };
            over.extend(verdict.and_then(|verdict| Some((entry.carrier.upgrade()?, verdict))));
        }
        // Not under the lock: the last owner of a connection takes it out of the registry.
        for (carrier, verdict) in over {
            tracing::info!(peer = %carrier.quic.remote_address(), %verdict, "connection closed");
            carrier.quic.close(refusal(&verdict), verdict.to_string().as_bytes());
        }
    }

    /// Extends every connection of the peer that `old` was.
    fn renew(&self, old: &VerifiedPeer, new: &Peer) {
        for entry in self.lock().connections.values() {
            let mut peer = lock(&entry.peer);
            let same = |known: &VerifiedPeer| (known.principal(), known.serial()) == (old.principal(), old.serial());
            if matches!(&*peer, Peer::Verified(known) if same(known)) {
                *peer = new.clone();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn revoked(peer: &VerifiedPeer) -> PeerError {
    PeerError::Revoked(peer.principal().to_string())
}

/// One connection, seen from the server. Clones share it; it closes when the last one and the last of its streams are
/// dropped.
#[derive(Clone)]
pub struct Connection {
    carrier: Arc<Carrier>,
    peer: Arc<Mutex<Peer>>,
    registry: Arc<Registry>,
    reading: Arc<tokio::sync::Mutex<Reading>>,
    denied: Denied,
}

impl Connection {
    /// Who is on the other side. Changes when the peer renews its certificate.
    pub fn peer(&self) -> Peer {
        lock(&self.peer).clone()
    }

    /// The peer has a new certificate. All its live connections that began with the same one are good for as long as the
    /// new one.
    pub fn renewed(&self, peer: Peer) {
        let old = self.peer();
        match &old {
            Peer::Verified(old) => self.registry.renew(old, &peer),
            // Who joins is somebody on its next connection only.
            Peer::Joining => {}
        }
    }

    /// Where the peer is.
    pub fn remote(&self) -> SocketAddr {
        self.carrier.quic.remote_address()
    }

    /// Estimated round trip to the peer.
    pub fn rtt(&self) -> Duration {
        self.carrier.quic.rtt()
    }

    /// Lets the peer have this many streams open at once: a worker needs one a slot. Fewer than every verified peer may
    /// have are not possible.
    pub fn permit_streams(&self, streams: u32) {
        endpoint::permit_streams(&self.carrier.quic, streams);
    }

    /// The next request; `None` when the connection is over. A stream whose first frame is late, too large or no request
    /// is refused here and never seen; a stranger's connection ends with it. Cancel safe.
    pub async fn accept(&self) -> Option<Incoming> {
        let next = self.reading.lock().await.next(&self.carrier).await?;
        match self.peer() {
            // The set may have changed since the last `Server::enforce`.
            Peer::Verified(peer) if peer.is_denied(&self.denied) => {
                let verdict = revoked(&peer);
                self.carrier.quic.close(refusal(&verdict), verdict.to_string().as_bytes());
                None
            }
            _ => Some(next),
        }
    }

    /// Ends the connection with a reason people can read.
    pub fn close(&self, reason: &str) {
        self.carrier.quic.close(code::DONE, reason.as_bytes());
    }

    /// Resolves when the connection is over.
    pub async fn closed(&self) {
        self.carrier.quic.closed().await;
    }
}
