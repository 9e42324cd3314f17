//! Accepting WebSockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::AsyncUdpSocket;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::carry::carry;
use super::socket::{Ends, Socket};
use super::{PATH, limits, tune};

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 256;
/// After a failure that is not a connection's own (no file handle is left): looking again at once would only burn time.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// What a TLS handshake begins with (RFC 8446 section 5.1): the record type "handshake".
const TLS_HANDSHAKE: u8 = 22;

/// Listens on TCP.
pub(in crate::net) struct Listener {
    listener: TcpListener,
    tls: TlsAcceptor,
}

/// A TCP socket at `address`. Like UDP's, one a family.
pub(in crate::net) fn bind(address: SocketAddr, tls: Arc<rustls::ServerConfig>) -> io::Result<Listener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restarted controller must not wait for the connections of the former one to be forgotten.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Listener { listener: TcpListener::from_std(socket.into())?, tls: tls.into() })
}

/// A connection that is no WebSocket yet.
pub(in crate::net) struct Arriving {
    stream: TcpStream,
    from: SocketAddr,
    own: SocketAddr,
    tls: TlsAcceptor,
}

/// A WebSocket: what quinn sends through, and who carries its packets for as long as it is polled.
pub(in crate::net) struct Arrived {
    pub(in crate::net) socket: Arc<dyn AsyncUdpSocket>,
    pub(in crate::net) carrying: BoxFuture<'static, ()>,
}

impl Listener {
    /// The next connection. Cancel safe.
    pub(in crate::net) async fn accept(&self) -> Arriving {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => match tune(&stream).and_then(|()| stream.local_addr()) {
                    Ok(own) => return Arriving { stream, from, own, tls: self.tls.clone() },
                    Err(error) => tracing::debug!(%from, %error, "TCP connection lost"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept TCP connections");
                    sleep(AFTER_FAILURE).await;
                }
            }
        }
    }
}

impl Arriving {
    /// Where it comes from.
    pub(in crate::net) fn from(&self) -> SocketAddr {
        self.from
    }

    /// The handshakes. TLS may have been ended by a reverse proxy before us.
    pub(in crate::net) async fn shake_hands(self) -> Result<Arrived, String> {
        let (socket, ends) = Socket::new(self.own, self.from);
        let mut first = [0];
        let read = self.stream.peek(&mut first).await.map_err(|error| error.to_string())?;
        let carrying = if (read, first) == (1, [TLS_HANDSHAKE]) {
            let stream = self.tls.accept(self.stream).await.map_err(|error| error.to_string())?;
            carried(stream, ends).await?
        } else {
            carried(self.stream, ends).await?
        };
        Ok(Arrived { socket, carrying })
    }
}

async fn carried<S>(stream: S, ends: Ends) -> Result<BoxFuture<'static, ()>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream: WebSocketStream<S> =
        accept_hdr_async_with_config(stream, ours, Some(limits())).await.map_err(|error| error.to_string())?;
    Ok(Box::pin(carry(stream, ends)))
}

/// Whether it is ado that is asked for.
#[expect(clippy::result_large_err, reason = "the library's signature")]
fn ours(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() == PATH {
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(Some(format!("nothing is here but {PATH}\n")));
    *refusal.status_mut() = StatusCode::NOT_FOUND;
    Err(refusal)
}
