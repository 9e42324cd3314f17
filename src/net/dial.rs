//! One round of dials: names to addresses, and whichever address answers first.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ado_certs::SERVER_NAME;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};

use super::endpoint::{Dialling, Endpoints, Reach, sockets, wildcard};
use super::error::Error;
use super::kick::Kick;
use super::link::LinkConfig;
use super::websocket::Outer;
use crate::tasks::Tasks;

/// Head start of an address before the next one is tried as well (RFC 8305 section 5 recommends 250 ms).
const STAGGER: Duration = Duration::from_millis(250);
/// The same once a connection was lost: which of several controllers lives is not known, and to know it soon is worth a
/// handshake.
const STAGGER_LOST: Duration = Duration::from_millis(75);
/// Longest wait for a name server.
const RESOLVE_FOR: Duration = Duration::from_secs(3);
/// Longest handshake. Packets of a handshake are repeated at growing intervals; after an outage a fresh dial is faster
/// than the next repetition of an old one.
const DIAL_FOR: Duration = Duration::from_secs(5);

/// Head start of UDP before a WebSocket is tried as well, where UDP is not known to be blocked: a handshake and its first
/// repetition on a slow path.
const WEBSOCKET_AFTER: Duration = Duration::from_millis(500);

/// What a connection's packets travel in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// UDP.
    Udp,
    /// A WebSocket, as UDP does not get through.
    WebSocket,
}

/// A connection, and how it goes there.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) connection: quinn::Connection,
    pub(super) kick: Kick,
    pub(super) via: Via,
}

/// Dials the addresses of a link.
pub(super) struct Dialler {
    pub(super) config: LinkConfig,
    pub(super) endpoints: Endpoints,
    quic: Dialling,
    outer: Outer,
    /// Where the last connection was lost.
    lost: Mutex<Option<SocketAddr>>,
}

impl Dialler {
    pub(super) fn new(config: LinkConfig, tasks: &Tasks) -> Result<Self, Error> {
        let endpoints = Endpoints::new(sockets(config.sockets.clone()));
        let quic = Dialling::new(config.tls.config(), config.keep_alive, config.idle_timeout)?;
        let outer = Outer::new(tasks)?;
        Ok(Self { config, endpoints, quic, outer, lost: Mutex::default() })
    }

