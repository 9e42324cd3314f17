//! Starting and stopping.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::request::WorkerBounds;
use ado_proto::{Incarnation, Role};
use tokio_util::sync::CancellationToken;

use super::authority::{self, Authority, IssueError, Keys};
use super::bridge::Bridges;
use super::commit::Committer;
use super::fleet::Fleet;
use super::hub::Hub;
use super::mesh::{self, Mesh};
use super::metrics::{self, Metrics};
use super::renewals::Renewer;
use super::secrets::Safe;
use super::snapshots::Vault;
use super::{
    Config, Error, Shared, breakers, deadlines, dispatch, garbage, others, reaper, refusals, requests, retention,
};
use crate::blobs::{self, Blobs};
use crate::env::Env;
use crate::gateway;
use crate::net::{Server, ServerConfig, ServerKeys};
use crate::queue::{Local, Queue, Redis, RedisConfig, Wakes};
use crate::store::{self, Postgres, Sqlite, Store};
use crate::tasks::Tasks;

/// How often certificates are looked after: denied ones, ended ones, the controller's own.
const CERTIFICATES: Duration = Duration::from_secs(5);
/// How long stopping waits for what is under way.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once. Beyond, new ones are refused.
const MAX_CONNECTIONS: usize = 4096;
/// Connections at once that have not proved who they are.
const MAX_STRANGERS: usize = 64;
/// A connection silent for this long is given up. Long enough for a closed lid.
const IDLE: Duration = Duration::from_secs(300);

/// A running controller.
pub struct Handle {
    shared: Shared,
    server: Arc<Server>,
    store: Arc<dyn Store>,
    http: Option<gateway::Gateway>,
    /// Cancelled first of all when it stops.
    leaving: CancellationToken,
    /// The group commit: it ends after everything it was given is durable.
    committing: Tasks,
    /// What its parts do in the background.
    background: Tasks,
    /// It made the mesh.
    founder: bool,
}

/// What a controller works with, and may share with others.
pub struct Parts {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Hints.
    pub queue: Arc<dyn Queue>,
    /// The other controllers; `None`: there are none.
    pub others: Option<Arc<dyn Wakes>>,
    /// Whether other controllers may use the store. They are of one mesh then, whose keys are in it.
    pub shared: bool,
    /// What these do in the background. Stopped after everything else.
    pub background: Tasks,
}

impl Parts {
    /// Those that the configuration names.
    async fn open(config: &Config, env: &Env) -> Result<Self, Error> {
        let store = open_store(config, env).await?;
        let background = Tasks::new();
        let shared = config.database.is_some();
        let Some(redis) = &config.redis else {
            return Ok(Self { store, queue: Arc::new(Local::new()), others: None, shared, background });
        };
        // Hints are about this store: those of another one that keeps its own in the same Redis are not its.
        let prefix = format!("{}{:016x}:", redis.prefix, store.generation());
        let redis = RedisConfig { prefix, ..redis.clone() };
        let redis = Arc::new(Redis::start(&redis, env.clone(), &background).await?);
        Ok(Self { store, queue: redis.clone(), others: Some(redis), shared, background })
    }
}

impl Handle {
    /// The addresses it listens on for QUIC.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.server.addresses()
    }

    /// The address it listens on for HTTP.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(gateway::Gateway::address)
    }

    /// Whether it made the mesh: of several controllers one did.
    pub fn is_founder(&self) -> bool {
        self.founder
    }

    /// Makes a join string that gives its one holder the administrator's role.
    ///
    /// # Errors
    /// [`Error::Store`] when the token cannot be kept.
    pub async fn admin_join_string(&self) -> Result<String, Error> {
        let secret = ado_certs::secret::generate();
        let now = self.store.now().await?;
        let token = store::Token {
            id: "first-admin".into(),
            hash: ado_certs::secret::hash(&secret),
            role: Role::Admin,
            namespace: ado_proto::Namespace::default(),
            name: Some("admin".into()),
            uses_left: Some(1),
            created_at: now,
            expires_at: now.after(Duration::from_secs(24 * 3600)),
            created_by: "controller".into(),
            bounds: WorkerBounds::default(),
        };
        let audit = store::Audit::done(token.namespace.clone(), "controller".into(), "CreateToken", token.id.clone());
        self.store.put_token(token, audit).await?;
        Ok(self.shared.authority.join_string(self.shared.advertised(), secret).to_string())
    }

    /// Stops: no new connections, then streams, then the store. Agents on workers do not notice.
    pub async fn stop(self) {
        self.leaving.cancel();
        // Whoever is sent away is not sent here again.
        mesh::leave(&self.shared).await;
        self.server.close(PATIENCE).await;
        self.shared.tasks.stop(PATIENCE).await;
        if let Some(http) = self.http {
            http.stop().await;
        }
        // Nobody is left who could commit.
        drop(self.shared);
        self.committing.stop(PATIENCE).await;
        self.background.stop(PATIENCE).await;
        self.store.close().await;
    }
}

