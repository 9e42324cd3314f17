//! One attempt: from its assignment until its last record is in the log and nothing of its agent is left.
//!
//! Owns: the order of things around a guard: workspace, agent, output, end. Must never know: connections. Whoever sends
//! the records is handed in as a future, the orders come through a watch.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::inside::{CHECKPOINT, SOCKET};
use ado_proto::record::{Body, Desired, Exited, Started};
use ado_proto::session::Assignment;
use ado_proto::spec::{Containment, Exit, Limit};
use ado_proto::{Secret, Seq};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::checkpoints::{self, Archive, Asker, Checkpoints, Hold, Origin, Parts};
use super::course::{Course, GiveUp, Orders};
use super::dialogue::{Dialogue, Needs, Started as Prepared, Turn};
use super::guard::BootTime;
use super::guard::protocol::{FromGuard, Reason, Start, ToGuard};
use super::inside::{Reply, Server, Sockets, Voice};
use super::keeper::Keeper;
use super::outbox::SharedOutbox;
use super::pipes::{Mark, Pipes};
use super::programs::{self, Programs};
use super::redact::Redactor;
use super::roster::Given;
use super::silence::Silence;
use super::snapshot::{Root, Vault, WORKSPACE};
use super::{former, removal};
use crate::agents::{self, Plan, Real};
use crate::env::Env;

/// After the end of a guard: whoever else got hold of the pipes may keep them open for ever.
const PIPES_AFTER_DEATH: Duration = Duration::from_secs(2);
/// For delivering the output of an attempt that is handed back.
const FLUSH_FOR: Duration = Duration::from_secs(2);

/// Where and with what this worker runs attempts.
#[derive(Debug, Clone)]
pub struct Place {
    /// The program whose subcommand `guard` is the guard.
    pub executable: PathBuf,
    /// Absolute; holds a lock per guard.
    pub guards: PathBuf,
    /// Absolute; holds a directory per task.
    pub tasks: PathBuf,
    /// Where agents speak to this worker; `None`: they cannot.
    pub sockets: Option<Sockets>,
    /// A folder with a link named `ado`, for the end of agents' `PATH`.
    pub bin: Option<PathBuf>,
    /// The strongest grade to try.
    pub containment: Containment,
    /// The environment agents get beside their own. See [`base_environment`].
    pub environment: BTreeMap<String, String>,
    /// With what folders are kept.
    pub archive: Archive,
    /// AI agents that are there.
    pub programs: Programs,
}

/// How the one that sends an attempt's records ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Everything is in the log.
    Complete,
    /// The epoch is over, or nothing more can be delivered.
    Stale,
}

/// How an attempt ended, seen from the worker. No process of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its end is in the log.
    Reported,
    /// It was stopped for the worker's sake.
    HandedBack,
    /// Its epoch was over.
    Discarded,
}

/// One attempt.
pub struct Attempt {
    /// What to run.
    pub assignment: Assignment,
    /// What is wanted; the attempt itself gives up when its records cannot be delivered.
    pub orders: watch::Sender<Orders>,
    /// What is answered to its agent's questions.
    pub answers: watch::Receiver<Given>,
    /// Where it runs.
    pub place: Place,
    /// Where snapshots of its folder are.
    pub vault: Arc<dyn Vault>,
    /// For the time in records.
    pub env: Env,
}

impl Attempt {
    /// Runs it. `outbox` is filled here and emptied by `delivery`, which ends when all is delivered or nothing can be.
    pub async fn run(self, outbox: &SharedOutbox, delivery: impl Future<Output = Delivery>) -> Ended {
        let mut orders = self.orders.subscribe();
        let mut delivery = pin!(delivery);
        let mut work = pin!(self.work(outbox));
        let end = tokio::select! {
            biased;
            end = &mut work => end,
            delivered = &mut delivery => {
                if delivered == Delivery::Stale {
                    self.orders.send_if_modified(|orders| orders.give_up(GiveUp::Discard));
                }
                // Stopping the agent takes its time, and only then is the attempt over.
                let end = work.await;
                return self.ended(outbox, if delivered == Delivery::Complete { end } else { GiveUp::Discard });
            }
        };
        let end = match end {
            GiveUp::Discard => GiveUp::Discard,
            GiveUp::HandBack => deliver_soon(delivery.as_mut(), GiveUp::HandBack).await,
            GiveUp::No => tokio::select! {
                biased;
                delivered = &mut delivery => match delivered {
                    Delivery::Complete => GiveUp::No,
                    Delivery::Stale => GiveUp::Discard,
                },
                given_up = given_up(&mut orders) => match given_up {
                    GiveUp::Discard => GiveUp::Discard,
                    GiveUp::HandBack | GiveUp::No => deliver_soon(delivery.as_mut(), GiveUp::No).await,
                },
            },
        };
        self.ended(outbox, end)
    }

