//! Links as people have them.

use std::str::FromStr;
use std::time::Duration;

use crate::command::Way;
use crate::link::{Bursts, Conditions, Discipline, Distribution, Jitter, Limit, Rate};

/// A named set of parameters for both directions. Blackouts are not in it: they are a scenario's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A laptop near its access point, and a server some hundred kilometres away.
    ///
    /// The long tail of the delay: Sui et al., "Characterizing and Improving WiFi Latency in Large-Scale Operational
    /// Networks" (MobiSys 2016), 47,000 devices: 90th percentile around 20 ms; an exponential of mean 8 ms has it at 18 ms.
    /// Chosen: 10 ms of distance each way, 50 Mbit/s down and 20 up, 0.1 % loss (the radio repeats what it loses), CoDel in
    /// the access point, as Linux has had since 2016.
    Wifi,
    /// The same, far from its access point and with neighbours.
    ///
    /// The tail: the same study's 99th percentile is around 250 ms; an exponential of mean 50 ms has it at 230 ms. Bursts
    /// chosen: one in 100 packets begins one, of 5 packets on average, of which 4 in 5 are lost (about 4 %). Chosen: 8 Mbit/s
    /// down, 3 up, and a drop-tail queue of 250 ms, the bufferbloat of an older access point.
    WifiFlaky,
    /// A phone's network.
    ///
    /// Rates and round trip: WebPageTest's connectivity profile `LTE` (12 Mbit/s both ways, 70 ms; `connectivity.ini`). The
    /// queue is deep and loses nothing: Huang et al., "An In-depth Study of LTE" (SIGCOMM 2013), saw round trips inflated by
    /// queues of up to seconds and hardly a loss. Chosen: a second of queue, 0.05 % loss, exponential jitter of 8 ms (a
    /// scheduling request takes that order).
    Lte,
    /// A phone's network at 300 km/h, without its blackouts.
    ///
    /// Li et al., "A Longitudinal Measurement Study of TCP Performance and Behavior in 3G/4G Networks Over High Speed
    /// Rails" (IEEE/ACM ToN 2017): round trips of hundreds of milliseconds that vary much, losses in bursts at handovers,
    /// which come every 10 to 20 seconds. Numbers chosen in that order: 60 ms each way, exponential jitter of 40 ms, bursts
    /// of 15 packets on average (3 %), 4 Mbit/s down, 1.5 up. Use it with `every 15s down 1s` and a longer `down` for
    /// tunnels.
    Train,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Wifi, Self::WifiFlaky, Self::Lte, Self::Train];
    pub(crate) const NAMES: &str = "wifi, wifi-flaky, lte or train";

    /// Its name in scenarios.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wifi => "wifi",
            Self::WifiFlaky => "wifi-flaky",
            Self::Lte => "lte",
            Self::Train => "train",
        }
    }

    /// The parameters of a direction.
    pub fn conditions(self, way: Way) -> Conditions {
        let (delay_ms, tail_ms) = match self {
            Self::Wifi => (10, 8),
            Self::WifiFlaky => (10, 50),
            Self::Lte => (27, 8),
            Self::Train => (60, 40),
        };
        let mbit = |up: f64, down: f64| Rate::Bits((if way == Way::Up { up } else { down } * 1e6) as u64);
        let jitter = Jitter {
            size: Duration::from_millis(tail_ms),
            distribution: Distribution::Exponential,
            // Chosen: retries and grants come in phases, not packet by packet.
            correlation: 0.5,
            reorder: false,
        };
        let common = Conditions { delay: Duration::from_millis(delay_ms), jitter, ..Conditions::CLEAR };
        let bursts = |enter, leave, bad| Some(Bursts { enter, leave, bad, good: 0.0 });
        match self {
            Self::Wifi => Conditions {
                loss: 0.001,
                rate: mbit(20.0, 50.0),
                discipline: Discipline::Codel { ecn: false },
                ..common
            },
            Self::WifiFlaky => Conditions {
                bursts: bursts(0.01, 0.2, 0.8),
                rate: mbit(3.0, 8.0),
                queue: Limit::Time(Duration::from_millis(250)),
                ..common
            },
            Self::Lte => Conditions {
                loss: 0.0005,
                rate: mbit(12.0, 12.0),
                queue: Limit::Time(Duration::from_secs(1)),
                ..common
            },
            Self::Train => Conditions {
                bursts: bursts(0.002, 1.0 / 15.0, 1.0),
                rate: mbit(1.5, 4.0),
                queue: Limit::Time(Duration::from_secs(1)),
                ..common
            },
        }
    }
}

impl FromStr for Profile {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or(())
    }
}
