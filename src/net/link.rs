//! The calling side: a session with a mesh's controllers that outlives its connections.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_certs::ClientTls;
use ado_proto::request::{Header, Request, Safety, decode_response, encode_request};
use ado_proto::version::MINOR;
use ado_proto::{Namespace, RequestId};
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::blocked::Blocked;
use super::changes::{Change, Changes};
use super::channel::{Carrier, Channel, Priority};
use super::dial::{Dialled, Dialler, Via, own_address};
use super::endpoint::Sockets;
use super::error::{Error, code};
use super::kick::Kick;
use super::pulse::{self, End};
use crate::env::Env;
use crate::tasks::Tasks;

/// First wait between failed rounds of dials; doubles up to the configured interval.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Keep-alives that get no packet back before another connection is dialled beside the silent one. One may be lost on
/// the wire, and one be late.
const SILENT_KEEP_ALIVES: u32 = 3;
/// The same in packets that were sent since something was heard last: a lost one is sent again after little more than a
/// round trip, and again after twice that. Not before a short time and some round trips are over.
const UNANSWERED: u64 = 3;
const UNANSWERED_FOR: Duration = Duration::from_millis(500);
const UNANSWERED_RTTS: u32 = 4;
/// How long a silent connection may take to answer once another one to the same place could be made, and how many round
/// trips at least.
const COME_BACK_FOR: Duration = Duration::from_millis(100);
const COME_BACK_RTTS: u32 = 3;
/// How often in a keep-alive's interval is looked.
const LOOKS: u32 = 8;
/// How often is looked whether a silent connection is heard again.
const SOUND_EVERY: Duration = Duration::from_millis(20);
/// How long after it had to leave it a link tries UDP again, and how seldom in the end. It costs a packet or two.
const BACK_FIRST: Duration = Duration::from_secs(2);
const BACK_MOST: Duration = Duration::from_secs(60);
/// How long a connection that was left for a better one is kept for the answers that are on their way.
const RETIRED_FOR: Duration = Duration::from_secs(1);
const MOVED: &str = "moved to UDP";
/// How long [`Link::close`] waits for what was sent to arrive.
const DRAIN_FOR: Duration = Duration::from_secs(2);
/// How long [`Link::close`] waits for its last packet to leave. It is not repeated: a server that misses it notices by
/// the idle timeout, and a command must not be kept from ending.
const FAREWELL_FOR: Duration = Duration::from_millis(10);

/// Gives `host:port` of one or several controllers of one mesh, in order of preference. It may change between calls (a
/// local controller that was restarted on another port).
pub type Addresses = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// How a [`Link`] finds and treats its peer.
#[derive(Clone)]
pub struct LinkConfig {
    /// Asked before every round of dials.
    pub addresses: Addresses,
    /// Who we are, and whom we trust.
    pub tls: ClientTls,
    /// Longest wait between failed dials. First dials are immediate.
    pub reconnect_interval: Duration,
    /// Keep-alive interval.
    pub keep_alive: Duration,
    /// A connection silent for this long is given up.
    pub idle_timeout: Duration,
    /// Whether a WebSocket is used where UDP does not get through, and on which networks that is known to be so.
    pub websocket: Option<Arc<Blocked>>,
    /// Where sockets come from; `None`: the operating system.
    pub sockets: Option<Arc<dyn Sockets>>,
}

/// Where a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected; with the last failure, if any.
    Connecting(Option<String>),
    /// Connected to this address. `number` rises with every connection.
    Connected {
        /// The peer's address.
        to: SocketAddr,
        /// Counts connections, from 1.
        number: u64,
        /// What its packets travel in.
        via: Via,
    },
    /// It will not connect any more: closed, or a failure that trying again cannot mend.
    Closed(String),
}

/// How a call is made.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// Key of idempotency for mutations.
    pub id: Option<RequestId>,
    /// The namespace meant; `None` is the certificate's.
    pub namespace: Option<Namespace>,
    /// Longest time in all, reconnects included; `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// Its stream's priority.
    pub priority: Priority,
}

/// A session with a mesh's controllers: connected when it can be, reconnecting when it was not. Clones share it. When
/// the last one is dropped it ends, and its connection with the last stream on it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    _ends_with: Arc<DropGuard>,
}

struct Shared {
    dialler: Dialler,
    env: Env,
    tasks: Tasks,
    phase: watch::Sender<Phase>,
    state: watch::Sender<LinkState>,
    // When the other side was last known to be there; `None` while it is.
    away_since: Mutex<Option<Instant>>,
    // The network has changed: dial now, or else ask whether the other side is still there.
    nudge: Notify,
    changed: Notify,
    stop: CancellationToken,
}

