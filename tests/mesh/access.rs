//! Who may do what; tokens; idempotency.

use std::collections::BTreeSet;
use std::time::Duration;

use ado::net::{Call, Error, Link};
use ado_certs::{Ca, ClientTls, KeyRequest};
use ado_proto::record::{Answer, Desired, Note};
use ado_proto::request::{
    CreateToken, DeadOnes, Detach, Enrol, ErrorCode, EventsFrom, Follow, GetBlob, GetTasks, GiveAnswer, Hello, KNOWN,
    ListAudit, ListControllers, ListEvents, ListSecrets, ListTasks, ListTokens, ListWorkers, PurgeDead, PutBlob,
    RemoveSecret, Renew, Request, RetryDead, RevokeIdentity, RevokeToken, SetDesired, SetSecret, SetWorker, StartAt,
    Submit, TaskOutput, WorkerBounds, WorkerDesired, WorkerSession,
};
use ado_proto::session::ToAttempt;
use ado_proto::spec::Input;
use ado_proto::{BlobId, Epoch, Incarnation, Namespace, Offset, Principal, RequestId, Role, Secret, TaskId};

use crate::mesh::{Mesh, Worker, ask, call, refusal, session, spec};

fn hello() -> Hello {
    Hello { build: "test".into() }
}

fn cancel(reference: String) -> SetDesired {
    SetDesired { reference, desired: Desired::Cancelled, force: false }
}

#[tokio::test]
async fn roles_and_namespaces_decide_and_a_strangers_task_does_not_exist() {
    let mesh = Mesh::start().await;
    let (ann, _) = mesh.member(Role::User, "a", "ann").await;
    let (bob, _) = mesh.member(Role::User, "b", "bob").await;
    let (vic, _) = mesh.member(Role::Viewer, "a", "vic").await;
    let (wes, _) = mesh.member(Role::Worker, "a", "wes").await;
    let task = mesh.submit(&ann, spec()).await;
    let reference = || task.short();

    assert_eq!(ask(&vic, GetTasks { reference: reference() }).await.unwrap()[0].id, task);
    refusal(ask(&vic, cancel(reference())).await, ErrorCode::Denied);
    refusal(ask(&vic, Submit { name: None, specs: vec![spec()], copies: 1 }).await, ErrorCode::Denied);
    refusal(ask(&wes, ListTasks::default()).await, ErrorCode::Denied);
    refusal(ask(&ann, session(Incarnation(mesh.env.uuid()), 1)).await, ErrorCode::Denied);

    let theirs = refusal(ask(&bob, GetTasks { reference: reference() }).await, ErrorCode::NotFound);
    let nothing = refusal(ask(&bob, GetTasks { reference: "task-0000000000".into() }).await, ErrorCode::NotFound);
    assert_eq!(theirs.replace(&reference(), "X"), nothing.replace("task-0000000000", "X"), "they answer alike");
    refusal(ask(&bob, cancel(task.to_string())).await, ErrorCode::NotFound);
    let follow =
        Follow { task, from: StartAt::Offset(Offset(0)), follow: false, without_output: false, generation: None };
    refusal(bob.open(&follow, call()).await.map(drop), ErrorCode::NotFound);
    assert_eq!(ask(&bob, ListTasks { limit: 10, ..ListTasks::default() }).await.unwrap().tasks, []);
    let elsewhere = Call { namespace: Some(Namespace("a".into())), ..call() };
    refusal(bob.call(&GetTasks { reference: reference() }, elsewhere).await, ErrorCode::Denied);

    let admin = mesh.admin();
    assert_eq!(ask(&admin, GetTasks { reference: reference() }).await.unwrap()[0].id, task);
    assert_eq!(ask(&ann, cancel(reference())).await.unwrap()[0].state, "cancelled");
}

