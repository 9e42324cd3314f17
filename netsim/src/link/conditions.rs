//! What a link does to packets: the parameters, without any state.

use std::sync::Arc;
use std::time::Duration;

use super::trace::Trace;

/// What one direction of a link does to packets.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// From leaving the queue to arrival, without jitter.
    pub delay: Duration,
    /// How much the delay varies.
    pub jitter: Jitter,
    /// Share of packets that vanish, each for itself, 0 to 1. They use the link all the same.
    pub loss: f64,
    /// Losses that come in bursts, beside `loss`.
    pub bursts: Option<Bursts>,
    /// Share of packets that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// How fast packets leave.
    pub rate: Rate,
    /// How many wait while the link is busy. Without a rate none ever wait.
    pub queue: Limit,
    /// Which are dropped while they wait.
    pub discipline: Discipline,
    /// Packets larger than this many bytes are dropped, silently.
    pub mtu: Option<usize>,
    /// Whether every packet vanishes. [`Link::cut`](super::Link::cut) chooses more finely.
    pub blackout: bool,
}

impl Conditions {
    /// A link that does nothing to packets.
    pub const CLEAR: Self = Self {
        delay: Duration::ZERO,
        jitter: Jitter::NONE,
        loss: 0.0,
        bursts: None,
        duplicate: 0.0,
        rate: Rate::Unlimited,
        queue: Limit::Packets(1000),
        discipline: Discipline::DropTail,
        mtu: None,
        blackout: false,
    };
}

impl Default for Conditions {
    /// A millisecond, nothing lost.
    fn default() -> Self {
        Self { delay: Duration::from_millis(1), ..Self::CLEAR }
    }
}

/// Variation of the delay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter {
    /// Its size; what that means is the distribution's.
    pub size: Duration,
    /// Its shape.
    pub distribution: Distribution,
    /// How much a packet's variation is like that of the packet before, 0 to 1 (1 excluded). The shape stays what it is: a
    /// Gaussian first-order autoregression is mapped to it.
    pub correlation: f64,
    /// Whether a packet may overtake another. Where not, it arrives no sooner than the one before.
    pub reorder: bool,
}

impl Jitter {
    /// No variation, and order kept.
    pub const NONE: Self =
        Self { size: Duration::ZERO, distribution: Distribution::Uniform, correlation: 0.0, reorder: false };
}

/// The shape of a variation of size `s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Anything from `-s` to `+s`.
    Uniform,
    /// Normal, with standard deviation `s`.
    Normal,
    /// Only later, by `s` on average: the long tail of retries.
    Exponential,
}

/// The Gilbert-Elliott model (Gilbert 1960, Elliott 1963): two states, entered and left with some chance at every packet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// Chance that a packet finds the good state turned bad.
    pub enter: f64,
    /// Chance that a packet finds the bad state turned good; `1 / leave` packets are a burst's mean length.
    pub leave: f64,
    /// Share lost in the bad state.
    pub bad: f64,
    /// Share lost in the good state.
    pub good: f64,
}

impl Bursts {
    /// The share lost in the long run.
    pub fn mean_loss(&self) -> f64 {
        (self.enter * self.bad + self.leave * self.good) / (self.enter + self.leave)
    }
}

/// How fast packets leave a queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Rate {
    /// At once.
    Unlimited,
    /// This many bits a second.
    Bits(u64),
    /// When a recorded link could deliver.
    Trace(Arc<Trace>),
}

impl Rate {
    /// Bits a second in the long run.
    pub fn mean(&self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Bits(bits) => Some(*bits),
            Self::Trace(trace) => Some(trace.mean_rate()),
        }
    }
}

/// How much a queue holds; the packet being sent is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Packets.
    Packets(usize),
    /// Bytes.
    Bytes(usize),
    /// As many bytes as the mean rate sends in this time.
    Time(Duration),
}

/// Which packets of a queue are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// Those that find it full.
    DropTail,
    /// Those, and whichever CoDel (RFC 8289) drops as they leave.
    Codel {
        /// Whether packets that can carry a mark are marked instead.
        ecn: bool,
    },
}

/// Which packets a blackout swallows: all, unless narrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// Only of this protocol.
    pub protocol: Option<Protocol>,
    /// Only larger than this many bytes.
    pub over: Option<usize>,
}

impl Cut {
    pub(crate) fn swallows(&self, packet: &Packet) -> bool {
        self.protocol.is_none_or(|protocol| protocol == packet.protocol)
            && self.over.is_none_or(|over| packet.size > over)
    }
}

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A datagram.
    Udp,
    /// A segment of a stream.
    Tcp,
    /// Neither.
    Other,
}

/// What a link sees of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub protocol: Protocol,
    /// Its bytes.
    pub size: usize,
    /// Whether it can carry a mark of congestion (ECT).
    pub markable: bool,
}

impl Packet {
    /// A datagram without ECN.
    pub fn udp(size: usize) -> Self {
        Self { protocol: Protocol::Udp, size, markable: false }
    }
}
