//! `ado status`: what is known of a task.

use std::fmt::Write as _;

use ado_proto::Timestamp;
use ado_proto::request::TaskInfo;

use super::Global;
use super::error::Error;
use super::output::{age, one_line, plain, print};
use super::session::{App, Reached};
use crate::config::Flags;
use crate::json;
use crate::json::rfc3339;

/// Longest line of text from elsewhere.
const WIDTH: usize = 200;

/// Show what is known of a task, or of all tasks of a group
///
/// With `--output json`: one object for a task, an array for a group.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, or the beginning of one, or a name
    task: String,
    /// Show what this machine has seen, without asking the mesh
    #[arg(long)]
    cached: bool,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let now = app.env.now();
    let text = |tasks: &[TaskInfo]| tasks.iter().map(|task| to_text(task, now)).collect::<Vec<_>>().join("\n");
    let session = match app.reach(args.cached).await? {
        Reached::Live(session) => session,
        Reached::Remembered(remembered) => {
            remembered.print(&remembered.find(&args.task)?, true, text)?;
            return Ok(0);
        }
    };
    let tasks = session.client.tasks(&args.task).await?;
    session.close().await;
    let value = match &tasks[..] {
        [task] => json::task(task),
        tasks => tasks.iter().map(json::task).collect(),
    };
    print(app.global.output, &value, || text(&tasks))?;
    Ok(0)
}

fn to_text(task: &TaskInfo, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<10} {}", one_line(value, WIDTH));
    };
    let ago = |time: Timestamp| format!("{} ({} ago)", rfc3339(time), age(now.since(time)));
    line("task", &format!("{}  {}", task.id.short(), task.id));
    if let Some(name) = &task.name {
        line("name", name);
    }
    line("state", &task.state);
    if let Some(reason) = &task.reason {
        line("why", reason);
    }
    if let Some(error) = &task.error {
        line("error", error);
    }
    line("agent", &task.spec.agent);
    line("command", &task.spec.input.summary());
    if let Some(cwd) = &task.spec.cwd {
        line("directory", cwd);
    }
    if let Some(worker) = &task.worker_name {
        line("worker", &format!("{worker} (epoch {})", task.epoch));
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
    line("log", &format!("{} records", task.next_offset));
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use ado_proto::record::Desired;
    use ado_proto::spec::{Input, TaskSpec};
    use ado_proto::{Epoch, Namespace, Offset, TaskId};
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
        }
    }

    #[test]
    fn text_for_people() {
        let expected = "\
            task       task-0000000007 00000000-0000-0000-0000-000000000007\n\
            state      queued\n\
            why        no worker has a free slot\n\
            agent      shell\n\
            command    echo hi\n\
            attempt    1 of 1\n\
            owner      user/ann in default\n\
            submitted  1970-01-01T00:00:01Z (1m ago)\n\
            log        1 records\n";
        assert_eq!(to_text(&info(), Timestamp(61_000_000)), expected);
    }
}
