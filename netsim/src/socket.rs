//! A socket of a simulated host: packets wait in it until they are due.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::network::Network;

/// Packets under way to, or unread by, one socket. More are dropped, as by a full queue.
const CAPACITY: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) bytes: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) struct Socket {
    address: SocketAddr,
    network: Network,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    packets: BTreeMap<(Instant, u64), Packet>,
    // Runs out when the first packet is due.
    timer: Option<Pin<Box<Sleep>>>,
    reader: Option<Waker>,
}

impl Socket {
    pub(crate) fn new(address: SocketAddr, network: Network) -> Self {
        Self { address, network, inbox: Mutex::default() }
    }

    pub(crate) fn deliver(&self, due: Instant, order: u64, packet: Packet) {
        let mut inbox = self.lock();
        if inbox.packets.len() == CAPACITY {
            return;
        }
        inbox.packets.insert((due, order), packet);
        if let Some(reader) = inbox.reader.take() {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.network.unbind(self.address);
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(segment) {
            self.network.send(self.address, transmit.destination, transmit.ecn, bytes);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.lock();
        loop {
            let read = inbox.read(Instant::now(), self.address, buffers, meta);
            if read > 0 {
                return Poll::Ready(Ok(read));
            }
            inbox.reader = Some(cx.waker().clone());
            let Some(&(due, _)) = inbox.packets.keys().next() else { return Poll::Pending };
            let mut timer = Box::pin(sleep_until(due));
            if timer.as_mut().poll(cx).is_pending() {
                inbox.timer = Some(timer);
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Inbox {
    fn read(&mut self, now: Instant, to: SocketAddr, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut read = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some(first) = self.packets.first_entry().filter(|first| first.key().0 <= now) else { break };
            let packet = first.remove();
            let len = packet.bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&packet.bytes[..len]);
            *meta = RecvMeta { addr: packet.from, len, stride: len, ecn: packet.ecn, dst_ip: Some(to.ip()) };
            read += 1;
        }
        read
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

    use super::*;
    use crate::network::Conditions;

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
}
