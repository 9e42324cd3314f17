//! What a machine has seen of a mesh, when the mesh does not answer.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::remote::{controller, token};
use crate::support::{Ran, Service, TestEnv};

/// Files of logs that a machine keeps.
fn logs(env: &TestEnv) -> Vec<PathBuf> {
    let Ok(meshes) = fs::read_dir(env.home().join("cache")) else { return Vec::new() };
    let entries = |path: PathBuf| fs::read_dir(path).expect("a folder").flatten().map(|entry| entry.path());
    let files = meshes.flatten().flat_map(|mesh| entries(mesh.path()));
    files.filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect()
}

fn error(ran: &Ran) -> Value {
    ran.assert_code(125);
    serde_json::from_str(ran.stderr()).unwrap_or_else(|error| panic!("{error}: {}", ran.stderr()))
}

#[test]
fn known_tasks_are_shown_while_their_mesh_is_away() {
    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let (controller, said) = controller(&server);
    laptop.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    let join = token(&laptop, &["--role", "worker"]);
    let worker = Service::start(&builder, ["worker", "--join", &join, "--name", "builder", "--log-level", "error"]);
    laptop.ado(["run", "--remote", "--name", "seen", "echo one; sleep 0.05; echo two; exit 3"]).assert_code(3);
    let never = laptop.ado(["run", "--remote", "--detach", "echo never shown"]).stdout().trim().to_owned();
    let attached = laptop.ado(["--remote", "attach", "seen", "--tail", "1", "-q"]);
    attached.assert_code(3);
    let live = laptop.ado(["--remote", "list", "-o", "json"]).json();
    worker.stop();
    controller.stop();

    let list = laptop.ado(["--remote", "list"]);
    list.assert_code(0);
    assert!(list.stdout().contains("[seen] echo one") && list.stdout().contains("builder"), "{}", list.stdout());
    let said = list.stderr();
    assert!(said.starts_with("remote: not connected (") && said.lines().count() == 1, "{said}");
    assert!(said.contains("); from what this machine has seen, ") && said.ends_with("s ago\n"), "{said}");

    // The same object as before, and two fields more.
    let mut tasks = laptop.ado(["--remote", "list", "-o", "json"]).json();
    for task in tasks.as_array_mut().unwrap() {
        let task = task.as_object_mut().unwrap();
        assert_eq!(task.remove("cached"), Some(json!(true)));
        assert!(task.remove("cachedAt").unwrap().is_string());
    }
    assert_eq!(tasks, live);

    let status = laptop.ado(["--remote", "status", "seen", "-o", "json"]);
    status.assert_code(0);
    assert_eq!((&status.json()["status"], &status.json()["cached"]), (&json!("failed"), &json!(true)));
    assert_eq!(status.stderr(), "");

    let log = laptop.ado(["--remote", "logs", "seen"]);
    log.assert_code(0);
    assert_eq!(log.stdout(), "one\ntwo\n");
    let events = laptop.ado(["--remote", "logs", "seen", "-o", "json"]).json_lines();
    let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let expected = ["cached", "submitted", "assigned", "started", "output", "output", "exited", "failed"];
    assert_eq!(types, expected);
    assert!(events[0]["cachedAt"].is_string() && events[0]["reason"].is_string());
    assert!(events.iter().all(|event| event["taskId"] == live[1]["taskId"]));

    // What is not known is an error that names the connection first.
    let unknown = error(&laptop.ado(["--remote", "status", "task-zzzzzzzzzz", "-o", "json"]));
    assert_eq!(unknown["error"]["kind"], "network");
    let message = unknown["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("remote: not connected (") && message.contains("`task-zzzzzzzzzz` is not"),
        "{message}"
    );
    let nothing = laptop.ado(["--remote", "logs", &never, "--cached"]);
    nothing.assert_code(125);
    assert!(nothing.stderr().contains(&format!("nothing of the log of {never}")), "{}", nothing.stderr());
}

#[test]
fn a_log_that_is_known_in_part_says_which_part_is_not() {
    let env = TestEnv::new();
    let mut follow = env.start([
        "run",
        "--name",
        "long",
        "echo one; sleep 0.1; echo two; while [ ! -e gate ]; do sleep 0.02; done; echo three",
    ]);
    assert_eq!((follow.line(), follow.line()), ("one\n".into(), "two\n".into()));
    // What was received is written soon, and stays when the viewer is killed.
    while logs(&env).is_empty() {
        std::thread::yield_now();
    }
    follow.signal(nix::sys::signal::Signal::SIGKILL);
    let _ = follow.end();
    fs::write(env.work().join("gate"), "").unwrap();
    let mut state = Value::Null;
    while state != "completed" {
        state = env.ado(["status", "long", "-o", "json"]).json()["status"].clone();
    }
    let text = env.ado(["logs", "long", "--cached"]);
    text.assert_code(0);
    assert!("one\ntwo\n".starts_with(text.stdout()) && !text.stdout().is_empty(), "{}", text.stdout());
    assert!(text.stderr().starts_with("local: from what this machine has seen, "), "{}", text.stderr());
    assert!(text.stderr().trim_end().ends_with("are not known here"), "{}", text.stderr());
    let events = env.ado(["logs", "long", "--cached", "-o", "json"]).json_lines();
    let (first, last) = (&events[0], events.last().unwrap());
    assert_eq!((&first["type"], &first["reason"], &last["type"]), (&json!("cached"), &Value::Null, &json!("missing")));
    let known: Vec<_> = events[1..events.len() - 1].iter().map(|event| event["offset"].as_u64().unwrap()).collect();
    assert_eq!(known, (0..last["from"].as_u64().unwrap()).collect::<Vec<_>>());

    // A part of the file is lost: what is left is shown, and the rest is not claimed.
    let path = &logs(&env)[0];
    let length = fs::metadata(path).unwrap().len();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length - 1).unwrap();
    let cut = env.ado(["logs", "long", "--cached", "-o", "json"]);
    assert!(cut.bytes().len() < 2000);
    // Reading it once more makes it whole.
    assert_eq!(env.ado(["logs", "long"]).stdout(), "one\ntwo\nthree\n");
    let whole = env.ado(["logs", "long", "--cached"]);
    assert_eq!(whole.stdout(), "one\ntwo\nthree\n");
    assert_eq!(whole.stderr().lines().count(), 1, "{}", whole.stderr());
}

