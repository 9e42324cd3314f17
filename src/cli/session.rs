//! From the command line to a session with the mesh that is meant.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ado_certs::{Identity, JoinString};
use ado_proto::Namespace;
use ado_proto::ids::is_name;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::Global;
use super::error::{Error, Kind};
use super::known::Known;
use super::output::Format;
use super::remembered::Remembered;
use crate::client::cache::{Memory, Place, Recorder};
use crate::client::{self, Addresses, Blocked, Client};
use crate::config::{self, Config, Flags, Secret};
use crate::env::Env;
use crate::local::{self, Home, Role};
use crate::tasks::Tasks;

/// Longest wait for an answer of a mesh elsewhere.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long nobody may answer before people are told.
const WORTH_A_WORD: Duration = Duration::from_secs(3);
/// How long a mesh may not answer before what is remembered of it is shown instead: shorter than [`WORTH_A_WORD`].
const MEMORY_PATIENCE: Duration = Duration::from_millis(2500);
/// How long ending a command waits for its background work.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(1);

type Membership = (Identity, Addresses, Option<Arc<Blocked>>);

/// What every command starts from.
pub(crate) struct App {
    pub(crate) global: Global,
    pub(crate) config: Config,
    pub(crate) home: Home,
    pub(crate) env: Env,
    /// The context meant.
    context: String,
}

/// What `ado join` keeps of a mesh beside the identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// `host:port`, in order of preference.
    pub(crate) controllers: Vec<String>,
}

impl App {
    /// Reads the configuration. `flags` are the command's own.
    pub(crate) fn new(global: Global, mut flags: Flags) -> Result<Self, Error> {
        let mut env = environment();
        flags.config.clone_from(&global.config);
        let file = config::read(&flags, &env)?;
        let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
        let named = global.context.clone().or_else(|| env.get("ADO_CONTEXT").filter(|name| !name.is_empty()).cloned());
        let plain = flags.clone();
        if let Some(name) = &global.context {
            flags.set("context", "--context", name);
        }
        let (config, unknown) = match config::resolve(&flags, &env, file) {
            Ok(config) => (config, None),
            // It may be one that was joined: those are known only once the home is.
            Err(error @ (config::Error::UnknownContext { .. } | config::Error::Missing { .. })) if named.is_some() => {
                env.remove("ADO_CONTEXT");
                (config::resolve(&plain, &env, file)?, Some(error))
            }
            Err(error) => return Err(error.into()),
        };
        let home = Home::at(&config.home)
            .map_err(|error| Error::new(Kind::Local, format!("cannot use {}", config.home.display())).because(error))?;
        if let Some(name) = global.namespace.as_deref().filter(|name| !is_name(name)) {
            return Err(Error::usage(format!("--namespace: `{name}` is no name: 1 to 63 of a-z A-Z 0-9 . _ @ -")));
        }
        let context = match (unknown, named) {
            (Some(error), Some(name)) if joined(&home, &name).is_none() => {
                return Err(Error::from(error).hint(format!("ado join <join string> --context-name {name}")));
            }
            (Some(_), Some(name)) => name,
            _ => config.context.clone(),
        };
        Ok(Self { global, config, home, env: Env::system(), context })
    }

    /// The mesh meant; or what this machine remembers of it, when it does not answer or when that was asked for.
    pub(crate) async fn reach(&self, cached: bool) -> Result<Reached, Error> {
        let remembered = |memory, why| Ok(Reached::Remembered(Remembered::new(memory, self.meant()?, why, self)));
        if cached {
            return Ok(Reached::Remembered(self.remembered(None)?));
        }
        let memory = match self.meant()?.as_str() {
            // The processes of this machine are started when they are missing.
            config::LOCAL => None,
            // Without an identity there is nothing yet; what is wrong with it is told by `session`.
            _ => self.memory().ok().flatten().filter(|memory| !memory.is_empty()),
        };
        let session = match (self.session().await, &memory) {
            (Err(error), Some(memory)) if error.kind == Kind::Network => {
                return remembered(memory.clone(), Some(error.to_string()));
            }
            (session, _) => session?,
        };
        match memory {
            None => Ok(Reached::Live(session)),
            Some(memory) => match session.client.connected(MEMORY_PATIENCE).await {
                Ok(()) => Ok(Reached::Live(session)),
                Err(why) => {
                    session.close().await;
                    remembered(memory, Some(why))
                }
            },
        }
    }

