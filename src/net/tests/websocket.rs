//! Networks that let no UDP pass.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::net::dial::Via;
use crate::net::endpoint;

/// Sockets that swallow what is sent while they are shut.
#[derive(Debug, Clone)]
struct Gate {
    open: Arc<AtomicBool>,
    system: Arc<dyn Sockets>,
}

impl Gate {
    fn shut() -> Self {
        Self { open: Arc::default(), system: endpoint::sockets(None) }
    }

    fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }
}

impl Sockets for Gate {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Gated { open: self.open.clone(), socket: self.system.bind(address)? }))
    }
    fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        self.system.runtime()
    }
}

#[derive(Debug)]
struct Gated {
    open: Arc<AtomicBool>,
    socket: Arc<dyn AsyncUdpSocket>,
}

impl AsyncUdpSocket for Gated {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.open.load(Ordering::Relaxed) { self.socket.try_send(transmit) } else { Ok(()) }
    }
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, buffers, meta)
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }
    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }
    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl Mesh {
    fn with_websocket(&self) -> ServerConfig {
        ServerConfig { websocket: true, ..self.config(0) }
    }

    fn link_through(&self, gate: &Gate, to: SocketAddr, blocked: &Arc<Blocked>, tls: ClientTls) -> Link {
        let config = LinkConfig {
            websocket: Some(blocked.clone()),
            sockets: Some(Arc::new(gate.clone())),
            keep_alive: Duration::from_millis(250),
            ..link_config(&[to], tls)
        };
        Link::start(config, self.env(), &self.tasks).unwrap()
    }
}

async fn connected(link: &Link, over: Via) -> u64 {
    let mut state = link.state();
    let found = soon(state.wait_for(|state| matches!(state, LinkState::Connected { via, .. } if *via == over))).await;
    match *found.unwrap() {
        LinkState::Connected { number, .. } => number,
        ref other => panic!("{other:?}"),
    }
}

async fn echo(_: Connection, incoming: Incoming) {
    if incoming.header.kind == ListTokens::KIND {
        return no_tokens_after(Duration::from_millis(500), incoming).await;
    }
    let mut channel = accepted(incoming).await;
    while let Ok(Some(frame)) = channel.rx.next().await {
        if channel.tx.send(&frame).await.is_err() {
            return;
        }
    }
    channel.tx.finish();
}

async fn no_tokens_after(time: Duration, mut incoming: Incoming) {
    tokio::time::sleep(time).await;
    answer(&mut incoming, Ok(Vec::<TokenInfo>::new())).await;
    incoming.channel.tx.finish();
}

#[tokio::test]
async fn where_udp_is_blocked_all_goes_by_websocket() {
    const FRAMES: u32 = 2_000;
    let (mesh, gate, blocked) = (Mesh::new(), Gate::shut(), Arc::new(Blocked::default()));
    let server = mesh.serve(mesh.with_websocket(), echo);
    let link = mesh.link_through(&gate, server.addresses()[0], &blocked, mesh.client());
    let (_, Channel { mut tx, mut rx }) = soon(link.open(&follow(), Call::default())).await.unwrap();
    assert_eq!(connected(&link, Via::WebSocket).await, 1);
    assert!(blocked.contains(LOOPBACK), "it is remembered");
    let sending = async {
        for number in 0..FRAMES {
            tx.send(&numbered(number, 4_000)).await.unwrap();
        }
        tx.finish();
    };
    tokio::join!(sending, expect_numbers(&mut rx, 0..FRAMES, 4_000));
    ask(&link).await.unwrap();
}

#[tokio::test]
async fn when_udp_comes_back_the_link_returns_to_it_and_no_answer_is_lost() {
    let (mesh, gate, blocked) = (Mesh::new(), Gate::shut(), Arc::new(Blocked::default()));
    let server = mesh.serve(mesh.with_websocket(), echo);
    let link = mesh.link_through(&gate, server.addresses()[0], &blocked, mesh.client());
    assert_eq!(connected(&link, Via::WebSocket).await, 1);
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    // What may be done once only, and is under way all the time: an answer takes half a second.
    let asking = async {
        loop {
            ask(&link).await.unwrap();
            if matches!(*link.state().borrow(), LinkState::Connected { via: Via::Udp, .. }) {
                return;
            }
        }
    };
    let opening = async {
        gate.set_open(true);
        connected(&link, Via::Udp).await
    };
    let (number, ()) = tokio::join!(opening, asking);
    assert_eq!(number, 2, "the next connection");
    assert!(!blocked.contains(LOOPBACK), "it is known again");
    // Streams are told, and go on from their cursors.
    let lost = soon(channel.rx.next()).await;
    assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
    ask(&link).await.unwrap();
}

