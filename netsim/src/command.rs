//! What can be told to a link, a line each: in scenarios with a time before it, to a running proxy without.
//!
//! | line | what it does |
//! |---|---|
//! | `set [up\|down] KEY VALUE ...` | changes parameters: both directions, or one |
//! | `profile NAME` | sets all parameters of both directions |
//! | `down [TIME]` | swallows everything, both ways, for so long or until `heal` |
//! | `cut [up\|down] [udp\|tcp] [over BYTES] [TIME]` | swallows what it names |
//! | `block udp\|tcp [TIME]` | the same as `cut udp` |
//! | `heal [up\|down] [udp\|tcp]` | ends blackouts |
//! | `rebind [port\|address]` | the near end gets another port or another address |
//! | `nat MAPPING FILTERING PORTS [TIME]`, `nat none` | puts the near end behind a NAT |
//!
//! Up is from the near end (a client) to the far end. Keys of `set`: `delay`, `jitter`, `distribution` (`uniform`, `normal`,
//! `exponential`), `correlation`, `reorder` (`yes`, `no`), `loss`, `bursts` (`ENTER/LEAVE[/BAD[/GOOD]]`), `duplicate`, `rate`,
//! `queue` (a time, bytes, or `50p` for packets), `discipline` (`drop-tail`, `codel`, `codel-ecn`), `mtu`, `trace` (a file).
//! `none` clears `bursts`, `rate` and `mtu`.

use std::sync::Arc;
use std::time::Duration;

use crate::link::{Bursts, Conditions, Cut, Discipline, Distribution, Limit, Protocol, Rate, Trace};
use crate::nat::{Behaviour, Nat, Ports};
use crate::profile::Profile;
use crate::units;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From the near end to the far end.
    Up,
    /// From the far end to the near end.
    Down,
}

impl Way {
    /// One after the other.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What can be told to a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Change parameters.
    Set {
        /// Of one direction, or of both.
        way: Option<Way>,
        /// Which.
        changes: Vec<Change>,
    },
    /// Set all parameters.
    Profile(Profile),
    /// Begin a blackout.
    Cut {
        /// Of one direction, or of both.
        way: Option<Way>,
        /// Of which packets.
        cut: Cut,
        /// For how long, if not until healed.
        lasts: Option<Duration>,
    },
    /// End blackouts.
    Heal {
        /// Of one direction, or of both.
        way: Option<Way>,
        /// Only those of a protocol.
        protocol: Option<Protocol>,
    },
    /// Change addresses.
    Edge(Edge),
}

/// What can happen to the addresses of the near end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// The same address, other ports: a NAT that forgot.
    RebindPort,
    /// Another address: another network.
    RebindAddress,
    /// A NAT from now on, or none.
    Nat(Option<Nat>),
}

/// One parameter's new value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the parameters have theirs")]
pub enum Change {
    Delay(Duration),
    Jitter(Duration),
    Distribution(Distribution),
    Correlation(f64),
    Reorder(bool),
    Loss(f64),
    Bursts(Option<Bursts>),
    Duplicate(f64),
    Rate(Rate),
    Queue(Limit),
    Discipline(Discipline),
    Mtu(Option<usize>),
}

impl Change {
    pub(crate) fn apply(&self, to: &mut Conditions) {
        match self {
            Self::Delay(delay) => to.delay = *delay,
            Self::Jitter(size) => to.jitter.size = *size,
            Self::Distribution(distribution) => to.jitter.distribution = *distribution,
            Self::Correlation(correlation) => to.jitter.correlation = *correlation,
            Self::Reorder(reorder) => to.jitter.reorder = *reorder,
            Self::Loss(loss) => to.loss = *loss,
            Self::Bursts(bursts) => to.bursts = *bursts,
            Self::Duplicate(duplicate) => to.duplicate = *duplicate,
            Self::Rate(rate) => to.rate = rate.clone(),
            Self::Queue(limit) => to.queue = *limit,
            Self::Discipline(discipline) => to.discipline = *discipline,
            Self::Mtu(mtu) => to.mtu = *mtu,
        }
    }
}

