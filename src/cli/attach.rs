//! `ado attach`: watch a task from any point of its log.

use std::io::IsTerminal;

use super::error::{Error, Kind};
use super::run::look;
use super::session::{App, Session};
use super::signals::Signals;
use super::values::Start;
use super::watch::{OnInterrupt, Watch};
use super::{Global, complete};
use crate::config::Flags;
use ado_proto::request::TaskInfo;

/// Watch a task from any point of its log
///
/// Begins with the last 100 lines on a terminal, with the first elsewhere. Leaving never stops the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, or the beginning of one, or a task's name
    #[arg(add = complete::tasks())]
    task: String,
    #[command(flatten)]
    start: Start,
    /// Write bytes as they are, even to a terminal
    #[arg(long)]
    raw: bool,
    /// What Ctrl-C does
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    on_interrupt: OnInterrupt,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let info = one_task(&session, &args.task).await?;
    let start = args.start.resolve(std::io::stdout().is_terminal(), app.env.now());
    let mut signals = Signals::catch()?;
    let watch = Watch::of(&session, &info, look(&app.global, args.raw));
    let finish = Watch { start, on_interrupt: args.on_interrupt, ..watch }.run(&mut signals).await?;
    session.close().await;
    Ok(finish.code())
}

/// The one task a reference means.
pub(crate) async fn one_task(session: &Session, reference: &str) -> Result<TaskInfo, Error> {
    let mut tasks = session.client.tasks(reference).await?;
    match (tasks.pop(), tasks.len()) {
        (Some(task), 0) => Ok(task),
        (None, _) => {
            Err(Error::new(Kind::Usage, format!("there is no task `{reference}`")).hint(session.command("list")))
        }
        (Some(last), others) => {
            let error = Error::usage(format!("`{reference}` means {} tasks: name one of them", others + 1));
            let shown = tasks.iter().chain([&last]).take(5);
            Err(shown.fold(error, |error, task| error.hint(session.command(&format!("attach {}", task.id.short())))))
        }
    }
}
