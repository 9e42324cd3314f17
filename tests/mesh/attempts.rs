//! Epochs, leases, losses.

use std::time::Duration;

use ado::store::Store;
use ado_proto::record::{Body, Exited, Loss, Output, Started, Stream};
use ado_proto::request::{ErrorCode, EventsFrom, GetTasks, ListEvents, ListWorkers, Submit, WorkerSession};
use ado_proto::session::{Draining, FromWorker, ToAttempt, ToWorker};
use ado_proto::spec::{Containment, Exit};
use ado_proto::{Epoch, Incarnation, Role};
use bytes::Bytes;

use crate::mesh::{Mesh, TIMING, ask, call, kinds, log, refusal, session, spec};

fn started() -> Body {
    Started { pid: 1, containment: Containment::Subreaper }.into()
}

fn output(text: &str) -> Body {
    Output { stream: Stream::Stdout, position: 0, data: Bytes::copy_from_slice(text.as_bytes()) }.into()
}

fn exited(code: i32) -> Body {
    Exited { exit: Exit::Code(code) }.into()
}

#[tokio::test]
async fn a_task_runs_and_its_log_says_how() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let assignment = worker.run(vec![started(), output("hello\n"), exited(0)]).await;
    assert_eq!((assignment.task, assignment.epoch, assignment.attempt), (task, Epoch(1), 1));
    let records = log(&admin, task).await;
    assert_eq!(kinds(&records), ["Submitted", "Assigned", "Started", "Output", "Exited", "Ended"]);
    let info = ask(&admin, GetTasks { reference: task.short() }).await.unwrap();
    assert_eq!((info[0].state.as_str(), info[0].exit.clone()), ("completed", Some(Exit::Code(0))));
}

#[tokio::test]
async fn records_sent_twice_are_logged_once_and_a_gap_is_refused() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let assignment = worker.assignment().await;
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    attempt.send(0, vec![started(), output("a")]).await;
    assert_eq!(attempt.acknowledged().await.0, 2);
    drop(attempt);
    // The connection was lost before the acknowledgement: the worker asks where to go on, and is told.
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    assert_eq!(attempt.accepted.next_seq.0, 2);
    attempt.send(0, vec![started(), output("a"), output("b")]).await;
    assert_eq!(attempt.acknowledged().await.0, 3);
    attempt.send(1, vec![output("a")]).await;
    assert_eq!(attempt.acknowledged().await.0, 3, "all of it is known");
    attempt.send(7, vec![output("x")]).await;
    assert!(attempt.channel.rx.next().await.is_err(), "a gap ends the stream");
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    attempt.send(3, vec![exited(0)]).await;
    attempt.acknowledged().await;
    assert_eq!(
        kinds(&log(&admin, task).await),
        ["Submitted", "Assigned", "Started", "Output", "Output", "Exited", "Ended"]
    );
}

#[tokio::test]
async fn a_silent_worker_loses_its_task_and_nothing_it_says_later_is_recorded() {
    let mesh = Mesh::start().await;
    let (admin, mut zombie) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let first = zombie.assignment().await;
    let heard_of_at = tokio::time::Instant::now();
    zombie.beat(&[(task, first.epoch)]).await;
    let mut stream = zombie.output(task, first.epoch).await.unwrap();
    stream.send(0, vec![started(), output("before")]).await;
    stream.acknowledged().await;

    // Silent, but connected: the connection proves nothing.
    let mut other = mesh.worker(1).await;
    let second = other.assignment().await;
    assert_eq!((second.task, second.epoch, second.attempt), (task, Epoch(2), 1), "an uncharged loss");
    assert!(heard_of_at.elapsed() >= TIMING.lost_after, "not before the lease and its margin were over");
    other.beat(&[(task, second.epoch)]).await;

    stream.send(2, vec![output("after"), exited(0)]).await;
    assert!(matches!(stream.answer().await, Some(ToAttempt::Stale(_))));
    refusal(zombie.output(task, first.epoch).await, ErrorCode::Stale);
    let answer = zombie.beat(&[(task, first.epoch)]).await;
    assert_eq!((answer.renewed.len(), answer.lost), (0, vec![(task, first.epoch)]));

    let mut stream = other.output(task, second.epoch).await.unwrap();
    stream.send(0, vec![started(), output("elsewhere"), exited(0)]).await;
    stream.acknowledged().await;
    let records = log(&admin, task).await;
    assert_eq!(
        kinds(&records),
        [
            "Submitted",
            "Assigned",
            "Started",
            "Output",
            "WorkerLost",
            "Requeued",
            "Assigned",
            "Started",
            "Output",
            "Exited",
            "Ended"
        ]
    );
    assert!(matches!(&records[4].body, Body::WorkerLost(lost) if lost.why == Loss::Silent && !lost.charged));
}

