//! The command line: one command, one file; arguments → client → output.
//!
//! Data goes to stdout, everything else to stderr. Must never know: SQL, kube, Redis, QUIC.

mod answer;
mod attach;
mod audit;
mod bench;
mod cancel;
mod columns;
mod complete;
mod completions;
mod config;
mod controller;
mod controllers;
mod dead;
mod detach;
mod down;
mod error;
mod events;
mod filter;
mod guard;
mod help;
mod join;
mod known;
mod lifecycle;
mod list;
mod logs;
mod man;
mod net;
mod observe;
mod output;
mod pause;
mod remembered;
mod resume;
mod run;
mod schema;
mod secret;
mod session;
mod signals;
mod status;
mod steer;
mod surviving;
mod task;
mod token;
mod tool_run;
mod top;
mod up;
mod values;
mod wait;
mod watch;
mod worker;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::telemetry;
use error::{ADO_ERROR, Error};
use output::Format;

/// Runs AI coding agents, or any command, on machines that are not your laptop
#[derive(Debug, Parser)]
#[command(name = "ado", version, max_term_width = 80)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What people want to do, and the commands for it.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Run and watch", &["run", "attach", "logs", "wait"]),
    ("Steer", &["answer", "pause", "resume", "detach", "cancel", "dead"]),
    ("Look", &["list", "status", "events", "workers", "controllers", "top", "net", "bench"]),
    ("From inside a task", &["task"]),
    ("Machines", &["up", "down", "controller", "worker", "join", "token", "secret", "audit"]),
    ("Set up", &["config", "completions", "man", "schema"]),
];

const AFTER_HELP: &str = "\
Examples:
  ado run 'echo hello from $(hostname)'       run a command line and watch it
  ado run --detach --name tests 'make test'   leave it running
  ado attach tests                            watch it from where you like
  ado wait tests && echo well                 until it has ended

A TASK is an id (task-7k2m9x0qvb), the beginning of one, a name (--name) or a
group. Exit codes of commands that watch a task: the task's own; 128 + n when
signal n killed it; 124 when a limit of its time was over; 125 when ado
itself failed; 130 when it was cancelled; 0 after detaching.

More on a command: ado COMMAND --help";

/// The whole command line.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let mut groups = String::new();
    for (title, names) in GROUPS {
        groups += &format!("{title}:\n");
        for name in names {
            let inner = command.find_subcommand(name).unwrap_or_else(|| panic!("there is no command {name}"));
            groups += &format!("  {name:<13}{}\n", inner.get_about().map(ToString::to_string).unwrap_or_default());
        }
        groups.push('\n');
    }
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}Options:\n{{options}}{{after-help}}");
    help::compact(command).help_template(template).after_help(AFTER_HELP)
}

/// Flags every command has.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Talk to this mesh: `local`, `remote`, a configured or a joined one [env: ADO_CONTEXT]
    #[arg(long, global = true, help_heading = help::GLOBAL, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Talk to the configured remote mesh, or the first one that was joined
    #[arg(long, global = true, help_heading = help::GLOBAL, conflicts_with = "context")]
    pub(crate) remote: bool,
    /// Read this configuration file [env: ADO_CONFIG]
    #[arg(long, global = true, help_heading = help::GLOBAL, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print for people or for programs
    #[arg(long, short, global = true, help_heading = help::GLOBAL, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) output: Format,
    /// Mean this namespace instead of the certificate's
    #[arg(long, global = true, help_heading = help::GLOBAL, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Print nothing but data and errors
    #[arg(long, short, global = true, help_heading = help::GLOBAL)]
    pub(crate) quiet: bool,
    /// Log to stderr from this level on: error, warn, info, debug, trace, or a filter like `ado::net=debug` [env: ADO_LOG]
    #[arg(long, global = true, help_heading = help::GLOBAL, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

impl Global {
    /// The flag that says which mesh is meant, as typed.
    fn mesh(&self) -> Option<String> {
        if self.remote {
            return Some("--remote".into());
        }
        self.context.as_ref().map(|name| format!("--context {name}"))
    }
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(run::Args),
    Attach(attach::Args),
    Logs(logs::Args),
    Wait(wait::Args),
    Answer(answer::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Detach(detach::Args),
    #[command(alias = "stop")]
    Cancel(cancel::Args),
    Dead(dead::Args),
    #[command(alias = "ls")]
    List(list::Args),
    Status(status::Args),
    Events(events::Args),
    Workers(workers::Args),
    Controllers(controllers::Args),
    Net(net::Args),
    Task(task::Args),
    Secret(secret::Args),
    Top(top::Args),
    Up(up::Args),
    Down(down::Args),
    Controller(controller::Args),
    Worker(worker::Args),
    Join(join::Args),
    Token(token::Args),
    Audit(audit::Args),
    Config(config::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
    Schema(schema::Args),
    #[command(hide = true)]
    Guard(guard::Args),
    #[command(hide = true)]
    ToolRun(tool_run::Args),
}

pub use complete::answer as complete;

/// Reads the command line. What is wrong with it, or its help, has been printed when this fails.
///
/// # Errors
/// The exit code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let args: Vec<_> = args.into_iter().collect();
    let parsed = command().try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        if !error.use_stderr() {
            // Help and version. Whoever closed stdout has seen enough.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        let advice = advice(&error);
        match wants_json(&args) {
            true => {
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
                eprint!("{}", Error::usage(first).hint(advice.unwrap_or("ado --help")).render(Format::Json));
            }
            false => {
                let _ = error.print();
                if let Some(advice) = advice {
                    eprintln!("hint: {advice}");
                }
            }
        }
        ExitCode::from(ADO_ERROR)
    })
}

