//! Hints that are lost, late or not to be had, and controllers that share them: tasks are run all the same, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ado::controller::Parts;
use ado::env::Env;
use ado::net::Link;
use ado::queue::{Class, Error, Hint, Local, Queue, Redis, RedisConfig};
use ado::store::{Memory, Store};
use ado::tasks::Tasks;
use ado_proto::record::{Body, Exited, Note, Output, Started, Stream};
use ado_proto::request::{EventsFrom, StartAt, Submit, WorkerSession};
use ado_proto::session::FollowItem;
use ado_proto::spec::{Containment, Exit, TaskSpec};
use ado_proto::{Audience, Incarnation, Offset, RequestId, Role, TaskId};
use async_trait::async_trait;
use bytes::Bytes;

use crate::mesh::{Mesh, Worker, call, follow, next, session, spec};
use crate::servers::redis as server;

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A store that several controllers may share, and what it knows.
struct Truth(Arc<Memory>);

impl Truth {
    fn new() -> Self {
        Self(Arc::new(Memory::new(Env::system())))
    }

    /// A controller on it with this queue.
    async fn controller(&self, queue: Arc<dyn Queue>) -> Mesh {
        Mesh::on(Parts { store: self.0.clone(), queue, others: None, shared: false, background: Tasks::new() }).await
    }

    /// A controller on it with this Redis.
    async fn controller_on(&self, server: &server::Redis, prefix: &str) -> Mesh {
        let background = Tasks::new();
        let config = RedisConfig { url: server.url(), prefix: prefix.into() };
        let redis = Redis::start(&config, Env::system(), &background).await.expect("a good URL");
        let redis = Arc::new(redis);
        Mesh::on(Parts { store: self.0.clone(), queue: redis.clone(), others: Some(redis), shared: true, background })
            .await
    }

    async fn waiting(&self) -> usize {
        self.0.waiting(None, usize::MAX).await.expect("a store in memory").len()
    }

    /// What was assigned, in that order.
    async fn assigned(&self) -> Vec<TaskId> {
        let page = self.0.events(&Audience::Everywhere, EventsFrom::After(0), usize::MAX).await;
        page.expect("a store in memory")
            .events
            .into_iter()
            .filter(|event| event.kind == "task.assigned")
            .filter_map(|event| event.task)
            .collect()
    }
}

/// Submits tasks, in requests of at most 500.
async fn submit(mesh: &Mesh, link: &Link, specs: Vec<TaskSpec>) -> Vec<TaskId> {
    let mut tasks = Vec::new();
    for specs in specs.chunks(500) {
        let request = Submit { name: None, specs: specs.to_vec(), copies: 1 };
        let call = ado::net::Call { id: Some(RequestId(mesh.env.uuid())), ..call() };
        tasks.extend(link.call(&request, call).await.expect("tasks are taken").tasks);
    }
    tasks
}

fn of_priority(priority: i32) -> TaskSpec {
    TaskSpec { priority, ..spec() }
}

async fn labelled(mesh: &Mesh, zone: &str, slots: u32) -> ado::net::Channel {
    let (link, _) = mesh.member(Role::Worker, "default", zone).await;
    let labels = BTreeMap::from([("zone".into(), zone.into())]);
    let request = WorkerSession { labels, name: zone.into(), ..session(Incarnation(mesh.env.uuid()), slots) };
    link.open(&request, call()).await.expect("the worker is accepted").1
}

/// A queue that is away when it is told to be.
#[derive(Clone)]
struct Fickle {
    queue: Local,
    /// Whoever else pops is always quicker.
    late: bool,
    away: Arc<AtomicBool>,
}

impl Fickle {
    fn new(away: bool) -> Self {
        Self { queue: Local::new(), late: false, away: Arc::new(AtomicBool::new(away)) }
    }

    fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    fn there(&self) -> Result<&Local, Error> {
        if self.away.load(Ordering::Relaxed) { Err(Error("away".into())) } else { Ok(&self.queue) }
    }
}

#[async_trait]
impl Queue for Fickle {
    async fn push(&self, class: &Class, hints: &[Hint]) -> Result<(), Error> {
        self.there()?.push(class, hints).await
    }

    async fn pop(&self, class: &Class, limit: usize) -> Result<Vec<Hint>, Error> {
        self.there()?.pop(class, if self.late { 0 } else { limit }).await
    }

    async fn classes(&self) -> Result<Vec<Class>, Error> {
        self.there()?.classes().await
    }

