//! Real processes on one machine over a simulated link: relays for UDP and TCP.
//!
//! A relay listens for the near end and passes on to its target, the far end. Relays of one link share its queues and
//! its blackouts. Sizes are those of the packets on a network, with the headers of IP, UDP and TCP. Datagrams lose their ECN
//! marks, and nobody learns by ICMP that a port is closed. Streams behave as TCP would over such a link (see
//! `proxy/tcp.rs`), and hang when the near end's address changes, as TCP does. Times are good to a millisecond.

mod streams;
mod tcp;
#[cfg(test)]
mod tests;
mod wire;

#[cfg(test)]
pub(crate) use wire::engine_of_a_proxy;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::command::{Command, CommandError, ReadFile};
use crate::link::Protocol;
use crate::record::Record;
use crate::scenario::Scenario;
use wire::Wire;

/// What to relay.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// At least one.
    pub relays: Vec<RelayConfig>,
    /// What every link does over time, from the start of the proxy on.
    pub scenario: Scenario,
    /// Where to write what happened to every packet, for `netsim plot`.
    pub record: Option<PathBuf>,
}

/// One relay: `[LINK=]udp:TARGET[@LISTEN]`, `tcp:` likewise, with TARGET and LISTEN as ADDRESS:PORT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// The link it crosses; others that name it share it.
    pub link: String,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The far end.
    pub target: SocketAddr,
    /// Where it listens, if not on a port of the system's choice on loopback.
    pub listen: Option<SocketAddr>,
}

impl RelayConfig {
    /// A relay of datagrams over a link of this name.
    pub fn udp(link: &str, target: SocketAddr) -> Self {
        Self { link: link.to_owned(), protocol: Protocol::Udp, target, listen: None }
    }

    /// A relay of streams over a link of this name.
    pub fn tcp(link: &str, target: SocketAddr) -> Self {
        Self { protocol: Protocol::Tcp, ..Self::udp(link, target) }
    }
}

impl FromStr for RelayConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (link, rest) = text.split_once('=').unwrap_or(("link", text));
        let wrong =
            |why: &str| format!("`{text}`: {why}; a relay is [LINK=]udp:ADDRESS:PORT[@ADDRESS:PORT], or tcp:...");
        let (protocol, rest) = rest.split_once(':').ok_or_else(|| wrong("no protocol"))?;
        let protocol = match protocol {
            "udp" => Protocol::Udp,
            "tcp" => Protocol::Tcp,
            other => return Err(wrong(&format!("`{other}` is neither udp nor tcp"))),
        };
        let address = |text: &str| text.parse().map_err(|_| wrong(&format!("`{text}` is no address with a port")));
        let (target, listen) = match rest.split_once('@') {
            Some((target, listen)) => (address(target)?, Some(address(listen)?)),
            None => (address(rest)?, None),
        };
        if link.is_empty() || link.contains(char::is_whitespace) {
            return Err(wrong("a link's name is a word"));
        }
        Ok(Self { link: link.to_owned(), protocol, target, listen })
    }
}

/// A relay that runs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Relay {
    /// The link it crosses.
    pub link: String,
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    /// Where the near end sends to.
    pub listen: SocketAddr,
    /// The far end.
    pub target: SocketAddr,
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port that cannot be had.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A record that cannot be written.
    #[error("write {}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing to do.
    #[error("a proxy needs a relay: [LINK=]udp:ADDRESS:PORT or tcp:ADDRESS:PORT")]
    NoRelay,
}

/// Why a line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LineError {
    /// It is no command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It is for a link there is not.
    #[error("no link `{name}`; there are {}", known.join(", "))]
    NoLink {
        /// Which.
        name: String,
        /// Which there are.
        known: Vec<String>,
    },
}

/// Relays that run until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    wires: BTreeMap<String, Arc<Wire>>,
    relays: Vec<Relay>,
    // Dropped with the proxy, and ended by that.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts all relays, on the runtime that calls.
    ///
    /// # Errors
    /// When a port cannot be had, or the record cannot be written.
    pub async fn start(config: Config) -> Result<Self, Error> {
        if config.relays.is_empty() {
            return Err(Error::NoRelay);
        }
        let record = match config.record {
            Some(path) => Some(Record::create(&path).map_err(|source| Error::Record { path, source })?),
            None => None,
        };
        let mut proxy = Self { wires: BTreeMap::new(), relays: Vec::new(), _tasks: JoinSet::new() };
        for relay in config.relays {
            let wire = proxy.wires.entry(relay.link.clone()).or_insert_with(|| {
                let wire = Arc::new(Wire::new(&relay.link, &config.scenario, record.clone()));
                proxy._tasks.spawn(wire::run(wire.clone()));
                wire
            });
            let address = relay.listen.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
            let failed = |source| Error::Listen { address, source };
            let listen = if relay.protocol == Protocol::Udp {
                let socket = wire::with_large_buffers(UdpSocket::bind(address).await.map_err(failed)?);
                let listen = socket.local_addr().map_err(failed)?;
                let near = wire.add_relay(&socket, relay.target).map_err(failed)?;
                proxy._tasks.spawn(wire::listen(wire.clone(), near, socket));
                listen
            } else {
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let listen = listener.local_addr().map_err(failed)?;
                proxy._tasks.spawn(streams::listen(wire.clone(), listener, relay.target));
                listen
            };
            let protocol = if relay.protocol == Protocol::Udp { "udp" } else { "tcp" };
            proxy.relays.push(Relay { link: relay.link, protocol, listen, target: relay.target });
        }
        Ok(proxy)
    }

    /// The relays, in the order they were asked for.
    pub fn relays(&self) -> &[Relay] {
        &self.relays
    }

    /// Does what a line says, now: a [`Command`] for all links, `on LINK COMMAND` for one, or `stats`, which is answered with
    /// JSON.
    ///
    /// # Errors
    /// When the line is no command.
    pub fn tell(&self, line: &str, read_file: ReadFile<'_>) -> Result<String, LineError> {
        let line = line.trim();
        if line == "stats" {
            let stats: BTreeMap<_, _> = self.wires.iter().map(|(name, wire)| (name, wire.stats())).collect();
            return Ok(serde_json::json!(stats).to_string());
        }
        let (name, line) = match line.strip_prefix("on ").map(str::trim_start) {
            Some(rest) => {
                let (name, line) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                (Some(name), line)
            }
            None => (None, line),
        };
        let command = Command::parse(line, read_file)?;
        if let Some(name) = name.filter(|name| !self.wires.contains_key(*name)) {
            return Err(LineError::NoLink { name: name.to_owned(), known: self.wires.keys().cloned().collect() });
        }
        for (_, wire) in self.wires.iter().filter(|(of, _)| name.is_none_or(|name| name == of.as_str())) {
            wire.apply(&command);
        }
        Ok("ok".to_owned())
    }
}
