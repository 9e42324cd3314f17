//! The proxy's streams: accepted from the near end, connected to the far end, and carried in segments between.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::tcp::{Content, HEADERS, Receiver, SEGMENT, Segment, Sender};
use super::wire::{Parcel, State, Wire};
use crate::command::Way;
use crate::link::{Packet, Protocol};

/// Bytes that arrived and are not read by the application; the other end sends no more until they are.
const UNREAD: usize = 1024 * 1024;
/// Segments read at a time.
const READ: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Streams {
    next: u64,
    all: BTreeMap<u64, Stream>,
}

#[derive(Debug)]
struct Stream {
    target: SocketAddr,
    wire: std::sync::Weak<Wire>,
    // What goes up, what goes down.
    directions: [Direction; 2],
    // The address it was made with is gone: nothing of it arrives any more.
    stranded: bool,
    tasks: Vec<AbortHandle>,
}

#[derive(Debug)]
struct Direction {
    sender: Sender,
    receiver: Receiver,
    // Its reader may go on.
    room: Arc<Notify>,
    // To whom it is written; bounded by UNREAD and the window.
    arrived: mpsc::UnboundedSender<Content>,
    // Until there is somebody to write to.
    to_write: Option<mpsc::UnboundedReceiver<Content>>,
    unread: usize,
    ended: bool,
    // The socket it is written to is gone.
    refused: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Direction {
    fn new() -> Self {
        let (arrived, to_write) = mpsc::unbounded_channel();
        Self {
            sender: Sender::new(),
            receiver: Receiver::default(),
            room: Arc::default(),
            arrived,
            to_write: Some(to_write),
            unread: 0,
            ended: false,
            refused: false,
        }
    }

    fn is_over(&self) -> bool {
        self.ended && self.sender.next_at().is_none()
    }
}

/// Accepts the near end's streams.
pub(super) async fn listen(wire: Arc<Wire>, listener: TcpListener, target: SocketAddr) {
    loop {
        // Out of descriptors for a moment, or a client that left at once.
        let Ok((socket, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let mut state = wire.lock();
        let id = state.streams.next;
        state.streams.next += 1;
        let stream = Stream {
            target,
            wire: Arc::downgrade(&wire),
            directions: [Direction::new(), Direction::new()],
            stranded: false,
            tasks: Vec::new(),
        };
        state.streams.all.insert(id, stream);
        state.attach(&wire, id, Way::Up, socket);
        state.push(wire.now(), Way::Up, id, Content::Open);
        wire.after(state);
    }
}

async fn connect(wire: Arc<Wire>, id: u64, target: SocketAddr) {
    let connected = TcpStream::connect(target).await;
    let mut state = wire.lock();
    match connected {
        Ok(socket) => {
            state.attach(&wire, id, Way::Down, socket);
            state.push(wire.now(), Way::Down, id, Content::Open);
        }
        Err(_) => state.reset(wire.now(), Way::Down, id),
    }
    wire.after(state);
}

async fn read(wire: Arc<Wire>, id: u64, way: Way, mut socket: ReadHalf<TcpStream>, more: Arc<Notify>) {
    let mut buffer = vec![0; READ * SEGMENT];
    loop {
        let Some(room) = wire.lock().streams.room(id, way) else { return };
        if room == 0 {
            more.notified().await;
            continue;
        }
        let result = socket.read(&mut buffer[..room.min(READ) * SEGMENT]).await;
        let (mut state, now) = (wire.lock(), wire.now());
        match result {
            Ok(0) => state.push(now, way, id, Content::End),
            Ok(len) => {
                for bytes in buffer[..len].chunks(SEGMENT) {
                    state.push(now, way, id, Content::Bytes(bytes.into()));
                }
            }
            Err(_) => state.reset(now, way, id),
        }
        wire.after(state);
        if !matches!(result, Ok(1..)) {
            return;
        }
    }
}

async fn write(
    wire: Arc<Wire>,
    id: u64,
    way: Way,
    mut socket: WriteHalf<TcpStream>,
    same: Socket,
    mut arrived: mpsc::UnboundedReceiver<Content>,
) {
    while let Some(content) = arrived.recv().await {
        let Content::Bytes(bytes) = content else {
            // The peer may be gone already.
            let _ = same.set_linger(None);
            let _ = socket.shutdown().await;
            return;
        };
        let written = socket.write_all(&bytes).await;
        let mut state = wire.lock();
        match written {
            Ok(()) => state.streams.written(id, way, bytes.len()),
            Err(_) => {
                state.reset(wire.now(), other(way), id);
                return wire.after(state);
            }
        }
    }
}

fn other(way: Way) -> Way {
    match way {
        Way::Up => Way::Down,
        Way::Down => Way::Up,
    }
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn next_at(&self) -> Option<Duration> {
        self.all.values().flat_map(|stream| &stream.directions).filter_map(|direction| direction.sender.next_at()).min()
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.all.remove(&id);
    }

    pub(super) fn strand(&mut self) {
        for stream in self.all.values_mut() {
            stream.stranded = true;
        }
    }

    fn room(&self, id: u64, way: Way) -> Option<usize> {
        let direction = &self.all.get(&id)?.directions[way as usize];
        Some(if direction.unread >= UNREAD { 0 } else { direction.sender.room() })
    }

    fn written(&mut self, id: u64, way: Way, bytes: usize) {
        if let Some(stream) = self.all.get_mut(&id) {
            let direction = &mut stream.directions[way as usize];
            direction.unread -= bytes;
            direction.room.notify_one();
        }
    }
}

impl State {
    /// Gives a stream the socket at which what goes `way` begins.
    fn attach(&mut self, wire: &Arc<Wire>, id: u64, way: Way, socket: TcpStream) {
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let _ = socket.set_nodelay(true);
        // Closed before its end it is reset, so that nobody takes a part for the whole.
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        let Ok(same) = SockRef::from(&socket).try_clone() else { return self.streams.remove(id) };
        // Halves that send no end when they are dropped.
        let (reading, writing) = tokio::io::split(socket);
        let room = stream.directions[way as usize].room.clone();
        let Some(arrived) = stream.directions[other(way) as usize].to_write.take() else { return };
        let reader = tokio::spawn(read(wire.clone(), id, way, reading, room));
        let writer = tokio::spawn(write(wire.clone(), id, other(way), writing, same, arrived));
        stream.tasks.extend([reader.abort_handle(), writer.abort_handle()]);
    }

    fn push(&mut self, now: Duration, way: Way, id: u64, content: Content) {
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let segment = stream.directions[way as usize].sender.push(now, content);
        self.send_segment(now, way, id, segment);
    }

    fn send_segment(&mut self, now: Duration, way: Way, stream: u64, segment: Segment) {
        self.path.send(now, way, tcp(segment.size()), Parcel::Segment { stream, segment });
    }

    /// The end at which what goes `way` begins has failed: the other end is told.
    fn reset(&mut self, now: Duration, way: Way, id: u64) {
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        stream.directions[other(way) as usize].refused = true;
        self.path.send(now, way, tcp(HEADERS), Parcel::Reset { stream: id });
    }

    pub(super) fn segment(&mut self, now: Duration, way: Way, id: u64, segment: Segment) {
        let Some(stream) = self.streams.all.get_mut(&id).filter(|stream| !stream.stranded) else { return };
        let direction = &mut stream.directions[way as usize];
        if direction.refused {
            return self.reset(now, other(way), id);
        }
        let mut opened = false;
        for content in direction.receiver.take(segment) {
            match &content {
                Content::Open => opened = true,
                Content::Bytes(bytes) => direction.unread += bytes.len(),
                Content::End => direction.ended = true,
            }
            if content != Content::Open {
                // Nobody reads any more: the reset is on its way.
                let _ = direction.arrived.send(content);
            }
        }
        let until = direction.receiver.next();
        self.path.send(now, other(way), tcp(HEADERS), Parcel::Acknowledgement { stream: id, until });
        if opened && way == Way::Up {
            let (target, wire) = (stream.target, stream.wire.clone());
            if let Some(wire) = wire.upgrade() {
                stream.tasks.push(tokio::spawn(connect(wire, id, target)).abort_handle());
            }
        }
    }

    /// What came `way` acknowledges what went the other.
    pub(super) fn acknowledgement(&mut self, now: Duration, way: Way, id: u64, until: u64) {
        let Some(stream) = self.streams.all.get_mut(&id).filter(|stream| !stream.stranded) else { return };
        let direction = &mut stream.directions[other(way) as usize];
        let again = direction.sender.acknowledged(now, until);
        direction.room.notify_one();
        for segment in again {
            self.send_segment(now, other(way), id, segment);
        }
        let over = |stream: &Stream| stream.directions.iter().all(Direction::is_over);
        if self.streams.all.get(&id).is_some_and(over) {
            // Its writers have everything, and end by themselves.
            if let Some(mut stream) = self.streams.all.remove(&id) {
                stream.tasks.clear();
            }
        }
    }

    pub(super) fn repeat_segments(&mut self, now: Duration) {
        let mut again = Vec::new();
        for (id, stream) in &mut self.streams.all {
            for way in Way::BOTH {
                let segment = stream.directions[way as usize].sender.timed_out(now);
                again.extend(segment.map(|segment| (*id, way, segment)));
            }
        }
        for (id, way, segment) in again {
            self.send_segment(now, way, id, segment);
        }
    }
}

fn tcp(size: usize) -> Packet {
    Packet { protocol: Protocol::Tcp, size, markable: false }
}
