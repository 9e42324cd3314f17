//! Looking at every way there is to the controllers, one by one: what a link leaves out as soon as one works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::request::{Header, Request, decode_response, encode_request};
use ado_proto::version::MINOR;
use tokio::time::{Instant, timeout};

use super::channel::{Carrier, Priority};
use super::dial::{Dialler, resolve};
use super::error::{Error, code};
use super::link::{After, LinkConfig, exchange};
use crate::tasks::Tasks;

/// Dials without falling back, through one socket an address family: how that is seen from several places tells what is
/// in between.
pub struct Survey {
    dialler: Dialler,
}

/// A connection that was made.
pub struct Reached {
    carrier: Arc<Carrier>,
    /// How long it took.
    pub took: Duration,
    /// Where it leaves from: the address of this machine on that network, and the socket's port.
    pub from: Option<SocketAddr>,
}

/// What a connection has measured so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Round trip, smoothed.
    pub rtt: Duration,
    /// Largest packet that was found to pass, bytes of UDP payload.
    pub mtu: u16,
    /// Packets sent.
    pub sent: u64,
    /// Packets of them that were lost.
    pub lost: u64,
}

impl Survey {
    /// Nothing is dialled yet.
    ///
    /// # Errors
    /// [`Error::Certificate`] when the TLS configuration does not fit QUIC.
    pub fn new(config: LinkConfig, tasks: &Tasks) -> Result<Self, Error> {
        Ok(Self { dialler: Dialler::new(config, tasks)? })
    }

    /// The addresses of a `host:port`, in the order they are tried.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the name has none.
    pub async fn resolve(&self, host: &str) -> Result<Vec<SocketAddr>, Error> {
        let (addresses, failure) = resolve(&[host.to_owned()]).await;
        match failure {
            Some(failure) if addresses.is_empty() => Err(failure),
            _ => Ok(addresses),
        }
    }

    /// Connects over UDP.
    ///
    /// # Errors
    /// What a dial can end with: [`Error::Unreachable`], [`Error::Certificate`], [`Error::Version`].
    pub async fn over_udp(&self, address: SocketAddr) -> Result<Reached, Error> {
        let begun = Instant::now();
        let connection = self.dialler.dial(address).await?.connection;
        let from = super::own_address(address).ok();
        let port = self.dialler.endpoints.reaching(address).and_then(|endpoint| endpoint.local_addr());
        let from = from.zip(port.ok()).map(|(ip, socket)| SocketAddr::new(ip, socket.port()));
        Ok(Reached { carrier: Carrier::new(connection, ()), took: begun.elapsed(), from })
    }

    /// Connects by WebSocket.
    ///
    /// # Errors
    /// As [`Survey::over_udp`].
    pub async fn by_websocket(&self, host: &str) -> Result<Reached, Error> {
        let begun = Instant::now();
        let connection = self.dialler.dial_websocket(host).await?.connection;
        Ok(Reached { carrier: Carrier::new(connection, ()), took: begun.elapsed(), from: None })
    }
}

impl Reached {
    /// Asks on this connection, and no other.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `patience`, and those of [`super::Link::call`].
    pub async fn ask<R: Request>(&self, request: &R, patience: Duration) -> Result<R::Response, Error> {
        let header = Header { minor: MINOR, kind: R::KIND, version: R::VERSION, id: None, namespace: None };
        let frame = encode_request(&header, request);
        let work = async {
            let mut channel = self.carrier.open(Priority::Control).await?;
            exchange(&mut channel, &frame, After::Nothing).await
        };
        let answer = timeout(patience, work).await.map_err(|_| Error::Timeout(patience))??;
        match decode_response::<R>(&answer) {
            Ok(answer) => answer.map_err(Error::Refused),
            Err(error) => Err(Error::Protocol(error.to_string())),
        }
    }

    /// What it has measured so far. The largest packet is looked for during the first round trips.
    pub fn measured(&self) -> Measured {
        let path = self.carrier.quic.stats().path;
        Measured { rtt: path.rtt, mtu: path.current_mtu, sent: path.sent_packets, lost: path.lost_packets }
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        self.carrier.quic.close(code::DONE, b"");
    }
}
