//! Real QUIC on loopback, and over a simulated network.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
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
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::channel::Carrier;
use super::dial::Dialler;
use super::endpoint::{Sockets, client_config};
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
        sockets: None,
    }
}

/// A connection without a link, to send what a link would not.
async fn raw(to: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Result<Arc<Carrier>, Error> {
    let endpoint = super::endpoint::Endpoints::new(super::endpoint::sockets(None)).reaching(to).unwrap();
    let config = client_config(tls, Duration::from_secs(5), Duration::from_secs(60))?;
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
    answer(&mut incoming, Ok(Following { from: Offset(0), generation: 1 })).await;
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
    Follow { task: TaskId(uuid::Uuid::nil()), from: StartAt::Tail(1), follow: true, generation: None }
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

// ---- calls and streams --------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_call_is_answered_or_refused() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let link = mesh.link(&server.addresses(), mesh.client());
    assert!(soon(link.call(&ListTokens, Call::default())).await.unwrap().is_empty());
    let refused = soon(link.call(&revoke(), Call::default())).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(reply) if reply.is(ErrorCode::NotFound)), "{refused:?}");
    assert_eq!(refused.to_string(), "no such thing");
    assert!(!refused.is_transient());
    assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 1, .. }));
}

#[tokio::test]
async fn a_header_arrives_as_it_was_meant() {
    let mesh = Mesh::new();
    let (tx, mut seen) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |connection, incoming| {
        let tx = tx.clone();
        async move {
            tx.send((connection.peer(), incoming.header, incoming.body)).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let id = RequestId(mesh.env().uuid());
    let call = Call { id: Some(id), timeout: Some(PATIENCE), ..Call::default() };
    let request = revoke();
    let asked = link.call(&request, call);
    let (_, seen) = soon(async { tokio::join!(asked, seen.recv()) }).await;
    let (peer, header, body) = seen.unwrap();
    let Peer::Verified(peer) = peer else { panic!("{peer:?}") };
    assert_eq!(peer.principal().to_string(), "ado://default/user/ann");
    assert_eq!((header.kind, header.id, header.minor), (RevokeIdentity::KIND, Some(id), MINOR));
    assert_eq!(decode_body::<RevokeIdentity>(&body).unwrap(), request);
}

#[tokio::test]
async fn frames_go_both_ways_and_end() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), |_, incoming| async move {
        let mut channel = accepted(incoming).await;
        while let Some(frame) = channel.rx.next().await.unwrap() {
            channel.tx.send(&frame).await.unwrap();
        }
        channel.tx.finish();
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (following, Channel { mut tx, mut rx }) = soon(link.open(&follow(), Call::default())).await.unwrap();
    assert_eq!(following.generation, 1);
    // Also empty, compressible and as large as may be.
    for frame in [&b""[..], &b"one"[..], &[7; 100_000], &numbered(1, Limits::MESH.body - 1)] {
        soon(tx.send(frame)).await.unwrap();
        assert_eq!(soon(rx.next()).await.unwrap().unwrap(), frame);
    }
    let too_large = soon(tx.send(&[0; 2 * 1024 * 1024])).await;
    assert!(matches!(too_large, Err(Error::Protocol(_))), "{too_large:?}");
    tx.finish();
    assert!(soon(rx.next()).await.unwrap().is_none());
    assert!(matches!(tx.send(b"late").await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_stopped_reader_holds_its_stream_only() {
    let mesh = Mesh::new();
    const FRAMES: u32 = 10_000;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let sent = counted.clone();
        async move {
            let mut channel = accepted(incoming).await;
            for number in 0..FRAMES {
                channel.tx.send(&numbered(number, 1000)).await.unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
            }
            channel.tx.finish();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    // Nobody reads the first one: its sender stops somewhere below 10 MB.
    let (_, mut stopped) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let (_, mut running) = soon(link.open(&follow(), Call::default())).await.unwrap();
    expect_numbers(&mut running.rx, 0..FRAMES, 1000).await;
    let in_all = sent.load(Ordering::Relaxed);
    assert!(in_all < 2 * FRAMES as usize - 5000, "{in_all} frames were sent into a stream nobody reads");
    expect_numbers(&mut stopped.rx, 0..FRAMES, 1000).await;
}

#[tokio::test]
async fn a_cancelled_next_loses_nothing() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), |_, incoming| async move {
        let mut channel = accepted(incoming).await;
        for number in 0..300 {
            channel.tx.send(&numbered(number, 5000)).await.unwrap();
            tokio::task::yield_now().await;
        }
        channel.tx.finish();
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let (mut number, mut cancelled) = (0, 0);
    soon(async {
        while number < 300 {
            tokio::select! {
                biased;
                frame = channel.rx.next() => {
                    assert_eq!(frame.unwrap().unwrap(), numbered(number, 5000));
                    number += 1;
                }
                () = tokio::task::yield_now() => cancelled += 1,
            }
        }
    })
    .await;
    assert!(cancelled > 0, "nothing was cancelled");
}

#[tokio::test]
async fn a_cancelled_send_breaks_its_stream() {
    let mesh = Mesh::new();
    let (tx, mut ended) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let mut channel = accepted(incoming).await;
            // Nothing is read until the sender has given up.
            channel.tx.closed().await;
            let end = loop {
                match channel.rx.next().await {
                    Ok(Some(_)) => {}
                    end => break end,
                }
            };
            tx.send(end).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, Channel { mut tx, rx }) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let big = numbered(1, 900_000);
    while timeout(Duration::from_millis(100), tx.send(&big)).await.is_ok() {}
    assert!(matches!(tx.send(b"more").await, Err(Error::Closed)));
    drop((tx, rx));
    let end = soon(ended.recv()).await.unwrap();
    assert!(matches!(end, Err(Error::Lost(_))), "{end:?}");
}

#[tokio::test]
async fn a_sender_notices_that_nobody_reads() {
    let mesh = Mesh::new();
    let (tx, mut noticed) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let channel = accepted(incoming).await;
            channel.tx.closed().await;
            tx.send(()).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    assert!(noticed.try_recv().is_err());
    drop(channel);
    soon(noticed.recv()).await.unwrap();
}

#[tokio::test]
async fn a_dropped_answer_is_no_answer() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), |_, _| async {});
    let link = mesh.link(&server.addresses(), mesh.client());
    // The connection lives, so a read is not sent again and again.
    assert!(matches!(ask(&link).await, Err(Error::Lost(_))));
    assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 1, .. }));
}