/// Why a line is no command.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// It begins with another word.
    #[error("`{0}` is no command; there are set, profile, down, cut, block, heal, rebind and nat")]
    Unknown(String),
    /// There is nothing to do.
    #[error("no command; there are set, profile, down, cut, block, heal, rebind and nat")]
    Nothing,
    /// A value is missing at its end.
    #[error("`{command}` needs {expected}")]
    Missing {
        /// What was begun.
        command: String,
        /// What would be next.
        expected: &'static str,
    },
    /// A value that does not fit.
    #[error("{what}: `{value}` is not {expected}")]
    Value {
        /// Of what.
        what: String,
        /// As typed.
        value: String,
        /// What would fit.
        expected: &'static str,
    },
    /// A file that cannot be used.
    #[error("trace {path}: {reason}")]
    Trace {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Reads a file a command names; parsing itself does no I/O.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Result<String, String>;

const KEYS: &str = "a key: delay, jitter, distribution, correlation, reorder, loss, bursts, duplicate, rate, queue, \
                    discipline, mtu or trace";
const TIME: &str = "a time, as 250us, 20ms, 1.5s, 2m or 1h";
const SHARE: &str = "a share from 0 to 1, as 2% or 0.02";
const SIZE: &str = "a number of bytes above 0, as 1200 or 64kB";

impl Command {
    /// Reads a line.
    ///
    /// # Errors
    /// Says which value is wrong, and what would be right.
    pub fn parse(line: &str, read_file: ReadFile<'_>) -> Result<Self, CommandError> {
        let mut words = Words { line, rest: line.split_whitespace().collect::<Vec<_>>().into_iter().peekable() };
        let verb = words.rest.next().ok_or(CommandError::Nothing)?;
        let command = match verb {
            "set" => {
                let way = words.way();
                let mut changes = Vec::new();
                while changes.is_empty() || words.rest.peek().is_some() {
                    changes.push(change(&mut words, read_file)?);
                }
                Self::Set { way, changes }
            }
            "profile" => {
                let name = words.next("the name of a profile")?;
                Self::Profile(name.parse().map_err(|()| value("profile", name, Profile::NAMES))?)
            }
            "down" => Self::Cut { way: None, cut: Cut::default(), lasts: words.time()? },
            "cut" => {
                let (way, protocol) = (words.way(), words.protocol());
                let over = match words.rest.next_if_eq(&"over") {
                    Some(_) => Some(size("over", words.next(SIZE)?)?),
                    None => None,
                };
                Self::Cut { way, cut: Cut { protocol, over }, lasts: words.time()? }
            }
            "block" => {
                let Some(protocol) = words.protocol() else {
                    return Err(value("block", words.next("udp or tcp")?, "udp or tcp"));
                };
                Self::Cut { way: None, cut: Cut { protocol: Some(protocol), over: None }, lasts: words.time()? }
            }
            "heal" => Self::Heal { way: words.way(), protocol: words.protocol() },
            "rebind" => match words.rest.next() {
                None | Some("port") => Self::Edge(Edge::RebindPort),
                Some("address") => Self::Edge(Edge::RebindAddress),
                Some(other) => return Err(value("rebind", other, "port or address")),
            },
            "nat" => Self::Edge(Edge::Nat(nat(&mut words)?)),
            other => return Err(CommandError::Unknown(other.to_owned())),
        };
        match words.rest.next() {
            Some(extra) => Err(value(verb, extra, "expected there: the command is complete before it")),
            None => Ok(command),
        }
    }
}

struct Words<'a> {
    line: &'a str,
    rest: std::iter::Peekable<std::vec::IntoIter<&'a str>>,
}

