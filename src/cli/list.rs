//! `ado list`: tasks, newest first.

use std::time::Duration;

use ado_proto::Timestamp;
use ado_proto::record::Outcome;
use ado_proto::request::{ListTasks, TaskFilter, TaskInfo};
use serde_json::Value;

use super::Global;
use super::columns::{self, Colour, Column, Side, Table, column};
use super::complete;
use super::error::Error;
use super::output::{Format, age, print, scene};
use super::session::{App, Reached, Session};
use super::values::{self, Since};
use crate::config::Flags;
use crate::json;

/// Most tasks of one request.
const PAGE: u32 = 1000;

/// List tasks, newest first
///
/// Filters are joined: a task is listed when it fits all of them. With `--output json`: one array.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado list --state running,paused\n  ado list --group group-a1b2 --columns task,index,state,exit\n  ado cancel $(ado list --ids --name nightly --state queued)"
)]
pub(crate) struct Args {
    /// Only tasks in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = STATES)]
    state: Vec<String>,
    /// Only tasks that wait for somebody's answer
    #[arg(long, conflicts_with = "state")]
    waiting: bool,
    #[command(flatten)]
    only: Only,
    /// At most this many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Show what this machine has seen, without asking the mesh
    #[arg(long)]
    cached: bool,
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

/// Which tasks are meant.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Only {
    /// Only tasks of this group
    #[arg(long, add = complete::groups())]
    group: Option<String>,
    /// Only tasks with this name
    #[arg(long, add = complete::names())]
    name: Option<String>,
    /// Only tasks submitted by this owner (`ann`, or `user/ann`)
    #[arg(long)]
    owner: Option<String>,
    /// Only tasks for this agent
    #[arg(long)]
    agent: Option<String>,
    /// Only tasks for this pool
    #[arg(long)]
    pool: Option<String>,
    /// Only tasks that this worker holds or held last
    #[arg(long, add = complete::workers())]
    worker: Option<String>,
    /// Only tasks that ask for workers with this label
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    label: Vec<(String, String)>,
    /// Only tasks submitted this long ago (10m) or since this instant (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = values::since)]
    since: Option<Since>,
}

impl Only {
    pub(super) fn filter(&self, now: Timestamp) -> TaskFilter {
        TaskFilter {
            group: self.group.clone(),
            name: self.name.clone(),
            owner: self.owner.clone(),
            agent: self.agent.clone(),
            pool: self.pool.clone(),
            worker: self.worker.clone(),
            labels: self.label.iter().cloned().collect(),
            since: self.since.map(|since| since.at(now)),
        }
    }
}

const STATES: [&str; 8] = ["queued", "starting", "running", "paused", "waiting", "completed", "failed", "cancelled"];

/// Columns unless others are named.
pub(super) const DEFAULT: [&str; 6] = ["task", "state", "progress", "age", "worker", "command"];

/// Columns of a table of tasks.
pub(super) static COLUMNS: [Column<TaskInfo>; 22] = [
    column("task", "TASK", Side::Left, 15, 15, 0, |task, _| task.id.short()),
    column("id", "ID", Side::Left, 36, 36, 9, |task, _| task.id.to_string()),
    column("name", "NAME", Side::Left, 6, 24, 6, |task, _| or_dash(task.name.as_deref())),
    column("group", "GROUP", Side::Left, 16, 16, 7, |task, _| {
        or_dash(task.group.map(|member| member.id.short()).as_deref())
    }),
    column("index", "INDEX", Side::Right, 3, 9, 5, |task, _| {
        or_dash(task.group.map(|member| format!("{}/{}", member.index, member.count)).as_deref())
    }),
    Column {
        colour: |task| Colour::of_state(&task.state),
        ..column("state", "STATE", Side::Left, 9, 9, 0, |task, _| task.state.clone())
    },
    column("progress", "DONE", Side::Right, 4, 4, 2, |task, _| {
        or_dash(percent(task).map(|percent| format!("{percent}%")).as_deref())
    }),
    column("step", "STEP", Side::Left, 10, 30, 4, |task, _| {
        or_dash(task.progress.as_ref().and_then(|progress| progress.message.as_deref()))
    }),
    column("age", "AGE", Side::Right, 4, 4, 1, |task, now| age(now.since(task.created_at))),
    column("ended", "ENDED", Side::Right, 5, 5, 3, |task, now| {
        or_dash(task.ended_at.map(|ended| age(now.since(ended))).as_deref())
    }),
    column("time", "TIME", Side::Right, 4, 8, 4, |task, now| or_dash(ran(task, now).map(span).as_deref())),
    column("worker", "WORKER", Side::Left, 6, 20, 3, |task, _| or_dash(task.worker_name.as_deref())),
    column("pool", "POOL", Side::Left, 6, 20, 6, |task, _| task.spec.pool.clone()),
    column("agent", "AGENT", Side::Left, 6, 16, 6, |task, _| task.spec.agent.clone()),
    column("owner", "OWNER", Side::Left, 6, 24, 6, |task, _| task.owner.clone()),
    column("attempt", "TRY", Side::Right, 3, 9, 6, |task, _| {
        format!("{}/{}", task.attempt, u64::from(task.spec.max_retries) + 1)
    }),
    column("exit", "EXIT", Side::Right, 4, 4, 4, |task, _| {
        or_dash(
            task.outcome.map(|outcome| super::lifecycle::exit_code(outcome, task.exit.as_ref()).to_string()).as_deref(),
        )
    }),
    column("priority", "PRIO", Side::Right, 4, 8, 8, |task, _| task.spec.priority.to_string()),
    column("labels", "LABELS", Side::Left, 6, 30, 8, |task, _| labels(&task.spec.labels)),
    column("error", "ERROR", Side::Left, 10, 60, 2, |task, _| or_dash(task.error.as_deref())),
    column("why", "WHY", Side::Left, 10, 60, 2, |task, _| or_dash(task.reason.as_deref())),
    column("command", "COMMAND", Side::Left, 10, 200, 0, |task, _| what(task)),
];

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let now = app.env.now();
    let table = Table::new(&COLUMNS, &args.columns, &DEFAULT);
    let text = |tasks: &[TaskInfo]| {
        if args.ids { ids(tasks) } else { table.render(tasks, !args.no_headers, scene(now)) }
    };
    let none = match app.reach(args.cached).await? {
        Reached::Live(session) => {
            let tasks = fetch(&session, request(&args, now), args.wanted()).await?;
            session.close().await;
            let values: Vec<Value> = match args.ids {
                true => tasks.iter().map(|task| task.id.short().into()).collect(),
                false => tasks.iter().map(json::task).collect(),
            };
            print(app.global.output, &values, || text(&tasks))?;
            tasks.is_empty()
        }
        Reached::Remembered(remembered) => {
            let limit = u32::try_from(args.wanted()).unwrap_or(u32::MAX);
            let tasks = remembered.list(&ListTasks { limit, ..request(&args, now) })?;
            remembered.print(&tasks, false, text)?;
            tasks.is_empty()
        }
    };
    if none && !args.ids && app.global.output == Format::Text && !app.global.quiet {
        eprintln!("no tasks");
    }
    Ok(0)
}