#[tokio::test]
async fn a_forged_epoch_and_another_workers_task_are_refused() {
    let mesh = Mesh::start().await;
    let (admin, mut holder) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let assignment = holder.assignment().await;
    let thief = mesh.worker(1).await;
    refusal(thief.output(task, assignment.epoch).await, ErrorCode::Stale);
    refusal(holder.output(task, Epoch(assignment.epoch.0 + 1)).await, ErrorCode::Stale);
    let mut thief = thief;
    let answer = thief.beat(&[(task, assignment.epoch)]).await;
    assert_eq!(answer.lost, [(task, assignment.epoch)]);

    let handed_back = FromWorker::from(Draining { hand_back: vec![(task, assignment.epoch)] });
    thief.channel.tx.send_message(&handed_back).await.unwrap();
    thief.beat(&[]).await;
    let answer = holder.beat(&[(task, assignment.epoch)]).await;
    assert_eq!(answer.renewed.len(), 1, "nobody hands back what another holds");
    // A start that has shown that it runs the attempt is the only one that may speak for it.
    holder.incarnation = Incarnation(mesh.env.uuid());
    refusal(holder.output(task, assignment.epoch).await, ErrorCode::Stale);
}

#[tokio::test]
async fn an_assignment_that_got_lost_is_said_again() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let said = worker.assignment().await;
    // The worker does not name it, as if it had never heard of it.
    let gone_by = Duration::from_millis(50);
    tokio::time::sleep(gone_by).await;
    worker.report(&[]).await;
    let again = worker.assignment().await;
    assert_eq!((again.task, again.epoch), (task, said.epoch));
    let left = Duration::from_millis(again.lease_ms);
    assert!(left <= TIMING.lease() - gone_by, "the lease counts from the claim, {left:?} are left");
    // Once it has named it, it is not told again.
    worker.beat(&[(task, said.epoch)]).await;
    let answer = worker.beat(&[(task, said.epoch)]).await;
    assert_eq!(answer.renewed.len(), 1);
}

#[tokio::test]
async fn a_worker_that_dies_three_times_with_one_task_ends_it() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(4).await);
    let task = mesh.submit(&admin, spec()).await;
    for number in 1..=3 {
        let assignment = worker.assignment().await;
        assert_eq!(assignment.attempt, number, "a charged loss counts as an execution");
        let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
        attempt.send(0, vec![started()]).await;
        attempt.acknowledged().await;
        worker = worker.reincarnate(&mesh).await;
    }
    let records = log(&admin, task).await;
    assert!(matches!(&records.last().unwrap().body, Body::Ended(ended) if ended.error.is_some()), "{records:?}");
    let charged = |record: &&ado_proto::Record| matches!(&record.body, Body::WorkerLost(lost) if lost.charged);
    assert_eq!(records.iter().filter(charged).count(), 3);
}

#[tokio::test]
async fn what_a_worker_hands_back_goes_on_at_once_and_is_not_charged() {
    let mesh = Mesh::start().await;
    let (admin, mut leaving) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let first = leaving.assignment().await;
    leaving.beat(&[(task, first.epoch)]).await;
    let mut other = mesh.worker(1).await;
    let started_at = tokio::time::Instant::now();
    let draining = FromWorker::from(Draining { hand_back: vec![(task, first.epoch)] });
    leaving.channel.tx.send_message(&draining).await.unwrap();
    let second = other.assignment().await;
    assert!(started_at.elapsed() < TIMING.lost_after, "before the lease could end");
    assert_eq!((second.epoch, second.attempt), (Epoch(2), 1));
}

