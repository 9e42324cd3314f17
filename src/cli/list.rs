//! `ado list`: tasks, newest first.

use ado_proto::request::{ListTasks, TaskFilter, TaskInfo};
use ado_proto::{TaskId, Timestamp};
use serde_json::Value;

use super::Global;
use super::error::Error;
use super::output::{Format, age, one_line, print};
use super::session::{App, Reached, Session};
use crate::config::Flags;
use crate::json;

/// Most tasks of one request.
const PAGE: u32 = 1000;
/// Width of a table that is not on a terminal.
const WIDTH: usize = 120;
/// Longest worker name in the table.
const WORKER: usize = 20;

/// List tasks, newest first
///
/// With `--output json`: one array.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only tasks in this state: queued, starting, running, paused, waiting, completed, failed, cancelled
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = STATES)]
    state: Vec<String>,
    /// At most this many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Show what this machine has seen, without asking the mesh
    #[arg(long)]
    cached: bool,
}

const STATES: [&str; 8] = ["queued", "starting", "running", "paused", "waiting", "completed", "failed", "cancelled"];

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| usize::from(width.0));
    let text = |tasks: &[TaskInfo]| table(tasks, app.env.now(), width);
    let none = match app.reach(args.cached).await? {
        Reached::Live(session) => {
            let tasks = fetch(&session, &args).await?;
            session.close().await;
            let values: Vec<Value> = tasks.iter().map(json::task).collect();
            print(app.global.output, &values, || text(&tasks))?;
            tasks.is_empty()
        }
        Reached::Remembered(remembered) => {
            let tasks = remembered.list(&request(&args, None, args.wanted()))?;
            remembered.print(&tasks, false, text)?;
            tasks.is_empty()
        }
    };
    if none && app.global.output == Format::Text && !app.global.quiet {
        eprintln!("no tasks");
    }
    Ok(0)
}

impl Args {
    fn wanted(&self) -> u32 {
        if self.all { u32::MAX } else { self.limit }
    }
}

fn request(args: &Args, before: Option<TaskId>, limit: u32) -> ListTasks {
    ListTasks { states: args.state.clone(), only: TaskFilter::default(), before, limit }
}

async fn fetch(session: &Session, args: &Args) -> Result<Vec<TaskInfo>, Error> {
    let wanted = args.wanted() as usize;
    let mut tasks: Vec<TaskInfo> = Vec::new();
    let mut before = None;
    while tasks.len() < wanted {
        let limit = u32::try_from(wanted - tasks.len()).unwrap_or(u32::MAX).min(PAGE);
        let page = session.client.list(&request(args, before, limit)).await?;
        tasks.extend(page.tasks);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    Ok(tasks)
}

fn table(tasks: &[TaskInfo], now: Timestamp, width: usize) -> String {
    if tasks.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = tasks
        .iter()
        .map(|task| {
            let worker = task.worker_name.as_deref().map_or("-".into(), |name| one_line(name, WORKER));
            (task.id.short(), task.state.as_str(), age(now.since(task.created_at)), worker, what(task))
        })
        .collect();
    let worker_width = rows.iter().map(|row| row.3.chars().count()).max().unwrap_or(0).max("WORKER".len());
    let line = |id: &str, state: &str, age: &str, worker: &str, what: &str| {
        let left = format!("{id:<15}  {state:<9}  {age:>4}  {worker:<worker_width$}  ");
        let what = one_line(what, width.saturating_sub(left.chars().count()).max(10));
        format!("{left}{what}\n")
    };
    let head = line("TASK", "STATE", "AGE", "WORKER", "COMMAND");
    rows.iter().fold(head, |table, (id, state, age, worker, what)| table + &line(id, state, age, worker, what))
}

/// What a task is, for people: its name, and what its agent was given.
fn what(task: &TaskInfo) -> String {
    let summary = task.spec.input.summary();
    let summary = if task.spec.agent == "shell" { summary } else { format!("{}: {summary}", task.spec.agent) };
    match &task.name {
        Some(name) => format!("[{name}] {summary}"),
        None => summary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::info;

    #[test]
    fn a_table_is_cut_to_width_and_keeps_its_lines() {
        let mut named = info();
        named.name = Some("nightly".into());
        named.worker_name = Some("box".into());
        named.state = "running".into();
        let mut long = info();
        long.spec.agent = "claude-code".into();
        long.spec.input = ado_proto::spec::Input::Text("mend\n\u{1b}[2Jthe tests and everything else".into());
        let table = table(&[named, long], Timestamp(1_000_000 + 90_000_000), 72);
        assert_eq!(
            table,
            "TASK             STATE       AGE  WORKER  COMMAND\n\
             task-0000000007  running      1m  box     [nightly] echo hi\n\
             task-0000000007  queued       1m  -       claude-code: mend \u{fffd}[2Jthe tes…\n",
        );
    }
}
