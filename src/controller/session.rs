//! What workers say: that they live, and what their agents do.

use std::time::Duration;

use ado_certs::VerifiedPeer;
use ado_proto::record::{Body, Loss, Record};
use ado_proto::request::{
    ErrorCode, ErrorReply, OutputAccepted, TaskOutput, WorkerAccepted, WorkerDesired, WorkerSession,
};
use ado_proto::session::{
    Acknowledged, Draining, FromAttempt, FromWorker, Heartbeat, HeartbeatAnswer, Stale, ToAttempt, ToWorker,
};
use ado_proto::{Audience, Epoch, Incarnation, Origin, Seq, TaskId, Timestamp, WorkerId};
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::bridge::Moment;
use super::fleet::{Report, Session, TO_WORKER, want};
use super::requests::unavailable;
use super::{Shared, bounds, breakers, dispatch, fleet, reaper};
use crate::net::{self, Channel, Connection, Receiver, Sender};
use crate::store::{self, Beat, Change, NewEvent, Outcome, Row, Worker, Write};
use crate::task::{self, Command, Refusal};

/// Most attempts one worker runs at once: each costs the controller a permitted stream.
const MAX_SLOTS: u32 = 1024;
/// Most bytes of a worker's name.
const MAX_TEXT: usize = 255;
/// Most bytes of a worker's agents and labels together.
const MAX_LABELS: usize = 4096;
/// Most bytes of records of one attempt in one commit, to within a frame: what a stream costs while it waits for one.
const APPEND_BYTES: usize = 512 * 1024;
/// A store that takes no longer than this is slow, not away, however short the times of this mesh are.
const SLOW: Duration = Duration::from_secs(2);
/// Between two tries while the store is unavailable. The worker spools meanwhile.
const RETRY: Duration = Duration::from_millis(200);

// ---- the worker's session ---------------------------------------------------------------------------------------

/// A worker's session as it is accepted.
pub(super) struct Opened {
    worker: Worker,
    session: Session,
    inbox: mpsc::Receiver<ToWorker>,
}

impl Opened {
    /// For people.
    pub(super) fn worker_name(&self) -> &str {
        &self.worker.name
    }
}

/// Registers a worker's start. A new start ends the epochs of the former one: the worker has proved them dead.
pub(super) async fn open(
    shared: &Shared,
    peer: &VerifiedPeer,
    session: WorkerSession,
) -> Result<(WorkerAccepted, Opened), ErrorReply> {
    let id = worker_id(peer)?;
    check(&session).map_err(|message| ErrorReply::new(ErrorCode::Invalid, message))?;
    let bounds = shared.store.bounds(&peer.principal().to_string()).await.map_err(unavailable)?;
    if let Some((message, hint)) = bounds::exceeded(&bounds, &session) {
        return Err(ErrorReply::new(ErrorCode::Denied, message).hint(hint));
    }
    let mut worker = Worker {
        id,
        incarnation: session.incarnation,
        name: session.name,
        namespace: peer.principal().namespace.clone(),
        pool: session.pool,
        slots: session.slots,
        agents: session.agents,
        labels: session.labels,
        containment: session.containment,
        build: session.build,
        resources: session.resources,
        draining: false,
        seen_at: Timestamp(0),
        via: None,
    };
    let former = shared.store.register(worker.clone()).await.map_err(unavailable)?;
    let restarted = former.as_ref().is_some_and(|former| former.incarnation != worker.incarnation);
    worker.draining = !restarted && former.as_ref().is_some_and(|former| former.draining);
    end_former(shared, &worker).await.map_err(unavailable)?;
    if former.is_none() || restarted {
        let text = format!("{} with {} slots", worker.name, worker.slots);
        shared.add_events(vec![event("worker.joined", &worker, text)]).await.map_err(unavailable)?;
    }
    // Another controller may have renewed its leases since.
    shared.bridges.forget(id);
    let (messages, inbox) = mpsc::channel(TO_WORKER);
    let turn = shared.committer.turn().await;
    let held = shared.store.held_by(id).await.map_err(unavailable)?;
    let session = shared.fleet.join(worker.clone(), &held, messages);
    drop(turn);
    let accepted = WorkerAccepted {
        heartbeat_ms: millis(shared.timing.heartbeat),
        lease_ms: millis(shared.timing.lease()),
        controllers: shared.advertised(),
        wish: shared.fleet.want(id),
    };
    Ok((accepted, Opened { worker, session, inbox }))
}

