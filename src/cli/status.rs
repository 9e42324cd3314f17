//! `ado status`: what is known of a task.

use std::fmt::Write as _;

use ado_proto::Timestamp;
use ado_proto::request::TaskInfo;
use serde_json::{Value, json};

use super::Global;
use super::error::Error;
use super::event::{desired_word, result};
use super::output::{age, one_line, plain, print, rfc3339};
use super::session::App;
use crate::config::Flags;

/// Longest line of text from elsewhere.
const WIDTH: usize = 200;

/// Show what is known of a task, or of all tasks of a group
///
/// With `--output json`: one object for a task, an array for a group.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, or the beginning of one, or a name
    task: String,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let tasks = session.client.tasks(&args.task).await?;
    session.close().await;
    let json = match &tasks[..] {
        [task] => to_json(task),
        tasks => tasks.iter().map(to_json).collect(),
    };
    let now = app.env.now();
    print(app.global.output, &json, || tasks.iter().map(|task| to_text(task, now)).collect::<Vec<_>>().join("\n"))?;
    Ok(0)
}

/// The product's `DistributedTaskState`, and more beside it.
pub(crate) fn to_json(task: &TaskInfo) -> Value {
    json!({
        "taskId": task.id,
        "status": task.state,
        "workerId": task.worker.map(|worker| worker.to_string()),
        "progress": if task.outcome == Some(ado_proto::record::Outcome::Completed) { 100 } else { 0 },
        "currentStep": task.reason.clone().unwrap_or_else(|| task.state.clone()),
        "lastCheckpoint": null,
        "checkpointData": {},
        "createdAt": rfc3339(task.created_at),
        "startedAt": task.started_at.map(rfc3339),
        "completedAt": task.ended_at.map(rfc3339),
        "result": task.outcome.map(|outcome| result(outcome, task.exit.as_ref())),
        "error": task.error,
        "shortId": task.id.short(),
        "name": task.name,
        "namespace": task.namespace,
        "owner": task.owner,
        "desired": desired_word(task.desired),
        "worker": task.worker_name,
        "epoch": task.epoch,
        "attempt": task.attempt,
        "losses": task.losses,
        "maxRetries": task.spec.max_retries,
        "nextOffset": task.next_offset,
        "reason": task.reason,
        "agent": task.spec.agent,
        "command": task.spec.input.summary(),
        "cwd": task.spec.cwd,
        "priority": task.spec.priority,
        "pool": task.spec.pool,
        "labels": task.spec.labels,
        "timeLimitMs": task.spec.time_limit_ms,
    })
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
    use ado_proto::record::{Desired, Outcome};
    use ado_proto::spec::{Exit, Input, TaskSpec};
    use ado_proto::{Epoch, Namespace, Offset, TaskId, WorkerId};
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

    #[test]
    fn the_names_of_the_product_for_programs() {
        let mut task = info();
        task.state = "failed".into();
        task.worker = Some(WorkerId(Uuid::from_u128(9)));
        task.outcome = Some(Outcome::Failed);
        task.exit = Some(Exit::Code(3));
        task.error = Some("exited with code 3".into());
        task.started_at = Some(Timestamp(2_000_000));
        task.ended_at = Some(Timestamp(3_000_000));
        let json = to_json(&task);
        for (key, value) in [
            ("taskId", json!("00000000-0000-0000-0000-000000000007")),
            ("status", json!("failed")),
            ("workerId", json!("00000000-0000-0000-0000-000000000009")),
            ("progress", json!(0)),
            ("currentStep", json!("no worker has a free slot")),
            ("lastCheckpoint", Value::Null),
            ("checkpointData", json!({})),
            ("createdAt", json!("1970-01-01T00:00:01Z")),
            ("startedAt", json!("1970-01-01T00:00:02Z")),
            ("completedAt", json!("1970-01-01T00:00:03Z")),
            ("result", json!({ "outcome": "failed", "exitCode": 3 })),
            ("error", json!("exited with code 3")),
        ] {
            assert_eq!(json[key], value, "{key}");
        }
    }
}
