//! What is printed for programs has the form that the schema says, and no other.

use ado::json::Events;
use ado_proto::record::{
    Answer, Answered, AskClosed, AskKind, Asked, Assigned, Body, Checkpointed, Choice, Desired, DesiredChanged, Ended,
    Exited, Expired, Loss, Note, Outcome, Output, Paused, Progress, Requeued, Resumed, Retries, Skipped, Started,
    Stream, Submitted, Truncated, Used, WorkerLost,
};
use ado_proto::spec::{Containment, Exit, Input, Limit, TaskSpec, Usage};
use ado_proto::{
    AskDigest, AskId, CheckpointId, Epoch, Namespace, Offset, Origin, Record, Seq, TaskId, Timestamp, WorkerId,
};
use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::mesh::Mesh;
use crate::support::TestEnv;

/// The schema as the binary prints it.
pub(crate) struct Schema(Value);

impl Schema {
    pub(crate) fn of(env: &TestEnv) -> Self {
        Self(env.ado(["schema"]).json())
    }

    fn is_valid(&self, name: &str, value: &Value) -> Result<(), String> {
        assert!(self.0["$defs"][name].is_object(), "there is no definition of {name}");
        let root = json!({ "$schema": self.0["$schema"], "$defs": self.0["$defs"], "$ref": format!("#/$defs/{name}") });
        let validator = jsonschema::validator_for(&root).expect("a schema");
        let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// A value is as its definition says, and would not be with a field renamed.
    #[track_caller]
    pub(crate) fn check(&self, name: &str, value: &Value) {
        if let Err(error) = self.is_valid(name, value) {
            panic!("{name}: {error}: {value}");
        }
        let one = if let Value::Array(items) = value { items.first() } else { Some(value) };
        let Some(Value::Object(fields)) = one else { return };
        for field in fields.keys() {
            let mut renamed = fields.clone();
            let was = renamed.remove(field).expect("a field");
            renamed.insert(format!("{field}X"), was);
            let renamed = Value::Object(renamed);
            let renamed = if value.is_array() { json!([renamed]) } else { renamed };
            assert!(self.is_valid(name, &renamed).is_err(), "{name} does not mind that `{field}` is renamed");
        }
    }

    fn has(&self, name: &str, fields: &[&str]) {
        let definition = &self.0["$defs"][name];
        let required: Vec<_> = definition["required"].as_array().expect("fields").iter().collect();
        for field in fields {
            assert!(required.contains(&&json!(field)), "{name} need not have {field}");
            assert!(!definition["properties"][field].is_null(), "{name}.{field}");
        }
    }
}

#[test]
fn the_names_of_the_product_are_there() {
    let schema = Schema::of(&TestEnv::new());
    for (event, fields) in [
        ("started", &["taskId", "workerId"][..]),
        ("progress", &["taskId", "percent", "message"]),
        ("output", &["taskId", "stream"]),
        ("checkpoint", &["taskId", "checkpointId"]),
        ("hitl_required", &["taskId", "reason", "options"]),
        ("completed", &["taskId", "result"]),
        ("failed", &["taskId", "error"]),
    ] {
        let name = format!("event_{event}");
        schema.has(&name, fields);
        assert_eq!(schema.0["$defs"][&name]["properties"]["type"], json!({ "const": event }));
        let all = schema.0["$defs"]["taskEvent"]["oneOf"].as_array().expect("events");
        assert!(all.contains(&json!({ "$ref": format!("#/$defs/{name}") })));
    }
    assert!(schema.0["$defs"]["event_output"]["properties"]["data"].is_object());
    let state = "taskId status workerId progress currentStep lastCheckpoint checkpointData createdAt startedAt completedAt result error";
    schema.has("task", &state.split(' ').collect::<Vec<_>>());
    let states = ["queued", "starting", "running", "paused", "waiting", "completed", "failed", "cancelled"];
    assert_eq!(schema.0["$defs"]["taskStatus"], json!({ "enum": states }));
    assert_eq!(schema.0["$defs"]["stream"], json!({ "enum": ["stdout", "stderr", "tool"] }));
}

#[test]
fn every_record_is_an_event_of_the_schema() {
    let schema = Schema::of(&TestEnv::new());
    let task = TaskId(Uuid::from_u128(7));
    let worker = WorkerId(Uuid::from_u128(9));
    let exits = [
        Exit::Code(3),
        Exit::Signal(9),
        Exit::TimedOut(Limit::Silence),
        Exit::Unavailable { what: "no".into(), retry_after_ms: Some(1) },
        Exit::Hopeless { error: "no".into(), code: 2 },
        Exit::Cancelled,
        Exit::NotStarted { error: "no".into(), permanent: true },
        Exit::Lost { error: "no".into() },
        Exit::OutOfMemory { limit: 1 << 28 },
        Exit::Failed { error: "no".into() },
    ];
    let ask = AskId(Uuid::from_u128(4));
    let answer = Answer { choice: Some("allow".into()), text: None };
    let asked = Asked {
        id: ask,
        digest: AskDigest(Uuid::from_u128(5)),
        kind: AskKind::Permission { tool: "Bash".into() },
        text: "may it".into(),
        detail: "{\"command\":\"ls\"".into(),
        choices: vec![Choice { id: "allow".into(), label: "Allow it".into() }],
        free_text: true,
        default: None,
        wait_ms: Some(1),
    };
    let output = |data: &'static [u8]| Output { stream: Stream::Stdout, position: 0, data: Bytes::from_static(data) };
    let submitted = Submitted {
        namespace: Namespace::default(),
        owner: "user/ann".into(),
        name: None,
        group: None,
        spec: TaskSpec::new("shell", Input::Text("true".into())),
    };
    let assigned =
        Assigned { worker, worker_name: "box".into(), epoch: Epoch(1), attempt: 1, resumes: Some(Offset(3)) };
    let of_controller: Vec<Body> = vec![
        submitted.into(),
        assigned.into(),
        DesiredChanged { desired: Desired::Paused, generation: 1, by: "user/ann".into(), force: false }.into(),
        WorkerLost { worker, epoch: Epoch(1), why: Loss::NotDelivered, charged: false }.into(),
        Requeued { not_before: Timestamp(1), charged: true, why: "exited with code 3".into() }.into(),
        Truncated { from: Offset(1), to: Offset(2), bytes: 3 }.into(),
        Skipped { from: Offset(1), to: Offset(2), bytes: 3 }.into(),
        Expired { limit: Limit::SetUp }.into(),
        Retries { task, by: "user/ann".into() }.into(),
        Checkpointed { id: CheckpointId(Uuid::from_u128(3)), data: "{}".into(), snapshot: None }.into(),
        Answered { ask, answer, by: None }.into(),
        Note { text: "x".into() }.into(),
        Ended { outcome: Outcome::Completed, exit: Some(Exit::Code(0)), error: None }.into(),
        Ended { outcome: Outcome::Failed, exit: None, error: Some("gone".into()) }.into(),
        Ended { outcome: Outcome::Cancelled, exit: None, error: None }.into(),
    ];
    let of_worker: Vec<Body> = vec![
        Started { pid: 5, containment: Containment::Cgroup }.into(),
        output(b"text").into(),
        output(b"\xff").into(),
        Paused { generation: 1 }.into(),
        Resumed { generation: 2 }.into(),
        Progress { percent: Some(40), message: None }.into(),
        Checkpointed { id: CheckpointId(Uuid::from_u128(3)), data: "{\"page\":7}".into(), snapshot: None }.into(),
        asked.into(),
        AskClosed { ask }.into(),
        Used { usage: Usage { turns: 1, cost_micros: Some(5), ..Usage::default() }, session: None }.into(),
        Note { text: "x".into() }.into(),
        Body::Unknown { kind: 250, version: 1, bytes: Bytes::from_static(b"x") },
    ];
    let of_worker = of_worker.into_iter().chain(exits.map(|exit| Exited { exit }.into()));
    let mut events = Events::new(task, None);
    let mut out = Vec::new();
    for (origin, body) in of_controller
        .into_iter()
        .map(|body| (Origin::Controller, body))
        .chain(of_worker.map(|body| (Origin::Worker { epoch: Epoch(1), seq: Seq(0) }, body)))
    {
        events.write(&Record { offset: Offset(4), origin, time: Timestamp(1_000_000), body }, &mut out);
    }
    events.write_reset(3, &mut out);
    events.write_detached(Some(Offset(3)), "ado attach x", &mut out);
    events.write_detached(None, "ado attach x", &mut out);
    let lines = String::from_utf8(out).expect("text");
    let mut seen = std::collections::BTreeSet::new();
    for line in lines.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        seen.insert(event["type"].as_str().expect("a type").to_owned());
        schema.check("taskEvent", &event);
    }
    let defined = schema.0["$defs"]["taskEvent"]["oneOf"].as_array().expect("events").len();
    assert_eq!(seen.len() + 2, defined, "all but what a cache says: {seen:?}");
}

