//! The controller's side of the mesh's certificates: issues them, remembers them, denies them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ado_certs::{Ca, Clock, Denied, Identity, Issued, JoinString, KeyRequest, MasterKey, ServerSecrets, ServerTls};
use ado_proto::{ControllerId, Namespace, Principal, Role, Timestamp, WorkerId};

use super::Error;
use crate::env::Env;
use crate::store::{self, Certificate, Store};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where the identities of processes of the same user on the same machine are kept.
#[derive(Debug, Clone)]
pub struct LocalIdentities {
    /// Of the command line: an administrator.
    pub admin: PathBuf,
    /// Of the local worker.
    pub worker: PathBuf,
}

/// The CA and who the controller is.
pub(super) struct Authority {
    ca: Ca,
    id: ControllerId,
    pub(super) tls: ServerTls,
    pub(super) denied: Denied,
}

/// Names of what the controllers of a mesh share, and what it is closed for.
const CA: &str = "mesh/ca";
const SERVER_KEYS: &str = "mesh/server-keys";

/// Says that the controller of this directory made the mesh of its database: it tells how to become its administrator.
const FOUNDER: &str = "founder";

/// The mesh as its controllers have it: the CA, the keys of their servers, and what opens its secrets.
pub(super) struct Keys {
    pub(super) ca: Ca,
    pub(super) server: ServerSecrets,
    pub(super) master: MasterKey,
}

impl Keys {
    /// Those in `dir`, made if they are not there: of a controller that is alone.
    pub(super) fn of_dir(dir: &Path, env: &Env) -> Result<Self, ado_certs::Error> {
        Ok(Self {
            ca: Ca::open_or_create(dir, env.now())?,
            server: ServerSecrets::open_or_create(dir)?,
            master: MasterKey::open_or_create(dir)?,
        })
    }

    /// Those that the store keeps, closed under a master key that it does not keep: of controllers that share it. The first
    /// one brings the CA it has in `dir`, so that whoever joined it stays a member, or makes one.
    pub(super) async fn shared(
        store: &dyn Store,
        given: Option<&MasterKey>,
        dir: &Path,
        env: &Env,
    ) -> Result<Self, Error> {
        let found = store.item(CA).await?;
        let master = match (given, MasterKey::open(dir)?) {
            (Some(given), _) => given.clone(),
            (None, Some(own)) => own,
            // Making one would only be another wrong one.
            (None, None) if found.is_some() => return Err(Error::NoMasterKey),
            (None, None) => MasterKey::open_or_create(dir)?,
        };
        let open = |name, sealed: &[u8]| master.open_item(name, sealed).map_err(Error::MasterKey);
        let own = Ca::open(dir, env.now())?;
        let sealed = match found {
            Some(sealed) => sealed,
            None => {
                let first = match &own {
                    Some(own) => own.to_pem(),
                    None => Ca::generate(env.now())?.to_pem(),
                };
                // Before: it must not be the founder without knowing.
                ado_certs::write_private(&dir.join(FOUNDER), b"")?;
                let sealed = master.seal(CA, first.as_bytes());
                let kept = store.put_item(CA, &sealed).await?;
                if kept != sealed {
                    // Another was quicker.
                    let _ = std::fs::remove_file(dir.join(FOUNDER));
                }
                kept
            }
        };
        let ca = Ca::from_pem(&open(CA, &sealed)?)?;
        if let Some(own) = own.filter(|own| own.pin() != ca.pin()) {
            tracing::warn!(own = %own.pin(), mesh = %ca.pin(), "the CA in its directory is not the one of the database, and is not used");
        }
        let sealed = match store.item(SERVER_KEYS).await? {
            Some(sealed) => sealed,
            None => {
                let made = ServerSecrets::generate().to_bytes();
                store.put_item(SERVER_KEYS, &master.seal(SERVER_KEYS, &made)).await?
            }
        };
        let damaged = || store::Error::Damaged("the keys of the mesh's servers".into());
        let server = ServerSecrets::from_bytes(&open(SERVER_KEYS, &sealed)?).ok_or_else(damaged)?;
        Ok(Self { ca, server, master })
    }
}

/// Whether the controller of this directory made the mesh.
pub(super) fn is_founder(dir: &Path) -> bool {
    dir.join(FOUNDER).exists()
}

