//! Viewers that are asked to leave.

use std::sync::Arc;
use std::time::Duration;

use ado::client::{self, Client, Step};
use ado::net::{Call, Channel};
use ado_certs::Identity;
use ado_proto::request::{Detach, ErrorCode, GetTasks, StartAt, Submit};
use ado_proto::session::FollowItem;
use ado_proto::{Offset, RequestId, Role, TaskId};

use crate::mesh::{Mesh, ask, call, follow, next, refusal, spec};

fn detach(reference: impl Into<String>, all: bool) -> Detach {
    Detach { reference: reference.into(), all }
}

async fn from_start(link: &ado::net::Link, task: TaskId) -> Channel {
    follow(link, task, StartAt::Offset(Offset(0))).await.1
}

/// Who asked this viewer to leave. Its stream is over then.
async fn told(channel: &mut Channel) -> String {
    loop {
        match next(channel).await {
            FollowItem::Records(_) => {}
            FollowItem::Detached(detached) => {
                assert!(channel.rx.next().await.expect("it ends well").is_none(), "the stream ends");
                return detached.by;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Shows that a viewer is still there: it sees the end of its task.
async fn stays(mesh: &Mesh, channel: &mut Channel, task: TaskId) {
    mesh.cancel(task).await;
    loop {
        match next(channel).await {
            FollowItem::Records(_) => {}
            FollowItem::End(end) => return assert!(end.ended),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn ends_the_callers_own_viewers_of_what_is_meant_and_no_others() {
    let mesh = Mesh::start().await;
    let (ann, _) = mesh.member(Role::User, "default", "ann").await;
    let (bob, _) = mesh.member(Role::Viewer, "default", "bob").await;
    let (task, other) = (mesh.submit(&ann, spec()).await, mesh.submit(&ann, spec()).await);
    let (mut here, mut there) = (from_start(&ann, task).await, from_start(&ann, task).await);
    let (mut bobs, mut elsewhere) = (from_start(&bob, task).await, from_start(&ann, other).await);

    assert_eq!(ask(&ann, detach(task.short(), false)).await.unwrap().viewers, 2);
    assert_eq!((told(&mut here).await, told(&mut there).await), ("user/ann".into(), "user/ann".into()));
    assert_eq!(ask(&ann, detach(task.short(), false)).await.unwrap().viewers, 0, "they have left");
    let state = ask(&ann, GetTasks { reference: task.short() }).await.unwrap();
    assert_eq!(state[0].state, "queued", "the task goes on");
    stays(&mesh, &mut bobs, task).await;
    stays(&mesh, &mut elsewhere, other).await;
}

#[tokio::test]
async fn a_name_a_prefix_and_a_group_mean_their_tasks() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let group = ask(&admin, Submit { name: None, specs: vec![spec()], copies: 3 }).await.unwrap();
    let named = Submit { name: Some("nightly".into()), specs: vec![spec()], copies: 1 };
    let named = ask(&admin, named).await.unwrap().tasks[0];
    let mut members = Vec::new();
    for task in &group.tasks {
        members.push(from_start(&admin, *task).await);
    }
    let id = group.group.unwrap().short();
    assert_eq!(ask(&admin, detach(id, false)).await.unwrap().viewers, 3);
    for member in &mut members {
        told(member).await;
    }
    for reference in ["nightly".to_owned(), named.short()[..9].into(), named.to_string()] {
        let mut viewer = from_start(&admin, named).await;
        assert_eq!(ask(&admin, detach(reference, false)).await.unwrap().viewers, 1);
        told(&mut viewer).await;
    }
    refusal(ask(&admin, detach("task-0000000000", false)).await, ErrorCode::NotFound);
}

#[tokio::test]
async fn everybodys_viewers_are_for_administrators_and_attempts_are_audited() {
    let mesh = Mesh::start().await;
    let (ann, _) = mesh.member(Role::User, "default", "ann").await;
    let (eve, _) = mesh.member(Role::User, "elsewhere", "eve").await;
    let task = mesh.submit(&ann, spec()).await;
    let mut anns = from_start(&ann, task).await;
    let mut admins = from_start(&mesh.admin(), task).await;
    refusal(ask(&ann, detach(task.short(), true)).await, ErrorCode::Denied);
    refusal(ask(&eve, detach(task.short(), false)).await, ErrorCode::NotFound);
    assert_eq!(ask(&mesh.admin(), detach(task.short(), true)).await.unwrap().viewers, 2);
    assert_eq!((told(&mut anns).await, told(&mut admins).await), ("admin/local".into(), "admin/local".into()));
    let lines = mesh.audit().await;
    let detaches: Vec<_> = lines.iter().filter(|line| line.contains(" Detach")).collect();
    assert_eq!(
        detaches,
        [
            "ado://default/user/ann Detach: only administrators may detach everybody's viewers",
            "ado://elsewhere/user/eve Detach: it is of another namespace",
            &format!("ado://elsewhere/user/eve Detach: there is no task `{}`", task.short()),
            "ado://default/admin/local Detach: ok"
        ]
    );
}

#[tokio::test]
async fn said_again_with_the_same_id_it_says_the_same_and_does_nothing() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let task = mesh.submit(&admin, spec()).await;
    let mut first = from_start(&admin, task).await;
    let id = Some(RequestId(mesh.env.uuid()));
    let request = detach(task.short(), false);
    let say = || admin.call(&request, Call { id, ..call() });
    assert_eq!(say().await.unwrap().viewers, 1);
    told(&mut first).await;
    let mut second = from_start(&admin, task).await;
    assert_eq!(say().await.unwrap().viewers, 1, "what was answered then");
    stays(&mesh, &mut second, task).await;
}

#[tokio::test]
async fn a_stream_of_the_client_library_that_was_told_to_leave_does_not_come_back() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let task = mesh.submit(&admin, spec()).await;
    let client = client(&mesh);
    let mut stream = client.follow(task, StartAt::Offset(Offset(0)), true);
    let mut next =
        async || tokio::time::timeout(Duration::from_secs(30), stream.next()).await.expect("something comes");
    assert!(matches!(next().await, Some(Ok(Step::Record(_)))));
    assert_eq!(client.detach(&task.short(), false).await.unwrap().viewers, 1);
    match next().await {
        Some(Ok(Step::Detached { by })) => assert_eq!(by, "admin/local"),
        other => panic!("{other:?}"),
    }
    assert!(next().await.is_none() && next().await.is_none(), "it is over");
    assert_eq!(client.detach(&task.short(), false).await.unwrap().viewers, 0, "and has not come back");
}

fn client(mesh: &Mesh) -> Client {
    let addresses: Vec<_> = mesh.controller.addresses().iter().map(ToString::to_string).collect();
    let config = client::Config {
        addresses: Arc::new(move || addresses.clone()),
        identity: Identity::load(&mesh.dir.path().join("admin")).expect("an identity"),
        namespace: None,
        reconnect_interval: Duration::from_millis(200),
        timeout: Duration::from_secs(30),
        websocket: None,
    };
    Client::connect(config, mesh.env.clone(), &mesh.tasks).expect("a session")
}