    fn ended(&self, outbox: &SharedOutbox, end: GiveUp) -> Ended {
        match (end, outbox.unacknowledged()) {
            (GiveUp::No, 0) => Ended::Reported,
            (GiveUp::Discard, records) => {
                tracing::info!(records, "the epoch is over; what it had still to say is discarded");
                Ended::Discarded
            }
            (GiveUp::HandBack | GiveUp::No, records) => {
                tracing::info!(undelivered = records, "handed back");
                Ended::HandedBack
            }
        }
    }

    /// Runs the agent to its end and puts all it says into the outbox.
    async fn work(&self, outbox: &SharedOutbox) -> GiveUp {
        let spec = &self.assignment.spec;
        let orders = self.leased().await;
        if orders.give_up > GiveUp::No {
            outbox.close();
            return orders.give_up;
        }
        let missing = self.assignment.secrets.iter().find_map(|given| given.value.as_ref().err());
        let planned = if orders.desired == Desired::Cancelled {
            Err(Exit::Cancelled)
        } else if let Some(missing) = missing {
            Err(Exit::NotStarted { error: missing.clone(), permanent: true })
        } else {
            agents::plan(spec).map_err(|error| Exit::NotStarted { error: error.to_string(), permanent: true })
        };
        let (mut bodies, give_up) = match planned {
            Err(exit) => (VecDeque::from([Exited { exit }.into()]), GiveUp::No),
            Ok(Plan::Nothing) => {
                let started = Started { pid: 0, containment: self.place.containment };
                (VecDeque::from([started.into(), Exited { exit: Exit::Code(0) }.into()]), GiveUp::No)
            }
            Ok(Plan::Process { argv }) => self.run_in_workspace(Work::Argv(argv), outbox).await,
            Ok(Plan::Talk { agent }) => match agents::real(agent) {
                Some(real) => self.run_in_workspace(Work::Talk(real), outbox).await,
                None => unreachable!("a plan names an agent that there is: {agent}"),
            },
        };
        outbox.push_all(&mut bodies, self.env.now());
        let mut orders = self.orders.subscribe();
        while !bodies.is_empty() {
            tokio::select! {
                biased;
                Ok(_) = orders.wait_for(|orders| orders.give_up == GiveUp::Discard) => return GiveUp::Discard,
                () = outbox.room() => outbox.push_all(&mut bodies, self.env.now()),
            }
        }
        outbox.close();
        give_up
    }

    /// Waits for the right to begin: a lease that is not over. What is wanted by then.
    async fn leased(&self) -> Orders {
        let mut orders = self.orders.subscribe();
        let is_so = |orders: &Orders| orders.lease > BootTime::now() || orders.give_up > GiveUp::No;
        let found = orders.wait_for(is_so).await.map(|orders| *orders);
        found.expect("this attempt has the sender")
    }

    /// Makes the workspace, runs the agent in it, removes it. What is left to say.
    async fn run_in_workspace(&self, work: Work, outbox: &SharedOutbox) -> (VecDeque<Body>, GiveUp) {
        let own = self.place.tasks.join(self.assignment.task.to_string());
        let cwd = match &self.assignment.spec.cwd {
            Some(given) => PathBuf::from(given),
            None => own.clone(),
        };
        let made = self.assignment.spec.cwd.is_none();
        if made && let Err(error) = blocking(own.clone(), make_workspace).await {
            let error = format!("cannot make the working directory `{}`: {error}", own.display());
            return (
                VecDeque::from([Exited { exit: Exit::NotStarted { error, permanent: false } }.into()]),
                GiveUp::No,
            );
        }
        let home = self.place.tasks.join(format!("{}.agent", self.assignment.task));
        let has_home = matches!(work, Work::Talk(_));
        let result = match self.restored(&own).await {
            Ok(origin) => match self.prepare(work, &cwd, &home).await {
                Ok(ready) => self.run_agent(ready, &own, &cwd, origin, outbox).await,
                Err(exit) => (VecDeque::from([Exited { exit }.into()]), GiveUp::No),
            },
            Err(end) => end,
        };
        if has_home && let Err(error) = blocking(home.clone(), removal::remove).await {
            tracing::warn!(path = %home.display(), %error, "cannot remove an agent's folder");
        }
        if made && let Err(error) = blocking(own.clone(), removal::remove).await {
            tracing::warn!(path = %own.display(), %error, "cannot remove a task's directory");
        }
        result
    }