    /// What this machine remembers of the mesh meant, without asking anybody; `why` is what was wrong with asking.
    ///
    /// # Errors
    /// When nothing is kept, or the mesh cannot be told.
    pub(crate) fn remembered(&self, why: Option<String>) -> Result<Remembered, Error> {
        let memory = self.memory()?.ok_or_else(|| {
            Error::usage("nothing is remembered: `cache.enabled` is false").hint("leave out --cached")
        })?;
        Ok(Remembered::new(memory, self.meant()?, why, self))
    }

    /// What this machine remembers of the mesh meant, without asking anybody. `None`: nothing is kept.
    ///
    /// # Errors
    /// When the mesh cannot be told.
    pub(crate) fn memory(&self) -> Result<Option<Memory>, Error> {
        if !self.config.cache.enabled {
            return Ok(None);
        }
        let context = self.meant()?;
        let identity = Identity::load(&self.identity_of(&context)).map_err(|error| {
            let what = format!("nothing is remembered of `{context}`: this machine is no member of it yet");
            Error::new(Kind::Identity, what).because(error)
        })?;
        Ok(Some(Memory::at(self.place(&identity))))
    }

    /// A command line that talks to the mesh meant, whether or not it answers.
    pub(crate) fn command(&self, words: &str) -> String {
        match self.meant() {
            Ok(context) if context != self.config.context => format!("ado --context {context} {words}"),
            _ => format!("ado {words}"),
        }
    }

    /// The name of the context meant.
    fn meant(&self) -> Result<String, Error> {
        if self.global.remote { self.remote() } else { Ok(self.context.clone()) }
    }

    fn identity_of(&self, context: &str) -> PathBuf {
        if context == config::LOCAL { self.home.admin() } else { self.identity_dir(context) }
    }

    fn place(&self, identity: &Identity) -> Place {
        let namespace = self.global.namespace.clone().map(Namespace);
        Place::of(&self.home.cache(), identity, namespace.as_ref(), self.config.cache.max_bytes)
    }

    /// A session with the mesh meant.
    pub(crate) async fn session(&self) -> Result<Session, Error> {
        let context = self.meant()?;
        let tasks = Tasks::new();
        let namespace = self.global.namespace.clone().map(Namespace);
        let local = context == config::LOCAL;
        let identity = self.identity_of(&context);
        let known = if local { None } else { Some(self.known(&context)?) };
        let client = match &known {
            None => {
                local::ensure(&self.home, &self.env).await?;
                local::connect(&self.home, namespace, &self.env, &tasks)?
            }
            Some(known) => self.connect(&context, known, namespace, &tasks).await?,
        };
        let recorder = self.config.cache.enabled.then(|| {
            let place = self.place(&client.identity());
            Recorder::start(place, self.env.clone())
        });
        if let Some(known) = known.clone() {
            let learning = client.clone();
            tasks.spawn_until_stop("controllers", async move {
                learning.keep_learning(move |controllers| known.learn(controllers)).await;
            });
        }
        let client = match &recorder {
            Some(recorder) => client.recorded_by(recorder.clone()),
            None => client,
        };
        let renewed = Arc::new(Notify::new());
        // In the background: its failure matters when the certificate ends, not before.
        let (renewing, told) = (client.clone(), renewed.clone());
        tasks.spawn_until_stop("renewal", async move {
            let keep = |new: &Identity| {
                save(new, &identity);
                told.notify_one();
            };
            renewing.keep_renewed(keep).await;
        });
        if !local && self.global.output == Format::Text && !self.global.quiet {
            tasks.spawn_until_stop("patience", say_when_it_takes_long(client.clone(), context.clone()));
        }
        Ok(Session {
            renewal_due: client.identity().should_renew(self.env.now()),
            renewed,
            client,
            local: local.then(|| self.home.clone()),
            named: context != self.config.context,
            context,
            tasks,
            recorder,
            known,
        })
    }

