//! A UDP relay between a controller and everybody else, which can be cut one way.

#![allow(dead_code, unreachable_pub, reason = "included by several test binaries, each of which uses a part")]

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A flow that is silent for this long is forgotten: longer than any connection lives in silence.
const FORGET_AFTER: Duration = Duration::from_secs(60);
const DATAGRAM: usize = 65_536;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToController,
    FromController,
}

/// Of whom packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    All,
    /// Of every second one that ever came.
    Half,
}

/// One relay. It ends with this value.
pub struct Relay {
    address: SocketAddr,
    cuts: Arc<Cuts>,
    _forwards: JoinSet<()>,
}

/// Until when nothing passes, milliseconds after `since`.
struct Cuts {
    since: Instant,
    all: [AtomicU64; 2],
    half: [AtomicU64; 2],
}

impl Cuts {
    fn cut(&self, way: Way, whose: Whose, length: Duration) {
        let until = (self.since.elapsed() + length).as_millis();
        let cuts = if whose == Whose::All { &self.all } else { &self.half };
        cuts[way as usize].store(u64::try_from(until).expect("soon"), Ordering::Relaxed);
    }

    fn passes(&self, way: Way, flow: usize) -> bool {
        let now = u64::try_from(self.since.elapsed().as_millis()).expect("soon");
        let open = |cuts: &[AtomicU64; 2]| cuts[way as usize].load(Ordering::Relaxed) <= now;
        open(&self.all) && (flow.is_multiple_of(2) || open(&self.half))
    }
}

impl Relay {
    /// A relay to whoever listens at this port of the machine.
    pub async fn start(controller: u16) -> io::Result<Self> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let address = front.local_addr()?;
        let cuts = Arc::new(Cuts { since: Instant::now(), all: Default::default(), half: Default::default() });
        let mut forwards = JoinSet::new();
        forwards.spawn(forward(front, (Ipv4Addr::LOCALHOST, controller).into(), cuts.clone()));
        Ok(Self { address, cuts, _forwards: forwards })
    }

    /// Where to dial it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops what goes this way, for so long.
    pub fn cut(&self, way: Way, whose: Whose, length: Duration) {
        self.cuts.cut(way, whose, length);
    }

    /// Ends every cut.
    pub fn heal(&self) {
        for way in [Way::ToController, Way::FromController] {
            self.cut(way, Whose::All, Duration::ZERO);
            self.cut(way, Whose::Half, Duration::ZERO);
        }
    }
}

/// Its number, its socket towards the controller, and when it was last used.
type Flow = (usize, Arc<UdpSocket>, Arc<Mutex<Instant>>);

async fn forward(front: Arc<UdpSocket>, controller: SocketAddr, cuts: Arc<Cuts>) {
    let mut flows: BTreeMap<SocketAddr, Flow> = BTreeMap::new();
    let mut came = 0;
    let mut back = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM];
    loop {
        // A port that nobody has any more is told with an error; the next packet is another matter.
        let Ok((length, from)) = front.recv_from(&mut datagram).await else { continue };
        if !flows.contains_key(&from) {
            flows.retain(|_, (_, _, used)| used.lock().expect("nobody panics").elapsed() < FORGET_AFTER);
            while back.try_join_next().is_some() {}
            let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
            if socket.connect(controller).await.is_err() {
                continue;
            }
            let (socket, used) = (Arc::new(socket), Arc::new(Mutex::new(Instant::now())));
            back.spawn(backward(socket.clone(), front.clone(), from, came, cuts.clone(), used.clone()));
            flows.insert(from, (came, socket, used));
            came += 1;
        }
        let (flow, socket, used) = &flows[&from];
        *used.lock().expect("nobody panics") = Instant::now();
        if cuts.passes(Way::ToController, *flow) {
            let _ = socket.send(&datagram[..length]).await;
        }
    }
}

async fn backward(
    socket: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    to: SocketAddr,
    flow: usize,
    cuts: Arc<Cuts>,
    used: Arc<Mutex<Instant>>,
) {
    let mut datagram = vec![0; DATAGRAM];
    while used.lock().expect("nobody panics").elapsed() < FORGET_AFTER {
        let read = tokio::time::timeout(FORGET_AFTER, socket.recv(&mut datagram));
        if let Ok(Ok(length)) = read.await
            && cuts.passes(Way::FromController, flow)
        {
            let _ = front.send_to(&datagram[..length], to).await;
        }
    }
}
