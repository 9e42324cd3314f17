//! `ado status`: what is known of tasks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ado_proto::Timestamp;
use ado_proto::record::Desired;
use ado_proto::request::TaskInfo;
use ado_proto::spec::Usage;
use serde_json::Value;

use super::Global;
use super::columns::{Colour, Scene, Table};
use super::complete;
use super::error::Error;
use super::list::{self, ran, span};
use super::output::{age, one_line, plain, print, scene};
use super::session::{App, Reached};
use crate::config::Flags;
use crate::json;
use crate::json::rfc3339;

/// Longest line of text from elsewhere.
const WIDTH: usize = 200;
/// Most of a checkpoint's data that people are shown.
const DATA: usize = 100;

/// Show what is known of tasks: where they are, why, and what to do
///
/// One task in full; several, or those of a group, in a line each. With `--output json`: one object for one task, else an
/// array.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, names, groups
    #[arg(required = true, value_name = "TASK", add = complete::tasks())]
    tasks: Vec<String>,
    /// Show what this machine has seen, without asking the mesh
    #[arg(long)]
    cached: bool,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let scene = scene(app.env.now());
    let text = |tasks: &[TaskInfo], one: bool| match tasks {
        [task] if one => to_text(task, &next(task, &app), scene),
        tasks => summary(tasks, scene),
    };
    let session = match app.reach(args.cached).await? {
        Reached::Live(session) => session,
        Reached::Remembered(remembered) => {
            let found = args.tasks.iter().map(|reference| remembered.find(reference)).collect::<Result<Vec<_>, _>>()?;
            let one = matches!((&args.tasks[..], &found[..]), ([_], [of_one]) if of_one.len() == 1);
            remembered.print(&found.concat(), one, |tasks| text(tasks, one))?;
            return Ok(0);
        }
    };
    let mut tasks = Vec::new();
    for reference in &args.tasks {
        tasks.extend(session.client.tasks(reference).await?);
    }
    session.close().await;
    let one = matches!((&args.tasks[..], &tasks[..]), ([_], [_]));
    let value = if one { json::task(&tasks[0]) } else { tasks.iter().map(json::task).collect::<Value>() };
    print(app.global.output, &value, || text(&tasks, one))?;
    Ok(0)
}

