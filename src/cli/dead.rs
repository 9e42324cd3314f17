//! `ado dead`: tasks that failed for good, until somebody does them again or takes them out.

use std::time::Duration;

use ado_proto::RequestId;
use ado_proto::request::{DeadOnes, ListTasks, Settled, SettledDead, SettledTask, TaskFilter, TaskInfo};
use serde_json::{Value, json};
use uuid::Uuid;

use super::columns::{self, Table};
use super::error::{Error, Kind};
use super::list::{COLUMNS, Only, fetch, ids};
use super::output::{Format, plain, print, scene};
use super::session::{App, Session};
use super::{Global, complete, values};
use crate::config::Flags;
use crate::json;

/// List tasks that failed for good, do them again, take them out
///
/// A task is in the dead letter when it has failed and will not be tried again: its retries are used up, three workers died
/// of it, the error is permanent, or its time was over. It leaves when it is done again, as a new task, or purged; its log
/// stays as it is.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the dead letter, newest first
    #[command(alias = "ls")]
    List(Box<List>),
    /// Do tasks again: each as a new task, from its last checkpoint
    Retry(Box<Retry>),
    /// Take tasks out of the dead letter; their logs stay
    Purge(Box<Purge>),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    only: Only,
    /// At most this many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Show these columns
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', value_parser = columns::names(&COLUMNS))]
    columns: Vec<String>,
    /// Leave out the line with the names of the columns
    #[arg(long)]
    no_headers: bool,
    /// Print only ids, one a line
    #[arg(long, conflicts_with_all = ["columns", "no_headers"])]
    ids: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Attempts and limits begin anew. The new task has the name, the owner and the place in a group\nof the old one, and says in its log which that was.\n\nExamples:\n  ado dead retry nightly           from its last checkpoint\n  ado dead retry --all --agent shell --fresh"
)]
struct Retry {
    /// Ids, beginnings of ids, names, groups
    #[arg(required_unless_present = "all", value_name = "TASK", add = complete::failed_tasks())]
    tasks: Vec<String>,
    /// All that fit
    #[arg(long, conflicts_with = "tasks")]
    all: bool,
    /// From the beginning, not from the last checkpoint
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    only: Only,
    /// Do them again once, however often this is repeated with the same key: a UUIDv7, good for 24 hours
    #[arg(long, value_name = "UUID")]
    idempotency_key: Option<RequestId>,
}

#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("which").required(true).multiple(true).args(["tasks", "all", "older_than"]),
    after_help = "Examples:\n  ado dead purge task-7k2m\n  ado dead purge --older-than 7d"
)]
struct Purge {
    /// Ids, beginnings of ids, names, groups
    #[arg(value_name = "TASK", add = complete::failed_tasks(), conflicts_with_all = ["all", "older_than"])]
    tasks: Vec<String>,
    /// All that fit
    #[arg(long)]
    all: bool,
    /// All that ended this long ago or more
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    older_than: Option<Duration>,
    #[command(flatten)]
    only: Only,
}

/// Columns unless others are named.
const DEFAULT: [&str; 6] = ["task", "ended", "attempt", "worker", "error", "command"];

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    match args.command {
        Command::List(list) => show(&app, &list).await,
        Command::Retry(retry) => {
            let key = retry.idempotency_key;
            if let Some(key) = key.filter(|key| key.0.get_version_num() != 7) {
                return Err(Error::usage(format!("`{key}` is no UUIDv7: nobody could tell how old it is")));
            }
            let which = which(retry.tasks, &retry.only.filter(app.env.now()), Duration::ZERO)?;
            let fresh = retry.fresh;
            settle(&app, which, async |session, which, nth| {
                let key = key.map_or_else(|| session.client.request_id(), |key| numbered(key, nth));
                session.client.retry_dead(which, fresh, key).await
            })
            .await
        }
        Command::Purge(purge) => {
            let older_than = purge.older_than.unwrap_or_default();
            let which = which(purge.tasks, &purge.only.filter(app.env.now()), older_than)?;
            settle(&app, which, async |session, which, _| session.client.purge_dead(which).await).await
        }
    }
}

/// Every request of a command has a key of its own, and the same one when it is repeated.
fn numbered(key: RequestId, nth: u32) -> RequestId {
    RequestId(Uuid::from_u128(key.0.as_u128() ^ u128::from(nth)))
}

fn which(named: Vec<String>, only: &TaskFilter, ended_for: Duration) -> Result<Vec<DeadOnes>, Error> {
    if named.is_empty() {
        let ended_for_ms = u64::try_from(ended_for.as_millis()).unwrap_or(u64::MAX);
        return Ok(vec![DeadOnes::All { only: only.clone(), ended_for_ms, before: None }]);
    }
    if *only != TaskFilter::default() {
        return Err(Error::usage("a filter is for --all: the tasks are named already").hint("leave out either"));
    }
    Ok(named.into_iter().map(DeadOnes::Named).collect())
}