#[tokio::test]
async fn a_worker_gets_tasks_of_its_own_namespace_only() {
    let mesh = Mesh::start().await;
    let (ann, _) = mesh.member(Role::User, "a", "ann").await;
    mesh.submit(&ann, spec()).await;
    let mut worker = mesh.worker(1).await;
    let own = mesh.submit(&mesh.admin(), spec()).await;
    assert_eq!(worker.assignment().await.task, own, "the older task is of another namespace");
}

#[tokio::test]
async fn references_are_prefixes_names_or_clear_errors() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let named = Submit { name: Some("nightly".into()), specs: vec![spec()], copies: 1 };
    let task = ask(&admin, named).await.unwrap().tasks[0];
    let short = task.short();
    for reference in [short.clone(), short[..9].into(), short[5..].into(), task.to_string(), "nightly".into()] {
        assert_eq!(ask(&admin, GetTasks { reference: reference.clone() }).await.unwrap()[0].id, task, "{reference}");
    }
    let twin =
        ask(&admin, Submit { name: Some("nightly".into()), specs: vec![spec()], copies: 1 }).await.unwrap().tasks[0];
    let message = refusal(ask(&admin, GetTasks { reference: "nightly".into() }).await, ErrorCode::Ambiguous);
    assert!([twin, task].iter().all(|id| message.contains(&id.short())), "{message}");
    let message = refusal(ask(&admin, GetTasks { reference: "task-zz".into() }).await, ErrorCode::Invalid);
    assert!(message.contains("`task-zz` is too short"), "{message}");
    let message = refusal(ask(&admin, GetTasks { reference: "no such".into() }).await, ErrorCode::NotFound);
    assert!(message.contains("`no such`"), "{message}");
    let group = Submit { name: None, specs: vec![spec(), spec(), spec()], copies: 1 };
    let group = ask(&admin, group).await.unwrap();
    let found = ask(&admin, GetTasks { reference: group.group.unwrap().short() }).await.unwrap();
    assert_eq!(found.iter().map(|info| info.id).collect::<Vec<_>>(), group.tasks);
}

#[tokio::test]
async fn a_request_said_twice_happens_once() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let id = RequestId(mesh.env.uuid());
    let submit = Submit { name: None, specs: vec![spec()], copies: 1 };
    let once = || Call { id: Some(id), ..call() };
    let first = admin.call(&submit, once()).await.unwrap();
    let second = mesh.admin().call(&submit, once()).await.unwrap();
    assert_eq!(first, second);
    let listed = ask(&admin, ListTasks { limit: 10, ..ListTasks::default() }).await.unwrap().tasks;
    assert_eq!(listed.len(), 1);
    // The same id of somebody else is another request.
    let (ann, _) = mesh.member(Role::User, "default", "ann").await;
    let anns = ann.call(&submit, once()).await.unwrap();
    assert_ne!(anns.tasks, first.tasks);
    assert_eq!(ann.call(&submit, once()).await.unwrap(), anns);
    let other = Submit { name: Some("other".into()), ..submit };
    refusal(admin.call(&other, once()).await, ErrorCode::Conflict);
    let elsewhere = Call { namespace: Some(Namespace("elsewhere".into())), ..once() };
    refusal(admin.call(&Submit { name: None, specs: vec![spec()], copies: 1 }, elsewhere).await, ErrorCode::Conflict);
    let old = uuid::Builder::from_unix_timestamp_millis(1_700_000_000_000, &[7; 10]).into_uuid();
    let late = Call { id: Some(RequestId(old)), ..call() };
    let message = refusal(admin.call(&other, late).await, ErrorCode::Conflict);
    assert!(message.contains("hours old"), "{message}");
}