impl<'a> Words<'a> {
    fn next(&mut self, expected: &'static str) -> Result<&'a str, CommandError> {
        self.rest.next().ok_or_else(|| CommandError::Missing { command: self.line.trim().to_owned(), expected })
    }

    fn way(&mut self) -> Option<Way> {
        let way = Way::BOTH.into_iter().find(|way| self.rest.peek() == Some(&way.name()))?;
        self.rest.next();
        Some(way)
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let protocol = match *self.rest.peek()? {
            "udp" => Protocol::Udp,
            "tcp" => Protocol::Tcp,
            _ => return None,
        };
        self.rest.next();
        Some(protocol)
    }

    fn time(&mut self) -> Result<Option<Duration>, CommandError> {
        self.rest.next().map(|text| time("how long", text)).transpose()
    }
}

fn value(what: &str, value: &str, expected: &'static str) -> CommandError {
    CommandError::Value { what: what.to_owned(), value: value.to_owned(), expected }
}

fn time(what: &str, text: &str) -> Result<Duration, CommandError> {
    units::time(text).ok_or_else(|| value(what, text, TIME))
}

fn share(what: &str, text: &str) -> Result<f64, CommandError> {
    units::share(text).ok_or_else(|| value(what, text, SHARE))
}

fn size(what: &str, text: &str) -> Result<usize, CommandError> {
    units::bytes(text).filter(|size| *size > 0).ok_or_else(|| value(what, text, SIZE))
}

fn change(words: &mut Words<'_>, read_file: ReadFile<'_>) -> Result<Change, CommandError> {
    let key = words.next(KEYS)?;
    let known = ["delay", "jitter", "distribution", "correlation", "reorder", "loss", "bursts", "duplicate", "rate"];
    if !known.contains(&key) && !["queue", "discipline", "mtu", "trace"].contains(&key) {
        return Err(value("set", key, KEYS));
    }
    let text = words.next("a value after its last key")?;
    Ok(match key {
        "delay" => Change::Delay(time(key, text)?),
        "jitter" => Change::Jitter(time(key, text)?),
        "distribution" => Change::Distribution(match text {
            "uniform" => Distribution::Uniform,
            "normal" => Distribution::Normal,
            "exponential" => Distribution::Exponential,
            _ => return Err(value(key, text, "uniform, normal or exponential")),
        }),
        "correlation" => match share(key, text)? {
            correlation if correlation < 1.0 => Change::Correlation(correlation),
            _ => return Err(value(key, text, "a share below 1: nothing would ever change")),
        },
        "reorder" => Change::Reorder(match text {
            "yes" => true,
            "no" => false,
            _ => return Err(value(key, text, "yes or no")),
        }),
        "loss" => Change::Loss(share(key, text)?),
        "bursts" if text == "none" => Change::Bursts(None),
        "bursts" => Change::Bursts(Some(bursts(text)?)),
        "duplicate" => Change::Duplicate(share(key, text)?),
        "rate" if text == "none" => Change::Rate(Rate::Unlimited),
        "rate" => Change::Rate(Rate::Bits(
            units::rate(text).ok_or_else(|| value(key, text, "a rate above 0, as 500kbit, 20mbit or 1gbit"))?,
        )),
        "queue" => Change::Queue(queue(text)?),
        "discipline" => Change::Discipline(match text {
            "drop-tail" => Discipline::DropTail,
            "codel" => Discipline::Codel { ecn: false },
            "codel-ecn" => Discipline::Codel { ecn: true },
            _ => return Err(value(key, text, "drop-tail, codel or codel-ecn")),
        }),
        "mtu" if text == "none" => Change::Mtu(None),
        "mtu" => Change::Mtu(Some(size(key, text)?)),
        _ => {
            let failed = |reason: String| CommandError::Trace { path: text.to_owned(), reason };
            let trace = Trace::parse(&read_file(text).map_err(failed)?).map_err(|error| failed(error.to_string()))?;
            Change::Rate(Rate::Trace(Arc::new(trace)))
        }
    })
}

fn bursts(text: &str) -> Result<Bursts, CommandError> {
    let shares = text.split('/').map(|part| share("bursts", part)).collect::<Result<Vec<_>, _>>()?;
    let (enter, leave, bad, good) = match shares[..] {
        [enter, leave] => (enter, leave, 1.0, 0.0),
        [enter, leave, bad] => (enter, leave, bad, 0.0),
        [enter, leave, bad, good] => (enter, leave, bad, good),
        _ => return Err(value("bursts", text, "ENTER/LEAVE[/BAD[/GOOD]], as 1%/30% or 1%/30%/80%/0.1%")),
    };
    if leave == 0.0 {
        return Err(value("bursts", text, "a burst that ends: LEAVE is 0"));
    }
    Ok(Bursts { enter, leave, bad, good })
}

fn queue(text: &str) -> Result<Limit, CommandError> {
    if let Some(packets) = text.strip_suffix('p').and_then(|count| count.parse().ok()) {
        return Ok(Limit::Packets(packets));
    }
    if let Some(bytes) = units::bytes(text) {
        return Ok(Limit::Bytes(bytes));
    }
    units::time(text)
        .map(Limit::Time)
        .ok_or_else(|| value("queue", text, "a time (100ms), bytes (64kB) or packets (50p)"))
}

fn nat(words: &mut Words<'_>) -> Result<Option<Nat>, CommandError> {
    const BEHAVIOUR: &str = "endpoint-independent, address-dependent or address-and-port-dependent";
    let first = words.next(BEHAVIOUR)?;
    if first == "none" {
        return Ok(None);
    }
    let behaviour = |what: &str, text: &str| match text {
        "endpoint-independent" => Ok(Behaviour::EndpointIndependent),
        "address-dependent" => Ok(Behaviour::AddressDependent),
        "address-and-port-dependent" => Ok(Behaviour::AddressAndPortDependent),
        _ => Err(value(what, text, BEHAVIOUR)),
    };
    let mapping = behaviour("mapping", first)?;
    let filtering = behaviour("filtering", words.next(BEHAVIOUR)?)?;
    let ports = match words.next("preserving or random")? {
        "preserving" => Ports::Preserving,
        "random" => Ports::Random,
        other => return Err(value("ports", other, "preserving or random")),
    };
    let timeout = words.time()?.unwrap_or(Nat::TIMEOUT);
    Ok(Some(Nat { mapping, filtering, ports, timeout, hairpin: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, CommandError> {
        Command::parse(line, &|path| {
            if path == "there" { Ok("5\n".to_owned()) } else { Err("no such file".to_owned()) }
        })
    }

    #[test]
    fn commands_are_read() {
        let all = Cut::default();
        let udp = Cut { protocol: Some(Protocol::Udp), over: None };
        let three = Some(Duration::from_secs(3));
        for (line, command) in [
            ("down 3s", Command::Cut { way: None, cut: all, lasts: three }),
            ("down", Command::Cut { way: None, cut: all, lasts: None }),
            ("cut down", Command::Cut { way: Some(Way::Down), cut: all, lasts: None }),
            (
                "cut up udp over 1200 3s",
                Command::Cut { way: Some(Way::Up), cut: Cut { over: Some(1200), ..udp }, lasts: three },
            ),
            ("block udp", Command::Cut { way: None, cut: udp, lasts: None }),
            ("heal up udp", Command::Heal { way: Some(Way::Up), protocol: Some(Protocol::Udp) }),
            ("rebind", Command::Edge(Edge::RebindPort)),
            ("nat none", Command::Edge(Edge::Nat(None))),
            ("profile wifi-flaky", Command::Profile(Profile::WifiFlaky)),
            ("set loss 2%", Command::Set { way: None, changes: vec![Change::Loss(0.02)] }),
            (
                "set up rate 1.5mbit queue 50p bursts 1%/20%",
                Command::Set {
                    way: Some(Way::Up),
                    changes: vec![
                        Change::Rate(Rate::Bits(1_500_000)),
                        Change::Queue(Limit::Packets(50)),
                        Change::Bursts(Some(Bursts { enter: 0.01, leave: 0.2, bad: 1.0, good: 0.0 })),
                    ],
                },
            ),
            (
                "set trace there",
                Command::Set {
                    way: None,
                    changes: vec![Change::Rate(Rate::Trace(Arc::new(Trace::parse("5").unwrap())))],
                },
            ),
        ] {
            assert_eq!(parse(line), Ok(command), "{line}");
        }
        let nat = parse("nat endpoint-independent address-and-port-dependent preserving");
        assert_eq!(nat, Ok(Command::Edge(Edge::Nat(Some(Nat::HOME)))));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, error) in [
            ("explode", "`explode` is no command; there are set, profile, down, cut, block, heal, rebind and nat"),
            (
                "set",
                "`set` needs a key: delay, jitter, distribution, correlation, reorder, loss, bursts, duplicate, rate, \
                     queue, discipline, mtu or trace",
            ),
            ("set loss", "`set loss` needs a value after its last key"),
            ("set loss 200%", "loss: `200%` is not a share from 0 to 1, as 2% or 0.02"),
            ("set delay 20", "delay: `20` is not a time, as 250us, 20ms, 1.5s, 2m or 1h"),
            ("set rate 0mbit", "rate: `0mbit` is not a rate above 0, as 500kbit, 20mbit or 1gbit"),
            ("set mtu 0", "mtu: `0` is not a number of bytes above 0, as 1200 or 64kB"),
            ("set correlation 1", "correlation: `1` is not a share below 1: nothing would ever change"),
            ("set bursts 1%/0", "bursts: `1%/0` is not a burst that ends: LEAVE is 0"),
            ("set trace gone", "trace gone: no such file"),
            ("down soon", "how long: `soon` is not a time, as 250us, 20ms, 1.5s, 2m or 1h"),
            ("block icmp", "block: `icmp` is not udp or tcp"),
            ("down 3s now", "down: `now` is not expected there: the command is complete before it"),
            ("profile dialup", "profile: `dialup` is not wifi, wifi-flaky, lte or train"),
            ("nat", "`nat` needs endpoint-independent, address-dependent or address-and-port-dependent"),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), error, "{line}");
        }
    }
}
