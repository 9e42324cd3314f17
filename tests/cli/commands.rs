//! Steering and looking: what is promised, whatever the timing.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::promises::eventually;
use crate::support::TestEnv;

#[test]
fn a_paused_task_stands_still_until_it_is_resumed() {
    let env = TestEnv::new();
    let id = env.submit("i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i > ticks; sleep 0.01; done");
    let ticks = env.work().join("ticks");
    eventually("it did not come about", || ticks.exists());
    let paused = env.ado(["pause", &id]);
    paused.assert_code(0);
    assert_eq!(paused.stdout(), format!("{id}: paused\n"));
    let status = || env.ado(["status", &id, "-o", "json"]).json()["status"].clone();
    assert_eq!(status(), "paused", "it was seen before the command ended");
    let before = std::fs::read_to_string(&ticks).expect("ticks");
    // Round trips and processes take longer than a tick.
    assert_eq!(env.ado(["pause", &id]).stdout(), format!("{id}: already paused\n"));
    assert_eq!(std::fs::read_to_string(&ticks).expect("ticks"), before);
    let resumed = env.ado(["resume", &id, "-o", "json"]).json();
    let expected = json!([{ "taskId": resumed[0]["taskId"], "shortId": id, "status": "running", "unchanged": null }]);
    assert_eq!(resumed, expected);
    eventually("it did not come about", || {
        std::fs::read_to_string(&ticks).is_ok_and(|now| !now.is_empty() && now != before)
    });
    assert_eq!(env.ado(["resume", &id]).stdout(), format!("{id}: already running\n"));
    std::fs::write(env.work().join("stop"), "").expect("a file");
    env.ado(["wait", &id]).assert_code(0);
    for command in ["pause", "resume", "cancel"] {
        let late = env.ado([command, &id]);
        late.assert_code(0);
        assert_eq!(late.stdout(), format!("{id}: already completed\n"), "{command}");
    }
}

#[test]
fn what_waits_in_the_queue_is_paused_at_once_and_not_started() {
    let mesh = Mesh::start();
    let group = mesh.submit_group("later", &["true", "true"]);
    let paused = mesh.ado(["pause", &group, "-o", "json"]).json();
    let states: Vec<_> = paused.as_array().expect("one a task").iter().map(|task| &task["status"]).collect();
    assert_eq!(states, ["paused", "paused"]);
    let resumed = mesh.ado(["resume", &group]);
    assert!(resumed.stdout().lines().all(|line| line.ends_with(": resumed, queued")), "{}", resumed.stdout());
    let cancelled = mesh.ado(["cancel", &group]);
    assert!(cancelled.stdout().lines().all(|line| line.ends_with(": cancelled")), "{}", cancelled.stdout());
    mesh.ado(["wait", &group]).assert_code(130);
}

#[test]
fn cancelling_waits_for_the_end_and_force_does_not_ask() {
    let env = TestEnv::new();
    let stubborn = "trap '' TERM INT HUP; echo up; while :; do sleep 0.05; done";
    let mut running = env.start(["run", "--name", "stubborn", stubborn]);
    assert_eq!(running.line(), "up\n");
    let asked = env.ado(["cancel", "stubborn", "--timeout", "50ms"]);
    asked.assert_code(124);
    assert!(asked.stdout().ends_with(": cancelling\n"), "{}", asked.stdout());
    assert!(asked.stderr().contains("not cancelled within 50ms") && asked.stderr().contains("hint: ado status task-"));
    let killed = env.ado(["cancel", "stubborn", "--force"]);
    killed.assert_code(0);
    assert!(killed.stdout().ends_with(": cancelled\n"), "{}", killed.stdout());
    assert_eq!(running.end().0, Some(130));
}

#[test]
fn every_reference_is_tried() {
    let env = TestEnv::new();
    let id = env.submit("sleep 600");
    let ran = env.ado(["pause", "nothing", &id, "-o", "json"]);
    ran.assert_code(125);
    assert_eq!(ran.json()[0]["status"], "paused");
    let error: Value = serde_json::from_str(ran.stderr()).expect("one error");
    assert_eq!(error["error"]["kind"], "not_found");
    assert_eq!(env.ado(["cancel", &id, "--quiet"]).stdout(), "");
}

