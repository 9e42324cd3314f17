//! `ado wait`: until tasks have ended.

use std::pin::pin;
use std::time::Duration;

use ado_proto::TaskId;
use ado_proto::request::TaskInfo;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Global;
use super::complete;
use super::error::{Error, Kind};
use super::lifecycle::exit_code;
use super::observe::{self, is_over};
use super::output::{Format, one_line, print};
use super::session::{App, Session};
use super::values;
use crate::config::Flags;
use crate::json;

/// Most tasks that are followed at the same time: each takes a stream, and a controller permits 256.
const FOLLOWED: usize = 128;
/// How often more than that are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest error in a line.
const WIDTH: usize = 400;

/// Wait until tasks have ended
///
/// Prints each as it ends; with `--output json` one object a line, as `ado status` prints them. The exit code is the first
/// that is not 0, in the order in which the tasks are given (of a group: by index); 124 when it took too long.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado wait build test && ado run deploy     when both have succeeded\n  ado wait --any group-a1b2                 until one has ended, with its exit code\n  ado wait --timeout 10m nightly            exit code 124 when it takes longer"
)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, names, groups
    #[arg(required = true, value_name = "TASK", add = complete::tasks())]
    tasks: Vec<String>,
    /// Until one of them has ended: the exit code is its own
    #[arg(long)]
    any: bool,
    /// Wait at most this long (30s, 10m)
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let mut tasks: Vec<TaskInfo> = Vec::new();
    for reference in &args.tasks {
        for task in session.client.tasks(reference).await? {
            // Named twice is meant once.
            if tasks.iter().all(|known| known.id != task.id) {
                tasks.push(task);
            }
        }
    }
    let mut awaited = Awaited { order: tasks.iter().map(|task| task.id).collect(), ended: Vec::new() };
    session.stay();
    let result = {
        let late = async {
            match args.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let mut late = pin!(late);
        let mut all = pin!(awaited.all(&session, tasks, &args, &app.global));
        tokio::select! {
            biased;
            done = &mut all => done.map(|()| true),
            () = session.taken_down() => Err(observe::taken_down()),
            () = &mut late => Ok(false),
        }
    };
    if !result? {
        let left = awaited.left();
        let what = match &left[..] {
            [one] => format!("{} has not ended", one.short()),
            many => format!("{} of {} tasks have not ended", many.len(), awaited.order.len()),
        };
        let waited = values::show_duration(args.timeout.unwrap_or_default());
        let error = Error::new(Kind::TimedOut, format!("{what} within {waited}"));
        return Err(left
            .iter()
            .take(5)
            .fold(error, |e, id| e.hint(session.command(&format!("attach {}", id.short())))));
    }
    session.close().await;
    Ok(awaited.code(args.any))
}

struct Awaited {
    order: Vec<TaskId>,
    /// In the order in which they were seen to have ended, with their exit codes.
    ended: Vec<(TaskId, u8)>,
}

impl Awaited {
    async fn all(
        &mut self,
        session: &Session,
        tasks: Vec<TaskInfo>,
        args: &Args,
        global: &Global,
    ) -> Result<(), Error> {
        let any = args.any;
        let (over, open): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| is_over(&task.state));
        for task in over {
            self.end(&task, global)?;
            if any {
                return Ok(());
            }
        }
        if open.len() > FOLLOWED {
            return self.look_again(session, args, global).await;
        }
        let mut waits: FuturesUnordered<_> =
            open.iter().map(|task| observe::until(session, task.id, |_| false)).collect();
        while let Some(task) = waits.next().await {
            self.end(&task?, global)?;
            if any {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn look_again(&mut self, session: &Session, args: &Args, global: &Global) -> Result<(), Error> {
        while !self.left().is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
            for reference in &args.tasks {
                for task in session.client.tasks(reference).await? {
                    if is_over(&task.state) && self.left().contains(&task.id) {
                        self.end(&task, global)?;
                        if args.any {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, task: &TaskInfo, global: &Global) -> Result<(), Error> {
        let code = task.outcome.map_or(0, |outcome| exit_code(outcome, task.exit.as_ref()));
        self.ended.push((task.id, code));
        if global.output == Format::Json || !global.quiet {
            print(global.output, &json::task(task), || to_text(task))?;
        }
        Ok(())
    }

    fn left(&self) -> Vec<TaskId> {
        self.order.iter().copied().filter(|id| self.ended.iter().all(|(ended, _)| ended != id)).collect()
    }

    /// The first in order that is not 0; with `any` that of the one that ended.
    fn code(&self, any: bool) -> u8 {
        if any {
            return self.ended.first().map_or(0, |(_, code)| *code);
        }
        let code = |id: &TaskId| self.ended.iter().find(|(ended, _)| ended == id).map_or(0, |(_, code)| *code);
        self.order.iter().map(code).find(|code| *code != 0).unwrap_or(0)
    }
}

fn to_text(task: &TaskInfo) -> String {
    match &task.error {
        Some(error) => format!("{}: {}: {}", task.id.short(), task.state, one_line(error, WIDTH)),
        None => format!("{}: {}", task.id.short(), task.state),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_exit_code_is_the_first_by_order_not_by_time() {
        let id = |n| TaskId(Uuid::from_u128(n));
        let awaited = Awaited { order: vec![id(1), id(2), id(3)], ended: vec![(id(3), 9), (id(2), 4)] };
        assert_eq!((awaited.code(false), awaited.code(true)), (4, 9));
        assert_eq!(awaited.left(), [id(1)]);
        let well = Awaited { order: vec![id(1)], ended: vec![(id(1), 0)] };
        assert_eq!((well.code(false), well.code(true)), (0, 0));
    }
}