    /// A session with the mesh meant, if it is there: nothing is started, joined, renewed or said.
    pub(crate) async fn session_if_up(&self) -> Result<Session, Error> {
        let context = self.meant()?;
        let namespace = self.global.namespace.clone().map(Namespace);
        let tasks = Tasks::new();
        let client = if context == config::LOCAL {
            local::live_endpoint(&self.home)
                .ok_or_else(|| Error::new(Kind::Local, "the local controller does not run").hint("ado up"))?;
            local::connect(&self.home, namespace, &self.env, &tasks)?
        } else {
            let identity = Identity::load(&self.identity_dir(&context))?;
            let config = self.client_config(&self.known(&context)?, identity, namespace);
            Client::connect(config, self.env.clone(), &tasks)?
        };
        Ok(Session {
            renewal_due: false,
            renewed: Arc::new(Notify::new()),
            client,
            local: None,
            named: context != self.config.context,
            context,
            tasks,
            recorder: None,
            known: None,
        })
    }

    /// Who this machine is in the mesh meant, where its controllers are, and whether they are reached by WebSocket, too.
    /// Nothing is started or joined.
    pub(crate) fn membership(&self) -> Result<Membership, Error> {
        let context = self.meant()?;
        if context != config::LOCAL {
            let identity = Identity::load(&self.identity_dir(&context))?;
            return Ok((identity, self.known(&context)?.addresses(), self.websocket()));
        }
        let endpoint = local::live_endpoint(&self.home)
            .ok_or_else(|| Error::new(Kind::Local, "the local controller does not run").hint("ado up"))?;
        Ok((Identity::load(&self.home.admin())?, Arc::new(move || endpoint.quic.clone()), None))
    }

    /// Where `--remote` goes.
    fn remote(&self) -> Result<String, Error> {
        if self.context != config::LOCAL {
            return Ok(self.context.clone());
        }
        let configured = self.config.remote().map(|(name, _)| name.to_owned());
        configured.or_else(|error| current(&self.home).ok_or_else(|| Error::from(error).hint("ado join <join string>")))
    }

    async fn connect(
        &self,
        context: &str,
        known: &Known,
        namespace: Option<Namespace>,
        tasks: &Tasks,
    ) -> Result<Client, Error> {
        let identity = match Identity::load(&self.identity_dir(context)) {
            // One that has ended is as good as none for whoever has a key to get another.
            Ok(ended) if ended.not_after() <= self.env.now() && self.key(context).is_some() => {
                self.enrol_by_key(context, ado_certs::Error::NoIdentity(self.identity_dir(context))).await?
            }
            Ok(identity) => identity,
            Err(error) => self.enrol_by_key(context, error).await?,
        };
        let config = self.client_config(known, identity, namespace);
        Ok(Client::connect(config, self.env.clone(), tasks)?)
    }

    fn client_config(&self, known: &Known, identity: Identity, namespace: Option<Namespace>) -> client::Config {
        client::Config {
            addresses: known.addresses(),
            identity,
            namespace,
            reconnect_interval: self.config.communication.reconnect_interval,
            timeout: ANSWER_PATIENCE,
            websocket: self.websocket(),
        }
    }

    /// WebSockets, unless they are not wanted. Networks that block UDP are remembered from one command to the next.
    pub(crate) fn websocket(&self) -> Option<Arc<Blocked>> {
        let file = self.home.networks();
        self.config.communication.websocket.then(|| {
            let known: Vec<IpAddr> = local::read_json(&file).unwrap_or_default();
            Arc::new(Blocked::new(known, move |all| {
                if let Err(error) = local::write_json(&file, all) {
                    tracing::warn!(%error, file = %file.display(), "that UDP is blocked here is known to this process only");
                }
            }))
        })
    }