#[test]
fn waiting_tells_how_each_ended() {
    let mesh = Mesh::start();
    let work = mesh.env().work();
    let gate = work.join("gate");
    let held = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 3", gate.display());
    let group = mesh.submit_group("default", &["true", &held, "exit 4"]);
    let any = mesh.ado(["wait", "--any", &group]);
    assert!(any.stdout().lines().count() == 1 && !any.stdout().contains("code 3"), "{}", any.stdout());
    let late = mesh.ado(["wait", "--timeout", "100ms", &group]);
    late.assert_code(124);
    assert!(late.stderr().contains("within 100ms") && late.stderr().contains("hint: ado"), "{}", late.stderr());

    let mut waiting = mesh.start_command(["wait", &group, "-o", "json"]);
    let ended: Vec<Value> = (0..2).map(|_| serde_json::from_str(&waiting.line()).expect("a task")).collect();
    assert!(ended.iter().all(|task| task["group"]["index"] != 1), "{ended:?}");
    std::fs::write(gate, "").expect("a file");
    let last: Value = serde_json::from_str(&waiting.line()).expect("a task");
    assert_eq!((&last["status"], &last["result"]["exitCode"]), (&json!("failed"), &json!(3)));
    assert_eq!(waiting.end().0, Some(3), "the first by index, not by time");
    // The order of the references counts, and what is named twice is meant once.
    mesh.ado(["wait", "first", &group, "first"]).assert_code(3);
    assert_eq!(mesh.ado(["wait", "first", "first"]).stdout().lines().count(), 1);
    mesh.ado(["wait", "nothing"]).assert_code(125);
}

#[test]
fn detaching_ends_viewers_and_not_tasks() {
    let env = TestEnv::new();
    let mut running =
        env.start(["run", "--name", "long", "echo one; while [ ! -e gate ]; do sleep 0.02; done; echo two"]);
    assert_eq!(running.line(), "one\n");
    let mut waiting = env.start(["wait", "long"]);
    let detached = env.ado(["detach", "long", "-o", "json"]).json();
    assert!(detached["viewers"].as_u64() >= Some(1), "{detached}");
    let (code, rest, stderr) = running.end();
    assert_eq!((code, rest.as_str()), (Some(0), ""), "{stderr}");
    assert!(stderr.contains("ado attach task-"), "{stderr}");
    eventually("it did not come about", || env.ado(["detach", "-q"]).stdout().is_empty());
    std::fs::write(env.work().join("gate"), "").expect("a file");
    assert!(waiting.line().ends_with(": completed\n"), "whoever waits looks at no output and stays");
    assert_eq!(env.ado(["detach", "long"]).stdout(), "nobody watches long\n");
    env.ado(["detach", "nothing"]).assert_code(125);
}

