//! Network address translation for UDP, by the words of RFC 4787. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::random::{Draws, Purpose};

/// How a NAT behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// For which remote ends an inside address keeps its public port (section 4.1).
    pub mapping: Behaviour,
    /// From which remote ends a public port takes packets (section 5): those the inside address sent to. Nothing is let in
    /// that nothing was sent out for.
    pub filtering: Behaviour,
    /// Which public port a mapping gets (section 4.2).
    pub ports: Ports,
    /// Silence of the inside after which a mapping is forgotten (section 4.3). What comes in does not refresh it.
    pub timeout: Duration,
    /// Whether an inside address reaches another by its public one (section 6).
    pub hairpin: bool,
}

impl Nat {
    /// The least section 4.3 allows.
    pub const TIMEOUT: Duration = Duration::from_secs(120);

    /// Lets all in, keeps a port for a day: as good as none.
    pub const OPEN: Self = Self {
        mapping: Behaviour::EndpointIndependent,
        filtering: Behaviour::EndpointIndependent,
        ports: Ports::Preserving,
        timeout: Duration::from_secs(24 * 3600),
        hairpin: true,
    };

    /// A home router as most are: one port for all remote ends, which only those hear that were sent to.
    pub const HOME: Self = Self {
        mapping: Behaviour::EndpointIndependent,
        filtering: Behaviour::AddressAndPortDependent,
        ports: Ports::Preserving,
        timeout: Self::TIMEOUT,
        hairpin: false,
    };

    /// The one that keeps peers apart, formerly called symmetric: a port of its own for every remote end.
    pub const SYMMETRIC: Self = Self {
        mapping: Behaviour::AddressAndPortDependent,
        filtering: Behaviour::AddressAndPortDependent,
        ports: Ports::Random,
        timeout: Self::TIMEOUT,
        hairpin: false,
    };
}

/// What of a remote end matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Nothing.
    EndpointIndependent,
    /// Its address.
    AddressDependent,
    /// Its address and its port.
    AddressAndPortDependent,
}

impl Behaviour {
    fn of(self, remote: SocketAddr) -> Remote {
        match self {
            Self::EndpointIndependent => (None, None),
            Self::AddressDependent => (Some(remote.ip()), None),
            Self::AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        }
    }
}

/// What of a remote end matters to a mapping or a filter.
type Remote = (Option<IpAddr>, Option<u16>);

/// How a NAT chooses public ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The inside one where it is free, else the next free one. A NAT that forgot begins one higher each time: otherwise
    /// nobody would see that it forgot.
    Preserving,
    /// Any from 1024.
    Random,
}

const LOWEST: u16 = 1024;

/// A NAT's memory.
#[derive(Debug)]
pub struct Table {
    nat: Nat,
    draws: Draws,
    by_inside: BTreeMap<(SocketAddr, Remote), u16>,
    by_port: BTreeMap<u16, Mapping>,
    mappings: u64,
    rebinds: u16,
}

#[derive(Debug)]
struct Mapping {
    inside: SocketAddr,
    remote: Remote,
    used_at: Duration,
    sent_to: BTreeSet<Remote>,
}

impl Table {
    /// A NAT that remembers nothing yet.
    pub fn new(seed: u64, nat: Nat) -> Self {
        let (by_inside, by_port) = (BTreeMap::new(), BTreeMap::new());
        Self { nat, draws: Draws::new(seed, b"nat"), by_inside, by_port, mappings: 0, rebinds: 0 }
    }

    /// How it behaves.
    pub fn nat(&self) -> Nat {
        self.nat
    }

    /// Behaves otherwise from now on, and forgets.
    pub fn set(&mut self, nat: Nat) {
        self.nat = nat;
        self.by_inside.clear();
        self.by_port.clear();
    }

