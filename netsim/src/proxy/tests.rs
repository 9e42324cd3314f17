use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

/// Far above what any step takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing can be waited for that does not happen; long enough to see it on loopback if it did.
const NOTHING: Duration = Duration::from_millis(200);

fn no_files(_: &str) -> Result<String, String> {
    Err("no files here".to_owned())
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("a step took too long")
}

/// Answers every datagram with the address it came from and its content.
async fn mirror() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let answer = format!("{from} {}", String::from_utf8_lossy(&buffer[..len]));
            socket.send_to(answer.as_bytes(), from).await.unwrap();
        }
    });
    address
}

/// Gives back every byte of a stream.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    address
}

struct Client {
    proxy: Proxy,
    socket: UdpSocket,
}

impl Client {
    async fn new(scenario: &str) -> Self {
        let scenario = Scenario::parse(scenario, &no_files).unwrap();
        let relays = vec![RelayConfig::udp("link", mirror().await)];
        let proxy = Proxy::start(Config { relays, scenario, record: None }).await.unwrap();
        Self { proxy, socket: UdpSocket::bind("127.0.0.1:0").await.unwrap() }
    }

    fn tell(&self, line: &str) {
        assert_eq!(self.proxy.tell(line, &no_files).unwrap(), "ok");
    }

    async fn send(&self, text: &str) {
        self.socket.send_to(text.as_bytes(), self.proxy.relays()[0].listen).await.unwrap();
    }

    /// Whom the far end saw, and what it heard.
    async fn receive(&self) -> (SocketAddr, String) {
        let mut buffer = [0; 2000];
        let len = soon(self.socket.recv(&mut buffer)).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let (from, text) = text.split_once(' ').unwrap();
        (from.parse().unwrap(), text.to_owned())
    }

    async fn ask(&self, text: &str) -> SocketAddr {
        self.send(text).await;
        let (from, answer) = self.receive().await;
        assert_eq!(answer, text);
        from
    }

    async fn hears_nothing(&self) {
        let mut buffer = [0; 2000];
        let heard = timeout(NOTHING, self.socket.recv(&mut buffer)).await;
        assert!(heard.is_err(), "{:?}", String::from_utf8_lossy(&buffer));
    }

    fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.proxy.tell("stats", &no_files).unwrap()).unwrap()
    }
}

#[tokio::test]
async fn datagrams_cross_and_are_counted() {
    let client = Client::new("set delay 10ms").await;
    let start = tokio::time::Instant::now();
    let first = client.ask("hello").await;
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(client.ask("again").await, first, "one address for one client");
    let stats = client.stats();
    assert_eq!(stats["link"]["up"]["came"], 2);
    assert_eq!(stats["link"]["up"]["bytes_came"], 10 + 2 * 28);
    assert_eq!(stats["link"]["down"]["delivered"], 2);
    assert_eq!(stats["link"]["public_ports"], 1);
}

#[tokio::test]
async fn one_way_can_be_cut() {
    let client = Client::new("").await;
    client.ask("before").await;
    client.tell("cut down");
    client.send("unheard").await;
    client.hears_nothing().await;
    assert_eq!(client.stats()["link"]["up"]["delivered"], 2, "the far end heard it");
    assert_eq!(client.stats()["link"]["down"]["dropped"]["blackout"], 1);
    client.tell("heal");
    client.ask("after").await;
    client.tell("cut up");
    client.send("lost").await;
    client.hears_nothing().await;
    assert_eq!(client.stats()["link"]["up"]["dropped"]["blackout"], 1);
    assert_eq!(client.stats()["link"]["down"]["came"], 3);
}

#[tokio::test]
async fn a_blackout_ends_by_itself() {
    let client = Client::new("").await;
    client.tell("down 100ms");
    client.send("lost").await;
    tokio::time::sleep(Duration::from_millis(101)).await;
    client.ask("after").await;
}

#[tokio::test]
async fn a_rebind_changes_the_port_or_the_address() {
    let client = Client::new("").await;
    let first = client.ask("first").await;
    client.tell("rebind");
    let second = client.ask("second").await;
    assert_eq!(second.ip(), first.ip());
    assert_ne!(second.port(), first.port());
    client.tell("rebind address");
    let third = client.ask("third").await;
    if cfg!(target_os = "linux") {
        assert_ne!(third.ip(), second.ip());
    }
}