#[test]
fn events_go_on_where_they_were_left() {
    let env = TestEnv::new();
    let first = env.submit("true");
    env.ado(["wait", &first]).assert_code(0);
    let all = env.ado(["events", "--from", "start", "-o", "json"]).json_lines();
    let kinds =
        |events: &[Value]| events.iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let cursors: Vec<_> = all.iter().map(|event| event["cursor"].as_u64().expect("a number")).collect();
    assert!(cursors.is_sorted_by(|a, b| a < b), "{cursors:?}");
    let of_task = env.ado(["events", "--task", &first, "--kind", "task.*", "-o", "json"]).json_lines();
    assert_eq!(kinds(&of_task), ["task.submitted", "task.assigned", "task.started", "task.ended"]);
    let last = env.ado(["events", "--tail", "1", "--kind", "task.s*,worker.*", "-o", "json"]).json_lines();
    assert_eq!(kinds(&last), ["task.started"], "the newest that fits, not the newest if it fits");
    let newest = env.ado(["events", "--tail", "2", "-o", "json"]).json_lines();
    assert_eq!(newest[..], all[all.len() - 2..]);
    let rest = env.ado(["events", "--from", &cursors[1].to_string(), "-o", "json"]).json_lines();
    assert_eq!(rest[..], all[2..]);

    // A controller that dies and comes back loses and repeats nothing.
    let mut following = env.start(["events", "--follow", "--kind", "task.submitted", "--from", "start", "-o", "json"]);
    let mut submitted = || {
        let event: Value = serde_json::from_str(&following.line()).expect("an event");
        event["taskId"].as_str().expect("a task").to_owned()
    };
    let id =
        |short: &str| env.ado(["status", short, "-o", "json"]).json()["taskId"].as_str().expect("an id").to_owned();
    assert_eq!(submitted(), id(&first));
    let controller = i32::try_from(env.ado(["up", "-o", "json"]).json()["controller"]["pid"].as_i64().expect("a pid"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(controller.expect("a pid")), Signal::SIGKILL).expect("it runs");
    let ids: Vec<_> = (0..2).map(|_| id(&env.submit("true"))).collect();
    assert_eq!([submitted(), submitted()], ids[..]);
    following.signal(Signal::SIGINT);
    assert_eq!(following.end(), (Some(0), String::new(), String::new()));
}

#[test]
fn lists_are_filtered_and_columns_are_chosen() {
    let mut mesh = Mesh::start();
    let group = mesh.submit_group("later", &["true", "exit 1"]);
    let named = mesh.submit(&["--name", "nightly", "--label", "gpu=yes", "exit 2"]);
    mesh.ado(["wait", "nightly"]).assert_code(2);
    let ids = |args: &[&str]| {
        let ran = mesh.ado(["list", "--ids"].iter().chain(args));
        ran.assert_code(0);
        ran.stdout().lines().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(ids(&["--state", "failed"]), std::slice::from_ref(&named));
    assert_eq!(ids(&["--label", "gpu=yes"]), std::slice::from_ref(&named));
    assert_eq!(ids(&["--name", "nightly", "--worker", "box"]), std::slice::from_ref(&named));
    assert_eq!(ids(&["--group", &group]).len(), 2);
    assert_eq!(ids(&["--pool", "later", "--state", "queued"]).len(), 2);
    assert_eq!(ids(&["--pool", "later", "--name", "nightly"]), [""; 0]);
    assert_eq!(ids(&["--since", "1h"]).len(), 4);
    assert_eq!(ids(&["-n", "1"]), std::slice::from_ref(&named));
    assert_eq!(mesh.ado(["list", "--ids", "--name", "nightly", "-o", "json"]).json(), json!([named]));
    let table = mesh.ado(["list", "--columns", "exit,name", "--no-headers", "--name", "nightly"]);
    assert_eq!(table.stdout(), "2  nightly\n");
    let wrong = mesh.ado(["list", "--columns", "exti"]);
    wrong.assert_code(125);
    assert!(wrong.stderr().contains("exit") && wrong.stderr().contains("command"), "{}", wrong.stderr());

    let why = |args: &[&str]| mesh.ado(["workers", "list", "-o", "json"].iter().chain(args)).json()[0].clone();
    let worker = why(&[]);
    assert_eq!(
        (&worker["name"], &worker["slots"], &worker["labels"]["gpu"]),
        (&json!("box"), &json!(4), &json!("yes"))
    );
    assert_eq!(worker["ineligible"], Value::Null);
    let unfit = why(&["--task", &ids(&["--group", &group])[0]]);
    assert!(unfit["ineligible"].as_str().is_some_and(|why| why.contains("later")), "{unfit}");
    mesh.stop_worker();
    let gone = mesh.ado(["workers"]);
    assert!(!gone.stdout().contains("ready"), "{}", gone.stdout());
}

#[test]
fn a_request_without_an_age_is_refused() {
    let env = TestEnv::new();
    let ran = env.ado(["run", "--idempotency-key", "0a0c7a8e-58a8-4d50-b5b3-7a3b1f0a9d11", "true"]);
    ran.assert_code(125);
    assert!(ran.stderr().contains("UUIDv7"), "{}", ran.stderr());
    let fresh = ran.stderr().split("--idempotency-key ").nth(1).expect("one to use").trim().to_owned();
    env.ado(["run", "--idempotency-key", &fresh, "true"]).assert_code(0);
}
