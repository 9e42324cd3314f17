//! One direction of a link: takes packets with the time they come, says when which copies come out.
//!
//! Pure: no clock, no I/O; the caller passes the time, which only grows. In the order a packet meets them: blackouts, the
//! MTU, the queue and its discipline, the rate, loss, duplication, delay with jitter.

mod codel;
mod conditions;
#[cfg(test)]
mod tests;
mod trace;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

pub use conditions::{Bursts, Conditions, Cut, Discipline, Distribution, Jitter, Limit, Packet, Protocol, Rate};
pub use trace::{OPPORTUNITY, Trace, TraceError};

use crate::random::{Draws, Purpose, normal_share};
use codel::Codel;
use trace::Place;

/// A one-way link that carries packets with `T` in them.
#[derive(Debug)]
pub struct Link<T> {
    conditions: Conditions,
    draws: Draws,
    cuts: Vec<(Cut, Option<Duration>)>,
    waiting: VecDeque<InLink<T>>,
    waiting_bytes: usize,
    sending: Option<(InLink<T>, Sending)>,
    codel: Codel,
    // When the recording in `conditions` began.
    trace_from: Duration,
    in_burst: bool,
    // The jitter's autoregression, in standard deviations.
    drift: Option<f64>,
    // Where order is kept, none arrives before this.
    latest_arrival: Duration,
    events: BinaryHeap<Reverse<Due<T>>>,
    scheduled: u64,
    totals: Totals,
    now: Duration,
}

#[derive(Debug)]
struct InLink<T> {
    number: u64,
    packet: Packet,
    came_at: Duration,
    marked: bool,
    payload: T,
}

/// When the packet that is being sent is out.
#[derive(Debug)]
enum Sending {
    At(Duration),
    Opportunities { next: Place, left: usize },
}

/// What happened to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<T> {
    /// When.
    pub at: Duration,
    /// The packet's place on this link, from 0.
    pub number: u64,
    /// Its bytes.
    pub size: usize,
    /// When it was put in.
    pub came_at: Duration,
    /// What.
    pub what: What<T>,
}

/// What can happen to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What<T> {
    /// It comes out.
    Delivered {
        /// What was put in.
        payload: T,
        /// Whether it is the second copy.
        copy: bool,
        /// Whether the queue marked it (CE).
        marked: bool,
    },
    /// It never comes out.
    Dropped(Why),
}

/// Why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// By a blackout.
    Blackout,
    /// It is larger than the MTU.
    TooLarge,
    /// The queue was full.
    QueueFull,
    /// By CoDel.
    Codel,
    /// Lost by chance, alone.
    Loss,
    /// Lost by chance, in a burst.
    Burst,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Blackout, Self::TooLarge, Self::QueueFull, Self::Codel, Self::Loss, Self::Burst];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blackout => "blackout",
            Self::TooLarge => "too-large",
            Self::QueueFull => "queue-full",
            Self::Codel => "codel",
            Self::Loss => "loss",
            Self::Burst => "burst",
        }
    }
}

/// Counts since the link was made. Of packets: `came == delivered - duplicated + dropped + inside`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Put in.
    pub came: u64,
    /// Came out, copies included.
    pub delivered: u64,
    /// Second copies that came out.
    pub duplicated: u64,
    /// Waiting, being sent or under way, second copies not counted.
    pub inside: u64,
    /// Bytes put in.
    pub bytes_came: u64,
    /// Bytes that came out.
    pub bytes_delivered: u64,
    /// By reason, in the order of [`Why::ALL`].
    pub dropped: [u64; Why::ALL.len()],
}

impl Totals {
    /// As JSON, reasons by name.
    pub fn json(&self) -> serde_json::Value {
        let dropped: BTreeMap<_, _> =
            Why::ALL.into_iter().map(|why| (why.name(), self.dropped[why as usize])).collect();
        serde_json::json!({
            "came": self.came, "delivered": self.delivered, "duplicated": self.duplicated, "inside": self.inside,
            "bytes_came": self.bytes_came, "bytes_delivered": self.bytes_delivered, "dropped": dropped,
        })
    }
}

