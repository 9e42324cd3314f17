//! From what was seen to what it means and what to do. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

/// A clock that is off by more makes certificates of the other side look not yet or no longer good: the mesh allows a
/// minute.
const CLOCK_BAD: i64 = 60;
const CLOCK_OFF: i64 = 5;
/// Below this a certificate should have been renewed by whatever command ran last.
const SOON: Duration = Duration::from_secs(24 * 3600);
/// Packets QUIC begins with; every network has to pass them (RFC 9000 section 14).
const SMALLEST: u16 = 1200;
/// A round trip beyond which output feels late: the target is 100 ms from agent to terminal.
const SLOW: Duration = Duration::from_millis(150);
/// A share of lost packets that shows: percent.
const LOSSY: u64 = 2;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// As it should be.
    Good,
    /// Works, and could be better.
    Warning,
    /// Does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) check: &'static str,
    pub(super) grade: Grade,
    /// What was seen.
    pub(super) text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

impl Check {
    fn new(check: &'static str, grade: Grade, text: impl Into<String>) -> Self {
        Self { check, grade, text: text.into(), advice: None }
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// Our certificate.
pub(super) fn identity(principal: &str, left: Option<Duration>) -> Check {
    let join = "join again: `ado join <join string>`; somebody in the mesh makes one with `ado token create`";
    match left {
        None => Check::new("identity", Grade::Bad, format!("the certificate of {principal} has ended")).advise(join),
        Some(left) if left < SOON => {
            let text = format!("the certificate of {principal} ends in {} hours", left.as_secs() / 3600);
            Check::new("identity", Grade::Warning, text).advise("any command that reaches the mesh renews it")
        }
        Some(left) => {
            Check::new("identity", Grade::Good, format!("{principal}, good for {} days", left.as_secs() / 86_400))
        }
    }
}

/// A controller, by every way there is.
pub(super) struct Ways {
    /// `host:port`.
    pub(super) host: String,
    /// Its addresses, or why there are none.
    pub(super) resolved: Result<Vec<SocketAddr>, String>,
    /// How long a handshake over UDP took, for each address.
    pub(super) udp: Vec<(SocketAddr, Result<Duration, String>)>,
    /// The same by WebSocket; `None`: not wanted here.
    pub(super) websocket: Option<Result<Duration, String>>,
}

/// Whether and how a controller is reached.
pub(super) fn ways(seen: &Ways) -> Vec<Check> {
    let host = &seen.host;
    if let Err(cause) = &seen.resolved {
        let check = Check::new("name", Grade::Bad, format!("{host}: {cause}"));
        return vec![check.advise("look at the name in the context's `controllers`, and at this machine's DNS")];
    }
    let websocket_works = matches!(seen.websocket, Some(Ok(_)));
    let udp_works = seen.udp.iter().any(|(_, way)| way.is_ok());
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    let mut checks = Vec::new();
    for (address, way) in &seen.udp {
        checks.push(match way {
            Ok(took) => Check::new("udp", Grade::Good, format!("{host} ({address}): a handshake takes {}", ms(*took))),
            Err(cause) => {
                let text = format!("{host} ({address}): {cause}");
                let (grade, advice) = if udp_works {
                    (Grade::Warning, "this address does not answer, another of the same name does: remove it from DNS".into())
                } else if websocket_works {
                    (Grade::Warning, format!("UDP to port {port} is blocked, by this network or the controller's firewall; the WebSocket stands in, slower after losses: open UDP {port} if you can"))
                } else {
                    (Grade::Bad, format!("open UDP port {port} on the controller's firewall, and out of this network; see that the controller runs: `ado controllers list` from elsewhere"))
                };
                Check::new("udp", grade, text).advise(advice)
            }
        });
    }
    checks.push(match &seen.websocket {
        None => {
            Check::new("websocket", Grade::Good, format!("{host}: not wanted (distributed.communication.websocket)"))
        }
        Some(Ok(took)) => Check::new("websocket", Grade::Good, format!("{host}: a handshake takes {}", ms(*took))),
        Some(Err(cause)) => {
            let grade = if udp_works { Grade::Warning } else { Grade::Bad };
            let advice = format!("open TCP port {port} as well: networks that block UDP need it");
            Check::new("websocket", grade, format!("{host}: {cause}")).advise(advice)
        }
    });
    checks
}

/// Where a socket of ours is, and where each controller it reached sees it.
pub(super) struct Observed {
    pub(super) own: SocketAddr,
    pub(super) by: Vec<SocketAddr>,
}

/// What is between, as far as that shows: RFC 4787 section 4.1 has the kinds.
pub(super) fn nat(seen: &Observed) -> Option<Check> {
    let first = seen.by.first()?;
    let own = seen.own;
    if seen.by.iter().all(|observed| *observed == own) {
        return Some(Check::new("nat", Grade::Good, format!("none: {own} is seen as itself")));
    }
    let text = if first.port() == own.port() {
        format!("{own} is seen as {first}: the port is kept")
    } else {
        format!("{own} is seen as {first}")
    };
    let (kind, grade, advice) = if seen.by.len() < 2 {
        ("; one controller cannot tell of what kind", Grade::Good, None)
    } else if seen.by.iter().all(|observed| observed == first) {
        ("; the same for every controller (endpoint-independent mapping)", Grade::Good, None)
    } else {
        let advice = "connections through the controllers work; direct ones between CLI and worker will not";
        ("; another for every controller (endpoint-dependent mapping)", Grade::Warning, Some(advice))
    };
    let check = Check::new("nat", grade, text + kind);
    Some(match advice {
        Some(advice) => check.advise(advice),
        None => check,
    })
}

/// The largest packet that passed.
pub(super) fn mtu(bytes: u16) -> Check {
    if bytes > SMALLEST {
        return Check::new("mtu", Grade::Good, format!("packets of {bytes} bytes pass"));
    }
    let text = format!("nothing above {bytes} bytes was found to pass");
    Check::new("mtu", Grade::Warning, text)
        .advise("output arrives as quickly; bulk costs more packets: a VPN or tunnel on the way takes a part of each")
}

/// What questions and answers took.
pub(super) struct Answers {
    pub(super) times: Vec<Duration>,
    pub(super) sent: u64,
    pub(super) lost: u64,
}

/// How long a question and its answer take.
pub(super) fn latency(seen: &mut Answers) -> Option<Check> {
    seen.times.sort_unstable();
    let (median, longest) = (*seen.times.get(seen.times.len() / 2)?, *seen.times.last()?);
    let text = format!(
        "an answer takes {} (median of {}), {} at most; {} of {} packets lost",
        ms(median),
        seen.times.len(),
        ms(longest),
        seen.lost,
        seen.sent
    );
    Some(if seen.lost * 100 > seen.sent * LOSSY {
        Check::new("latency", Grade::Warning, text)
            .advise("this network loses packets: nothing is lost of the output, but lines come late")
    } else if median > SLOW {
        Check::new("latency", Grade::Warning, text).advise(
            "the controller is far away or the way to it is full: `ado bench latency` measures what you will see",
        )
    } else {
        Check::new("latency", Grade::Good, text)
    })
}

/// How far the store's clock is ahead of ours, seconds.
pub(super) fn clock(ahead: f64) -> Check {
    let text = format!(
        "this machine's is {:.1} s {} the mesh's",
        ahead.abs(),
        if ahead < 0.0 { "ahead of" } else { "behind" }
    );
    #[expect(clippy::cast_possible_truncation, reason = "a float saturates, and seconds are enough")]
    let off = ahead.abs() as i64;
    let advice = "set this machine's clock: certificates have a beginning and an end";
    match off {
        off if off >= CLOCK_BAD => Check::new("clock", Grade::Bad, text).advise(advice),
        off if off >= CLOCK_OFF => Check::new("clock", Grade::Warning, text).advise(advice),
        _ => Check::new("clock", Grade::Good, text),
    }
}

/// The two builds.
pub(super) fn build(own: &str, theirs: &str) -> Check {
    if own == theirs {
        return Check::new("build", Grade::Good, format!("{own} on both sides"));
    }
    Check::new("build", Grade::Warning, format!("{own} here, {theirs} there"))
        .advise("they understand each other; the older one lacks what the newer one has")
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn graded(checks: &[Check]) -> Vec<(&str, Grade)> {
        checks.iter().map(|check| (check.check, check.grade)).collect()
    }

    fn seen(udp: &[bool], websocket: Option<bool>) -> Vec<Check> {
        let way = |works: bool| if works { Ok(Duration::from_millis(40)) } else { Err("no answer".to_owned()) };
        let address = |n: usize| at(&format!("192.0.2.{n}:4433"));
        let udp: Vec<_> = udp.iter().enumerate().map(|(n, works)| (address(n), way(*works))).collect();
        let resolved = Ok(udp.iter().map(|(address, _)| *address).collect());
        ways(&Ways { host: "ado.example:4433".into(), resolved, udp, websocket: websocket.map(way) })
    }

    #[test]
    fn a_way_that_is_shut_is_as_bad_as_what_is_left() {
        use Grade::{Bad, Good, Warning};
        assert_eq!(graded(&seen(&[true], Some(true))), [("udp", Good), ("websocket", Good)]);
        assert_eq!(graded(&seen(&[true, false], Some(true))), [("udp", Good), ("udp", Warning), ("websocket", Good)]);
        assert_eq!(graded(&seen(&[false], Some(true))), [("udp", Warning), ("websocket", Good)]);
        assert_eq!(graded(&seen(&[true], Some(false))), [("udp", Good), ("websocket", Warning)]);
        assert_eq!(graded(&seen(&[false], Some(false))), [("udp", Bad), ("websocket", Bad)]);
        assert_eq!(graded(&seen(&[false], None)), [("udp", Bad), ("websocket", Good)]);
        assert!(seen(&[false], Some(true))[0].advice.as_ref().unwrap().contains("open UDP 4433"));
        let unknown =
            Ways { host: "nowhere:1".into(), resolved: Err("no such name".into()), udp: Vec::new(), websocket: None };
        assert_eq!(graded(&ways(&unknown)), [("name", Bad)]);
    }

    #[test]
    fn a_nat_shows_by_what_others_see() {
        let check = |own: &str, by: &[&str]| {
            nat(&Observed { own: at(own), by: by.iter().map(|text| at(text)).collect() }).map(|check| check.text)
        };
        let own = "10.0.0.7:1000";
        assert_eq!(check(own, &[]), None);
        assert_eq!(check(own, &[own]).unwrap(), "none: 10.0.0.7:1000 is seen as itself");
        assert_eq!(
            check(own, &["203.0.113.9:1000"]).unwrap(),
            "10.0.0.7:1000 is seen as 203.0.113.9:1000: the port is kept; one controller cannot tell of what kind"
        );
        let independent = check(own, &["203.0.113.9:7", "203.0.113.9:7"]).unwrap();
        assert!(independent.ends_with("the same for every controller (endpoint-independent mapping)"), "{independent}");
        let dependent = check(own, &["203.0.113.9:7", "203.0.113.9:8"]).unwrap();
        assert!(dependent.ends_with("another for every controller (endpoint-dependent mapping)"), "{dependent}");
    }

    #[test]
    fn bounds() {
        use Grade::{Bad, Good, Warning};
        let grades = [clock(0.4), clock(-5.0), clock(59.9), clock(-60.0)].map(|check| check.grade);
        assert_eq!(grades, [Good, Warning, Warning, Bad]);
        assert!(clock(-2.0).text.contains("2.0 s ahead of") && clock(2.0).text.contains("2.0 s behind"));
        assert_eq!([mtu(1200).grade, mtu(1201).grade], [Warning, Good]);
        let left = [None, Some(SOON - Duration::from_secs(1)), Some(SOON)].map(|left| identity("ann", left).grade);
        assert_eq!(left, [Bad, Warning, Good]);
        let answers = |times: &[u64], sent, lost| {
            let times = times.iter().map(|ms| Duration::from_millis(*ms)).collect();
            latency(&mut Answers { times, sent, lost }).map(|check| check.grade)
        };
        assert_eq!(answers(&[], 0, 0), None);
        assert_eq!(answers(&[10, 900, 20], 100, 2), Some(Good));
        assert_eq!(answers(&[10, 20], 100, 3), Some(Warning));
        assert_eq!(answers(&[160, 170], 100, 0), Some(Warning));
        assert_eq!([build("1", "1").grade, build("1", "2").grade], [Good, Warning]);
    }
}