#[tokio::test]
async fn a_change_said_twice_means_what_it_meant_the_first_time() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let named = || Submit { name: Some("nightly".into()), specs: vec![spec()], copies: 1 };
    ask(&admin, named()).await.unwrap();
    let once = Call { id: Some(RequestId(mesh.env.uuid())), ..call() };
    let pause = SetDesired { reference: "nightly".into(), desired: Desired::Paused, force: false };
    let first = admin.call(&pause, once.clone()).await.unwrap();
    assert_eq!((first.len(), first[0].state.as_str()), (1, "paused"));
    ask(&admin, named()).await.unwrap();
    refusal(ask(&admin, pause.clone()).await, ErrorCode::Ambiguous);
    assert_eq!(admin.call(&pause, once.clone()).await.unwrap(), first, "the name was of one task then");
    refusal(admin.call(&cancel("nightly".into()), once).await, ErrorCode::Conflict);
}

#[tokio::test]
async fn a_token_is_revoked_once_however_often_it_is_said() {
    let mesh = Mesh::start().await;
    let token = mesh.token(Role::User, "default", None, Duration::from_secs(60)).await;
    let once = Call { id: Some(RequestId(mesh.env.uuid())), ..call() };
    let revoke = RevokeToken { id: token.id };
    mesh.admin().call(&revoke, once.clone()).await.unwrap();
    mesh.admin().call(&revoke, once.clone()).await.expect("the transport may say it again");
    let lines = mesh.audit().await;
    assert_eq!(lines.iter().filter(|line| line.contains("RevokeToken")).count(), 1);
    refusal(mesh.admin().call(&RevokeToken { id: "other".into() }, once).await, ErrorCode::Conflict);
    refusal(ask(&mesh.admin(), revoke).await, ErrorCode::NotFound);
}

/// Asks everything there is, about nothing that is there. The names of the requests that are not denied.
async fn allowed(link: &Link, namespace: Option<&str>) -> Vec<&'static str> {
    let mut asked = BTreeSet::new();
    let mut allowed = Vec::new();
    let call = || Call { namespace: namespace.map(|name| Namespace(name.into())), ..call() };
    macro_rules! ask {
        ($($request:ident $fields:tt;)+) => {$({
            asked.insert($request::KIND);
            match link.call(&$request $fields, call()).await {
                Err(Error::Refused(reply)) if reply.is(ErrorCode::Denied) => {}
                Ok(_) | Err(Error::Refused(_)) => allowed.push($request::NAME),
                Err(other) => panic!("{}: {other:?}", $request::NAME),
            }
        })+};
    }
    let (task, incarnation) = (TaskId(uuid::Uuid::from_u128(1)), Incarnation(uuid::Uuid::from_u128(2)));
    let reference = || task.to_string();
    ask! {
        Hello { build: "test".into() };
        Enrol { secret: String::new(), csr: Vec::new(), name: "ann".into() };
        Renew { csr: Vec::new() };
        CreateToken {
            role: Role::Viewer,
            namespace: Namespace::default(),
            name: None,
            uses: Some(1),
            ttl_ms: 1,
            bounds: WorkerBounds::default(),
        };
        ListTokens {};
        RevokeToken { id: "none".into() };
        RevokeIdentity { identity: "ado://a/user/none".into() };
        Submit { name: None, specs: Vec::new(), copies: 1 };
        GetTasks { reference: reference() };
        ListTasks { limit: 1, ..ListTasks::default() };
        SetDesired { reference: reference(), desired: Desired::Paused, force: false };
        RetryDead { which: DeadOnes::Named(reference()), fresh: false };
        PurgeDead { which: DeadOnes::Named(reference()) };
        GiveAnswer { reference: reference(), ask: None, answer: Answer { choice: None, text: None } };
        Follow { task, from: StartAt::Tail(1), follow: false, without_output: false, generation: None };
        Detach { reference: reference(), all: false };
        ListWorkers { task: None };
        SetWorker { worker: "none".into(), desired: WorkerDesired::Active, within_ms: None };
        ListControllers {};
        ListEvents { from: EventsFrom::Tail(1), limit: 1, wait_ms: 0 };
        ListAudit { limit: 1, ..ListAudit::default() };
        SetSecret { name: "-".into(), value: Secret::new("none".into()) };
        ListSecrets {};
        RemoveSecret { name: "none".into() };
        WorkerSession { ..session(incarnation, 0) };
        TaskOutput { task, epoch: Epoch(1), incarnation };
        PutBlob { task, epoch: Epoch(1), incarnation, id: BlobId([0; 32]), len: 1 };
        GetBlob { task, epoch: Epoch(1), incarnation, id: BlobId([0; 32]) };
    }
    let known: BTreeSet<_> = KNOWN.iter().map(|known| known.0).collect();
    assert_eq!(asked, known, "a request is not asked here: add it");
    allowed
}

