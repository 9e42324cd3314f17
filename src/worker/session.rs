//! The worker's session: heartbeats out, assignments and wishes in. Anew on every connection.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_proto::request::{TaskOutput, WorkerAccepted, WorkerDesired, WorkerSession, WorkerWant};
use ado_proto::session::{Assignment, FromWorker, ToWorker};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::Instrument;

use super::attempt::{Attempt, Ended, Place};
use super::guard::BootTime;
use super::metrics::Metrics;
use super::outbox::{Outbox, SharedOutbox};
use super::roster::{Begin, Given, Key, Roster};
use super::snapshot::LinkVault;
use super::spool::{MEMORY_LIMIT, Spool};
use super::{Config, Learned, backoff, load, uplink};
use crate::env::Env;
use crate::net::{self, Call, Channel, Link, LinkState, Priority};
use crate::tasks::Tasks;

/// What the parts of a worker share.
pub(super) struct Shared {
    pub(super) link: Link,
    pub(super) env: Env,
    pub(super) request: WorkerSession,
    pub(super) place: Place,
    pub(super) spool: std::path::PathBuf,
    pub(super) spool_limit: u64,
    /// Attempts, and whatever else must end before the session.
    pub(super) attempts: Tasks,
    pub(super) metrics: Metrics,
    roster: Mutex<Roster>,
    learned: Learned,
    pub(super) status: watch::Sender<Status>,
}

/// What others may watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// A controller has accepted the session.
    pub(super) connected: bool,
    /// Attempts held.
    pub(super) load: usize,
    /// Rises with everything there is to say about leaving.
    pub(super) leaving: u64,
    /// Up to which `leaving` a controller has heard.
    pub(super) heard: u64,
    /// There will be no session any more.
    pub(super) over: bool,
    /// Rises with every assignment that came without a lease: the next heartbeat asks for one, and does not wait.
    pub(super) unleased: u64,
    /// It takes no work.
    pub(super) draining: bool,
    /// What somebody wants of it.
    pub(super) wish: WorkerWant,
    /// When it hands back what it still holds.
    pub(super) deadline: Option<Instant>,
}

impl Shared {
    pub(super) fn new(config: &Config, env: Env, request: WorkerSession, place: Place, attempts: Tasks) -> Self {
        Self {
            link: config.link.clone(),
            env,
            request,
            place,
            spool: config.dir.join("spool"),
            spool_limit: config.spool_limit,
            attempts,
            metrics: Metrics::new(),
            roster: Mutex::default(),
            learned: config.learned.clone(),
            status: watch::Sender::new(Status::default()),
        }
    }

    pub(super) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the roster, and lets others see.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Roster) -> T) -> T {
        let mut roster = self.roster();
        let before = roster.draining();
        let result = change(&mut roster);
        let said = before != roster.draining();
        let (load, draining) = (roster.load(), roster.is_draining());
        // While the roster is still locked: of two changes the later one's must be what is seen.
        self.status.send_if_modified(|status| {
            let changed = said || status.load != load || status.draining != draining;
            (status.load, status.draining) = (load, draining);
            status.leaving += u64::from(said);
            changed
        });
        result
    }

    /// Something is wanted of the worker.
    fn wish(&self, wish: &WorkerWant) {
        if self.change(|roster| roster.wish(wish)) {
            tracing::info!(desired = wish.desired.as_str(), left_ms = wish.left_ms, "wanted otherwise");
            let left = wish.left_ms.filter(|_| wish.desired == WorkerDesired::Drained).map(Duration::from_millis);
            self.status.send_modify(|status| {
                status.wish = *wish;
                status.deadline = left.and_then(|left| Instant::now().checked_add(left));
            });
        }
    }
}

/// Hands back what a drained worker still holds when its time is over. Runs until it is dropped.
pub(super) async fn keep_deadlines(shared: Arc<Shared>) {
    let mut status = shared.status.subscribe();
    loop {
        let deadline = status.borrow_and_update().deadline;
        let over = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = status.changed() => if changed.is_err() { return },
            () = over => {
                tracing::info!("handing back what has not ended");
                shared.change(Roster::hand_back_held);
                shared.status.send_modify(|status| status.deadline = None);
            }
        }
    }
}

/// Keeps a session until the link is closed: what agents do from then on can never be recorded.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        let call = Call { priority: Priority::Control, ..Call::default() };
        match shared.link.open(&shared.request, call).await {
            Ok((accepted, channel)) => {
                tracing::info!(heartbeat_ms = accepted.heartbeat_ms, lease_ms = accepted.lease_ms, "registered");
                shared.roster().connected(Duration::from_millis(accepted.lease_ms));
                (shared.learned)(&accepted.controllers);
                shared.wish(&accepted.wish);
                let mut answered = false;
                let error = converse(&shared, &accepted, channel, &mut answered).await;
                shared.status.send_modify(|status| status.connected = false);
                tracing::info!(%error, "session lost");
                failures = if answered { 0 } else { failures + 1 };
            }
            Err(error) if matches!(*shared.link.state().borrow(), LinkState::Closed(_)) => {
                tracing::error!(%error, "no controller takes this worker any more; its agents are killed");
                shared.change(Roster::discard_all);
                shared.status.send_modify(|status| status.over = true);
                return;
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "cannot register");
            }
        }
        tokio::time::sleep(backoff(failures, shared.env.jitter())).await;
    }
}