    async fn len(&self, class: &Class) -> Result<usize, Error> {
        self.there()?.len(class).await
    }

    async fn is_intact(&self) -> Result<bool, Error> {
        self.there()?.is_intact().await
    }

    async fn mark_rebuilt(&self) -> Result<(), Error> {
        self.there()?.mark_rebuilt().await
    }

    async fn pushed(&self) {
        self.queue.pushed().await;
    }
}

#[tokio::test]
async fn without_a_queue_tasks_are_claimed_in_the_stores_order() {
    let truth = Truth::new();
    let mesh = truth.controller(Arc::new(Fickle::new(true))).await;
    let admin = mesh.admin();
    let tasks = submit(&mesh, &admin, [1, 3, 2, 0].map(of_priority).to_vec()).await;
    let mut first = mesh.worker(2).await;
    let mut got = vec![first.assignment().await.task, first.assignment().await.task];
    got.sort();
    let mut best = vec![tasks[1], tasks[2]];
    best.sort();
    assert_eq!(got, best);
    // A task that comes later is found too, and a slot that is freed is used.
    let late = submit(&mesh, &admin, vec![of_priority(9)]).await;
    let mut second = mesh.worker(3).await;
    let mut got = vec![];
    for _ in 0..3 {
        got.push(second.assignment().await.task);
    }
    assert_eq!(got[0], late[0]);
    assert_eq!(truth.waiting().await, 0);
}

#[tokio::test]
async fn a_queue_that_comes_back_is_told_what_waits() {
    let truth = Truth::new();
    let queue = Fickle::new(false);
    let mesh = truth.controller(Arc::new(queue.clone())).await;
    let admin = mesh.admin();
    queue.set_away(true);
    let tasks = submit(&mesh, &admin, vec![spec(); 1200]).await;
    assert_eq!(queue.queue.classes().await.unwrap(), []);
    queue.set_away(false);
    let class = Class { namespace: Default::default(), pool: "default".into(), agent: "shell".into() };
    until("it holds all that waits", async || queue.len(&class).await.unwrap() == tasks.len()).await;
    until("it is rebuilt", async || queue.is_intact().await.unwrap()).await;
}

