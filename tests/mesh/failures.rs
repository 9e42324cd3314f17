//! What fails for good, and what becomes of it; limits of time that a controller measures.

use std::time::Duration;

use ado::net::{Call, Link};
use ado::task::{BreakerPolicy, Policy};
use ado_proto::record::{Body, Checkpointed, Ended, Exited, Outcome, Started};
use ado_proto::request::{
    DeadOnes, ErrorCode, EventsFrom, GetTasks, ListEvents, ListTasks, ListWorkers, PurgeDead, RetryDead, Settled,
    SettledDead, Submit, TaskFilter, TaskInfo, WorkerInfo,
};
use ado_proto::session::ToAttempt;
use ado_proto::spec::{Containment, Exit, Limit, TaskSpec};
use ado_proto::{CheckpointId, Epoch, Record, RequestId, Role, TaskId};

use crate::mesh::{Mesh, Worker, ask, call, kinds, log, refusal, spec};

fn started() -> Body {
    Started { pid: 1, containment: Containment::Subreaper }.into()
}

fn exited(exit: Exit) -> Body {
    Exited { exit }.into()
}

fn named(reference: impl ToString) -> DeadOnes {
    DeadOnes::Named(reference.to_string())
}

fn all() -> DeadOnes {
    DeadOnes::All { only: TaskFilter::default(), ended_for_ms: 0, before: None }
}

async fn retry(link: &Link, which: DeadOnes, fresh: bool) -> SettledDead {
    ask(link, RetryDead { which, fresh }).await.expect("it may")
}

async fn dead(link: &Link) -> Vec<TaskId> {
    let page = ask(link, ListTasks { dead: true, limit: 100, ..ListTasks::default() }).await.expect("a list");
    page.tasks.iter().map(|task| task.id).collect()
}

async fn info(link: &Link, task: TaskId) -> TaskInfo {
    ask(link, GetTasks { reference: task.to_string() }).await.expect("it is there").remove(0)
}

fn retried(settled: &SettledDead) -> TaskId {
    match settled.tasks[..] {
        [ref task] => match task.settled {
            Some(Settled::Retried(new)) => new,
            other => panic!("{other:?}"),
        },
        ref other => panic!("{other:?}"),
    }
}

fn end(records: &[Record]) -> &Ended {
    match &records.last().expect("records").body {
        Body::Ended(ended) => ended,
        other => panic!("{other:?} is no end"),
    }
}

/// A task that made a checkpoint and failed.
async fn failed(mesh: &Mesh, link: &Link, worker: &mut Worker, name: &str) -> TaskId {
    let submit = Submit { name: Some(name.into()), specs: vec![spec()], copies: 1 };
    let task = ask(link, submit).await.expect("it is taken").tasks[0];
    let checkpoint = Checkpointed { id: CheckpointId(mesh.env.uuid()), data: "{\"page\":7}".into(), snapshot: None };
    worker.run(vec![started(), checkpoint.into(), exited(Exit::Code(3))]).await;
    task
}

#[tokio::test]
async fn what_failed_for_good_is_done_again_as_a_new_task() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let old = failed(&mesh, &admin, &mut worker, "nightly").await;
    assert_eq!(dead(&admin).await, [old]);
    let before = log(&admin, old).await;

    let id = RequestId(mesh.env.uuid());
    let key = || Call { id: Some(id), ..call() };
    let request = RetryDead { which: named("nightly"), fresh: false };
    let first = admin.call(&request, key()).await.expect("it is done again");
    assert_eq!(admin.call(&request, key()).await.expect("the same answer"), first, "and happens once");
    let new = retried(&first);
    assert_eq!((dead(&admin).await, first.next), (vec![], None));
    let again = retry(&admin, named(old), false).await;
    assert_eq!((retried(&again), again.tasks[0].unchanged.is_some()), (new, true), "nobody else does it again");

    let assignment = worker.run(vec![started(), exited(Exit::Code(0))]).await;
    assert_eq!((assignment.task, assignment.epoch, assignment.attempt), (new, Epoch(1), 1));
    assert_eq!(assignment.checkpoint.as_deref(), Some("{\"page\":7}"));
    let expected = ["Submitted", "Retries", "Checkpointed", "Assigned", "Started", "Exited", "Ended"];
    assert_eq!(kinds(&log(&admin, new).await), expected);
    assert_eq!(log(&admin, old).await, before, "the old log has ended, and stays as it was");
    let (new, old) = (info(&admin, new).await, info(&admin, old).await);
    assert_eq!((new.retry_of, old.settled), (Some(old.id), Some(Settled::Retried(new.id))));
    assert_eq!((&new.spec, &new.owner, &new.name), (&old.spec, &old.owner, &old.name));
    assert!(old.reason.is_some_and(|reason| reason.ends_with(&format!("done again as {}", new.id.short()))));
    // The name has gone on with it.
    let found = ask(&admin, GetTasks { reference: "nightly".into() }).await.expect("it is clear which");
    assert_eq!(found.iter().map(|task| task.id).collect::<Vec<_>>(), [new.id]);
}