#[test]
fn a_record_of_which_a_part_was_shown_is_kept_whole() {
    let env = TestEnv::new();
    let id = env.submit(r"printf 'a\nb\n'");
    env.ado(["attach", &id, "--tail", "1", "-q"]).assert_code(0);
    let cached = env.ado(["logs", &id, "--cached"]);
    assert_eq!(cached.stdout(), "a\nb\n");
    let tail = env.ado(["logs", &id, "--cached", "--tail", "1"]);
    assert_eq!(tail.stdout(), "b\n");
    let missing = |ran: &Ran| ran.stderr().contains("not known here");
    assert!(!missing(&tail), "{}", tail.stderr());
}

#[test]
fn without_a_cache_it_says_so() {
    let env = TestEnv::new();
    let nobody = env.ado(["list", "--cached"]);
    nobody.assert_code(125);
    assert!(nobody.stderr().contains("nothing is remembered of `local`"), "{}", nobody.stderr());
    let off = |args: &[&str]| Ran::of(env.command(args).env("ADO_CACHE", "off"));
    off(&["run", "echo hi"]).assert_code(0);
    assert!(!env.home().join("cache").exists());
    let refused = off(&["list", "--cached"]);
    refused.assert_code(125);
    assert!(refused.stderr().contains("`cache.enabled` is false"), "{}", refused.stderr());
    let empty = env.ado(["list", "--cached"]);
    empty.assert_code(125);
    assert!(empty.stderr().contains("this machine has seen no tasks of it"), "{}", empty.stderr());
    env.ado(["list"]).assert_code(0);
    assert_eq!(env.ado(["list", "--cached", "--quiet"]).stderr(), "");
    env.ado(["logs", "x", "--cached", "--follow"]).assert_code(125);

    // A disk that takes nothing is nobody's trouble.
    fs::remove_dir_all(env.home().join("cache")).unwrap();
    fs::write(env.home().join("cache"), "").unwrap();
    let ran = env.ado(["run", "echo still here"]);
    ran.assert_code(0);
    assert_eq!((ran.stdout(), ran.stderr()), ("still here\n", ""));
}