    /// The public port of a packet on its way out; none is left if there is none.
    pub fn outbound(&mut self, now: Duration, inside: SocketAddr, remote: SocketAddr) -> Option<u16> {
        let key = (inside, self.nat.mapping.of(remote));
        let known = self.by_inside.get(&key).copied().filter(|port| self.is_alive(now, *port));
        let port = match known {
            Some(port) => port,
            None => {
                let port = self.free_port(now, inside.port())?;
                self.forget(port);
                self.by_inside.insert(key, port);
                let mapping = Mapping { inside, remote: key.1, used_at: now, sent_to: BTreeSet::new() };
                self.by_port.insert(port, mapping);
                port
            }
        };
        let mapping = self.by_port.get_mut(&port)?;
        mapping.used_at = now;
        mapping.sent_to.insert(self.nat.filtering.of(remote));
        Some(port)
    }

    /// Whose a packet is that comes to a public port; nobody's if it is not let in.
    pub fn inbound(&self, now: Duration, port: u16, remote: SocketAddr) -> Option<SocketAddr> {
        let mapping = self.by_port.get(&port).filter(|_| self.is_alive(now, port))?;
        mapping.sent_to.contains(&self.nat.filtering.of(remote)).then_some(mapping.inside)
    }

    /// Forgets everything, as after a restart; new mappings get other ports.
    pub fn rebind(&mut self) {
        self.rebinds = self.rebinds.wrapping_add(1);
        self.by_inside.clear();
        self.by_port.clear();
    }

    /// Whether a public port is somebody's.
    pub fn is_alive(&self, now: Duration, port: u16) -> bool {
        self.by_port.get(&port).is_some_and(|mapping| now < mapping.used_at + self.nat.timeout)
    }

    fn forget(&mut self, port: u16) {
        if let Some(old) = self.by_port.remove(&port) {
            self.by_inside.remove(&(old.inside, old.remote));
        }
    }

    fn free_port(&mut self, now: Duration, inside: u16) -> Option<u16> {
        self.mappings += 1;
        let first = match self.nat.ports {
            Ports::Preserving => inside.wrapping_add(self.rebinds),
            Ports::Random => self.draws.bits(self.mappings, Purpose::Port) as u16,
        };
        let range = u32::from(u16::MAX - LOWEST) + 1;
        let first = u32::from(first.max(LOWEST) - LOWEST);
        let ports = (0..range).map(|step| LOWEST + ((first + step) % range) as u16);
        ports.into_iter().find(|port| !self.is_alive(now, *port))
    }
}

#[cfg(test)]
mod tests {
    use Behaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn table(mapping: Behaviour, filtering: Behaviour, ports: Ports) -> Table {
        Table::new(1, Nat { mapping, filtering, ports, ..Nat::HOME })
    }

    /// RFC 4787 section 4.1: X:x sends to Y1:y1 and to Y2:y2, which differ in nothing, in the port, in the address.
    #[test]
    fn mappings_are_reused_as_the_table_says() {
        for (mapping, same_end, other_port, other_address) in [
            (EndpointIndependent, true, true, true),
            (AddressDependent, true, true, false),
            (AddressAndPortDependent, true, false, false),
        ] {
            for ports in [Ports::Preserving, Ports::Random] {
                let mut table = table(mapping, EndpointIndependent, ports);
                let mut public = |remote| table.outbound(NOW, at("10.0.0.2:5000"), at(remote)).unwrap();
                let first = public("1.1.1.1:80");
                assert_eq!(public("1.1.1.1:80") == first, same_end, "{mapping:?} {ports:?}");
                assert_eq!(public("1.1.1.1:81") == first, other_port, "{mapping:?} {ports:?}");
                assert_eq!(public("2.2.2.2:80") == first, other_address, "{mapping:?} {ports:?}");
                assert_ne!(table.outbound(NOW, at("10.0.0.3:5000"), at("1.1.1.1:80")).unwrap(), first);
            }
        }
    }

