//! Hosts and the links between them.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quinn::AsyncUdpSocket;
use tokio::time::Instant;

use crate::socket::{Packet, Socket};

/// First port given to a socket that asks for any.
const EPHEMERAL: u16 = 49152;

/// What a one-way link does to packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// From sending to arrival.
    pub delay: Duration,
    /// Share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// Whether every packet vanishes.
    pub blackout: bool,
}

impl Default for Conditions {
    /// A millisecond, nothing lost.
    fn default() -> Self {
        Self { delay: Duration::from_millis(1), loss: 0.0, blackout: false }
    }
}

/// A network. Clones share it.
#[derive(Debug, Clone)]
pub struct Network(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    seed: u64,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    sockets: BTreeMap<SocketAddr, Weak<Socket>>,
    next_port: u16,
    // Packets that arrive at the same instant arrive in the order they were sent.
    sent: u64,
}

#[derive(Debug, Default)]
struct Link {
    conditions: Conditions,
    packets: u64,
}

impl Network {
    /// A network without hosts. Equal seeds lose the same packets.
    pub fn new(seed: u64) -> Self {
        let state = State { seed, links: BTreeMap::new(), sockets: BTreeMap::new(), next_port: EPHEMERAL, sent: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The host with this address.
    pub fn host(&self, ip: IpAddr) -> Host {
        Host { network: self.clone(), ip }
    }

    /// Sets what happens to packets on their way from one address to another.
    pub fn set_one_way(&self, from: IpAddr, to: IpAddr, conditions: Conditions) {
        self.lock().links.entry((from, to)).or_default().conditions = conditions;
    }

    /// Sets both ways between two addresses.
    pub fn set(&self, a: IpAddr, b: IpAddr, conditions: Conditions) {
        self.set_one_way(a, b, conditions);
        self.set_one_way(b, a, conditions);
    }

    /// Begins or ends a blackout between two addresses. Packets under way still arrive.
    pub fn set_blackout(&self, a: IpAddr, b: IpAddr, blackout: bool) {
        let mut state = self.lock();
        for way in [(a, b), (b, a)] {
            state.links.entry(way).or_default().conditions.blackout = blackout;
        }
    }

    pub(crate) fn send(&self, from: SocketAddr, to: SocketAddr, ecn: Option<quinn::udp::EcnCodepoint>, bytes: &[u8]) {
        let mut state = self.lock();
        state.sent += 1;
        let (seed, order) = (state.seed, state.sent);
        let link = state.links.entry((from.ip(), to.ip())).or_default();
        link.packets += 1;
        let lost = link.conditions.blackout || chance(seed, (from.ip(), to.ip()), link.packets) < link.conditions.loss;
        let due = Instant::now() + link.conditions.delay;
        // Nobody there: a network without ICMP.
        let Some(socket) = state.sockets.get(&to).and_then(Weak::upgrade) else { return };
        drop(state);
        if !lost {
            socket.deliver(due, order, Packet { from, ecn, bytes: bytes.into() });
        }
    }

    pub(crate) fn unbind(&self, address: SocketAddr) {
        let mut state = self.lock();
        // The port may have a new owner already.
        if state.sockets.get(&address).is_some_and(|socket| socket.strong_count() == 0) {
            state.sockets.remove(&address);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Uniform in `[0, 1)`: splitmix64 (Steele, Lea, Flood 2014) of the seed, the link and the packet's place on it.
fn chance(seed: u64, link: (IpAddr, IpAddr), packet: u64) -> f64 {
    let mut name = Fnv(0xcbf2_9ce4_8422_2325);
    link.hash(&mut name);
    let mut x = (seed ^ name.finish()).wrapping_add(packet.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// FNV-1a: the standard library's hasher promises nothing over releases.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A machine on a network: a place to bind sockets.
#[derive(Debug, Clone)]
pub struct Host {
    network: Network,
    ip: IpAddr,
}

impl Host {
    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Binds a socket; port 0 picks one that was never used. It is free again when the socket is dropped.
    ///
    /// # Errors
    /// `AddrInUse` when another socket has the port.
    pub fn bind(&self, port: u16) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut state = self.network.lock();
        let port = if port == 0 {
            let given = state.next_port;
            state.next_port = given.checked_add(1).ok_or_else(|| io::Error::other("no port is left"))?;
            given
        } else {
            port
        };
        let address = SocketAddr::new(self.ip, port);
        if state.sockets.get(&address).is_some_and(|socket| socket.strong_count() > 0) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let socket = Arc::new(Socket::new(address, self.network.clone()));
        state.sockets.insert(address, Arc::downgrade(&socket));
        Ok(socket)
    }
}
