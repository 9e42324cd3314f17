//! `ado worker`: run agents, in the foreground.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ado_certs::{ClientTls, Identity, JoinString};
use ado_proto::spec::Resources;

use super::Global;
use super::controller::own;
use super::error::{Error, Kind};
use super::known::Known;
use super::session::{ANSWER_PATIENCE, App, END_PATIENCE, Joined, environment, save};
use super::signals::Signals;
use super::values;
use crate::agents;
use crate::client;
use crate::config::{ByteSize, Flags};
use crate::gateway::{Gateway, page, readiness};
use crate::local::{self, Role};
use crate::net::{self, Addresses, Link, LinkConfig};
use crate::tasks::Tasks;
use crate::worker::snapshot::Limits;
use crate::worker::{self, Learned};

/// Interval at which the connection proves that it lives; heartbeats say the same of the worker.
const KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// A connection silent for this long is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Run agents for a controller
///
/// Runs in the foreground until SIGTERM; then it takes no more tasks, lets those it has end within --drain-for, and hands
/// back the rest. A second signal hands back at once. `ado workers drain` ends it, too, once it holds nothing any more.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Join this mesh, unless the directory holds an identity already
    #[arg(long, value_name = "JOIN STRING", env = "ADO_JOIN", hide_env_values = true)]
    join: Option<JoinString>,
    /// Keep identity and tasks' directories here; default: serve/worker below ado's own directory
    #[arg(long, value_name = "DIR")]
    dir: Option<String>,
    /// Be called this; default: the host's name
    #[arg(long)]
    name: Option<String>,
    /// Run this many tasks at a time; default: as many as there are processors
    #[arg(long, value_name = "N")]
    slots: Option<String>,
    /// Belong to this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Carry this label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Offer these agents; default: all this build has
    #[arg(long, value_name = "NAME,…")]
    agents: Option<String>,
    /// Have this many processors for tasks that ask for some (--cpu); default: as many as there are
    #[arg(long, value_name = "CPUS")]
    cpu: Option<String>,
    /// Have this much memory for tasks that ask for some (--memory); default: as much as there is
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// Serve health and metrics here, TCP
    #[arg(long, value_name = "IP:PORT")]
    http: Option<SocketAddr>,
    /// Let tasks go on this long once it is to stop
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "20s")]
    drain_for: Duration,
    /// Stay when drained, until `ado workers uncordon`
    #[arg(long)]
    stay: bool,
    /// Keep this much of each task's output on disk while no controller takes it; then the task waits
    #[arg(long, value_name = "BYTES", default_value = "256Mi")]
    spool_limit: ByteSize,
    /// Be the worker of this machine's user
    #[arg(long, hide = true, conflicts_with_all = ["join", "dir"])]
    local: bool,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let mut signals = Signals::catch()?;
    let app = App::new(global, flags(&args))?;
    if args.local {
        local::leave_session();
    }
    local::leave_no_core();
    local::prepare(&app.home)?;
    let place = Place::of(&app, args.local);
    let lock = own(&place.lock, Role::Worker).await?;
    // The work directory has one user, whichever kind of worker that is.
    let _work = if place.work == place.lock { None } else { Some(own(&place.work, Role::Worker).await?) };
    let tasks = Tasks::new();
    let (identity, addresses, learned) = place.membership(&app, &args).await?;
    let tls = ClientTls::mesh(identity)?;
    let link = LinkConfig {
        addresses,
        tls: tls.clone(),
        reconnect_interval: app.config.communication.reconnect_interval,
        keep_alive: KEEP_ALIVE,
        idle_timeout: IDLE_TIMEOUT,
        websocket: if args.local { None } else { app.websocket() },
        sockets: None,
    };
    let link = Link::start(link, app.env.clone(), &tasks)?;
    tasks.spawn_until_stop("renewal", renewal(link.clone(), tls, place.identity.clone(), &app));
    let drain_for = if args.local { Duration::ZERO } else { args.drain_for };
    let handle = worker::start(config(&app, &args, &place, link, learned, drain_for), app.env.clone())
        .await
        .map_err(cannot_start)?;
    let http = match args.http {
        Some(address) => Some(health(address, handle.clone()).await?),
        None => None,
    };
    // The background worker of a user would only be started again.
    let stays = args.stay || args.local;
    let mut sent_away = None;
    tokio::select! {
        biased;
        signal = signals.next() => tracing::info!(?signal, "stopping"),
        why = handle.sent_away() => sent_away = Some(why),
        () = handle.drained(), if !stays => {
            let word = app.command(&format!("workers uncordon {}", name(&app)));
            eprintln!("drained: this worker ends; `{word}` lets it take work again once it is started");
        }
        () = lock.displaced(), if args.local => tracing::warn!("its directory was removed: stopping"),
        () = local::supervise(app.home.clone(), &[Role::Controller]), if args.local => {}
    }
    tokio::select! {
        biased;
        () = handle.drain() => {}
        _ = signals.next() => handle.stop().await,
    }
    if let Some(http) = http {
        http.stop().await;
    }
    tasks.stop(END_PATIENCE).await;
    match sent_away {
        Some(why) => Err(place.rejoin(why)),
        None => Ok(0),
    }
}

