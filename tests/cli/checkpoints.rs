//! Folders of tasks that are kept, and there again.

use std::fs;
use std::path::{Path, PathBuf};

use crate::mesh::Mesh;
use crate::promises::eventually;
use crate::support::TestEnv;

/// Waits at a gate that the test opens.
fn gate(path: &Path) -> String {
    format!("while [ ! -e {} ]; do sleep 0.05; done", path.display())
}

/// Blobs that the controller keeps.
fn blobs(env: &TestEnv) -> Vec<PathBuf> {
    let folder = env.home().join("serve/controller/blobs");
    let tasks = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    tasks.flat_map(|task| fs::read_dir(task).expect("a task's")).map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn a_killed_workers_task_goes_on_with_its_folder() {
    let mut mesh = Mesh::start();
    let never = mesh.env().work().join("never");
    let task = format!(
        "if [ -e notes ]; then cat notes; echo \"from $ADO_CHECKPOINT\"; exit 0; fi; \
         echo kept >notes; chmod 640 notes; ado task checkpoint --workspace --data '{{\"page\":7}}'; \
         echo lost >notes; echo made; {}",
        gate(&never)
    );
    mesh.submit(&["--name", "pages", &task]);
    let mut watched = mesh.start_command(["attach", "pages", "--from", "start"]);
    assert_eq!(watched.line(), "made\n");
    let status = mesh.ado(["status", "pages"]);
    assert!(status.stdout().contains("workspace  1 file, 5 bytes"), "{}", status.stdout());
    mesh.kill_worker();
    // Nothing of it is left where it ran.
    fs::remove_dir_all(mesh.env().home().join("serve/worker/tasks")).expect("its folders");
    mesh.start_worker();
    assert_eq!(watched.line(), "kept\n");
    assert_eq!(watched.line(), "from {\"page\":7}\n");
    assert_eq!(watched.end().0, Some(0));
    let survived = mesh.ado(["logs", "pages", "--final"]);
    assert_eq!(survived.stdout(), "kept\nfrom {\"page\":7}\n");
    let events = mesh.ado(["logs", "pages", "--output", "json"]).json_lines();
    let made = events.iter().find(|event| event["type"] == "checkpoint").expect("a checkpoint");
    assert_eq!(made["workspace"], serde_json::json!({ "files": 1, "bytes": 5 }));
}

/// The worker dies in the middle of sending the second one: it counts for nothing, the first one does.
#[test]
fn a_checkpoint_that_did_not_come_through_does_not_count() {
    let mut mesh = Mesh::start();
    let gate_path = mesh.env().work().join("gate");
    let task = format!(
        "if [ -e state ]; then cat state; ls; echo \"from $ADO_CHECKPOINT\"; exit 0; fi; \
         echo one >state; ado task checkpoint --workspace --data 1; echo made; {}; \
         echo two >state; head -c 120000000 /dev/urandom >large; ado task checkpoint --data 2; echo never",
        gate(&gate_path)
    );
    mesh.submit(&["--name", "large", &task]);
    let mut watched = mesh.start_command(["attach", "large", "--from", "start"]);
    assert_eq!(watched.line(), "made\n");
    let first = blobs(mesh.env()).len();
    assert!(first >= 2, "a pack and a manifest");
    fs::write(&gate_path, "").expect("a file");
    eventually("a part of the second one is there", || blobs(mesh.env()).len() > first);
    mesh.kill_worker();
    let there = blobs(mesh.env()).len();
    assert!(there < first + 25, "{there} blobs: it was too quick to be caught in the middle");
    mesh.start_worker();
    for expected in ["one\n", "state\n", "from 1\n"] {
        assert_eq!(watched.line(), expected);
    }
    assert_eq!(watched.end().0, Some(0));
}

#[test]
fn a_task_that_asks_is_kept_from_time_to_time() {
    let env = TestEnv::new();
    let script = "if [ -e seen ]; then cat seen; test $(cat seen) -gt 1; exit; fi; \
                  i=0; while [ $ADO_ATTEMPT = 1 ] && [ $i -lt 30 ]; do i=$((i + 1)); echo $i >seen; sleep 0.1; done; exit 3";
    let run = ["run", "--checkpoint-workspace", "--checkpoint-interval", "1s", "--retries", "1", script];
    let ran = env.ado(run);
    ran.assert_code(0);
    let seen: u32 = ran.stdout().trim().parse().expect("a number");
    assert!((2..=30).contains(&seen), "{seen}");
    // It ran in a folder of its own, not where the caller is.
    assert!(!env.work().join("seen").exists());

    let elsewhere = env.ado(["run", "--checkpoint-workspace", "--cwd", "/tmp", "true"]);
    elsewhere.assert_code(125);
    assert!(elsewhere.stderr().contains("cannot be used with"), "{}", elsewhere.stderr());
    let alone = env.ado(["run", "--checkpoint-interval", "1s", "true"]);
    alone.assert_code(125);
    assert!(alone.stderr().contains("--checkpoint-workspace"), "{}", alone.stderr());
    let often = env.ado(["run", "--checkpoint-workspace", "--checkpoint-interval", "10ms", "true"]);
    often.assert_code(125);
    assert!(often.stderr().contains("every 1000 ms at most, not every 10 ms"), "{}", often.stderr());
    let not_its_own = env.ado(["run", "ado task checkpoint --workspace"]);
    not_its_own.assert_code(125);
    assert!(
        not_its_own.stderr().contains("only a folder that was made for a task is kept"),
        "{}",
        not_its_own.stderr()
    );
}
