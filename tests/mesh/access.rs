//! Who may do what; tokens; idempotency.

use std::time::Duration;

use ado::net::{Call, Error};
use ado_certs::{Ca, ClientTls, KeyRequest};
use ado_proto::record::Desired;
use ado_proto::request::{
    CreateToken, ErrorCode, Follow, GetTasks, Hello, ListTasks, Renew, RevokeIdentity, RevokeToken, SetDesired,
    StartAt, Submit, WorkerSession,
};
use ado_proto::spec::Input;
use ado_proto::{Incarnation, Namespace, Offset, Principal, RequestId, Role};

use crate::mesh::{Mesh, ask, call, refusal, session, spec};

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

#[tokio::test]
async fn what_was_asked_is_in_the_audit_log_also_when_it_was_denied() {
    let mesh = Mesh::start().await;
    let (vic, _) = mesh.member(Role::Viewer, "a", "vic").await;
    let task = mesh.submit(&mesh.admin(), spec()).await;
    refusal(ask(&vic, cancel(task.to_string())).await, ErrorCode::Denied);
    refusal(ask(&vic, session(Incarnation(mesh.env.uuid()), 1)).await, ErrorCode::Denied);
    ask(&mesh.admin(), cancel(task.to_string())).await.unwrap();
    ask(&mesh.admin(), cancel(task.to_string())).await.unwrap();
    let lines = mesh.audit().await;
    assert_eq!(
        lines,
        [
            "ado://default/admin/local CreateToken: ok",
            "ado://a/viewer/vic Enrol: ok",
            "ado://default/admin/local Submit: ok",
            "ado://a/viewer/vic SetDesired: ado://a/viewer/vic may not do that",
            "ado://a/viewer/vic WorkerSession: ado://a/viewer/vic may not do that",
            "ado://default/admin/local SetDesired: ok",
            "ado://default/admin/local SetDesired: already cancelled",
        ]
    );
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
    let zero = CreateToken { role: Role::User, namespace: Namespace::default(), name: None, uses: Some(0), ttl_ms: 1 };
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