#[tokio::test]
async fn the_dead_letter_is_worked_off_by_filter_and_emptied() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(failed(&mesh, &admin, &mut worker, name).await);
    }
    let only = TaskFilter { name: Some("b".into()), ..TaskFilter::default() };
    let which = || DeadOnes::All { only: only.clone(), ended_for_ms: 0, before: None };
    let fresh = retry(&admin, which(), true).await;
    let new = retried(&fresh);
    assert_eq!(fresh.tasks[0].task, ids[1]);
    assert_eq!(kinds(&log_so_far(&admin, new).await)[..2], ["Submitted", "Retries"]);
    let assignment = worker.run(vec![started(), exited(Exit::Code(0))]).await;
    assert_eq!((assignment.task, assignment.checkpoint), (new, None), "from the beginning");
    assert_eq!(retry(&admin, which(), true).await.tasks, [], "nothing fits any more");

    let young = DeadOnes::All { only: TaskFilter::default(), ended_for_ms: 3_600_000, before: None };
    assert_eq!(ask(&admin, PurgeDead { which: young }).await.unwrap().tasks, []);
    let purged = ask(&admin, PurgeDead { which: named(ids[0]) }).await.unwrap();
    assert_eq!((purged.tasks[0].settled, &purged.tasks[0].unchanged), (Some(Settled::Purged), &None));
    assert_eq!(dead(&admin).await, [ids[2]]);
    let refused = retry(&admin, named(ids[0]), false).await;
    assert_eq!(refused.tasks[0].unchanged.as_deref(), Some("already purged"));
    let refused = retry(&admin, named(new), false).await;
    assert_eq!(refused.tasks[0].unchanged.as_deref(), Some("has not failed: it is completed"));
    ask(&admin, PurgeDead { which: all() }).await.unwrap();
    assert_eq!(dead(&admin).await, []);
    let lines = mesh.audit_lines().await.into_iter().filter(|line| line.action.ends_with("Dead"));
    let audit: Vec<_> = lines.map(|line| format!("{} {}: {}", line.action, line.target, line.result)).collect();
    assert_eq!(audit.len(), 7, "{audit:#?}");
    assert_eq!(audit[0], "RetryDead all afresh: ok");
    assert!(audit[4].ends_with(": already purged"), "{audit:#?}");
}

async fn log_so_far(link: &Link, task: TaskId) -> Vec<Record> {
    let from = ado_proto::request::StartAt::Offset(ado_proto::Offset(0));
    let request = ado_proto::request::Follow { task, from, follow: false, without_output: false, generation: None };
    let (_, mut channel) = link.open(&request, call()).await.expect("it can be read");
    crate::mesh::read(&mut channel).await.0
}

#[tokio::test]
async fn members_of_a_group_are_done_again_together_each_in_its_place() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let group = ask(&admin, Submit { name: None, specs: vec![spec()], copies: 3 }).await.unwrap();
    for code in [0, 4, 5] {
        worker.run(vec![started(), exited(Exit::Code(code))]).await;
    }
    let settled = retry(&admin, named(group.group.unwrap().short()), false).await;
    assert_eq!(settled.tasks.iter().map(|task| task.task).collect::<Vec<_>>(), group.tasks[1..]);
    let mut places = Vec::new();
    for _ in 0..2 {
        places.push(worker.run(vec![started(), exited(Exit::Code(0))]).await.group.expect("a member"));
    }
    let indices: Vec<_> = places.iter().map(|member| (member.index, member.count)).collect();
    assert_eq!(indices, [(1, 3), (2, 3)]);
    assert!(places[0].id == places[1].id && Some(places[0].id) != group.group, "a group of their own");
}