/// The table itself is in the controller; this is whether anything passes it by. Written out once more.
#[tokio::test]
async fn every_request_of_every_role_goes_through_the_table() {
    let mesh = Mesh::start().await;
    let ca = Ca::open_or_create(&mesh.dir.path().join("controller"), mesh.env.now()).unwrap();
    let reads = "GetTasks ListTasks Follow Detach ListWorkers ListControllers ListEvents";
    let user = "Hello Renew Submit GetTasks ListTasks SetDesired RetryDead PurgeDead GiveAnswer Follow Detach ListWorkers \
                ListControllers ListEvents SetSecret ListSecrets RemoveSecret";
    let admin = "Hello Renew CreateToken ListTokens RevokeToken RevokeIdentity Submit GetTasks ListTasks SetDesired \
                 RetryDead PurgeDead GiveAnswer Follow Detach ListWorkers SetWorker ListControllers ListEvents ListAudit SetSecret \
                 ListSecrets RemoveSecret";
    for (role, own, elsewhere) in [
        (Role::Admin, admin, admin),
        (Role::User, user, ""),
        (Role::Viewer, &*format!("Hello Renew {reads}"), ""),
        (Role::Worker, "Hello Renew WorkerSession TaskOutput PutBlob GetBlob", ""),
        (Role::Controller, "Hello", ""),
    ] {
        let key = KeyRequest::new().unwrap();
        let who = Principal { role, namespace: Namespace("a".into()), name: mesh.env.uuid().to_string() };
        let issued = ca.issue(key.csr_der(), &who, Duration::from_secs(3600), mesh.env.now()).unwrap();
        let link = mesh.link(ClientTls::mesh(key.into_identity(issued.chain).unwrap()).unwrap());
        assert_eq!(allowed(&link, Some("a")).await.join(" "), own, "{role} at home");
        assert_eq!(allowed(&link, Some("b")).await.join(" "), elsewhere, "{role} elsewhere");
    }
    // Who is nobody yet may become somebody, and nothing else.
    let token = mesh.token(Role::User, "a", Some(1), Duration::from_secs(60)).await;
    let join: ado_certs::JoinString = token.join.parse().unwrap();
    let stranger = mesh.link(ClientTls::join(join.pin).unwrap());
    assert_eq!(allowed(&stranger, None).await, ["Enrol"]);
    let refused = mesh.refusals().await;
    assert!(refused.iter().any(|line| line.starts_with("stranger Submit 127.0.0.1: a joining peer may only enrol")));
}