/// What a worker says of itself is written into logs and shown to everybody.
fn check(session: &WorkerSession) -> Result<(), String> {
    if !(1..=MAX_SLOTS).contains(&session.slots) {
        return Err(format!("a worker has 1 to {MAX_SLOTS} slots, not {}", session.slots));
    }
    let texts = [&session.name, &session.build];
    if texts.into_iter().any(|text| text.len() > MAX_TEXT || text.chars().any(char::is_control)) {
        return Err(format!("a worker's name and build have at most {MAX_TEXT} bytes and no control characters"));
    }
    let names = session.agents.iter().chain(session.labels.keys()).chain([&session.pool]);
    if let Some(name) = names.into_iter().find(|name| !ado_proto::ids::is_name(name)) {
        return Err(format!("`{name}` is not a name: 1 to 63 of a-z A-Z 0-9 . _ @ -"));
    }
    let labels = session.labels.iter().map(|(key, value)| key.len() + value.len());
    if session.agents.iter().map(String::len).chain(labels).sum::<usize>() > MAX_LABELS {
        return Err(format!("a worker's agents and labels have at most {MAX_LABELS} bytes"));
    }
    Ok(())
}

/// Something that happened to a worker.
pub(super) fn event(kind: &'static str, worker: &Worker, text: String) -> NewEvent {
    let audience = Audience::Namespace(worker.namespace.clone());
    NewEvent { audience, kind, task: None, worker: Some(worker.id), text }
}

