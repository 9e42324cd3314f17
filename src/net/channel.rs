//! Streams of frames over one QUIC stream.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::frame::{self, Limits};
use ado_proto::session::Message;
use bytes::{Bytes, BytesMut};
use tokio_util::task::TaskTracker;

use super::error::{Error, code};

/// Most bytes taken from a stream at once: what is taken is no longer held back by flow control.
const READ_AT_ONCE: usize = 64 * 1024;

/// Order in which streams of a connection are served: higher first, strictly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Uploads, checkpoints, replays of old logs.
    Bulk,
    /// Live output.
    #[default]
    Live,
    /// Requests and heartbeats.
    Control,
}

impl Priority {
    fn number(self) -> i32 {
        match self {
            Self::Bulk => 0,
            Self::Live => 10,
            Self::Control => 20,
        }
    }
}

/// Turns a closing carrier gives others before it sleeps between looks: the packet usually leaves within microseconds, and
/// the shortest sleep is a millisecond.
const YIELDS: u32 = 100;

/// A QUIC connection, held by everything that uses it: it closes when the last of them is dropped.
pub(super) struct Carrier {
    pub(super) quic: quinn::Connection,
    // One task a finished stream, until all of it has arrived or the connection is over.
    arriving: TaskTracker,
    // Dropped with the connection: permits, entries in registries.
    _kept: Box<dyn Any + Send + Sync>,
}

impl Carrier {
    pub(super) fn new(quic: quinn::Connection, kept: impl Any + Send + Sync) -> Arc<Self> {
        Arc::new(Self { quic, arriving: TaskTracker::new(), _kept: Box::new(kept) })
    }

    /// Waits until everything sent on finished streams has arrived, at most `patience`.
    pub(super) async fn drained(&self, patience: Duration) {
        self.arriving.close();
        // Whatever has not arrived by then is lost with the connection, like on any network.
        let _ = tokio::time::timeout(patience, self.arriving.wait()).await;
    }

    /// Closes the connection and waits until the packet that says so has left, at most `patience`. quinn tells nobody when
    /// it has; waiting for the connection to be forgotten would take several round trips.
    pub(super) async fn say_goodbye(&self, code: quinn::VarInt, patience: Duration) {
        let sent = || self.quic.stats().udp_tx.datagrams;
        let before = sent();
        self.quic.close(code, b"");
        let left = async {
            for _ in 0..YIELDS {
                tokio::task::yield_now().await;
                if sent() > before {
                    return;
                }
            }
            while sent() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(patience, left).await;
    }

    /// Opens a stream.
    pub(super) async fn open(self: &Arc<Self>, priority: Priority) -> Result<Channel, Error> {
        let (tx, rx) = self.quic.open_bi().await?;
        Ok(self.channel(tx, rx, Limits::MESH, priority))
    }

    /// Makes a stream one of frames.
    pub(super) fn channel(
        self: &Arc<Self>,
        tx: quinn::SendStream,
        rx: quinn::RecvStream,
        limits: Limits,
        priority: Priority,
    ) -> Channel {
        let tx = Sender { stream: tx, carrier: self.clone(), state: Sending::Open };
        tx.set_priority(priority);
        Channel { tx, rx: Receiver { stream: rx, buffer: BytesMut::new(), limits, _carrier: self.clone() } }
    }
}

/// A stream of frames in both directions.
pub struct Channel {
    /// To the other side.
    pub tx: Sender,
    /// From the other side.
    pub rx: Receiver,
}

/// The sending half. Dropping it without [`Sender::finish`] resets the stream.
pub struct Sender {
    stream: quinn::SendStream,
    carrier: Arc<Carrier>,
    state: Sending,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    // A frame is begun: if its future was dropped, the stream ends within a frame.
    Within,
    Finished,
}

impl Sender {
    /// Sends one frame; waits while the other side does not read. Not cancel safe: a cancelled send breaks the stream.
    ///
    /// # Errors
    /// [`Error::Protocol`] when `body` exceeds [`Limits::MESH`] (the stream is still good); [`Error::Lost`] when the
    /// connection is gone or the other side has stopped reading; [`Error::Closed`] after [`Sender::finish`] or a
    /// cancelled send.
    pub async fn send(&mut self, body: &[u8]) -> Result<(), Error> {
        let mut frame = Vec::new();
        frame::encode(body, &mut frame)?;
        self.write([frame.into(), Bytes::new()]).await
    }

    /// Sends one message. Not cancel safe.
    ///
    /// # Errors
    /// See [`Sender::send`].
    pub async fn send_message<M: Message>(&mut self, message: &M) -> Result<(), Error> {
        let (head, bulk) = message.to_pieces();
        self.write(frame::encode_pieces(&head, bulk)?).await
    }

    async fn write(&mut self, mut frame: [Bytes; 2]) -> Result<(), Error> {
        if self.state != Sending::Open {
            return Err(Error::Closed);
        }
        self.state = Sending::Within;
        // A piece without a byte would wait for room of which it needs none.
        let pieces = if frame[1].is_empty() { 1 } else { 2 };
        self.stream.write_all_chunks(&mut frame[..pieces]).await?;
        self.state = Sending::Open;
        Ok(())
    }

    /// No more frames: the other side reads the end of the stream after the last one.
    pub fn finish(&mut self) {
        if self.end() {
            self.carrier.arriving.spawn(self.stream.stopped());
        }
    }

    /// Like [`Sender::finish`], for streams whose answer tells that all has arrived.
    pub(super) fn end(&mut self) -> bool {
        if self.state != Sending::Open {
            return false;
        }
        self.state = Sending::Finished;
        self.stream.finish().is_ok()
    }

    /// Changes the stream's place among the connection's streams.
    pub fn set_priority(&self, priority: Priority) {
        // Fails on streams that are over: there is nothing left to order.
        let _ = self.stream.set_priority(priority.number());
    }

    /// Resolves when sending has become pointless: the other side has stopped reading, or the connection is gone. After
    /// [`Sender::finish`] also when all has arrived.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.state != Sending::Finished {
            // Fails on streams that are over already.
            let _ = self.stream.reset(code::DONE);
        }
    }
}

/// The receiving half. Dropping it tells the other side to stop sending.
pub struct Receiver {
    stream: quinn::RecvStream,
    // What has come and was not asked for yet: at most a frame's limit and one read.
    buffer: BytesMut,
    limits: Limits,
    _carrier: Arc<Carrier>,
}

impl Receiver {
    /// The next frame; `None` at the end of the stream. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the bytes are no frame or exceed the limits: the stream is of no further use.
    /// [`Error::Lost`] when the connection is gone or the other side gave the stream up.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer, self.limits)? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(READ_AT_ONCE, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Error::Protocol("the stream ended within a frame".into())),
            }
        }
    }

    /// The next message; `None` at the end of the stream. Cancel safe.
    ///
    /// # Errors
    /// See [`Receiver::next`]; [`Error::Protocol`] also when the frame is no `M`.
    pub async fn next_message<M: Message>(&mut self) -> Result<Option<M>, Error> {
        match self.next().await? {
            Some(frame) => M::from_frame(&frame).map(Some).map_err(|error| Error::Protocol(error.to_string())),
            None => Ok(None),
        }
    }
}