#[tokio::test]
async fn what_is_somebody_elses_may_be_read_and_not_changed() {
    let mesh = Mesh::start().await;
    let (ann, _) = mesh.member(Role::User, "a", "ann").await;
    let (carl, _) = mesh.member(Role::User, "a", "carl").await;
    let (bob, _) = mesh.member(Role::User, "b", "bob").await;
    let named = || Submit { name: Some("nightly".into()), specs: vec![spec()], copies: 1 };
    let anns = ask(&ann, named()).await.unwrap().tasks[0];
    assert_eq!(ask(&carl, GetTasks { reference: anns.short() }).await.unwrap()[0].owner, "user/ann");
    for reference in [anns.short(), anns.to_string(), "nightly".into()] {
        let message = refusal(ask(&carl, cancel(reference)).await, ErrorCode::Denied);
        assert_eq!(
            message,
            format!("{} belongs to user/ann: only they and administrators may change it", anns.short())
        );
    }
    // A name that both have is one's own.
    let carls = ask(&carl, named()).await.unwrap().tasks[0];
    let set = ask(&carl, cancel("nightly".into())).await.unwrap();
    assert_eq!(set.iter().map(|set| set.task).collect::<Vec<_>>(), [carls]);
    assert_eq!(ask(&ann, GetTasks { reference: anns.short() }).await.unwrap()[0].state, "queued");
    // An id of another namespace is not there, and that it was known is written down; what is nowhere is a slip.
    refusal(ask(&bob, GetTasks { reference: anns.to_string() }).await, ErrorCode::NotFound);
    refusal(ask(&bob, GetTasks { reference: "task-0000000000".into() }).await, ErrorCode::NotFound);
    refusal(ask(&bob, GetTasks { reference: "nightly".into() }).await, ErrorCode::NotFound);
    let denied = format!("{} belongs to user/ann: only they and administrators may change it", anns.short());
    assert_eq!(
        mesh.refusals().await,
        [
            format!("ado://a/user/carl SetDesired {}: {denied} x1", anns.short()),
            format!("ado://a/user/carl SetDesired {anns}: {denied} x1"),
            format!("ado://a/user/carl SetDesired nightly: {denied} x1"),
            format!("ado://b/user/bob GetTasks {anns}: it is of another namespace x1"),
        ]
    );
    assert_eq!(ask(&mesh.admin(), cancel(anns.short())).await.unwrap()[0].state, "cancelled");
}

#[tokio::test]
async fn a_worker_may_say_of_itself_what_its_token_allows() {
    let mesh = Mesh::start().await;
    let bounds = WorkerBounds {
        pools: vec!["gpu".into()],
        agents: vec!["shell".into()],
        labels: [("zone".into(), "a".into())].into(),
        max_slots: Some(8),
    };
    let request = CreateToken {
        role: Role::Worker,
        namespace: Namespace::default(),
        name: None,
        uses: Some(1),
        ttl_ms: 60_000,
        bounds: bounds.clone(),
    };
    let not_a_worker = CreateToken { role: Role::User, ..request.clone() };
    refusal(ask(&mesh.admin(), not_a_worker).await, ErrorCode::Invalid);
    let token = ask(&mesh.admin(), request).await.unwrap();
    assert_eq!(ask(&mesh.admin(), ListTokens).await.unwrap()[0].bounds, bounds);
    let identity = mesh.enrol(&token.join, "w").await.unwrap();
    let who = identity.principal().to_string();
    let link = mesh.link(ClientTls::mesh(identity).unwrap());
    let says = || WorkerSession {
        pool: "gpu".into(),
        agents: vec!["shell".into()],
        ..session(Incarnation(mesh.env.uuid()), 8)
    };
    let refused =
        async |session: WorkerSession| refusal(link.open(&session, call()).await.map(drop), ErrorCode::Denied);
    let all = [
        refused(WorkerSession { pool: "default".into(), ..says() }).await,
        refused(WorkerSession { agents: vec!["shell".into(), "noop".into()], ..says() }).await,
        refused(WorkerSession { labels: [("zone".into(), "b".into())].into(), ..says() }).await,
        refused(WorkerSession { slots: 9, ..says() }).await,
    ];
    assert_eq!(
        all,
        [
            "it may not belong to pool `default`: its token allows gpu",
            "it may not offer agent `noop`: its token allows shell",
            "it may not carry label `zone=b`: its token allows zone=a",
            "it may not have 9 slots: its token allows at most 8",
        ]
    );
    assert_eq!(mesh.refusals().await[1..], all.map(|why| format!("{who} WorkerSession played: {why} x1")));
    link.open(&says(), call()).await.expect("what it may say");
    // Its next certificate does not free it.
    let key = KeyRequest::new().unwrap();
    ask(&link, Renew { csr: key.csr_der().to_vec() }).await.unwrap();
    refused(WorkerSession { slots: 9, ..says() }).await;
}