    /// Where the controllers of a context are.
    fn known(&self, context: &str) -> Result<Known, Error> {
        Ok(Known::new(self.controllers(context)?, &self.home.context(context).join("controllers.json")))
    }

    fn controllers(&self, context: &str) -> Result<Vec<String>, Error> {
        if let Some(configured) = self.config.contexts.get(context) {
            return Ok(configured.controllers.iter().map(ToString::to_string).collect());
        }
        let joined = joined(&self.home, context).map(|joined| joined.controllers);
        joined.ok_or_else(|| Error::usage(format!("there is no context `{context}`")).hint("ado join <join string>"))
    }

    /// The API key configured for a context.
    fn key(&self, context: &str) -> Option<&Secret> {
        self.config.auth.key.as_ref().filter(|_| context == config::REMOTE)
    }

    /// A configured join string stands for an identity until it was exchanged for one.
    async fn enrol_by_key(&self, context: &str, missing: ado_certs::Error) -> Result<Identity, Error> {
        let Some(key) = self.key(context) else {
            let error = Error::from(missing).hint(format!("ado join <join string> --context-name {context}"));
            let key = "or give an API key in `distributed.controller.auth.key` (ADO_API_KEY)";
            return Err(if context == config::REMOTE { error.hint(key) } else { error });
        };
        let join: JoinString = key.reveal().parse().map_err(|_| {
            Error::usage(
                "`distributed.controller.auth.key` is no join string: without one the controller cannot be verified",
            )
            .hint("ado token create --role user")
        })?;
        let name = user_name();
        self.join(&join, &name, context).await.map(|(identity, _)| identity)
    }

    /// Exchanges a join string for an identity and keeps both it and the addresses.
    pub(crate) async fn join(&self, join: &JoinString, name: &str, context: &str) -> Result<(Identity, Joined), Error> {
        local::prepare(&self.home)?;
        let tasks = Tasks::new();
        let enrolment = client::enrol(join, name, ANSWER_PATIENCE, self.websocket(), self.env.clone(), &tasks).await?;
        tasks.stop(END_PATIENCE).await;
        if enrolment.identity.principal().role == ado_proto::Role::Worker {
            return Err(Error::usage("the join string is one for workers, and used up now")
                .hint("ado token create --role user, and `ado join` with that")
                .hint("ado token create --role worker, and `ado worker --join` with that"));
        }
        enrolment.identity.save(&self.identity_dir(context))?;
        let joined = Joined { controllers: enrolment.controllers };
        let file = context_file(&self.home, context);
        local::write_json(&file, &joined)
            .map_err(|error| Error::new(Kind::Local, format!("cannot write {}", file.display())).because(error))?;
        Ok((enrolment.identity, joined))
    }

    fn identity_dir(&self, context: &str) -> PathBuf {
        self.home.context(context).join("identity")
    }
}

/// This process's environment, as far as it is text.
pub(crate) fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// A word for people when nobody answers yet; how it ends is an error's to say.
async fn say_when_it_takes_long(client: Client, context: String) {
    tokio::time::sleep(WORTH_A_WORD).await;
    if let Some(problem) = client.problem() {
        eprintln!("{context}: not connected yet; {problem}");
    }
}

/// Keeps a new certificate. One that cannot be kept serves this process only.
pub(crate) fn save(identity: &Identity, dir: &Path) {
    if let Err(error) = identity.save(dir) {
        tracing::warn!(%error, "the new certificate cannot be kept");
    }
}

/// A session and what belongs to it.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Whether the certificate was due to be renewed at the start.
    renewal_due: bool,
    /// Told when it has been.
    renewed: Arc<Notify>,
    /// The home, when the mesh is the one on this machine.
    local: Option<Home>,
    /// Whether the context has to be named to be meant.
    named: bool,
    context: String,
    pub(crate) tasks: Tasks,
    /// Keeps what the client sees.
    recorder: Option<Recorder>,
    /// Where its controllers are, when they are elsewhere.
    known: Option<Known>,
}

