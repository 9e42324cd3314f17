//! A session with a mesh that survives networks: typed requests, and logs as streams that only pause.
//!
//! Must never know: printing, arguments, where identities are kept.

pub mod cache;
mod cursor;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ado_certs::{ClientTls, Clock, Identity, JoinString, KeyRequest};
use ado_proto::record::Desired;
use ado_proto::request::{
    AnswerGiven, AuditLine, ControllerInfo, CreateToken, CreatedToken, DeadOnes, DesiredSet, Detach, DetachedViewers,
    Enrol, Events, GetTasks, GiveAnswer, Hello, ListAudit, ListControllers, ListEvents, ListSecrets, ListTasks,
    ListTokens, ListWorkers, PurgeDead, RemoveSecret, Request, RetryDead, RevokeIdentity, RevokeToken, RevokedIdentity,
    SecretInfo, SetDesired, SetSecret, SetWorker, SettledDead, StartAt, Submit, Submitted, TaskInfo, TaskPage,
    TokenInfo, Welcome, WorkerInfo, WorkerSet,
};
use ado_proto::{Namespace, RequestId, Secret, TaskId};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use crate::BUILD;
use crate::env::Env;
use crate::net::{self, Call, Link, LinkConfig, LinkState, Priority};
use crate::tasks::Tasks;

pub use cursor::Violation;
pub use net::{Addresses, Blocked, Via};
pub use stream::{RecordStream, Step};

/// Why a request or a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network, or the controller's refusal.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// Keys or certificates.
    #[error(transparent)]
    Certs(#[from] ado_certs::Error),
    /// The controller broke the rules of a log, again and again.
    #[error("the controller does not send the log in order")]
    Violation(#[source] Violation),
}

impl Error {
    /// Whether trying again, perhaps later, may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Net(error) if error.is_transient())
    }
}

/// How to reach a mesh, and as whom.
pub struct Config {
    /// Asked before every round of dials.
    pub addresses: Addresses,
    /// Who we are.
    pub identity: Identity,
    /// The namespace meant; `None` is the certificate's.
    pub namespace: Option<Namespace>,
    /// Longest wait between failed dials.
    pub reconnect_interval: Duration,
    /// Longest wait for an answer to a request, reconnects included. Streams have no limit.
    pub timeout: Duration,
    /// Whether a WebSocket is used where UDP does not get through, and on which networks that is known to be so.
    pub websocket: Option<Arc<Blocked>>,
}

/// Interval at which a watched connection proves that it lives.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A connection silent for this long is given up: enough for a lid that is closed on the way to another room.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// When a session first asks where the controllers are, and how often after.
const LEARN_AFTER: Duration = Duration::from_millis(300);
const LEARN_EVERY: Duration = Duration::from_secs(10);

/// How the connection under a session is, for a status line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    /// The controller is there.
    Connected {
        /// Estimated round trip to it.
        rtt: Duration,
        /// Where it is.
        path: SocketAddr,
        /// What the packets travel in.
        via: Via,
    },
    /// It is not, and is being looked for: never found yet, lost, or silent.
    Connecting {
        /// Since when.
        since: Instant,
        /// The last failure, for people, if there was one.
        problem: Option<String>,
    },
    /// It is not looked for any more.
    Closed {
        /// Why, for people.
        why: String,
    },
}

/// A session with a mesh. Clones share it.
#[derive(Clone)]
pub struct Client {
    link: Link,
    tls: ClientTls,
    env: Env,
    namespace: Option<Namespace>,
    timeout: Duration,
    recorder: Option<cache::Recorder>,
}

impl Client {
    /// Starts dialling. The first request waits for the connection.
    ///
    /// # Errors
    /// When the identity cannot be used, or no socket can be had.
    pub fn connect(config: Config, env: Env, tasks: &Tasks) -> Result<Self, Error> {
        let tls = ClientTls::mesh_with_clock(config.identity, clock(&env))?;
        let link = LinkConfig {
            addresses: config.addresses,
            tls: tls.clone(),
            reconnect_interval: config.reconnect_interval,
            keep_alive: KEEP_ALIVE,
            idle_timeout: IDLE_TIMEOUT,
            websocket: config.websocket,
            sockets: None,
        };
        let link = Link::start(link, env.clone(), tasks)?;
        Ok(Self { link, tls, env, namespace: config.namespace, timeout: config.timeout, recorder: None })
    }