#[test]
fn everything_printed_for_programs_is_in_the_schema() {
    let mesh = Mesh::start();
    let schema = Schema::of(mesh.env());
    let group = mesh.submit_group("later", &["true", "true"]);
    let one = |name: &str, args: &[&str]| {
        let ran = mesh.ado(args.iter().chain(&["-o", "json"]));
        ran.assert_code(0);
        schema.check(name, &ran.json());
        ran.json()
    };
    let lines = |name: &str, args: &[&str]| {
        let ran = mesh.ado(args.iter().chain(&["-o", "json"]));
        let all = ran.json_lines();
        assert!(!all.is_empty(), "{args:?}: {}", ran.stderr());
        all.iter().for_each(|line| schema.check(name, line));
    };
    lines("taskEvent", &["run", "echo hi; exit 3"]);
    lines("taskEvent", &["run", "no-such-command"]);
    lines("taskEvent", &["run", "--workers", "2", "echo hi; exit $ADO_GROUP_INDEX"]);
    one("submittedGroup", &["run", "--workers", "2", "--detach", "--name", "two", "exit 4"]);
    lines("task", &["wait", "two"]);
    lines("taskEvent", &["attach", "two"]);
    lines("taskEvent", &["logs", "two"]);
    lines("taskEvent", &["logs", "first"]);
    lines("taskEvent", &["attach", "first"]);
    let held = one("submitted", &["run", "--detach", "--name", "held", "--pool", "later", "true"]);
    one("task", &["status", "first"]);
    one("tasks", &["status", &group]);
    one("task", &["status", "first", "--cached"]);
    one("tasks", &["list", "--cached"]);
    lines("taskEvent", &["logs", "first", "--cached"]);
    let said = mesh.ado(["run", &inside(&["progress 40 compiling", "checkpoint --data 7", "log hello"])]);
    said.assert_code(0);
    said.json_lines().iter().for_each(|line| schema.check("said", line));
    assert_eq!(said.json_lines().len(), 3);
    // Its exit code says whether the target was met: not asked here.
    lines("latencyReport", &["bench", "latency", "--duration", "1s"]);
    one("tasks", &["status", "first", "held"]);
    one("tasks", &["list"]);
    one("ids", &["list", "--ids"]);
    one("tasks", &["list", "--state", "waiting"]);
    lines("task", &["wait", "first"]);
    one("desiredSet", &["pause", &group, "first"]);
    one("desiredSet", &["resume", &group]);
    one("desiredSet", &["cancel", &group]);
    one("detachedViewers", &["detach", held["shortId"].as_str().expect("an id")]);
    one("detachedViewers", &["detach", "--all"]);
    one("workers", &["workers", "list"]);
    one("workers", &["workers", "--task", "held"]);
    one("ids", &["workers", "--ids"]);
    one("workersSet", &["workers", "cordon", "box"]);
    one("workersSet", &["workers", "drain", "box", "--deadline", "1h"]);
    one("workersSet", &["workers", "uncordon", "box"]);
    one("controllers", &["controllers", "list"]);
    one("ids", &["controllers", "--ids"]);
    one("netDoctor", &["net", "doctor", "--count", "2"]);
    lines("systemEvent", &["events"]);
    one("config", &["config", "show"]);
    let token = one("tokenCreated", &["token", "create", "--name", "ann"]);
    one("tokens", &["token", "list"]);
    one("audit", &["audit"]);
    std::fs::write(mesh.env().work().join("value"), "hunter2-hunter2").expect("a file");
    one("secret", &["secret", "set", "key", "--from-file", "value"]);
    one("secrets", &["secret", "list"]);
    one("secretRemoved", &["secret", "rm", "key"]);
    let guest = TestEnv::new();
    schema.check("joined", &guest.ado(["join", token["join"].as_str().expect("one"), "-o", "json"]).json());
    one("tokenRevoked", &["token", "revoke", token["id"].as_str().expect("an id")]);
    one("identityRevoked", &["token", "revoke-identity", "ado://default/user/ann"]);
    one("pages", &["man", "--dir", "pages"]);
    schema.check("up", &guest.ado(["up", "-o", "json"]).json());
    schema.check("down", &guest.ado(["down", "-o", "json"]).json());
    schema.check("down", &guest.ado(["down", "-o", "json"]).json());
    for wrong in [
        &["status", "nothing"][..],
        &["status", "task-7k"],
        &["wait", "held", "--timeout", "1ms"],
        &["list", "--wrong"],
        &["run", "true", "--context", "nowhere"],
        &["cancel", "nothing"],
    ] {
        let ran = mesh.ado(wrong.iter().chain(&["-o", "json"]));
        let error: Value = serde_json::from_str(ran.stderr()).unwrap_or_else(|e| panic!("{e}: {}", ran.stderr()));
        schema.check("error", &error);
    }
}

/// A command line that says things from inside of a task.
fn inside(words: &[&str]) -> String {
    let ado = env!("CARGO_BIN_EXE_ado");
    words.iter().map(|words| format!("{ado} task {words} -o json")).collect::<Vec<_>>().join(" && ")
}
