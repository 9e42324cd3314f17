//! When to ask whether the other side is there, beyond what QUIC does by itself.
//!
//! Owns: the policy, and the words it makes two ends exchange. Must not know: sockets, links. [`Pulse`] is pure: it is
//! told what was seen and says what to do.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::kick::Kick;

/// What was asked is answered within this, and within some round trips; otherwise the path is suspect. Long enough for
/// QUIC to have sent it again once.
const SUSPECT_AFTER: Duration = Duration::from_millis(250);
const SUSPECT_RTTS: u32 = 3;
/// Between knocks on a path that is suspect: with a round trip, the longest silence after an outage nobody told us of.
const GAP: Duration = Duration::from_millis(500);
/// The first gap after a change of the network; it doubles up to [`GAP`]. A route may become usable a little later than
/// the change is told.
const GAP_MOVED: Duration = Duration::from_millis(50);
/// A server's gaps grow with the silence, as a part of it, up to the longest: many of its peers have just gone.
const PATIENCE: u32 = 20;
const LONGEST_GAP: Duration = Duration::from_secs(5);
/// How often each side looks.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_SERVER: Duration = Duration::from_millis(500);
/// No more often are knocks answered.
const ANSWER_GAP: Duration = Duration::from_millis(20);
/// The size of a knock after a change of the network. To an address that has not proved itself, a server may send three
/// times what it got: this is enough for its answer and the first of what waits.
const LARGE: usize = 1000;

/// First bytes of datagrams. Part of the protocol; others are for later versions, and passed over.
const KNOCK: u8 = 1;
const ANSWER: u8 = 2;

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The one that dialled, and may move.
    Client,
    /// The one that was dialled.
    Server,
}

/// A connection's counters.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Packets that came.
    heard: u64,
    /// What was sent and asks for an acknowledgement.
    asked: u64,
    rtt: Duration,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
struct Advice {
    knock: bool,
    look_at: Instant,
}

/// Whether the other side answers.
#[derive(Debug)]
struct Pulse {
    end: End,
    heard: u64,
    heard_at: Instant,
    /// Counted when something was heard last, and since when there is more.
    asked: u64,
    asked_at: Option<Instant>,
    knocked_at: Option<Instant>,
    /// The network has changed and nothing was heard since: this many knocks ago.
    moved: Option<u32>,
}

impl Pulse {
    fn new(end: End, seen: Seen, now: Instant) -> Self {
        let Seen { heard, asked, .. } = seen;
        Self { end, heard, heard_at: now, asked, asked_at: None, knocked_at: None, moved: None }
    }

    /// The network has changed: what was heard before says nothing.
    fn moved(&mut self, seen: Seen) {
        (self.heard, self.knocked_at, self.moved) = (seen.heard, None, Some(0));
    }

    fn look(&mut self, seen: Seen, now: Instant) -> Advice {
        let look_at = now + if self.end == End::Client { LOOK } else { LOOK_SERVER };
        if seen.heard != self.heard {
            *self = Self::new(self.end, seen, now);
            return Advice { knock: false, look_at };
        }
        if seen.asked > self.asked {
            self.asked_at.get_or_insert(now);
        }
        let due = match (self.knocked_at, self.moved, self.asked_at) {
            (None, Some(_), _) => Some(now),
            (Some(last), Some(knocks), _) => Some(last + GAP_MOVED.saturating_mul(1 << knocks.min(8)).min(GAP)),
            (Some(last), None, _) => Some(last + self.gap(now)),
            (None, None, Some(asked_at)) => Some(asked_at + SUSPECT_AFTER.max(seen.rtt * SUSPECT_RTTS)),
            (None, None, None) => None,
        };
        match due {
            Some(due) if due <= now => {
                self.knocked_at = Some(now);
                self.moved = self.moved.map(|knocks| knocks + 1);
                // The next one is due at a time that is not known before.
                let soon = if self.moved.is_some() { now + GAP_MOVED } else { look_at };
                Advice { knock: true, look_at: soon.min(look_at) }
            }
            Some(due) => Advice { knock: false, look_at: due.min(look_at) },
            None => Advice { knock: false, look_at },
        }
    }

    fn gap(&self, now: Instant) -> Duration {
        match self.end {
            End::Client => GAP,
            End::Server => (now.duration_since(self.heard_at) / PATIENCE).clamp(GAP, LONGEST_GAP),
        }
    }
}

