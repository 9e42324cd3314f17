//! The controller: keeps the truth, places tasks, detects dead workers, serves viewers.
//!
//! Joins policy (`task`, `scheduler`) to edges (`store`, `queue`, `net`).
//! Must never know: SQL text, frame bytes, argv.

mod access;
mod aside;
mod authority;
mod bounds;
mod breakers;
mod bridge;
mod commit;
mod deadlines;
mod dispatch;
mod enrol;
mod everyone;
mod filter;
mod fleet;
mod follow;
mod garbage;
mod handle;
mod hub;
mod info;
mod leased;
mod mesh;
mod metrics;
mod others;
mod quiet;
mod reaper;
mod reason;
mod refusals;
mod renewals;
mod requests;
mod retention;
mod secrets;
mod session;
mod snapshots;
mod source;
mod viewers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ado_certs::MasterKey;
use ado_proto::{ControllerId, Incarnation};

use tokio::sync::Notify;

use crate::blobs;
use crate::env::Env;
use crate::net::Server;
use crate::queue::{self, Queue, Wakes};
use crate::store::Store;
use crate::task;
use crate::tasks::Tasks;

use authority::Authority;
use breakers::Breakers;
use bridge::Bridges;
use commit::Committer;
use everyone::Everyone;
use fleet::Fleet;
use hub::Hub;
use mesh::Mesh;
use metrics::Metrics;
use refusals::Refusals;
use renewals::Renewer;
use secrets::Safe;
use snapshots::Vault;
use viewers::Viewers;

pub use crate::blobs::Place;
pub use crate::queue::RedisConfig;
pub use authority::LocalIdentities;
pub use handle::{Handle, Parts, start, start_with};
pub use retention::Retention;

/// What a controller is made of.
pub struct Config {
    /// Where its CA, its keys and its embedded store are.
    pub dir: PathBuf,
    /// Addresses for QUIC; port 0 picks one.
    pub listen: Vec<SocketAddr>,
    /// Whether those whose network blocks UDP may come by WebSocket, on TCP ports of the same numbers.
    pub websocket: bool,
    /// Address for HTTP (`/health`, `/ready`, `/metrics`); `None` serves none.
    pub http: Option<SocketAddr>,
    /// `host:port` that join strings name; empty: the addresses listened on.
    pub advertise: Vec<String>,
    /// Numbers of liveness.
    pub timing: Timing,
    /// Numbers of retries.
    pub policy: task::Policy,
    /// How long tasks are kept, and how much of their logs.
    pub retention: Retention,
    /// Where snapshots of tasks' folders are; `None`: in a folder in `dir`, of a controller that shares its store with nobody.
    pub blobs: Option<blobs::Place>,
    /// How long blobs are kept that no checkpoint needs; longer than a worker may take to send a snapshot.
    pub blobs_grace: Duration,
    /// Where hints are, for controllers that share a store; `None`: in this process.
    pub redis: Option<RedisConfig>,
    /// URL of the PostgreSQL database where tasks and logs are; `None`: in a file in `dir`.
    pub database: Option<String>,
    /// For people.
    pub name: String,
    /// Opens what controllers keep closed in the database; `None`: the one in `dir`.
    pub master_key: Option<MasterKey>,
    /// Identities to keep for processes of the same user on the same machine.
    pub local: Option<LocalIdentities>,
}

/// Numbers of liveness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often workers report.
    pub heartbeat: Duration,
    /// Silence after which a worker is lost and its tasks are placed elsewhere.
    pub lost_after: Duration,
}

impl Default for Timing {
    /// Three heartbeats may go missing: one dropped, one late from a paused machine, one for the lease's margin.
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(5), lost_after: Duration::from_secs(20) }
    }
}

impl Timing {
    /// How long a renewal lets a worker act, counted from when it was sent. The rest of `lost_after` is the margin in
    /// which a cut-off worker has stopped and nothing is re-assigned yet.
    pub fn lease(&self) -> Duration {
        self.lost_after * 3 / 4
    }

    /// Time between a lease's end and its task's re-assignment.
    pub fn margin(&self) -> Duration {
        self.lost_after - self.lease()
    }

    /// How much longer than its lease a worker may act whose controller is not answered by the store. Whose tasks may be such
    /// a worker's are re-assigned that much later. Long enough for a database to be moved to another machine.
    pub fn bridge(&self) -> Duration {
        self.lost_after * 3 / 2
    }

    /// A controller that is answered by the store for this long after a worker's last renewal knows that the worker is
    /// silent, and bridges nothing for it. Longer than a heartbeat may take; over before the lease is.
    fn silence(&self) -> Duration {
        (self.heartbeat + self.lease()) / 2
    }
}

/// Why a controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] crate::store::Error),
    /// Its CA or identity is not usable.
    #[error("cannot set up the certificates of the mesh")]
    Certs(#[from] ado_certs::Error),
    /// The mesh in its database is closed under another master key.
    #[error("cannot open the keys of the mesh that are kept in the database")]
    MasterKey(#[source] ado_certs::envelope::OpenError),
    /// There is a mesh in its database, and no master key here.
    #[error("the database holds a mesh, and there is no master key here to open it")]
    NoMasterKey,
    /// Its queue cannot be used as configured. One that is only away does not keep it from starting.
    #[error("cannot use Redis")]
    Queue(#[from] queue::Error),
    /// Its store of blobs cannot be used as configured.
    #[error("cannot keep snapshots")]
    Blobs(#[from] blobs::Error),
    /// An address cannot be bound.
    #[error("cannot listen")]
    Net(#[from] crate::net::Error),
    /// The HTTP address cannot be bound.
    #[error("cannot listen for HTTP on {address}")]
    Http {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Loops that one controller of a mesh runs, in order.
const LOOPS: [&str; 5] = ["deadlines", "garbage", "reaper", "retention", "sweep"];

/// What the controller's parts share.
#[derive(Clone)]
struct Shared {
    id: ControllerId,
    incarnation: Incarnation,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    committer: Committer,
    renewer: Renewer,
    hub: Arc<Hub>,
    fleet: Arc<Fleet>,
    viewers: Arc<Viewers>,
    breakers: Arc<Breakers>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    safe: Safe,
    vault: Arc<Vault>,
    authority: Arc<Authority>,
    server: Arc<Server>,
    /// The controllers, this one among them.
    mesh: Arc<Mesh>,
    /// What workers may do while the store does not answer.
    bridges: Arc<Bridges>,
    /// Whether others may share the store.
    shared: bool,
    /// Their workers.
    everyone: Arc<Everyone>,
    /// What they are told and tell.
    others: Option<Arc<dyn Wakes>>,
    /// Counts of viewers that others were asked for.
    asked: Arc<others::Asked>,
    /// Something waits elsewhere that only workers here may fit.
    unplaced: Arc<Notify>,
    timing: Timing,
    policy: task::Policy,
    env: Env,
    tasks: Tasks,
}
