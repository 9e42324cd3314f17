//! A socket of a simulated host: packets that arrived wait in it.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::network::Network;

/// Packets unread by one socket. More are dropped, as by a full buffer.
const CAPACITY: usize = 16 * 1024;
/// Datagrams taken in one call (GSO). They are as many packets on the way.
const SEGMENTS: usize = 10;

#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) from: SocketAddr,
    pub(crate) to: IpAddr,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) bytes: Arc<[u8]>,
}

#[derive(Debug)]
pub(crate) struct Socket {
    host: usize,
    port: u16,
    network: Network,
    inbox: Arc<Inbox>,
}

/// Where the network puts what arrives. Apart from the socket, whose end takes the network's lock.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<Unread>);

#[derive(Debug, Default)]
struct Unread {
    packets: VecDeque<Received>,
    reader: Option<Waker>,
}

impl Socket {
    pub(crate) fn new(host: usize, port: u16, network: Network, inbox: Arc<Inbox>) -> Self {
        Self { host, port, network, inbox }
    }
}

impl Inbox {
    pub(crate) fn deliver(&self, packet: Received) {
        let mut unread = self.lock();
        if unread.packets.len() == CAPACITY {
            return;
        }
        unread.packets.push_back(packet);
        if let Some(reader) = unread.reader.take() {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Unread> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.network.unbind(self.host, self.port, &self.inbox);
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.network.send(self.host, self.port, transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock();
        let mut read = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some(packet) = inbox.packets.pop_front() else { break };
            let len = packet.bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&packet.bytes[..len]);
            *meta = RecvMeta { addr: packet.from, len, stride: len, ecn: packet.ecn, dst_ip: Some(packet.to) };
            read += 1;
        }
        if read > 0 {
            return Poll::Ready(Ok(read));
        }
        inbox.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.network.address(self.host, self.port))
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Simulated sockets take every packet at once.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::link::{Conditions, Discipline, Limit, Rate};
    use crate::nat::Nat;
    use crate::proxy::engine_of_a_proxy;
    use crate::record::Record;
    use crate::scenario::Scenario;

    const A: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn pair(network: &Network) -> (Arc<dyn AsyncUdpSocket>, Arc<dyn AsyncUdpSocket>) {
        (network.host(A).bind(0).unwrap(), network.host(B).bind(9).unwrap())
    }

    fn send(socket: &Arc<dyn AsyncUdpSocket>, byte: u8) {
        let destination = SocketAddr::new(B, 9);
        let transmit = Transmit { destination, ecn: None, contents: &[byte], segment_size: None, src_ip: None };
        socket.try_send(&transmit).unwrap();
    }

