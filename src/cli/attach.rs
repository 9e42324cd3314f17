//! `ado attach`: watch a task, or all tasks of a group, from any point of their logs.

use std::io::IsTerminal;

use ado_proto::GroupId;
use ado_proto::request::TaskInfo;

use super::error::{Error, Kind};
use super::session::{App, Session};
use super::signals::Signals;
use super::values::Start;
use super::watch::{OnInterrupt, Places, Watch, Watched, look};
use super::{Global, complete};
use crate::config::Flags;

/// Watch a task, or all tasks of a group, from any point on
///
/// Begins with the last 100 lines on a terminal, with the first elsewhere. Every line of a group begins with the number of
/// its task. Leaving never stops a task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a task or a group, or the beginning of one, or a name
    #[arg(add = complete::tasks())]
    task: String,
    #[command(flatten)]
    start: Start,
    /// Begin at these offsets, one for each task of the group: what leaving a group prints
    #[arg(long, value_name = "OFFSET,…", conflicts_with_all = ["from", "tail", "since"])]
    from_each: Option<Places>,
    /// Write bytes as they are, even to a terminal
    #[arg(long)]
    raw: bool,
    /// What Ctrl-C does; default: ask on a terminal, detach elsewhere
    #[arg(long, value_enum, value_name = "WHAT")]
    on_interrupt: Option<OnInterrupt>,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let on_interrupt = OnInterrupt::resolve(args.on_interrupt, global.output)?;
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let (group, tasks) = find(&session, &args.task).await?;
    let places = match &args.from_each {
        Some(places) if places.0.len() != tasks.len() => {
            let (offsets, tasks) = (places.0.len(), tasks.len());
            let error =
                Error::usage(format!("--from-each has {offsets} offsets, but `{}` has {tasks} tasks", args.task));
            return Err(error.hint(session.command(&format!("attach {} --from start", args.task))));
        }
        Some(places) => places.0.iter().map(|place| place.start()).collect(),
        None => {
            let start = args.start.resolve(std::io::stdout().is_terminal(), tasks.len(), app.env.now());
            vec![Some(start); tasks.len()]
        }
    };
    let look = look(&app.global, args.raw);
    let tasks = tasks.iter().zip(places).map(|(info, start)| Watched::of(info, start, look)).collect();
    let mut signals = Signals::catch()?;
    let watch = Watch { session: &session, env: app.env.clone(), group, tasks, follow: true, look, on_interrupt };
    let finish = watch.run(&mut signals).await?;
    session.close().await;
    Ok(finish.code())
}

/// The tasks a reference means: one, or all of a group.
pub(crate) async fn find(session: &Session, reference: &str) -> Result<(Option<GroupId>, Vec<TaskInfo>), Error> {
    let tasks = session.client.tasks(reference).await?;
    match &tasks[..] {
        [] => Err(Error::new(Kind::Usage, format!("there is no task `{reference}`")).hint(session.command("list"))),
        [_] => Ok((None, tasks)),
        [first, ..] => Ok((first.group.map(|member| member.id), tasks)),
    }
}