    /// A connection to this address was lost: others are tried first.
    pub(super) fn lost(&self, at: SocketAddr) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Where the last connection was lost, if one was.
    pub(super) fn last_lost(&self) -> Option<SocketAddr> {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first connection that is made: over UDP if that answers, by WebSocket if it does not and that is allowed.
    /// `random` is in `[0, 1)`. Fails with the failure that says most: one that trying again cannot mend, or the last one.
    pub(super) async fn round(&self, random: f64) -> Result<Dialled, Error> {
        let Some(blocked) = &self.config.websocket else { return self.over_udp(random).await };
        let network = self.network().await;
        let head_start = match network {
            Some(network) if blocked.contains(network) => Duration::ZERO,
            _ => WEBSOCKET_AFTER,
        };
        let dialled = prefer(self.over_udp(random), head_start, self.by_websocket()).await;
        if let (Some(network), Ok(dialled)) = (network, &dialled) {
            blocked.learn(network, dialled.via == Via::WebSocket);
        }
        dialled
    }

    /// UDP gets through where a WebSocket had to be used.
    pub(super) async fn unblocked(&self) {
        if let (Some(blocked), Some(network)) = (&self.config.websocket, self.network().await) {
            blocked.learn(network, false);
        }
    }

    /// What tells the network we are on from others.
    async fn network(&self) -> Option<IpAddr> {
        let (addresses, _) = resolve(&(self.config.addresses)()).await;
        own_address(*addresses.first()?).ok()
    }

    async fn by_websocket(&self) -> Result<Dialled, Error> {
        let hosts = (self.config.addresses)();
        let dials = hosts.iter().map(|host| self.dial_websocket(host));
        race(dials, STAGGER).await.map_err(|failure| failure.unwrap_or_else(|| nowhere(&hosts)))
    }

    /// A connection to one `host:port` by WebSocket.
    pub(super) async fn dial_websocket(&self, host: &str) -> Result<Dialled, Error> {
        let kick = Kick::default();
        let connection = self.outer.dial(host, self.quic.config(&kick, Reach::Network)).await?;
        Ok(Dialled { connection, kick, via: Via::WebSocket })
    }

    /// The first connection that is made over UDP.
    pub(super) async fn over_udp(&self, random: f64) -> Result<Dialled, Error> {
        let hosts = (self.config.addresses)();
        let (mut addresses, unresolved) = resolve(&hosts).await;
        let lost = self.last_lost();
        let stagger = match lost {
            Some(lost) => {
                put_last(&mut addresses, lost, random);
                STAGGER_LOST
            }
            None => STAGGER,
        };
        let dials = addresses.into_iter().map(|address| self.dial(address));
        race(dials, stagger).await.map_err(|failure| match failure.or(unresolved) {
            Some(Error::Unreachable { addresses, cause }) if hosts.len() > 1 => {
                Error::Unreachable { addresses: hosts.join(", "), cause: format!("{addresses}: {cause}") }
            }
            Some(failure) => failure,
            None => nowhere(&hosts),
        })
    }

    /// A connection to one address over UDP.
    pub(super) async fn dial(&self, address: SocketAddr) -> Result<Dialled, Error> {
        let unreachable = |cause: String| Error::Unreachable { addresses: address.to_string(), cause };
        let endpoint = self.endpoints.reaching(address).map_err(|error| unreachable(error.to_string()))?;
        let kick = Kick::default();
        let connecting = endpoint
            .connect_with(self.quic.config(&kick, Reach::of(address)), address, SERVER_NAME)
            .map_err(|error| unreachable(error.to_string()))?;
        match timeout(DIAL_FOR, connecting).await {
            Ok(Ok(connection)) => Ok(Dialled { connection, kick, via: Via::Udp }),
            Ok(Err(error)) => Err(match Error::from(error) {
                Error::Lost(cause) => unreachable(cause),
                error => error,
            }),
            Err(_) => Err(unreachable(format!("no answer within {DIAL_FOR:?}"))),
        }
    }
}

fn nowhere(hosts: &[String]) -> Error {
    Error::Unreachable { addresses: hosts.join(", "), cause: "no address is known".into() }
}

/// The address that packets to `there` leave from: what a machine is called on the network it is on. Nothing is sent.
///
/// # Errors
/// When there is no way to it.
pub fn own_address(there: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(wildcard(there.is_ipv4()))?;
    socket.connect(there)?;
    Ok(socket.local_addr()?.ip())
}

/// What `first` comes to, or else `second`, which is begun when `first` has failed or had its head start. An answer that
/// cannot be mended by going another way ends it.
async fn prefer<T>(
    first: impl Future<Output = Result<T, Error>>,
    head_start: Duration,
    second: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let mut failed = None;
    tokio::select! {
        biased;
        result = &mut first => match result {
            Err(error) if error.is_transient() => failed = Some(error),
            settled => return settled,
        },
        () = sleep(head_start) => {}
    }
    let mut second_failed = None;
    loop {
        tokio::select! {
            biased;
            result = &mut first, if failed.is_none() => match result {
                Err(error) if error.is_transient() => failed = Some(error),
                settled => return settled,
            },
            result = &mut second, if second_failed.is_none() => match result {
                Err(error) if error.is_transient() => second_failed = Some(error),
                settled => return settled,
            },
            else => break,
        }
    }
    Err(match (failed, second_failed) {
        (Some(Error::Unreachable { addresses, cause }), Some(Error::Unreachable { cause: other, .. })) => {
            Error::Unreachable { addresses, cause: format!("{cause}; {other}") }
        }
        (Some(error), _) | (None, Some(error)) => error,
        (None, None) => Error::Closed,
    })
}

/// Starts the next dial when one has failed or the last one had its head start. `Err(None)` when there are none.
async fn race<T>(
    mut waiting: impl ExactSizeIterator<Item = impl Future<Output = Result<T, Error>>>,
    stagger: Duration,
) -> Result<T, Option<Error>> {
    let mut running = FuturesUnordered::new();
    let mut failure: Option<Error> = None;
    loop {
        running.extend(waiting.next());
        let outcome = tokio::select! {
            biased;
            Some(outcome) = running.next() => outcome,
            () = sleep(stagger), if waiting.len() > 0 => continue,
            else => return Err(failure),
        };
        match outcome {
            Ok(connection) => return Ok(connection),
            Err(_) if failure.as_ref().is_some_and(|known| !known.is_transient()) => {}
            Err(error) => failure = Some(error),
        }
    }
}

/// The address where a connection was lost comes last. The others begin anywhere: who lost a controller together does not
/// go to the same one together.
fn put_last(addresses: &mut Vec<SocketAddr>, lost: SocketAddr, random: f64) {
    let Some(at) = addresses.iter().position(|address| *address == lost) else { return };
    addresses.remove(at);
    let last = addresses.len().saturating_sub(1);
    if last > 0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the number of addresses")]
        let first = (random * addresses.len() as f64) as usize;
        addresses.rotate_left(first.min(last));
    }
    addresses.push(lost);
}

