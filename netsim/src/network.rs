//! Hosts, the NATs before some of them, and the paths between them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::{EcnCodepoint, Transmit};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::command::{Edge, Way};
use crate::link::{Conditions, Packet, Protocol, Totals, What, udp_headers};
use crate::nat::{Nat, Table};
use crate::path::{Output, Path};
use crate::record::Record;
use crate::scenario::Scenario;
use crate::socket::{Inbox, Received, Socket};
use crate::timer;

/// First port given to a socket that asks for any.
const EPHEMERAL: u16 = 49152;

/// A network. Clones share it.
///
/// Time is tokio's, of the runtime in which packets are sent. Arrivals wait for tokio's timers, which have millisecond steps.
#[derive(Debug, Clone)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    seed: u64,
    started_at: Option<Instant>,
    // By both addresses, the lesser first.
    paths: BTreeMap<(IpAddr, IpAddr), Between>,
    public: BTreeMap<IpAddr, Place>,
    hosts: Vec<Attached>,
    nats: Vec<Router>,
    sockets: BTreeMap<(usize, u16), Weak<Inbox>>,
    next_port: u16,
    not_let_in: u64,
    record: Option<Record>,
    // Carries what is due; what it waits for.
    pump: Option<AbortHandle>,
    armed_for: Option<Duration>,
}

/// What lies between two addresses.
#[derive(Debug)]
struct Between {
    near: IpAddr,
    path: Path<Datagram>,
    // When its time 0 was.
    since: Duration,
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Host(usize),
    Nat(usize),
}

#[derive(Debug)]
struct Attached {
    ip: IpAddr,
    behind: Option<usize>,
}

#[derive(Debug)]
struct Router {
    public: IpAddr,
    behind: Option<usize>,
    inside: BTreeMap<IpAddr, Place>,
    table: Table,
}

#[derive(Debug, Clone)]
struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    // Behind which NAT the destination is looked for.
    behind: Option<usize>,
    ecn: Option<EcnCodepoint>,
    bytes: Arc<[u8]>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

async fn pump(shared: Weak<Shared>, changed: Arc<Notify>) {
    loop {
        let next = {
            let Some(shared) = shared.upgrade() else { return };
            let mut state = shared.lock();
            state.carry();
            state.armed_for = state.next_at();
            state.armed_for.map(|next| state.start() + next)
        };
        timer::changed_or(next, &changed).await;
    }
}