#[tokio::test]
async fn a_cancelled_task_tells_its_worker_and_ends_as_cancelled() {
    use ado_proto::record::Desired;
    use ado_proto::request::SetDesired;
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let cancel = SetDesired { reference: task.to_string(), desired: Desired::Cancelled, force: false };
    assert_eq!(ask(&admin, cancel.clone()).await.unwrap()[0].unchanged, None);
    let want = loop {
        if let ToWorker::Want(want) = worker.next().await {
            break want;
        }
    };
    assert_eq!((want.task, want.desired), (task, Desired::Cancelled));
    let answer = worker.beat(&[(task, assignment.epoch)]).await;
    assert_eq!(answer.renewed[0].desired, Desired::Cancelled, "every heartbeat says it again");
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    attempt.send(0, vec![started(), Exited { exit: Exit::Cancelled }.into()]).await;
    attempt.acknowledged().await;
    let again = ask(&admin, cancel).await.unwrap();
    assert_eq!(again[0].state, "cancelled");
    assert_eq!(again[0].unchanged.as_deref(), Some("already cancelled"));
}

#[tokio::test]
async fn queued_tasks_wait_for_slots_and_start_in_order_of_priority() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let mut ids = Vec::new();
    for priority in [0, 0, 5] {
        let mut spec = spec();
        spec.priority = priority;
        ids.push(mesh.submit(&admin, spec).await);
    }
    let info = ask(&admin, GetTasks { reference: ids[0].to_string() }).await.unwrap();
    assert!(info[0].reason.as_deref().unwrap().contains("no worker is connected"), "{:?}", info[0].reason);
    let mut worker = mesh.worker(1).await;
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(worker.run(vec![started(), exited(0)]).await.task);
    }
    assert_eq!(order, [ids[2], ids[0], ids[1]]);
}

#[tokio::test]
async fn a_restarted_controller_goes_on_with_running_tasks() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    attempt.send(0, vec![started(), output("before ")]).await;
    attempt.acknowledged().await;

    // Away for longer than the lease and its margin: that the worker was silent was not its fault.
    let mesh = mesh.restart_after(TIMING.lost_after).await;
    let session = crate::mesh::session(worker.incarnation, 1);
    let (_, channel) = worker.link.open(&session, crate::mesh::call()).await.expect("the worker comes back");
    worker.channel = channel;
    let answer = worker.beat(&[(task, assignment.epoch)]).await;
    assert_eq!(answer.renewed.len(), 1, "the lease is still its own");
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    assert_eq!(attempt.accepted.next_seq.0, 2);
    attempt.send(2, vec![output("after"), exited(0)]).await;
    attempt.acknowledged().await;
    let admin = mesh.admin();
    assert_eq!(
        kinds(&log(&admin, task).await),
        ["Submitted", "Assigned", "Started", "Output", "Output", "Exited", "Ended"]
    );
    tokio::time::timeout(Duration::from_secs(20), mesh.controller.stop()).await.expect("it stops");
}

#[tokio::test]
async fn tasks_nobody_can_run_hide_no_others() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let mut elsewhere = spec();
    elsewhere.pool = "gpu".into();
    let mut picky = spec();
    picky.labels.insert("zone".into(), "moon".into());
    for spec in [elsewhere, picky] {
        ask(&admin, Submit { name: None, specs: vec![spec; 1000], copies: 1 }).await.unwrap();
    }
    let last = mesh.submit(&admin, spec()).await;
    // The hints are gone, and the store has to be asked what waits.
    let mesh = mesh.restart().await;
    let mut worker = mesh.worker(1).await;
    assert_eq!(worker.assignment().await.task, last);
}

async fn events(admin: &ado::net::Link) -> Vec<String> {
    let events = ask(admin, ListEvents { from: EventsFrom::After(0), limit: 1000, wait_ms: 0 })
        .await
        .expect("events are listed")
        .events;
    events.into_iter().map(|event| event.kind).filter(|kind| kind.starts_with("worker.")).collect()
}

