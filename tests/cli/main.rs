//! The command line as people use it: the real binary, its real background processes, nothing else on the machine.

mod agents;
mod bench;
mod cached;
mod checkpoints;
mod commands;
mod completions;
mod controllers;
mod drain;
mod failures;
mod groups;
mod inside;
mod mesh;
#[path = "../support/metrics.rs"]
mod metrics_page;
#[path = "../support/processes.rs"]
mod processes;
mod promises;
mod redis;
mod remote;
mod retention;
mod roaming;
mod schema;
mod secrets;
#[path = "../support/servers/mod.rs"]
mod servers;
mod services;
mod snapshots;
mod support;
mod terminal;
mod top;
mod tour;
mod websocket;
mod workers;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::process::Stdio;
use support::{Running, TestEnv};

#[test]
fn a_bare_machine_runs_a_task() {
    let env = TestEnv::new();
    let ran = env.ado(["run", "echo hello; echo oops >&2; pwd"]);
    ran.assert_code(0);
    let here = env.work().canonicalize().unwrap();
    assert_eq!(ran.stdout(), format!("hello\n{}\n", here.display()));
    assert_eq!(ran.stderr(), "oops\n");
}

#[test]
fn who_takes_more_memory_than_it_may_is_killed_and_told_so() {
    if !workers::can_limit_memory() {
        return;
    }
    let env = TestEnv::new();
    let ran = env.ado(["run", "--name", "hog", "--memory", "64Mi", "echo begun; tail /dev/zero"]);
    ran.assert_code(137);
    assert_eq!(ran.stdout(), "begun\n");
    assert!(ran.stderr().contains("killed: it used more than its 64 MiB of memory"), "{}", ran.stderr());
    let status = env.ado(["status", "hog"]);
    assert!(status.stdout().contains("submit it with a larger `--memory`"), "{}", status.stdout());
    let json = env.ado(["status", "hog", "--output", "json"]);
    assert!(json.stdout().contains("\"outOfMemory\":67108864"), "{}", json.stdout());
    env.ado(["run", "--memory", "64Mi", "--cpu", "0.5", "--pids", "20", "echo enough"]).assert_code(0);
    let large = env.ado(["run", "--detach", "--memory", "900Ti", "true"]);
    large.assert_code(0);
    assert!(large.stderr().contains("no worker can take it now"), "{}", large.stderr());
}

#[test]
fn exit_codes_are_the_tasks_own() {
    let env = TestEnv::new();
    env.ado(["run", "exit 3"]).assert_code(3);
    env.ado(["run", "kill -9 $$"]).assert_code(137);
    env.ado(["run", "--", "sh", "-c", "exit 41"]).assert_code(41);
    let slow = env.ado(["run", "--time-limit", "300ms", "echo begun; sleep 600"]);
    slow.assert_code(124);
    assert_eq!(slow.stdout(), "begun\n");
    assert!(slow.stderr().contains("timed out: ran for 300ms"), "{}", slow.stderr());
    let missing = env.ado(["run", "--", "no-such-program"]);
    missing.assert_code(125);
    assert!(missing.stderr().contains("no-such-program"), "{}", missing.stderr());
}

#[test]
fn pipes_get_every_byte() {
    let env = TestEnv::new();
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(env.work().join("data"), &bytes).unwrap();
    let ran = env.ado(["run", "--", "cat", "data"]);
    ran.assert_code(0);
    assert!(ran.bytes() == bytes, "{} bytes came of {}", ran.bytes().len(), bytes.len());

    let events = env.ado(["run", "-o", "json", r"printf '\377\000ok'"]).json_lines();
    let output: Vec<_> = events.iter().filter(|event| event["type"] == "output").collect();
    assert_eq!(output[0]["dataBase64"], "/wBvaw==", "{events:?}");
}