impl Authority {
    /// Of these keys, and a fresh certificate for the controller itself.
    pub(super) fn new(ca: Ca, dir: &Path, env: &Env) -> Result<Self, ado_certs::Error> {
        let now = env.now();
        let id = controller_id(dir, env)?;
        let clock = env.clone();
        let tls = ServerTls::with_clock(controller_identity(&ca, id, now)?, Clock::new(move || clock.now()))?;
        Ok(Self { ca, id, tls, denied: Denied::default() })
    }

    /// Who the controller is.
    pub(super) fn id(&self) -> ControllerId {
        self.id
    }

    /// Gives the controller a new certificate; connections go on.
    pub(super) fn renew_own(&self, now: Timestamp) -> Result<(), ado_certs::Error> {
        self.tls.replace(controller_identity(&self.ca, self.id, now)?)
    }

    /// A join string with a token's secret.
    pub(super) fn join_string(&self, addresses: Vec<String>, secret: String) -> JoinString {
        JoinString { addresses, pin: self.ca.pin(), secret }
    }

    /// Whether a certificate could be issued for this request.
    pub(super) fn check_request(&self, csr: &[u8], now: Timestamp) -> Result<(), ado_certs::Error> {
        let anybody = Principal { role: Role::Viewer, namespace: Namespace::default(), name: "nobody".into() };
        self.ca.issue(csr, &anybody, DAY, now).map(drop)
    }

    /// Issues a certificate and remembers it. `None`: the identity has been revoked.
    pub(super) async fn issue(
        &self,
        store: &dyn Store,
        csr: &[u8],
        who: &Principal,
        now: Timestamp,
    ) -> Result<Option<Issued>, IssueError> {
        let issued = self.ca.issue(csr, who, lifetime(who.role), now).map_err(IssueError::Request)?;
        let certificate =
            Certificate { serial: issued.serial.clone(), identity: who.to_string(), not_after: issued.not_after };
        let kept = store.put_certificate(certificate).await.map_err(IssueError::Store)?;
        Ok(kept.then_some(issued))
    }

    /// Makes or renews the identities of the user's own processes.
    pub(super) async fn keep_local(
        &self,
        store: &dyn Store,
        local: &LocalIdentities,
        env: &Env,
    ) -> Result<(), IssueError> {
        let worker = WorkerId(env.uuid()).to_string();
        for (dir, role, name) in [(&local.admin, Role::Admin, "local"), (&local.worker, Role::Worker, &*worker)] {
            let former = Identity::load(dir).ok().filter(|identity| *identity.ca() == self.ca.certificate());
            if former.as_ref().is_some_and(|identity| !identity.should_renew(env.now())) {
                continue;
            }
            let name = former.map_or_else(|| name.to_owned(), |identity| identity.principal().name.clone());
            let who = Principal { role, namespace: Namespace::default(), name };
            let request = KeyRequest::new().map_err(IssueError::Request)?;
            if let Some(issued) = self.issue(store, request.csr_der(), &who, env.now()).await? {
                let identity = request.into_identity(issued.chain).map_err(IssueError::Request)?;
                identity.save(dir).map_err(IssueError::Request)?;
            }
        }
        Ok(())
    }
}

/// Why a certificate could not be issued.
#[derive(Debug)]
pub(super) enum IssueError {
    /// The request is not right, or a file cannot be written.
    Request(ado_certs::Error),
    /// The store did not answer.
    Store(store::Error),
}

/// How long a certificate lives. People's laptops may be closed for weeks; workers are always on.
fn lifetime(role: Role) -> Duration {
    match role {
        Role::Admin | Role::User | Role::Viewer => 30 * DAY,
        Role::Worker | Role::Controller => 7 * DAY,
    }
}

fn controller_identity(ca: &Ca, id: ControllerId, now: Timestamp) -> Result<Identity, ado_certs::Error> {
    let request = KeyRequest::new()?;
    let who = Principal { role: Role::Controller, namespace: Namespace::default(), name: id.to_string() };
    let issued = ca.issue(request.csr_der(), &who, lifetime(Role::Controller), now)?;
    request.into_identity(issued.chain)
}

/// The controller's id is kept beside its CA.
fn controller_id(dir: &Path, env: &Env) -> Result<ControllerId, ado_certs::Error> {
    let path = dir.join("controller.id");
    if let Some(id) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(id);
    }
    let id = ControllerId(env.uuid());
    ado_certs::write_private(&path, id.to_string().as_bytes())?;
    Ok(id)
}
