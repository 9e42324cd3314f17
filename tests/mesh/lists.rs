//! Lists: filters, pages, bounds.

use ado::net::Link;
use ado_proto::request::{ErrorCode, ListTasks, Submit, TaskFilter, TaskPage};
use ado_proto::spec::{Input, TaskSpec};
use ado_proto::{Role, TaskId};

use crate::mesh::{Mesh, ask, refusal, spec};

async fn page(link: &Link, only: &TaskFilter, states: &[&str], before: Option<TaskId>, limit: u32) -> TaskPage {
    let states = states.iter().map(|state| (*state).to_owned()).collect();
    ask(link, ListTasks { states, only: only.clone(), before, limit, dead: false }).await.expect("a page")
}

/// All pages: the tasks, and how many answers it took.
async fn all(link: &Link, only: &TaskFilter, states: &[&str], limit: u32) -> (Vec<TaskId>, u32) {
    let (mut found, mut before, mut answers) = (Vec::new(), None, 0);
    loop {
        let page = page(link, only, states, before, limit).await;
        answers += 1;
        assert!(page.tasks.len() <= limit as usize);
        found.extend(page.tasks.iter().map(|info| info.id));
        match page.next {
            None => return (found, answers),
            Some(next) => {
                assert!(before.is_none_or(|before| next < before), "it goes on where it was");
                before = Some(next);
            }
        }
    }
}

fn only(change: impl FnOnce(&mut TaskFilter)) -> TaskFilter {
    let mut only = TaskFilter::default();
    change(&mut only);
    only
}

async fn submit(link: &Link, name: Option<&str>, spec: TaskSpec, copies: u32) -> ado_proto::request::Submitted {
    ask(link, Submit { name: name.map(Into::into), specs: vec![spec], copies }).await.expect("tasks are taken")
}

#[tokio::test]
async fn filters_say_which_and_pages_join_up() {
    let mesh = Mesh::start().await;
    let (admin, (ann, _)) = (mesh.admin(), mesh.member(Role::User, "default", "ann").await);
    let mut gpu = spec();
    gpu.labels.insert("gpu".into(), "yes".into());
    let mut pooled = spec();
    pooled.pool = "large".into();
    let noop = TaskSpec::new("noop", Input::Text(String::new()));
    let group = submit(&admin, Some("nightly"), spec(), 3).await;
    let other_group = submit(&admin, None, spec(), 2).await;
    let anns = submit(&ann, Some("nightly"), gpu, 1).await.tasks[0];
    let pooled = submit(&admin, None, pooled, 1).await.tasks[0];
    let noop = submit(&admin, None, noop, 1).await.tasks[0];
    assert!(group.tasks.is_sorted(), "members are listed in order of index, backwards");
    mesh.cancel(group.tasks[1]).await;
    let newest = |tasks: &[TaskId]| {
        let mut tasks = tasks.to_vec();
        tasks.sort();
        tasks.reverse();
        tasks
    };
    let members = |only: &mut TaskFilter| only.group = Some(group.group.unwrap().short());
    let nightly = |only: &mut TaskFilter| only.name = Some("nightly".into());
    let cases = [
        (only(members), vec![], newest(&group.tasks)),
        (only(|only| only.group = group.group.map(|id| id.to_string())), vec![], newest(&group.tasks)),
        (
            only(|only| only.group = other_group.group.map(|id| id.short()[..12].into())),
            vec![],
            newest(&other_group.tasks),
        ),
        (only(members), vec!["cancelled"], vec![group.tasks[1]]),
        (only(nightly), vec![], newest(&[&group.tasks[..], &[anns]].concat())),
        (only(nightly), vec!["queued"], newest(&[group.tasks[0], group.tasks[2], anns])),
        (only(|only| only.owner = Some("user/ann".into())), vec![], vec![anns]),
        (
            only(|only| only.owner = Some("local".into())),
            vec![],
            newest(&[&group.tasks[..], &other_group.tasks, &[pooled, noop]].concat()),
        ),
        (only(|only| only.owner = Some("ann".into())), vec![], vec![anns]),
        (only(|only| drop(only.labels.insert("gpu".into(), "yes".into()))), vec![], vec![anns]),
        (only(|only| only.pool = Some("large".into())), vec![], vec![pooled]),
        (only(|only| only.agent = Some("noop".into())), vec![], vec![noop]),
        (
            only(|only| (only.agent, only.name) = (Some("shell".into()), Some("nightly".into()))),
            vec!["cancelled"],
            vec![group.tasks[1]],
        ),
        (only(|only| only.worker = Some("nobody".into())), vec![], vec![]),
        (only(|only| only.name = Some("none".into())), vec![], vec![]),
    ];
    for (only, states, expected) in cases {
        for limit in [1, 2, 100] {
            assert_eq!(all(&admin, &only, &states, limit).await.0, expected, "{only:?} {states:?} {limit} a page");
        }
    }
    let since = page(&admin, &TaskFilter::default(), &[], None, 1).await.tasks[0].created_at;
    assert_eq!(all(&admin, &only(|only| only.since = Some(since)), &[], 9).await.0, [noop]);
    let list = |group: &str| {
        ask(&admin, ListTasks { only: only(|only| only.group = Some(group.into())), limit: 1, ..ListTasks::default() })
    };
    for unknown in ["group-0000000000", "nosuch!", "00000000-0000-0000-0000-000000000001"] {
        let message = refusal(list(unknown).await, ErrorCode::NotFound);
        assert!(message.contains(&format!("no group `{unknown}`")), "{message}");
    }
    refusal(list("group-0").await, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rare_among_many_is_found_in_few_answers() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let noop = || TaskSpec::new("noop", Input::Text(String::new()));
    let mut special = noop();
    special.pool = "special".into();
    let first = submit(&admin, None, special, 1).await.tasks[0];
    for _ in 0..20 {
        let tasks = submit(&admin, None, noop(), 1000).await.tasks;
        assert!(tasks.len() == 1000 && tasks.is_sorted());
    }
    let nothing = only(|only| only.pool = Some("none".into()));
    assert_eq!(all(&admin, &nothing, &[], 1000).await, (vec![], 5));
    assert_eq!(all(&admin, &nothing, &["queued"], 1).await, (vec![], 5));
    assert_eq!(all(&admin, &nothing, &["running"], 1).await, (vec![], 1), "no need to look");
    let special = only(|only| only.pool = Some("special".into()));
    assert_eq!(all(&admin, &special, &[], 10).await, (vec![first], 5));
    let (every, _) = all(&admin, &TaskFilter::default(), &[], 1000).await;
    assert_eq!(every.len(), 20_001);
    assert!(every.is_sorted_by(|a, b| a > b));
}

#[tokio::test]
async fn copies_are_bounded_in_all() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let long = |bytes| TaskSpec::new("noop", Input::Text("x".repeat(bytes)));
    let submit = |bytes, copies| ask(&admin, Submit { name: None, specs: vec![long(bytes)], copies });
    let message = refusal(submit(190 * 1024, 1000).await, ErrorCode::Invalid);
    assert!(message.contains("1000 tasks with 194560000 bytes"), "{message}");
    assert_eq!(submit(16 * 1024, 1000).await.unwrap().tasks.len(), 1000);
    refusal(submit(1, 1001).await, ErrorCode::Invalid);
    refusal(submit(1, 0).await, ErrorCode::Invalid);
}