#[tokio::test]
async fn udp_that_is_blocked_under_a_connection_is_left() {
    let (mesh, gate, blocked) = (Mesh::new(), Gate::shut(), Arc::new(Blocked::default()));
    gate.set_open(true);
    let server = mesh.serve(mesh.with_websocket(), echo);
    let link = mesh.link_through(&gate, server.addresses()[0], &blocked, mesh.client());
    assert_eq!(connected(&link, Via::Udp).await, 1);
    gate.set_open(false);
    assert_eq!(connected(&link, Via::WebSocket).await, 2);
    ask(&link).await.unwrap();
}

#[tokio::test]
async fn who_may_not_come_in_may_not_by_websocket_either() {
    let (mesh, gate, blocked) = (Mesh::new(), Gate::shut(), Arc::new(Blocked::default()));
    let server = mesh.serve(mesh.with_websocket(), echo);
    let identity = mesh.identity("ado://default/user/eve");
    mesh.denied.set([identity.serial().to_owned()]);
    let link = mesh.link_through(&gate, server.addresses()[0], &blocked, ClientTls::mesh(identity).unwrap());
    let error = ask(&link).await.unwrap_err();
    assert!(matches!(error, Error::Certificate(_)), "{error:?}");
    let stranger = Mesh::new();
    let link = mesh.link_through(&gate, server.addresses()[0], &blocked, stranger.client());
    let error = ask(&link).await.unwrap_err();
    assert!(matches!(error, Error::Certificate(_)), "of another mesh: {error:?}");
}

#[tokio::test]
async fn a_websocket_that_breaks_is_dialled_again() {
    let (mesh, gate, blocked) = (Mesh::new(), Gate::shut(), Arc::new(Blocked::default()));
    let server = mesh.serve(mesh.with_websocket(), echo);
    // A relay of TCP alone, whose connections can be cut.
    let relay = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let (at, to) = (relay.local_addr().unwrap(), server.addresses()[0]);
    let (cut, _) = tokio::sync::broadcast::channel::<()>(1);
    let cutter = cut.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            let mut cut = cutter.subscribe();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    biased;
                    _ = cut.recv() => {}
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    });
    let link = mesh.link_through(&gate, at, &blocked, mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    cut.send(()).unwrap();
    let lost = soon(channel.rx.next()).await;
    assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
    ask(&link).await.unwrap();
    assert_eq!(connected(&link, Via::WebSocket).await, 2);
}

#[tokio::test]
async fn what_is_no_websocket_of_ours_is_sent_away() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.with_websocket(), echo);
    let at = server.addresses()[0];
    let ask = async |text: &str| {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let upgrade = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let elsewhere = ask(&format!("GET /other HTTP/1.1\r\n{upgrade}")).await;
    assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");
    assert_eq!(ask("no HTTP at all\r\n\r\n").await, "");
    // Behind a reverse proxy that ends TLS.
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(format!("GET /ado/1 HTTP/1.1\r\n{upgrade}").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
}

#[tokio::test]
async fn without_either_both_failures_are_told() {
    let (mesh, gate, blocked) = (Mesh::new(), Gate::shut(), Arc::new(Blocked::default()));
    // A server that takes no WebSockets.
    let server = mesh.serve(mesh.config(0), echo);
    let link = mesh.link_through(&gate, server.addresses()[0], &blocked, mesh.client());
    let call = Call { timeout: Some(Duration::from_secs(6)), ..Call::default() };
    let error = link.call(&ListTokens, call).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 5s; by WebSocket: Connection refused"), "{error}");
}
