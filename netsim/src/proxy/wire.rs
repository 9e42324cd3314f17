//! One link of a proxy: what the engine says, done with sockets.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as Plain};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::streams::Streams;
use super::tcp::Segment;
use crate::command::{Command, Edge, Way};
use crate::link::{Event, Packet, Protocol, What};
use crate::nat::{Nat, Table};
use crate::path::{Output, Path};
use crate::record::Record;
use crate::scenario::Scenario;
use crate::timer;

/// Datagrams read at a time, so that timers have their turn.
const BATCH: usize = 64;
/// Sockets of former addresses that stay bound and unread: a network says nothing where a closed port would.
const FORMER: usize = 64;
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// What crosses the link.
#[derive(Debug, Clone)]
pub(super) enum Parcel {
    /// From the near end, through the address it had then.
    Outbound {
        through: Arc<Plain>,
        to: SocketAddr,
        bytes: Box<[u8]>,
    },
    /// To a public port of the near end, as numbered since the last change of addresses.
    Inbound {
        generation: u64,
        port: u16,
        from: SocketAddr,
        bytes: Box<[u8]>,
    },
    Segment {
        stream: u64,
        segment: Segment,
    },
    Acknowledgement {
        stream: u64,
        until: u64,
    },
    Reset {
        stream: u64,
    },
}

#[derive(Debug)]
pub(super) struct Wire {
    name: String,
    started_at: Instant,
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) path: Path<Parcel>,
    pub(super) streams: Streams,
    relays: Vec<(Plain, SocketAddr)>,
    nat: Table,
    // Packets whose public port was nobody's, or not for them.
    not_let_in: u64,
    outside: BTreeMap<u16, Outside>,
    former: VecDeque<Arc<Plain>>,
    generation: u64,
    addresses: u8,
    record: Option<Record>,
    // What `run` waits for.
    armed_for: Option<Duration>,
    this: Weak<Wire>,
}

