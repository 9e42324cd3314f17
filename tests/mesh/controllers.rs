//! Two controllers on one store: what is asked of one holds at the other, within moments.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ado::controller::Parts;
use ado::env::Env;
use ado::net::{Channel, Error, Link};
use ado::queue::{Redis, RedisConfig};
use ado::store::Memory;
use ado::tasks::Tasks;
use ado_proto::record::Desired;
use ado_proto::request::{
    Detach, ErrorCode, GetTasks, Hello, ListControllers, ListWorkers, Load, SetDesired, SetWorker, StartAt, Submit,
    TaskInfo, WorkerDesired, WorkerInfo, WorkerSession, WorkerSet,
};
use ado_proto::session::{FollowItem, ToWorker};
use ado_proto::spec::TaskSpec;
use ado_proto::{Incarnation, Offset, RequestId, Role, TaskId};

use crate::mesh::{Mesh, Worker, ask, call, follow, next, refusal, session, spec};
use crate::servers::redis as server;

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Two controllers on one store and one Redis, once they know each other.
async fn two(server: &server::Redis) -> (Mesh, Mesh) {
    let store = Arc::new(Memory::new(Env::system()));
    let prefix = format!("{}:", Env::system().uuid());
    let start = async || {
        let background = Tasks::new();
        let config = RedisConfig { url: server.url(), prefix: prefix.clone() };
        let redis = Arc::new(Redis::start(&config, Env::system(), &background).await.expect("a good URL"));
        let (queue, others) = (redis.clone(), Some(redis as _));
        Mesh::on(Parts { store: store.clone(), queue, others, shared: true, background }).await
    };
    let (one, two) = (start().await, start().await);
    for mesh in [&one, &two] {
        let admin = mesh.admin();
        let known = async || {
            let welcome = ask(&admin, Hello { build: String::new() }).await.expect("it answers");
            (welcome.controllers.len() == 2).then_some(welcome.controllers)
        };
        let addresses = until("each knows the other", known).await;
        assert_eq!(addresses[0], mesh.controller.addresses()[0].to_string(), "who says it comes first");
    }
    (one, two)
}

async fn workers(link: &Link, task: Option<TaskId>) -> Vec<WorkerInfo> {
    ask(link, ListWorkers { task: task.map(|task| task.to_string()) }).await.expect("workers")
}

async fn task(link: &Link, task: TaskId) -> TaskInfo {
    ask(link, GetTasks { reference: task.to_string() }).await.expect("it is there").remove(0)
}

