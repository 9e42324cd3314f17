//! From the socket's queues to the WebSocket, and back.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::socket::Ends;

/// Carries packets until the WebSocket ends, or quinn's socket is dropped. Neither direction waits for the other: two
/// full ones would wait for ever.
pub(super) async fn carry<S>(stream: WebSocketStream<S>, ends: Ends)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_peer, mut from_peer) = stream.split();
    let Ends { mut sent, received } = ends;
    let sending = async {
        while let Some(packet) = sent.recv().await {
            to_peer.feed(Message::Binary(packet)).await?;
            while let Ok(packet) = sent.try_recv() {
                to_peer.feed(Message::Binary(packet)).await?;
            }
            to_peer.flush().await?;
        }
        to_peer.close().await
    };
    let receiving = async {
        while let Some(message) = from_peer.next().await {
            let packet = match message? {
                Message::Binary(packet) => packet,
                Message::Close(_) => break,
                // Pings are answered by the library; nobody means anything by a text.
                _ => continue,
            };
            if received.send(packet).await.is_err() {
                break;
            }
        }
        Ok::<_, Error>(())
    };
    let ended = tokio::select! {
        biased;
        ended = receiving => ended,
        ended = sending => ended,
    };
    tracing::debug!(?ended, "WebSocket ended");
}
