//! Which AI agents a worker can run: their programs, and what they need from its own environment.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ado_proto::Secret;
use ado_proto::spec::{SECRET_BYTES, TaskSpec};

use crate::agents::{self, Real};

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    found: BTreeMap<&'static str, PathBuf>,
    /// Variables of the worker's environment that some agent gets.
    own: BTreeMap<&'static str, Secret>,
}

impl Programs {
    /// Looks in the folders of `PATH`, and before them in `installed`. `env` is the worker's environment.
    pub fn find(env: &BTreeMap<String, String>, installed: Option<&Path>) -> Self {
        let path = env.get("PATH").map_or("", String::as_str);
        let folders = || installed.map(Path::to_owned).into_iter().chain(std::env::split_paths(path));
        let is_program = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        let program = |real: &Real| {
            let found = folders().filter(|folder| folder.is_absolute()).map(|folder| folder.join(real.program));
            Some((real.name, found.into_iter().find(is_program)?))
        };
        let variables = agents::REAL.iter().flat_map(|real| real.credentials.iter().chain(real.settings));
        let value =
            |name: &&'static str| Some((*name, Secret::new(env.get(*name).filter(|value| !value.is_empty())?.clone())));
        Self { found: agents::REAL.iter().filter_map(program).collect(), own: variables.filter_map(value).collect() }
    }

    /// Where the program of an agent is.
    pub fn of(&self, agent: &str) -> Option<&Path> {
        self.found.get(agent).map(PathBuf::as_path)
    }

    /// Whether this worker can run an agent at all.
    pub fn can_run(&self, agent: &str) -> bool {
        agents::real(agent).is_none() || self.found.contains_key(agent)
    }

    /// Whether an agent finds a credential here that no task has to bring.
    pub fn has_credential(&self, real: &Real) -> bool {
        real.credentials.iter().any(|name| self.own.contains_key(name))
    }

    /// What an agent gets from the worker's own environment. A task that brings a credential gets none of the worker's.
    pub fn given(&self, real: &Real, spec: &TaskSpec) -> BTreeMap<String, Secret> {
        let brought = brings_credential(real, spec);
        let names = real.settings.iter().chain(real.credentials.iter().filter(|_| !brought));
        let own = names.filter_map(|name| Some(((*name).to_owned(), self.own.get(name)?.clone())));
        own.filter(|(name, _)| !spec.env.contains_key(name) && !spec.secrets.contains_key(name)).collect()
    }

    /// Values among [`Self::given`] that nobody is to see.
    pub fn hidden<'a>(real: &'a Real, given: &'a BTreeMap<String, Secret>) -> impl Iterator<Item = &'a str> {
        let hidden = given.iter().filter(|(name, _)| real.credentials.contains(&name.as_str()));
        hidden.map(|(_, value)| value.expose()).filter(|value| SECRET_BYTES.contains(&value.len()))
    }
}

/// Whether a task has a credential of its own for its agent.
pub fn brings_credential(real: &Real, spec: &TaskSpec) -> bool {
    let brought = |name: &&str| spec.env.contains_key(*name) || spec.secrets.contains_key(*name);
    real.credentials.iter().chain([&real.login]).any(brought)
}

#[cfg(test)]
mod tests {
    use ado_proto::spec::Input;

    use super::*;

    fn programs(dir: &Path, env: &[(&str, &str)]) -> Programs {
        let path = dir.join("path");
        for (folder, name, mode) in [("path", "claude", 0o755), ("path", "gemini", 0o644), ("own", "claude", 0o755)] {
            fs::create_dir_all(dir.join(folder)).unwrap();
            let file = dir.join(folder).join(name);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut all: BTreeMap<String, String> =
            env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        all.insert("PATH".into(), format!("relative:{}", path.display()));
        Programs::find(&all, Some(&dir.join("own")))
    }

    #[test]
    fn a_program_is_one_that_can_be_run_and_the_installed_one_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let found = programs(dir.path(), &[]);
        assert_eq!(found.of("claude-code"), Some(dir.path().join("own/claude").as_path()));
        assert_eq!(found.of("gemini-cli"), None, "it cannot be run");
        assert!(found.can_run("shell") && found.can_run("claude-code") && !found.can_run("cursor-cli"));
    }

    #[test]
    fn a_task_that_brings_a_credential_gets_none_of_the_workers() {
        let dir = tempfile::tempdir().unwrap();
        let env = [("ANTHROPIC_API_KEY", "sk-own"), ("ANTHROPIC_BASE_URL", "http://x"), ("OTHER", "1")];
        let found = programs(dir.path(), &env);
        let real = agents::real("claude-code").unwrap();
        assert!(found.has_credential(real) && !found.has_credential(agents::real("gemini-cli").unwrap()));
        let mut spec = TaskSpec::new("claude-code", Input::Text("x".into()));
        let names = |spec: &TaskSpec| found.given(real, spec).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&spec), ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"]);
        let given = found.given(real, &spec);
        assert_eq!(Programs::hidden(real, &given).collect::<Vec<_>>(), ["sk-own"]);
        spec.secrets.insert("ANTHROPIC_AUTH_TOKEN".into(), "token".into());
        assert_eq!(names(&spec), ["ANTHROPIC_BASE_URL"]);
        spec.env.insert("ANTHROPIC_BASE_URL".into(), "http://y".into());
        assert_eq!(names(&spec), [""; 0]);
    }
}