#[tokio::test]
async fn a_forged_epoch_changes_nothing_and_is_written_down() {
    let mesh = Mesh::start().await;
    let mut holder = mesh.worker(4).await;
    let task = mesh.submit(&mesh.admin(), spec()).await;
    assert_eq!(holder.assignment().await.epoch, Epoch(1));
    let stranger = mesh.worker(4).await;
    holder.beat(&[(task, Epoch(1))]).await;
    for (peer, epoch) in [(&holder, Epoch(2)), (&stranger, Epoch(1)), (&holder, Epoch(0))] {
        refusal(peer.output(task, epoch).await.map(drop), ErrorCode::Stale);
    }
    let mut attempt = holder.output(task, Epoch(1)).await.unwrap();
    attempt.epoch = Epoch(7);
    attempt.send(0, vec![Note { text: "forged".into() }.into()]).await;
    assert!(attempt.channel.rx.next_message::<ToAttempt>().await.is_err(), "that stream is over");
    let short = task.short();
    let of = |worker: &Worker| worker.identity.principal().to_string();
    let mut refused = mesh.refusals().await;
    while refused.len() < 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        refused = mesh.refusals().await;
    }
    assert_eq!(
        refused,
        [
            format!("{} TaskOutput {short} epoch 2: epoch 2 of {task} is over x1", of(&holder)),
            format!("{} TaskOutput {short} epoch 1: epoch 1 of {task} is over x1", of(&stranger)),
            format!("{} TaskOutput {short} epoch 0: epoch 0 of {task} is over x1", of(&holder)),
            format!(
                "{} TaskOutput {short} epoch 1: a record of Worker {{ epoch: Epoch(7), seq: Seq(0) }} on the stream of \
                 epoch 1 x1",
                of(&holder)
            ),
        ]
    );
    assert_eq!(ask(&mesh.admin(), GetTasks { reference: short }).await.unwrap()[0].epoch, Epoch(1));
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted() {
    let mesh = Mesh::start().await;
    let (vic, _) = mesh.member(Role::Viewer, "a", "vic").await;
    for _ in 0..300 {
        refusal(ask(&vic, cancel("task-0000000000".into())).await, ErrorCode::Denied);
    }
    let line = "ado://a/viewer/vic SetDesired : ado://a/viewer/vic may not do that";
    assert_eq!(mesh.refusals().await, [format!("{line} x1")]);
    let mesh = mesh.restart().await;
    assert_eq!(mesh.refusals().await, [format!("{line} x1"), format!("{line} x299")], "the rest comes at the end");
}

