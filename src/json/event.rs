//! A record as one line of JSON. Pure.
//!
//! The names are those of the product's `TaskEvent`; fields beside them (`offset`, `epoch`, `time`) are added, none are
//! renamed. Output that is not UTF-8 comes as `dataBase64`, so that every byte arrives.

use ado_proto::record::{AskKind, Asked, Body, Ended, Loss, Outcome, Output, Progress, Record};
use ado_proto::{Offset, Origin, TaskId};
use base64::Engine;
use serde::Serialize;
use serde_json::{Value, json};

use super::{desired_word, exit, result, rfc3339, stream_word, with, with_usage, workspace};

/// Turns the records of one task into events. Remembers who holds it: `started` names the worker.
#[derive(Debug)]
pub struct Events {
    task: TaskId,
    worker: Option<String>,
    /// A progress record says what has changed, its event says all.
    progress: Progress,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputEvent<'a> {
    r#type: &'static str,
    task_id: TaskId,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    time: String,
    stream: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(rename = "dataBase64", skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl Events {
    /// Events of `task`, held by `worker` where reading begins.
    pub fn new(task: TaskId, worker: Option<String>) -> Self {
        Self { task, worker, progress: Progress::default() }
    }

    /// Appends the record's event and a newline.
    pub fn write(&mut self, record: &Record, out: &mut Vec<u8>) {
        let written = match &record.body {
            Body::Output(output) => serde_json::to_writer(&mut *out, &self.output(record, output)),
            body => serde_json::to_writer(&mut *out, &self.other(record, body)),
        };
        written.expect("events have string keys and are written to memory");
        out.push(b'\n');
    }

    /// Appends the event of a log that begins anew.
    pub fn write_reset(&self, generation: u64, out: &mut Vec<u8>) {
        let event = json!({ "type": "log_reset", "taskId": self.task, "generation": generation });
        out.extend_from_slice(event.to_string().as_bytes());
        out.push(b'\n');
    }

    /// Appends word of a viewer that leaves: `command` continues.
    pub fn write_detached(&self, next: Option<Offset>, command: &str, out: &mut Vec<u8>) {
        let event = json!({ "type": "detached", "taskId": self.task, "next": next, "command": command });
        out.extend_from_slice(event.to_string().as_bytes());
        out.push(b'\n');
    }

    fn output<'a>(&self, record: &Record, output: &'a Output) -> OutputEvent<'a> {
        let text = std::str::from_utf8(&output.data);
        OutputEvent {
            r#type: "output",
            task_id: self.task,
            offset: record.offset.0,
            epoch: epoch(record),
            time: rfc3339(record.time),
            stream: stream_word(output.stream),
            base64: text.is_err().then(|| base64::engine::general_purpose::STANDARD.encode(&output.data)),
            data: text.ok(),
        }
    }

