//! `ado controller`: keep tasks and logs, in the foreground.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use ado_certs::MasterKey;
use serde_json::json;

use super::Global;
use super::error::{Error, Kind};
use super::output::print;
use super::session::App;
use super::signals::Signals;
use crate::config::{self, Flags};
use crate::controller::{self, Handle, LocalIdentities, Place, RedisConfig, Retention, Timing};
use crate::local::{self, Endpoint, Lock, Role};
use crate::task::Policy;

/// Keep tasks and logs, serve workers and viewers
///
/// Runs in the foreground until SIGTERM. The first start prints a join string that makes its one holder an administrator.
/// Controllers that share a database (and a Redis, and a master key) are one mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Listen here, UDP
    #[arg(long, value_name = "IP:PORT,…")]
    listen: Option<String>,
    /// Serve health and metrics here, TCP
    #[arg(long, value_name = "IP:PORT")]
    http: Option<String>,
    /// Tell others to reach it here; default: where it listens, with this machine's own address for 0.0.0.0
    #[arg(long, value_name = "HOST:PORT,…")]
    advertise: Option<String>,
    /// Keep the queue in this Redis, which controllers of one store share; others see flags: prefer ADO_REDIS_URL
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// Keep tasks and logs in this PostgreSQL database; others see flags: prefer ADO_DATABASE_URL
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Keep everything here; default: serve/controller below ado's own directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Be the controller of this machine's user
    #[arg(long, hide = true, conflicts_with_all = ["listen", "advertise", "dir", "redis_url", "database_url"])]
    local: bool,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let mut signals = Signals::catch()?;
    let mut flags = Flags::default();
    for (key, flag, value) in [
        ("controller.listen", "--listen", &args.listen),
        ("controller.http", "--http", &args.http),
        ("controller.advertise", "--advertise", &args.advertise),
        ("controller.redis.url", "--redis-url", &args.redis_url),
        ("controller.database.url", "--database-url", &args.database_url),
    ] {
        if let Some(value) = value {
            flags.set(key, flag, value);
        }
    }
    let app = App::new(global, flags)?;
    if args.local {
        local::leave_session();
    }
    local::leave_no_core();
    local::prepare(&app.home)?;
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None if args.local => app.home.dir(Role::Controller),
        None => app.home.by_hand(Role::Controller),
    };
    let lock = own(&dir, Role::Controller).await?;
    let handle = controller::start(config(&app, &dir, args.local)?, app.env.clone()).await.map_err(cannot_start)?;
    if args.local {
        announce(&app, &handle)?;
    } else {
        greet(&app, &dir, &handle).await?;
    }
    tokio::select! {
        biased;
        signal = signals.next() => tracing::info!(?signal, "stopping"),
        () = lock.displaced(), if args.local => tracing::warn!("its directory was removed: stopping"),
        () = local::supervise(app.home.clone(), &[Role::Worker]), if args.local => {}
    }
    handle.stop().await;
    Ok(0)
}

/// The lock of a role's directory, held for life.
pub(super) async fn own(dir: &Path, role: Role) -> Result<Lock, Error> {
    let failed = |error| Error::new(Kind::Local, format!("cannot use {}", dir.display())).because(error);
    ado_certs::create_private_folder(dir)?;
    let path = dir.join(format!("{}.lock", role.as_str()));
    match Lock::own(&path).await.map_err(failed)? {
        Some(lock) => Ok(lock),
        None => Err(Error::new(Kind::Local, format!("a {} uses {} already", role.as_str(), dir.display()))),
    }
}

fn config(app: &App, dir: &Path, local: bool) -> Result<controller::Config, Error> {
    let settings = &app.config.controller;
    let key = settings.master_key.as_ref().filter(|_| !local);
    let master_key = key.map(|key| MasterKey::from_setting(key.reveal())).transpose();
    let master_key = master_key
        .map_err(|error| Error::usage("`controller.masterKey` (ADO_MASTER_KEY) cannot be used").because(error))?;
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(controller::Config {
        dir: dir.into(),
        listen: if local { vec![loopback(former_port(app))] } else { settings.listen.value.clone() },
        websocket: !local && app.config.communication.websocket,
        http: Some(if local && !settings.http.is_explicit() { loopback(0) } else { settings.http.value }),
        advertise: match &settings.advertise[..] {
            [] if !local => {
                settings.listen.value.iter().filter_map(|address| reachable(*address, own_address)).collect()
            }
            given => given.iter().map(ToString::to_string).collect(),
        },
        timing: Timing {
            heartbeat: app.config.communication.heartbeat_interval,
            lost_after: app.config.failover.heartbeat_timeout,
        },
        policy: Policy::default(),
        retention: Retention { logs: settings.retention_logs, max_log_bytes: settings.max_log_bytes.0 },
        blobs: blobs(&settings.blobs)?,
        blobs_grace: settings.blobs.grace,
        // Nobody shares the embedded store of one user.
        redis: settings
            .redis_url
            .as_ref()
            .filter(|_| !local)
            .map(|url| RedisConfig { url: url.reveal().into(), prefix: settings.redis_prefix.clone() }),
        // The embedded controller of a user keeps its own.
        database: settings.database_url.as_ref().filter(|_| !local).map(|url| url.reveal().into()),
        name: nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_else(|| "controller".into()),
        master_key,
        local: local.then(|| LocalIdentities { admin: app.home.admin(), worker: app.home.worker_identity() }),
    })
}

