//! Drivers: what each kind of agent is started with.
//!
//! Owns: the names of agents and how a task's input becomes a command line.
//! Must never know: processes, the network, workers. A plan is a value; the worker carries it out.

mod noop;
mod shell;

use ado_proto::spec::{SpecError, TaskSpec};

/// Every agent this build can run, sorted.
pub const ALL: &[&str] = &["noop", "shell"];

/// What running a task takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// A process with this command line; the first element is the program, looked up in the task's `PATH`.
    Process {
        /// Never empty.
        argv: Vec<String>,
    },
    /// Nothing runs: the task is completed at once. Measures what ado itself costs.
    Nothing,
}

/// Why a task cannot be run. Another try would fail the same way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No driver has this name.
    #[error("there is no agent `{name}`: this build has {}", ALL.join(", "))]
    UnknownAgent {
        /// What was asked for.
        name: String,
    },
    /// No worker anywhere could be asked this.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// How a task is run.
///
/// # Errors
/// [`Error`] when it can never run.
pub fn plan(spec: &TaskSpec) -> Result<Plan, Error> {
    spec.check()?;
    match spec.agent.as_str() {
        "shell" => Ok(shell::plan(&spec.input)),
        "noop" => Ok(noop::plan()),
        other => Err(Error::UnknownAgent { name: other.into() }),
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::spec::Input;

    use super::*;

    fn spec(agent: &str, input: Input) -> TaskSpec {
        TaskSpec::new(agent, input)
    }

    fn process(argv: &[&str]) -> Result<Plan, Error> {
        Ok(Plan::Process { argv: argv.iter().map(ToString::to_string).collect() })
    }

    #[test]
    fn every_agent_has_a_plan() {
        assert!(ALL.is_sorted());
        for agent in ALL {
            assert!(plan(&spec(agent, Input::Text("true".into()))).is_ok(), "{agent}");
        }
        assert_eq!(plan(&spec("nobody", Input::Text("x".into()))), Err(Error::UnknownAgent { name: "nobody".into() }));
    }

    #[test]
    fn a_shell_runs_text_by_sh_and_argv_as_it_is() {
        assert_eq!(plan(&spec("shell", Input::Text("echo a; b".into()))), process(&["/bin/sh", "-c", "echo a; b"]));
        assert_eq!(plan(&spec("shell", Input::Argv(vec!["ls".into(), "a b".into()]))), process(&["ls", "a b"]));
        assert_eq!(plan(&spec("shell", Input::Argv(vec![]))), Err(Error::Spec(SpecError::NoProgram)));
        assert_eq!(plan(&spec("shell", Input::Argv(vec![String::new()]))), Err(Error::Spec(SpecError::NoProgram)));
    }

    #[test]
    fn what_no_worker_could_be_asked_is_refused() {
        let bad = plan(&spec("shell", Input::Text("a\0b".into())));
        assert!(matches!(bad, Err(Error::Spec(SpecError::Nul(_)))), "{bad:?}");
    }
}