/// A line on all, and a line each.
fn summary(tasks: &[TaskInfo], scene: Scene) -> String {
    const COLUMNS: [&str; 7] = ["index", "task", "state", "progress", "time", "worker", "why"];
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for task in tasks {
        *counts.entry(&task.state).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    // The most first; equals by name.
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let counts: Vec<_> =
        counts.into_iter().map(|(state, count)| format!("{count} {}", painted(state, scene))).collect();
    let group = tasks[0].group.filter(|first| tasks.iter().all(|task| task.group.is_some_and(|g| g.id == first.id)));
    let what = match group {
        Some(group) => group.id.short(),
        None => format!("{} tasks", tasks.len()),
    };
    let columns = if group.is_some() { &COLUMNS[..] } else { &COLUMNS[1..] };
    let table = Table::new(&list::COLUMNS, &[], columns).render(tasks, true, scene);
    format!("{what}: {}\n\n{table}", counts.join(", "))
}

fn painted(state: &str, scene: Scene) -> String {
    match Colour::of_state(state).filter(|_| scene.colours) {
        Some(colour) => colour.paint(state),
        None => plain(state),
    }
}

/// What to type next.
fn next(task: &TaskInfo, app: &App) -> Vec<String> {
    let id = task.id.short();
    let words: &[&str] = match (task.state.as_str(), task.desired) {
        (_, Desired::Paused) | ("paused", _) if task.outcome.is_none() => &["resume"],
        ("queued", _) => &["workers list --task", "cancel"],
        ("failed", _) => &["logs --tail 20"],
        ("completed" | "cancelled", _) => &["logs"],
        ("waiting", _) => &["answer", "attach"],
        _ => &["attach"],
    };
    words.iter().map(|words| app.command(&format!("{words} {id}"))).collect()
}

fn to_text(task: &TaskInfo, next: &[String], scene: Scene) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<10} {value}");
    };
    let safe = |value: &str| one_line(value, WIDTH);
    let ago = |time: Timestamp| format!("{} ({} ago)", rfc3339(time), age(scene.now.since(time)));
    line("task", &format!("{}  {}", task.id.short(), task.id));
    if let Some(name) = &task.name {
        line("name", &safe(name));
    }
    if let Some(member) = task.group {
        line("group", &format!("{}, {} of {}", member.id.short(), member.index, member.count));
    }
    line("state", &state(task, scene));
    if let Some(reason) = &task.reason {
        line("why", &safe(reason));
    }
    // The reason of a failure is its error.
    if let Some(error) = task.error.as_ref().filter(|error| task.reason.as_ref() != Some(error)) {
        line("error", &safe(error));
    }
    if let Some(progress) = progress(task) {
        line("progress", &safe(&progress));
    }
    if let Some(checkpoint) = &task.checkpoint {
        let data = checkpoint.data.as_deref().map(|data| format!("  {}", one_line(data, DATA))).unwrap_or_default();
        line("checkpoint", &format!("{}{data}", checkpoint.id));
        if let Some(snapshot) = &checkpoint.snapshot {
            let files = if snapshot.files == 1 { "file" } else { "files" };
            line("workspace", &format!("{} {files}, {}", snapshot.files, ado_proto::spec::bytes(snapshot.bytes)));
        }
    }
    for ask in &task.asks {
        line("asks", &safe(&ask.text));
        let choices: Vec<_> = ask.choices.iter().map(|choice| format!("{} ({})", choice.id, choice.label)).collect();
        line("", &safe(&choices.join(", ")));
        if task.asks.len() > 1 {
            line("", &format!("--ask {}", ask.id));
        }
    }
    if let Some(usage) = usage(&task.usage) {
        line("used", &usage);
    }
    line("agent", &safe(&task.spec.agent));
    line("command", &safe(&task.spec.input.summary()));
    if let Some(cwd) = &task.spec.cwd {
        line("directory", &safe(cwd));
    }
    if task.spec.pool != "default" {
        line("pool", &safe(&task.spec.pool));
    }
    if !task.spec.labels.is_empty() {
        line("labels", &safe(&list::labels(&task.spec.labels)));
    }
    if let Some(worker) = &task.worker_name {
        line("worker", &format!("{} (epoch {})", safe(worker), task.epoch));
    }
    line("attempt", &format!("{} of {}", task.attempt, u64::from(task.spec.max_retries) + 1));
    if task.losses > 0 {
        line("losses", &format!("{} workers lost that do not count", task.losses));
    }
    line("owner", &format!("{} in {}", plain(&task.owner), task.namespace));
    line("submitted", &ago(task.created_at));
    for (key, time) in [("started", task.started_at), ("ended", task.ended_at)] {
        if let Some(time) = time {
            line(key, &ago(time));
        }
    }
    if let Some(ran) = ran(task, scene.now) {
        line("time", &span(ran));
    }
    line("log", &format!("{} records", task.next_offset));
    for (at, command) in next.iter().enumerate() {
        line(if at == 0 { "next" } else { "" }, command);
    }
    text
}

/// The state, and what it is about to become.
fn state(task: &TaskInfo, scene: Scene) -> String {
    let shown = painted(&task.state, scene);
    match (task.state.as_str(), task.desired) {
        (_, _) if task.outcome.is_some() => shown,
        ("paused", Desired::Running) => format!("{shown}, to be resumed"),
        ("paused", Desired::Paused) | (_, Desired::Running) => shown,
        (_, Desired::Paused) => format!("{shown}, to be paused"),
        (_, Desired::Cancelled) => format!("{shown}, to be cancelled"),
    }
}

/// What an AI agent has used, in words.
fn usage(usage: &Usage) -> Option<String> {
    if *usage == Usage::default() {
        return None;
    }
    let cost = usage.cost_micros.map(|micros| format!("${:.4}, ", micros as f64 / 1e6)).unwrap_or_default();
    let (turns, read, wrote) = (usage.turns, usage.input_tokens, usage.output_tokens);
    Some(format!("{cost}{turns} turns, {read} tokens read and {wrote} written"))
}