#[tokio::test]
async fn tasks_that_only_the_other_controllers_workers_fit_are_not_kept_from_it() {
    let (truth, queue) = (Truth::new(), Fickle::new(false));
    let slow = Fickle { late: true, ..queue.clone() };
    let (one, two) = (truth.controller(Arc::new(queue)).await, truth.controller(Arc::new(slow)).await);
    let _a = labelled(&one, "a", 300).await;
    let _b = labelled(&two, "b", 300).await;
    let in_zone = |zone: &str| TaskSpec { labels: BTreeMap::from([("zone".into(), zone.into())]), ..spec() };
    let (one_admin, two_admin) = (one.admin(), two.admin());
    submit(&one, &one_admin, vec![in_zone("b"); 100]).await;
    submit(&two, &two_admin, vec![in_zone("a"); 100]).await;
    until("all are assigned", async || truth.assigned().await.len() == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_flushed_is_dispatched_in_order_all_the_same() {
    const TASKS: usize = 10_000;
    const SLOTS: usize = 100;
    let Some(server) = server::Redis::start() else { return };
    let truth = Truth::new();
    let mesh = truth.controller_on(&server, "ado:").await;
    let admin = mesh.admin();
    // Priorities in no order; equal ones are told apart by age.
    let specs = (0..TASKS).map(|n| of_priority((n * 7919 % 1009) as i32)).collect();
    submit(&mesh, &admin, specs).await;
    let key = "ado:hints:default\0default\0shell";
    until("all are hinted", async || server.ask::<usize>(&["ZCARD", key]) == TASKS).await;
    let order = truth.0.waiting(None, TASKS).await.unwrap();
    server.ask::<()>(&["FLUSHALL"]);

    let (few, _) = mesh.member(Role::Worker, "default", "few").await;
    let _few = few.open(&session(Incarnation(mesh.env.uuid()), SLOTS as u32), call()).await.expect("accepted");
    until("its slots are taken", async || truth.waiting().await == TASKS - SLOTS).await;
    let first: Vec<_> = order[..SLOTS].iter().map(|waiting| waiting.id).collect();
    assert_eq!(truth.assigned().await, first);

    let mut many = Vec::new();
    for _ in 0..TASKS / 1000 {
        let (link, _) = mesh.member(Role::Worker, "default", "many").await;
        let opened = link.open(&session(Incarnation(mesh.env.uuid()), 1000), call()).await.expect("accepted");
        many.push((link, opened));
    }
    until("all are dispatched", async || truth.waiting().await == 0).await;
    assert_eq!(truth.assigned().await.len(), TASKS, "each once");
    // Dispatch does not wait for the look that ends the rebuilding.
    until("it was rebuilt", async || server.ask::<bool>(&["EXISTS", "ado:intact"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_dies_and_comes_back_empty_keeps_nobody_from_working() {
    let Some(mut server) = server::Redis::start() else { return };
    let truth = Truth::new();
    let mesh = truth.controller_on(&server, "ado:").await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let run = async |worker: &mut Worker| {
        let mut ran = Vec::new();
        let tasks = submit(&mesh, &admin, [9, 6, 3].map(of_priority).to_vec()).await;
        for _ in &tasks {
            ran.push(worker.run(vec![started(), exited()]).await.task);
        }
        assert_eq!(ran, tasks);
    };
    run(&mut worker).await;
    server.freeze();
    run(&mut worker).await;
    server.thaw();
    run(&mut worker).await;
    server.kill();
    run(&mut worker).await;
    // Nobody runs these while it is away.
    let kept = submit(&mesh, &admin, vec![TaskSpec { agent: "noop".into(), pool: "other".into(), ..spec() }; 7]).await;
    server.restart();
    let key = "ado:hints:default\0other\0noop";
    until("it is rebuilt", async || server.ask::<usize>(&["ZCARD", key]) == kept.len()).await;
    run(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_that_share_a_redis_run_every_task_once() {
    const TASKS: usize = 2000;
    let Some(server) = server::shared() else { return };
    let truth = Truth::new();
    let prefix = format!("{}:", Env::system().uuid());
    let (one, two) = (truth.controller_on(server, &prefix).await, truth.controller_on(server, &prefix).await);
    let mut sessions = Vec::new();
    for mesh in [&one, &two] {
        let (link, _) = mesh.member(Role::Worker, "default", "worker").await;
        let opened = link.open(&session(Incarnation(mesh.env.uuid()), TASKS as u32 / 2), call()).await;
        sessions.push((link, opened.expect("the worker is accepted")));
    }
    let (one_admin, two_admin) = (one.admin(), two.admin());
    let half = || (0..TASKS / 2).map(|_| spec()).collect();
    let (a, b) = tokio::join!(submit(&one, &one_admin, half()), submit(&two, &two_admin, half()));
    until("all are assigned", async || truth.waiting().await == 0).await;
    let (mut assigned, mut submitted) = (truth.assigned().await, [a, b].concat());
    assigned.sort();
    submitted.sort();
    assert_eq!(assigned, submitted, "each once: no hint that two have popped was claimed twice");
}

fn started() -> Body {
    Started { pid: 1, containment: Containment::Group }.into()
}

fn exited() -> Body {
    Exited { exit: Exit::Code(0) }.into()
}

fn line(text: &'static str) -> Body {
    Output { stream: Stream::Stdout, position: 0, data: Bytes::from_static(text.as_bytes()) }.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_at_one_controller_sees_what_another_commits() {
    let Some(mut server) = server::Redis::start() else { return };
    let truth = Truth::new();
    let (one, two) = (truth.controller_on(&server, "ado:").await, truth.controller_on(&server, "ado:").await);
    let (here, there) = (one.admin(), two.admin());
    let mut worker = one.worker(1).await;
    let task = one.submit(&here, spec()).await;
    let (_, mut viewer) = follow(&there, task, StartAt::Offset(Offset(0))).await;
    let mut seen = 0;
    let mut sees = async |count: u64| {
        while seen < count {
            if let FollowItem::Records(records) = next(&mut viewer).await {
                let records = records.decode().expect("records");
                assert_eq!(records[0].offset.0, seen);
                seen += records.len() as u64;
            }
        }
    };
    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let mut attempt = worker.output(task, assignment.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), line("one\n")]).await;
    // Submitted and assigned come before.
    sees(4).await;
    server.freeze();
    attempt.send(2, vec![line("two\n")]).await;
    sees(5).await;
    server.thaw();
    server.kill();
    attempt.send(3, vec![line("three\n"), Note { text: "n".into() }.into()]).await;
    sees(6).await;
    server.restart();
    attempt.send(5, vec![line("four\n")]).await;
    sees(7).await;
}