/// Ends what earlier starts of the worker held: it has proved them dead. The loss counts against a task that was the only
/// one it ran.
async fn end_former(shared: &Shared, worker: &Worker) -> store::Result<()> {
    let held = shared.store.held_by(worker.id).await?;
    let only = held.len() == 1;
    // Known or not: it may have been started.
    let is_former = |row: &Row| row.lease.as_ref().is_some_and(|lease| lease.incarnation != worker.incarnation);
    let dead: Vec<_> = held.into_iter().filter(is_former).collect();
    let charged = only && dead.first().is_some_and(|row| row.task.agent_started);
    reaper::lose(shared, &dead, Loss::Restarted, charged).await?;
    if !charged && !dead.is_empty() {
        breakers::worker_died(shared, worker, dead.len()).await;
    }
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn worker_id(peer: &VerifiedPeer) -> Result<WorkerId, ErrorReply> {
    let name = &peer.principal().name;
    name.parse().map_err(|_| ErrorReply::new(ErrorCode::Denied, format!("`{name}` is not a worker's identity")))
}

/// Serves a session until the connection or the controller ends, or a newer session of the worker begins.
pub(super) async fn serve(
    shared: &Shared,
    connection: &Connection,
    opened: Opened,
    channel: Channel,
) -> Result<(), net::Error> {
    let Opened { worker, session, inbox } = opened;
    let Channel { tx, rx } = channel;
    let sending = send_all(inbox, tx);
    let receiving = receive(shared, connection, &worker, session, rx);
    let result = tokio::select! {
        biased;
        () = shared.tasks.stopping() => Ok(()),
        result = sending => result,
        result = receiving => result,
    };
    let left = shared.fleet.leave(session);
    if left.is_some() {
        shared.bridges.forget(worker.id);
    }
    let left = left.is_some_and(|left| left.draining && left.holds == 0);
    // What is wanted of one that was drained can be taken back, so it stays on the list.
    let desired = shared.fleet.wish_of(worker.id).map_or(WorkerDesired::Active, |wish| wish.desired);
    if left && desired != WorkerDesired::Active {
        let kind = if desired == WorkerDesired::Drained { "worker.drained" } else { "worker.left" };
        let text = format!("{} has handed everything back", worker.name);
        if let Err(error) = shared.add_events(vec![event(kind, &worker, text)]).await {
            tracing::warn!(worker = %worker.name, %error, "not among the events");
        }
    } else if left && !shared.tasks.is_stopping() {
        let text = format!("{} has handed everything back", worker.name);
        let forgotten = async {
            shared.store.remove_worker(worker.id).await?;
            shared.add_events(vec![event("worker.left", &worker, text)]).await
        };
        if let Err(error) = forgotten.await {
            tracing::warn!(%error, "a worker that left is not forgotten yet");
        }
    }
    result
}

async fn send_all(mut inbox: mpsc::Receiver<ToWorker>, mut tx: Sender) -> Result<(), net::Error> {
    while let Some(message) = inbox.recv().await {
        tx.send_message(&message).await?;
    }
    Ok(())
}

async fn receive(
    shared: &Shared,
    connection: &Connection,
    worker: &Worker,
    session: Session,
    mut rx: Receiver,
) -> Result<(), net::Error> {
    while let Some(message) = rx.next_message::<FromWorker>().await? {
        match message {
            FromWorker::Heartbeat(heartbeat) => {
                let report = Report { load: heartbeat.load, rtt: connection.rtt() };
                match beat(shared, worker, session, &heartbeat, report).await {
                    Ok(true) => {}
                    // A newer start of the worker has registered: this one is over.
                    Ok(false) => return Ok(()),
                    Err(error) => bridge(shared, worker, session, &heartbeat, &error),
                }
            }
            FromWorker::Draining(notice) => {
                shared.fleet.drains(session, true);
                // The worker takes the next answer for a sign that this was heard. On another session it says it again.
                let lost = |error: store::Error| net::Error::Lost(error.to_string());
                hand_back(shared, worker, notice).await.map_err(lost)?;
            }
            FromWorker::Unknown { .. } => {}
        }
    }
    Ok(())
}

async fn beat(
    shared: &Shared,
    worker: &Worker,
    session: Session,
    heartbeat: &Heartbeat,
    report: Report,
) -> store::Result<bool> {
    let (draining, sent) = (heartbeat.draining, Moment::now(&shared.env));
    let beat = Beat {
        worker: worker.id,
        incarnation: worker.incarnation,
        via: shared.incarnation,
        holds: heartbeat.holds.clone(),
        draining,
    };
    let patience = shared.timing.heartbeat.min(shared.timing.lease() / 3).max(SLOW);
    let renewed = tokio::time::timeout(patience, shared.renewer.renew(beat)).await;
    let renewed = renewed.unwrap_or_else(|_| Err(store::Error::Unavailable(format!("no answer for {patience:?}"))))?;
    let Some(renewal) = renewed else { return Ok(false) };
    shared.bridges.renewed(worker.id, &renewal, sent);
    shared.fleet.drains(session, draining);
    shared.fleet.reported(session, report);
    let now = if renewal.unnamed.is_empty() { Timestamp(0) } else { shared.store.now().await? };
    for row in &renewal.unnamed {
        // Only an attempt this start has never named can have got lost on the way.
        if row.lease.as_ref().is_some_and(|lease| lease.incarnation == worker.incarnation && !lease.is_known) {
            let left = row.lease.as_ref().map_or(Duration::ZERO, |lease| lease.expires_at.since(now));
            dispatch::assign(shared, row, left, now);
        }
    }
    let answer = HeartbeatAnswer {
        number: heartbeat.number,
        renewed: renewal.renewed.iter().map(|row| want(&row.task)).collect(),
        lost: renewal.lost,
        wish: shared.fleet.want(worker.id),
        answers: renewal.renewed.iter().filter_map(|row| fleet::answers(&row.task)).collect(),
    };
    shared.fleet.answer(session, answer);
    shared.metrics.heartbeat();
    Ok(true)
}

/// The store does not answer: nothing is renewed, but what nobody takes away yet may go on. The worker asks again.
fn bridge(shared: &Shared, worker: &Worker, session: Session, heartbeat: &Heartbeat, error: &store::Error) {
    let bridged =
        if error.is_transient() { shared.bridges.bridge(worker.id, heartbeat, Moment::now(&shared.env)) } else { None };
    let left_ms = bridged.as_ref().map(|bridged| bridged.left_ms);
    tracing::warn!(worker = %worker.name, %error, left_ms, "no lease is renewed");
    if let Some(bridged) = bridged {
        shared.fleet.answer(session, bridged);
    }
}

async fn hand_back(shared: &Shared, worker: &Worker, notice: Draining) -> store::Result<()> {
    let mut rows = Vec::new();
    for (task, epoch) in notice.hand_back {
        match shared.store.row(task).await? {
            Some(row) if row.task.epoch == epoch && holds(&row, worker.id, worker.incarnation) => rows.push(row),
            _ => tracing::debug!(%task, %epoch, "handed back what it does not hold"),
        }
    }
    reaper::lose(shared, &rows, Loss::HandedBack, false).await
}

/// Whether this start of a worker may speak for the row's current epoch.
pub(super) fn holds(row: &Row, worker: WorkerId, incarnation: Incarnation) -> bool {
    row.lease.as_ref().is_some_and(|lease| lease.worker == worker && lease.incarnation == incarnation)
}

// ---- an attempt's records ---------------------------------------------------------------------------------------

/// Answers where an attempt's records go on.
pub(super) async fn open_output(
    shared: &Shared,
    peer: &VerifiedPeer,
    output: &TaskOutput,
) -> Result<(OutputAccepted, WorkerId), ErrorReply> {
    let worker = worker_id(peer)?;
    let stale = || {
        shared.metrics.stale_write();
        ErrorReply::new(ErrorCode::Stale, format!("epoch {} of {} is over", output.epoch, output.task))
    };
    let row = shared.store.row(output.task).await.map_err(unavailable)?.ok_or_else(stale)?;
    let is_holder = row.task.worker.as_ref().is_some_and(|holder| holder.id == worker);
    if !is_holder || row.task.epoch != output.epoch {
        return Err(stale());
    }
    // Its last acknowledgement may have got lost: everything is in the log, and it may be told so.
    if row.task.is_held() && !holds(&row, worker, output.incarnation) {
        return Err(stale());
    }
    Ok((OutputAccepted { next_seq: row.task.next_seq }, worker))
}

/// Appends an attempt's records until it ends.
pub(super) async fn serve_output(
    shared: &Shared,
    worker: WorkerId,
    output: &TaskOutput,
    channel: Channel,
) -> Result<(), net::Error> {
    let Channel { mut tx, mut rx } = channel;
    while let Some((first, bodies)) = read_batch(&mut rx, output.epoch).await? {
        let answer = append(shared, worker, output, first, bodies, &tx).await?;
        tx.send_message(&answer).await?;
        if matches!(answer, ToAttempt::Stale(_)) {
            break;
        }
    }
    tx.finish();
    Ok(())
}

/// Waits for records, and takes what else has arrived: the group commit's other half.
async fn read_batch(rx: &mut Receiver, epoch: Epoch) -> Result<Option<(Seq, Vec<Body>)>, net::Error> {
    let mut first = None;
    let mut bodies = Vec::new();
    let mut bytes = 0;
    let mut message = rx.next_message::<FromAttempt>().await?;
    loop {
        match message {
            Some(FromAttempt::Records(records)) => {
                let records = records.decode().map_err(|error| net::Error::Protocol(error.to_string()))?;
                for record in records {
                    bytes += record.weight();
                    let due = first.map(|first: Seq| Seq(first.0 + bodies.len() as u64));
                    let seq = check_origin(&record, epoch, due)?;
                    first.get_or_insert(seq);
                    bodies.push(record.body);
                }
            }
            Some(FromAttempt::Unknown { .. }) => {}
            None => break,
        }
        if bytes >= APPEND_BYTES {
            break;
        }
        match rx.next_message::<FromAttempt>().now_or_never() {
            Some(next) => message = next?,
            None if bodies.is_empty() => message = rx.next_message::<FromAttempt>().await?,
            None => break,
        }
    }
    Ok(first.map(|first| (first, bodies)))
}

fn check_origin(record: &Record, epoch: Epoch, due: Option<Seq>) -> Result<Seq, net::Error> {
    match record.origin {
        Origin::Worker { epoch: theirs, seq } if theirs == epoch && due.is_none_or(|due| due == seq) => Ok(seq),
        origin => Err(net::Error::Protocol(format!("a record of {origin:?} on the stream of epoch {epoch}"))),
    }
}

/// Makes records durable. Tries until the store answers or the worker has gone: it waits, and spools.
async fn append(
    shared: &Shared,
    worker: WorkerId,
    output: &TaskOutput,
    first: Seq,
    bodies: Vec<Body>,
    tx: &Sender,
) -> Result<ToAttempt, net::Error> {
    let begun = Instant::now();
    loop {
        let change = append_change(shared, worker, output, first, bodies.clone());
        match shared.committer.update(change).await {
            Ok(Outcome::Applied(write)) => {
                shared.metrics.appended(begun.elapsed());
                breakers::heed(shared, &write).await;
                let row = write.row;
                if matches!(row.task.state, task::State::Queued { .. }) {
                    dispatch::give_hints(shared, std::slice::from_ref(&row)).await;
                }
                return Ok(Acknowledged { next_seq: next_seq(&row, output.epoch) }.into());
            }
            Ok(Outcome::Refused(Refusal::Known, row)) => {
                return Ok(Acknowledged { next_seq: next_seq(&row, output.epoch) }.into());
            }
            Ok(Outcome::Refused(Refusal::Stale { .. }, _) | Outcome::Missing) => return Ok(Stale.into()),
            Ok(Outcome::Refused(refusal, _)) => return Err(net::Error::Protocol(refusal.to_string())),
            Ok(Outcome::Locked) => tokio::task::yield_now().await,
            Err(error) if error.is_transient() && !shared.tasks.is_stopping() => {
                tracing::warn!(%error, "records wait for the store");
                tokio::select! {
                    biased;
                    () = tx.closed() => return Err(net::Error::Closed),
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
            Err(error) => return Err(net::Error::Lost(error.to_string())),
        }
    }
}

fn next_seq(row: &Row, epoch: Epoch) -> Seq {
    if row.task.epoch == epoch { row.task.next_seq } else { Seq(u64::MAX) }
}

fn append_change(shared: &Shared, worker: WorkerId, output: &TaskOutput, first: Seq, bodies: Vec<Body>) -> Change {
    let (id, epoch, incarnation, policy) = (output.task, output.epoch, output.incarnation, shared.policy);
    let jitter = shared.env.jitter();
    let decide = move |row: &Row, now| {
        if row.task.is_held() && !holds(row, worker, incarnation) {
            return Err(Refusal::Stale { given: epoch, current: row.task.epoch });
        }
        let decision = task::decide(&row.task, Command::Append { epoch, first, bodies }, now, &policy, jitter)?;
        let lease = row.lease.clone().filter(|_| decision.task.is_held());
        let events = decision.records.iter().filter_map(|record| event_of(id, &decision.task, record)).collect();
        Ok(Write { row: Row::new(decision.task, lease), records: decision.records, events })
    };
    Change::Update { id, decide: Box::new(decide) }
}

/// The system event of a record, for records that have one.
pub(super) fn event_of(id: TaskId, task: &task::Task, record: &Record) -> Option<NewEvent> {
    let (kind, text) = match &record.body {
        Body::Started(_) => ("task.started", id.short()),
        Body::Expired(expired) => {
            ("task.timed_out", format!("{}: its {} limit is over", id.short(), expired.limit.as_str()))
        }
        Body::Asked(asked) => ("task.asks", format!("{}: {}", id.short(), asked.text)),
        Body::Answered(answered) => {
            ("task.answered", format!("{} by {}", id.short(), answered.by.as_deref().unwrap_or("nobody, in time")))
        }
        Body::Requeued(requeued) => ("task.requeued", format!("{}: {}", id.short(), requeued.why)),
        Body::Ended(ended) => ("task.ended", format!("{} {}", id.short(), task.state_word()) + &suffix(&ended.error)),
        _ => return None,
    };
    let audience = Audience::Namespace(task.namespace.clone());
    Some(NewEvent { audience, kind, task: Some(id), worker: task.worker.as_ref().map(|holder| holder.id), text })
}

fn suffix(error: &Option<String>) -> String {
    error.as_ref().map_or_else(String::new, |error| format!(": {error}"))
}