/// Where snapshots are kept, if somebody says.
fn blobs(settings: &config::Blobs) -> Result<Option<Place>, Error> {
    let Some(url) = &settings.url else { return Ok(None) };
    let mut place = Place::parse(url)
        .map_err(|error| Error::usage("`controller.blobs.url` (ADO_BLOBS_URL) cannot be used").because(error))?;
    if let Place::Bucket(bucket) = &mut place {
        bucket.endpoint.clone_from(&settings.endpoint);
        bucket.region.clone_from(&settings.region);
        bucket.key = match (&settings.access_key_id, &settings.secret_access_key) {
            (Some(id), Some(secret)) => Some((id.clone(), secret.reveal().into())),
            (None, None) => None,
            _ => {
                let one = "`controller.blobs.accessKeyId` and `controller.blobs.secretAccessKey` belong together";
                return Err(Error::usage(format!("{one}: one of them is not set")).hint("ado config show"));
            }
        };
    }
    Ok(Some(place))
}

/// Where others reach what listens at `address`: nobody can dial "any address", so this machine's own stands for it.
/// `None` when the port is not known yet.
fn reachable(address: SocketAddr, own: impl FnOnce(IpAddr) -> Option<IpAddr>) -> Option<String> {
    if address.port() == 0 {
        return None;
    }
    let ip = if address.ip().is_unspecified() { own(address.ip())? } else { address.ip() };
    Some(SocketAddr::new(ip, address.port()).to_string())
}

/// The address packets to elsewhere leave from; loopback where there is no way to elsewhere. Nothing is sent.
fn own_address(any: IpAddr) -> Option<IpAddr> {
    let (elsewhere, loopback) = match any {
        IpAddr::V4(_) => (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::LOCALHOST)),
        IpAddr::V6(_) => (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::LOCALHOST)),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    let routed = socket.connect((elsewhere, 9)).and_then(|()| socket.local_addr());
    Some(routed.map_or(loopback, |address| address.ip()))
}

/// The port of the former life, so that whoever is connected finds this one at once; any port if another has it now.
fn former_port(app: &App) -> u16 {
    let former = app.home.endpoint().and_then(|endpoint| endpoint.quic.first()?.parse::<SocketAddr>().ok());
    former.filter(|address| UdpSocket::bind(address).is_ok()).map_or(0, |address| address.port())
}

fn announce(app: &App, handle: &Handle) -> Result<(), Error> {
    let endpoint = Endpoint {
        pid: std::process::id(),
        quic: handle.addresses().iter().map(ToString::to_string).collect(),
        http: handle.http().map(|address| address.to_string()),
        started_at: app.env.now(),
    };
    app.home
        .write_endpoint(&endpoint)
        .map_err(|error| Error::new(Kind::Local, "cannot write where the controller is").because(error))
}

/// Says where it is, and on the first start how to become its administrator.
async fn greet(app: &App, dir: &Path, handle: &Handle) -> Result<(), Error> {
    let greeted = dir.join("greeted");
    let join = if greeted.exists() || !handle.is_founder() {
        None
    } else {
        Some(handle.admin_join_string().await.map_err(cannot_start)?)
    };
    let quic: Vec<_> = handle.addresses().iter().map(ToString::to_string).collect();
    let json = json!({ "quic": quic, "http": handle.http().map(|address| address.to_string()), "join": join });
    print(app.global.output, &json, || {
        let mut text = format!("listening on {}\n", quic.join(", "));
        if let Some(join) = &join {
            text += &format!("become its administrator, once and within a day:\n  ado join {join}\n");
        }
        text
    })?;
    std::fs::write(&greeted, "")
        .map_err(|error| Error::new(Kind::Local, format!("cannot write {}", greeted.display())).because(error))
}

fn cannot_start(error: controller::Error) -> Error {
    let hint = match error {
        controller::Error::Queue(_) => Some("see where it comes from: ado config show"),
        controller::Error::Store(_) => Some("see where its database comes from: ado config show"),
        controller::Error::MasterKey(_) | controller::Error::NoMasterKey => Some(
            "set ADO_MASTER_KEY (controller.masterKey) to the master key of a controller of that mesh: the text of \
             `master.key` in its directory, unless it was set there, too",
        ),
        _ => None,
    };
    let error = Error::new(Kind::Local, "the controller cannot start").because(error);
    hint.into_iter().fold(error, Error::hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_dial_any_address() {
        let own = |_: IpAddr| Some(IpAddr::from([10, 0, 0, 5]));
        let told = |address: &str| reachable(address.parse().unwrap(), own);
        assert_eq!(told("0.0.0.0:4433").as_deref(), Some("10.0.0.5:4433"));
        assert_eq!(told("192.0.2.7:4433").as_deref(), Some("192.0.2.7:4433"));
        assert_eq!(told("127.0.0.1:0"), None);
        let found = own_address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).unwrap();
        assert!(!found.is_unspecified());
    }
}