#[tokio::test]
async fn what_was_asked_is_in_the_audit_log_also_when_it_was_denied() {
    let mesh = Mesh::start().await;
    let (vic, _) = mesh.member(Role::Viewer, "a", "vic").await;
    let once = Call { id: Some(RequestId(mesh.env.uuid())), ..call() };
    let submit = |name: &str| Submit { name: Some(name.into()), specs: vec![spec()], copies: 1 };
    let task = mesh.admin().call(&submit("one"), once.clone()).await.unwrap().tasks[0];
    refusal(mesh.admin().call(&submit("two"), once).await, ErrorCode::Conflict);
    refusal(ask(&vic, cancel(task.to_string())).await, ErrorCode::Denied);
    refusal(ask(&vic, session(Incarnation(mesh.env.uuid()), 1)).await, ErrorCode::Denied);
    ask(&mesh.admin(), cancel(task.to_string())).await.unwrap();
    ask(&mesh.admin(), cancel(task.to_string())).await.unwrap();
    let nobody = mesh.token(Role::User, "a", Some(1), Duration::from_secs(60)).await.join;
    let (start, _) = nobody.rsplit_once(':').unwrap();
    refusal(mesh.enrol(&format!("{start}:{}", ado_certs::secret::generate()), "eve").await, ErrorCode::BadToken);
    assert_eq!(
        mesh.audit().await,
        [
            "ado://default/admin/local CreateToken: ok",
            "ado://a/viewer/vic Enrol: ok",
            "ado://default/admin/local Submit: ok",
            "ado://default/admin/local Submit: this request id was used for another request",
            "ado://a/viewer/vic SetDesired: ado://a/viewer/vic may not do that",
            "ado://a/viewer/vic WorkerSession: ado://a/viewer/vic may not do that",
            "ado://default/admin/local SetDesired: ok",
            "ado://default/admin/local SetDesired: already cancelled",
            "ado://default/admin/local CreateToken: ok",
            "stranger Enrol: the token is unknown or revoked",
        ]
    );
    // As people ask for it.
    let wanted = ListAudit { refused: true, principal: Some("user".into()), limit: 10, ..ListAudit::default() };
    assert_eq!(ask(&mesh.admin(), wanted.clone()).await.unwrap(), []);
    let lines = ask(&mesh.admin(), ListAudit { principal: Some("/vic".into()), ..wanted }).await.unwrap();
    let actions: Vec<_> = lines.iter().map(|line| (&*line.action, &*line.namespace.0)).collect();
    assert_eq!(actions, [("WorkerSession", "a"), ("SetDesired", "a")]);
}

#[tokio::test]
async fn an_answer_that_would_be_too_long_has_shorter_texts() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let mut long = spec();
    long.input = Input::Text("ü".repeat(80_000));
    let mut tasks = Vec::new();
    let mut group = None;
    // A request has a limit too.
    for _ in 0..3 {
        let submitted = ask(&admin, Submit { name: None, specs: vec![long.clone(); 6], copies: 1 }).await.unwrap();
        group = submitted.group;
        tasks.extend(submitted.tasks);
    }
    tasks.sort();
    tasks.reverse();
    let listed = ask(&admin, ListTasks { limit: 1000, ..ListTasks::default() }).await.unwrap().tasks;
    assert_eq!(listed.iter().map(|info| info.id).collect::<Vec<_>>(), tasks);
    assert!(listed.iter().all(|info| info.spec.input.summary().ends_with('…')));
    let found = ask(&admin, GetTasks { reference: group.unwrap().short() }).await.unwrap();
    assert_eq!(found.len(), 6);
    let one = ask(&admin, GetTasks { reference: tasks[0].to_string() }).await.unwrap();
    assert_eq!(one[0].spec.input, long.input, "alone it is whole");
}

#[tokio::test]
async fn tokens_are_used_up_expire_and_are_revoked() {
    let mesh = Mesh::start().await;
    let minute = Duration::from_secs(60);
    let once = mesh.token(Role::User, "default", Some(1), minute).await;
    mesh.enrol(&once.join, "ann").await.unwrap();
    let message = refusal(mesh.enrol(&once.join, "ann").await, ErrorCode::BadToken);
    assert!(message.contains("used"), "{message}");

    let short = mesh.token(Role::User, "default", None, Duration::from_millis(1)).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let message = refusal(mesh.enrol(&short.join, "ann").await, ErrorCode::BadToken);
    assert!(message.contains("expired"), "{message}");

    let key = mesh.token(Role::User, "default", None, minute).await;
    mesh.enrol(&key.join, "ann").await.unwrap();
    mesh.enrol(&key.join, "bob").await.expect("an API key is good for many");
    refusal(mesh.enrol(&key.join, "not a name").await, ErrorCode::Invalid);
    ask(&mesh.admin(), RevokeToken { id: key.id.clone() }).await.unwrap();
    let message = refusal(mesh.enrol(&key.join, "eve").await, ErrorCode::BadToken);
    assert!(message.contains("revoked"), "{message}");
    refusal(ask(&mesh.admin(), RevokeToken { id: key.id }).await, ErrorCode::NotFound);
    let zero = CreateToken {
        role: Role::User,
        namespace: Namespace::default(),
        name: None,
        uses: Some(0),
        ttl_ms: 1,
        bounds: Default::default(),
    };
    refusal(ask(&mesh.admin(), zero).await, ErrorCode::Invalid);
}