async fn open_store(config: &Config, env: &Env) -> Result<Arc<dyn Store>, Error> {
    Ok(match &config.database {
        Some(url) => Arc::new(Postgres::open(url, env.clone()).await?),
        None => Arc::new(Sqlite::open(&config.dir.join("store.sqlite3"), env.clone()).await?),
    })
}

/// Starts a controller.
///
/// # Errors
/// See [`Error`].
pub async fn start(config: Config, env: Env) -> Result<Handle, Error> {
    ado_certs::create_private_folder(&config.dir)?;
    let parts = Parts::open(&config, &env).await?;
    start_with(config, parts, env).await
}

/// Starts a controller on these parts, whatever its configuration says of them.
///
/// # Errors
/// See [`Error`].
pub async fn start_with(config: Config, parts: Parts, env: Env) -> Result<Handle, Error> {
    let Parts { store, queue, others, shared: is_shared, background } = parts;
    ado_certs::create_private_folder(&config.dir)?;
    let keys = match is_shared {
        true => Keys::shared(&*store, config.master_key.as_ref(), &config.dir, &env).await?,
        false => Keys::of_dir(&config.dir, &env)?,
    };
    let server_keys =
        ServerKeys { reset: keys.server.reset, connection_id: keys.server.connection_id, token: keys.server.token };
    let authority = Arc::new(Authority::new(keys.ca, &config.dir, &env)?);
    authority.denied.set(store.denied().await?);
    if let Some(local) = &config.local {
        authority.keep_local(&*store, local, &env).await.map_err(|error| match error {
            IssueError::Request(error) => Error::Certs(error),
            IssueError::Store(error) => Error::Store(error),
        })?;
    }
    let safe = Safe::new(keys.master);
    let own = || (!is_shared).then(|| blobs::Place::Folder(config.dir.join("blobs")));
    let place = config.blobs.clone().or_else(own);
    let vault = Arc::new(Vault::new(place.as_ref().map(Blobs::open).transpose()?));
    let tasks = Tasks::new();
    let server = Arc::new(bind(&config, &authority, server_keys, &env, &tasks)?);
    let hub = Arc::new(Hub::new(others.clone()));
    let fleet = Arc::new(Fleet::new(config.timing.lease()));
    let committing = Tasks::new();
    let metrics = Arc::new(Metrics::new());
    let committer = Committer::start(store.clone(), hub.clone(), fleet.clone(), metrics.clone(), &committing);
    let advertise = match &config.advertise {
        given if given.is_empty() => server.addresses().iter().map(ToString::to_string).collect(),
        given => given.clone(),
    };
    let incarnation = Incarnation(env.uuid());
    let own = store::Controller {
        id: authority.id(),
        incarnation,
        name: config.name.clone(),
        addresses: advertise,
        build: crate::BUILD.into(),
        since: store.now().await?,
        seen_at: ado_proto::Timestamp(0),
        in_touch: ado_proto::Timestamp(0),
        workers: 0,
        viewers: 0,
    };
    let shared = Shared {
        id: authority.id(),
        incarnation,
        store: store.clone(),
        queue,
        committer,
        renewer: Renewer::start(store.clone(), config.timing.lease(), &tasks),
        hub,
        fleet,
        viewers: Arc::default(),
        breakers: Arc::default(),
        metrics,
        refusals: Arc::default(),
        safe,
        vault,
        authority,
        mesh: Arc::new(Mesh::new(own, config.timing)),
        bridges: Arc::new(Bridges::new(config.timing)),
        shared: is_shared,
        everyone: Arc::default(),
        others: others.clone(),
        asked: Arc::default(),
        unplaced: Arc::default(),
        server: server.clone(),
        timing: config.timing,
        policy: config.policy,
        env,
        tasks,
    };
    let leaving = CancellationToken::new();
    let http = match config.http {
        Some(address) => Some(serve_http(address, &shared, leaving.clone()).await?),
        None => None,
    };
    // Others know of it before anybody is let in.
    mesh::look(&shared).await?;
    spawn_loops(&shared, &config);
    if let Some(wakes) = others {
        let hearing = shared.clone();
        let hear = move |words| {
            let shared = hearing.clone();
            hearing.tasks.spawn_until_stop("words", async move { others::hear(&shared, words).await });
        };
        shared.tasks.spawn_until_stop("others", others::run(shared.hub.clone(), wakes, hear));
    }
    let founder = !is_shared || authority::is_founder(&config.dir);
    Ok(Handle { shared, server, store, http, leaving, committing, background, founder })
}