#[derive(Clone)]
enum Phase {
    Down(Option<Error>),
    Up(Live),
    Closed(Error),
}

#[derive(Clone)]
struct Live {
    carrier: Arc<Carrier>,
    number: u64,
    via: Via,
}

impl Link {
    /// Starts dialling.
    ///
    /// # Errors
    /// [`Error::Closed`] when `tasks` are stopping already; [`Error::Certificate`] when the TLS configuration does not fit
    /// QUIC.
    pub fn start(config: LinkConfig, env: Env, tasks: &Tasks) -> Result<Self, Error> {
        if tasks.is_stopping() {
            return Err(Error::Closed);
        }
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            dialler: Dialler::new(config, tasks)?,
            env,
            tasks: tasks.clone(),
            phase: watch::Sender::new(Phase::Down(None)),
            state: watch::Sender::new(LinkState::Connecting(None)),
            away_since: Mutex::new(Some(Instant::now())),
            nudge: Notify::new(),
            changed: Notify::new(),
            stop: stop.clone(),
        });
        let (work, all) = (shared.clone(), tasks.clone());
        // A simulated network tells of its changes itself.
        if shared.dialler.config.sockets.is_none() {
            let (watching, stop) = (shared.clone(), stop.clone());
            tasks.spawn_until_stop("network", async move {
                stop.run_until_cancelled(watching.follow_network()).await;
            });
        }
        tasks.spawn("link", async move {
            let error = tokio::select! {
                biased;
                () = all.stopping() => Error::Closed,
                () = stop.cancelled() => Error::Closed,
                error = work.stay_connected() => error,
            };
            tracing::debug!(%error, "link closed");
            // Nobody is left waiting for a connection.
            work.enter(Phase::Closed(error));
        });
        let _ends_with = Arc::new(shared.stop.clone().drop_guard());
        Ok(Self { shared, _ends_with })
    }

    /// Asks and waits for the answer. Waits for a connection first; a request that is safe to repeat (a read, or a
    /// mutation with a request id) is sent again when the connection is lost.
    ///
    /// # Errors
    /// [`Error::Refused`] is the other side's answer. [`Error::Unreachable`] and [`Error::Timeout`] when the time is
    /// over, without and with a connection. [`Error::Lost`] when it may or may not have been done and must not be
    /// repeated. [`Error::Certificate`], [`Error::Version`] and [`Error::Closed`] when the link is closed.
    pub async fn call<R: Request>(&self, request: &R, call: Call) -> Result<R::Response, Error> {
        self.shared.ask::<R>(request, &call, After::Nothing).await.map(|(response, _)| response)
    }

    /// Opens a streaming request on the current connection (waits for one): the answer, then the stream. When the
    /// connection is lost the stream fails with [`Error::Lost`], and the caller opens another from its cursor.
    ///
    /// # Errors
    /// Those of [`Link::call`].
    pub async fn open<R: Request>(&self, request: &R, call: Call) -> Result<(R::Response, Channel), Error> {
        self.shared.ask::<R>(request, &call, After::Stream).await
    }

    /// Where the link is.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }

    /// Estimated round trip of the current connection; `None` while there is none.
    pub fn rtt(&self) -> Option<Duration> {
        match &*self.shared.phase.borrow() {
            Phase::Up(live) => Some(live.carrier.quic.rtt()),
            Phase::Down(_) | Phase::Closed(_) => None,
        }
    }

    /// Since when the other side has not been heard, connected or not; `None` while it is there. Before the first
    /// connection: since the link was started.
    pub fn away_since(&self) -> Option<Instant> {
        *self.shared.away()
    }

    /// The network has changed: moves to fresh sockets, asks whether the other side is still there, and dials at once if
    /// not connected. Links on the operating system's sockets notice by themselves.
    pub fn network_changed(&self) {
        self.shared.moved();
    }

    /// Closes the connection, after what was sent on finished streams has arrived or a short time has passed.
    pub async fn close(&self) {
        let last = self.shared.phase.borrow().clone();
        self.shared.enter(Phase::Closed(Error::Closed));
        self.shared.stop.cancel();
        if let Phase::Up(live) = last {
            live.carrier.drained(DRAIN_FOR).await;
            live.carrier.say_goodbye(code::DONE, FAREWELL_FOR).await;
        }
        self.shared.dialler.endpoints.close();
    }
}

/// What follows a request on its stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Nothing,
    Stream,
}