#[tokio::test]
async fn a_revoked_identity_is_out_at_once_and_for_good() {
    let mesh = Mesh::start().await;
    let (ann, identity) = mesh.member(Role::User, "default", "ann").await;
    ask(&ann, hello()).await.unwrap();
    let who = identity.principal().to_string();
    let revoked = ask(&mesh.admin(), RevokeIdentity { identity: who.clone() }).await.unwrap();
    assert_eq!(revoked.certificates, 1);
    let denied = |result: Result<_, Error>| match result {
        Err(Error::Certificate(message)) => assert!(message.contains("revoked"), "{message}"),
        Err(Error::Refused(reply)) => assert!(reply.is(ErrorCode::BadCertificate), "{reply:?}"),
        other => panic!("still in: {other:?}"),
    };
    denied(ask(&ann, hello()).await);
    // Anew, and with a renewed certificate, and under the same name by a new token.
    let again = mesh.link(ClientTls::mesh(identity).unwrap());
    denied(ask(&again, hello()).await);
    let token = mesh.token(Role::User, "default", Some(1), Duration::from_secs(60)).await;
    refusal(mesh.enrol(&token.join, "ann").await, ErrorCode::BadCertificate);
    refusal(
        ask(&mesh.admin(), RevokeIdentity { identity: "ado://default/user/eve".into() }).await,
        ErrorCode::NotFound,
    );
    let message = refusal(ask(&mesh.admin(), RevokeIdentity { identity: "ann".into() }).await, ErrorCode::Invalid);
    assert!(message.contains("ado://"), "{message}");
}

#[tokio::test]
async fn a_certificate_is_renewed_and_the_connection_lives() {
    let mesh = Mesh::start().await;
    let (ann, identity) = mesh.member(Role::User, "default", "ann").await;
    let state = ann.state();
    ask(&ann, hello()).await.unwrap();
    let before = state.borrow().clone();
    let key = KeyRequest::new().unwrap();
    let renewed = ask(&ann, Renew { csr: key.csr_der().to_vec() }).await.unwrap();
    let next = key.into_identity(renewed.chain.into_iter().map(Into::into).collect()).unwrap();
    assert_eq!(next.principal(), identity.principal());
    assert_ne!(next.serial(), identity.serial());
    ask(&ann, hello()).await.unwrap();
    assert_eq!(*state.borrow(), before, "the same connection");
}

#[tokio::test]
async fn another_meshs_certificate_is_refused() {
    let mesh = Mesh::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open_or_create(dir.path(), mesh.env.now()).unwrap();
    let key = KeyRequest::new().unwrap();
    let who = Principal { role: Role::Admin, namespace: Namespace::default(), name: "mallory".into() };
    let issued = ca.issue(key.csr_der(), &who, Duration::from_secs(3600), mesh.env.now()).unwrap();
    let forged = key.into_identity(issued.chain).unwrap();
    let link = mesh.link(ClientTls::mesh(forged).unwrap());
    match ask(&link, hello()).await {
        Err(Error::Certificate(message)) => assert!(!message.is_empty()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_worker_with_absurd_slots_is_refused() {
    let mesh = Mesh::start().await;
    let (link, _) = mesh.member(Role::Worker, "default", "w").await;
    for slots in [0, 100_000] {
        let session: WorkerSession = session(Incarnation(mesh.env.uuid()), slots);
        let message = refusal(link.open(&session, call()).await.map(drop), ErrorCode::Invalid);
        assert!(message.contains(&slots.to_string()), "{message}");
    }
}
