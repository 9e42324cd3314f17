//! `ado logs`: print what a task, or the tasks of a group, wrote.

use std::io::IsTerminal;

use ado_proto::Offset;
use ado_proto::record::Stream;
use ado_proto::request::{StartAt, TaskInfo};

use super::attach::find;
use super::error::Error;
use super::remembered::Part;
use super::session::{App, Reached, Session};
use super::signals::Signals;
use super::surviving::Surviving;
use super::values::Start;
use super::watch::{Lines, Look, OnInterrupt, Watch, Watched, look};
use super::{Global, complete};
use crate::client::Step;
use crate::config::Flags;

/// Print what a task, or the tasks of a group, wrote
///
/// Begins with the last 100 lines on a terminal, with the first elsewhere. Every line of a group begins with the number of
/// its task; without --follow one task comes after the other. With `--output json` every record is one line
/// of JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a task or a group, or the beginning of one, or a name
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
    Tool,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    // Nothing remembered stands for what happens now.
    let reached = if args.follow { Reached::Live(app.session().await?) } else { app.reach(args.cached).await? };
    let start = |tasks: usize| args.start.resolve(std::io::stdout().is_terminal(), tasks, app.env.now());
    let session = match reached {
        Reached::Live(session) => session,
        Reached::Remembered(remembered) => {
            let tasks = remembered.find(&args.task)?;
            let part = Part { start: start(tasks.len()), look: args.look(&app.global), only_final: args.only_final };
            for (index, known) in tasks.iter().enumerate() {
                let member = (tasks.len() > 1).then_some((index, tasks.len()));
                remembered.print_log(&known.info, member, part)?;
            }
            return Ok(0);
        }
    };
    let (group, tasks) = find(&session, &args.task).await?;
    let start = Some(start(tasks.len()));
    let look = args.look(&app.global);
    let mut watched = Vec::with_capacity(tasks.len());
    for info in &tasks {
        let surviving = if args.only_final { Some(survivors(&session, info).await?) } else { None };
        watched.push(Watched { surviving, ..Watched::of(info, start, look) });
    }
    let (env, on_interrupt) = (app.env.clone(), OnInterrupt::Detach);
    let mut signals = Signals::catch()?;
    let watch = Watch { session: &session, env, group, tasks: watched, follow: args.follow, look, on_interrupt };
    watch.run(&mut signals).await?;
    session.close().await;
    Ok(0)
}

/// Looks through the log for where attempts went on from, without what they wrote.
async fn survivors(session: &Session, info: &TaskInfo) -> Result<Surviving, Error> {
    let mut stream = session.client.follow(info.id, StartAt::Offset(Offset(0)), false).without_output();
    let mut surviving = Surviving::default();
    while let Some(step) = stream.next().await {
        match step? {
            Step::Record(record) => surviving.learn(&record),
            Step::Reset { .. } => surviving = Surviving::default(),
            Step::Paused { .. } | Step::Resumed | Step::Detached { .. } | Step::End => {}
        }
    }
    Ok(surviving)
}

impl Args {
    fn look(&self, global: &Global) -> Look {
        Look {
            lines: if global.quiet { Lines::None } else { Lines::Mattering },
            stream: self.stream.map(|only| match only {
                Only::Stdout => Stream::Stdout,
                Only::Stderr => Stream::Stderr,
                Only::Tool => Stream::Tool,
            }),
            ..look(global, self.raw)
        }
    }
}