/// Talks on one stream until it breaks.
async fn converse(
    shared: &Arc<Shared>,
    accepted: &WorkerAccepted,
    channel: Channel,
    answered: &mut bool,
) -> net::Error {
    let Channel { tx, mut rx } = channel;
    shared.status.send_modify(|status| status.connected = true);
    shared.metrics.session();
    let receive = async {
        loop {
            match rx.next_message::<ToWorker>().await {
                Ok(Some(message)) => {
                    *answered |= matches!(message, ToWorker::HeartbeatAnswer(_));
                    hear(shared, message);
                }
                Ok(None) => return net::Error::Lost("the controller ended the session".into()),
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        biased;
        error = receive => error,
        error = speak(shared, accepted, tx) => error,
    }
}

/// Heartbeats, at once and then regularly; what there is to say about leaving, when there is.
async fn speak(shared: &Shared, accepted: &WorkerAccepted, mut tx: net::Sender) -> net::Error {
    let mut status = shared.status.subscribe();
    let mut beat = interval(Duration::from_millis(accepted.heartbeat_ms.max(1)));
    // A late one makes no other early.
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut told, mut asked) = (0, status.borrow().unleased);
    loop {
        tokio::select! {
            biased;
            Ok(_) = status.wait_for(|status| status.leaving > told || status.unleased > asked) => {}
            _ = beat.tick() => {}
        }
        let Status { leaving, unleased, .. } = *status.borrow();
        asked = unleased;
        let draining = if leaving > told { shared.roster().draining() } else { None };
        if let Some(draining) = draining
            && let Err(error) = tx.send_message(&FromWorker::from(draining)).await
        {
            return broken(error).await;
        }
        told = leaving;
        // Also after what was said about leaving: its answer shows that a controller has heard that.
        let heartbeat = shared.roster().heartbeat(BootTime::now(), told, load::read());
        if let Err(error) = tx.send_message(&FromWorker::from(heartbeat)).await {
            return broken(error).await;
        }
    }
}

/// The receiving half knows better why a stream broke; if it says nothing, this is it.
async fn broken(error: net::Error) -> net::Error {
    let _ = tokio::time::timeout(Duration::from_secs(1), pending::<()>()).await;
    error
}

fn hear(shared: &Arc<Shared>, message: ToWorker) {
    match message {
        ToWorker::HeartbeatAnswer(answer) => {
            shared.metrics.answered();
            let heard = shared.change(|roster| roster.answered(&answer));
            shared.status.send_if_modified(|status| {
                let more = heard.is_some_and(|heard| heard > status.heard);
                status.heard = status.heard.max(heard.unwrap_or(0));
                more
            });
            shared.wish(&answer.wish);
        }
        ToWorker::Bridge(bridge) => shared.roster().bridge(&bridge),
        ToWorker::Controllers(controllers) => (shared.learned)(&controllers.addresses),
        ToWorker::Wish(wish) => shared.wish(&wish),
        ToWorker::Assign(assignment) => {
            let begin = shared.change(|roster| roster.assign(&assignment));
            if let Some(begin) = begin {
                if begin.orders.borrow().lease <= BootTime::now() {
                    shared.status.send_modify(|status| status.unleased += 1);
                }
                start(shared, assignment, begin);
            }
        }
        ToWorker::Want(want) => shared.roster().want(&want),
        ToWorker::Answers(answers) => shared.roster().answers(&answers),
        ToWorker::Unknown { kind, version, .. } => tracing::debug!(kind, version, "unknown message"),
    }
}

fn start(shared: &Arc<Shared>, assignment: Assignment, begin: Begin) {
    let key: Key = (assignment.task, assignment.epoch);
    let span = tracing::info_span!("attempt", task = %assignment.task, epoch = %assignment.epoch);
    let own = shared.clone();
    let work = async move {
        for older in begin.after {
            older.cancelled().await;
        }
        own.metrics.begun();
        let ended = attempt(&own, assignment, begin.orders, begin.answers).await;
        own.metrics.ended(ended);
        own.change(|roster| roster.end(key, ended));
    };
    // Given up without ceremony, its guard still kills the agent: the control socket closes.
    shared.attempts.spawn_until_stop("attempt", Box::pin(work.instrument(span)));
}

async fn attempt(
    shared: &Shared,
    assignment: Assignment,
    orders: watch::Sender<super::course::Orders>,
    answers: watch::Receiver<Given>,
) -> Ended {
    let (task, epoch) = (assignment.task, assignment.epoch);
    let file = shared.spool.join(format!("{task}-{epoch}"));
    let spool = Spool::new(file, MEMORY_LIMIT, shared.spool_limit);
    let outbox = SharedOutbox::new(Outbox::new(epoch, spool));
    let request = TaskOutput { task, epoch, incarnation: shared.request.incarnation };
    let delivery = uplink::deliver(shared.link.clone(), request, &outbox, &shared.env, &shared.metrics);
    let incarnation = shared.request.incarnation;
    let vault = Arc::new(LinkVault { link: shared.link.clone(), task, epoch, incarnation });
    let place = shared.place.clone();
    let attempt = Attempt { assignment, orders, answers, place, vault, env: shared.env.clone() };
    attempt.run(&outbox, delivery).await
}
