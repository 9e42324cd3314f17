//! CoDel, as RFC 8289 section 5 has it: which packets are dropped as they leave a queue, so that a standing queue dissolves
//! and a burst does not suffer.

use std::time::Duration;

/// A wait that is acceptable for good.
pub(crate) const TARGET: Duration = Duration::from_millis(5);
/// How long the least wait may exceed it: the slowest round trip to be expected.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// A queue of no more than this is not bad however long it takes: the next packet could not be sent sooner.
pub(crate) const MAX_PACKET: usize = 1500;

#[derive(Debug, Default)]
pub(crate) struct Codel {
    // When the wait will have been too long for an interval.
    first_above_at: Option<Duration>,
    drop_next_at: Duration,
    count: u32,
    last_count: u32,
    dropping: bool,
}

impl Codel {
    /// The next packet to send from a queue. `dequeue` takes one out and says how long it waited and how many bytes are
    /// behind it; `drop` is given those CoDel drops, and gives back one that it marked instead.
    pub(crate) fn dequeue<P>(
        &mut self,
        now: Duration,
        mut dequeue: impl FnMut() -> Option<(P, Duration, usize)>,
        mut drop: impl FnMut(P) -> Option<P>,
    ) -> Option<P> {
        let (mut packet, mut bad) = self.take(now, &mut dequeue);
        if self.dropping {
            self.dropping &= bad;
            while self.dropping && now >= self.drop_next_at {
                self.count += 1;
                if let Some(marked) = drop(packet?) {
                    self.drop_next_at = self.control_law(self.drop_next_at);
                    return Some(marked);
                }
                (packet, bad) = self.take(now, &mut dequeue);
                if bad {
                    self.drop_next_at = self.control_law(self.drop_next_at);
                } else {
                    self.dropping = false;
                }
            }
        } else if bad {
            let marked = drop(packet?);
            if marked.is_none() {
                (packet, _) = self.take(now, &mut dequeue);
            } else {
                packet = marked;
            }
            self.dropping = true;
            // A queue that was bad lately starts with the rate of drops that controlled it then.
            let delta = self.count.saturating_sub(self.last_count);
            self.count = 1;
            if delta > 1 && now < self.drop_next_at + 16 * INTERVAL {
                self.count = delta;
            }
            self.drop_next_at = self.control_law(now);
            self.last_count = self.count;
        }
        packet
    }

    /// Takes a packet, and says whether the wait has been too long for an interval.
    fn take<P>(
        &mut self,
        now: Duration,
        dequeue: &mut impl FnMut() -> Option<(P, Duration, usize)>,
    ) -> (Option<P>, bool) {
        let Some((packet, waited, behind)) = dequeue() else {
            self.first_above_at = None;
            return (None, false);
        };
        if waited < TARGET || behind <= MAX_PACKET {
            self.first_above_at = None;
            return (Some(packet), false);
        }
        let first_above_at = *self.first_above_at.get_or_insert(now + INTERVAL);
        // The RFC says so only from the next packet on; `now` is before what was just set.
        (Some(packet), now >= first_above_at)
    }

    fn control_law(&self, from: Duration) -> Duration {
        from + Duration::from_nanos((INTERVAL.as_nanos() as f64 / f64::from(self.count).sqrt()) as u64)
    }
}
