//! From streams to requests: the first frame of each, within limits of time and size.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::ErrorCode;
use ado_proto::frame::Limits;
use ado_proto::request::{ErrorReply, Header, decode_header, encode_response};
use ado_proto::version::{MINOR, OLDEST_MINOR};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use super::channel::{Carrier, Channel, Priority};
use super::error::{Error, code};

/// How long a stream's first frame may take, and how long the answer that refuses it.
const FIRST_FRAME_FOR: Duration = Duration::from_secs(10);
/// Streams of one connection whose first frame is being read. More wait, held back by QUIC.
const UNREAD: usize = 64;

/// A request as it came.
pub struct Incoming {
    /// What is asked.
    pub header: Header,
    /// The request's body.
    pub body: Bytes,
    /// For the answer, and what follows it.
    pub channel: Channel,
}

/// The streams of one connection that are not requests yet.
pub(super) struct Reading {
    limits: Limits,
    streams: FuturesUnordered<Pin<Box<dyn Future<Output = Option<Incoming>> + Send>>>,
}

impl Reading {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, streams: FuturesUnordered::new() }
    }

    /// The next request, in the order in which their first frames are complete. Cancel safe.
    pub(super) async fn next(&mut self, carrier: &Arc<Carrier>) -> Option<Incoming> {
        loop {
            tokio::select! {
                biased;
                Some(first) = self.streams.next() => if first.is_some() {
                    return first;
                },
                stream = carrier.quic.accept_bi(), if self.streams.len() < UNREAD => {
                    let (tx, rx) = stream.ok()?;
                    let channel = carrier.channel(tx, rx, self.limits, Priority::Control);
                    self.streams.push(Box::pin(first(carrier.clone(), channel, self.limits)));
                }
            }
        }
    }
}

/// Reads a request, or refuses what is none.
async fn first(carrier: Arc<Carrier>, mut channel: Channel, limits: Limits) -> Option<Incoming> {
    let refusal = match timeout(FIRST_FRAME_FOR, channel.rx.next()).await {
        Ok(Ok(Some(frame))) => match decode_header(&frame) {
            Ok((header, body)) if header.minor >= OLDEST_MINOR => return Some(Incoming { header, body, channel }),
            Ok((header, _)) => too_old(header.minor),
            Err(error) => invalid(error.to_string()),
        },
        Ok(Ok(None)) => invalid("the stream ended before a request".into()),
        Ok(Err(Error::Protocol(what))) => invalid(what),
        // The peer gave the stream up, or is gone.
        Ok(Err(_)) => return None,
        Err(_) => invalid(format!("no request within {FIRST_FRAME_FOR:?}")),
    };
    tracing::debug!(from = %carrier.quic.remote_address(), error = %refusal, "request refused");
    if limits == Limits::STRANGER {
        carrier.quic.close(code::PROTOCOL, refusal.message.as_bytes());
        return None;
    }
    let answer = encode_response::<()>(&Err(refusal));
    // A peer that does not read its refusal misses it.
    if let Ok(Ok(())) = timeout(FIRST_FRAME_FOR, channel.tx.send(&answer)).await {
        channel.tx.finish();
    }
    None
}

fn invalid(message: String) -> ErrorReply {
    ErrorReply::new(ErrorCode::Invalid, message)
}

fn too_old(minor: u16) -> ErrorReply {
    ErrorReply::new(
        ErrorCode::UnsupportedVersion,
        format!("the request is of protocol version 1.{minor}; this controller speaks 1.{OLDEST_MINOR} to 1.{MINOR}"),
    )
    .hint("use the same release of ado on both sides")
}
