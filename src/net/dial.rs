//! One round of dials: names to addresses, and whichever address answers first.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use ado_certs::SERVER_NAME;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use super::endpoint::{Endpoints, client_config, sockets};
use super::error::Error;
use super::link::LinkConfig;

/// Head start of an address before the next one is tried as well (RFC 8305 section 5 recommends 250 ms).
const STAGGER: Duration = Duration::from_millis(250);
/// Longest wait for a name server.
const RESOLVE_FOR: Duration = Duration::from_secs(3);
/// Longest handshake. Packets of a handshake are repeated at growing intervals; after an outage a fresh dial is faster
/// than the next repetition of an old one.
const DIAL_FOR: Duration = Duration::from_secs(5);

/// Dials the addresses of a link.
pub(super) struct Dialler {
    pub(super) config: LinkConfig,
    pub(super) endpoints: Endpoints,
}

impl Dialler {
    pub(super) fn new(config: LinkConfig) -> Self {
        let endpoints = Endpoints::new(sockets(config.sockets.clone()));
        Self { config, endpoints }
    }

    /// The first connection that is made. Fails with the failure that says most: one that trying again cannot mend, or
    /// the last one.
    pub(super) async fn round(&self) -> Result<quinn::Connection, Error> {
        let hosts = (self.config.addresses)();
        let (addresses, unresolved) = resolve(&hosts).await;
        let dials = addresses.into_iter().map(|address| self.dial(address));
        race(dials).await.map_err(|failure| {
            failure.or(unresolved).unwrap_or_else(|| Error::Unreachable {
                addresses: hosts.join(", "),
                cause: "no address is known".into(),
            })
        })
    }

    async fn dial(&self, address: SocketAddr) -> Result<quinn::Connection, Error> {
        let config = &self.config;
        let unreachable = |cause: String| Error::Unreachable { addresses: address.to_string(), cause };
        let quic = client_config(config.tls.config(), config.keep_alive, config.idle_timeout)?;
        let endpoint = self.endpoints.reaching(address).map_err(|error| unreachable(error.to_string()))?;
        let connecting =
            endpoint.connect_with(quic, address, SERVER_NAME).map_err(|error| unreachable(error.to_string()))?;
        match timeout(DIAL_FOR, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(match Error::from(error) {
                Error::Lost(cause) => unreachable(cause),
                error => error,
            }),
            Err(_) => Err(unreachable(format!("no answer within {DIAL_FOR:?}"))),
        }
    }
}

/// Starts the next dial when one has failed or the last one had its head start. `Err(None)` when there are none.
async fn race<T>(
    mut waiting: impl ExactSizeIterator<Item = impl Future<Output = Result<T, Error>>>,
) -> Result<T, Option<Error>> {
    let mut running = FuturesUnordered::new();
    let mut failure: Option<Error> = None;
    loop {
        running.extend(waiting.next());
        let outcome = tokio::select! {
            biased;
            Some(outcome) = running.next() => outcome,
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => continue,
            else => return Err(failure),
        };
        match outcome {
            Ok(connection) => return Ok(connection),
            Err(_) if failure.as_ref().is_some_and(|known| !known.is_transient()) => {}
            Err(error) => failure = Some(error),
        }
    }
}

/// All addresses of `hosts`, in their order; within a host families alternate, beginning with the one the resolver
/// prefers. With the last failure.
async fn resolve(hosts: &[String]) -> (Vec<SocketAddr>, Option<Error>) {
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

    use tokio::time::{Instant, sleep};

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
        let won = race([answer(60_000, Ok(1)), answer(10, Ok(2))].into_iter()).await.unwrap();
        assert_eq!((won, start.elapsed().as_millis()), (2, 260));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_starts_the_next_at_once() {
        let start = Instant::now();
        let won = race([answer(5, Err(lost())), answer(5, Err(lost())), answer(5, Ok(3))].into_iter()).await.unwrap();
        assert_eq!((won, start.elapsed().as_millis()), (3, 15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_may_still_win() {
        assert_eq!(race([answer(300, Ok(1)), answer(60_000, Ok(2))].into_iter()).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_failure_that_cannot_be_mended_is_told() {
        let permanent = Error::Certificate("test".into());
        let dials = [answer(5, Err(permanent)), answer(5, Err(lost()))];
        assert!(matches!(race(dials.into_iter()).await, Err(Some(Error::Certificate(_)))));
        assert!(matches!(race(std::iter::empty::<Dial>()).await, Err(None)));
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