#[tokio::test]
async fn the_dead_letter_of_others_does_not_exist() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = failed(&mesh, &admin, &mut worker, "mine").await;
    let (vic, _) = mesh.member(Role::Viewer, "default", "vic").await;
    let (bob, _) = mesh.member(Role::User, "elsewhere", "bob").await;
    assert_eq!(dead(&vic).await, [task], "a viewer sees it");
    let (carl, _) = mesh.member(Role::User, "default", "carl").await;
    refusal(ask(&carl, RetryDead { which: named(task), fresh: false }).await, ErrorCode::Denied);
    assert_eq!(retry(&carl, all(), false).await.tasks, [], "all is what is one's own");
    assert_eq!(ask(&carl, PurgeDead { which: all() }).await.unwrap().tasks, []);
    refusal(ask(&vic, RetryDead { which: named(task), fresh: false }).await, ErrorCode::Denied);
    refusal(ask(&vic, PurgeDead { which: all() }).await, ErrorCode::Denied);
    assert_eq!(dead(&bob).await, []);
    refusal(ask(&bob, RetryDead { which: named(task), fresh: false }).await, ErrorCode::NotFound);
    refusal(ask(&bob, PurgeDead { which: named("mine") }).await, ErrorCode::NotFound);
    assert_eq!(retry(&bob, all(), false).await.tasks, []);
    assert_eq!(ask(&bob, PurgeDead { which: all() }).await.unwrap().tasks, []);
    assert_eq!(dead(&admin).await, [task]);
}

#[tokio::test]
async fn an_agent_that_does_not_start_in_time_is_tried_elsewhere_and_its_worker_fenced() {
    let mesh = Mesh::start().await;
    let (admin, mut slow) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, TaskSpec { setup_limit_ms: Some(300), max_retries: 1, ..spec() }).await;
    let first = slow.assignment().await;
    slow.beat(&[(task, first.epoch)]).await;
    let mut stream = slow.output(task, first.epoch).await.expect("it holds it");
    let second = slow.assignment().await;
    assert_eq!((second.epoch, second.attempt), (Epoch(2), 2), "it counts as a failed attempt");
    stream.send(0, vec![started()]).await;
    assert!(matches!(stream.answer().await, Some(ToAttempt::Stale(_))), "it starts too late");
    assert_eq!(slow.beat(&[(task, first.epoch)]).await.lost, [(task, first.epoch)]);
    // Neither does the second one.
    let records = log(&admin, task).await;
    let expected = ["Submitted", "Assigned", "Expired", "Requeued", "Assigned", "Expired", "Ended"];
    assert_eq!(kinds(&records), expected);
    assert_eq!(end(&records).exit, Some(Exit::TimedOut(Limit::SetUp)));
    assert_eq!(end(&records).error.as_deref(), Some("timed out: not started within 300ms"));
    assert_eq!(dead(&admin).await, [task]);
}

#[tokio::test]
async fn the_whole_takes_no_longer_than_it_may_even_when_nobody_takes_it() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let limited = || TaskSpec { total_limit_ms: Some(700), max_retries: 9, ..spec() };
    let paused = mesh.submit(&admin, TaskSpec { total_limit_ms: Some(1_500), ..spec() }).await;
    let pause = |desired| ado_proto::request::SetDesired { reference: paused.to_string(), desired, force: false };
    ask(&admin, pause(ado_proto::record::Desired::Paused)).await.expect("it is paused");
    let task = mesh.submit(&admin, limited()).await;
    let records = log(&admin, task).await;
    assert_eq!(kinds(&records), ["Submitted", "Expired", "Ended"]);
    assert_eq!((end(&records).outcome, &end(&records).exit), (Outcome::Failed, &Some(Exit::TimedOut(Limit::Total))));
    let waited = records[2].time.since(records[0].time);
    assert!(waited >= Duration::from_millis(700), "{waited:?}");

    // Another task of the same limit shows when the paused one would have been over.
    let later = mesh.submit(&admin, TaskSpec { total_limit_ms: Some(1_500), ..spec() }).await;
    log(&admin, later).await;
    assert_eq!(info(&admin, paused).await.state, "paused", "no time runs while it is paused");
    // What is left is told to whoever takes it.
    let mut worker = mesh.worker(1).await;
    ask(&admin, pause(ado_proto::record::Desired::Running)).await.expect("it goes on");
    let assignment = worker.assignment().await;
    assert_eq!(assignment.task, paused);
    assert!(assignment.total_left_ms.is_some_and(|left| left <= 1_500), "{assignment:?}");
    worker.beat(&[(paused, assignment.epoch)]).await;
    let mut stream = worker.output(paused, assignment.epoch).await.expect("it holds it");
    stream.send(0, vec![started(), exited(Exit::TimedOut(Limit::Total))]).await;
    stream.acknowledged().await;
    let records = log(&admin, paused).await;
    assert_eq!(end(&records).error.as_deref(), Some("timed out: not over within 1500ms of its submission"));
}

