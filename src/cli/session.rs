//! From the command line to a session with the mesh that is meant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ado_certs::{Identity, JoinString};
use ado_proto::Namespace;
use serde::{Deserialize, Serialize};

use super::Global;
use super::error::{Error, Kind};
use crate::client::{self, Client};
use crate::config::{self, Config, Flags};
use crate::env::Env;
use crate::local::{self, Home, Role};
use crate::tasks::Tasks;

/// Longest wait for an answer of a mesh elsewhere.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long ending a command waits for its background work.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(1);

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
            .map_err(|error| Error::new(Kind::Local, "cannot find the current directory").because(error))?;
        let context = match (unknown, named) {
            (Some(error), Some(name)) if joined(&home, &name).is_none() => {
                return Err(Error::from(error).hint(format!("ado join <join string> --context-name {name}")));
            }
            (Some(_), Some(name)) => name,
            _ => config.context.clone(),
        };
        Ok(Self { global, config, home, env: Env::system(), context })
    }

    /// A session with the mesh meant; `remote` asks for one elsewhere.
    pub(crate) async fn session(&self, remote: bool) -> Result<Session, Error> {
        let context = if remote { self.remote()? } else { self.context.clone() };
        let tasks = Tasks::new();
        let namespace = self.global.namespace.clone().map(Namespace);
        let local = context == config::LOCAL;
        let identity = if local { self.home.admin() } else { self.identity_dir(&context) };
        let client = if local {
            local::ensure(&self.home, &self.env).await?;
            local::connect(&self.home, namespace, &self.env, &tasks)?
        } else {
            self.connect(&context, namespace, &tasks).await?
        };
        if client.identity().should_renew(self.env.now()) {
            // Its failure matters when the certificate ends, not before.
            match client.renew().await {
                Ok(renewed) => save(&renewed, &identity),
                Err(error) => tracing::warn!(%error, "the certificate could not be renewed"),
            }
        }
        Ok(Session {
            client,
            identity,
            local: local.then(|| self.home.clone()),
            named: context != self.config.context,
            context,
            tasks,
        })
    }

    /// Where `--remote` goes.
    fn remote(&self) -> Result<String, Error> {
        if self.context != config::LOCAL {
            return Ok(self.context.clone());
        }
        let configured = self.config.remote().map(|(name, _)| name.to_owned());
        configured.or_else(|error| current(&self.home).ok_or_else(|| Error::from(error).hint("ado join <join string>")))
    }

    async fn connect(&self, context: &str, namespace: Option<Namespace>, tasks: &Tasks) -> Result<Client, Error> {
        let controllers = self.controllers(context)?;
        let identity = match Identity::load(&self.identity_dir(context)) {
            Ok(identity) => identity,
            Err(error) => self.enrol_by_key(context, error).await?,
        };
        let config = client::Config {
            addresses: Arc::new(move || controllers.clone()),
            identity,
            namespace,
            reconnect_interval: self.config.communication.reconnect_interval,
            timeout: ANSWER_PATIENCE,
        };
        Ok(Client::connect(config, self.env.clone(), tasks)?)
    }

    fn controllers(&self, context: &str) -> Result<Vec<String>, Error> {
        if let Some(configured) = self.config.contexts.get(context) {
            return Ok(configured.controllers.iter().map(ToString::to_string).collect());
        }
        let joined = joined(&self.home, context).map(|joined| joined.controllers);
        joined.ok_or_else(|| Error::usage(format!("there is no context `{context}`")).hint("ado join <join string>"))
    }

    /// A configured join string stands for an identity until it was exchanged for one.
    async fn enrol_by_key(&self, context: &str, missing: ado_certs::Error) -> Result<Identity, Error> {
        let unknown = || Error::from(missing).hint(format!("ado join <join string> --context-name {context}"));
        let Some(key) = self.config.auth.key.as_ref().filter(|_| context == config::REMOTE) else {
            return Err(unknown());
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
        let enrolment = client::enrol(join, name, ANSWER_PATIENCE, self.env.clone(), &tasks).await?;
        tasks.stop(END_PATIENCE).await;
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

/// Keeps a new certificate. One that cannot be kept serves this process only.
pub(crate) fn save(identity: &Identity, dir: &Path) {
    if let Err(error) = identity.save(dir) {
        tracing::warn!(%error, "the new certificate cannot be kept");
    }
}

/// A session and what belongs to it.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Where the identity is kept.
    identity: PathBuf,
    /// The home, when the mesh is the one on this machine.
    local: Option<Home>,
    /// Whether the context has to be named to be meant.
    named: bool,
    context: String,
    pub(crate) tasks: Tasks,
}

impl Session {
    /// Whether the mesh is the one on this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// A command line that talks to the same mesh.
    pub(crate) fn command(&self, words: &str) -> String {
        if self.named { format!("ado --context {} {words}", self.context) } else { format!("ado {words}") }
    }

    /// Keeps alive what a long look needs: the certificate, and the processes if they are on this machine.
    pub(crate) fn stay(&self) {
        let (client, dir) = (self.client.clone(), self.identity.clone());
        self.tasks.spawn_until_stop("renewal", async move {
            client.keep_renewed(|renewed| save(renewed, &dir)).await;
        });
        if let Some(home) = self.local.clone() {
            self.tasks.spawn_until_stop("supervise", async move {
                local::supervise(home, &[Role::Controller, Role::Worker]).await;
            });
        }
    }

    /// Ends it.
    pub(crate) async fn close(self) {
        self.client.close().await;
        self.tasks.stop(END_PATIENCE).await;
    }
}

/// What is kept of a joined mesh.
pub(crate) fn joined(home: &Home, context: &str) -> Option<Joined> {
    if !ado_proto::ids::is_name(context) {
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

/// What this user would like to be called.
pub(crate) fn user_name() -> String {
    let name = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    if ado_proto::ids::is_name(&name) { name } else { "user".into() }
}