async fn set(mesh: &Mesh, link: &Link, worker: &str, desired: WorkerDesired) -> Result<WorkerSet, Error> {
    let request = SetWorker { worker: worker.into(), desired, within_ms: None };
    link.call(&request, ado::net::Call { id: Some(RequestId(mesh.env.uuid())), ..call() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_one_mesh_and_each_knows_the_others_workers() {
    let Some(server) = server::shared() else { return };
    let (one, two) = two(server).await;
    let (here, there) = (one.admin(), two.admin());
    let (_, ann) = one.member(Role::User, "default", "ann").await;
    let at_two = two.link(ado_certs::ClientTls::mesh(ann).expect("a TLS configuration"));
    ask(&at_two, Hello { build: String::new() }).await.expect("a member of one is a member of the other");

    let mut worker = two.worker(3).await;
    worker.load = Load { cpus: 4, load_milli: 1500, memory: 1 << 34, memory_available: 1 << 33 };
    worker.beat(&[]).await;
    let seen = until("the other's worker is known", async || {
        let all = workers(&here, None).await;
        all.into_iter().find(|worker| worker.load.is_some())
    });
    let seen = seen.await;
    assert_eq!((seen.state.as_str(), seen.load, seen.slots), ("ready", Some(worker.load), 3));
    assert!(seen.rtt_us.is_some() && seen.ineligible.is_none(), "{seen:?}");

    // Its controller, as the list of controllers has it.
    let of_two = until("its controller says that it has it", async || {
        let all = ask(&here, ListControllers).await.expect("controllers");
        assert_eq!(all.len(), 2);
        assert_eq!(all.iter().filter(|controller| controller.answers).count(), 1);
        all.into_iter().find(|controller| controller.workers == 1)
    });
    let of_two = of_two.await;
    assert_eq!((Some(of_two.id), of_two.answers, of_two.state.as_str()), (seen.controller, false, "live"));
    let own = workers(&there, None).await.remove(0);
    assert_eq!(own.controller, seen.controller);

    // Nobody at the first has a worker; what waits says what is true of all.
    let wants = TaskSpec { labels: BTreeMap::from([("zone".into(), "mars".into())]), ..spec() };
    let request = Submit { name: None, specs: vec![wants], copies: 1 };
    let id = Some(RequestId(one.env.uuid()));
    let submitted = here.call(&request, ado::net::Call { id, ..call() }).await.expect("it is taken");
    let reason = task(&here, submitted.tasks[0]).await.reason.unwrap_or_default();
    assert!(reason.contains("lacks the label zone=mars"), "{reason}");
    let request = Submit { name: None, specs: vec![spec()], copies: 1 };
    let id = Some(RequestId(one.env.uuid()));
    let submitted = here.call(&request, ado::net::Call { id, ..call() }).await.expect("it is taken");
    assert_eq!(submitted.eligible_workers, 1);
    assert_eq!(worker.assignment().await.task, submitted.tasks[0]);
}

/// The next word of a controller that is about what is wanted. The worker is silent: no heartbeat's answer brings it.
async fn wanted(worker: &mut Worker) -> ToWorker {
    loop {
        match worker.next().await {
            word @ (ToWorker::Want(_) | ToWorker::Wish(_)) => return word,
            ToWorker::HeartbeatAnswer(_) | ToWorker::Bridge(_) | ToWorker::Assign(_) | ToWorker::Controllers(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_at_one_is_told_to_the_others_worker_at_once() {
    let Some(server) = server::shared() else { return };
    let (one, two) = two(server).await;
    let (here, mut worker) = (one.admin(), two.worker(2).await);
    let id = one.submit(&here, spec()).await;
    let assignment = worker.assignment().await;
    worker.beat(&[(id, assignment.epoch)]).await;
    let pause = SetDesired { reference: id.to_string(), desired: Desired::Paused, force: false };
    ask(&here, pause).await.expect("it is wanted");
    let ToWorker::Want(want) = wanted(&mut worker).await else { panic!("about the task") };
    assert_eq!((want.task, want.desired), (id, Desired::Paused));

    let info = set(&one, &here, "played", WorkerDesired::Drained).await.expect("it is wanted");
    assert_eq!((info.busy, info.unchanged), (1, None));
    let ToWorker::Wish(wish) = wanted(&mut worker).await else { panic!("about the worker") };
    assert_eq!((wish.desired, wish.generation), (WorkerDesired::Drained, 1));
    assert!(wish.left_ms.is_some_and(|left| left <= 300_000 && left > 200_000), "{wish:?}");
    let answer = worker.beat(&[(id, assignment.epoch)]).await;
    assert_eq!((answer.wish.desired, answer.wish.generation), (WorkerDesired::Drained, 1), "and told again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_everywhere_leave_and_are_counted() {
    let Some(server) = server::shared() else { return };
    let (one, two) = two(server).await;
    let (here, there) = (one.admin(), two.admin());
    let id = one.submit(&here, spec()).await;
    let from = StartAt::Offset(Offset(0));
    let (_, mut at_one) = follow(&here, id, from).await;
    let (_, mut at_two) = follow(&there, id, from).await;
    let told = async |channel: &mut Channel| loop {
        match next(channel).await {
            FollowItem::Records(_) | FollowItem::Idle(_) => {}
            FollowItem::Detached(detached) => return detached.by,
            other => panic!("{other:?}"),
        }
    };
    let viewers = ask(&here, Detach { reference: id.short(), all: true }).await.expect("they leave").viewers;
    assert_eq!(viewers, 2);
    assert_eq!((told(&mut at_one).await, told(&mut at_two).await), ("admin/local".into(), "admin/local".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_only_another_controllers_worker_fits_gets_there() {
    let Some(server) = server::shared() else { return };
    let (one, two) = two(server).await;
    let labelled = async |mesh: &Mesh, zone: &str| {
        let (link, _) = mesh.member(Role::Worker, "default", zone).await;
        let labels = BTreeMap::from([("zone".into(), zone.into())]);
        let request = WorkerSession { labels, name: zone.into(), ..session(Incarnation(mesh.env.uuid()), 4) };
        (link.open(&request, call()).await.expect("the worker is accepted").1, link)
    };
    // Both have free slots of the class, so whoever is quicker pops the hint.
    let (_mine, _link) = labelled(&one, "a").await;
    let (mut theirs, _their_link) = labelled(&two, "b").await;
    let here = one.admin();
    for _ in 0..10 {
        let wants = TaskSpec { labels: BTreeMap::from([("zone".into(), "b".into())]), ..spec() };
        let id = one.submit(&here, wants).await;
        let assigned = async {
            loop {
                let message = theirs.rx.next_message().await.expect("the session lives");
                if let Some(ToWorker::Assign(assignment)) = message {
                    return assignment.task;
                }
            }
        };
        assert_eq!(tokio::time::timeout(PATIENCE, assigned).await.expect("it comes"), id);
        one.cancel(id).await;
        until("its slot is free", async || (task(&here, id).await.state != "queued").then_some(())).await;
        if workers(&here, None).await.iter().any(|worker| worker.name == "b" && worker.busy == 4) {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_free_elsewhere_gets_what_was_popped_here() {
    let Some(server) = server::shared() else { return };
    let (one, two) = two(server).await;
    let (here, mut busy) = (one.admin(), one.worker(1).await);
    let first = one.submit(&here, spec()).await;
    assert_eq!(busy.assignment().await.task, first);
    // The first controller's only slot is taken: whatever it pops it cannot place.
    let mut idle = two.worker(1).await;
    let second = one.submit(&here, spec()).await;
    assert_eq!(idle.assignment().await.task, second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wishes_are_for_administrators_and_say_what_is_wrong() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let (user, _) = mesh.member(Role::User, "default", "ann").await;
    let mut worker = mesh.worker(2).await;
    worker.beat(&[]).await;
    refusal(set(&mesh, &user, "played", WorkerDesired::Cordoned).await, ErrorCode::Denied);
    let missing = refusal(set(&mesh, &admin, "nobody", WorkerDesired::Cordoned).await, ErrorCode::NotFound);
    assert!(missing.contains("there is no worker `nobody`"), "{missing}");
    let too_long = SetWorker { worker: "played".into(), desired: WorkerDesired::Drained, within_ms: Some(u64::MAX) };
    assert!(refusal(ask(&admin, too_long).await, ErrorCode::Invalid).contains("within 7 days"));
    let no_drain = SetWorker { worker: "played".into(), desired: WorkerDesired::Cordoned, within_ms: Some(1) };
    assert!(refusal(ask(&admin, no_drain).await, ErrorCode::Invalid).contains("only a drain"));

    // Of another namespace's administrator's view it is not there.
    let elsewhere = ado::net::Call { namespace: Some(ado_proto::Namespace("red".into())), ..call() };
    let request = SetWorker { worker: "played".into(), desired: WorkerDesired::Cordoned, within_ms: None };
    refusal(admin.call(&request, elsewhere).await, ErrorCode::NotFound);

    let id = workers(&admin, None).await[0].id.to_string();
    let cordoned = set(&mesh, &admin, &id[..8], WorkerDesired::Cordoned).await.expect("by the beginning of its id");
    assert_eq!((cordoned.state.as_str(), cordoned.unchanged), ("ready", None));
    let again = set(&mesh, &admin, &id, WorkerDesired::Cordoned).await.expect("it is so already");
    assert_eq!(again.unchanged.as_deref(), Some("cordoned already by admin/local"));
    let told = workers(&admin, None).await.remove(0);
    assert_eq!((told.state.as_str(), told.desired), ("cordoned", WorkerDesired::Cordoned));
    assert_eq!(
        told.ineligible.as_deref(),
        Some("is cordoned by admin/local: `ado workers uncordon played` lets it take work again")
    );
    let waits = mesh.submit(&admin, spec()).await;
    let reason = task(&admin, waits).await.reason.unwrap_or_default();
    assert!(reason.contains("ado workers uncordon played"), "{reason}");

    // Said twice under one id it happens once, also when it is taken back meanwhile.
    let key = Some(RequestId(mesh.env.uuid()));
    let lift = SetWorker { worker: "played".into(), desired: WorkerDesired::Active, within_ms: None };
    let lifted = admin.call(&lift, ado::net::Call { id: key, ..call() }).await.expect("it is lifted");
    assert_eq!(worker.assignment().await.task, waits);
    set(&mesh, &admin, "played", WorkerDesired::Cordoned).await.expect("once more");
    let replayed = admin.call(&lift, ado::net::Call { id: key, ..call() }).await.expect("the first answer");
    assert_eq!(replayed, lifted);
    assert_eq!(workers(&admin, None).await[0].desired, WorkerDesired::Cordoned);
    let audit = mesh.audit().await;
    let done = audit.iter().filter(|line| line.contains(" SetWorker") && line.ends_with(": ok")).count();
    assert!(done >= 4, "{audit:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_worker_hands_back_and_stays_known() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let mut worker = mesh.worker(2).await;
    let id = mesh.submit(&admin, spec()).await;
    let assignment = worker.assignment().await;
    worker.beat(&[(id, assignment.epoch)]).await;
    set(&mesh, &admin, "played", WorkerDesired::Drained).await.expect("it is wanted");
    assert_eq!(workers(&admin, None).await[0].state, "draining");
    worker.draining = true;
    worker.beat(&[(id, assignment.epoch)]).await;
    let notice = ado_proto::session::Draining { hand_back: vec![(id, assignment.epoch)] };
    worker.channel.tx.send_message(&ado_proto::session::FromWorker::from(notice)).await.expect("the session lives");
    worker.beat(&[]).await;
    let back = task(&admin, id).await;
    assert_eq!((back.state.as_str(), back.losses), ("queued", 1), "nothing is charged");
    assert_eq!(workers(&admin, None).await[0].state, "drained");

    drop(worker);
    until("it has left", async || {
        let told = workers(&admin, None).await;
        told[0].load.is_none().then_some(())
    })
    .await;
    let gone = workers(&admin, None).await.remove(0);
    assert_eq!(gone.state, "drained", "it is not forgotten: what is wanted of it can be taken back");
    let lifted = set(&mesh, &admin, "played", WorkerDesired::Active).await.expect("it may come back");
    assert_eq!((lifted.state.as_str(), lifted.unchanged), ("drained", None));
    assert_eq!(workers(&admin, None).await[0].state, "disconnected", "it has not come back");
}