    /// All there has to be before an agent starts.
    async fn prepare(&self, work: Work, cwd: &Path, home: &Path) -> Result<Ready, Exit> {
        let spec = &self.assignment.spec;
        let refused = |error: String, permanent| Exit::NotStarted { error, permanent };
        let real = match work {
            Work::Argv(argv) => {
                let redactor = Redactor::new(self.secrets().map(|(_, value)| value.expose())).map(Arc::new);
                return Ok(Ready { argv, redactor, talk: None, given: BTreeMap::new() });
            }
            Work::Talk(real) => real,
        };
        let Some(program) = self.place.programs.of(real.name) else {
            return Err(refused(format!("`{}` is not installed on this worker", real.program), true));
        };
        if !self.place.programs.has_credential(real) && !programs::brings_credential(real, spec) {
            let names = real.credentials.join(" or ");
            let first = real.credentials.first().copied().unwrap_or_default();
            let error = format!(
                "{} has no credential: neither the task nor this worker's environment has {names}; keep one with `ado secret set` and give it with `--secret NAME={first}`",
                real.name
            );
            return Err(refused(error, true));
        }
        let given = self.place.programs.given(real, spec);
        let hidden = self.secrets().map(|(_, value)| value.expose()).chain(Programs::hidden(real, &given));
        let redactor = Redactor::new(hidden).map(Arc::new);
        let cannot = |error: io::Error| refused(format!("cannot prepare `{}`: {error}", home.display()), false);
        blocking(home.to_owned(), removal::remove).await.map_err(cannot)?;
        let needs = Needs {
            real,
            spec,
            program,
            ado: &self.place.executable,
            home,
            cwd,
            redactor: redactor.as_ref(),
            answers: self.assignment.answers.clone(),
            env: &self.env,
        };
        let (dialogue, prepared) = Dialogue::prepare(needs).map_err(cannot)?;
        let argv = prepared.launch.argv.clone();
        Ok(Ready { argv, redactor, talk: Some((dialogue, prepared)), given })
    }

    /// Makes the folder what it was at the checkpoint; or what is left to say, if it cannot be.
    async fn restored(&self, own: &Path) -> Result<Option<Origin>, (VecDeque<Body>, GiveUp)> {
        let Some(snapshot) = self.assignment.snapshot.filter(|_| self.assignment.spec.cwd.is_none()) else {
            return Ok(None);
        };
        let places = BTreeMap::from([(WORKSPACE.to_owned(), own.to_owned())]);
        let mut orders = self.orders.subscribe();
        let is_unwanted = |orders: &Orders| orders.give_up > GiveUp::No || orders.desired == Desired::Cancelled;
        let exit = tokio::select! {
            biased;
            Ok(orders) = orders.wait_for(is_unwanted) => match orders.give_up {
                GiveUp::No => Exit::Cancelled,
                give_up => return Err((VecDeque::new(), give_up)),
            },
            restored = checkpoints::restore(&self.vault, &snapshot, places, &self.env) => match restored {
                Ok(origin) => return Ok(Some(origin)),
                Err(why) => {
                    let error = format!("cannot make its folder what it was at the last checkpoint: {why}");
                    Exit::NotStarted { error, permanent: false }
                }
            }
        };
        Err((VecDeque::from([Exited { exit }.into()]), GiveUp::No))
    }

    /// Runs the agent under a guard. What is left to say.
    async fn run_agent(
        &self,
        ready: Ready,
        own: &Path,
        cwd: &Path,
        origin: Option<Origin>,
        outbox: &SharedOutbox,
    ) -> (VecDeque<Body>, GiveUp) {
        let Ready { argv, redactor, talk, given } = ready;
        // Who talks hides secrets in what is said, not in frames: they are answered as they came.
        let hides = redactor.as_ref().filter(|_| talk.is_none());
        let spawned = match Keeper::spawn(&self.place.executable, &self.place.guards, hides) {
            Ok(spawned) => spawned,
            Err(error) => {
                let error = format!("cannot start a guard ({}): {error}", self.place.executable.display());
                let exit = Exit::NotStarted { error, permanent: false };
                return (VecDeque::from([Exited { exit }.into()]), GiveUp::No);
            }
        };
        let voice = Arc::new(Voice::new(self.assignment.answers.clone()));
        let (taking, asker, holds) = self.checkpoints(own, origin, &voice, outbox);
        let server = spawned.0.id().and_then(|guard| self.listen(guard, &voice, asker, outbox));
        let mut start = self.start(argv, cwd, server.as_ref());
        let talk = talk.map(|(dialogue, prepared)| {
            add_launch(&mut start, prepared, &self.assignment.spec.env);
            dialogue
        });
        start.secrets.extend(given);
        let agent = Agent::new(self, spawned, outbox, voice, redactor, holds, talk);
        let mut agent = Box::pin(agent.run(start));
        tokio::select! {
            biased;
            ended = &mut agent => ended,
            () = async {
                match taking {
                    Some(taking) => Box::pin(taking.run()).await,
                    None => std::future::pending().await,
                }
            } => agent.await,
        }
    }

