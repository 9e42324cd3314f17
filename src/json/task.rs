//! A task as one JSON object. Pure.

use ado_proto::record::Outcome;
use ado_proto::request::{Settled, TaskInfo};
use serde_json::{Value, json};

use super::{desired_word, hitl, result, rfc3339, with_usage, workspace};

/// The product's `DistributedTaskState`, and more beside it.
pub fn task(task: &TaskInfo) -> Value {
    let mut value = json!({
        "taskId": task.id,
        "status": task.state,
        "workerId": task.worker.map(|worker| worker.to_string()),
        "progress": percent(task),
        "currentStep": step(task),
        "lastCheckpoint": task.checkpoint.as_ref().map(|checkpoint| checkpoint.id),
        "checkpointData": checkpoint_data(task),
        "checkpointWorkspace": task.checkpoint.as_ref().and_then(|checkpoint| checkpoint.snapshot).map(workspace),
        "createdAt": rfc3339(task.created_at),
        "startedAt": task.started_at.map(rfc3339),
        "completedAt": task.ended_at.map(rfc3339),
        "result": task.outcome.map(|outcome| result(outcome, task.exit.as_ref())),
        "error": task.error,
        "shortId": task.id.short(),
        "name": task.name,
        "group": task.group.map(|member| json!({
            "groupId": member.id, "shortId": member.id.short(), "index": member.index, "count": member.count,
        })),
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
        "env": task.spec.env,
        "secrets": task.spec.secrets,
        "cwd": task.spec.cwd,
        "priority": task.spec.priority,
        "pool": task.spec.pool,
        "labels": task.spec.labels,
        "timeLimitMs": task.spec.time_limit_ms,
        "setupLimitMs": task.spec.setup_limit_ms,
        "silenceLimitMs": task.spec.silence_limit_ms,
        "totalLimitMs": task.spec.total_limit_ms,
        "retryOf": task.retry_of,
        "retriedAs": match task.settled {
            Some(Settled::Retried(again)) => Some(again),
            Some(Settled::Purged) | None => None,
        },
        "deadLetter": task.outcome == Some(Outcome::Failed) && task.settled.is_none(),
    });
    value["model"] = json!(task.spec.model);
    value["hitl"] = task.asks.iter().map(hitl).collect();
    value["usage"] = with_usage(json!({}), &task.usage);
    value
}

/// How far it is; all the way once it is completed.
fn percent(task: &TaskInfo) -> u8 {
    if task.outcome == Some(Outcome::Completed) {
        return 100;
    }
    task.progress.as_ref().and_then(|progress| progress.percent).unwrap_or(0)
}

/// What it says it does, while it does it; else why it is where it is.
fn step(task: &TaskInfo) -> &str {
    let said = task.progress.as_ref().and_then(|progress| progress.message.as_deref());
    let said = said.filter(|_| task.outcome.is_none());
    said.or(task.reason.as_deref()).unwrap_or(&task.state)
}

/// `{}` before there is any; `null` where it was left out of a long list.
fn checkpoint_data(task: &TaskInfo) -> Value {
    match &task.checkpoint {
        None => json!({}),
        Some(checkpoint) => {
            checkpoint.data.as_ref().and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Desired, Progress};
    use ado_proto::request::CheckpointInfo;
    use ado_proto::spec::{Exit, Input, TaskSpec};
    use ado_proto::{CheckpointId, Epoch, Namespace, Offset, TaskId, Timestamp, WorkerId};
    use uuid::Uuid;

    use super::*;

    fn info() -> TaskInfo {
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
        let json = super::task(&task);
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

    #[test]
    fn progress_and_checkpoint_of_a_running_task() {
        let mut running = info();
        running.state = "running".into();
        running.progress = Some(Progress { percent: Some(40), message: Some("compiling".into()) });
        let id = CheckpointId(Uuid::from_u128(3));
        running.checkpoint =
            Some(CheckpointInfo { id, offset: Offset(4), data: Some("{\"page\":7}".into()), snapshot: None });
        let json = super::task(&running);
        assert_eq!((&json["progress"], &json["currentStep"]), (&json!(40), &json!("compiling")));
        assert_eq!((&json["lastCheckpoint"], &json["checkpointData"]), (&json!(id), &json!({ "page": 7 })));
        running.outcome = Some(Outcome::Failed);
        running.reason = None;
        assert_eq!(super::task(&running)["currentStep"], json!("running"), "what it did is not what it does");
    }
}