/// All addresses of `hosts`, in their order; within a host families alternate, beginning with the one the resolver
/// prefers. With the last failure.
pub(super) async fn resolve(hosts: &[String]) -> (Vec<SocketAddr>, Option<Error>) {
    let mut all = Vec::new();
    let mut failure = None;
    for (host, answer) in hosts.iter().zip(join_all(hosts.iter().map(|host| lookup(host))).await) {
        match answer {
            Ok(addresses) => {
                for address in addresses {
                    if !all.contains(&address) {
                        all.push(address);
                    }
                }
            }
            Err(cause) => failure = Some(Error::Unreachable { addresses: host.clone(), cause }),
        }
    }
    (all, failure)
}

async fn lookup(host: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    match timeout(RESOLVE_FOR, tokio::net::lookup_host(host)).await {
        Ok(Ok(addresses)) => Ok(alternate(addresses.collect())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer from the name server within {RESOLVE_FOR:?}")),
    }
}

fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (preferred, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv4() == first);
    let longest = preferred.len().max(other.len());
    (0..longest).flat_map(|at| [preferred.get(at), other.get(at)]).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use tokio::time::Instant;

    use super::*;

    type Dial = Pin<Box<dyn Future<Output = Result<u8, Error>>>>;

    fn answer(after: u64, result: Result<u8, Error>) -> Dial {
        Box::pin(async move {
            sleep(Duration::from_millis(after)).await;
            result
        })
    }

    fn lost() -> Error {
        Error::Lost("test".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_delays_the_next_by_a_head_start() {
        let start = Instant::now();
        let won = race([answer(60_000, Ok(1)), answer(10, Ok(2))].into_iter(), STAGGER).await.unwrap();
        assert_eq!((won, start.elapsed().as_millis()), (2, 260));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_starts_the_next_at_once() {
        let start = Instant::now();
        let won = race([answer(5, Err(lost())), answer(5, Err(lost())), answer(5, Ok(3))].into_iter(), STAGGER)
            .await
            .unwrap();
        assert_eq!((won, start.elapsed().as_millis()), (3, 15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_may_still_win() {
        assert_eq!(race([answer(300, Ok(1)), answer(60_000, Ok(2))].into_iter(), STAGGER).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_failure_that_cannot_be_mended_is_told() {
        let permanent = Error::Certificate("test".into());
        let dials = [answer(5, Err(permanent)), answer(5, Err(lost()))];
        assert!(matches!(race(dials.into_iter(), STAGGER).await, Err(Some(Error::Certificate(_)))));
        assert!(matches!(race(std::iter::empty::<Dial>(), STAGGER).await, Err(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_way_is_taken_when_the_preferred_one_is_silent_or_shut() {
        let head_start = Duration::from_millis(500);
        for (first, second, expected) in [
            (answer(400, Ok(1)), answer(0, Ok(2)), (1, 400)),
            // It had its head start, and may still win.
            (answer(600, Ok(1)), answer(200, Ok(2)), (1, 600)),
            (answer(60_000, Ok(1)), answer(20, Ok(2)), (2, 520)),
            (answer(5, Err(lost())), answer(20, Ok(2)), (2, 25)),
            (answer(600, Ok(1)), answer(5, Err(lost())), (1, 600)),
        ] {
            let start = Instant::now();
            let won = prefer(first, head_start, second).await.unwrap();
            assert_eq!((won, start.elapsed().as_millis()), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn both_failures_are_told_and_a_refusal_is_not_gone_around() {
        let shut = |cause: &str| Err(Error::Unreachable { addresses: "a:1".into(), cause: cause.into() });
        let error = prefer(answer(1, shut("x")), Duration::ZERO, answer(9, shut("y"))).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot reach a:1: x; y");
        let refused = answer(5, Err(Error::Certificate("no".into())));
        let error = prefer(refused, Duration::from_secs(1), answer(0, Ok(2))).await.unwrap_err();
        assert!(matches!(error, Error::Certificate(_)), "{error:?}");
    }

    #[test]
    fn where_a_connection_was_lost_is_tried_last() {
        let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 1));
        let order = |lost, random| {
            let mut all = vec![address(1), address(2), address(3)];
            put_last(&mut all, address(lost), random);
            all.iter().map(|address| address.ip().to_string().pop().unwrap()).collect::<String>()
        };
        assert_eq!([order(1, 0.0), order(1, 0.999), order(3, 0.4), order(9, 0.9)], ["231", "321", "123", "123"]);
        let mut only = vec![address(1)];
        put_last(&mut only, address(1), 0.5);
        assert_eq!(only, [address(1)]);
    }

    #[test]
    fn families_alternate() {
        let text = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"];
        let order = alternate(text.iter().map(|address| address.parse().unwrap()).collect());
        assert_eq!(
            order.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]
        );
    }
}