/// A public port of the near end.
#[derive(Debug)]
struct Outside {
    socket: Arc<Plain>,
    reading: AbortHandle,
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Carries what is due until the task is ended.
pub(super) async fn run(wire: Arc<Wire>) {
    loop {
        let next = {
            let mut state = wire.lock();
            state.carry(&wire);
            state.armed_for = state.next_at();
            state.armed_for.map(|next| wire.started_at + next)
        };
        timer::changed_or(next, &wire.changed).await;
    }
}

/// Reads what the near end sends to a relay.
pub(super) async fn listen(wire: Arc<Wire>, relay: usize, socket: UdpSocket) {
    read(&socket, |from, bytes| wire.outbound(relay, from, bytes)).await;
}

async fn read(socket: &UdpSocket, mut each: impl FnMut(SocketAddr, &[u8])) {
    let mut buffer = vec![0; 65536];
    loop {
        // A reader that cannot wait has nothing to read any more.
        if socket.readable().await.is_err() {
            return;
        }
        for _ in 0..BATCH {
            match socket.try_recv_from(&mut buffer) {
                Ok((len, from)) => each(from, &buffer[..len]),
                // Linux reports here that an earlier datagram was refused; a network would have said nothing.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        tokio::task::yield_now().await;
    }
}

pub(super) fn with_large_buffers(socket: UdpSocket) -> UdpSocket {
    // As much of it as the system allows.
    let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
    socket
}

impl Wire {
    pub(super) fn new(name: &str, scenario: &Scenario, record: Option<Record>) -> Self {
        let state = State {
            path: Path::new(name, scenario),
            streams: Streams::default(),
            relays: Vec::new(),
            nat: Table::new(scenario.seed, Nat::OPEN),
            not_let_in: 0,
            outside: BTreeMap::new(),
            former: VecDeque::new(),
            generation: 0,
            addresses: 0,
            record,
            armed_for: None,
            this: Weak::new(),
        };
        Self { name: name.to_owned(), started_at: Instant::now(), changed: Notify::new(), state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.started_at.elapsed()
    }

    pub(super) fn add_relay(self: &Arc<Self>, socket: &UdpSocket, target: SocketAddr) -> io::Result<usize> {
        let mut state = self.lock();
        state.this = Arc::downgrade(self);
        let near = Plain::from(SockRef::from(socket).try_clone()?);
        state.relays.push((near, target));
        Ok(state.relays.len() - 1)
    }

    pub(super) fn apply(&self, command: &Command) {
        let mut state = self.lock();
        let now = self.now();
        state.path.apply(now, command);
        self.after(state);
    }

    pub(super) fn stats(&self) -> serde_json::Value {
        let mut state = self.lock();
        state.carry(self);
        if let Some(record) = &state.record {
            record.flush();
        }
        let way = |way: Way| {
            let (waiting, waiting_bytes) = state.path.link(way).queue();
            let mut json = state.path.link(way).totals().json();
            (json["waiting"], json["waiting_bytes"]) = (waiting.into(), waiting_bytes.into());
            json
        };
        serde_json::json!({
            "up": way(Way::Up), "down": way(Way::Down), "not_let_in": state.not_let_in,
            "public_ports": state.outside.len(), "streams": state.streams.len(),
        })
    }

    fn outbound(&self, relay: usize, from: SocketAddr, bytes: &[u8]) {
        let mut state = self.lock();
        let now = self.now();
        let to = state.relays[relay].1;
        let Some(port) = state.nat.outbound(now, from, to) else { return };
        // Out of sockets: a NAT that is full drops as well.
        let Ok(through) = state.outside(port, to.ip()) else { return };
        state.path.send(now, Way::Up, datagram(bytes, to.ip()), Parcel::Outbound { through, to, bytes: bytes.into() });
        self.after(state);
    }

    fn inbound(&self, generation: u64, port: u16, from: SocketAddr, bytes: &[u8]) {
        let mut state = self.lock();
        let parcel = Parcel::Inbound { generation, port, from, bytes: bytes.into() };
        state.path.send(self.now(), Way::Down, datagram(bytes, from.ip()), parcel);
        self.after(state);
    }

    /// Carries what is due at once, and wakes `run` if it would wake too late for the rest.
    pub(super) fn after(&self, mut state: MutexGuard<'_, State>) {
        state.carry(self);
        let next = state.next_at();
        if next.is_some_and(|next| state.armed_for.is_none_or(|armed| next < armed)) {
            state.armed_for = next;
            drop(state);
            self.changed.notify_one();
        }
    }
}

impl State {
    fn next_at(&self) -> Option<Duration> {
        self.path.next_at().into_iter().chain(self.streams.next_at()).min()
    }

    fn carry(&mut self, wire: &Wire) {
        self.carry_until(wire, wire.now());
    }

    fn carry_until(&mut self, wire: &Wire, now: Duration) {
        self.repeat_segments(now);
        while let Some(output) = self.path.poll(now) {
            match output {
                Output::Packet(way, event) => {
                    if let Some(record) = &self.record {
                        record.add(&wire.name, way, &event);
                    }
                    let Event { what: What::Delivered { payload, .. }, .. } = event else { continue };
                    self.deliver(now, way, payload);
                }
                Output::Edge(_, edge) => self.change_addresses(edge),
            }
        }
    }

    fn deliver(&mut self, now: Duration, way: Way, parcel: Parcel) {
        match parcel {
            // A full buffer, or an address that is gone: both lose packets on a network as well.
            Parcel::Outbound { through, to, bytes } => drop(through.send_to(&bytes, to)),
            Parcel::Inbound { generation, port, from, bytes } => {
                let inside = (generation == self.generation).then(|| self.nat.inbound(now, port, from)).flatten();
                // Only a target has somebody listening for it on the near side.
                let relay = self.relays.iter().find(|(_, target)| *target == from);
                match (inside, relay) {
                    (Some(inside), Some((near, _))) => drop(near.send_to(&bytes, inside)),
                    _ => self.not_let_in += 1,
                }
            }
            Parcel::Segment { stream, segment } => self.segment(now, way, stream, segment),
            Parcel::Acknowledgement { stream, until } => self.acknowledgement(now, way, stream, until),
            Parcel::Reset { stream } => self.streams.remove(stream),
        }
    }

    fn change_addresses(&mut self, edge: Edge) {
        match edge {
            Edge::RebindPort => self.nat.rebind(),
            Edge::RebindAddress => {
                self.nat.rebind();
                self.addresses = (self.addresses + 1) % 200;
            }
            Edge::Nat(nat) => self.nat.set(nat.unwrap_or(Nat::OPEN)),
        }
        self.generation += 1;
        self.streams.strand();
        for (_, outside) in std::mem::take(&mut self.outside) {
            self.former.push_back(outside.socket.clone());
        }
        self.former.drain(..self.former.len().saturating_sub(FORMER));
    }

    fn outside(&mut self, port: u16, to: IpAddr) -> io::Result<Arc<Plain>> {
        if let Some(outside) = self.outside.get(&port) {
            return Ok(outside.socket.clone());
        }
        // All of 127/8 is there to bind to, on Linux; elsewhere it takes an alias, and the port alone changes.
        let address = match to {
            IpAddr::V4(to) if to.is_loopback() => IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + self.addresses)),
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = Plain::bind((address, 0)).or_else(|_| Plain::bind((Ipv4Addr::LOCALHOST, 0)))?;
        socket.set_nonblocking(true)?;
        let reader = with_large_buffers(UdpSocket::from_std(socket.try_clone()?)?);
        let (wire, generation) = (self.this.clone(), self.generation);
        let reading = tokio::spawn(async move {
            read(&reader, |from, bytes| {
                if let Some(wire) = wire.upgrade() {
                    wire.inbound(generation, port, from, bytes);
                }
            })
            .await;
        });
        let socket = Arc::new(socket);
        let outside = Outside { socket: socket.clone(), reading: reading.abort_handle() };
        self.outside.insert(port, outside);
        Ok(socket)
    }
}

/// What a proxy's engine records about packets of these times and sizes on their way up.
#[cfg(test)]
pub(crate) fn engine_of_a_proxy(name: &str, scenario: &Scenario, sent: &[(Duration, usize)]) -> String {
    let (record, written) = Record::in_memory();
    let wire = Wire::new(name, scenario, Some(record));
    let mut state = wire.lock();
    for (at, size) in sent {
        state.carry_until(&wire, *at);
        let nobodys = Parcel::Acknowledgement { stream: 0, until: 0 };
        state.path.send(*at, Way::Up, Packet::udp(*size), nobodys);
    }
    while let Some(at) = state.next_at() {
        state.carry_until(&wire, at);
    }
    written()
}

/// A datagram with the headers it would have.
fn datagram(bytes: &[u8], remote: IpAddr) -> Packet {
    Packet { protocol: Protocol::Udp, size: bytes.len() + crate::link::udp_headers(remote), markable: false }
}
