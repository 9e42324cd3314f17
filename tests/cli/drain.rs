//! Workers that are cordoned, drained, and let in again.

use crate::mesh::Mesh;
use crate::promises::eventually;

/// What is listed of the only worker.
fn listed(mesh: &Mesh, key: &str) -> String {
    let workers = mesh.ado(["workers", "list", "-o", "json"]).json();
    workers[0][key].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_cordoned_worker_gets_no_work_until_that_is_taken_back() {
    let mesh = Mesh::start();
    let cordon = mesh.ado(["workers", "cordon", "box"]);
    cordon.assert_code(0);
    assert_eq!(cordon.stdout(), "box gets no more tasks; it has 0 tasks\n");
    assert_eq!((listed(&mesh, "state"), listed(&mesh, "desiredBy")), ("cordoned".into(), "admin/admin".into()));
    let again = mesh.ado(["workers", "cordon", "box"]);
    again.assert_code(0);
    assert_eq!(again.stdout(), "box: cordoned already by admin/admin\n");
    mesh.submit(&["--name", "waits", "true"]);
    let status = mesh.ado(["status", "waits"]);
    assert!(status.stdout().contains("ado workers uncordon box"), "{}", status.stdout());
    let events = mesh.ado(["events", "--tail", "5", "-o", "json"]);
    assert!(events.stdout().contains("worker.cordoned"), "{}", events.stdout());

    mesh.ado(["workers", "uncordon", "box"]).assert_code(0);
    mesh.ado(["wait", "waits"]).assert_code(0);
    let neither = mesh.ado(["workers", "uncordon", "box"]);
    neither.assert_code(0);
    assert_eq!(neither.stdout(), "box: neither cordoned nor drained\n");

    // Every one is tried, and the first that cannot be is told.
    let partly = mesh.ado(["workers", "cordon", "nobody", "box"]);
    partly.assert_code(125);
    assert!(partly.stderr().contains("there is no worker `nobody`"), "{}", partly.stderr());
    assert_eq!(listed(&mesh, "state"), "cordoned");
    let wrong = mesh.ado(["workers", "drain", "box", "--deadline", "8d"]);
    wrong.assert_code(125);
    assert!(wrong.stderr().contains("within 7 days at most"), "{}", wrong.stderr());
}

#[test]
fn a_drained_worker_lets_its_tasks_end_and_leaves() {
    let mut mesh = Mesh::start();
    let gate = mesh.env().work().join("gate");
    let waits = format!("echo begun; while [ ! -e {} ]; do sleep 0.05; done; exit 3", gate.display());
    mesh.submit(&["--name", "long", &waits]);
    let mut watched = mesh.start_command(["attach", "long", "--from", "start"]);
    assert_eq!(watched.line(), "begun\n");
    let drain = mesh.ado(["workers", "drain", "box", "--deadline", "1h"]);
    drain.assert_code(0);
    assert!(
        drain.stdout().starts_with("box drains: it has 1 task, and hands back what still runs in "),
        "{}",
        drain.stdout()
    );
    let again = mesh.ado(["workers", "drain", "box"]);
    again.assert_code(0);
    assert_eq!(again.stdout(), "box: drained already by admin/admin\n");
    assert_eq!(listed(&mesh, "state"), "draining");
    let late = mesh.ado(["workers", "drain", "box", "--wait", "--timeout", "100ms"]);
    late.assert_code(124);
    assert!(late.stderr().contains("not drained in time: box"), "{}", late.stderr());
    // It takes nothing, and what waits says why.
    mesh.submit(&["--name", "waits", "echo at last"]);
    let status = mesh.ado(["status", "waits"]);
    assert!(status.stdout().contains("ado workers uncordon box"), "{}", status.stdout());

    std::fs::write(&gate, "").expect("a file");
    assert_eq!(watched.end().0, Some(3), "it has ended by itself");
    mesh.worker_ends();
    let done = mesh.ado(["workers", "drain", "box", "--wait"]);
    done.assert_code(0);
    assert_eq!(done.stdout(), "box is drained\n");
    assert_eq!(listed(&mesh, "state"), "drained");

    // Started again it is still drained, and ends at once; lifted, it works.
    mesh.start_worker();
    mesh.worker_ends();
    mesh.ado(["workers", "uncordon", "box"]).assert_code(0);
    mesh.start_worker();
    mesh.ado(["wait", "waits"]).assert_code(0);
    assert_eq!(listed(&mesh, "state"), "ready");
}

#[test]
fn what_runs_at_the_deadline_of_a_drain_is_handed_back_and_nothing_is_charged() {
    let mut mesh = Mesh::start();
    let marker = mesh.env().work().join("marker");
    let task = format!("echo begun; if [ -e {0} ]; then exit 0; fi; touch {0}; sleep 600", marker.display());
    mesh.submit(&["--name", "long", "--retries", "0", &task]);
    let mut watched = mesh.start_command(["attach", "long", "--from", "start"]);
    assert_eq!(watched.line(), "begun\n");
    eventually("it runs", || marker.exists());
    let drain = mesh.ado(["workers", "drain", "box", "--deadline", "0s", "--wait"]);
    drain.assert_code(0);
    mesh.worker_ends();
    let list = mesh.ado(["list", "--all", "-o", "json"]).json();
    let long = list.as_array().expect("tasks").iter().find(|task| task["name"] == "long").expect("it is there").clone();
    assert_eq!(long["status"], "queued", "{long}");

    mesh.ado(["workers", "uncordon", "box"]).assert_code(0);
    mesh.start_worker();
    assert_eq!(watched.line(), "begun\n", "again, elsewhere or here");
    assert_eq!(watched.end().0, Some(0), "no attempt was used up: there was only one");
    let events = mesh.ado(["logs", "long", "--output", "json"]).json_lines();
    let lost = events.iter().find(|event| event["type"] == "worker_lost").expect("a seam");
    assert_eq!((&lost["reason"], &lost["charged"]), (&"handed_back".into(), &false.into()));
}