async fn wait_for_event(admin: &ado::net::Link, kind: &str) -> Vec<String> {
    for _ in 0..200 {
        let events = events(admin).await;
        if events.last().is_some_and(|last| last == kind) {
            return events;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no {kind}: {:?}", events(admin).await);
}

#[tokio::test]
async fn events_say_that_workers_come_and_go() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    assert_eq!(wait_for_event(&admin, "worker.lost").await, ["worker.joined", "worker.lost"]);
    // Silent for longer still: that is nothing new. It comes back, and leaves with a word.
    tokio::time::sleep(TIMING.lost_after / 2).await;
    worker.beat(&[]).await;
    worker.draining = true;
    let leaving = FromWorker::from(Draining { hand_back: Vec::new() });
    worker.channel.tx.send_message(&leaving).await.unwrap();
    worker.beat(&[]).await;
    drop(worker);
    assert_eq!(wait_for_event(&admin, "worker.left").await, ["worker.joined", "worker.lost", "worker.left"]);
    assert_eq!(ask(&admin, ListWorkers::default()).await.unwrap(), []);
}

#[tokio::test]
async fn a_worker_that_leaves_gets_nothing_when_it_connects_again() {
    let mesh = Mesh::start().await;
    let (admin, mut leaving) = (mesh.admin(), mesh.worker(4).await);
    let task = mesh.submit(&admin, spec()).await;
    let first = leaving.assignment().await;
    leaving.draining = true;
    let notice = FromWorker::from(Draining { hand_back: Vec::new() });
    leaving.channel.tx.send_message(&notice).await.unwrap();
    leaving.beat(&[(task, first.epoch)]).await;
    let session = crate::mesh::session(leaving.incarnation, 4);
    let (_, channel) = leaving.link.open(&session, crate::mesh::call()).await.unwrap();
    let mut old = std::mem::replace(&mut leaving.channel, channel);
    let ended = tokio::time::timeout(Duration::from_secs(20), old.rx.next_message::<ToWorker>()).await;
    assert!(!matches!(ended, Ok(Ok(Some(_))) | Err(_)), "the older session is over: {ended:?}");
    leaving.beat(&[(task, first.epoch)]).await;
    mesh.submit(&admin, spec()).await;
    for _ in 0..5 {
        leaving.report(&[(task, first.epoch)]).await;
        let message = leaving.next().await;
        assert!(matches!(message, ToWorker::HeartbeatAnswer(_)), "{message:?}");
    }
    let workers = ask(&admin, ListWorkers::default()).await.unwrap();
    assert_eq!((workers[0].state.as_str(), workers[0].busy), ("draining", 1));
}

#[tokio::test]
async fn a_worker_that_could_not_be_logged_is_refused() {
    let mesh = Mesh::start().await;
    let (link, _) = mesh.member(Role::Worker, "default", "w").await;
    let incarnation = Incarnation(mesh.env.uuid());
    let session = || crate::mesh::session(incarnation, 1);
    let labels = (0..100).map(|n| (format!("label-{n}"), "x".repeat(60))).collect();
    for bad in [
        WorkerSession { name: "n".repeat(300_000), ..session() },
        WorkerSession { agents: vec!["not a name".into()], ..session() },
        WorkerSession { labels, ..session() },
    ] {
        refusal(link.open(&bad, crate::mesh::call()).await.map(drop), ErrorCode::Invalid);
    }
}

#[tokio::test]
async fn what_a_start_was_given_and_did_not_live_to_name_is_never_run_by_the_next_one_in_its_epoch() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(4).await);
    let task = mesh.submit(&admin, spec()).await;
    let first = worker.assignment().await;
    // It starts the agent and dies. The controller hears of the next start, and then fails: the disk is full, or it is killed.
    let path = mesh.dir.path().join("controller/store.sqlite3");
    let store = ado::store::Sqlite::open(&path, mesh.env.clone()).await.expect("the controller's store");
    let registered = Store::workers(&store).await.expect("workers").remove(0);
    let incarnation = Incarnation(mesh.env.uuid());
    Store::register(&store, ado::store::Worker { incarnation, ..registered }).await.expect("it is registered");
    drop(worker.channel);
    let (_, channel) = worker.link.open(&session(incarnation, 4), call()).await.expect("the worker is accepted");
    worker.channel = channel;
    let second = worker.assignment().await;
    assert_eq!((second.task, first.epoch, second.epoch), (task, Epoch(1), Epoch(2)));
    worker.incarnation = incarnation;
    let mut attempt = worker.output(task, second.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), exited(0)]).await;
    attempt.acknowledged().await;
    let expected = ["Submitted", "Assigned", "WorkerLost", "Requeued", "Assigned", "Started", "Exited", "Ended"];
    assert_eq!(kinds(&log(&admin, task).await), expected);
}
