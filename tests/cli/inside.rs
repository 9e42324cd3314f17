//! What tasks say about themselves, through the real binary: progress, messages, points to go on from.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::promises::eventually;
use crate::support::{Ran, TestEnv};
use crate::workers::Mesh;

/// Works from its checkpoint on; the first attempt makes one, does more, and ends as `END` says.
const WORK: &str = r#"if test -n "${ADO_CHECKPOINT+x}"; then echo "goes on from $ADO_CHECKPOINT"; exit 0; fi
    echo kept; ado task checkpoint --data '{"page":7}'; echo lost; END"#;

fn of_type<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

#[test]
fn progress_shows_in_status_and_events() {
    let env = TestEnv::new();
    let id = env.submit(
        "ado task progress 40 'compiling it' && ado task log 'the cache is cold' || exit 9
         until test -e go; do sleep 0.02; done
         ado task progress 80% -q; ado task progress linking; printf '{\n \"page\": 7\n}' | ado task checkpoint --data -",
    );
    let status = || env.ado(["status", &id, "-o", "json"]).json();
    eventually("progress shows", || status()["progress"] == 40);
    assert_eq!(status()["currentStep"], "compiling it");
    assert_eq!((&status()["lastCheckpoint"], &status()["checkpointData"]), (&Value::Null, &json!({})));
    fs::write(env.work().join("go"), "").unwrap();
    env.ado(["attach", &id]).assert_code(0);
    let events = env.ado(["logs", &id, "-o", "json"]).json_lines();
    let progress = of_type(&events, "progress");
    assert_eq!((&progress[0]["percent"], &progress[0]["message"]), (&json!(40), &json!("compiling it")));
    let last = progress[progress.len() - 1];
    assert_eq!((&last["percent"], &last["message"]), (&json!(80), &json!("linking")));
    assert_eq!(of_type(&events, "note")[0]["message"], "the cache is cold");
    let made = of_type(&events, "checkpoint")[0];
    assert_eq!(made["data"], json!({ "page": 7 }));
    assert_eq!((&status()["lastCheckpoint"], &status()["checkpointData"]), (&made["checkpointId"], &made["data"]));
    assert_eq!(of_type(&events, "output"), [] as [&Value; 0], "its output is its own");
}

#[test]
fn an_attempt_that_failed_is_gone_on_from() {
    let env = TestEnv::new();
    let ran = env.ado(["run", "--name", "pages", "--retries", "1", &WORK.replace("END", "exit 1")]);
    ran.assert_code(0);
    assert_eq!(ran.stdout(), "kept\nlost\ngoes on from {\"page\":7}\n");
    let survived = env.ado(["logs", "pages", "--final"]);
    survived.assert_code(0);
    assert_eq!(survived.stdout(), "kept\ngoes on from {\"page\":7}\n");
    let events = env.ado(["logs", "pages", "--final", "-o", "json"]).json_lines();
    assert_eq!((of_type(&events, "checkpoint").len(), of_type(&events, "exited").len()), (1, 1), "{events:?}");

    // Without a checkpoint nothing survives of the first attempt.
    let anew = r#"echo "attempt $ADO_ATTEMPT ${ADO_CHECKPOINT-anew}"; test $ADO_ATTEMPT = 2"#;
    env.ado(["run", "--name", "anew", "--retries", "1", anew]).assert_code(0);
    assert_eq!(env.ado(["logs", "anew"]).stdout(), "attempt 1 anew\nattempt 2 anew\n");
    assert_eq!(env.ado(["logs", "anew", "--final"]).stdout(), "attempt 2 anew\n");
}

#[test]
fn a_worker_that_was_killed_is_gone_on_from() {
    let mesh = Mesh::start("checkpoints");
    let one = mesh.worker("one", &[]);
    mesh.submit("pages", &WORK.replace("END", "sleep 600"));
    eventually("all of it is there", || mesh.log("pages").iter().any(|event| event["data"] == "lost\n"));
    one.signal(Signal::SIGKILL);
    let _two = mesh.worker("two", &[]);
    let (code, shown) = mesh.output("pages");
    assert_eq!((code, shown.as_str()), (Some(0), "kept\nlost\ngoes on from {\"page\":7}\n"));
    assert_eq!(mesh.told("pages", "assigned", "worker"), ["one", "two"]);
    assert_eq!(mesh.ado(&["logs", "pages", "--final"]).stdout(), "kept\ngoes on from {\"page\":7}\n");
}

#[test]
fn outside_of_a_task_it_says_what_it_is_for() {
    let env = TestEnv::new();
    for args in [&["task", "progress", "40"][..], &["task", "checkpoint"], &["task", "log", "x"]] {
        let ran = env.ado(args);
        ran.assert_code(125);
        assert_eq!(ran.stdout(), "");
        assert!(ran.stderr().contains("inside a task") && ran.stderr().contains("hint: ado run '"), "{}", ran.stderr());
    }
    let over = Ran::of(env.command(["task", "log", "x", "-o", "json"]).env("ADO_SOCKET", "/no/such/socket"));
    over.assert_code(125);
    let error: Value = serde_json::from_str(over.stderr()).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("/no/such/socket"), "{error}");
    assert!(!env.home().join("controller.log").exists(), "it starts nothing");
}

#[test]
fn what_is_refused_says_why() {
    let env = TestEnv::new();
    let ran = env.ado([
        "run",
        "ado task progress 101; echo $?; ado task checkpoint --data '{page: 7}'; echo $?; ado task log ''; echo $?
         head -c 70000 /dev/zero | tr '\\0' 7 | ado task checkpoint --data -; echo $?; ado task progress 7 -o json",
    ]);
    ran.assert_code(0);
    let printed = "125\n125\n125\n125\n{\"message\":null,\"percent\":7,\"type\":\"progress\"}\n";
    assert_eq!(ran.stdout(), printed, "{}", ran.stderr());
    for part in ["`101` is no whole percentage", "is no JSON", "message is empty", "the checkpoint's data"] {
        assert!(ran.stderr().contains(part), "{part}: {}", ran.stderr());
    }
}

#[test]
fn a_worker_that_is_not_wanted_any_more_says_so_and_leaves_nothing() {
    let mesh = Mesh::start("revoked");
    let mut worker = mesh.worker("worker", &[]);
    mesh.submit("long", "echo on; sleep 600");
    eventually("it runs", || !mesh.agents().is_empty());
    let id = mesh.told("long", "assigned", "workerId")[0].as_str().expect("its id").to_owned();
    mesh.ado(&["token", "revoke-identity", &format!("ado://default/worker/{id}")]).assert_code(0);
    assert_eq!(worker.end().code(), Some(125));
    assert_eq!(mesh.agents(), [] as [i32; 0]);
    let log = fs::read_to_string(&worker.log).unwrap();
    assert!(log.contains("error: no controller takes this worker any more: ") && log.contains("revoked"), "{log}");
    assert!(log.contains("hint: ado worker --join <join string>"), "{log}");
}