    /// What keeps the task's folder, if it is its own.
    fn checkpoints(
        &self,
        own: &Path,
        origin: Option<Origin>,
        voice: &Arc<Voice>,
        outbox: &SharedOutbox,
    ) -> (Option<Checkpoints<'_>>, Asker, Option<mpsc::Receiver<Hold>>) {
        let Assignment { task, epoch, spec, checkpoint, .. } = &self.assignment;
        if let Some(cwd) = &spec.cwd {
            let why = format!("this task runs in `{cwd}`, and only a folder that was made for a task is kept");
            return (None, Asker::never(&why), None);
        }
        let parts = Parts {
            task: *task,
            roots: vec![Root::new(WORKSPACE, own)],
            archive: &self.place.archive,
            staging: self.place.archive.staging.join(format!("{task}-{epoch}")),
            vault: self.vault.clone(),
            every: spec.snapshot_every_ms.map(Duration::from_millis),
            origin,
            data: checkpoint.clone(),
            voice: voice.clone(),
            durable: outbox.durable(),
            env: self.env.clone(),
        };
        let (taking, asker, holds) = Checkpoints::new(parts);
        (Some(taking), asker, Some(holds))
    }

    /// An agent that cannot be listened to runs all the same.
    fn listen(&self, guard: u32, voice: &Arc<Voice>, asker: Asker, outbox: &SharedOutbox) -> Option<Server> {
        let path = self.place.sockets.as_ref()?.path(&self.assignment);
        let server = Server::start(&path, guard, voice.clone(), outbox.durable(), asker, self.env.clone());
        server.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot listen to a task")).ok()
    }

    /// Variables and their secret values.
    fn secrets(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.assignment.secrets.iter().filter_map(|given| Some((given.variable.as_str(), given.value.as_ref().ok()?)))
    }

    fn start(&self, argv: Vec<String>, cwd: &Path, server: Option<&Server>) -> Start {
        let env = environment(&self.place, server.map(Server::path), &self.assignment);
        Start {
            argv,
            // What ado itself says is no secret.
            secrets: self
                .secrets()
                .filter(|(name, _)| !env.contains_key(*name))
                .map(|(name, value)| (name.to_owned(), value.clone()))
                .collect(),
            env,
            cwd: cwd.display().to_string(),
            stdin: None,
            time_limit_ms: self.assignment.spec.time_limit_ms,
            total_left_ms: self.assignment.total_left_ms,
            lease: self.orders.borrow().lease,
            containment: self.place.containment,
            limits: self.assignment.spec.resources,
        }
    }
}

/// What is wanted next; `None`: nothing more will be. Never, where nobody wants anything.
async fn wanted(holds: &mut Option<mpsc::Receiver<Hold>>) -> Option<Hold> {
    match holds {
        Some(holds) => holds.recv().await,
        None => std::future::pending().await,
    }
}

async fn deliver_soon(delivery: std::pin::Pin<&mut impl Future<Output = Delivery>>, end: GiveUp) -> GiveUp {
    match timeout(FLUSH_FOR, delivery).await {
        Ok(Delivery::Stale) => GiveUp::Discard,
        Ok(Delivery::Complete) | Err(_) => end,
    }
}

/// Resolves when the attempt is given up, and again when that gets worse.
async fn given_up(orders: &mut watch::Receiver<Orders>) -> GiveUp {
    match orders.wait_for(|orders| orders.give_up > GiveUp::No).await {
        Ok(orders) => orders.give_up,
        Err(_) => GiveUp::Discard,
    }
}

