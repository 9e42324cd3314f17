//! Drivers: what each kind of agent is started with.
//!
//! Owns: the names of agents and how a task's input becomes a command line.
//! Must never know: processes, the network, workers. A plan is a value; the worker carries it out.

mod noop;
mod shell;

use ado_proto::spec::TaskSpec;

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
    /// The input names no program.
    #[error("the task has no command")]
    NoCommand,
    /// A command line, an environment variable or a directory cannot hold a zero byte.
    #[error("{0} holds a zero byte")]
    ZeroByte(&'static str),
    /// The name of an environment variable is empty or holds `=`.
    #[error("`{0}` cannot name an environment variable")]
    VariableName(String),
}

/// How a task is run.
///
/// # Errors
/// [`Error`] when it can never run.
pub fn plan(spec: &TaskSpec) -> Result<Plan, Error> {
    let plan = match spec.agent.as_str() {
        "shell" => shell::plan(&spec.input)?,
        "noop" => noop::plan(),
        other => return Err(Error::UnknownAgent { name: other.into() }),
    };
    check(spec, &plan)?;
    Ok(plan)
}

/// What the operating system would refuse with less helpful words.
fn check(spec: &TaskSpec, plan: &Plan) -> Result<(), Error> {
    if let Plan::Process { argv } = plan {
        if argv.first().is_none_or(String::is_empty) {
            return Err(Error::NoCommand);
        }
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err(Error::ZeroByte("the command"));
        }
    }
    if spec.cwd.as_ref().is_some_and(|cwd| cwd.contains('\0')) {
        return Err(Error::ZeroByte("the directory"));
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::VariableName(name.clone()));
        }
        if value.contains('\0') {
            return Err(Error::ZeroByte("the environment"));
        }
    }
    Ok(())
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
        assert_eq!(plan(&spec("shell", Input::Argv(vec![]))), Err(Error::NoCommand));
        assert_eq!(plan(&spec("shell", Input::Argv(vec![String::new()]))), Err(Error::NoCommand));
    }

    #[test]
    fn what_no_process_can_be_given_is_refused() {
        assert_eq!(plan(&spec("shell", Input::Text("a\0b".into()))), Err(Error::ZeroByte("the command")));
        for name in ["", "A=B", "A\0"] {
            let mut bad = spec("shell", Input::Text("true".into()));
            bad.env.insert(name.into(), "x".into());
            assert_eq!(plan(&bad), Err(Error::VariableName(name.into())));
        }
        let mut bad = spec("shell", Input::Text("true".into()));
        bad.env.insert("A".into(), "\0".into());
        assert_eq!(plan(&bad), Err(Error::ZeroByte("the environment")));
    }
}
