//! Delivers an attempt's outbox to whichever controller can be reached.

use ado_proto::ErrorCode;
use ado_proto::request::TaskOutput;
use ado_proto::session::{FromAttempt, ToAttempt};

use super::attempt::Delivery;
use super::backoff;
use super::metrics::Metrics;
use super::outbox::SharedOutbox;
use crate::env::Env;
use crate::net::{self, Call, Channel, Link, Priority};

/// How one stream ended.
enum Over {
    Complete,
    Stale,
    /// Another stream may do better. Whether this one got anything acknowledged.
    Broken {
        progress: bool,
    },
}

/// Runs until everything is in the log or the epoch is over.
pub(super) async fn deliver(
    link: Link,
    request: TaskOutput,
    outbox: &SharedOutbox,
    env: &Env,
    metrics: &Metrics,
) -> Delivery {
    let mut failures = 0;
    loop {
        let call = Call { priority: Priority::Live, ..Call::default() };
        match link.open(&request, call).await {
            Ok((accepted, channel)) => {
                if let Err(error) = outbox.connected(accepted.next_seq) {
                    tracing::error!(%error, "the log is not the one this attempt wrote into");
                    return Delivery::Stale;
                }
                let over = converse(channel, outbox, metrics).await;
                outbox.disconnected();
                match over {
                    Over::Complete => return Delivery::Complete,
                    Over::Stale => return Delivery::Stale,
                    Over::Broken { progress } => failures = if progress { 0 } else { failures + 1 },
                }
            }
            Err(net::Error::Refused(reply)) if reply.is(ErrorCode::Stale) || reply.is(ErrorCode::NotFound) => {
                return Delivery::Stale;
            }
            Err(net::Error::Closed) => return Delivery::Stale,
            Err(error) => {
                // The agent goes on: its lease, not this stream, says for how long.
                failures += 1;
                tracing::debug!(%error, failures, "cannot deliver output; trying again");
            }
        }
        tokio::time::sleep(backoff(failures, env.jitter())).await;
    }
}

/// Sends what there is and takes acknowledgements, at the same time.
async fn converse(channel: Channel, outbox: &SharedOutbox, metrics: &Metrics) -> Over {
    let Channel { mut tx, mut rx } = channel;
    let mut progress = false;
    // Sending is not cancel safe; the select drops it only together with the stream.
    let send = async {
        loop {
            match outbox.next_frame().await {
                Ok(Some(records)) => {
                    metrics.sent(records.0.len());
                    if tx.send_message(&FromAttempt::from(records)).await.is_err() {
                        // The receiving half knows why.
                        std::future::pending::<()>().await;
                    }
                }
                Ok(None) => {
                    tx.finish();
                    return Over::Complete;
                }
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be read; the attempt is lost");
                    return Over::Stale;
                }
            }
        }
    };
    let receive = async {
        loop {
            match rx.next_message::<ToAttempt>().await {
                Ok(Some(ToAttempt::Acknowledged(acknowledged))) => {
                    if let Err(error) = outbox.acknowledged(acknowledged.next_seq) {
                        tracing::warn!(%error, "an acknowledgement makes no sense");
                        return Over::Broken { progress };
                    }
                    metrics.acknowledged();
                    progress = true;
                }
                Ok(Some(ToAttempt::Stale(_))) => return Over::Stale,
                Ok(Some(ToAttempt::Unknown { .. })) => {}
                Ok(None) => return Over::Broken { progress },
                Err(error) => {
                    tracing::debug!(%error, "an output stream broke");
                    return Over::Broken { progress };
                }
            }
        }
    };
    tokio::select! {
        biased;
        over = receive => over,
        over = send => over,
    }
}