#[derive(Debug)]
struct Due<T> {
    order: (Duration, u64),
    event: Event<T>,
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

impl<T: Clone> Link<T> {
    /// An empty link. Equal seeds and names do the same to the same packets.
    pub fn new(seed: u64, name: &[u8], conditions: Conditions) -> Self {
        Self {
            conditions,
            draws: Draws::new(seed, name),
            cuts: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            sending: None,
            codel: Codel::default(),
            trace_from: Duration::ZERO,
            in_burst: false,
            drift: None,
            latest_arrival: Duration::ZERO,
            events: BinaryHeap::new(),
            scheduled: 0,
            totals: Totals::default(),
            now: Duration::ZERO,
        }
    }

    /// What it does to packets.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// What it did to packets.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Packets that wait, and their bytes.
    pub fn queue(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting_bytes)
    }

    /// Changes what it does. Packets under way still arrive when they were to; one that is being sent goes on at the new
    /// rate, and those that wait stay, even if they are more than the new limit.
    pub fn set(&mut self, now: Duration, conditions: Conditions) {
        self.advance(now);
        if conditions.discipline != self.conditions.discipline {
            self.codel = Codel::default();
        }
        let old = std::mem::replace(&mut self.conditions, conditions);
        if old.rate == self.conditions.rate {
            return;
        }
        self.trace_from = self.now;
        if let Some((packet, sending)) = self.sending.take() {
            let left = match (sending, &old.rate) {
                (Sending::At(at), Rate::Bits(bits)) => bytes_in(at - self.now, *bits).min(packet.packet.size),
                (Sending::Opportunities { left, .. }, _) => left,
                (Sending::At(_), _) => packet.packet.size,
            };
            self.send_now(self.now, packet, left);
            self.advance(now);
        }
    }

    /// Swallows what comes from now on, for so long or until [`Self::heal`]. Packets inside still arrive. The same cut again
    /// replaces the one before.
    pub fn cut(&mut self, now: Duration, cut: Cut, lasts: Option<Duration>) {
        self.advance(now);
        self.cuts.retain(|(other, _)| *other != cut);
        self.cuts.push((cut, lasts.map(|lasts| self.now + lasts)));
    }

    /// Ends all blackouts of a protocol, or all.
    pub fn heal(&mut self, now: Duration, protocol: Option<Protocol>) {
        self.advance(now);
        self.cuts.retain(|(cut, _)| protocol.is_some() && cut.protocol != protocol);
        if protocol.is_none() {
            self.conditions.blackout = false;
        }
    }

    /// Puts a packet in; its number tells it apart in the events.
    pub fn send(&mut self, now: Duration, packet: Packet, payload: T) -> u64 {
        self.advance(now);
        let now = self.now;
        let number = self.totals.came;
        self.totals.came += 1;
        self.totals.bytes_came += packet.size as u64;
        self.totals.inside += 1;
        let packet = InLink { number, packet, came_at: now, marked: false, payload };
        self.cuts.retain(|(_, until)| until.is_none_or(|until| now < until));
        if self.conditions.blackout || self.cuts.iter().any(|(cut, _)| cut.swallows(&packet.packet)) {
            self.drop(now, &packet, Why::Blackout);
        } else if self.conditions.mtu.is_some_and(|mtu| packet.packet.size > mtu) {
            self.drop(now, &packet, Why::TooLarge);
        } else if self.sending.is_none() {
            let size = packet.packet.size;
            self.send_now(now, packet, size);
        } else if self.is_full_for(packet.packet.size) {
            self.drop(now, &packet, Why::QueueFull);
        } else {
            self.waiting_bytes += packet.packet.size;
            self.waiting.push_back(packet);
        }
        number
    }

    /// When something will happen if nothing is put in.
    pub fn next_at(&self) -> Option<Duration> {
        let sent_at = self.sending.as_ref().map(|(_, sending)| self.sent_at(sending));
        let event_at = self.events.peek().map(|Reverse(due)| due.order.0);
        sent_at.into_iter().chain(event_at).min()
    }