    /// Tells `recorder` of every task and record that is seen.
    #[must_use]
    pub fn recorded_by(mut self, recorder: cache::Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Asks who is there: the health probe.
    ///
    /// # Errors
    /// See [`Error`]; so for every request below.
    pub async fn hello(&self) -> Result<Welcome, Error> {
        self.read(&Hello { build: BUILD.into() }).await
    }

    /// Submits tasks. Repeating it with the same `id` submits nothing new and returns the first answer.
    pub async fn submit(&self, submit: &Submit, id: RequestId) -> Result<Submitted, Error> {
        self.change(submit, id).await
    }

    /// Finds the tasks a reference means: one, or all of a group.
    pub async fn tasks(&self, reference: &str) -> Result<Vec<TaskInfo>, Error> {
        let tasks = self.read(&GetTasks { reference: reference.into() }).await?;
        self.saw(&tasks);
        Ok(tasks)
    }

    /// One page of tasks, newest first.
    pub async fn list(&self, page: &ListTasks) -> Result<TaskPage, Error> {
        let page = self.read(page).await?;
        self.saw(&page.tasks);
        Ok(page)
    }

    /// Asks for another state of the tasks a reference means.
    pub async fn set_desired(&self, reference: &str, desired: Desired, force: bool) -> Result<Vec<DesiredSet>, Error> {
        self.change(&SetDesired { reference: reference.into(), desired, force }, self.request_id()).await
    }

    /// Answers a question of a task. One answer is accepted, whoever gives it.
    pub async fn answer(&self, given: &GiveAnswer) -> Result<AnswerGiven, Error> {
        self.change(given, self.request_id()).await
    }

    /// Does tasks of the dead letter again.
    pub async fn retry_dead(&self, which: &DeadOnes, fresh: bool, id: RequestId) -> Result<SettledDead, Error> {
        self.change(&RetryDead { which: which.clone(), fresh }, id).await
    }

    /// Takes tasks out of the dead letter.
    pub async fn purge_dead(&self, which: &DeadOnes) -> Result<SettledDead, Error> {
        self.change(&PurgeDead { which: which.clone() }, self.request_id()).await
    }

    /// Ends the caller's viewers of the tasks a reference means, or everybody's.
    pub async fn detach(&self, reference: &str, all: bool) -> Result<DetachedViewers, Error> {
        self.change(&Detach { reference: reference.into(), all }, self.request_id()).await
    }

    /// The workers, and of each why it could not take `task` (or any, if there is none).
    pub async fn workers(&self, task: Option<&str>) -> Result<Vec<WorkerInfo>, Error> {
        self.read(&ListWorkers { task: task.map(Into::into) }).await
    }

    /// Wants something of a worker. Repeating it with the same `id` changes nothing and returns the first answer.
    pub async fn set_worker(&self, set: &SetWorker, id: RequestId) -> Result<WorkerSet, Error> {
        self.change(set, id).await
    }

    /// The controllers of the mesh.
    pub async fn controllers(&self) -> Result<Vec<ControllerInfo>, Error> {
        self.read(&ListControllers).await
    }

    /// One page of system events. The time it may wait for one is beside the time an answer may take.
    pub async fn events(&self, page: &ListEvents) -> Result<Events, Error> {
        let timeout = Some(self.timeout + Duration::from_millis(page.wait_ms.into()));
        Ok(self.link.call(page, Call { timeout, ..self.call(None) }).await?)
    }

    /// Reads a task's log; with `follow` it stays until the task ends.
    pub fn follow(&self, task: TaskId, from: StartAt, follow: bool) -> RecordStream {
        let call = Call { namespace: self.namespace.clone(), priority: Priority::Live, ..Call::default() };
        RecordStream::new(self.link.clone(), call, task, from, follow).recorded_by(self.recorder.clone())
    }

    /// Makes a join token or an API key. Not repeated by itself: it may have been made when the answer is lost.
    pub async fn create_token(&self, token: &CreateToken) -> Result<CreatedToken, Error> {
        self.change(token, self.request_id()).await
    }

    /// Lists tokens, without their secrets.
    pub async fn list_tokens(&self) -> Result<Vec<TokenInfo>, Error> {
        self.read(&ListTokens).await
    }

    /// Makes a token useless.
    pub async fn revoke_token(&self, id: &str) -> Result<(), Error> {
        self.change(&RevokeToken { id: id.into() }, self.request_id()).await
    }

    /// Denies every certificate of an identity.
    pub async fn revoke_identity(&self, identity: &str) -> Result<RevokedIdentity, Error> {
        self.change(&RevokeIdentity { identity: identity.into() }, self.request_id()).await
    }

    /// Keeps a secret, or a new version of it. Not repeated by itself.
    pub async fn set_secret(&self, name: &str, value: Secret) -> Result<SecretInfo, Error> {
        self.change(&SetSecret { name: name.into(), value }, self.request_id()).await
    }

    /// Lists secrets, without their values.
    pub async fn list_secrets(&self) -> Result<Vec<SecretInfo>, Error> {
        self.read(&ListSecrets).await
    }

    /// Forgets a secret.
    pub async fn remove_secret(&self, name: &str) -> Result<(), Error> {
        self.change(&RemoveSecret { name: name.into() }, self.request_id()).await
    }

    /// One page of the audit log, newest first.
    pub async fn audit(&self, page: &ListAudit) -> Result<Vec<AuditLine>, Error> {
        self.read(page).await
    }

    /// Who we are.
    pub fn identity(&self) -> Arc<Identity> {
        self.tls.identity().expect("a client is a member of its mesh")
    }

    /// Why there is no connection yet, for people; `None` when there is one, or when there will be none.
    pub fn problem(&self) -> Option<String> {
        match &*self.link.state().borrow() {
            LinkState::Connecting(last) => Some(last.clone().unwrap_or_else(|| "nobody has answered".into())),
            LinkState::Connected { .. } | LinkState::Closed(_) => None,
        }
    }

    /// Waits for a connection, at most `patience`. What is in the way, for people; a failure that trying again cannot mend
    /// is none: the next request says it better.
    ///
    /// # Errors
    /// Why there is no connection yet.
    pub async fn connected(&self, patience: Duration) -> Result<(), String> {
        let mut state = self.link.state();
        let settled = state.wait_for(|state| !matches!(state, LinkState::Connecting(_)));
        if tokio::time::timeout(patience, settled).await.is_ok() {
            return Ok(());
        }
        self.problem().map_or(Ok(()), Err)
    }

    /// How the connection is right now. Cheap: ask as often as a line is drawn.
    pub fn connection(&self) -> ConnectionState {
        let (state, away_since) = (self.link.state().borrow().clone(), self.link.away_since());
        let since = away_since.unwrap_or_else(Instant::now);
        match (state, self.link.rtt()) {
            (LinkState::Closed(why), _) => ConnectionState::Closed { why },
            (LinkState::Connected { to, via, .. }, Some(rtt)) if away_since.is_none() => {
                ConnectionState::Connected { rtt, path: to, via }
            }
            (LinkState::Connected { .. }, _) => {
                ConnectionState::Connecting { since, problem: Some("the controller is silent".into()) }
            }
            (LinkState::Connecting(problem), _) => ConnectionState::Connecting { since, problem },
        }
    }

    /// Renews the certificate whenever it is due, until the session ends. `save` is told every new one.
    pub async fn keep_renewed(&self, save: impl Fn(&Identity) + Send) {
        net::keep_renewed(self.link.clone(), self.tls.clone(), save, self.env.clone()).await;
    }

    /// A key of idempotency for one mutation.
    pub fn request_id(&self) -> RequestId {
        RequestId(self.env.uuid())
    }

    /// Asks again and again where the controllers are, as long as the session lasts; `learned` is told. Not at once: short
    /// commands have no need to know.
    pub async fn keep_learning(&self, learned: impl Fn(&[String])) {
        tokio::time::sleep(LEARN_AFTER).await;
        loop {
            if let Ok(welcome) = self.hello().await {
                learned(&welcome.controllers);
            }
            tokio::time::sleep(LEARN_EVERY).await;
        }
    }

    /// Ends the session, after what was sent has arrived or a short time has passed.
    pub async fn close(&self) {
        self.link.close().await;
    }

    fn saw(&self, tasks: &[TaskInfo]) {
        if let Some(recorder) = &self.recorder {
            recorder.tasks(tasks);
        }
    }

    async fn read<R: Request>(&self, request: &R) -> Result<R::Response, Error> {
        Ok(self.link.call(request, self.call(None)).await?)
    }

    async fn change<R: Request>(&self, request: &R, id: RequestId) -> Result<R::Response, Error> {
        Ok(self.link.call(request, self.call(Some(id))).await?)
    }

    fn call(&self, id: Option<RequestId>) -> Call {
        let timeout = Some(self.timeout);
        Call { id, namespace: self.namespace.clone(), timeout, priority: Priority::Control }
    }
}

/// What joining a mesh brings.
pub struct Enrolment {
    /// Who we are now.
    pub identity: Identity,
    /// Where its controllers are, `host:port`.
    pub controllers: Vec<String>,
}

/// Joins a mesh: makes a key, and has it certified for the secret in the join string.
///
/// # Errors
/// See [`Error`]. After [`net::Error::Lost`] the secret may be used up.
pub async fn enrol(
    join: &JoinString,
    name: &str,
    timeout: Duration,
    websocket: Option<Arc<Blocked>>,
    env: Env,
    tasks: &Tasks,
) -> Result<Enrolment, Error> {
    let addresses = join.addresses.clone();
    let config = LinkConfig {
        addresses: Arc::new(move || addresses.clone()),
        tls: ClientTls::join_with_clock(join.pin, clock(&env))?,
        reconnect_interval: Duration::from_secs(1),
        keep_alive: KEEP_ALIVE,
        idle_timeout: IDLE_TIMEOUT,
        websocket,
        sockets: None,
    };
    let key = KeyRequest::new()?;
    let link = Link::start(config, env, tasks)?;
    let request = Enrol { secret: join.secret.clone(), csr: key.csr_der().to_vec(), name: name.into() };
    let enrolled = link.call(&request, Call { timeout: Some(timeout), ..Call::default() }).await;
    link.close().await;
    let enrolled = enrolled?;
    let controllers = if enrolled.controllers.is_empty() { join.addresses.clone() } else { enrolled.controllers };
    Ok(Enrolment { identity: key.into_identity(certificates(enrolled.chain))?, controllers })
}

fn clock(env: &Env) -> Clock {
    let env = env.clone();
    Clock::new(move || env.now())
}

fn certificates(chain: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    chain.into_iter().map(CertificateDer::from).collect()
}
