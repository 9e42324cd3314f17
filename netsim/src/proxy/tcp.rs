//! A stream over a link that loses packets: what TCP would do, so far as it shows in time. Pure.
//!
//! Slow start and additive increase, a window halved by a loss (RFC 5681, NewReno's partial acknowledgements of RFC 6582), a
//! retransmission timer by RFC 6298 that doubles. No selective acknowledgements: a kernel's TCP recovers a little sooner
//! from several losses in one window. For measurements of TCP itself use the bridge, with the kernel's own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// Payload of a full segment: Ethernet's 1500 without the headers of IPv4 and TCP with time stamps.
pub(crate) const SEGMENT: usize = 1448;
/// Headers of a segment.
pub(crate) const HEADERS: usize = 52;
/// Least and greatest time until a segment is sent again (Linux's `TCP_RTO_MIN` and `TCP_RTO_MAX`).
const TIMER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(120));
/// The first timer, before a round trip was measured (RFC 6298).
const FIRST_TIMER: Duration = Duration::from_secs(1);
const FIRST_WINDOW: f64 = 10.0;
/// About 1.5 MB under way.
const LARGEST_WINDOW: f64 = 1024.0;

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its first byte's place. The opening and the end of a stream have a place as well.
    pub(crate) at: u64,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Open,
    Bytes(Box<[u8]>),
    End,
}

impl Segment {
    fn end(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => self.at + bytes.len() as u64,
            Content::Open | Content::End => self.at + 1,
        }
    }

    pub(crate) fn size(&self) -> usize {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() + HEADERS,
            Content::Open | Content::End => HEADERS,
        }
    }
}

/// The sending end of one direction.
#[derive(Debug)]
pub(crate) struct Sender {
    next: u64,
    unacknowledged: VecDeque<Sent>,
    // In segments.
    window: f64,
    threshold: f64,
    repeated_acks: u32,
    // Set while what was lost together is repaired.
    repairing: Option<Repair>,
    round_trip: Option<(f64, f64)>,
    timer: Duration,
    timer_at: Option<Duration>,
}

#[derive(Debug)]
struct Sent {
    segment: Segment,
    at: Duration,
    again: bool,
}

impl Sender {
    pub(crate) fn new() -> Self {
        Self {
            next: 0,
            unacknowledged: VecDeque::new(),
            window: FIRST_WINDOW,
            threshold: LARGEST_WINDOW,
            repeated_acks: 0,
            repairing: None,
            round_trip: None,
            timer: FIRST_TIMER,
            timer_at: None,
        }
    }

    /// How many more segments may be sent.
    pub(crate) fn room(&self) -> usize {
        // Nothing before the opening is acknowledged.
        let opening = self.unacknowledged.front().is_some_and(|sent| sent.segment.content == Content::Open);
        if opening { 0 } else { (self.window as usize).saturating_sub(self.unacknowledged.len()) }
    }

    /// Takes what is to be sent, at most a segment of it.
    pub(crate) fn push(&mut self, now: Duration, content: Content) -> Segment {
        let segment = Segment { at: self.next, content };
        self.next = segment.end();
        self.unacknowledged.push_back(Sent { segment: segment.clone(), at: now, again: false });
        self.timer_at.get_or_insert(now + self.timer);
        segment
    }

