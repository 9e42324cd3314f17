//! Secrets: who sets them, who gets them, and what is said when they are gone.

use ado::net::Call;
use ado_proto::request::{ErrorCode, GetTasks, ListSecrets, RemoveSecret, SetSecret, Submit};
use ado_proto::session::Assignment;
use ado_proto::spec::TaskSpec;
use ado_proto::{RequestId, Role, Secret};

use crate::mesh::{Mesh, ask, call, refusal, spec};

const VALUE: &str = "hunter2-hunter2";

fn set(name: &str, value: &str) -> SetSecret {
    SetSecret { name: name.into(), value: Secret::new(value.into()) }
}

fn wants(variable: &str, secret: &str) -> TaskSpec {
    TaskSpec { secrets: [(variable.into(), secret.into())].into(), ..spec() }
}

fn given(assignment: &Assignment) -> Vec<(&str, Result<&str, &str>)> {
    let secrets = assignment.secrets.iter();
    secrets
        .map(|given| (given.variable.as_str(), given.value.as_ref().map(Secret::expose).map_err(String::as_str)))
        .collect()
}

#[tokio::test]
async fn a_secret_is_in_the_assignment_that_names_it_and_nowhere_else() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    assert_eq!(ask(&admin, set("key", "first-value")).await.unwrap().version, 1);
    assert_eq!(ask(&admin, set("key", VALUE)).await.unwrap().version, 2);
    let mut worker = mesh.worker(4).await;
    let task = mesh.submit(&admin, wants("KEY", "key")).await;
    let assignment = worker.assignment().await;
    assert_eq!((assignment.task, given(&assignment)), (task, vec![("KEY", Ok(VALUE))]));
    assert!(!format!("{assignment:?}").contains("hunter2"));
    mesh.submit(&admin, spec()).await;
    assert_eq!(given(&worker.assignment().await), []);
    assert!(!format!("{:?}", ask(&admin, GetTasks { reference: task.short() }).await.unwrap()).contains("hunter2"));
    for entry in std::fs::read_dir(mesh.dir.path().join("controller")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        for value in [VALUE, "first-value"] {
            assert!(!bytes.windows(value.len()).any(|window| window == value.as_bytes()), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn what_is_gone_or_cannot_be_opened_is_said_to_the_worker() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let missing = Submit { name: None, specs: vec![wants("KEY", "key")], copies: 1 };
    let message = refusal(ask(&admin, missing).await, ErrorCode::NotFound);
    assert_eq!(message, "there is no secret `key` in namespace default");
    ask(&admin, set("key", VALUE)).await.unwrap();
    ask(&admin, set("other", VALUE)).await.unwrap();
    let once = Call { id: Some(RequestId(mesh.env.uuid())), ..call() };
    let submit = Submit { name: None, specs: vec![wants("KEY", "key")], copies: 1 };
    let submitted = admin.call(&submit, once.clone()).await.unwrap();
    ask(&admin, RemoveSecret { name: "key".into() }).await.unwrap();
    assert_eq!(admin.call(&submit, once).await.unwrap(), submitted, "said twice it is answered as it was");
    let mut worker = mesh.worker(1).await;
    let assignment = worker.assignment().await;
    let [("KEY", Err(why))] = given(&assignment)[..] else { panic!("{assignment:?}") };
    assert!(why.starts_with("the secret `key` was removed"), "{why}");
    worker.beat(&[(assignment.task, assignment.epoch)]).await;
    mesh.cancel(assignment.task).await;

    // A database that came without its key.
    std::fs::remove_file(mesh.dir.path().join("controller/master.key")).unwrap();
    let mesh = mesh.restart().await;
    let mut other = mesh.worker(1).await;
    let task = mesh.submit(&mesh.admin(), wants("KEY", "other")).await;
    let assignment = other.assignment().await;
    assert_eq!(assignment.task, task);
    let [("KEY", Err(why))] = given(&assignment)[..] else { panic!("{assignment:?}") };
    assert!(why.starts_with("the secret `other` cannot be opened: it was closed with the master key"), "{why}");
    drop(worker);
}

#[tokio::test]
async fn secrets_belong_to_a_namespace_and_to_who_set_them() {
    let mesh = Mesh::start().await;
    let (ann, _) = mesh.member(Role::User, "a", "ann").await;
    let (carl, _) = mesh.member(Role::User, "a", "carl").await;
    let (bob, _) = mesh.member(Role::User, "b", "bob").await;
    let (vic, _) = mesh.member(Role::Viewer, "a", "vic").await;
    let info = ask(&ann, set("key", VALUE)).await.unwrap();
    assert_eq!((&*info.owner, &*info.namespace.0), ("user/ann", "a"));
    assert_eq!(ask(&carl, ListSecrets).await.unwrap(), std::slice::from_ref(&info));
    assert_eq!(ask(&bob, ListSecrets).await.unwrap(), []);
    refusal(ask(&vic, ListSecrets).await, ErrorCode::Denied);
    let denied = "secret `key` belongs to user/ann: only they and administrators may change it";
    assert_eq!(refusal(ask(&carl, set("key", "carls-own")).await, ErrorCode::Denied), denied);
    assert_eq!(refusal(ask(&carl, RemoveSecret { name: "key".into() }).await, ErrorCode::Denied), denied);
    mesh.submit(&carl, wants("KEY", "key")).await;
    let elsewhere = Submit { name: None, specs: vec![wants("KEY", "key")], copies: 1 };
    refusal(ask(&bob, elsewhere).await, ErrorCode::NotFound);
    refusal(ask(&bob, RemoveSecret { name: "key".into() }).await, ErrorCode::NotFound);
    assert_eq!(
        mesh.refusals().await,
        [
            "ado://a/viewer/vic ListSecrets : ado://a/viewer/vic may not do that x1".to_owned(),
            format!("ado://a/user/carl SetSecret key: {denied} x1"),
            format!("ado://a/user/carl RemoveSecret key: {denied} x1"),
            "ado://b/user/bob Submit : there is no secret `key` in namespace b x1".to_owned(),
            "ado://b/user/bob RemoveSecret key: there is no secret `key` in namespace b x1".to_owned(),
        ]
    );
    ask(&ann, RemoveSecret { name: "key".into() }).await.unwrap();
    for (name, value) in [("-x", VALUE), ("x", "abc"), ("x", "a\0bcde"), ("x", &"x".repeat(20_000))] {
        refusal(ask(&ann, set(name, value)).await, ErrorCode::Invalid);
    }
    let lines = mesh.audit().await;
    assert!(
        lines.contains(&"ado://a/user/ann SetSecret: ok".to_owned())
            && !lines.iter().any(|line| line.contains("hunter2"))
    );
}
