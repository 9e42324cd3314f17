//! `ado logs`: print what a task wrote.

use std::io::IsTerminal;

use ado_proto::record::Stream;
use ado_proto::request::TaskInfo;

use super::attach::one_task;
use super::error::Error;
use super::painter::{Lines, Look};
use super::run::look;
use super::session::{App, Reached};
use super::signals::Signals;
use super::values::Start;
use super::watch::Watch;
use super::{Global, complete};
use crate::config::Flags;

/// Print what a task wrote
///
/// Begins with the last 100 lines on a terminal, with the first elsewhere. With `--output json` every record is one line
/// of JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, or the beginning of one, or a task's name
    #[arg(add = complete::tasks())]
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
    /// Show what this machine has seen, without asking the mesh
    #[arg(long, conflicts_with = "follow")]
    cached: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Only {
    Stdout,
    Stderr,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    // Nothing remembered stands for what happens now.
    let reached = if args.follow { Reached::Live(app.session().await?) } else { app.reach(args.cached).await? };
    let start = args.start.resolve(std::io::stdout().is_terminal(), app.env.now());
    let session = match reached {
        Reached::Live(session) => session,
        Reached::Remembered(remembered) => {
            for known in remembered.find(&args.task)? {
                remembered.print_log(&known.info, start, args.look(&app.global, &known.info))?;
            }
            return Ok(0);
        }
    };
    let info = one_task(&session, &args.task).await?;
    let look = args.look(&app.global, &info);
    let mut signals = Signals::catch()?;
    Watch { start, follow: args.follow, ..Watch::of(&session, &info, look) }.run(&mut signals).await?;
    session.close().await;
    Ok(0)
}

impl Args {
    fn look(&self, global: &Global, info: &TaskInfo) -> Look {
        Look {
            lines: if global.quiet { Lines::None } else { Lines::Mattering },
            stream: self.stream.map(|only| match only {
                Only::Stdout => Stream::Stdout,
                Only::Stderr => Stream::Stderr,
            }),
            // Nothing resumes from a checkpoint yet: each epoch began anew, and the last one is what survived.
            epoch: self.only_final.then_some(info.epoch),
            ..look(global, self.raw)
        }
    }
}
