//! A connection that is kept: made anew when it breaks, and known to be broken meanwhile, so that nobody waits for it
//! twice.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, PushInfo, PushKind, RedisError, Value};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::env::Env;
use crate::queue::Error;

/// A command that is not answered for this long has failed, and the connection with it. All commands fail at once from
/// then on, until a new connection has proved itself.
pub(super) const ANSWER: Duration = Duration::from_millis(500);
/// The longest a connection may take to prove itself, from the name's resolution on.
const CONNECT: Duration = Duration::from_secs(2);
/// How often a silent connection is asked whether it lives.
const PROBE: Duration = Duration::from_secs(1);
/// The first wait between two connections, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A connection that held for this long was a good one: the wait after it is the first again.
const STEADY: Duration = Duration::from_secs(5);
/// How long the key that proves that this Redis takes writes is kept.
const PROOF_SECONDS: u64 = 60;

/// Hears what is published.
pub(super) trait Listener: Send + Sync + 'static {
    /// A message came on a channel.
    fn heard(&self, channel: &[u8], payload: &[u8]);
    /// A connection was made or lost: whatever was published around now is not known.
    fn gap(&self);
}

/// See the module. Clones share the connection.
#[derive(Clone)]
pub(super) struct Link {
    up: watch::Sender<Option<Up>>,
}

#[derive(Clone)]
struct Up {
    connection: MultiplexedConnection,
    /// Which start of the server this is: another one may have lost everything.
    run: Arc<str>,
    since: Instant,
    broken: CancellationToken,
}

/// What to connect to, and how.
pub(super) struct Target {
    pub(super) client: Client,
    pub(super) channels: Vec<String>,
    /// A key to write.
    pub(super) proof: String,
}

impl Link {
    /// No connection yet.
    pub(super) fn new() -> Self {
        Self { up: watch::Sender::new(None) }
    }

    /// Whether there is a connection that is not known to be broken.
    pub(super) fn is_up(&self) -> bool {
        self.up.borrow().as_ref().is_some_and(|up| !up.broken.is_cancelled())
    }

    /// Resolves when there is one.
    pub(super) async fn came_up(&self) {
        // The sender is this one's own.
        let _ = self.up.subscribe().wait_for(Option::is_some).await;
    }

    /// The start of the server that is connected.
    pub(super) fn run(&self) -> Result<Arc<str>, Error> {
        self.current().map(|up| up.run)
    }

    /// Has commands done: answered within [`ANSWER`], or failed.
    pub(super) async fn ask<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        let up = self.current()?;
        let result = within(ANSWER, commands.query_async(&mut up.connection.clone())).await;
        if result.is_err() {
            // Whatever the reason: what does not do as it is told now is not relied on until it has proved itself.
            up.broken.cancel();
        }
        result
    }

    fn current(&self) -> Result<Up, Error> {
        let up = self.up.borrow().clone().filter(|up| !up.broken.is_cancelled());
        up.ok_or_else(|| Error("there is no connection to Redis".into()))
    }

    /// The first connection, if it can be had at once.
    pub(super) async fn first(&self, target: &Target, listener: &Arc<impl Listener>) {
        match connect(target, listener).await {
            Ok(up) => self.rise(up, &**listener),
            Err(error) => tracing::warn!(%error, "Redis is not to be had: tasks are claimed from the store"),
        }
    }

    /// Keeps a connection. Runs until it is dropped.
    pub(super) async fn keep(self, target: Target, listener: Arc<impl Listener>, env: Env) {
        let mut wait = BACK_OFF.0;
        loop {
            let up = self.up.borrow().clone();
            if let Some(up) = up {
                watch_over(&up).await;
                self.up.send_replace(None);
                listener.gap();
                tracing::warn!("Redis is lost: tasks are claimed from the store");
                if up.since.elapsed() > STEADY {
                    wait = BACK_OFF.0;
                }
            }
            // Controllers that lost it together do not come back together.
            tokio::time::sleep(wait.mul_f64(0.5 + env.jitter() / 2.0)).await;
            wait = (wait * 2).min(BACK_OFF.1);
            match connect(&target, &listener).await {
                Ok(up) => {
                    tracing::info!("Redis is there");
                    self.rise(up, &*listener);
                }
                Err(error) => tracing::debug!(%error, "Redis is still not to be had"),
            }
        }
    }

    fn rise(&self, up: Up, listener: &impl Listener) {
        self.up.send_replace(Some(up));
        listener.gap();
    }
}

/// Resolves when a connection is broken.
async fn watch_over(up: &Up) {
    let mut ping = Pipeline::new();
    ping.cmd("PING");
    loop {
        tokio::select! {
            biased;
            () = up.broken.cancelled() => return,
            () = tokio::time::sleep(PROBE) => {}
        }
        if within::<Value>(ANSWER, ping.query_async(&mut up.connection.clone())).await.is_err() {
            return up.broken.cancel();
        }
    }
}

/// A connection that hears what is published, to a Redis that takes writes.
async fn connect(target: &Target, listener: &Arc<impl Listener>) -> Result<Up, Error> {
    within(CONNECT, try_connect(target, listener)).await
}

async fn try_connect(target: &Target, listener: &Arc<impl Listener>) -> Result<Up, RedisError> {
    let broken = CancellationToken::new();
    let (hears, ends) = (listener.clone(), broken.clone());
    let pushed = move |info: PushInfo| -> Result<(), std::convert::Infallible> {
        match (info.kind, &info.data[..]) {
            (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) => {
                hears.heard(channel, payload);
            }
            (PushKind::Disconnection, _) => ends.cancel(),
            _ => {}
        }
        Ok(())
    };
    // The limits are those of `within`.
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None).set_push_sender(pushed);
    let mut connection = target.client.get_multiplexed_async_connection_with_config(&config).await?;
    connection.subscribe(&target.channels).await?;
    // One that is full, or a replica, would answer everything else.
    let mut proof = Pipeline::new();
    proof.cmd("SET").arg(&target.proof).arg(1).arg("EX").arg(PROOF_SECONDS);
    let _: Value = proof.query_async(&mut connection).await?;
    // Not everybody may ask. Then only a flush is noticed, and the sweep finds what a restart lost.
    let info: Option<redis::InfoDict> = redis::cmd("INFO").arg("server").query_async(&mut connection).await.ok();
    let run = info.and_then(|info| info.get::<String>("run_id")).unwrap_or_default();

    Ok(Up { connection, run: run.into(), since: Instant::now(), broken })
}

async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, Error> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(|error| Error(error.to_string())),
        Err(_) => Err(Error(format!("Redis has not answered for {limit:?}"))),
    }
}