    /// RFC 4787 section 5: X:x sent to Y1:y1; who may answer?
    #[test]
    fn what_comes_in_is_filtered_as_the_table_says() {
        for (filtering, other_port, other_address) in [
            (EndpointIndependent, true, true),
            (AddressDependent, true, false),
            (AddressAndPortDependent, false, false),
        ] {
            let mut table = table(EndpointIndependent, filtering, Ports::Preserving);
            let inside = at("10.0.0.2:5000");
            assert_eq!(table.inbound(NOW, 5000, at("1.1.1.1:80")), None, "nothing was sent yet");
            assert_eq!(table.outbound(NOW, inside, at("1.1.1.1:80")), Some(5000));
            let let_in = |remote| table.inbound(NOW, 5000, at(remote)) == Some(inside);
            assert!(let_in("1.1.1.1:80"), "{filtering:?}");
            assert_eq!(let_in("1.1.1.1:81"), other_port, "{filtering:?}");
            assert_eq!(let_in("2.2.2.2:80"), other_address, "{filtering:?}");
            assert_eq!(table.inbound(NOW, 5001, at("1.1.1.1:80")), None, "another port");
        }
    }

    #[test]
    fn only_what_goes_out_keeps_a_mapping() {
        let mut table = table(EndpointIndependent, EndpointIndependent, Ports::Random);
        let (inside, remote) = (at("10.0.0.2:5000"), at("1.1.1.1:80"));
        let late = |seconds| Duration::from_secs(seconds);
        let port = table.outbound(NOW, inside, remote).unwrap();
        assert_eq!(table.outbound(late(119), inside, remote), Some(port));
        assert_eq!(table.inbound(late(200), port, remote), Some(inside));
        assert_eq!(table.inbound(late(239), port, remote), None);
        assert_ne!(table.outbound(late(239), inside, remote), Some(port));
    }

    #[test]
    fn ports_are_preserved_where_free_until_a_rebind() {
        let mut table = table(EndpointIndependent, EndpointIndependent, Ports::Preserving);
        let remote = at("1.1.1.1:80");
        assert_eq!(table.outbound(NOW, at("10.0.0.2:5000"), remote), Some(5000));
        assert_eq!(table.outbound(NOW, at("10.0.0.3:5000"), remote), Some(5001));
        assert_eq!(table.outbound(NOW, at("10.0.0.4:80"), remote), Some(1024));
        table.rebind();
        assert_eq!(table.inbound(NOW, 5000, remote), None);
        assert_eq!(table.outbound(NOW, at("10.0.0.2:5000"), remote), Some(5001));
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut table = table(EndpointIndependent, EndpointIndependent, Ports::Preserving);
        let (remote, another) = (at("1.1.1.1:80"), at("10.0.0.3:5000"));
        for port in LOWEST..=u16::MAX {
            assert_eq!(table.outbound(NOW, SocketAddr::new([10, 0, 0, 2].into(), port), remote), Some(port));
        }
        assert_eq!(table.outbound(NOW, another, remote), None);
        assert!(table.outbound(Nat::TIMEOUT, another, remote).is_some());
    }

    proptest! {
        /// No two inside addresses share a public port, and answers reach whom they are for.
        #[test]
        fn answers_reach_who_asked(sends in prop::collection::vec((0u8..4, 1000u16..1004, 0u8..3, 80u16..82, 0u64..90), 1..60),
                                   mapping in 0..3usize, filtering in 0..3usize, random in any::<bool>()) {
            let kinds = [EndpointIndependent, AddressDependent, AddressAndPortDependent];
            let ports = if random { Ports::Random } else { Ports::Preserving };
            let mut table = table(kinds[mapping], kinds[filtering], ports);
            let mut now = Duration::ZERO;
            for (host, port, remote, remote_port, later) in sends {
                now += Duration::from_secs(later);
                let inside = SocketAddr::new([10, 0, 0, host].into(), port);
                let remote = SocketAddr::new([1, 1, 1, remote].into(), remote_port);
                let public = table.outbound(now, inside, remote).unwrap();
                prop_assert!(public >= LOWEST);
                prop_assert_eq!(table.inbound(now, public, remote), Some(inside));
                for (key, public) in &table.by_inside {
                    prop_assert_eq!(table.by_port[public].inside, key.0);
                }
            }
        }
    }
}
