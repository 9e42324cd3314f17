//! `ado logs`: print what a task, or the tasks of a group, wrote.

use std::io::IsTerminal;

use ado_proto::record::Stream;
use ado_proto::request::TaskInfo;

use super::Global;
use super::attach::find;
use super::error::Error;
use super::session::App;
use super::signals::Signals;
use super::values::Start;
use super::watch::{Lines, Look, OnInterrupt, Watch, Watched, look};
use crate::config::Flags;

/// Print what a task, or the tasks of a group, wrote
///
/// Begins with the last 100 lines on a terminal, with the first elsewhere. Every line of a group begins with the number of
/// its task; without --follow one task comes after the other. With `--output json` every record is one line
/// of JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a task or a group, or the beginning of one, or a name
    task: String,
    #[command(flatten)]
    start: Start,
    /// Stay until the task ends
    #[arg(long, short)]
    follow: bool,
    /// Only what survived: without the output of attempts that were lost or failed
    #[arg(long = "final", conflicts_with = "follow")]
    only_final: bool,
    /// Only this stream
    #[arg(long, value_enum)]
    stream: Option<Only>,
    /// Write bytes as they are, even to a terminal
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Only {
    Stdout,
    Stderr,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let (group, tasks) = find(&session, &args.task).await?;
    let general = look(&app.global, args.raw);
    let look = Look {
        lines: if app.global.quiet { Lines::None } else { Lines::Mattering },
        stream: args.stream.map(|only| match only {
            Only::Stdout => Stream::Stdout,
            Only::Stderr => Stream::Stderr,
        }),
        ..general
    };
    let start = Some(args.start.resolve(std::io::stdout().is_terminal(), tasks.len(), app.env.now()));
    let watched = |info: &TaskInfo| {
        // Nothing resumes from a checkpoint yet: each epoch began anew, and the last one is what survived.
        let look = Look { epoch: args.only_final.then_some(info.epoch), ..look };
        Watched::of(info, start, look)
    };
    let tasks = tasks.iter().map(watched).collect();
    let (env, on_interrupt) = (app.env.clone(), OnInterrupt::Detach);
    let mut signals = Signals::catch()?;
    let watch = Watch { session: &session, env, group, tasks, follow: args.follow, look, on_interrupt };
    watch.run(&mut signals).await?;
    session.close().await;
    Ok(0)
}