/// What a command talks to.
pub(crate) enum Reached {
    /// The mesh.
    Live(Session),
    /// What is remembered of it.
    Remembered(Remembered),
}

impl Session {
    /// Whether the mesh is the one on this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// The mesh, for people.
    pub(crate) fn context(&self) -> &str {
        &self.context
    }

    /// A command line that talks to the same mesh.
    pub(crate) fn command(&self, words: &str) -> String {
        if self.named { format!("ado --context {} {words}", self.context) } else { format!("ado {words}") }
    }

    /// Keeps alive what a long look needs: the processes, if they are on this machine.
    pub(crate) fn stay(&self) {
        if let Some(home) = self.local.clone() {
            self.tasks.spawn_until_stop("supervise", async move {
                local::supervise(home, &[Role::Controller, Role::Worker]).await;
            });
        }
    }

    /// Resolves when the processes it needs were stopped on purpose. Cancel safe.
    pub(crate) async fn taken_down(&self) {
        match &self.local {
            Some(home) => local::taken_down(home).await,
            None => std::future::pending().await,
        }
    }

    /// Ends it. A certificate that was due gets a moment to be renewed, and where the controllers are is asked now and then:
    /// short commands have no other.
    pub(crate) async fn close(self) {
        if self.renewal_due {
            let _ = tokio::time::timeout(END_PATIENCE, self.renewed.notified()).await;
        }
        if let Some(known) = self.known.as_ref().filter(|known| known.is_old() && self.client.problem().is_none())
            && let Ok(Ok(welcome)) = tokio::time::timeout(END_PATIENCE, self.client.hello()).await
        {
            known.learn(&welcome.controllers);
        }
        self.client.close().await;
        if let Some(recorder) = &self.recorder {
            recorder.finish(END_PATIENCE).await;
        }
        self.tasks.stop(END_PATIENCE).await;
    }
}

/// What is kept of a joined mesh.
pub(crate) fn joined(home: &Home, context: &str) -> Option<Joined> {
    if !is_name(context) {
        return None;
    }
    local::read_json(&context_file(home, context))
}

fn context_file(home: &Home, context: &str) -> PathBuf {
    home.context(context).join("context.json")
}

/// The joined mesh that `--remote` means.
pub(crate) fn current(home: &Home) -> Option<String> {
    let name = std::fs::read_to_string(home.current_context()).ok()?.trim().to_owned();
    joined(home, &name).map(|_| name)
}

/// What this user would like to be called: people of one mesh should not all have the same name.
pub(crate) fn user_name() -> String {
    let variables = ["USER", "LOGNAME"].map(|name| std::env::var(name).unwrap_or_default());
    let account = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    named(&variables, account.as_deref(), nix::unistd::getuid().as_raw(), host.as_deref())
}

/// The first that is a name: a variable, the account, its number on this host.
fn named(variables: &[String], account: Option<&str>, uid: u32, host: Option<&str>) -> String {
    let short_host = host.and_then(|host| host.split('.').next()).filter(|host| is_name(host));
    let said = variables.iter().map(String::as_str).find(|name| is_name(name));
    // Every container has its root: the host tells them apart.
    let account = account.filter(|name| is_name(name) && *name != "root");
    let of_uid = || match short_host {
        Some(host) => format!("uid{uid}@{host}").chars().take(63).collect(),
        None => format!("uid{uid}"),
    };
    said.or(account).map_or_else(of_uid, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_name_is_called_by_number_and_host() {
        let unset = [String::new(), "no name".into()];
        assert_eq!(named(&["ann".into(), "bob".into()], Some("eve"), 7, Some("h")), "ann");
        assert_eq!(named(&unset, Some("eve"), 7, Some("h")), "eve");
        assert_eq!(named(&unset, Some("root"), 0, Some("box.example.com")), "uid0@box");
        assert_eq!(named(&unset, None, 1000, Some("a b")), "uid1000");
        assert!(is_name(&named(&unset, None, u32::MAX, Some(&"h".repeat(63)))));
    }
}