impl Network {
    /// A network without hosts. Equal seeds do the same to the same packets.
    pub fn new(seed: u64) -> Self {
        let state = State {
            seed,
            started_at: None,
            paths: BTreeMap::new(),
            public: BTreeMap::new(),
            hosts: Vec::new(),
            nats: Vec::new(),
            sockets: BTreeMap::new(),
            next_port: EPHEMERAL,
            not_let_in: 0,
            record: None,
            pump: None,
            armed_for: None,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Arc::default() }))
    }

    /// The host with this address, now.
    pub fn host(&self, ip: IpAddr) -> Host {
        self.host_behind(None, ip)
    }

    /// A NAT with this public address.
    pub fn nat(&self, public: IpAddr, nat: Nat) -> NatHandle {
        self.nat_behind(None, public, nat)
    }

    /// Sets what happens to packets on their way from one address to another. Of a host behind a NAT that is the NAT's.
    pub fn set_one_way(&self, from: IpAddr, to: IpAddr, conditions: Conditions) {
        self.change(from, to, |path, now, way| path.link_mut(way).set(now, conditions));
    }

    /// Sets both ways between two addresses.
    pub fn set(&self, a: IpAddr, b: IpAddr, conditions: Conditions) {
        self.set_one_way(a, b, conditions.clone());
        self.set_one_way(b, a, conditions);
    }

    /// Begins or ends a blackout between two addresses. Packets under way still arrive.
    pub fn set_blackout(&self, a: IpAddr, b: IpAddr, blackout: bool) {
        for (from, to) in [(a, b), (b, a)] {
            self.change(from, to, |path, now, way| {
                let conditions = Conditions { blackout, ..path.link(way).conditions().clone() };
                path.link_mut(way).set(now, conditions);
            });
        }
    }

    /// Lets a scenario happen between two addresses from now on, instead of what was set; what is under way is lost. Its
    /// `rebind` is done to the near end: `rebind port` and `nat` if that is a NAT, `rebind address` to whatever it is.
    pub fn play(&self, near: IpAddr, far: IpAddr, scenario: &Scenario) {
        let mut state = self.0.lock();
        let since = state.now();
        let path = Path::new(&format!("{near} {far}"), scenario);
        state.paths.insert(key(near, far), Between { near, path, since });
        drop(state);
        self.0.changed.notify_one();
    }

    /// Counts of what happened on the way from one address to another.
    pub fn totals(&self, from: IpAddr, to: IpAddr) -> Totals {
        let mut totals = Totals::default();
        self.change(from, to, |path, _, way| totals = path.link(way).totals());
        totals
    }

    /// Packets that NATs did not let in.
    pub fn not_let_in(&self) -> u64 {
        self.0.lock().not_let_in
    }

    /// Writes down what happens to every packet from now on.
    pub fn record(&self, record: Record) {
        self.0.lock().record = Some(record);
    }

    fn host_behind(&self, behind: Option<usize>, ip: IpAddr) -> Host {
        let mut state = self.0.lock();
        let id = match state.places(behind).get(&ip) {
            Some(Place::Host(id)) => *id,
            // An address that was a NAT's is a host's from now on.
            _ => {
                state.hosts.push(Attached { ip, behind });
                let id = state.hosts.len() - 1;
                state.places(behind).insert(ip, Place::Host(id));
                id
            }
        };
        Host { network: self.clone(), id }
    }

    fn nat_behind(&self, behind: Option<usize>, public: IpAddr, nat: Nat) -> NatHandle {
        let mut state = self.0.lock();
        let id = state.nats.len();
        let table = Table::new(state.seed.wrapping_add(id as u64), nat);
        state.nats.push(Router { public, behind, inside: BTreeMap::new(), table });
        state.places(behind).insert(public, Place::Nat(id));
        NatHandle { network: self.clone(), id }
    }

    fn change(&self, from: IpAddr, to: IpAddr, change: impl FnOnce(&mut Path<Datagram>, Duration, Way)) {
        let mut state = self.0.lock();
        let now = state.now();
        let between = state.between(from, to);
        let way = between.way(from);
        change(&mut between.path, now.saturating_sub(between.since), way);
        drop(state);
        self.0.changed.notify_one();
    }

    pub(crate) fn send(&self, host: usize, port: u16, transmit: &Transmit<'_>) {
        let mut state = self.0.lock();
        // Quinn's datagrams of one call are of one size, the last one maybe smaller.
        for bytes in transmit.contents.chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1)) {
            state.send(host, port, transmit, bytes);
        }
        state.carry();
        if state.pump.as_ref().is_none_or(AbortHandle::is_finished) {
            let pump = tokio::spawn(pump(Arc::downgrade(&self.0), self.0.changed.clone()));
            state.pump = Some(pump.abort_handle());
            return;
        }
        let next = state.next_at();
        if next.is_some_and(|next| state.armed_for.is_none_or(|armed| next < armed)) {
            state.armed_for = next;
            self.0.changed.notify_one();
        }
    }

    pub(crate) fn address(&self, host: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.0.lock().hosts[host].ip, port)
    }

    pub(crate) fn unbind(&self, host: usize, port: u16, inbox: &Arc<Inbox>) {
        let mut state = self.0.lock();
        // The port may have a new owner already.
        if state.sockets.get(&(host, port)).is_some_and(|owner| owner.as_ptr() == Arc::as_ptr(inbox)) {
            state.sockets.remove(&(host, port));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    (a.min(b), a.max(b))
}

impl Between {
    fn way(&self, from: IpAddr) -> Way {
        if from == self.near { Way::Up } else { Way::Down }
    }
}

impl State {
    fn start(&mut self) -> Instant {
        *self.started_at.get_or_insert_with(Instant::now)
    }

    fn now(&mut self) -> Duration {
        self.start().elapsed()
    }

    fn places(&mut self, behind: Option<usize>) -> &mut BTreeMap<IpAddr, Place> {
        match behind {
            Some(nat) => &mut self.nats[nat].inside,
            None => &mut self.public,
        }
    }

    fn between(&mut self, from: IpAddr, to: IpAddr) -> &mut Between {
        let seed = self.seed;
        self.paths.entry(key(from, to)).or_insert_with(|| {
            let mut path = Path::with_seed(seed, &format!("{from} {to}"), &Scenario::default());
            for way in Way::BOTH {
                path.link_mut(way).set(Duration::ZERO, Conditions::default());
            }
            Between { near: from, path, since: Duration::ZERO }
        })
    }

    fn next_at(&self) -> Option<Duration> {
        self.paths.values().filter_map(|between| Some(between.since + between.path.next_at()?)).min()
    }

    fn send(&mut self, host: usize, port: u16, transmit: &Transmit<'_>, bytes: &[u8]) {
        let now = self.now();
        let Attached { ip, mut behind } = self.hosts[host];
        // From an address it no longer has: as good as unsent.
        if transmit.src_ip.is_some_and(|source| source != ip) {
            return;
        }
        let (mut from, to) = (SocketAddr::new(ip, port), transmit.destination);
        while let Some(nat) = behind {
            let router = &mut self.nats[nat];
            if router.inside.contains_key(&to.ip()) {
                break;
            }
            if to.ip() == router.public && !router.table.nat().hairpin {
                return;
            }
            let Some(port) = router.table.outbound(now, from, to) else { return };
            from = SocketAddr::new(router.public, port);
            behind = router.behind;
        }
        let markable = transmit.ecn.is_some();
        let packet = Packet { protocol: Protocol::Udp, size: bytes.len() + udp_headers(to.ip()), markable };
        let datagram = Datagram { from, to, behind, ecn: transmit.ecn, bytes: bytes.into() };
        let between = self.between(from.ip(), to.ip());
        let way = between.way(from.ip());
        between.path.send(now.saturating_sub(between.since), way, packet, datagram);
    }

    fn carry(&mut self) {
        let now = self.now();
        let due: Vec<_> = self.paths.keys().copied().collect();
        for key in due {
            while let Some(between) = self.paths.get_mut(&key) {
                let (near, since) = (between.near, between.since);
                let Some(output) = between.path.poll(now.saturating_sub(since)) else { break };
                match output {
                    Output::Packet(way, event) => {
                        if let Some(record) = &self.record {
                            let far = if near == key.0 { key.1 } else { key.0 };
                            record.add(&format!("{near} {far}"), way, &event);
                        }
                        if let What::Delivered { payload, marked, .. } = event.what {
                            self.deliver(now, payload, marked);
                        }
                    }
                    Output::Edge(_, edge) => self.change_address(near, edge),
                }
            }
        }
    }

    fn deliver(&mut self, now: Duration, datagram: Datagram, marked: bool) {
        let Datagram { from, mut to, mut behind, ecn, bytes } = datagram;
        loop {
            // Nobody there: a network without ICMP.
            match self.places(behind).get(&to.ip()).copied() {
                None => return,
                Some(Place::Nat(nat)) => match self.nats[nat].table.inbound(now, to.port(), from) {
                    Some(inside) => (to, behind) = (inside, Some(nat)),
                    None => {
                        self.not_let_in += 1;
                        return;
                    }
                },
                Some(Place::Host(host)) => {
                    let Some(inbox) = self.sockets.get(&(host, to.port())).and_then(Weak::upgrade) else { return };
                    let ecn = if marked { Some(EcnCodepoint::Ce) } else { ecn };
                    return inbox.deliver(Received { from, to: to.ip(), ecn, bytes });
                }
            }
        }
    }

    fn change_address(&mut self, near: IpAddr, edge: Edge) {
        let place = self.public.get(&near).copied();
        match (edge, place) {
            (Edge::RebindAddress, Some(place)) => {
                let taken = |ip: &IpAddr| self.public.contains_key(ip);
                if let Some(free) = (1..=u8::MAX).map(|step| moved(near, step)).find(|ip| !taken(ip)) {
                    self.readdress(place, free);
                }
            }
            (Edge::RebindPort, Some(Place::Nat(nat))) => self.nats[nat].table.rebind(),
            (Edge::Nat(Some(new)), Some(Place::Nat(nat))) => self.nats[nat].table.set(new),
            _ => {}
        }
    }

    /// Gives a host or a NAT another address. What lies before it stays; what is under way to the old one is lost.
    fn readdress(&mut self, place: Place, new: IpAddr) {
        let (old, behind) = match place {
            Place::Host(host) => (std::mem::replace(&mut self.hosts[host].ip, new), self.hosts[host].behind),
            Place::Nat(nat) => {
                self.nats[nat].table.rebind();
                (std::mem::replace(&mut self.nats[nat].public, new), self.nats[nat].behind)
            }
        };
        self.places(behind).remove(&old);
        self.places(behind).insert(new, place);
        let mine: Vec<_> = self.paths.keys().copied().filter(|(a, b)| *a == old || *b == old).collect();
        for (a, b) in mine {
            let other = if a == old { b } else { a };
            if let Some(mut between) = self.paths.remove(&(a, b)) {
                if between.near == old {
                    between.near = new;
                }
                self.paths.insert(key(new, other), between);
            }
        }
    }
}

/// An address some steps further.
fn moved(ip: IpAddr, step: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip).wrapping_add(u32::from(step))).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip).wrapping_add(u128::from(step))).into()),
    }
}

