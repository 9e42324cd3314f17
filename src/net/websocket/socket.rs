//! The socket under quinn: its packets go to a queue and come from another.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// Packets that wait for the WebSocket, in each direction. When full, quinn waits and the peer's TCP does. A small number:
/// what waits here is behind no priority any more.
const WAITING: usize = 32;

/// The other end of a [`Socket`]: what it sends, and where what it receives comes from.
pub(super) struct Ends {
    pub(super) sent: mpsc::Receiver<Bytes>,
    pub(super) received: mpsc::Sender<Bytes>,
}

/// A socket with one peer.
pub(super) struct Socket {
    own: SocketAddr,
    peer: SocketAddr,
    sent: mpsc::Sender<Bytes>,
    received: Mutex<mpsc::Receiver<Bytes>>,
}

impl Socket {
    /// A socket at `own` that reaches nobody but `peer`.
    pub(super) fn new(own: SocketAddr, peer: SocketAddr) -> (Arc<Self>, Ends) {
        let (sent, to_carry) = mpsc::channel(WAITING);
        let (carried, received) = mpsc::channel(WAITING);
        let socket = Self { own, peer, sent, received: received.into() };
        (Arc::new(socket), Ends { sent: to_carry, received: carried })
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebSocket({} to {})", self.own, self.peer)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(PollSender::new(self.sent.clone())))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.sent.try_send(Bytes::copy_from_slice(transmit.contents)) {
            // What is sent after the end is lost, as on any network.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let packet = match received.poll_recv(cx) {
                Poll::Ready(Some(packet)) => packet,
                // Who carries the packets ends the connections, too.
                Poll::Ready(None) | Poll::Pending => break,
            };
            let len = packet.len().min(buffer.len());
            buffer[..len].copy_from_slice(&packet[..len]);
            *meta = RecvMeta { addr: self.peer, len, stride: len, ecn: None, dst_ip: None };
            read += 1;
        }
        if read == 0 { Poll::Pending } else { Poll::Ready(Ok(read)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.own)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for room in the queue.
#[derive(Debug)]
struct Room(PollSender<Bytes>);

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.0.poll_reserve(cx);
        if ready.is_ready() {
            // The room is for `try_send`, which takes its own.
            let _ = self.0.abort_send();
        }
        ready.map(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn transmit(contents: &[u8]) -> Transmit<'_> {
        Transmit { destination: ([0, 0, 0, 0], 0).into(), ecn: None, contents, segment_size: None, src_ip: None }
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_sender_wait_until_there_is_room() {
        let (socket, mut ends) = Socket::new(([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
        for _ in 0..WAITING {
            socket.try_send(&transmit(b"x")).unwrap();
        }
        let full = socket.try_send(&transmit(b"y")).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut room = socket.clone().create_io_poller();
        let waiting = tokio::spawn(async move { poll_fn(|cx| room.as_mut().poll_writable(cx)).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(ends.sent.recv().await.unwrap(), "x");
        waiting.await.unwrap().unwrap();
        socket.try_send(&transmit(b"y")).unwrap();
        drop(ends);
        socket.try_send(&transmit(b"lost")).unwrap();
    }
}
