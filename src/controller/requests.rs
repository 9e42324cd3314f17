//! Requests to answers.

mod answer;
mod dead;
mod detach;
mod events;
mod list;
mod once;
mod tasks;
mod workers;

use std::future::Future;
use std::sync::OnceLock;

use ado_certs::{Peer, VerifiedPeer};
use ado_proto::Namespace;
use ado_proto::frame::Limits;
use ado_proto::request::{
    AuditLine, CreateToken, Detach, Enrol, ErrorCode, ErrorReply, Follow, GetBlob, GetTasks, GiveAnswer, Header, Hello,
    ListAudit, ListControllers, ListEvents, ListSecrets, ListTasks, ListTokens, ListWorkers, PurgeDead, PutBlob,
    RemoveSecret, Renew, Request, RetryDead, RevokeIdentity, RevokeToken, SetDesired, SetSecret, SetWorker, Submit,
    TaskOutput, Welcome, WorkerSession, decode_body, encode_response,
};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::Instrument;

use super::access::{self, Access};
use super::{Shared, enrol, follow, info, mesh, secrets, session, snapshots};
use crate::net::{self, Channel, Connection, Incoming, Priority};
use crate::store::{self, Audit, Unit};

/// Most rows of one answer.
const MAX_ROWS: u32 = 1000;

/// Streams a worker may have beside those of its attempts.
const SPARE_STREAMS: u32 = 32;

/// The store's failures, as callers see them.
pub(super) fn unavailable(error: store::Error) -> ErrorReply {
    match error {
        store::Error::Unavailable(_) => ErrorReply::new(ErrorCode::Unavailable, error.to_string())
            .hint("try again: under the same --idempotency-key it happens once"),
        store::Error::Full(_) => ErrorReply::new(ErrorCode::Unavailable, error.to_string())
            .hint("nothing was changed; make space where the controller keeps its data, and try again"),
        store::Error::Unusable(_) | store::Error::Damaged(_) => {
            tracing::error!(%error, "a request failed");
            ErrorReply::new(ErrorCode::Internal, error.to_string()).hint("the controller's log says more")
        }
    }
}

impl Shared {
    /// Adds events that belong to no change of a task.
    pub(super) async fn add_events(&self, events: Vec<store::NewEvent>) -> store::Result<()> {
        self.store.add_events(events).await?;
        self.hub.news();
        Ok(())
    }

    /// Writes down that something was refused, once and then how often.
    async fn refused(&self, line: Audit) {
        let Some(line) = self.refusals.note(line, Instant::now()) else { return };
        tracing::info!(
            peer = line.principal,
            request = line.action,
            target = line.target,
            why = line.result,
            "refused"
        );
        self.audit(line).await.unwrap_or_else(|error| tracing::warn!(%error, "not in the audit log"));
    }

    /// Adds a line to the audit log, for what is not a change of a task.
    pub(super) async fn audit(&self, line: Audit) -> store::Result<()> {
        self.committer.commit(Unit { changes: Vec::new(), once: None, audit: Some(line) }).await.map(drop)
    }
}

/// Serves a connection until it or the controller ends.
pub(super) async fn serve_connection(shared: Shared, connection: Connection) {
    loop {
        let incoming = tokio::select! {
            biased;
            () = shared.tasks.stopping() => return,
            incoming = connection.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let (shared, connection) = (shared.clone(), connection.clone());
        shared.tasks.clone().spawn("request", async move {
            let (kind, remote) = (incoming.header.kind, connection.remote());
            if let Err(error) = serve(&shared, &connection, incoming).await {
                tracing::debug!(kind, %remote, %error, "a stream ended early");
            }
        });
    }
}

/// A request that has been let in.
struct Asked<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    peer: VerifiedPeer,
    access: Access,
    header: Header,
    body: Bytes,
    /// What it is about, for the audit log, as far as that is known.
    target: OnceLock<String>,
}