/// A machine on a network: a place to bind sockets.
#[derive(Debug, Clone)]
pub struct Host {
    network: Network,
    id: usize,
}

impl Host {
    /// Its address, now.
    pub fn ip(&self) -> IpAddr {
        self.network.0.lock().hosts[self.id].ip
    }

    /// Gives it another address; its sockets, bound to any, go on from there.
    pub fn move_to(&self, ip: IpAddr) {
        self.network.0.lock().readdress(Place::Host(self.id), ip);
    }

    /// Binds a socket; port 0 picks one that was never used. It is free again when the socket is dropped.
    ///
    /// # Errors
    /// `AddrInUse` when another socket has the port.
    pub fn bind(&self, port: u16) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut state = self.network.0.lock();
        let port = if port == 0 {
            let given = state.next_port;
            state.next_port = given.checked_add(1).ok_or_else(|| io::Error::other("no port is left"))?;
            given
        } else {
            port
        };
        let place = (self.id, port);
        if state.sockets.get(&place).is_some_and(|inbox| inbox.strong_count() > 0) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let inbox = Arc::default();
        state.sockets.insert(place, Arc::downgrade(&inbox));
        Ok(Arc::new(Socket::new(self.id, port, self.network.clone(), inbox)))
    }
}

/// A NAT on a network.
#[derive(Debug, Clone)]
pub struct NatHandle {
    network: Network,
    id: usize,
}

impl NatHandle {
    /// A host behind it.
    pub fn host(&self, ip: IpAddr) -> Host {
        self.network.host_behind(Some(self.id), ip)
    }

    /// A NAT behind it, with an address there.
    pub fn nat(&self, ip: IpAddr, nat: Nat) -> Self {
        self.network.nat_behind(Some(self.id), ip, nat)
    }

    /// Its public address, now.
    pub fn ip(&self) -> IpAddr {
        self.network.0.lock().nats[self.id].public
    }

    /// Forgets its mappings, as after a restart.
    pub fn rebind(&self) {
        self.network.0.lock().nats[self.id].table.rebind();
    }

    /// Gives it another public address, and forgets its mappings.
    pub fn move_to(&self, ip: IpAddr) {
        self.network.0.lock().readdress(Place::Nat(self.id), ip);
    }
}