#[test]
fn events_have_the_names_of_the_product() {
    let env = TestEnv::new();
    let ran = env.ado(["run", "-o", "json", "echo hi; exit 2"]);
    ran.assert_code(2);
    let events = ran.json_lines();
    let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["submitted", "assigned", "started", "output", "exited", "failed"]);
    let offsets: Vec<_> = events.iter().map(|event| event["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
    assert_eq!(events[2]["workerId"], events[1]["workerId"]);
    assert_eq!((&events[3]["stream"], &events[3]["data"]), (&json!("stdout"), &json!("hi\n")));
    assert!(events.iter().all(|event| event["taskId"].is_string() && event["taskId"] == events[0]["taskId"]));
    assert!(events[5]["error"].is_string());
    assert_eq!(events[5]["result"], json!({ "outcome": "failed", "exitCode": 2 }));
}

#[test]
fn attach_continues_at_an_offset() {
    let env = TestEnv::new();
    let id = env.submit("for i in 1 2 3; do echo $i; sleep 0.05; done; exit 7");
    let whole = env.ado(["attach", &id]);
    whole.assert_code(7);
    assert_eq!(whole.stdout(), "1\n2\n3\n");
    let events = env.ado(["logs", "-o", "json", &id]).json_lines();
    let second = events.iter().find(|event| event["data"] == "2\n").expect("lines written apart are records apart");
    let from = second["offset"].to_string();
    assert_eq!(env.ado(["attach", &id, "--from", &from]).stdout(), "2\n3\n");
    assert_eq!(env.ado(["logs", &id, "--tail", "1"]).stdout(), "3\n");
    assert_eq!(env.ado(["logs", &id, "--since", "1h", "--stream", "stderr"]).stdout(), "");
    env.ado(["logs", &id]).assert_code(0);
}

#[test]
fn a_signal_detaches_and_says_how_to_continue() {
    let env = TestEnv::new();
    let gate = env.work().join("gate");
    let mut running = env.start(["run", "echo one; while [ ! -e gate ]; do sleep 0.02; done; echo two"]);
    assert_eq!(running.line(), "one\n");
    running.signal(Signal::SIGINT);
    let (code, rest, stderr) = running.end();
    assert_eq!((code, rest.as_str()), (Some(0), ""));
    let command = stderr.lines().last().unwrap().trim().strip_prefix("ado ").expect(&stderr).to_owned();
    assert!(command.starts_with("attach task-") && command.contains(" --from "), "{command}");
    std::fs::write(gate, "").unwrap();
    let continued = env.ado(command.split(' '));
    continued.assert_code(0);
    assert_eq!(continued.stdout(), "two\n");
}

#[test]
fn ctrl_c_cancels_when_asked_to() {
    let env = TestEnv::new();
    let mut running = env.start(["run", "--on-interrupt", "cancel", "echo one; sleep 600"]);
    assert_eq!(running.line(), "one\n");
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().0, Some(130));
}

#[test]
fn a_reader_that_has_enough_does_not_stop_the_task() {
    let env = TestEnv::new();
    let mut running = env.start(["run", "--name", "much", "yes | head -n 500000; echo end"]);
    assert_eq!(running.line(), "y\n");
    let (status, stderr) = running.stop_reading();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    let rest = env.ado(["attach", "much", "--tail", "1"]);
    rest.assert_code(0);
    assert!(rest.stdout().ends_with("end\n"));
}

