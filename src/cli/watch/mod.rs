//! Shows the logs of tasks on this process's own stdout and stderr until they end, the user leaves, or nobody reads any
//! more.

mod menu;
mod painter;
mod pen;
mod places;
mod progress;
mod question;
mod sheet;
mod show;
mod streams;
mod summary;
mod terminal;
mod voice;
mod wishes;

#[cfg(test)]
mod screen;

use std::io::IsTerminal;

use ado_proto::record::Ended;
use ado_proto::request::{StartAt, TaskInfo};
use ado_proto::{GroupId, Offset, TaskId};

use super::Global;
use super::error::Error;
use super::output::Format;
use super::session::Session;
use super::signals::Signals;
use super::surviving::Surviving;
use crate::env::Env;

pub(crate) use painter::{Lines, Look, Painter};
pub(crate) use places::{MOST_TASKS, Places};
pub(crate) use progress::Doing;
pub(crate) use sheet::Sheet;

/// What Ctrl-C means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnInterrupt {
    /// Leave; the task goes on.
    Detach,
    /// Cancel the task and wait for its end; a second Ctrl-C leaves.
    Cancel,
    /// Ask whether to leave, pause or cancel; a second Ctrl-C leaves.
    Ask,
}

impl OnInterrupt {
    /// What was asked for, or what suits: people at a terminal are asked.
    pub(crate) fn resolve(given: Option<Self>, format: Format) -> Result<Self, Error> {
        let can_ask = format == Format::Text && std::io::stdin().is_terminal() && terminal::is_ours();
        match given {
            Some(Self::Ask) if !can_ask => Err(Error::usage(
                "`--on-interrupt ask` needs a terminal for stdin and stderr, and no pipe or JSON on stdout",
            )
            .hint("use --on-interrupt detach or --on-interrupt cancel")),
            Some(given) => Ok(given),
            None if can_ask => Ok(Self::Ask),
            None => Ok(Self::Detach),
        }
    }
}

/// How a watching command shows tasks by default.
pub(crate) fn look(global: &Global, raw: bool) -> Look {
    let text = global.output == Format::Text;
    Look {
        format: global.output,
        stdout_terminal: std::io::stdout().is_terminal(),
        stderr_terminal: std::io::stderr().is_terminal(),
        raw,
        colour: text && terminal::may_colour(),
        status: text && !global.quiet && !raw && terminal::is_ours(),
        lines: if global.quiet { Lines::None } else { Lines::Fitting },
        stream: None,
    }
}

/// One of the tasks that are watched.
pub(crate) struct Watched {
    pub(crate) task: TaskId,
    /// Who holds it, when that is known.
    pub(crate) worker: Option<String>,
    /// Where to begin; `None`: all of it was shown.
    pub(crate) start: Option<StartAt>,
    pub(crate) look: Look,
    /// Only what this keeps; `None`: everything.
    pub(crate) surviving: Option<Surviving>,
    /// What is known of it.
    pub(crate) doing: Doing,
    /// How it ended, when that is known.
    pub(crate) ended: Option<Ended>,
}

impl Watched {
    /// Everything of a task that was just submitted.
    pub(crate) fn new(task: TaskId, look: Look) -> Self {
        let start = Some(StartAt::Offset(Offset(0)));
        Self { task, worker: None, start, look, surviving: None, doing: Doing::default(), ended: None }
    }

    /// A task that is known, from this place on.
    pub(crate) fn of(info: &TaskInfo, start: Option<StartAt>, look: Look) -> Self {
        let ended = |outcome| Ended { outcome, exit: info.exit.clone(), error: info.error.clone() };
        Self {
            task: info.id,
            worker: info.worker.map(|worker| worker.to_string()),
            start,
            look,
            surviving: None,
            doing: Doing::of(info),
            ended: info.outcome.map(ended),
        }
    }
}

/// What to show, of which tasks.
pub(crate) struct Watch<'a> {
    pub(crate) session: &'a Session,
    pub(crate) env: Env,
    /// The group the tasks are all of, by index.
    pub(crate) group: Option<GroupId>,
    /// At least one.
    pub(crate) tasks: Vec<Watched>,
    /// Stay until all have ended.
    pub(crate) follow: bool,
    pub(crate) look: Look,
    pub(crate) on_interrupt: OnInterrupt,
}

/// How watching ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// All was shown; the exit code of a command that stands for the tasks.
    End(u8),
    /// The user left.
    Detached,
    /// Nobody reads stdout any more.
    NobodyReads,
}

impl Finish {
    /// The exit code of a command that stands for the tasks.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::End(code) => code,
            Self::Detached | Self::NobodyReads => 0,
        }
    }
}

impl Watch<'_> {
    /// Shows it.
    pub(crate) async fn run(self, signals: &mut Signals) -> Result<Finish, Error> {
        if self.follow {
            self.session.stay();
        }
        show::Show::new(self, signals).run().await
    }
}