async fn serve(shared: &Shared, connection: &Connection, incoming: Incoming) -> Result<(), net::Error> {
    let Incoming { header, body, mut channel } = incoming;
    match connection.peer() {
        Peer::Joining => {
            let answer = match header.kind {
                Enrol::KIND => join(shared, &header, &body).await,
                _ => Err(ErrorReply::new(ErrorCode::Denied, "a joining peer may only enrol")),
            };
            if let Err(refusal) = answer.as_ref()
                && access::is_audited(header.kind, refusal)
            {
                let from = connection.remote().ip().to_string();
                let action = access::name(header.kind);
                let line = Audit::done(Namespace::default(), "stranger".into(), action, from);
                shared.refused(Audit { result: refusal.message.clone(), ..line }).await;
            }
            finish(&mut channel, answer).await
        }
        // TLS looks at a certificate once a connection; a request may come much later.
        Peer::Verified(peer) if peer.is_denied(&shared.authority.denied) => {
            let message = format!("the certificate of {} has been revoked", peer.principal());
            let refusal = ErrorReply::new(ErrorCode::BadCertificate, message);
            shared.refused(refused_line(&peer, &header, &refusal)).await;
            finish(&mut channel, Err(refusal)).await
        }
        Peer::Verified(peer) => match access::check(peer.principal(), &header) {
            Ok(access) => {
                let asked = Asked { shared, connection, peer, access, header, body, target: OnceLock::new() };
                match asked.header.kind {
                    Follow::KIND => asked.follow(channel).await,
                    WorkerSession::KIND => asked.worker_session(channel).await,
                    TaskOutput::KIND => asked.task_output(channel).await,
                    PutBlob::KIND => asked.put_blob(channel).await,
                    GetBlob::KIND => asked.get_blob(channel).await,
                    ListEvents::KIND => {
                        let gone = channel.tx.closed();
                        let answer = asked.wait_for_events(gone).await;
                        finish(&mut channel, asked.judged(answer).await).await
                    }
                    _ => finish(&mut channel, asked.judged(asked.answer().await).await).await,
                }
            }
            Err(denied) => {
                shared.refused(refused_line(&peer, &header, &denied)).await;
                finish(&mut channel, Err(denied)).await
            }
        },
    }
}

/// The line of the audit log for a request that was not let in.
fn refused_line(peer: &VerifiedPeer, header: &Header, refusal: &ErrorReply) -> Audit {
    let who = peer.principal();
    let target = header.namespace.as_ref().map_or("", |namespace| &namespace.0);
    let line = Audit::done(who.namespace.clone(), who.to_string(), access::name(header.kind), target);
    Audit { result: refusal.message.clone(), ..line }
}

/// Sends the only frame of an answer.
async fn finish(channel: &mut Channel, answer: Result<Vec<u8>, ErrorReply>) -> Result<(), net::Error> {
    let fits = |frame: &Vec<u8>| frame.len() < Limits::MESH.body;
    let too_long = |frame: Vec<u8>| {
        let message = format!("the answer takes {} bytes, more than a message may have", frame.len());
        ErrorReply::new(ErrorCode::Invalid, message).hint("ask for less at once")
    };
    let answer = answer.and_then(|frame| if fits(&frame) { Ok(frame) } else { Err(too_long(frame)) });
    let frame = answer.unwrap_or_else(|refusal| encode_response::<()>(&Err(refusal)));
    channel.tx.send(&frame).await?;
    channel.tx.finish();
    Ok(())
}

/// Sends the first frame of a stream's answer; `None` when it is a refusal, and the stream is over.
async fn begin<R: Request, T>(
    channel: &mut Channel,
    answer: Result<(R::Response, T), ErrorReply>,
) -> Result<Option<T>, net::Error> {
    match answer {
        Ok((response, rest)) => {
            channel.tx.send(&encode_response(&Ok(response))).await?;
            Ok(Some(rest))
        }
        Err(refusal) => finish(channel, Err(refusal)).await.map(|()| None),
    }
}

fn decode<R: Request>(header: &Header, body: &[u8]) -> Result<R, ErrorReply> {
    if header.version != R::VERSION {
        let message = format!("{} version {} is not spoken here, version {} is", R::NAME, header.version, R::VERSION);
        return Err(ErrorReply::new(ErrorCode::UnsupportedVersion, message).hint("update ado"));
    }
    decode_body(body).map_err(|error| ErrorReply::new(ErrorCode::Invalid, error.to_string()))
}

fn reply<R: Request>(response: R::Response) -> Result<Vec<u8>, ErrorReply> {
    Ok(encode_response(&Ok(response)))
}

async fn join(shared: &Shared, header: &Header, body: &[u8]) -> Result<Vec<u8>, ErrorReply> {
    reply::<Enrol>(enrol::enrol(shared, decode::<Enrol>(header, body)?).await?)
}