/// What is run.
enum Work {
    /// A command line.
    Argv(Vec<String>),
    /// An AI agent.
    Talk(&'static Real),
}

/// All there has to be before an agent starts.
struct Ready {
    argv: Vec<String>,
    redactor: Option<Arc<Redactor>>,
    talk: Option<(Dialogue, Prepared)>,
    /// Of its environment, from the worker's own.
    given: BTreeMap<String, Secret>,
}

/// The driver's part of how a process is started. What the task says itself comes over it.
fn add_launch(start: &mut Start, prepared: Prepared, own: &BTreeMap<String, String>) {
    let Prepared { launch, stdin } = prepared;
    start.env.extend(launch.env.into_iter().filter(|(name, _)| !own.contains_key(name)));
    if let Some(first) = launch.path_first {
        let path = start.env.get("PATH").filter(|path| !path.is_empty()).map_or(DEFAULT_PATH, String::as_str);
        let path = format!("{first}:{path}");
        start.env.insert("PATH".into(), path);
    }
    start.stdin = Some(stdin.display().to_string());
}

/// An agent's process while it lives.
struct Agent<'a> {
    attempt: &'a Attempt,
    outbox: &'a SharedOutbox,
    keeper: Keeper,
    pipes: Pipes,
    orders: watch::Receiver<Orders>,
    /// What the outbox had no room for. While there is any, nothing more is read.
    backlog: VecDeque<Body>,
    /// Whether the guard has said whether there is an agent: its record comes before its output.
    begun: bool,
    /// What the agent says beside its output.
    voice: Arc<Voice>,
    /// Hides the task's secrets in that, as it is done in its output.
    redactor: Option<Arc<Redactor>>,
    /// With an AI agent.
    talk: Option<Dialogue>,
    answers: watch::Receiver<Given>,
    /// It waits for somebody's answer.
    waits: bool,
    /// The one thing it said whose turn has not come.
    due: Option<Due>,
    guard_lives: bool,
    silence: Silence,
    /// Set by the end of the guard.
    close_pipes_at: Option<Instant>,
    /// What whoever keeps its folder wants of it; `None`: nobody does, or no more.
    holds: Option<mpsc::Receiver<Hold>>,
    /// It stands still, or is to, for its folder.
    still: Option<Still>,
}

/// An agent that stands still for its folder.
struct Still {
    /// Who waits for it to.
    frozen: Option<oneshot::Sender<()>>,
    /// How far its output went then.
    mark: Option<Mark>,
    /// Who wants to know the seq of what comes after that.
    until: Option<oneshot::Sender<Seq>>,
}

/// Something the agent said: it comes into the log after all that it had written before.
struct Due {
    after: Mark,
    body: Body,
    /// Who wants to know its seq.
    reply: Option<Reply>,
}

enum Step {
    Ordered,
    Said(Option<FromGuard>),
    Room,
    Talked(Turn),
    Answered,
    Told((Body, Option<Reply>)),
    Hold(Option<Hold>),
    Output(Option<ado_proto::record::Output>),
    PipesLate,
    Silent,
}

impl<'a> Agent<'a> {
    fn new(
        attempt: &'a Attempt,
        (keeper, pipes): (Keeper, Pipes),
        outbox: &'a SharedOutbox,
        voice: Arc<Voice>,
        redactor: Option<Arc<Redactor>>,
        holds: Option<mpsc::Receiver<Hold>>,
        talk: Option<Dialogue>,
    ) -> Self {
        Self {
            attempt,
            outbox,
            keeper,
            pipes,
            orders: attempt.orders.subscribe(),
            backlog: VecDeque::new(),
            begun: false,
            voice,
            redactor,
            talk,
            answers: attempt.answers.clone(),
            waits: false,
            due: None,
            guard_lives: true,
            silence: Silence::new(attempt.assignment.spec.limit(Limit::Silence)),
            close_pipes_at: None,
            holds,
            still: None,
        }
    }