/// Knocks when the other side should have been heard, and answers its knocks. Never ends by itself; holds a connection
/// open like any other use of it.
pub(super) async fn tend(quic: &quinn::Connection, kick: &Kick, end: End, changed: &Notify) {
    let mut pulse = Pulse::new(end, seen(quic), Instant::now());
    let mut look_at = Instant::now();
    let mut answered_at: Option<Instant> = None;
    loop {
        let mut size = 1;
        tokio::select! {
            biased;
            word = quic.read_datagram() => match word {
                Ok(word) => {
                    let now = Instant::now();
                    let rested = answered_at.is_none_or(|at| now.duration_since(at) >= ANSWER_GAP);
                    if word.first() == Some(&KNOCK) && rested {
                        answered_at = Some(now);
                        say(quic, kick, ANSWER, 1);
                    }
                    continue;
                }
                // It is over; whoever holds it knows.
                Err(_) => return std::future::pending().await,
            },
            () = changed.notified() => {
                pulse.moved(seen(quic));
                size = LARGE;
            }
            () = sleep_until(look_at) => {}
        }
        let advice = pulse.look(seen(quic), Instant::now());
        look_at = advice.look_at;
        if advice.knock {
            say(quic, kick, KNOCK, if pulse.moved.is_some() { LARGE } else { size });
        }
    }
}

/// Sends a word, whatever is under way.
fn say(quic: &quinn::Connection, kick: &Kick, word: u8, size: usize) {
    let size = size.min(quic.max_datagram_size().unwrap_or(1)).max(1);
    let mut bytes = vec![0; size];
    bytes[0] = word;
    kick.now();
    if let Err(error) = quic.send_datagram(Bytes::from(bytes)) {
        tracing::trace!(%error, "no datagram");
    }
}

fn seen(quic: &quinn::Connection) -> Seen {
    let stats = quic.stats();
    let sent = stats.frame_tx;
    Seen { heard: stats.udp_rx.datagrams, asked: sent.stream + sent.datagram + sent.ping, rtt: stats.path.rtt }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks whenever it is time to, and says at which milliseconds there were knocks.
    fn knocks(mut pulse: Pulse, seen: Seen, start: Instant, until: Duration) -> Vec<u128> {
        let (mut now, mut all) = (start, Vec::new());
        while now.duration_since(start) < until {
            let Advice { knock, look_at } = pulse.look(seen, now);
            assert!(look_at > now, "time goes on");
            if knock {
                all.push(now.duration_since(start).as_millis());
            }
            now = look_at;
        }
        all
    }

    fn counts(heard: u64, asked: u64) -> Seen {
        Seen { heard, asked, rtt: Duration::from_millis(40) }
    }

    #[tokio::test]
    async fn who_has_asked_nothing_suspects_nothing() {
        let start = Instant::now();
        for end in [End::Client, End::Server] {
            let pulse = Pulse::new(end, counts(5, 7), start);
            assert_eq!(knocks(pulse, counts(5, 7), start, Duration::from_secs(600)), [0; 0]);
        }
    }

    #[tokio::test]
    async fn a_client_knocks_as_often_after_an_hour_as_at_first() {
        let start = Instant::now();
        let pulse = Pulse::new(End::Client, counts(5, 7), start);
        let all = knocks(pulse, counts(5, 8), start, Duration::from_secs(3600));
        assert_eq!(all[..3], [250, 750, 1250]);
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] == 500), "{:?}", &all[all.len() - 9..]);
    }

    #[tokio::test]
    async fn a_slow_path_is_given_some_round_trips() {
        let start = Instant::now();
        let slow = Seen { rtt: Duration::from_millis(600), ..counts(5, 8) };
        let pulse = Pulse::new(End::Client, counts(5, 7), start);
        assert_eq!(knocks(pulse, slow, start, Duration::from_millis(2000)), [1800]);
    }

    #[tokio::test]
    async fn a_server_knocks_ever_less_often() {
        let start = Instant::now();
        let pulse = Pulse::new(End::Server, counts(5, 7), start);
        let all = knocks(pulse, counts(5, 8), start, Duration::from_secs(300));
        let gaps: Vec<_> = all.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted() && gaps[0] == 500 && gaps.last() == Some(&5000), "{gaps:?}");
    }

    #[tokio::test]
    async fn a_change_of_network_is_knocked_at_once_and_again_soon() {
        let start = Instant::now();
        let mut pulse = Pulse::new(End::Client, counts(5, 7), start);
        pulse.moved(counts(6, 7));
        let all = knocks(pulse, counts(6, 9), start, Duration::from_secs(2));
        assert_eq!(all, [0, 100, 300, 700, 1200, 1700]);
    }

    #[tokio::test]
    async fn what_is_heard_ends_the_suspicion() {
        let start = Instant::now();
        let mut pulse = Pulse::new(End::Client, counts(5, 7), start);
        pulse.moved(counts(5, 7));
        assert!(pulse.look(counts(5, 8), start).knock);
        let later = start + Duration::from_secs(1);
        assert!(!pulse.look(counts(6, 9), later).knock);
        assert_eq!(knocks(pulse, counts(6, 9), later, Duration::from_secs(60)), [0; 0]);
    }
}