    fn other(&mut self, record: &Record, body: &Body) -> Value {
        let mut event = match body {
            Body::Submitted(submitted) => json!({
                "type": "submitted",
                "name": submitted.name,
                "agent": submitted.spec.agent,
                "owner": submitted.owner,
            }),
            Body::Assigned(assigned) => {
                self.progress = Progress::default();
                self.worker = Some(assigned.worker.to_string());
                json!({
                    "type": "assigned",
                    "workerId": assigned.worker.to_string(),
                    "worker": assigned.worker_name,
                    "epoch": assigned.epoch.0,
                    "attempt": assigned.attempt,
                    "resumes": assigned.resumes,
                })
            }
            Body::Started(started) => json!({
                "type": "started",
                "workerId": self.worker,
                "pid": started.pid,
                "containment": started.containment.as_str(),
            }),
            Body::Exited(exited) => with(exit(&exited.exit), "type", "exited"),
            Body::DesiredChanged(change) => json!({
                "type": "desired",
                "desired": desired_word(change.desired),
                "by": change.by,
                "force": change.force,
            }),
            Body::Paused(_) => json!({ "type": "paused" }),
            Body::Resumed(_) => json!({ "type": "resumed" }),
            Body::WorkerLost(lost) => json!({
                "type": "worker_lost",
                "workerId": lost.worker.to_string(),
                "epoch": lost.epoch.0,
                "reason": loss_word(lost.why),
                "charged": lost.charged,
            }),
            Body::Requeued(requeued) => json!({
                "type": "requeued",
                "notBefore": rfc3339(requeued.not_before),
                "charged": requeued.charged,
                "reason": requeued.why,
            }),
            Body::Ended(ended) => ended_event(ended),
            Body::Truncated(gap) => {
                json!({ "type": "truncated", "from": gap.from.0, "to": gap.to.0, "bytes": gap.bytes })
            }
            Body::Skipped(gap) => {
                json!({ "type": "skipped", "from": gap.from.0, "to": gap.to.0, "bytes": gap.bytes })
            }
            Body::Expired(expired) => json!({ "type": "timed_out", "limit": expired.limit.as_str() }),
            Body::Retries(retries) => json!({ "type": "retries", "retryOf": retries.task, "by": retries.by }),
            Body::Note(note) => json!({ "type": "note", "message": note.text }),
            Body::Checkpointed(made) => {
                // The worker has checked that it is JSON; what it is else is nobody's loss but the task's.
                let data: Value = serde_json::from_str(&made.data).unwrap_or_default();
                let workspace = made.snapshot.map(workspace);
                json!({ "type": "checkpoint", "checkpointId": made.id, "data": data, "workspace": workspace })
            }
            Body::Progress(progress) => {
                self.progress.take(progress);
                json!({
                    "type": "progress",
                    "percent": self.progress.percent.unwrap_or(0),
                    "message": self.progress.message.as_deref().unwrap_or_default(),
                })
            }
            Body::Asked(asked) => hitl(asked),
            Body::Answered(answered) => json!({
                "type": "hitl_answered",
                "requestId": answered.ask,
                "option": answered.answer.choice,
                "text": answered.answer.text,
                "by": answered.by,
            }),
            Body::AskClosed(closed) => json!({ "type": "hitl_closed", "requestId": closed.ask }),
            Body::Used(used) => with_usage(json!({ "type": "usage", "session": used.session }), &used.usage),
            Body::Output(_) => unreachable!("written by `output`"),
            Body::Unknown { kind, version, .. } => json!({ "type": "unknown", "kind": kind, "version": version }),
        };
        event["taskId"] = json!(self.task);
        event["offset"] = json!(record.offset.0);
        event["time"] = json!(rfc3339(record.time));
        if let (Some(epoch), None) = (epoch(record), event.get("epoch")) {
            event["epoch"] = json!(epoch);
        }
        event
    }
}

/// The product's `hitl_required`: what is asked, and what can be answered.
pub(super) fn hitl(asked: &Asked) -> Value {
    let (kind, tool) = match &asked.kind {
        AskKind::Permission { tool } => ("permission", Some(tool)),
        AskKind::Question => ("question", None),
    };
    // The agent has made it as JSON; what was cut off is shown as text.
    let detail: Value = serde_json::from_str(&asked.detail).unwrap_or_else(|_| json!(asked.detail));
    json!({
        "type": "hitl_required",
        "requestId": asked.id,
        "kind": kind,
        "tool": tool,
        "reason": asked.text,
        "detail": detail,
        "options": asked.choices.iter().map(|choice| &choice.id).collect::<Vec<_>>(),
        "choices": asked.choices.iter().map(|choice| json!({ "id": choice.id, "label": choice.label })).collect::<Vec<_>>(),
        "freeText": asked.free_text,
        "default": asked.default,
        "waitMs": asked.wait_ms,
    })
}

fn ended_event(ended: &Ended) -> Value {
    match ended.outcome {
        Outcome::Completed => json!({ "type": "completed", "result": result(ended.outcome, ended.exit.as_ref()) }),
        Outcome::Failed => json!({
            "type": "failed",
            "error": ended.error.as_deref().unwrap_or("failed"),
            "result": result(ended.outcome, ended.exit.as_ref()),
        }),
        Outcome::Cancelled => json!({ "type": "cancelled", "result": result(ended.outcome, ended.exit.as_ref()) }),
    }
}