fn flags(args: &Args) -> Flags {
    let labels = (!args.label.is_empty()).then(|| args.label.join(","));
    let mut flags = Flags::default();
    for (key, flag, value) in [
        ("worker.dir", "--dir", &args.dir),
        ("worker.name", "--name", &args.name),
        ("worker.slots", "--slots", &args.slots),
        ("worker.pool", "--pool", &args.pool),
        ("worker.labels", "--label", &labels),
        ("worker.capabilities", "--agents", &args.agents),
        ("worker.resources.cpu", "--cpu", &args.cpu),
        ("worker.resources.memory", "--memory", &args.memory),
    ] {
        if let Some(value) = value {
            flags.set(key, flag, value);
        }
    }
    flags
}

/// What lies where.
struct Place {
    /// Directory of the lock that shows that it lives.
    lock: PathBuf,
    /// Directory of tasks and spools.
    work: PathBuf,
    identity: PathBuf,
    local: bool,
}

impl Place {
    fn of(app: &App, local: bool) -> Self {
        let given = app.config.worker.dir.clone();
        if local {
            let work = given.unwrap_or_else(|| app.home.path().join("work"));
            Self { lock: app.home.dir(Role::Worker), work, identity: app.home.worker_identity(), local }
        } else {
            let work = given.unwrap_or_else(|| app.home.by_hand(Role::Worker));
            Self { lock: work.clone(), identity: work.join("identity"), work, local }
        }
    }

    /// No controller takes this worker any more: what to do about it.
    fn rejoin(&self, why: net::Error) -> Error {
        let error = Error::new(Kind::Identity, "no controller takes this worker any more").because(why);
        if self.local {
            return error.hint("ado down").hint("ado up");
        }
        // With an identity there a join string is not looked at.
        error
            .hint("ado token create --role worker")
            .hint(format!("rm -r {}", self.identity.display()))
            .hint("ado worker --join <join string>")
    }

    /// Who this worker is, and where its controllers are.
    async fn membership(&self, app: &App, args: &Args) -> Result<(Identity, Addresses, Learned), Error> {
        if self.local {
            let home = app.home.clone();
            let addresses = move || local::live_endpoint(&home).map(|endpoint| endpoint.quic).unwrap_or_default();
            return Ok((Identity::load(&self.identity)?, Arc::new(addresses), Arc::new(|_: &[String]| ())));
        }
        let file = self.work.join("mesh.json");
        let known = Identity::load(&self.identity).ok().zip(local::read_json::<Joined>(&file));
        let (identity, joined) = match (known, &args.join) {
            (Some(known), _) => known,
            (None, Some(join)) => enrol(app, join, &self.identity, &file).await?,
            (None, None) => {
                return Err(Error::usage(format!("there is no identity in {}", self.identity.display()))
                    .hint("ado worker --join <join string>")
                    .hint("ado token create --role worker"));
            }
        };
        let known = Known::new(joined.controllers, &self.work.join("controllers.json"));
        Ok((identity, known.addresses(), Arc::new(move |controllers: &[String]| known.learn(controllers))))
    }
}