// ---- closing ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_server_that_closes_delivers_what_it_sent() {
    let mesh = Mesh::new();
    let (tx, mut sent) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let mut channel = accepted(incoming).await;
            send_numbers(&mut channel, 0..100, 8000).await.unwrap();
            tx.send(()).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    soon(sent.recv()).await.unwrap();
    let (_, ()) = soon(async {
        tokio::join!(server.close(Duration::from_secs(10)), expect_numbers(&mut channel.rx, 0..100, 8000))
    })
    .await;
    assert!(soon(server.accept()).await.is_none());
}

#[tokio::test]
async fn a_link_that_closes_delivers_what_it_sent() {
    let mesh = Mesh::new();
    let (tx, mut done) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let mut channel = accepted(incoming).await;
            expect_numbers(&mut channel.rx, 0..100, 8000).await;
            tx.send(()).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    soon(send_numbers(&mut channel, 0..100, 8000)).await.unwrap();
    soon(link.close()).await;
    soon(done.recv()).await.unwrap();
    assert!(matches!(ask(&link).await, Err(Error::Closed)));
    assert!(matches!(*link.state().borrow(), LinkState::Closed(_)));
}

#[tokio::test]
async fn a_stopping_server_is_no_reason_to_give_up() {
    let mesh = Mesh::new();
    let first = mesh.serve(mesh.config(0), no_tokens);
    let second = mesh.serve(mesh.config(0), no_tokens);
    let to = [first.addresses()[0], second.addresses()[0]];
    let link = mesh.link(&to, mesh.client());
    ask(&link).await.unwrap();
    soon(first.close(Duration::from_secs(2))).await;
    drop(first);
    ask(&link).await.unwrap();
    let state = link.state().borrow().clone();
    assert!(matches!(state, LinkState::Connected { to, number: 2 } if to == second.addresses()[0]), "{state:?}");
}

// ---- losing and coming back ---------------------------------------------------------------------------------------

/// A server in a runtime of its own, which can be killed without a word to its peers.
struct Doomed(Option<tokio::runtime::Runtime>, SocketAddr);

impl Doomed {
    fn start<F, W>(mesh: &Arc<Mesh>, port: u16, handle: F) -> Self
    where
        F: Fn(Connection, Incoming) -> W + Clone + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let server = mesh.serve(mesh.config(port), handle);
        let address = server.addresses()[0];
        drop(entered);
        // Kept until killed: a dropped server says goodbye.
        std::mem::forget(server);
        Self(Some(runtime), address)
    }

    async fn kill(mut self) {
        let runtime = self.0.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
