//! Networks that delay, lose and fall silent. Time is virtual: what takes minutes here takes none, and limits can be told.

use std::io;

use tokio::time::{Instant, sleep};

use super::*;

pub(super) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
pub(super) const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
const PORT: u16 = 4433;

#[derive(Debug)]
struct Simulated(Host);

impl Sockets for Simulated {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.0.bind(address.port())
    }
    fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(ado_netsim::Runtime)
    }
}

pub(super) fn at(network: &Network, ip: IpAddr) -> Arc<dyn Sockets> {
    Arc::new(Simulated(network.host(ip)))
}

impl Mesh {
    pub(super) fn config_at(&self, network: &Network, ip: IpAddr) -> ServerConfig {
        ServerConfig { listen: vec![(ip, PORT).into()], sockets: Some(at(network, ip)), ..self.config(0) }
    }

    fn link_from(&self, network: &Network, to: &[IpAddr], keep_alive: Duration) -> Link {
        let to: Vec<_> = to.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        let config = link_config(&to, self.client());
        let config = LinkConfig { keep_alive, sockets: Some(at(network, CLIENT)), ..config };
        Link::start(config, self.env(), &self.tasks).unwrap()
    }
}

async fn echo(_: Connection, incoming: Incoming) {
    let mut channel = accepted(incoming).await;
    while let Ok(Some(frame)) = channel.rx.next().await {
        if channel.tx.send(&frame).await.is_err() {
            return;
        }
    }
    channel.tx.finish();
}