async fn enrol(app: &App, join: &JoinString, dir: &Path, file: &Path) -> Result<(Identity, Joined), Error> {
    let tasks = Tasks::new();
    let name = name(app);
    let enrolment = client::enrol(join, &name, ANSWER_PATIENCE, app.websocket(), app.env.clone(), &tasks).await?;
    tasks.stop(END_PATIENCE).await;
    require_worker(&enrolment.identity)?;
    enrolment.identity.save(dir)?;
    let joined = Joined { controllers: enrolment.controllers };
    local::write_json(file, &joined)
        .map_err(|error| Error::new(Kind::Local, format!("cannot write {}", file.display())).because(error))?;
    Ok((enrolment.identity, joined))
}

/// Controllers refuse anybody else, again and again: better to say so at once.
fn require_worker(identity: &Identity) -> Result<(), Error> {
    if identity.principal().role == ado_proto::Role::Worker {
        return Ok(());
    }
    let text = format!("the join string is none for workers: it makes {}, and is used up now", identity.principal());
    Err(Error::usage(text).hint("ado token create --role worker"))
}

fn name(app: &App) -> String {
    let host = || nix::unistd::gethostname().ok()?.into_string().ok();
    app.config.worker.name.clone().or_else(host).unwrap_or_else(|| "worker".into())
}

fn config(app: &App, args: &Args, place: &Place, link: Link, learned: Learned, drain_for: Duration) -> worker::Config {
    let settings = &app.config.worker;
    let processors = || std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    worker::Config {
        dir: place.work.clone(),
        link,
        name: name(app),
        pool: settings.pool.clone(),
        slots: settings.slots.unwrap_or_else(processors),
        labels: settings.labels.clone(),
        agents: settings.capabilities.clone().unwrap_or_else(|| agents::ALL.iter().map(ToString::to_string).collect()),
        capacity: Resources {
            cpu_milli: settings.cpu.map(|cpus| cpus.0),
            memory: settings.memory.map(|bytes| bytes.0),
            pids: None,
        },
        programs: Some(app.home.path().join("agents").join("bin")),
        executable: None,
        spool_limit: args.spool_limit.0,
        snapshots: Limits {
            max_bytes: settings.snapshot_bytes.0,
            max_files: settings.snapshot_files.into(),
            max_freeze: settings.snapshot_freeze,
        },
        learned,
        drain_for,
        env_base: environment(),
    }
}

fn renewal(link: Link, tls: ClientTls, dir: PathBuf, app: &App) -> impl Future<Output = ()> + Send + 'static {
    net::keep_renewed(link, tls, move |renewed: &Identity| save(renewed, &dir), app.env.clone())
}

async fn health(address: SocketAddr, handle: worker::Handle) -> Result<Gateway, Error> {
    let counting = handle.clone();
    let metrics = page(move || std::future::ready(counting.metrics()));
    let ready = readiness(move || {
        let ready = handle.is_ready();
        async move { if ready { Ok(()) } else { Err("not connected to a controller, or leaving".into()) } }
    });
    let started = Gateway::start(address, ready, metrics).await;
    started.map_err(|error| Error::new(Kind::Local, format!("cannot serve health on {address}")).because(error))
}

fn cannot_start(error: worker::Error) -> Error {
    Error::new(Kind::Local, "the worker cannot start").because(error)
}