    /// What is left to say after the agent's end, and whether that is all there will be.
    async fn run(mut self, start: Start) -> (VecDeque<Body>, GiveUp) {
        let (mut course, messages) = Course::begin(*self.orders.borrow_and_update());
        if let Err(error) = self.keeper.tell(&ToGuard::Start(start)).await {
            tracing::warn!(%error, "cannot talk to a new guard");
        }
        self.tell(messages).await;
        let mut reported = false;
        while self.guard_lives || !self.pipes.is_ended() {
            match self.next().await {
                Step::Ordered => {
                    let orders = *self.orders.borrow_and_update();
                    let messages = course.follow(orders);
                    self.tell(messages).await;
                    self.give_up(course.give_up());
                }
                Step::Said(Some(report)) => {
                    self.begun = true;
                    reported |= matches!(report, FromGuard::Exited(_) | FromGuard::NotStarted { .. });
                    match &report {
                        FromGuard::Started { .. } | FromGuard::Thawed { .. } => self.silence.runs(Instant::now()),
                        _ => self.silence.stands(Instant::now()),
                    }
                    self.stands_still(&report);
                    self.backlog.extend(course.hear(report));
                }
                Step::Said(None) => self.guard_died(reported).await,
                // What it could not say meanwhile is no silence.
                Step::Room => self.silence.broken(Instant::now()),
                Step::Told((body, reply)) => {
                    self.silence.broken(Instant::now());
                    self.due = Some(Due { after: self.pipes.mark(), body, reply });
                }
                Step::Output(output) => {
                    self.silence.broken(Instant::now());
                    match (&mut self.talk, output) {
                        (Some(talk), Some(output)) => talk.hear(&output),
                        (_, output) => self.backlog.extend(output.map(Body::from)),
                    }
                }
                Step::Talked(Turn::Said) => self.silence.broken(Instant::now()),
                Step::Talked(Turn::Kill) => self.tell(vec![ToGuard::Kill]).await,
                Step::Answered => {
                    let given = self.answers.borrow_and_update().clone();
                    self.voice.answered(&given);
                    if let Some(talk) = &mut self.talk {
                        talk.answered(&given);
                    }
                }
                Step::Hold(hold) => self.hold(hold).await,
                Step::Silent => {
                    self.silence.stands(Instant::now());
                    self.tell(vec![ToGuard::TimeOut(Limit::Silence)]).await;
                }
                Step::PipesLate => {
                    self.close_pipes_at = None;
                    self.pipes.last_call();
                }
            }
            self.take_due();
            self.talked().await;
            self.outbox.push_all(&mut self.backlog, self.attempt.env.now());
            self.tell_until();
        }
        // Nobody is left who could say more.
        self.take_due();
        for (body, reply) in self.voice.last_words() {
            self.say(body, reply);
        }
        self.keeper.gone().await;
        let give_up = course.give_up();
        let last = course.last_words().map(|body| match body {
            Body::Exited(Exited { exit }) => {
                let exit = self.talk.as_mut().map_or(exit.clone(), |talk| talk.judge(exit));
                Exited { exit: self.voice.judge(exit) }.into()
            }
            other => other,
        });
        self.backlog.extend(self.talk.iter_mut().flat_map(Dialogue::ready));
        self.backlog.extend(last);
        (self.backlog, give_up)
    }

    async fn next(&mut self) -> Step {
        let late = self.close_pipes_at.unwrap_or_else(Instant::now);
        let silence = self.silence.ends_at();
        let silent = silence.unwrap_or(late);
        tokio::select! {
            biased;
            Ok(()) = self.orders.changed() => Step::Ordered,
            said = self.keeper.next(), if self.guard_lives => Step::Said(said),
            () = sleep_until(late), if self.close_pipes_at.is_some() => Step::PipesLate,
            () = self.outbox.room(), if !self.backlog.is_empty() => Step::Room,
            hold = wanted(&mut self.holds), if self.begun && self.guard_lives => Step::Hold(hold),
            // There is little of it, and before output that never ends it would not come at all.
            Ok(()) = self.answers.changed() => Step::Answered,
            turn = talk(&mut self.talk), if self.begun && self.backlog.is_empty() => Step::Talked(turn),
            told = self.voice.next(), if self.begun && self.backlog.is_empty() && self.due.is_none() => Step::Told(told),
            output = self.pipes.next(), if self.begun && self.backlog.is_empty() && !self.pipes.is_ended() => {
                Step::Output(output)
            }
            // Last: what it has said is looked at before its silence.
            () = sleep_until(silent), if silence.is_some() && self.backlog.is_empty() && !self.waits => Step::Silent,
        }
    }

    /// Takes what a talk had to say.
    async fn talked(&mut self) {
        if let Some(talk) = &mut self.talk {
            self.backlog.extend(talk.ready());
        }
        let waits = self.voice.is_waiting() || self.talk.as_ref().is_some_and(Dialogue::is_waiting);
        if waits != self.waits {
            self.waits = waits;
            self.silence.broken(Instant::now());
            self.tell(vec![ToGuard::Waits(waits)]).await;
        }
    }

