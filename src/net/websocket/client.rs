//! Dialling a WebSocket.

use std::sync::Arc;
use std::time::Duration;

use ado_certs::SERVER_NAME;
use quinn::EndpointConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;

use super::carry::carry;
use super::socket::Socket;
use super::{PATH, limits, tune};
use crate::net::error::{Error, code};
use crate::tasks::Tasks;

/// Longest dial. It takes some four round trips: TCP, TLS, HTTP, QUIC.
const DIAL_FOR: Duration = Duration::from_secs(10);

/// Dials WebSockets.
pub(in crate::net) struct Outer {
    tls: TlsConnector,
    tasks: Tasks,
}

impl Outer {
    pub(in crate::net) fn new(tasks: &Tasks) -> Result<Self, Error> {
        let tls = ado_certs::outer::client().map_err(|error| Error::Certificate(error.to_string()))?;
        Ok(Self { tls: tls.into(), tasks: tasks.clone() })
    }

    /// A connection to `host` (`host:port`) through a WebSocket.
    pub(in crate::net) async fn dial(&self, host: &str, quic: quinn::ClientConfig) -> Result<quinn::Connection, Error> {
        let unreachable =
            |cause: String| Error::Unreachable { addresses: host.into(), cause: format!("by WebSocket: {cause}") };
        match timeout(DIAL_FOR, self.connect(host, quic)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(Failure::Outer(cause))) => Err(unreachable(cause)),
            Ok(Err(Failure::Quic(Error::Lost(cause)))) => Err(unreachable(cause)),
            Ok(Err(Failure::Quic(error))) => Err(error),
            Err(_) => Err(unreachable(format!("no answer within {DIAL_FOR:?}"))),
        }
    }

    async fn connect(&self, host: &str, quic: quinn::ClientConfig) -> Result<quinn::Connection, Failure> {
        let stream = TcpStream::connect(host).await?;
        tune(&stream)?;
        let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let name = ServerName::try_from(bare(host).to_owned()).unwrap_or_else(|_| peer.ip().into());
        let stream = self.tls.connect(name, stream).await?;
        let url = format!("wss://{host}{PATH}");
        let (stream, _) = client_async_with_config(url, stream, Some(limits())).await?;
        let (socket, ends) = Socket::new(own, peer);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime)?;
        let connecting = endpoint.connect_with(quic, peer, SERVER_NAME)?;
        self.tasks.spawn_until_stop("websocket", async move {
            tokio::select! {
                biased;
                () = carry(stream, ends) => endpoint.close(code::DONE, b"the WebSocket ended"),
                // It is there for this connection.
                () = endpoint.wait_idle() => {}
            }
        });
        connecting.await.map_err(|error| Failure::Quic(error.into()))
    }
}

enum Failure {
    /// Before QUIC: TCP, TLS, HTTP.
    Outer(String),
    Quic(Error),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Outer(error.to_string())
    }
}

/// `host:port` without the port, an IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_asked_for_by_its_name_alone() {
        assert_eq!(bare("ado.example:443"), "ado.example");
        assert_eq!(bare("10.0.0.1:4433"), "10.0.0.1");
        assert_eq!(bare("[2001:db8::1]:443"), "2001:db8::1");
    }
}