    /// The next thing that happened until now. Call it until there is none.
    pub fn poll(&mut self, now: Duration) -> Option<Event<T>> {
        self.advance(now);
        if self.events.peek()?.0.order.0 > self.now {
            return None;
        }
        let Reverse(Due { event, .. }) = self.events.pop()?;
        if let What::Delivered { copy, .. } = event.what {
            self.totals.delivered += 1;
            self.totals.bytes_delivered += event.size as u64;
            self.totals.duplicated += u64::from(copy);
            self.totals.inside -= u64::from(!copy);
        }
        Some(event)
    }

    /// Sends what the rate allows until now.
    pub fn advance(&mut self, now: Duration) {
        while let Some((packet, sending)) = self.sending.take() {
            let at = self.sent_at(&sending);
            if at > now {
                self.sending = Some((packet, sending));
                break;
            }
            self.now = at;
            match sending {
                Sending::At(_) => {
                    self.on_wire(at, packet);
                    self.send_next(at);
                }
                Sending::Opportunities { next, left } => self.use_opportunity(at, next, packet, left),
            }
        }
        self.now = self.now.max(now);
    }

    fn sent_at(&self, sending: &Sending) -> Duration {
        match (sending, &self.conditions.rate) {
            (Sending::Opportunities { next, .. }, Rate::Trace(trace)) => self.trace_from + trace.at(*next),
            (Sending::At(at), _) => *at,
            // `set` leaves no such packet.
            (Sending::Opportunities { .. }, _) => self.now,
        }
    }

    fn is_full_for(&self, size: usize) -> bool {
        let bytes = match self.conditions.queue {
            Limit::Packets(packets) => return self.waiting.len() >= packets,
            Limit::Bytes(bytes) => bytes,
            Limit::Time(time) => self.conditions.rate.mean().map_or(usize::MAX, |bits| bytes_in(time, bits)),
        };
        self.waiting_bytes + size > bytes
    }

    fn send_next(&mut self, now: Duration) {
        if let Some(packet) = self.dequeue(now) {
            let size = packet.packet.size;
            self.send_now(now, packet, size);
        }
    }

    fn send_now(&mut self, now: Duration, packet: InLink<T>, left: usize) {
        match &self.conditions.rate {
            Rate::Unlimited => {
                self.on_wire(now, packet);
                while let Some(next) = self.dequeue(now) {
                    self.on_wire(now, next);
                }
            }
            Rate::Bits(bits) => self.sending = Some((packet, Sending::At(now + time_for(left, *bits)))),
            Rate::Trace(trace) => {
                let next = trace.after(now - self.trace_from);
                self.sending = Some((packet, Sending::Opportunities { next, left }));
            }
        }
    }

    /// An opportunity serves packet after packet, the last one maybe in part.
    fn use_opportunity(&mut self, at: Duration, place: Place, packet: InLink<T>, left: usize) {
        let Rate::Trace(trace) = self.conditions.rate.clone() else { return self.on_wire(at, packet) };
        let (mut packet, mut left, mut budget) = (packet, left, OPPORTUNITY);
        while left <= budget {
            budget -= left;
            self.on_wire(at, packet);
            let Some(next) = (budget > 0).then(|| self.dequeue(at)).flatten() else {
                // The next packet to come, or that waits, starts with a whole opportunity.
                if let Some(next) = self.dequeue(at) {
                    let size = next.packet.size;
                    self.sending = Some((next, Sending::Opportunities { next: trace.next(place), left: size }));
                }
                return;
            };
            left = next.packet.size;
            packet = next;
        }
        self.sending = Some((packet, Sending::Opportunities { next: trace.next(place), left: left - budget }));
    }

    fn dequeue(&mut self, now: Duration) -> Option<InLink<T>> {
        let Discipline::Codel { ecn } = self.conditions.discipline else {
            return take(&mut self.waiting, &mut self.waiting_bytes);
        };
        let mut codel = std::mem::take(&mut self.codel);
        let (waiting, bytes) = (&mut self.waiting, &mut self.waiting_bytes);
        let mut dropped = Vec::new();
        let next = codel.dequeue(
            now,
            || {
                let packet = take(waiting, bytes)?;
                let waited = now - packet.came_at;
                Some((packet, waited, *bytes))
            },
            |mut packet| {
                if ecn && packet.packet.markable {
                    packet.marked = true;
                    return Some(packet);
                }
                dropped.push(packet);
                None
            },
        );
        self.codel = codel;
        for packet in dropped {
            self.drop(now, &packet, Why::Codel);
        }
        next
    }