    fn give_up(&mut self, how: GiveUp) {
        if how > GiveUp::No {
            self.voice.silence();
            self.due = None;
        }
        if how == GiveUp::Discard {
            self.pipes.close();
            self.talk = None;
            self.backlog.clear();
        }
    }

    /// Whoever keeps the folder wants something.
    async fn hold(&mut self, hold: Option<Hold>) {
        let (reason, mark) = (Reason::Snapshot, self.orders.borrow().generation);
        match hold {
            Some(Hold::Freeze { frozen, until }) => {
                self.still = Some(Still { frozen: Some(frozen), mark: None, until: Some(until) });
                self.tell(vec![ToGuard::Freeze { reason, mark }]).await;
            }
            Some(Hold::Thaw) => {
                self.still = None;
                self.tell(vec![ToGuard::Thaw { reason, mark }]).await;
            }
            None => self.holds = None,
        }
    }

    /// It may stand still for its folder now: nothing more is written.
    fn stands_still(&mut self, report: &FromGuard) {
        if let (FromGuard::Frozen { reasons, .. }, Some(still)) = (report, &mut self.still)
            && reasons.contains(&Reason::Snapshot)
            && let Some(frozen) = still.frozen.take()
        {
            still.mark = Some(self.pipes.mark());
            // Whoever waited may have given up; it will be thawed then.
            let _ = frozen.send(());
        }
    }

    /// All that was written before it stood still has a seq: whoever wants to know the next one does now.
    fn tell_until(&mut self) {
        let (is_there, pipes) = (self.backlog.is_empty() && self.due.is_none(), &self.pipes);
        if let Some(still) = &mut self.still
            && still.mark.is_some_and(|mark| is_there && pipes.has_passed(&mark))
            && let Some(until) = still.until.take()
        {
            let _ = until.send(self.outbox.next_seq());
        }
    }

    /// What is due comes when the output before it is there.
    fn take_due(&mut self) {
        if let Some(due) = self.due.take_if(|due| self.pipes.has_passed(&due.after)) {
            self.say(due.body, due.reply);
        }
    }

    fn say(&mut self, body: Body, reply: Option<Reply>) {
        if let Some(reply) = reply {
            // Nobody else gives seqs, and the backlog comes first.
            let seq = Seq(self.outbox.next_seq().0 + self.backlog.len() as u64);
            // Its connection may be gone; the checkpoint counts all the same.
            let _ = reply.send(seq);
        }
        self.backlog.push_back(match &self.redactor {
            Some(redactor) => redactor.body(body),
            None => body,
        });
    }

    /// A guard that is gone is noticed when it is listened to.
    async fn tell(&mut self, messages: Vec<ToGuard>) {
        for message in messages {
            let _ = self.keeper.tell(&message).await;
        }
    }

    async fn guard_died(&mut self, reported: bool) {
        self.guard_lives = false;
        self.begun = true;
        self.close_pipes_at = Some(Instant::now() + PIPES_AFTER_DEATH);
        if !reported {
            let guard = self.keeper.id();
            tracing::error!(guard, "a guard died before its agent");
            let guards = self.attempt.place.guards.clone();
            if let Some(guard) = guard
                && let Err(error) = tokio::task::spawn_blocking(move || former::clean_up(&guards, guard)).await
            {
                tracing::error!(%error, "what it held may live on");
            }
        }
    }
}

/// Pending for ever without a talk.
async fn talk(talk: &mut Option<Dialogue>) -> Turn {
    match talk {
        Some(talk) => talk.next().await,
        None => std::future::pending().await,
    }
}

/// Names of variables agents get from their worker's environment. Nothing that could be a secret.
const INHERITED: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// Where programs are looked for when nobody says.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The part of a process's environment that its agents get.
pub fn base_environment(all: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    all.into_iter().filter(|(name, _)| INHERITED.contains(&name.as_str())).collect()
}