    /// Hears that everything before `until` is there; gives back what is to be sent again.
    pub(crate) fn acknowledged(&mut self, now: Duration, until: u64) -> Vec<Segment> {
        let Some(first) = self.unacknowledged.front().map(|sent| sent.segment.at) else { return Vec::new() };
        if until <= first {
            self.repeated_acks += u32::from(until == first);
            if self.repeated_acks < 3 || self.repairing.is_some() {
                return Vec::new();
            }
            self.threshold = (self.unacknowledged.len() as f64 / 2.0).max(2.0);
            self.window = self.threshold;
            self.repairing = Some(Repair { until: self.next, sent_again: None });
            return self.again(now, 0..1);
        }
        self.repeated_acks = 0;
        let before = self.unacknowledged.len();
        while self.unacknowledged.front().is_some_and(|sent| sent.segment.end() <= until) {
            let Some(sent) = self.unacknowledged.pop_front() else { break };
            if !sent.again {
                self.measured(now.saturating_sub(sent.at));
            }
            if self.repairing.as_ref().is_none_or(|repair| repair.sent_again.is_some()) {
                let step = if self.window < self.threshold { 1.0 } else { 1.0 / self.window };
                self.window = (self.window + step).min(LARGEST_WINDOW);
            }
        }
        self.timer_at = (!self.unacknowledged.is_empty()).then_some(now + self.timer);
        let gone = before - self.unacknowledged.len();
        let (window, left) = (self.window as usize, self.unacknowledged.len());
        let range = match &mut self.repairing {
            Some(repair) if repair.until > until => match &mut repair.sent_again {
                None => 0..1,
                Some(sent) => {
                    let from = sent.saturating_sub(gone);
                    *sent = window.min(left).max(from);
                    from..*sent
                }
            },
            _ => {
                self.repairing = None;
                return Vec::new();
            }
        };
        self.again(now, range)
    }

    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.timer_at
    }

    /// What is to be sent again because nothing was heard for too long.
    pub(crate) fn timed_out(&mut self, now: Duration) -> Option<Segment> {
        if self.timer_at? > now {
            return None;
        }
        self.threshold = (self.unacknowledged.len() as f64 / 2.0).max(2.0);
        self.window = 1.0;
        self.repairing = Some(Repair { until: self.next, sent_again: Some(1) });
        self.repeated_acks = 0;
        self.timer = (self.timer * 2).min(TIMER.1);
        self.timer_at = Some(now + self.timer);
        self.again(now, 0..1).pop()
    }

    fn again(&mut self, now: Duration, range: Range<usize>) -> Vec<Segment> {
        let sent = self.unacknowledged.range_mut(range);
        sent.map(|sent| {
            (sent.again, sent.at) = (true, now);
            sent.segment.clone()
        })
        .collect()
    }

    fn measured(&mut self, round_trip: Duration) {
        let sample = round_trip.as_secs_f64();
        let (smooth, variation) = match self.round_trip {
            Some((smooth, variation)) => {
                (0.875 * smooth + 0.125 * sample, 0.75 * variation + 0.25 * (smooth - sample).abs())
            }
            None => (sample, sample / 2.0),
        };
        self.round_trip = Some((smooth, variation));
        self.timer = Duration::from_secs_f64(smooth + 4.0 * variation).clamp(TIMER.0, TIMER.1);
    }
}

#[derive(Debug)]
struct Repair {
    // It is over when everything before this is acknowledged.
    until: u64,
    // After a time-out all count as lost: so many were sent again, from the first on, as the window allows. Otherwise one
    // is, at every acknowledgement.
    sent_again: Option<usize>,
}

/// The receiving end of one direction.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    next: u64,
    early: BTreeMap<u64, Segment>,
}