fn bind(config: &Config, authority: &Authority, keys: ServerKeys, env: &Env, tasks: &Tasks) -> Result<Server, Error> {
    let server = ServerConfig {
        listen: config.listen.clone(),
        tls: authority.tls.clone(),
        keys,
        denied: authority.denied.clone(),
        max_connections: MAX_CONNECTIONS,
        max_strangers: MAX_STRANGERS,
        idle_timeout: IDLE,
        websocket: config.websocket,
        sockets: None,
    };
    Ok(Server::bind(server, env.clone(), tasks)?)
}

async fn serve_http(
    address: SocketAddr,
    shared: &Shared,
    leaving: CancellationToken,
) -> Result<gateway::Gateway, Error> {
    let store = shared.store.clone();
    let ready = gateway::readiness(move || {
        let (store, leaving) = (store.clone(), leaving.clone());
        async move {
            if leaving.is_cancelled() {
                return Err("stopping".into());
            }
            store.ping().await.map_err(|error| error.to_string())
        }
    });
    let asked = shared.clone();
    let metrics = gateway::page(move || {
        let shared = asked.clone();
        async move { metrics::scrape(&shared).await }
    });
    gateway::Gateway::start(address, ready, metrics).await.map_err(|source| Error::Http { address, source })
}

fn spawn_loops(shared: &Shared, config: &Config) {
    let tasks = &shared.tasks;
    let (accepting, server) = (shared.clone(), shared.server.clone());
    tasks.spawn("accept", async move {
        while let Some(connection) = server.accept().await {
            let shared = accepting.clone();
            tracing::debug!(peer = ?connection.peer(), remote = %connection.remote(), "connected");
            accepting.tasks.spawn("connection", requests::serve_connection(shared, connection));
        }
    });
    tasks.spawn("dispatch", dispatch::run(shared.clone()));
    tasks.spawn("refusals", refusals::run(shared.clone()));
    tasks.spawn_until_stop("reaper", reaper::run(shared.clone()));
    tasks.spawn_until_stop("breakers", breakers::run(shared.clone()));
    tasks.spawn_until_stop("deadlines", deadlines::run(shared.clone()));
    tasks.spawn_until_stop("certificates", look_after_certificates(shared.clone(), config.local.clone()));
    tasks.spawn_until_stop("mesh", mesh::run(shared.clone()));
    tasks.spawn_until_stop("retention", retention::run(shared.clone(), config.retention));
    tasks.spawn_until_stop("garbage", garbage::run(shared.clone(), config.blobs_grace));
}

async fn look_after_certificates(shared: Shared, local: Option<super::LocalIdentities>) {
    let mut own_since = shared.env.now();
    loop {
        tokio::time::sleep(CERTIFICATES).await;
        if let Err(error) = shared.apply_denied().await {
            tracing::warn!(%error, "cannot read which certificates are denied");
        }
        let now = shared.env.now();
        if now.since(own_since) > Duration::from_secs(24 * 3600) {
            own_since = now;
            if let Err(error) = shared.authority.renew_own(now) {
                tracing::warn!(%error, "cannot renew the controller's certificate");
            }
            if let Some(local) = &local
                && let Err(error) = shared.authority.keep_local(&*shared.store, local, &shared.env).await
            {
                tracing::warn!(?error, "cannot renew the local identities");
            }
        }
    }
}

impl Shared {
    /// Reads which certificates are denied, and closes the connections of their holders.
    pub(super) async fn apply_denied(&self) -> store::Result<()> {
        self.authority.denied.set(self.store.denied().await?);
        self.server.enforce();
        Ok(())
    }

    /// Addresses that join strings name: this controller's first, then those of the others that live.
    pub(super) fn advertised(&self) -> Vec<String> {
        self.mesh.addresses()
    }
}