async fn show(app: &App, list: &List) -> Result<u8, Error> {
    let session = app.session().await?;
    let now = app.env.now();
    let wanted = if list.all { usize::MAX } else { list.limit as usize };
    let request = ListTasks { only: list.only.filter(now), dead: true, ..ListTasks::default() };
    let tasks: Vec<TaskInfo> = fetch(&session, request, wanted).await?;
    session.close().await;
    let values: Vec<Value> = match list.ids {
        true => tasks.iter().map(|task| task.id.short().into()).collect(),
        false => tasks.iter().map(json::task).collect(),
    };
    print(app.global.output, &values, || match list.ids {
        true => ids(&tasks),
        false => Table::new(&COLUMNS, &list.columns, &DEFAULT).render(&tasks, !list.no_headers, scene(now)),
    })?;
    if tasks.is_empty() && !list.ids && app.global.output == Format::Text && !app.global.quiet {
        eprintln!("the dead letter is empty");
    }
    Ok(0)
}

/// Asks for each, as often as there is more; the first failure is told after the results of the others.
async fn settle(
    app: &App,
    which: Vec<DeadOnes>,
    ask: impl AsyncFn(&Session, &DeadOnes, u32) -> Result<SettledDead, crate::client::Error>,
) -> Result<u8, Error> {
    let session = app.session().await?;
    let mut tasks: Vec<SettledTask> = Vec::new();
    let mut failed: Option<Error> = None;
    let mut nth = 0;
    for mut one in which {
        loop {
            let answer = ask(&session, &one, nth).await;
            nth += 1;
            match (answer, &mut one) {
                (Ok(answer), DeadOnes::All { before, .. }) => {
                    tasks.extend(answer.tasks);
                    *before = answer.next;
                    if before.is_some() {
                        continue;
                    }
                }
                (Ok(answer), DeadOnes::Named(_)) => tasks.extend(answer.tasks),
                (Err(error), _) => drop(failed.get_or_insert(error.into())),
            }
            break;
        }
    }
    session.close().await;
    let not_there = tasks.iter().find_map(|task| match (&task.settled, &task.unchanged) {
        (None, Some(why)) => Some(format!("{} {}", task.task.short(), plain(why))),
        _ => None,
    });
    if let Some(why) = not_there {
        failed.get_or_insert(Error::new(Kind::Refused(0), why).hint("ado dead list"));
    }
    let done: Vec<_> = tasks.iter().filter(|task| task.settled.is_some()).collect();
    if app.global.output == Format::Json || !app.global.quiet {
        let values: Vec<Value> = tasks.iter().map(to_json).collect();
        print(app.global.output, &values, || done.iter().map(|task| to_text(task)).collect())?;
    }
    if tasks.is_empty() && failed.is_none() && app.global.output == Format::Text && !app.global.quiet {
        eprintln!("nothing in the dead letter fits");
    }
    failed.map_or(Ok(0), Err)
}

fn to_json(task: &SettledTask) -> Value {
    let retried = match task.settled {
        Some(Settled::Retried(again)) => Some(again),
        Some(Settled::Purged) | None => None,
    };
    json!({
        "taskId": task.task,
        "shortId": task.task.short(),
        "retriedAs": retried,
        "purged": task.settled == Some(Settled::Purged),
        "unchanged": task.unchanged,
    })
}

fn to_text(task: &SettledTask) -> String {
    let already = if task.unchanged.is_some() { "already " } else { "" };
    let what = match task.settled {
        Some(Settled::Retried(again)) => format!("done again as {}", again.short()),
        Some(Settled::Purged) => "purged".into(),
        None => "as it was".into(),
    };
    format!("{}: {already}{what}\n", task.task.short())
}

#[cfg(test)]
mod tests {
    use ado_proto::TaskId;

    use super::*;

    #[test]
    fn words() {
        let task = |settled, unchanged: Option<&str>| SettledTask {
            task: TaskId(Uuid::from_u128(7)),
            settled,
            unchanged: unchanged.map(Into::into),
        };
        let again = Some(Settled::Retried(TaskId(Uuid::from_u128(8))));
        assert_eq!(to_text(&task(again, None)), "task-0000000007: done again as task-0000000008\n");
        let words = to_text(&task(again, Some("already done again as task-0000000008")));
        assert_eq!(words, "task-0000000007: already done again as task-0000000008\n");
        assert_eq!(to_text(&task(Some(Settled::Purged), None)), "task-0000000007: purged\n");
    }

    #[test]
    fn keys_of_one_command_differ_and_are_as_old_as_the_one_given() {
        let key = RequestId("019a0000-0000-7000-8000-000000000000".parse().unwrap());
        let keys: Vec<_> = (0..3).map(|nth| numbered(key, nth)).collect();
        assert!(keys[0] == key && keys[1] != key && keys[2] != keys[1]);
        assert!(keys.iter().all(|key| key.0.get_version_num() == 7 && key.0.get_timestamp().is_some()));
    }

    #[test]
    fn a_filter_is_for_all() {
        let only = TaskFilter { agent: Some("shell".into()), ..TaskFilter::default() };
        assert!(which(vec!["x".into()], &only, Duration::ZERO).is_err());
        assert_eq!(which(vec!["x".into()], &TaskFilter::default(), Duration::ZERO).unwrap().len(), 1);
        let old = which(vec![], &only, Duration::from_secs(7)).unwrap();
        assert_eq!(old, [DeadOnes::All { only, ended_for_ms: 7_000, before: None }]);
    }
}