    fn on_wire(&mut self, now: Duration, packet: InLink<T>) {
        if let Some(why) = self.lost(packet.number) {
            return self.drop(now, &packet, why);
        }
        let InLink { number, packet: Packet { size, .. }, came_at, marked, payload } = packet;
        let twice = self.draws.unit(number, Purpose::Duplicate) < self.conditions.duplicate;
        let copy = twice.then(|| payload.clone());
        let jitters = [(Purpose::Jitter, Purpose::JitterAngle), (Purpose::CopyJitter, Purpose::CopyJitterAngle)];
        for ((payload, copy), purposes) in [(Some(payload), false), (copy, true)].into_iter().zip(jitters) {
            let Some(payload) = payload else { continue };
            let at = self.arrival(now, number, purposes);
            self.schedule(Event { at, number, size, came_at, what: What::Delivered { payload, copy, marked } });
        }
    }

    fn lost(&mut self, number: u64) -> Option<Why> {
        let draws = &self.draws;
        if let Some(bursts) = self.conditions.bursts {
            let turn = if self.in_burst { bursts.leave } else { bursts.enter };
            self.in_burst ^= draws.unit(number, Purpose::Burst) < turn;
            let share = if self.in_burst { bursts.bad } else { bursts.good };
            if draws.unit(number, Purpose::BurstLoss) < share {
                return Some(Why::Burst);
            }
        }
        (draws.unit(number, Purpose::Loss) < self.conditions.loss).then_some(Why::Loss)
    }

    fn arrival(&mut self, now: Duration, number: u64, purposes: (Purpose, Purpose)) -> Duration {
        let jitter = self.conditions.jitter;
        let mut delay = self.conditions.delay;
        if !jitter.size.is_zero() {
            let draw = self.draws.normal(number, purposes.0, purposes.1);
            let correlation = jitter.correlation;
            let drift = match self.drift {
                Some(before) => correlation * before + (1.0 - correlation * correlation).sqrt() * draw,
                None => draw,
            };
            self.drift = Some(drift);
            let sizes = match jitter.distribution {
                Distribution::Normal => drift,
                Distribution::Uniform => 2.0 * normal_share(drift) - 1.0,
                Distribution::Exponential => -libm::log(normal_share(-drift)),
            };
            let nanos = delay.as_nanos() as f64 + sizes * jitter.size.as_nanos() as f64;
            delay = Duration::from_nanos(nanos.max(0.0) as u64);
        }
        let at = now + delay;
        if jitter.reorder {
            return at;
        }
        self.latest_arrival = self.latest_arrival.max(at);
        self.latest_arrival
    }

    fn drop(&mut self, at: Duration, packet: &InLink<T>, why: Why) {
        self.totals.inside -= 1;
        self.totals.dropped[why as usize] += 1;
        let (number, size, came_at) = (packet.number, packet.packet.size, packet.came_at);
        self.schedule(Event { at, number, size, came_at, what: What::Dropped(why) });
    }

    fn schedule(&mut self, event: Event<T>) {
        self.scheduled += 1;
        self.events.push(Reverse(Due { order: (event.at, self.scheduled), event }));
    }
}

/// Bytes of the headers of IP and UDP on the way to an address.
pub fn udp_headers(remote: IpAddr) -> usize {
    if remote.is_ipv4() { 28 } else { 48 }
}

fn take<T>(waiting: &mut VecDeque<InLink<T>>, bytes: &mut usize) -> Option<InLink<T>> {
    let packet = waiting.pop_front()?;
    *bytes -= packet.packet.size;
    Some(packet)
}

/// How long bytes take, rounded up: the rate is never exceeded.
fn time_for(bytes: usize, bits_per_second: u64) -> Duration {
    let nanos = (bytes as u128 * 8 * 1_000_000_000).div_ceil(u128::from(bits_per_second.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How many bytes go in a time, rounded up.
fn bytes_in(time: Duration, bits_per_second: u64) -> usize {
    let bytes = (time.as_nanos() * u128::from(bits_per_second)).div_ceil(8_000_000_000);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
