//! Drivers: what each kind of agent is started with, what it says, what is said to it.
//!
//! Owns: the names of agents, how a task's input becomes a command line, the protocols that AI agents speak. Must never
//! know: processes, the network, workers, clocks. A plan is a value, and a driver is a machine: bytes in, events and bytes
//! out; the worker carries both out.
//!
//! Another AI agent is one file with its driver, or a few lines in `acp`, and one line in [`REAL`].

mod acp;
mod claude_code;
mod event;
mod lines;
mod noop;
mod rules;
mod shell;

use std::collections::BTreeMap;
use std::fmt;

use ado_proto::record::Answer;
use ado_proto::spec::{Input, SpecError, TaskSpec};

pub use event::{Class, Event, Out, Outcome, Question, Subject, Tool};
pub use lines::{Line, Lines};
pub use rules::{Verdict, check as check_rule, judge};

/// Every agent this build knows, sorted.
pub const ALL: &[&str] = &["claude-code", "cursor-cli", "gemini-cli", "noop", "shell"];

/// AI agents: programs that have to be there. The first ones are preferred.
pub const REAL: &[Real] = &[claude_code::REAL, acp::GEMINI, acp::CURSOR];

/// An AI agent: how it is found, and what it needs.
#[derive(Debug, Clone, Copy)]
pub struct Real {
    /// Its name in tasks.
    pub name: &'static str,
    /// The program, looked up in `PATH`.
    pub program: &'static str,
    /// Variables any one of which lets it use its model.
    pub credentials: &'static [&'static str],
    /// Variables of a worker's environment that it gets as well.
    pub settings: &'static [&'static str],
    /// Variable that names a folder with a login of somebody: who sets it needs no other credential.
    pub login: &'static str,
    /// Its package on npm; empty: it is installed otherwise.
    pub package: &'static str,
    /// Makes the driver of one run with this name of the conversation (a UUID).
    driver: fn(&TaskSpec, &str) -> Box<dyn Driver>,
}

impl Real {
    /// The driver of one run; `session` is a fresh UUID.
    pub fn driver(&self, spec: &TaskSpec, session: &str) -> Box<dyn Driver> {
        (self.driver)(spec, session)
    }
}

/// The AI agent of this name.
pub fn real(name: &str) -> Option<&'static Real> {
    REAL.iter().find(|real| real.name == name)
}

/// One run of an AI agent.
pub trait Driver: Send + fmt::Debug {
    /// How its process is started.
    fn launch(&self, site: &Site<'_>) -> Launch;

    /// Where its process works.
    fn works_in(&mut self, _cwd: &str) {}

    /// The process runs: says what it is to do.
    fn start(&mut self, out: &mut Out);

    /// It has said this: a line of its stdout, which may hold anything.
    fn hear(&mut self, line: &[u8], out: &mut Out);

    /// A [`Question`] of this id is answered; no choice and no words: nobody did.
    fn answer(&mut self, id: &str, answer: &Answer, out: &mut Out);

    /// Where its conversation is kept, below [`Site::home`]: what a checkpoint takes along.
    fn session_files(&self) -> &'static [&'static str];
}

/// Where an agent runs.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Its program.
    pub program: &'a str,
    /// A folder of its own, empty, absolute.
    pub home: &'a str,
    /// This build of ado.
    pub ado: &'a str,
}

impl Site<'_> {
    /// A script in place of a shell: what it runs is shown while it runs. `command` in the words of a shell.
    fn tool(&self, command: &str) -> String {
        let ado = self.ado.replace('\'', "'\\''");
        format!("#!/bin/sh\nexec '{ado}' tool-run {command}\n")
    }
}

/// How a process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables beside the task's own, which come over these.
    pub env: BTreeMap<String, String>,
    /// To be there before it starts.
    pub files: Vec<File>,
    /// A folder for the beginning of its `PATH`.
    pub path_first: Option<String>,
}

/// A file below [`Site::home`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative.
    pub path: &'static str,
    /// What is in it.
    pub text: String,
    /// Whether it can be run.
    pub is_program: bool,
}

impl File {
    fn text(path: &'static str, text: String) -> Self {
        Self { path, text, is_program: false }
    }

    fn program(path: &'static str, text: String) -> Self {
        Self { path, text, is_program: true }
    }
}

/// What running a task takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// A process with this command line; the first element is the program, looked up in the task's `PATH`.
    Process {
        /// Never empty.
        argv: Vec<String>,
    },
    /// An AI agent: see [`real`].
    Talk {
        /// Its name.
        agent: &'static str,
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
    /// An AI agent is asked in words.
    #[error("{0} is told what to do in words: give it a text, and no program after `--`")]
    NoText(&'static str),
    /// A rule nobody understands.
    #[error("{0}")]
    Rule(String),
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
    spec.rules.deny.iter().chain(&spec.rules.allow).try_for_each(|rule| check_rule(rule)).map_err(Error::Rule)?;
    match (spec.agent.as_str(), real(&spec.agent)) {
        (_, Some(real)) => match &spec.input {
            Input::Text(_) => Ok(Plan::Talk { agent: real.name }),
            Input::Argv(_) => Err(Error::NoText(real.name)),
        },
        ("shell", None) => Ok(shell::plan(&spec.input)),
        ("noop", None) => Ok(noop::plan()),
        (other, None) => Err(Error::UnknownAgent { name: other.into() }),
    }
}

#[cfg(test)]
mod tests {
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
        assert!(REAL.iter().all(|real| ALL.contains(&real.name)));
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
    fn an_agent_is_told_in_words_and_rules_are_understood() {
        let argv = Input::Argv(vec!["ls".into()]);
        assert_eq!(plan(&spec("claude-code", argv)), Err(Error::NoText("claude-code")));
        let mut ruled = spec("gemini-cli", Input::Text("x".into()));
        ruled.rules.allow = vec!["shell(ls".into()];
        assert!(matches!(plan(&ruled), Err(Error::Rule(_))));
    }

    #[test]
    fn what_no_worker_could_be_asked_is_refused() {
        let bad = plan(&spec("shell", Input::Text("a\0b".into())));
        assert!(matches!(bad, Err(Error::Spec(SpecError::Nul(_)))), "{bad:?}");
    }

    #[test]
    fn a_script_holds_any_path() {
        let site = Site { program: "p", home: "/h", ado: "/it's/ado" };
        assert_eq!(site.tool("x"), "#!/bin/sh\nexec '/it'\\''s/ado' tool-run x\n");
    }
}