/// The only worker, as people see it.
async fn only_worker(link: &Link) -> WorkerInfo {
    ask(link, ListWorkers::default()).await.expect("a list").remove(0)
}

async fn breaker_events(link: &Link) -> Vec<String> {
    let request = ListEvents { from: EventsFrom::After(0), limit: 1000, wait_ms: 0 };
    let events = ask(link, request).await.expect("events").events;
    events.into_iter().map(|event| event.kind).filter(|kind| kind.starts_with("breaker.")).collect()
}

fn full() -> Body {
    exited(Exit::NotStarted { error: "no space left on device".into(), permanent: false })
}

#[tokio::test]
async fn a_worker_that_cannot_start_agents_gets_none_and_a_restart_does_not_forget_that() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(4).await);
    // Tasks that fail by themselves feed no breaker.
    for _ in 0..4 {
        mesh.submit(&admin, spec()).await;
        worker.run(vec![started(), exited(Exit::Code(1))]).await;
    }
    assert_eq!((only_worker(&admin).await.state.as_str(), breaker_events(&admin).await.len()), ("ready", 0));
    for _ in 0..3 {
        mesh.submit(&admin, spec()).await;
        worker.run(vec![full()]).await;
    }
    let check = async |admin: &Link| {
        let seen = only_worker(admin).await;
        let breaker = seen.breaker.expect("it is open");
        assert_eq!(seen.state, "cordoned");
        assert_eq!(breaker.why, "it could not start an agent: no space left on device");
        assert_eq!(breaker.probe_at.since(breaker.opened_at), BreakerPolicy::USUAL.base);
        assert!(seen.ineligible.is_some_and(|why| why.contains("no space left on device")));
        assert_eq!(breaker_events(admin).await, ["breaker.opened"]);
    };
    check(&admin).await;
    let waiting = mesh.submit(&admin, spec()).await;
    let reason = info(&admin, waiting).await.reason.expect("it waits");
    assert!(reason.contains("failed too often and gets no work for now"), "{reason}");
    let mesh = mesh.restart().await;
    let admin = mesh.admin();
    worker = worker.reincarnate(&mesh).await;
    for _ in 0..3 {
        worker.beat(&[]).await;
    }
    check(&admin).await;
    let mut other = mesh.worker(1).await;
    other.run(vec![started(), exited(Exit::Code(0))]).await;
}

#[tokio::test]
async fn a_worker_is_tried_with_one_attempt_and_then_gets_all_again() {
    let breaker = BreakerPolicy { base: Duration::from_secs(2), ..BreakerPolicy::USUAL };
    let backoff = Duration::from_millis(1);
    let mesh =
        Mesh::with_policy(Policy { breaker, backoff_base: backoff, backoff_cap: backoff, ..Policy::default() }).await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(4).await);
    let first = mesh.submit(&admin, TaskSpec { max_retries: 9, ..spec() }).await;
    for _ in 0..3 {
        assert_eq!(worker.run(vec![full()]).await.task, first);
    }
    let opened = only_worker(&admin).await.breaker.expect("it is open");
    for _ in 0..3 {
        mesh.submit(&admin, spec()).await;
    }
    // Four wait, and one is let through.
    let probe = worker.assignment().await;
    let assigned_at = log_so_far(&admin, probe.task).await.last().expect("records").time;
    assert!(assigned_at >= opened.probe_at, "not before its time");
    for _ in 0..5 {
        let answer = worker.beat(&[(probe.task, probe.epoch)]).await;
        assert_eq!(answer.renewed.len(), 1);
    }
    assert_eq!(only_worker(&admin).await.busy, 1, "it is alone");
    let mut stream = worker.output(probe.task, probe.epoch).await.expect("it holds it");
    stream.send(0, vec![started()]).await;
    stream.acknowledged().await;
    for _ in 0..3 {
        worker.assignment().await;
    }
    assert_eq!((only_worker(&admin).await.state.as_str(), only_worker(&admin).await.breaker), ("ready", None));
    assert_eq!(breaker_events(&admin).await, ["breaker.opened", "breaker.closed"]);
}