impl Receiver {
    /// Takes a segment; gives back what is now in order, and acknowledges all before [`Self::next`].
    pub(crate) fn take(&mut self, segment: Segment) -> Vec<Content> {
        if segment.at >= self.next {
            self.early.insert(segment.at, segment);
        }
        let mut ready = Vec::new();
        while let Some(segment) = self.early.remove(&self.next) {
            self.next = segment.end();
            ready.push(segment.content);
        }
        ready
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::{Conditions, Link, Packet, Protocol, Rate, What};

    const MS: Duration = Duration::from_millis(1);

    #[derive(Clone)]
    enum Carried {
        Data(Segment),
        Ack(u64),
    }

    /// Sends `bytes` over two links; gives back what arrived, when the end did, and how many segments that took.
    fn transfer(seed: u64, up: Conditions, down: Conditions, bytes: &[u8]) -> (Vec<u8>, Duration, u64) {
        let mut links = [Link::new(seed, b"up", up), Link::new(seed, b"down", down)];
        let (mut sender, mut receiver) = (Sender::new(), Receiver::default());
        let mut rest: VecDeque<Content> = bytes.chunks(SEGMENT).map(|part| Content::Bytes(part.into())).collect();
        rest.push_back(Content::End);
        let (mut now, mut arrived) = (Duration::ZERO, Vec::new());
        let tcp = |size| Packet { protocol: Protocol::Tcp, size, markable: false };
        let opening = sender.push(now, Content::Open);
        links[0].send(now, tcp(opening.size()), Carried::Data(opening));
        loop {
            while sender.room() > 0 && !rest.is_empty() {
                let segment = sender.push(now, rest.pop_front().unwrap());
                links[0].send(now, tcp(segment.size()), Carried::Data(segment));
            }
            now = links.iter().filter_map(Link::next_at).chain(sender.next_at()).min().expect("the stream goes on");
            assert!(now < Duration::from_secs(36_000), "the stream hangs");
            let mut again: Vec<_> = sender.timed_out(now).into_iter().collect();
            for way in 0..2 {
                while let Some(event) = links[way].poll(now) {
                    match event.what {
                        What::Delivered { payload: Carried::Data(segment), .. } => {
                            for content in receiver.take(segment) {
                                match content {
                                    Content::Open => {}
                                    Content::Bytes(bytes) => arrived.extend(bytes),
                                    Content::End => return (arrived, now, links[0].totals().came),
                                }
                            }
                            links[1].send(now, tcp(HEADERS), Carried::Ack(receiver.next()));
                        }
                        What::Delivered { payload: Carried::Ack(until), .. } => {
                            again.extend(sender.acknowledged(now, until));
                        }
                        What::Dropped(_) => {}
                    }
                }
            }
            for segment in again {
                links[0].send(now, tcp(segment.size()), Carried::Data(segment));
            }
        }
    }

    fn delayed(milliseconds: u32) -> Conditions {
        Conditions { delay: milliseconds * MS, ..Conditions::CLEAR }
    }

    #[test]
    fn opening_takes_a_round_trip() {
        let (arrived, at, segments) = transfer(1, delayed(20), delayed(20), b"hello");
        assert_eq!((arrived.as_slice(), at, segments), (&b"hello"[..], 60 * MS, 3));
    }

    #[test]
    fn the_rate_is_used() {
        let up = Conditions { rate: Rate::Bits(8_000_000), ..delayed(20) };
        let (_, at, segments) = transfer(1, up, delayed(20), &vec![7; 2_000_000]);
        // 2 MB and their headers at 1 MB/s; slow start costs some round trips.
        assert!((2070..2500).contains(&at.as_millis()), "{at:?}");
        assert_eq!(segments, 2 + 2_000_000u64.div_ceil(SEGMENT as u64));
    }

    #[test]
    fn the_timer_doubles_in_a_blackout() {
        let mut sender = Sender::new();
        sender.push(Duration::ZERO, Content::Open);
        sender.acknowledged(40 * MS, 1);
        sender.push(40 * MS, Content::Bytes([1].into()));
        let mut at = Vec::new();
        for _ in 0..4 {
            let due = sender.next_at().unwrap();
            assert_eq!(sender.timed_out(due - MS), None);
            sender.timed_out(due).unwrap();
            at.push((due - 40 * MS).as_millis());
        }
        assert_eq!(at, [200, 600, 1400, 3000]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the link does, every byte comes once and in order.
        #[test]
        fn streams_are_exact(seed: u64, loss in 0.0..0.3f64, back in 0.0..0.3f64, duplicate in 0.0..0.2f64,
                             reorder: bool, len in 0..60_000usize) {
            let bytes: Vec<u8> = (0..len).map(|at| ((at * 31) >> 3) as u8).collect();
            let mut up = Conditions { loss, duplicate, ..delayed(20) };
            up.jitter.size = 15 * MS;
            up.jitter.reorder = reorder;
            let down = Conditions { loss: back, ..up.clone() };
            let (arrived, ..) = transfer(seed, up, down, &bytes);
            prop_assert_eq!(arrived, bytes);
        }
    }
}