fn progress(task: &TaskInfo) -> Option<String> {
    let said = task.progress.as_ref()?;
    let percent = said.percent.map(|percent| format!("{percent}%"));
    let words = [percent, said.message.clone()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    Some(words).filter(|words| !words.is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use ado_proto::record::{Desired, Member, Progress};
    use ado_proto::request::CheckpointInfo;
    use ado_proto::spec::{Input, TaskSpec};
    use ado_proto::{CheckpointId, Epoch, GroupId, Namespace, Offset, TaskId};
    use uuid::Uuid;

    use super::*;

    /// A queued task, submitted one second into 1970.
    pub(crate) fn info() -> TaskInfo {
        TaskInfo {
            id: TaskId(Uuid::from_u128(7)),
            namespace: Namespace::default(),
            owner: "user/ann".into(),
            name: None,
            group: None,
            state: "queued".into(),
            desired: Desired::Running,
            spec: TaskSpec::new("shell", Input::Text("echo hi".into())),
            worker: None,
            worker_name: None,
            epoch: Epoch(0),
            attempt: 1,
            losses: 0,
            created_at: Timestamp(1_000_000),
            started_at: None,
            ended_at: None,
            not_before: Timestamp(1_000_000),
            outcome: None,
            exit: None,
            error: None,
            next_offset: Offset(1),
            progress: None,
            checkpoint: None,
            reason: Some("no worker has a free slot".into()),
            retry_of: None,
            settled: None,
            asks: Vec::new(),
            usage: ado_proto::spec::Usage::default(),
        }
    }

    fn scene() -> Scene {
        Scene { now: Timestamp(61_000_000), width: 80, colours: false }
    }

    #[test]
    fn text_for_people() {
        let expected = "\
            task       task-0000000007  00000000-0000-0000-0000-000000000007\n\
            state      queued\n\
            why        no worker has a free slot\n\
            agent      shell\n\
            command    echo hi\n\
            attempt    1 of 1\n\
            owner      user/ann in default\n\
            submitted  1970-01-01T00:00:01Z (1m ago)\n\
            log        1 records\n\
            next       ado workers list --task task-0000000007\n";
        let next = ["ado workers list --task task-0000000007".to_owned()];
        assert_eq!(to_text(&info(), &next, scene()), expected);
    }

    #[test]
    fn how_far_it_is_and_what_is_asked_of_it() {
        let mut task = info();
        task.state = "running".into();
        task.desired = Desired::Paused;
        task.progress = Some(Progress { percent: Some(40), message: Some("compiling\n\u{1b}[2J".into()) });
        let id = CheckpointId(Uuid::from_u128(3));
        task.checkpoint =
            Some(CheckpointInfo { id, offset: Offset(4), data: Some("{\"page\":7}".into()), snapshot: None });
        let text = to_text(&task, &[], scene());
        for expected in [
            "state      running, to be paused\n",
            "progress   40% compiling \u{fffd}[2J\n",
            "checkpoint 00000000-0000-0000-0000-000000000003  {\"page\":7}\n",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_group_is_summed_up() {
        let member = |index| Member { id: GroupId(Uuid::from_u128(5)), index, count: 3 };
        let mut tasks: Vec<_> = (0..3).map(|index| TaskInfo { group: Some(member(index)), ..info() }).collect();
        for task in &mut tasks[1..] {
            (task.state, task.reason) = ("running".into(), None);
        }
        assert_eq!(
            summary(&tasks, scene()),
            "group-0000000005: 2 running, 1 queued\n\n\
             INDEX  TASK             STATE    DONE  TIME  WORKER  WHY\n  \
               0/3  task-0000000007  queued      -     -  -       no worker has a free slot\n  \
               1/3  task-0000000007  running     -     -  -       -\n  \
               2/3  task-0000000007  running     -     -  -       -\n",
        );
        tasks[0].group = None;
        assert!(summary(&tasks, scene()).starts_with("3 tasks: 2 running, 1 queued\n\nTASK "));
    }
}