impl Args {
    fn wanted(&self) -> usize {
        if self.all { usize::MAX } else { self.limit as usize }
    }
}

fn request(args: &Args, now: Timestamp) -> ListTasks {
    ListTasks { states: states(args), only: args.only.filter(now), limit: PAGE, ..ListTasks::default() }
}

pub(super) async fn fetch(session: &Session, mut request: ListTasks, wanted: usize) -> Result<Vec<TaskInfo>, Error> {
    let mut tasks: Vec<TaskInfo> = Vec::new();
    while tasks.len() < wanted {
        request.limit = u32::try_from(wanted - tasks.len()).unwrap_or(u32::MAX).min(PAGE);
        let page = session.client.list(&request).await?;
        tasks.extend(page.tasks);
        request.before = page.next;
        if request.before.is_none() {
            break;
        }
    }
    Ok(tasks)
}

pub(super) fn ids(tasks: &[TaskInfo]) -> String {
    tasks.iter().map(|task| format!("{}\n", task.id.short())).collect()
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").into()
}

/// Labels as they are typed.
pub(super) fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    or_dash(Some(&labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")))
}

/// How far it says it is; a task that never said so has none.
pub(super) fn percent(task: &TaskInfo) -> Option<u8> {
    let said = task.progress.as_ref().and_then(|progress| progress.percent)?;
    Some(if task.outcome == Some(Outcome::Completed) { 100 } else { said })
}

/// How long it has run, or did.
pub(super) fn ran(task: &TaskInfo, now: Timestamp) -> Option<Duration> {
    task.started_at.map(|started| task.ended_at.unwrap_or(now).since(started))
}

/// A span of time, more exact than an age: `42s`, `5m03s`, `3h20m`, `2d4h`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
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

fn states(args: &Args) -> Vec<String> {
    if args.waiting { vec!["waiting".into()] } else { args.state.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::columns::Scene;
    use crate::cli::status::tests::info;

    fn table(tasks: &[TaskInfo], columns: &[&str], width: usize) -> String {
        let named: Vec<String> = columns.iter().map(|name| (*name).into()).collect();
        let scene = Scene { now: Timestamp(1_000_000 + 90_000_000), width, colours: false };
        Table::new(&COLUMNS, &named, &DEFAULT).render(tasks, true, scene)
    }

    #[test]
    fn a_table_is_cut_to_width_and_keeps_its_lines() {
        let mut named = info();
        named.name = Some("nightly".into());
        named.worker_name = Some("box".into());
        named.state = "running".into();
        let mut long = info();
        long.spec.agent = "claude-code".into();
        long.spec.input = ado_proto::spec::Input::Text("mend\n\u{1b}[2Jthe tests and everything else".into());
        assert_eq!(
            table(&[named, long], &[], 78),
            "TASK             STATE    DONE  AGE  WORKER  COMMAND\n\
             task-0000000007  running     -   1m  box     [nightly] echo hi\n\
             task-0000000007  queued      -   1m  -       claude-code: mend \u{fffd}[2Jthe tests …\n",
        );
    }

    #[test]
    fn every_column_has_a_cell() {
        let mut task = info();
        (task.started_at, task.ended_at) = (Some(Timestamp(2_000_000)), Some(Timestamp(64_000_000)));
        task.outcome = Some(Outcome::Failed);
        let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
        let shown = table(&[task], &names, 1000);
        assert_eq!(shown.lines().count(), 2);
        assert!(shown.contains("1m02s") && shown.contains("125"), "{shown}");
    }

    #[test]
    fn spans() {
        let spans: Vec<_> = [5, 62, 3_700, 200_000].map(|s| span(Duration::from_secs(s))).into();
        assert_eq!(spans, ["5s", "1m02s", "1h01m", "2d7h"]);
    }
}