impl Shared {
    async fn ask<R: Request>(&self, request: &R, call: &Call, after: After) -> Result<(R::Response, Channel), Error> {
        let (id, namespace) = (call.id, call.namespace.clone());
        let header = Header { minor: MINOR, kind: R::KIND, version: R::VERSION, id, namespace };
        let frame = encode_request(&header, request);
        let repeatable = match R::SAFETY {
            Safety::Read => true,
            Safety::Idempotent => id.is_some(),
            Safety::Once => false,
        };
        let work = self.send(&frame, call.priority, repeatable, after);
        let (answer, channel) = match call.timeout {
            None => work.await?,
            Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| Err(self.late(limit)))?,
        };
        match decode_response::<R>(&answer) {
            Ok(Ok(response)) => Ok((response, channel)),
            Ok(Err(refusal)) => Err(Error::Refused(refusal)),
            Err(error) => Err(Error::Protocol(error.to_string())),
        }
    }

    /// Sends a request until there is an answer, or none may be expected.
    async fn send(
        &self,
        frame: &[u8],
        priority: Priority,
        repeatable: bool,
        after: After,
    ) -> Result<(Bytes, Channel), Error> {
        let mut tried = 0;
        loop {
            let Live { carrier, number, .. } = self.connected_after(tried).await?;
            tried = number;
            // Nothing was sent yet, so another connection will do whatever the request.
            let Ok(mut channel) = carrier.open(priority).await else { continue };
            match exchange(&mut channel, frame, after).await {
                Ok(answer) => return Ok((answer, channel)),
                Err(_) if repeatable && carrier.quic.close_reason().is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The current connection, unless it is one that was `tried` and found dead.
    async fn connected_after(&self, tried: u64) -> Result<Live, Error> {
        let mut phase = self.phase.subscribe();
        let found = phase
            .wait_for(|phase| match phase {
                Phase::Up(live) => live.number > tried,
                Phase::Closed(_) => true,
                Phase::Down(_) => false,
            })
            .await;
        match found.as_deref() {
            Ok(Phase::Up(live)) => Ok(live.clone()),
            Ok(Phase::Closed(error)) => Err(error.clone()),
            Ok(Phase::Down(_)) | Err(_) => Err(Error::Closed),
        }
    }

    fn late(&self, limit: Duration) -> Error {
        match &*self.phase.borrow() {
            Phase::Up(_) => Error::Timeout(limit),
            Phase::Closed(error) => error.clone(),
            Phase::Down(Some(error @ Error::Unreachable { .. })) => error.clone(),
            Phase::Down(error) => Error::Unreachable {
                addresses: (self.dialler.config.addresses)().join(", "),
                cause: error.as_ref().map_or_else(|| format!("no answer within {limit:?}"), ToString::to_string),
            },
        }
    }

    /// Connects again and again, until that makes no sense.
    async fn stay_connected(&self) -> Error {
        let mut number = 0;
        let mut replacement = None;
        // Whether the other side has refused our certificate since it last answered.
        let mut refused = false;
        // Grows with connections that end before anything came of them.
        let mut useless = Backoff::default();
        loop {
            let dialled = match replacement.take() {
                Some(dialled) => Ok(dialled),
                None => self.connect().await,
            };
            let lost = match dialled {
                Err(error) => error,
                Ok(Dialled { connection, kick, via }) => {
                    number += 1;
                    tracing::debug!(to = %connection.remote_address(), number, ?via, "connected");
                    let live = Live { carrier: Carrier::new(connection, ()), number, via };
                    self.enter(Phase::Up(live.clone()));
                    let (lost, next) = tokio::select! {
                        biased;
                        over = self.hold(&live) => over,
                        () = self.tend(&live, &kick) => (Error::Closed, None),
                    };
                    replacement = next;
                    if live.carrier.quic.stats().frame_rx.stream > 0 {
                        // Only a server that let us in answers.
                        (refused, useless) = (false, Backoff::default());
                    }
                    lost
                }
            };
            if !lost.is_transient() {
                match lost {
                    Error::Certificate(_) if !refused => refused = true,
                    lost => return lost,
                }
                // The certificate a resumed session began with may be over while there is a newer one.
                self.dialler.config.tls.forget_sessions();
            }
            if replacement.is_none() {
                tracing::debug!(%lost, "not connected");
                self.enter(Phase::Down(Some(lost)));
                useless.wait(self).await;
            }
        }
    }

    /// Dials until connected, or until it is known that dialling again is of no use.
    async fn connect(&self) -> Result<Dialled, Error> {
        let mut backoff = Backoff { waits: 1 };
        loop {
            let round = tokio::select! {
                biased;
                () = self.nudge.notified() => continue,
                round = self.dialler.round(self.env.jitter()) => round,
            };
            match round {
                Err(error) if error.is_transient() => self.note(error),
                settled => return settled,
            }
            backoff.wait(self).await;
        }
    }

    /// Never ends.
    async fn tend(&self, live: &Live, kick: &Kick) {
        pulse::tend(&live.carrier.quic, kick, End::Client, &self.changed).await;
    }

    /// Follows the network this machine is on. Never ends.
    async fn follow_network(&self) {
        let mut changes = Changes::watch();
        let mut own = self.own();
        loop {
            let change = changes.next().await;
            let before = std::mem::replace(&mut own, self.own());
            match change {
                Change::Look if own == before => {}
                // Its sockets are as good as before.
                Change::Told if own == before => self.asked_again(),
                Change::Told | Change::Look | Change::Woke => {
                    tracing::debug!(?change, ?before, ?own, "the network has changed");
                    self.moved();
                }
            }
        }
    }

    /// Where packets to the other side leave from; `None` when there is no way, or nobody yet.
    fn own(&self) -> Option<IpAddr> {
        let peer = match &*self.phase.borrow() {
            Phase::Up(live) => live.carrier.quic.remote_address(),
            Phase::Down(_) | Phase::Closed(_) => self.dialler.last_lost()?,
        };
        own_address(peer).ok()
    }

    fn moved(&self) {
        self.dialler.endpoints.rebind();
        self.asked_again();
    }

    fn asked_again(&self) {
        self.nudge.notify_one();
        self.changed.notify_one();
    }

    /// Waits for the end of a connection. A silent one is over when another could be made before it was heard again.
    async fn hold(&self, live: &Live) -> (Error, Option<Dialled>) {
        let connection = &live.carrier.quic;
        let mut back = pin!(self.back_to_udp(live.via));
        let keep_alive = self.dialler.config.keep_alive;
        loop {
            let silent_for;
            // To wait for the only one there is costs nothing.
            let others = (self.dialler.config.addresses)().len() > 1;
            tokio::select! {
                biased;
                error = connection.closed() => {
                    self.dialler.lost(connection.remote_address());
                    return (error.into(), None);
                }
                silent = silence(connection, keep_alive, others) => silent_for = silent,
                dialled = &mut back => {
                    self.retire(live.carrier.clone());
                    return (Error::Lost(MOVED.into()), Some(dialled));
                }
            }
            tracing::debug!("silent: dialling another connection");
            // What forgot us on the way (a NAT) may know a fresh port.
            self.dialler.endpoints.rebind();
            self.dialler.lost(connection.remote_address());
            let now = Instant::now();
            *self.away() = Some(now.checked_sub(silent_for).unwrap_or(now));
            tokio::select! {
                biased;
                error = connection.closed() => return (error.into(), None),
                () = sound(connection, keep_alive) => *self.away() = None,
                dialled = self.connect() => {
                    if let Ok(next) = &dialled
                        && self.came_back(live, next).await
                    {
                        *self.away() = None;
                        next.connection.close(code::DONE, b"not needed");
                        continue;
                    }
                    connection.close(code::DONE, b"replaced");
                    let silent = Error::Lost("the other side was silent".into());
                    return match dialled {
                        Ok(next) => (silent, Some(next)),
                        Err(error) => (error, None),
                    };
                }
            }
        }
    }

    /// Whether a connection that was silent answers, now that `next` shows that the way to its other side is there: it
    /// has streams that need not be opened anew.
    async fn came_back(&self, live: &Live, next: &Dialled) -> bool {
        let (silent, next) = (&live.carrier.quic, (&next.connection, next.via));
        if (next.0.remote_address(), next.1) != (silent.remote_address(), live.via) {
            return false;
        }
        self.changed.notify_one();
        let patience = COME_BACK_FOR.max(next.0.rtt() * COME_BACK_RTTS);
        timeout(patience, sound(silent, self.dialler.config.keep_alive)).await.is_ok()
    }

    /// Resolves with a connection over UDP, for one that goes `via` something else.
    async fn back_to_udp(&self, via: Via) -> Dialled {
        if via == Via::Udp {
            std::future::pending::<()>().await;
        }
        let mut wait = BACK_FIRST;
        loop {
            tokio::select! {
                biased;
                () = self.nudge.notified() => wait = BACK_FIRST,
                () = sleep(wait) => wait = (wait * 2).min(BACK_MOST),
            }
            match self.dialler.over_udp(self.env.jitter()).await {
                Ok(dialled) => {
                    self.dialler.unblocked().await;
                    return dialled;
                }
                Err(error) => tracing::debug!(%error, "UDP is blocked still"),
            }
        }
    }

    /// Lets what is being asked on a connection that still works end on it; then it is closed, and streams go on elsewhere.
    fn retire(&self, carrier: Arc<Carrier>) {
        self.tasks.spawn_until_stop("retired", async move {
            sleep(RETIRED_FOR).await;
            carrier.quic.close(code::DONE, MOVED.as_bytes());
        });
    }

    /// Remembers why there is no connection, if there is none.
    fn note(&self, error: Error) {
        tracing::debug!(%error, "dial failed");
        if !matches!(*self.phase.borrow(), Phase::Up(_)) {
            self.enter(Phase::Down(Some(error)));
        }
    }

    fn enter(&self, next: Phase) {
        let state = match &next {
            Phase::Down(error) => LinkState::Connecting(error.as_ref().map(ToString::to_string)),
            Phase::Up(Live { carrier, number, via }) => {
                LinkState::Connected { to: carrier.quic.remote_address(), number: *number, via: *via }
            }
            Phase::Closed(error) => LinkState::Closed(error.to_string()),
        };
        self.phase.send_if_modified(|phase| {
            // A link that was closed while it dialled stays closed.
            if matches!(phase, Phase::Closed(_)) {
                return false;
            }
            match &next {
                Phase::Up(_) => *self.away() = None,
                Phase::Down(_) | Phase::Closed(_) => drop(self.away().get_or_insert_with(Instant::now)),
            }
            *phase = next;
            // Within, so that both tell the same story in the same order.
            self.state.send_replace(state);
            true
        });
    }

    fn away(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wait between attempts: none, then doubling, with full jitter, so that those who lost a controller together do not
/// come back together.
#[derive(Default)]
struct Backoff {
    waits: u32,
}

impl Backoff {
    /// A change of the network ends the wait, and begins a new series.
    async fn wait(&mut self, link: &Shared) {
        if let Some(doublings) = self.waits.checked_sub(1) {
            let longest =
                FIRST_BACKOFF.saturating_mul(1 << doublings.min(16)).min(link.dialler.config.reconnect_interval);
            tokio::select! {
                biased;
                () = link.nudge.notified() => self.waits = 0,
                () = sleep(longest.mul_f64(link.env.jitter())) => {}
            }
        }
        self.waits += 1;
    }
}

/// One request and its answer.
pub(super) async fn exchange(channel: &mut Channel, frame: &[u8], after: After) -> Result<Bytes, Error> {
    let sent = channel.tx.send(frame).await;
    if after == After::Nothing {
        channel.tx.end();
    }
    // Who refuses a request stops reading it: the reason is in the answer, not in how sending went.
    match channel.rx.next().await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(sent.err().unwrap_or_else(|| Error::Protocol("the stream ended without an answer".into()))),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}

/// Resolves when the other side should have been heard and was not, with how long that is: some packets in a row were not
/// answered while there are `others` to turn to, or some keep-alives.
async fn silence(connection: &quinn::Connection, keep_alive: Duration, others: bool) -> Duration {
    let mut heard = connection.stats();
    let mut heard_at = Instant::now();
    let mut asked_at = None;
    loop {
        sleep(keep_alive / LOOKS).await;
        let (stats, now) = (connection.stats(), Instant::now());
        if stats.udp_rx.datagrams != heard.udp_rx.datagrams {
            (heard, heard_at, asked_at) = (stats, now, None);
            continue;
        }
        let silent = now.duration_since(heard_at);
        let unanswered = stats.udp_tx.datagrams - heard.udp_tx.datagrams;
        if others && unanswered > 0 {
            let asked_at = *asked_at.get_or_insert(now);
            let patience = UNANSWERED_FOR.max(connection.rtt() * UNANSWERED_RTTS);
            if unanswered >= UNANSWERED && now.duration_since(asked_at) >= patience {
                return silent;
            }
        }
        if silent >= keep_alive * SILENT_KEEP_ALIVES {
            return silent;
        }
    }
}

/// Resolves when something is heard.
async fn sound(connection: &quinn::Connection, keep_alive: Duration) {
    let heard = packets(connection);
    while packets(connection) == heard {
        sleep((keep_alive / 4).min(SOUND_EVERY)).await;
    }
}

fn packets(connection: &quinn::Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}