#[tokio::test]
async fn what_was_under_way_to_an_address_that_is_gone_is_not_let_in() {
    let client = Client::new("set down delay 100ms").await;
    client.send("question").await;
    while client.stats()["link"]["down"]["came"] != 1 {
        tokio::task::yield_now().await;
    }
    client.tell("rebind");
    client.hears_nothing().await;
    assert_eq!(client.stats()["link"]["not_let_in"], 1);
}

#[tokio::test]
async fn streams_are_exact_over_a_lossy_link() {
    let scenario = Scenario::parse("seed 3\nset delay 5ms loss 3% rate 50mbit queue 100ms", &no_files).unwrap();
    let relays = vec![RelayConfig::tcp("link", echo().await)];
    let proxy = Proxy::start(Config { relays, scenario, record: None }).await.unwrap();
    let stream = soon(TcpStream::connect(proxy.relays()[0].listen)).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let sent: Vec<u8> = (0..300_000u32).map(|at| (at.wrapping_mul(at) >> 5) as u8).collect();
    let copy = sent.clone();
    tokio::spawn(async move {
        to.write_all(&copy).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    soon(from.read_to_end(&mut received)).await.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    let stats: serde_json::Value = serde_json::from_str(&proxy.tell("stats", &no_files).unwrap()).unwrap();
    assert!(stats["link"]["up"]["dropped"]["loss"].as_u64() > Some(0));
}

#[tokio::test]
async fn udp_can_be_blocked_while_streams_go_on() {
    let relays = vec![RelayConfig::udp("link", mirror().await), RelayConfig::tcp("link", echo().await)];
    let proxy = Proxy::start(Config { relays, ..Config::default() }).await.unwrap();
    let client = Client { proxy, socket: UdpSocket::bind("127.0.0.1:0").await.unwrap() };
    client.tell("block udp");
    client.send("lost").await;
    client.hears_nothing().await;
    let mut stream = soon(TcpStream::connect(client.proxy.relays()[1].listen)).await.unwrap();
    stream.write_all(b"there").await.unwrap();
    let mut answer = [0; 5];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"there");
    client.tell("heal udp");
    client.ask("here").await;
}

#[tokio::test]
async fn a_stream_that_is_refused_is_reset_and_one_whose_address_changes_hangs() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let relays = vec![RelayConfig::tcp("link", closed), RelayConfig::tcp("link", echo().await)];
    let proxy = Proxy::start(Config { relays, ..Config::default() }).await.unwrap();
    let mut refused = soon(TcpStream::connect(proxy.relays()[0].listen)).await.unwrap();
    let error = soon(refused.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let mut stream = soon(TcpStream::connect(proxy.relays()[1].listen)).await.unwrap();
    stream.write_all(b"a").await.unwrap();
    assert_eq!(soon(stream.read_u8()).await.unwrap(), b'a');
    proxy.tell("rebind address", &no_files).unwrap();
    stream.write_all(b"b").await.unwrap();
    assert!(timeout(NOTHING, stream.read_u8()).await.is_err());
}

#[tokio::test]
async fn links_are_told_apart() {
    let target = mirror().await;
    let relays = vec![RelayConfig::udp("one", target), RelayConfig::udp("two", target)];
    let proxy = Proxy::start(Config { relays, ..Config::default() }).await.unwrap();
    proxy.tell("on two down", &no_files).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for relay in proxy.relays() {
        socket.send_to(relay.link.as_bytes(), relay.listen).await.unwrap();
    }
    let mut buffer = [0; 100];
    let len = soon(socket.recv(&mut buffer)).await.unwrap();
    assert!(buffer[..len].ends_with(b" one"));
    assert!(timeout(NOTHING, socket.recv(&mut buffer)).await.is_err());
    let error = proxy.tell("on three down", &no_files).unwrap_err().to_string();
    assert_eq!(error, "no link `three`; there are one, two");
}

#[test]
fn relays_are_read() {
    let relay: RelayConfig = "laptop=udp:127.0.0.1:4433@127.0.0.1:7000".parse().unwrap();
    assert_eq!((relay.link.as_str(), relay.target.port(), relay.listen.unwrap().port()), ("laptop", 4433, 7000));
    let wrong = |text: &str| text.parse::<RelayConfig>().unwrap_err();
    assert!(wrong("127.0.0.1:4433").contains("`127.0.0.1` is neither udp nor tcp"));
    assert!(wrong("udp:4433").contains("`4433` is no address with a port"));
}
