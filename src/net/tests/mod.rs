//! Real QUIC on loopback, and over a simulated network.

mod calls;
mod coming_back;
mod refused;
mod roaming;
mod simulated;
mod websocket;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use ado_certs::{Ca, ClientTls, Denied, Identity, KeyRequest, Peer, ServerTls, verify_peer};
use ado_netsim::{Conditions, Host, Network};
use ado_proto::frame::Limits;
use ado_proto::request::{
    ErrorReply, Follow, Following, Header, ListTokens, Renew, Renewed, Request, RevokeIdentity, RevokedIdentity,
    StartAt, TokenInfo, decode_body, decode_response, encode_request, encode_response,
};
use ado_proto::version::{ALPN_MESH, MINOR};
use ado_proto::{ErrorCode, Offset, RequestId, TaskId, Timestamp};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::channel::Carrier;
use super::endpoint::{Dialling, Endpoints, Reach, Sockets};
use super::kick::Kick;
use super::*;
use crate::env::{Env, Source};
use crate::tasks::Tasks;

/// Far above what any step takes: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const LIFE: Duration = Duration::from_secs(24 * 3600);
const KEYS: ServerKeys = ServerKeys { reset: [1; 64], connection_id: 2, token: [3; 64] };
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A CA, its controller's identity, and what is denied.
struct Mesh {
    ca: Ca,
    denied: Denied,
    clock: Arc<AtomicI64>,
    tasks: Tasks,
}

/// The system's, shifted.
struct Shifted(Arc<AtomicI64>, Env);

impl Source for Shifted {
    fn now(&self) -> Timestamp {
        Timestamp(self.1.now().0 + self.0.load(Ordering::Relaxed))
    }
    fn fill(&self, bytes: &mut [u8]) {
        self.1.fill(bytes);
    }
}

impl Mesh {
    fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), Env::system().now()).unwrap();
        Arc::new(Self { ca, denied: Denied::default(), clock: Arc::default(), tasks: Tasks::new() })
    }

    fn env(&self) -> Env {
        Env::new(Shifted(self.clock.clone(), Env::system()))
    }

    fn pass(&self, time: Duration) {
        self.clock.fetch_add(i64::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
    }

    fn certify(&self, who: &str, csr: &[u8]) -> Vec<CertificateDer<'static>> {
        self.ca.issue(csr, &who.parse().unwrap(), LIFE, self.env().now()).unwrap().chain
    }

    fn identity(&self, who: &str) -> Identity {
        let key = KeyRequest::new().unwrap();
        let chain = self.certify(who, key.csr_der());
        key.into_identity(chain).unwrap()
    }

    fn client(&self) -> ClientTls {
        ClientTls::mesh(self.identity("ado://default/user/ann")).unwrap()
    }

    fn config(&self, port: u16) -> ServerConfig {
        ServerConfig {
            listen: vec![(LOOPBACK, port).into()],
            tls: ServerTls::new(self.identity("ado://default/controller/c1")).unwrap(),
            keys: KEYS,
            denied: self.denied.clone(),
            max_connections: 100,
            max_strangers: 50,
            idle_timeout: Duration::from_secs(60),
            websocket: false,
            sockets: None,
        }
    }

    /// A server whose requests are answered by `handle`.
    fn serve<F, W>(self: &Arc<Self>, config: ServerConfig, handle: F) -> Arc<Server>
    where
        F: Fn(Connection, Incoming) -> W + Clone + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let server = Arc::new(Server::bind(config, self.env(), &self.tasks).unwrap());
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Some(connection) = accepting.accept().await {
                let handle = handle.clone();
                tokio::spawn(async move {
                    while let Some(incoming) = connection.accept().await {
                        tokio::spawn(handle(connection.clone(), incoming));
                    }
                });
            }
        });
        server
    }

    fn link(&self, to: &[SocketAddr], tls: ClientTls) -> Link {
        Link::start(link_config(to, tls), self.env(), &self.tasks).unwrap()
    }
}

fn link_config(to: &[SocketAddr], tls: ClientTls) -> LinkConfig {
    let to: Vec<_> = to.iter().map(ToString::to_string).collect();
    LinkConfig {
        addresses: Arc::new(move || to.clone()),
        tls,
        reconnect_interval: Duration::from_millis(200),
        keep_alive: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(60),
        websocket: None,
        sockets: None,
    }
}

/// A connection without a link, to send what a link would not.
async fn raw(to: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Result<Arc<Carrier>, Error> {
    raw_from(super::endpoint::sockets(None), to, tls).await
}

async fn raw_from(
    sockets: Arc<dyn Sockets>,
    to: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Arc<Carrier>, Error> {
    let endpoint = Endpoints::new(sockets).reaching(to).unwrap();
    let config =
        Dialling::new(tls, Duration::from_secs(5), Duration::from_secs(60))?.config(&Kick::default(), Reach::of(to));
    let quic = endpoint.connect_with(config, to, ado_certs::SERVER_NAME).unwrap().await?;
    Ok(Carrier::new(quic, ()))
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("a step took too long")
}

async fn answer<T: serde::Serialize>(incoming: &mut Incoming, response: Result<T, ErrorReply>) {
    let _ = incoming.channel.tx.send(&encode_response(&response)).await;
}

/// Answers `ListTokens` with nothing, refuses everything else.
async fn no_tokens(_: Connection, mut incoming: Incoming) {
    if incoming.header.kind == ListTokens::KIND {
        answer(&mut incoming, Ok(Vec::<TokenInfo>::new())).await;
    } else {
        answer::<()>(&mut incoming, Err(ErrorReply::new(ErrorCode::NotFound, "no such thing"))).await;
    }
    incoming.channel.tx.finish();
}

async fn accepted(mut incoming: Incoming) -> Channel {
    answer(&mut incoming, Ok(Following { from: Offset(0), skip: 0, generation: 1 })).await;
    incoming.channel
}

/// Sends numbered frames of `size` bytes from `from` to the end, until the stream ends.
async fn send_numbers(channel: &mut Channel, numbers: std::ops::Range<u32>, size: usize) -> Result<(), Error> {
    for number in numbers {
        channel.tx.send(&numbered(number, size)).await?;
    }
    channel.tx.finish();
    Ok(())
}

/// Bytes that do not compress, as frames' sizes matter.
fn numbered(number: u32, size: usize) -> Vec<u8> {
    let mut state = u64::from(number) + 1;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    number.to_le_bytes().into_iter().chain(noise).take(size).collect()
}

async fn expect_numbers(rx: &mut Receiver, numbers: std::ops::Range<u32>, size: usize) {
    for number in numbers {
        assert_eq!(soon(rx.next()).await.unwrap().unwrap(), numbered(number, size), "frame {number}");
    }
    assert!(soon(rx.next()).await.unwrap().is_none());
}

fn follow() -> Follow {
    Follow {
        task: TaskId(uuid::Uuid::nil()),
        from: StartAt::Tail(1),
        follow: true,
        without_output: false,
        generation: None,
    }
}

fn revoke() -> RevokeIdentity {
    RevokeIdentity { identity: "ado://default/user/bob".into() }
}

async fn ask(link: &Link) -> Result<(), Error> {
    soon(link.call(&ListTokens, Call::default())).await.map(|_| ())
}

fn with_alpn(tls: &ClientTls, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
    let mut config = (*tls.config()).clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}