#[tokio::test(start_paused = true)]
async fn loss_and_a_blackout_cost_time_only() {
    const FRAMES: u32 = 2000;
    let (mesh, network) = (Mesh::new(), Network::new(7));
    network.set(CLIENT, FIRST, Conditions { delay: Duration::from_millis(20), loss: 0.05, ..Conditions::default() });
    let _server = mesh.serve(mesh.config_at(&network, FIRST), echo);
    let link = mesh.link_from(&network, &[FIRST], Duration::from_secs(5));
    let (_, Channel { mut tx, mut rx }) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let sending = async {
        for number in 0..FRAMES {
            tx.send(&numbered(number, 1000)).await.unwrap();
            sleep(Duration::from_millis(3)).await;
        }
        tx.finish();
    };
    let blackout = async {
        sleep(Duration::from_secs(2)).await;
        network.set_blackout(CLIENT, FIRST, true);
        sleep(Duration::from_secs(3)).await;
        network.set_blackout(CLIENT, FIRST, false);
    };
    tokio::join!(sending, blackout, expect_numbers(&mut rx, 0..FRAMES, 1000));
    assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 1, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_silent_controller_is_left_for_another() {
    let (mesh, network) = (Mesh::new(), Network::new(1));
    let _first = mesh.serve(mesh.config_at(&network, FIRST), echo);
    let _second = mesh.serve(mesh.config_at(&network, SECOND), echo);
    let link = mesh.link_from(&network, &[FIRST, SECOND], Duration::from_millis(500));
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    network.set_blackout(CLIENT, FIRST, true);
    let start = Instant::now();
    let lost = soon(channel.rx.next()).await;
    assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
    soon(link.open(&follow(), Call::default())).await.unwrap();
    let state = link.state().borrow().clone();
    assert!(matches!(state, LinkState::Connected { to, number: 2, .. } if to.ip() == SECOND), "{state:?}");
    // Three keep-alives and a head start; the idle timeout is a minute.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_short_silence_changes_nothing() {
    let (mesh, network) = (Mesh::new(), Network::new(1));
    let _server = mesh.serve(mesh.config_at(&network, FIRST), echo);
    let link = mesh.link_from(&network, &[FIRST], Duration::from_secs(1));
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    assert!(link.away_since().is_none() && link.rtt().is_some());
    let cut_at = Instant::now();
    // Longer than it takes to dial another connection beside: that one cannot be made either.
    network.set_blackout(CLIENT, FIRST, true);
    sleep(Duration::from_secs(4)).await;
    let away = link.away_since().expect("a status line can say so though the connection is not given up");
    assert!(away.max(cut_at) - away.min(cut_at) < Duration::from_secs(2), "since about then");
    network.set_blackout(CLIENT, FIRST, false);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(link.away_since(), None);
    channel.tx.send(b"still there").await.ok();
    let number = match *link.state().borrow() {
        LinkState::Connected { number, .. } => number,
        ref state => panic!("{state:?}"),
    };
    // Whichever connection was heard first after the silence is the one that stays.
    match soon(channel.rx.next()).await {
        Ok(frame) => assert_eq!((frame.as_deref(), number), (Some(&b"still there"[..]), 1)),
        Err(error) => assert!(matches!(error, Error::Lost(_)) && number == 2, "{error:?}, connection {number}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_says_whether_there_was_a_connection() {
    let (mesh, network) = (Mesh::new(), Network::new(1));
    let _server = mesh.serve(mesh.config_at(&network, FIRST), no_tokens);
    let link = mesh.link_from(&network, &[FIRST], Duration::from_secs(5));
    network.set_blackout(CLIENT, FIRST, true);
    let limit = Duration::from_secs(7);
    let call = Call { timeout: Some(limit), ..Call::default() };
    let error = link.call(&ListTokens, call.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    network.set_blackout(CLIENT, FIRST, false);
    ask(&link).await.unwrap();
    network.set_blackout(CLIENT, FIRST, true);
    let error = link.call(&ListTokens, call).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(waited) if waited == limit), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_network_dials_at_once() {
    let (mesh, network) = (Mesh::new(), Network::new(1));
    let _server = mesh.serve(mesh.config_at(&network, FIRST), no_tokens);
    network.set_blackout(CLIENT, FIRST, true);
    let link = mesh.link_from(&network, &[FIRST], Duration::from_secs(5));
    sleep(Duration::from_secs(4)).await;
    network.set_blackout(CLIENT, FIRST, false);
    let start = Instant::now();
    link.network_changed();
    ask(&link).await.unwrap();
    // A few round trips of two milliseconds; the next repetition of the lost packets would be much later.
    assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_come_is_not_waited_for() {
    let (mesh, network) = (Mesh::new(), Network::new(1));
    let _server = mesh.serve(mesh.config_at(&network, FIRST), no_tokens);
    let to = SocketAddr::new(FIRST, PORT);
    let connection = raw_from(at(&network, CLIENT), to, mesh.client().config()).await.unwrap();
    let start = Instant::now();
    let (mut tx, rx) = connection.quic.open_bi().await.unwrap();
    tx.write_all(&[100, 0]).await.unwrap();
    let (unused, _) = connection.quic.open_bi().await.unwrap();
    let mut channel = connection.channel(unused, rx, Limits::MESH, Priority::Control);
    let answer = channel.rx.next().await.unwrap().unwrap();
    let refusal = decode_response::<ListTokens>(&answer).unwrap().unwrap_err();
    assert!(refusal.message.contains("no request within"), "{refusal:?}");
    assert!((10..11).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn joining_ends() {
    let (mesh, network) = (Mesh::new(), Network::new(1));
    let _server = mesh.serve(mesh.config_at(&network, FIRST), no_tokens);
    let to = SocketAddr::new(FIRST, PORT);
    let joining = ClientTls::join(mesh.ca.pin()).unwrap().config();
    let connection = raw_from(at(&network, CLIENT), to, joining).await.unwrap();
    let start = Instant::now();
    let error = Error::from(connection.quic.closed().await);
    assert!(matches!(&error, Error::Lost(text) if text.contains("joining took too long")), "{error:?}");
    assert!((60..61).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn handshakes_that_hang_keep_nobody_out() {
    let (mesh, network) = (Mesh::new(), Network::new(1));
    let config = ServerConfig { max_strangers: 2, ..mesh.config_at(&network, FIRST) };
    let _server = mesh.serve(config, no_tokens);
    // The server hears the strangers, they do not hear it.
    network.set_one_way(FIRST, STRANGER, Conditions { blackout: true, ..Conditions::default() });
    let to = SocketAddr::new(FIRST, PORT);
    for _ in 0..10 {
        let (sockets, tls) = (at(&network, STRANGER), mesh.client().config());
        tokio::spawn(async move { raw_from(sockets, to, tls).await.is_ok() });
    }
    sleep(Duration::from_millis(100)).await;
    let link = mesh.link_from(&network, &[FIRST], Duration::from_secs(5));
    let start = Instant::now();
    ask(&link).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