/// An agent's environment: the worker's, the task's over it, ado's own over all.
fn environment(place: &Place, socket: Option<&Path>, assignment: &Assignment) -> BTreeMap<String, String> {
    let (index, count) = assignment.group.map_or((0, 1), |member| (member.index, member.count));
    let own = [
        ("ADO_TASK_ID", Some(assignment.task.to_string())),
        ("ADO_TASK", Some(assignment.task.short())),
        ("ADO_ATTEMPT", Some(assignment.attempt.to_string())),
        ("ADO_EPOCH", Some(assignment.epoch.to_string())),
        ("ADO_GROUP_INDEX", Some(index.to_string())),
        ("ADO_GROUP_COUNT", Some(count.to_string())),
        (SOCKET, socket.map(|path| path.display().to_string())),
        (CHECKPOINT, assignment.checkpoint.clone()),
    ];
    let mut all: BTreeMap<_, _> = place.environment.clone().into_iter().chain(assignment.spec.env.clone()).collect();
    // It is given with the secrets.
    all.retain(|name, _| !assignment.spec.secrets.contains_key(name));
    for (name, value) in own {
        match value {
            Some(value) => all.insert(name.to_owned(), value),
            // Who finds it must be able to rely on it.
            None => all.remove(name),
        };
    }
    if let Some(bin) = place.bin.as_ref().map(|bin| bin.display().to_string()).filter(|bin| !bin.contains(':')) {
        // At the end: an `ado` of the task's own comes first.
        let path = all.remove("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.into());
        all.insert("PATH".into(), format!("{path}:{bin}"));
    }
    all
}

/// Files are the business of threads that may wait.
async fn blocking(path: PathBuf, work: fn(&Path) -> io::Result<()>) -> io::Result<()> {
    tokio::task::spawn_blocking(move || work(&path)).await.map_err(io::Error::other)?
}

/// A fresh directory: what an earlier attempt left is gone.
fn make_workspace(path: &Path) -> io::Result<()> {
    removal::remove(path)?;
    fs::create_dir_all(path)
}

#[cfg(test)]
mod tests {
    use ado_proto::spec::{Input, TaskSpec};
    use ado_proto::{Epoch, Namespace, TaskId};

    use super::*;
    use crate::worker::snapshot;

    #[test]
    fn the_environment_is_layered_and_holds_no_secret_of_the_worker() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let base =
            base_environment([pair("PATH", "/bin"), pair("HOME", "/h"), pair("ADO_TOKEN", "x"), pair("KEY", "y")]);
        let mut spec = TaskSpec::new("shell", Input::Text("true".into()));
        spec.env = BTreeMap::from([pair("HOME", "/other"), pair("ADO_EPOCH", "99"), pair("MINE", "1")]);
        let mut assignment = Assignment {
            task: TaskId(uuid::Uuid::nil()),
            epoch: Epoch(3),
            namespace: Namespace::default(),
            name: None,
            group: None,
            attempt: 2,
            spec,
            checkpoint: None,
            snapshot: None,
            lease_ms: 1000,
            desired: Desired::Running,
            generation: 0,
            secrets: Vec::new(),
            total_left_ms: None,
            answers: Vec::new(),
        };
        let place = Place {
            executable: "/opt/ado".into(),
            guards: "/w/guards".into(),
            tasks: "/w/tasks".into(),
            sockets: None,
            bin: Some("/w/bin".into()),
            containment: Containment::Subreaper,
            archive: Archive::new(snapshot::Limits::default(), "/w/snapshots".into()),
            environment: base,
            programs: Programs::default(),
        };
        let mut all = environment(&place, Some(Path::new("/w/s")), &assignment);
        let expected = [
            ("ADO_ATTEMPT", "2"),
            ("ADO_EPOCH", "3"),
            ("ADO_GROUP_COUNT", "1"),
            ("ADO_GROUP_INDEX", "0"),
            ("ADO_SOCKET", "/w/s"),
            ("ADO_TASK", "task-0000000000"),
            ("ADO_TASK_ID", "00000000-0000-0000-0000-000000000000"),
            ("HOME", "/other"),
            ("MINE", "1"),
            ("PATH", "/bin:/w/bin"),
        ];
        assert_eq!(all, expected.into_iter().map(|(name, value)| pair(name, value)).collect());

        // What only ado may say is not there when it does not say it.
        let claimed = ["ADO_CHECKPOINT", "ADO_SOCKET"].map(|name| pair(name, "claimed"));
        assignment.spec.env.extend(claimed);
        all = environment(&place, None, &assignment);
        assert!(!all.contains_key("ADO_CHECKPOINT") && !all.contains_key("ADO_SOCKET"), "{all:?}");
        assignment.checkpoint = Some("{\"page\":7}".into());
        assert_eq!(environment(&place, None, &assignment)["ADO_CHECKPOINT"], "{\"page\":7}");
        assignment.spec.env.insert("PATH".into(), String::new());
        assert_eq!(environment(&place, None, &assignment)["PATH"], format!("{DEFAULT_PATH}:/w/bin"));
        let odd = Place { bin: Some("/w:x/bin".into()), ..place };
        assert_eq!(environment(&odd, None, &assignment)["PATH"], "", "a path with a colon cannot be in it");
    }
}