impl Asked<'_> {
    fn decode<R: Request>(&self) -> Result<R, ErrorReply> {
        decode(&self.header, &self.body)
    }

    /// Says what the request is about, for the audit log.
    fn about(&self, target: &str) {
        self.target.get_or_init(|| target.to_owned());
    }

    /// Writes refusals down that belong into the audit log. Every answer passes through here.
    async fn judged<T>(&self, answer: Result<T, ErrorReply>) -> Result<T, ErrorReply> {
        if let Err(refusal) = &answer
            && access::is_audited(self.header.kind, refusal)
        {
            self.refused(&refusal.message).await;
        }
        answer
    }

    async fn refused(&self, why: &str) {
        let target = self.target.get().cloned().unwrap_or_default();
        let line = self.audit(access::name(self.header.kind), target);
        self.shared.refused(Audit { result: why.into(), ..line }).await;
    }

    async fn answer(&self) -> Result<Vec<u8>, ErrorReply> {
        let (shared, access) = (self.shared, &self.access);
        match self.header.kind {
            Hello::KIND => reply::<Hello>(self.hello().await?),
            Renew::KIND => self.renew().await,
            CreateToken::KIND => reply::<CreateToken>(enrol::create_token(shared, access, self.decode()?).await?),
            ListTokens::KIND => reply::<ListTokens>(enrol::list_tokens(shared, access).await?),
            RevokeToken::KIND => self.revoke_token(self.decode()?).await,
            RevokeIdentity::KIND => {
                reply::<RevokeIdentity>(enrol::revoke_identity(shared, access, self.decode()?).await?)
            }
            Submit::KIND => self.submit(self.decode()?).await,
            GetTasks::KIND => reply::<GetTasks>(self.get_tasks(self.decode()?).await?),
            ListTasks::KIND => reply::<ListTasks>(self.list_tasks(self.decode()?).await?),
            SetDesired::KIND => self.set_desired(self.decode()?).await,
            RetryDead::KIND => self.retry_dead(self.decode()?).await,
            PurgeDead::KIND => self.purge_dead(self.decode()?).await,
            GiveAnswer::KIND => self.give_answer(self.decode()?).await,
            Detach::KIND => self.detach(self.decode()?).await,
            ListWorkers::KIND => reply::<ListWorkers>(self.list_workers(self.decode()?).await?),
            SetWorker::KIND => self.set_worker(self.decode()?).await,
            ListControllers::KIND => {
                let _: ListControllers = self.decode()?;
                reply::<ListControllers>(mesh::list(shared).await.map_err(unavailable)?)
            }
            SetSecret::KIND => {
                let request: SetSecret = self.decode()?;
                self.about(&request.name);
                reply::<SetSecret>(secrets::set(shared, access, request).await?)
            }
            ListSecrets::KIND => {
                let _: ListSecrets = self.decode()?;
                reply::<ListSecrets>(shared.store.secrets(&access.audience).await.map_err(unavailable)?)
            }
            RemoveSecret::KIND => {
                let request: RemoveSecret = self.decode()?;
                self.about(&request.name);
                secrets::remove(shared, access, request).await
            }
            ListAudit::KIND => reply::<ListAudit>(self.list_audit(self.decode()?).await?),
            kind => {
                let message = format!("request {kind} is not known here");
                Err(ErrorReply::new(ErrorCode::UnsupportedVersion, message).hint("update the controller"))
            }
        }
    }

    async fn hello(&self) -> Result<Welcome, ErrorReply> {
        let _: Hello = self.decode()?;
        Ok(Welcome {
            controller: self.shared.id,
            incarnation: self.shared.incarnation,
            build: crate::BUILD.into(),
            minor: ado_proto::version::MINOR,
            generation: self.shared.store.generation(),
            now: self.shared.store.now().await.map_err(unavailable)?,
            you: self.access.principal.clone(),
            observed: self.connection.remote().to_string(),
            controllers: self.shared.advertised(),
        })
    }

    async fn renew(&self) -> Result<Vec<u8>, ErrorReply> {
        let (renewed, issued) = enrol::renew(self.shared, &self.peer, self.decode()?).await?;
        let alpn = ado_proto::version::ALPN_MESH;
        let now = self.shared.env.now();
        match ado_certs::verify_peer(alpn, Some(&issued.chain), &self.shared.authority.denied, now) {
            Ok(peer) => self.connection.renewed(peer),
            Err(error) => tracing::warn!(%error, "a certificate just issued is not accepted"),
        }
        reply::<Renew>(renewed)
    }

    async fn wait_for_events(&self, gone: impl Future<Output = ()>) -> Result<Vec<u8>, ErrorReply> {
        reply::<ListEvents>(self.list_events(self.decode()?, gone).await?)
    }

    async fn list_audit(&self, mut wanted: ListAudit) -> Result<Vec<AuditLine>, ErrorReply> {
        wanted.limit = wanted.limit.clamp(1, MAX_ROWS);
        let mut lines = self.shared.store.audit(&self.access.audience, &wanted).await.map_err(unavailable)?;
        lines.truncate(info::fitting(&lines));
        Ok(lines)
    }

    async fn follow(&self, mut channel: Channel) -> Result<(), net::Error> {
        let answer = tokio::select! {
            biased;
            () = self.shared.tasks.stopping() => return Ok(()),
            // Finding the last lines of a long log takes a while.
            () = channel.tx.closed() => return Err(net::Error::Closed),
            answer = self.open_follow() => self.judged(answer).await,
        };
        let Some((request, promise)) = begin::<Follow, _>(&mut channel, answer).await? else { return Ok(()) };
        channel.tx.set_priority(if request.follow { Priority::Live } else { Priority::Bulk });
        let span = tracing::info_span!("viewer", task = %request.task);
        follow::serve(self.shared, &request, promise, &mut channel.tx).instrument(span).await
    }

    async fn open_follow(&self) -> Result<(ado_proto::request::Following, (Follow, follow::Promise)), ErrorReply> {
        let request: Follow = self.decode()?;
        self.visible(request.task).await?;
        // Whoever is answered can be asked to leave.
        let seat = request.follow.then(|| self.shared.viewers.join(request.task, &self.access.principal));
        let (following, promise) = follow::begin(self.shared, &request, seat).await.map_err(unavailable)?;
        Ok((following, (request, promise)))
    }

    async fn worker_session(&self, mut channel: Channel) -> Result<(), net::Error> {
        let answer = match self.decode::<WorkerSession>() {
            Ok(request) => {
                self.about(&request.name);
                let slots = request.slots;
                let opened = session::open(self.shared, &self.peer, request).await;
                if opened.is_ok() {
                    // Every attempt has a stream, and a few more are for the session and for calls.
                    self.connection.permit_streams(slots + SPARE_STREAMS);
                }
                opened
            }
            Err(refusal) => Err(refusal),
        };
        let answer = self.judged(answer).await;
        let Some(opened) = begin::<WorkerSession, _>(&mut channel, answer).await? else { return Ok(()) };
        let span = tracing::info_span!("session", worker = opened.worker_name());
        session::serve(self.shared, self.connection, opened, channel).instrument(span).await
    }

    async fn task_output(&self, mut channel: Channel) -> Result<(), net::Error> {
        let request: TaskOutput = match self.decode() {
            Ok(request) => request,
            Err(refusal) => return finish(&mut channel, Err(refusal)).await,
        };
        self.about(&format!("{} epoch {}", request.task.short(), request.epoch));
        let answer = self.judged(session::open_output(self.shared, &self.peer, &request).await).await;
        let Some(worker) = begin::<TaskOutput, _>(&mut channel, answer).await? else { return Ok(()) };
        let span = tracing::info_span!("output", task = %request.task, epoch = %request.epoch, %worker);
        let served = session::serve_output(self.shared, worker, &request, channel).instrument(span).await;
        if let Err(net::Error::Protocol(broken)) = &served {
            self.refused(broken).await;
        }
        served
    }

    async fn put_blob(&self, mut channel: Channel) -> Result<(), net::Error> {
        let request: PutBlob = match self.decode() {
            Ok(request) => request,
            Err(refusal) => return finish(&mut channel, Err(refusal)).await,
        };
        self.about(&format!("{} epoch {}", request.task.short(), request.epoch));
        channel.tx.set_priority(Priority::Bulk);
        let answer = self.judged(snapshots::open_put(self.shared, &self.peer, &request).await).await;
        let Some(turn) = begin::<PutBlob, _>(&mut channel, answer.map(|turn| ((), turn))).await? else { return Ok(()) };
        let taken = tokio::select! {
            biased;
            () = self.shared.tasks.stopping() => return Ok(()),
            taken = snapshots::take(self.shared, &request, &mut channel.rx) => taken,
        };
        drop(turn);
        finish(&mut channel, self.judged(taken).await.and_then(reply::<PutBlob>)).await
    }

    async fn get_blob(&self, mut channel: Channel) -> Result<(), net::Error> {
        let request: GetBlob = match self.decode() {
            Ok(request) => request,
            Err(refusal) => return finish(&mut channel, Err(refusal)).await,
        };
        self.about(&format!("{} epoch {}", request.task.short(), request.epoch));
        channel.tx.set_priority(Priority::Bulk);
        let answer = self.judged(snapshots::open_get(self.shared, &self.peer, &request).await).await;
        let Some((_turn, bytes)) = begin::<GetBlob, _>(&mut channel, answer).await? else { return Ok(()) };
        snapshots::send(&bytes, &mut channel.tx).await
    }
}