#[test]
fn lists_and_status_are_for_programs_too() {
    let env = TestEnv::new();
    let first = env.submit("exit 0");
    env.ado(["attach", &first]).assert_code(0);
    let second = env.submit("exit 1");
    env.ado(["attach", &second]).assert_code(1);
    let list = env.ado(["list", "--output", "json"]).json();
    let rows: Vec<_> = list.as_array().unwrap().iter().map(|row| (&row["shortId"], &row["status"])).collect();
    assert_eq!(rows, [(&json!(second), &json!("failed")), (&json!(first), &json!("completed"))]);
    let failed = env.ado(["ls", "--state", "failed", "-o", "json"]).json();
    assert_eq!(failed.as_array().unwrap().len(), 1);
    assert_eq!(env.ado(["list", "-n", "1"]).stdout().lines().count(), 2);

    let status = env.ado(["status", &second, "-o", "json"]).json();
    assert_eq!(status["result"], json!({ "outcome": "failed", "exitCode": 1 }));
    for key in ["taskId", "workerId", "createdAt", "startedAt", "completedAt"] {
        assert!(status[key].is_string(), "{key}: {status}");
    }
    let (progress, step) = (status["progress"].is_number(), status["currentStep"].is_string());
    let checkpoint = (status.get("lastCheckpoint"), &status["checkpointData"]);
    assert!(progress && step && checkpoint == (Some(&Value::Null), &json!({})), "{status}");
}

#[test]
fn references_that_mean_nothing_or_too_much() {
    let env = TestEnv::new();
    env.submit("true");
    let unknown = env.ado(["status", "task-zzzzzzzzzz"]);
    unknown.assert_code(125);
    assert!(unknown.stderr().starts_with("error: ") && unknown.stderr().contains("task-zzzzzzzzzz"));
    let short = env.ado(["status", "task-7k"]);
    short.assert_code(125);
    assert!(short.stderr().contains("too short"), "{}", short.stderr());

    let twins = [0, 1].map(|_| env.ado(["run", "--detach", "--name", "twin", "true"]).stdout().trim().to_owned());
    let both = env.ado(["attach", "twin"]);
    both.assert_code(125);
    assert!(twins.iter().all(|id| both.stderr().contains(id.as_str())), "{}", both.stderr());

    let json = env.ado(["status", "task-zzzzzzzzzz", "-o", "json"]);
    json.assert_code(125);
    assert_eq!(json.stdout(), "");
    let error: Value = serde_json::from_str(json.stderr()).unwrap();
    assert_eq!((&error["type"], &error["error"]["kind"]), (&json!("error"), &json!("not_found")));
}

#[test]
fn cancelling_ends_what_runs_and_says_when_there_is_nothing_to_end() {
    let env = TestEnv::new();
    let mut running = env.start(["run", "--name", "long", "echo one; sleep 600"]);
    assert_eq!(running.line(), "one\n");
    env.ado(["cancel", "long"]).assert_code(0);
    assert_eq!(running.end().0, Some(130));
    let again = env.ado(["cancel", "long"]);
    again.assert_code(0);
    assert!(again.stdout().contains("already cancelled"), "{}", again.stdout());
}

#[test]
fn the_same_key_runs_once() {
    let env = TestEnv::new();
    env.submit("true");
    // A UUIDv7 of now: the first is the clock, the rest is anything.
    let now = env.ado(["list", "-o", "json"]).json()[0]["taskId"].as_str().unwrap().to_owned();
    let key = format!("{}7abc-8def-0123456789ab", &now[..14]);
    let run = || env.ado(["run", "--detach", "--idempotency-key", &key, "echo once >> ran"]);
    let (first, second) = (run(), run());
    first.assert_code(0);
    second.assert_code(0);
    assert_eq!(first.stdout(), second.stdout());
    env.ado(["attach", first.stdout().trim()]).assert_code(0);
    assert_eq!(std::fs::read_to_string(env.work().join("ran")).unwrap(), "once\n");
}