fn epoch(record: &Record) -> Option<u64> {
    match record.origin {
        Origin::Worker { epoch, .. } => Some(epoch.0),
        Origin::Controller => None,
    }
}

fn loss_word(why: Loss) -> &'static str {
    match why {
        Loss::Silent => "silent",
        Loss::Restarted => "restarted",
        Loss::NotDelivered => "not_delivered",
        Loss::HandedBack => "handed_back",
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, Started, Stream};
    use ado_proto::spec::{Containment, Exit};
    use ado_proto::{Epoch, Seq, Timestamp, WorkerId};
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    const TASK: &str = "00000000-0000-0000-0000-000000000007";
    const WORKER: &str = "00000000-0000-0000-0000-000000000009";

    fn record(offset: u64, origin: Origin, body: impl Into<Body>) -> Record {
        Record { offset: Offset(offset), origin, time: Timestamp(1_000_000), body: body.into() }
    }

    fn of_worker() -> Origin {
        Origin::Worker { epoch: Epoch(2), seq: Seq(0) }
    }

    fn line(events: &mut Events, record: &Record) -> String {
        let mut out = Vec::new();
        events.write(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn events() -> Events {
        Events::new(TaskId(Uuid::from_u128(7)), None)
    }

    fn output(data: &'static [u8]) -> Output {
        Output { stream: Stream::Stderr, position: 0, data: Bytes::from_static(data) }
    }

    #[test]
    fn output_is_one_line_with_every_byte() {
        assert_eq!(
            line(&mut events(), &record(4, of_worker(), output("a\n\"ż\"".as_bytes()))),
            format!(
                r#"{{"type":"output","taskId":"{TASK}","offset":4,"epoch":2,"time":"1970-01-01T00:00:01Z","stream":"stderr","data":"a\n\"ż\""}}"#
            ) + "\n",
        );
        assert_eq!(
            line(&mut events(), &record(5, of_worker(), output(b"\xff\x00"))),
            format!(
                r#"{{"type":"output","taskId":"{TASK}","offset":5,"epoch":2,"time":"1970-01-01T00:00:01Z","stream":"stderr","dataBase64":"/wA="}}"#
            ) + "\n",
        );
    }

    #[test]
    fn started_names_the_worker_that_was_assigned() {
        let mut events = events();
        let assigned = Assigned {
            worker: WorkerId(Uuid::from_u128(9)),
            worker_name: "w".into(),
            epoch: Epoch(2),
            attempt: 1,
            resumes: None,
        };
        let mut out = Vec::new();
        events.write(&record(1, Origin::Controller, assigned), &mut out);
        let started = Started { pid: 5, containment: Containment::Subreaper };
        let value: Value = serde_json::from_str(&line(&mut events, &record(2, of_worker(), started))).unwrap();
        assert_eq!(
            value,
            json!({
                "type": "started", "taskId": TASK, "workerId": WORKER, "pid": 5, "containment": "subreaper",
                "offset": 2, "epoch": 2, "time": "1970-01-01T00:00:01Z",
            }),
        );
    }

    #[test]
    fn endings() {
        let ended = |outcome, exit, error: Option<&str>| {
            let ended = Ended { outcome, exit, error: error.map(Into::into) };
            let mut value: Value =
                serde_json::from_str(&line(&mut events(), &record(9, Origin::Controller, ended))).unwrap();
            for common in ["taskId", "offset", "time"] {
                assert!(value.as_object_mut().unwrap().remove(common).is_some());
            }
            value
        };
        assert_eq!(
            ended(Outcome::Completed, Some(Exit::Code(0)), None),
            json!({ "type": "completed", "result": { "outcome": "completed", "exitCode": 0 } }),
        );
        assert_eq!(
            ended(Outcome::Failed, Some(Exit::Signal(9)), Some("killed by signal 9")),
            json!({
                "type": "failed", "error": "killed by signal 9", "result": { "outcome": "failed", "signal": 9 },
            }),
        );
        assert_eq!(
            ended(Outcome::Cancelled, None, None),
            json!({ "type": "cancelled", "result": { "outcome": "cancelled" } }),
        );
    }
}