/// What to type instead, where the parser of the command line cannot know.
fn advice(error: &clap::Error) -> Option<&'static str> {
    let text = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let word = error.kind() == ErrorKind::UnknownArgument && !text(ContextKind::InvalidArg).starts_with('-');
    (word && text(ContextKind::Usage).contains("ado run"))
        .then_some("quote a command line: ado run 'echo hello'; or put `--` before a program: ado run -- echo hello")
}

/// Whether errors in the command line itself are for programs.
fn wants_json(args: &[OsString]) -> bool {
    let ours = args.split(|arg| arg == "--").next().unwrap_or_default();
    ours.windows(2).any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json")
        || ours.iter().any(|arg| arg == "-ojson" || arg == "-o=json" || arg == "--output=json")
}

/// Runs a guard if that is what a worker asks for, without a look at all the other commands there are: a task waits for it.
pub fn run_guard(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    match (args.next(), args.next(), args.next()) {
        (Some(command), Some(guards), None) if command == "guard" && !guards.as_encoded_bytes().starts_with(b"-") => {
            Some(guard::run(&guard::Args { guards: guards.into() }))
        }
        _ => None,
    }
}

impl Cli {
    /// Runs what must run before there is any thread or runtime, if that is asked for: who has one thread and forks.
    pub fn run_alone(&self) -> Option<ExitCode> {
        match &self.command {
            Command::Guard(args) => Some(guard::run(args)),
            Command::ToolRun(args) => Some(tool_run::run(args)),
            _ => None,
        }
    }

    /// Runs the command; errors are printed. Returns the exit code.
    pub async fn run(self) -> ExitCode {
        let format = self.global.output;
        let mesh = self.global.mesh();
        match Box::pin(self.dispatch()).await {
            Ok(code) => code.into(),
            Err(error) => {
                let error = match &mesh {
                    Some(flag) => error.of_mesh(flag),
                    None => error,
                };
                eprint!("{}", error.render(format));
                error.code().into()
            }
        }
    }

    async fn dispatch(self) -> Result<u8, Error> {
        let level = match self.command {
            Command::Controller(_) | Command::Worker(_) => "info",
            _ => "error",
        };
        telemetry::init(level, self.global.log_level.as_deref()).map_err(Error::usage)?;
        let global = self.global;
        match self.command {
            Command::Run(args) => run::run(global, args).await,
            Command::Attach(args) => attach::run(global, args).await,
            Command::Logs(args) => logs::run(global, args).await,
            Command::Wait(args) => wait::run(global, args).await,
            Command::Answer(args) => answer::run(global, args).await,
            Command::Pause(args) => pause::run(global, args).await,
            Command::Resume(args) => resume::run(global, args).await,
            Command::Detach(args) => detach::run(global, args).await,
            Command::Cancel(args) => cancel::run(global, args).await,
            Command::Dead(args) => dead::run(global, args).await,
            Command::List(args) => list::run(global, args).await,
            Command::Status(args) => status::run(global, args).await,
            Command::Events(args) => events::run(global, args).await,
            Command::Workers(args) => workers::run(global, args).await,
            Command::Controllers(args) => controllers::run(global, args).await,
            Command::Net(args) => net::run(global, args).await,
            Command::Task(args) => task::run(&global, args),
            Command::Secret(args) => secret::run(global, args).await,
            Command::Top(args) => top::run(global, args).await,
            Command::Up(args) => up::run(global, args).await,
            Command::Down(args) => down::run(global, args).await,
            Command::Controller(args) => controller::run(global, args).await,
            Command::Worker(args) => worker::run(global, args).await,
            Command::Join(args) => join::run(global, args).await,
            Command::Token(args) => token::run(global, args).await,
            Command::Audit(args) => audit::run(global, args).await,
            Command::Config(args) => config::run(global, args),
            Command::Bench(args) => bench::run(global, args).await,
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => man::run(&global, &args),
            Command::Schema(args) => schema::run(&args),
            Command::Guard(args) => unreachable!("`run_alone` comes first: {args:?}"),
            Command::ToolRun(args) => unreachable!("`run_alone` comes first: {args:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group_of_the_help() {
        let shown: Vec<_> =
            command().get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned()).collect();
        let mut grouped: Vec<_> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().map(|name| (*name).to_owned())).collect();
        let mut expected = shown;
        grouped.sort();
        expected.sort();
        assert_eq!(grouped, expected);
    }

    #[test]
    fn help_fits_80_columns() {
        fn check(command: &mut clap::Command) {
            for text in [command.render_help(), command.render_long_help()] {
                for line in text.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
                }
            }
            command.get_subcommands_mut().for_each(check);
        }
        let mut all = command();
        all.build();
        check(&mut all);
    }

    #[test]
    fn a_command_line_that_is_not_quoted_gets_advice() {
        let advised = |line: &str| advice(&Cli::try_parse_from(line.split(' ')).unwrap_err()).is_some();
        assert!(advised("ado run echo hello"));
        assert!(!advised("ado run --tiem-limit 3s echo") && !advised("ado run") && !advised("ado list x"));
    }

    #[test]
    fn errors_in_the_command_line_are_json_when_asked_for() {
        let wants = |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(wants("ado ls --output json --x") && wants("ado -ojson x") && wants("ado --output=json x"));
        assert!(!wants("ado ls --x") && !wants("ado run -- x -o json"));
    }
}