    async fn receive(socket: &Arc<dyn AsyncUdpSocket>) -> u8 {
        let mut bytes = [0; 4];
        let mut meta = [RecvMeta::default()];
        let read = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut bytes)], &mut meta)).await.unwrap();
        assert_eq!((read, meta[0].len), (1, 1));
        bytes[0]
    }

    async fn survivors(seed: u64) -> Vec<u8> {
        let network = Network::new(seed);
        network.set(A, B, Conditions { loss: 0.3, ..Conditions::default() });
        let (a, b) = pair(&network);
        for byte in 0..100 {
            send(&a, byte);
        }
        let mut all = Vec::new();
        while let Ok(byte) = tokio::time::timeout(Duration::from_secs(1), receive(&b)).await {
            all.push(byte);
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn packets_arrive_in_order_after_the_delay() {
        let network = Network::new(1);
        network.set(A, B, Conditions { delay: Duration::from_millis(70), ..Conditions::default() });
        let (a, b) = pair(&network);
        let start = Instant::now();
        send(&a, 1);
        send(&a, 2);
        assert_eq!((receive(&b).await, receive(&b).await), (1, 2));
        // tokio's timers have millisecond steps.
        let took = start.elapsed();
        assert!((70..=71).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_waits_is_woken() {
        let network = Network::new(1);
        let (a, b) = pair(&network);
        let reader = tokio::spawn(async move { receive(&b).await });
        tokio::task::yield_now().await;
        send(&a, 7);
        assert_eq!(reader.await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn loss_follows_the_seed() {
        let first = survivors(1).await;
        assert!((50..90).contains(&first.len()), "{} of 100 arrived at 30 % loss", first.len());
        assert!(first.is_sorted());
        assert_eq!(first, survivors(1).await);
        assert_ne!(first, survivors(2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blackout_swallows_what_is_sent_in_it() {
        let network = Network::new(1);
        let (a, b) = pair(&network);
        send(&a, 1);
        network.set_blackout(A, B, true);
        send(&a, 2);
        network.set_blackout(A, B, false);
        send(&a, 3);
        assert_eq!((receive(&b).await, receive(&b).await), (1, 3));
    }

    #[test]
    fn a_port_is_free_again_after_its_socket() {
        let host = Network::new(1).host(A);
        let first = host.bind(5).unwrap();
        assert_eq!(host.bind(5).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        host.bind(5).unwrap();
    }

    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 1, 1, 1));
    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));

    type Endpoint = Arc<dyn AsyncUdpSocket>;

    fn send_to(socket: &Endpoint, destination: SocketAddr, contents: &[u8], ecn: Option<EcnCodepoint>) {
        socket.try_send(&Transmit { destination, ecn, contents, segment_size: None, src_ip: None }).unwrap();
    }

    async fn receive_all(socket: &Endpoint) -> Option<(SocketAddr, Vec<u8>, Option<EcnCodepoint>)> {
        let (mut bytes, mut meta) = ([0; 2000], [RecvMeta::default()]);
        let read = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut bytes)], &mut meta));
        // Virtual seconds: what comes at all comes before.
        tokio::time::timeout(Duration::from_secs(60), read).await.ok()?.unwrap();
        Some((meta[0].addr, bytes[..meta[0].len].to_vec(), meta[0].ecn))
    }

    #[tokio::test(start_paused = true)]
    async fn segments_of_one_call_are_packets_of_their_own() {
        let network = Network::new(1);
        let (a, b) = pair(&network);
        let destination = SocketAddr::new(B, 9);
        let contents = [7; 2500];
        a.try_send(&Transmit { destination, ecn: None, contents: &contents, segment_size: Some(1000), src_ip: None })
            .unwrap();
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(receive_all(&b).await.unwrap().1.len());
        }
        assert_eq!(sizes, [1000, 1000, 500]);
        assert_eq!(network.totals(A, B).came, 3);
        assert_eq!(network.totals(A, B).bytes_came, 2500 + 3 * 28);
    }

    #[tokio::test(start_paused = true)]
    async fn marks_are_carried_and_congestion_makes_them() {
        let network = Network::new(1);
        let (a, b) = pair(&network);
        let destination = SocketAddr::new(B, 9);
        send_to(&a, destination, &[1], Some(EcnCodepoint::Ect0));
        send_to(&a, destination, &[1], None);
        assert_eq!(receive_all(&b).await.unwrap().2, Some(EcnCodepoint::Ect0));
        assert_eq!(receive_all(&b).await.unwrap().2, None);
        let (rate, discipline) = (Rate::Bits(1_000_000), Discipline::Codel { ecn: true });
        network.set(A, B, Conditions { rate, discipline, queue: Limit::Packets(1000), ..Conditions::default() });
        for _ in 0..100 {
            send_to(&a, destination, &[1; 1200], Some(EcnCodepoint::Ect0));
        }
        let mut marked = 0;
        for _ in 0..100 {
            let ecn = receive_all(&b).await.expect("none is dropped").2;
            marked += u32::from(ecn == Some(EcnCodepoint::Ce));
        }
        assert!(marked > 0);
    }

    /// Two peers behind NATs, who know each other's public address from a server: who hears whom?
    #[tokio::test(start_paused = true)]
    async fn peers_behind_nats_meet_or_do_not() {
        for (ours, theirs, meet) in [
            (Nat::OPEN, Nat::OPEN, true),
            (Nat::HOME, Nat::HOME, true),
            (Nat::OPEN, Nat::SYMMETRIC, true),
            (Nat::HOME, Nat::SYMMETRIC, false),
            (Nat::SYMMETRIC, Nat::SYMMETRIC, false),
        ] {
            let network = Network::new(1);
            let server = network.host(SERVER).bind(1).unwrap();
            let mut peers = Vec::new();
            for (number, nat) in [ours, theirs].into_iter().enumerate() {
                let public = IpAddr::from([9, 9, 9, number as u8]);
                let peer = network.nat(public, nat).host(A).bind(5000).unwrap();
                send_to(&peer, SocketAddr::new(SERVER, 1), b"hello", None);
                let (seen, ..) = receive_all(&server).await.unwrap();
                assert_eq!(seen.ip(), public, "the address of the NAT");
                peers.push((peer, seen));
            }
            for _ in 0..3 {
                send_to(&peers[0].0, peers[1].1, b"one", None);
                send_to(&peers[1].0, peers[0].1, b"two", None);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let heard = [receive_all(&peers[0].0).await.is_some(), receive_all(&peers[1].0).await.is_some()];
            // A NAT that lets all in hears the peer even if it cannot tell it back.
            let one_hears = heard[0] || heard[1];
            assert_eq!(one_hears, meet, "{ours:?} and {theirs:?}: {heard:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_cannot_reach_behind_a_nat_that_forgot() {
        let network = Network::new(1);
        let server = network.host(SERVER).bind(1).unwrap();
        let nat = network.nat(ROUTER, Nat::HOME);
        let client = nat.host(A).bind(5000).unwrap();
        let to = SocketAddr::new(SERVER, 1);
        send_to(&client, to, b"first", None);
        let (seen, ..) = receive_all(&server).await.unwrap();
        assert_eq!(seen, SocketAddr::new(ROUTER, 5000));
        send_to(&server, seen, b"answer", None);
        assert_eq!(receive_all(&client).await.unwrap().1, b"answer");
        nat.rebind();
        send_to(&server, seen, b"lost", None);
        assert_eq!(receive_all(&client).await, None);
        assert_eq!(network.not_let_in(), 1);
        send_to(&client, to, b"second", None);
        assert_eq!(receive_all(&server).await.unwrap().0, SocketAddr::new(ROUTER, 5001));
        // Two NATs in a row.
        let inner = nat.nat([10, 0, 0, 9].into(), Nat::HOME).host([192, 168, 0, 2].into()).bind(6000).unwrap();
        send_to(&inner, to, b"third", None);
        assert_eq!(receive_all(&server).await.unwrap().0, SocketAddr::new(ROUTER, 6001));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_moves_takes_its_link_along() {
        let network = Network::new(1);
        network.set(A, B, Conditions { delay: Duration::from_millis(70), ..Conditions::default() });
        let host = network.host(A);
        let (a, b) = (host.bind(5).unwrap(), network.host(B).bind(9).unwrap());
        host.move_to(ROUTER);
        let start = Instant::now();
        send_to(&a, SocketAddr::new(B, 9), b"moved", None);
        assert_eq!(receive_all(&b).await.unwrap().0, SocketAddr::new(ROUTER, 5));
        assert!(start.elapsed() >= Duration::from_millis(70));
        send_to(&b, SocketAddr::new(A, 5), b"late", None);
        assert_eq!(receive_all(&a).await, None);
    }

    /// One scenario, the same packets at the same times: the virtual form and the proxy's engine write the same record.
    #[tokio::test(start_paused = true)]
    async fn both_forms_decide_alike() {
        let text = "seed 9\nprofile wifi-flaky\nset duplicate 2%\nat 1s down 300ms\nat 2s set up loss 20%\nat 3s set up rate 1mbit queue 20p\n";
        let scenario = Scenario::parse(text, &|_| unreachable!()).unwrap();
        let network = Network::new(1);
        let (virtually, written) = Record::in_memory();
        network.record(virtually);
        network.play(A, B, &scenario);
        let (a, _b) = pair(&network);
        let mut sent = Vec::new();
        let start = Instant::now();
        for number in 0..3000u64 {
            let size = 100 + (number * 37 % 1100) as usize;
            sent.push((start.elapsed(), size + 28));
            send_to(&a, SocketAddr::new(B, 9), &vec![0; size], None);
            tokio::time::sleep(Duration::from_millis(1 + number % 3)).await;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let by_proxy = engine_of_a_proxy(&format!("{A} {B}"), &scenario, &sent);
        let written = written();
        assert!(
            ["delivered", "copy", "burst", "loss", "blackout", "queue-full"].iter().all(|what| written.contains(what))
        );
        assert_eq!(written, by_proxy);
    }
}
