//! What is told of workers, and of tasks that wait for them.

use ado::net::Link;
use ado_proto::record::{Body, Desired, Exited, Started};
use ado_proto::request::{ErrorCode, GetTasks, ListWorkers, Load, SetDesired, Submit, WorkerInfo, WorkerSession};
use ado_proto::spec::{Containment, Exit, Resources, TaskSpec};
use ado_proto::{Epoch, Incarnation, Role, TaskId};

use crate::mesh::{Mesh, Worker, ask, call, refusal, session, spec};

async fn workers(link: &Link, task: Option<&str>) -> Vec<WorkerInfo> {
    ask(link, ListWorkers { task: task.map(Into::into) }).await.expect("workers")
}

async fn only(link: &Link, task: Option<&str>) -> WorkerInfo {
    let mut all = workers(link, task).await;
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// What is told of the worker once it has just reported and this is so. On a slow machine it may count as silent at first.
async fn once(
    link: &Link,
    worker: &mut Worker,
    holds: &[(TaskId, Epoch)],
    task: Option<&str>,
    is_so: impl Fn(&WorkerInfo) -> bool,
) -> WorkerInfo {
    let mut info = None;
    for _ in 0..200 {
        worker.beat(holds).await;
        let told = only(link, task).await;
        if is_so(&told) {
            return told;
        }
        info = Some(told);
    }
    panic!("{info:?}");
}

async fn reason(link: &Link, task: TaskId) -> String {
    ask(link, GetTasks { reference: task.to_string() }).await.expect("it is there")[0]
        .reason
        .clone()
        .unwrap_or_default()
}

fn why(worker: &WorkerInfo) -> &str {
    worker.ineligible.as_deref().unwrap_or("")
}

#[tokio::test]
async fn the_list_says_how_a_worker_is_and_why_it_gets_nothing() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let mut worker = mesh.worker(1).await;
    let load = Load { cpus: 8, load_milli: 1500, memory: 1 << 34, memory_available: 1 << 33 };
    assert_eq!(
        (only(&admin, None).await.load, only(&admin, None).await.rtt_us),
        (None, None),
        "it has said nothing yet"
    );
    worker.load = load;
    let info = once(&admin, &mut worker, &[], None, |info| why(info).is_empty()).await;
    assert_eq!((info.state.as_str(), info.busy, info.load), ("ready", 0, Some(load)));
    assert!(info.rtt_us.is_some_and(|rtt| (1..10_000_000).contains(&rtt)), "{:?}", info.rtt_us);

    // Of a task it could not take, and of one that it could.
    let mut pooled = spec();
    pooled.pool = "gpu".into();
    let pooled = mesh.submit(&admin, pooled).await;
    let info = only(&admin, Some(&pooled.short())).await;
    assert!(why(&info).starts_with("is of pool default, not gpu: start one with `ado worker --pool gpu`"), "{info:?}");
    let running = mesh.submit(&admin, spec()).await;
    let assignment = worker.assignment().await;
    let holds = [(running, assignment.epoch)];
    let is_full = |info: &WorkerInfo| why(info).starts_with("its slot is busy");
    let info = once(&admin, &mut worker, &holds, None, is_full).await;
    assert_eq!((info.busy, &info.holds[..]), (1, &[running][..]));
    assert_eq!(why(&only(&admin, Some(&running.short())).await), "", "it runs it");
    let group = ask(&admin, Submit { name: None, specs: vec![spec()], copies: 2 }).await.unwrap();
    once(&admin, &mut worker, &holds, Some(&group.group.unwrap().short()), is_full).await;
    refusal(ask(&admin, ListWorkers { task: Some("task-0000000000".into()) }).await, ErrorCode::NotFound);

    // Others see nothing of it.
    let (eve, _) = mesh.member(Role::User, "elsewhere", "eve").await;
    assert_eq!(workers(&eve, None).await, []);

    drop(worker);
    let info = loop {
        let info = only(&admin, None).await;
        if info.load.is_none() {
            break info;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(info.rtt_us, None);
    assert!(why(&info).starts_with("is not connected") || info.state == "lost", "{info:?}");
}

#[tokio::test]
async fn a_task_says_why_it_is_where_it_is() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let task = mesh.submit(&admin, spec()).await;
    let says = async |expected: &str| {
        let said = reason(&admin, task).await;
        assert!(said.contains(expected), "{said}, not {expected}");
    };
    says("no worker is connected: start one with `ado worker`").await;
    let want =
        async |desired| ask(&admin, SetDesired { reference: task.short(), desired, force: false }).await.unwrap();
    want(Desired::Paused).await;
    says("ago before it started: `ado resume task-").await;
    want(Desired::Running).await;

    let mut worker: Worker = mesh.worker(1).await;
    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    let started: Body = Started { pid: 1, containment: Containment::Group }.into();
    attempt.send(0, vec![started]).await;
    attempt.acknowledged().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    says("").await;
    want(Desired::Paused).await;
    says("played is about to freeze it, paused by admin/local").await;
    attempt.send(1, vec![Exited { exit: Exit::Code(3) }.into()]).await;
    attempt.acknowledged().await;
    says("exited with code 3: `ado logs task-").await;
}

fn with_memory(gib: u64) -> TaskSpec {
    TaskSpec { resources: Resources { memory: Some(gib << 30), ..Resources::default() }, ..spec() }
}

#[tokio::test]
async fn what_tasks_may_use_is_shared_out_and_what_nobody_can_limit_is_refused() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    // With nobody there nobody knows: it waits.
    let early = mesh.submit(&admin, with_memory(3)).await;
    let mut plain = mesh.worker(1).await;
    let says = |why: String, expected: &str| assert!(why.contains(expected), "{why}");
    says(reason(&admin, early).await, "the only connected worker cannot run it: played cannot limit memory; leave out");
    let refused = ask(&admin, Submit { name: None, specs: vec![spec(), with_memory(1)], copies: 1 }).await;
    let expected = "the only worker that could run it, played, cannot limit memory: that takes control groups";
    says(refusal(refused, ErrorCode::Invalid), expected);
    let nothing = ask(&admin, Submit { name: None, specs: vec![with_memory(0)], copies: 1 }).await;
    says(refusal(nothing, ErrorCode::Invalid), "a limit of 0 for memory leaves nothing to run with");

    // One that can.
    let (link, identity) = mesh.member(Role::Worker, "default", "large").await;
    let resources = Resources { memory: Some(4 << 30), ..Resources::default() };
    let incarnation = Incarnation(mesh.env.uuid());
    let able = WorkerSession { resources, name: "large".into(), ..session(incarnation, 9) };
    let (_, channel) = link.open(&able, call()).await.expect("the worker is accepted");
    let mut large = Worker::on(link, identity, incarnation, channel);
    let first = large.assignment().await;
    assert_eq!((first.task, first.spec.resources.memory), (early, Some(3 << 30)));
    let mut holds = vec![(first.task, first.epoch)];
    large.beat(&holds).await;
    let second = mesh.submit(&admin, with_memory(2)).await;
    let small = mesh.submit(&admin, with_memory(1)).await;
    let next = large.next_assignment(&holds).await;
    assert_eq!(next.task, small, "there is room for one more, of a certain size");
    holds.push((next.task, next.epoch));
    large.beat(&holds).await;
    says(
        reason(&admin, second).await,
        "it asks for 2 GiB, and other tasks leave 0 bytes at most on the workers with a free slot",
    );
    let answer = ask(&admin, Submit { name: None, specs: vec![with_memory(5)], copies: 1 }).await.expect("it is taken");
    assert_eq!(answer.eligible_workers, 0, "and may wait for a larger worker");
    says(reason(&admin, answer.tasks[0]).await, "large has 4 GiB for tasks, less than the 5 GiB it asks for");

    // What one leaves another takes.
    let mut attempt = large.output(early, first.epoch).await.expect("the epoch is current");
    let started = Started { pid: 7, containment: Containment::Cgroup };
    let out = Exited { exit: Exit::OutOfMemory { limit: 3 << 30 } };
    attempt.send(0, vec![started.into(), out.into()]).await;
    attempt.acknowledged().await;
    assert_eq!(large.next_assignment(&holds[1..]).await.task, second);
    says(
        reason(&admin, early).await,
        "killed: it used more than its 3 GiB of memory: submit it with a larger `--memory`",
    );
    plain.beat(&[]).await;
}