#[test]
fn killed_processes_come_back_and_nothing_is_lost() {
    let env = TestEnv::new();
    let mut running = env.start(["run", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.3; done"]);
    assert_eq!(running.line(), "1\n");
    let up = env.ado(["up", "-o", "json"]).json();
    let controller = i32::try_from(up["controller"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(controller), Signal::SIGKILL).unwrap();
    let (code, rest, stderr) = running.end();
    assert_eq!((code, rest.as_str()), (Some(0), "2\n3\n4\n5\n6\n"), "{stderr}");
    let again = env.ado(["up", "-o", "json"]).json();
    assert_eq!(again["controller"]["quic"], up["controller"]["quic"], "it keeps its port");
    assert_ne!(again["controller"]["pid"], up["controller"]["pid"]);
}

#[test]
fn viewers_leave_when_nobody_is_to_write_more() {
    let env = TestEnv::new();
    let mut running = env.start(["run", "echo one; sleep 600"]);
    assert_eq!(running.line(), "one\n");
    env.ado(["down"]).assert_code(0);
    let (code, _, stderr) = running.end();
    assert_eq!(code, Some(125), "{stderr}");
    assert!(stderr.contains("`ado down`") && stderr.contains("hint: ado attach task-"), "{stderr}");
}

#[test]
fn without_its_terminal_nohup_goes_on() {
    let env = TestEnv::new();
    env.ado(["up"]).assert_code(0);
    let direct = env.command(["run", "echo one; while [ ! -e gate ]; do sleep 0.02; done; echo two"]);
    let mut nohup = std::process::Command::new("/bin/sh");
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(direct.get_program()).args(direct.get_args());
    nohup.env_clear().envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    nohup.current_dir(env.work()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(nohup);
    assert_eq!(running.line(), "one\n");
    running.signal(Signal::SIGHUP);
    std::fs::write(env.work().join("gate"), "").unwrap();
    assert_eq!(running.end(), (Some(0), "two\n".into(), String::new()));
}

#[test]
fn down_stays_down_until_something_is_wanted() {
    let env = TestEnv::new();
    assert_eq!(env.ado(["down"]).stdout(), "nothing was running\n");
    env.ado(["up"]).assert_code(0);
    assert_eq!(env.ado(["down", "-o", "json"]).json().as_array().unwrap().len(), 2);
    assert!(env.home().join("down").exists());
    env.ado(["list"]).assert_code(0);
    assert!(!env.home().join("down").exists());
}

#[test]
fn the_processes_of_a_home_that_was_removed_end() {
    let env = TestEnv::new();
    let up = env.ado(["up", "-o", "json"]).json();
    let pids = ["controller", "worker"].map(|role| up[role]["pid"].as_i64().unwrap());
    // What is written there meanwhile may make the first try fail.
    promises::eventually("it is removed", || {
        std::fs::read_dir(env.home()).unwrap().flatten().all(|entry| {
            let path = entry.path();
            if path.is_dir() { std::fs::remove_dir_all(path).is_ok() } else { std::fs::remove_file(path).is_ok() }
        })
    });
    let lives = |pid: &i64| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    promises::eventually("nobody keeps it alive", || !pids.iter().any(lives));
}

#[test]
fn what_cannot_start_is_told_with_its_own_words() {
    let env = TestEnv::new();
    std::fs::create_dir_all(env.home().join("controller")).unwrap();
    std::fs::create_dir(env.home().join("controller/store.sqlite3")).unwrap();
    let ran = env.ado(["list"]);
    ran.assert_code(125);
    assert!(ran.stderr().contains("the local controller ended at once"), "{}", ran.stderr());
    assert!(ran.stderr().contains("store"), "{}", ran.stderr());
}

#[test]
fn the_configuration_is_checked_before_anything_happens() {
    let env = TestEnv::new();
    let file = env.work().join("ado.yaml");
    std::fs::write(&file, "distributed:\n  failover:\n    maxRetris: 3\n").unwrap();
    let ran = env.ado(["run", "true", "--config", file.to_str().unwrap()]);
    ran.assert_code(125);
    assert!(ran.stderr().contains("ado.yaml:3") && ran.stderr().contains("maxRetries"), "{}", ran.stderr());
    let remote = env.ado(["run", "true", "--remote"]);
    remote.assert_code(125);
    assert!(remote.stderr().contains("distributed.controller.url"), "{}", remote.stderr());
    assert!(!env.home().join("controller").exists(), "nothing was started");
    env.ado(["run"]).assert_code(125);
    env.ado(["--help"]).assert_code(0);
}
