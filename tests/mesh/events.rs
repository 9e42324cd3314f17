//! System events, and waiting for them.

use std::time::Duration;

use ado::net::{Call, Link};
use ado_proto::Role;
use ado_proto::Timestamp;
use ado_proto::request::{Events, EventsFrom, ListEvents};

use crate::mesh::{Mesh, ask, call, spec};

const LONG: u32 = 20_000;

async fn read(link: &Link, from: EventsFrom, wait_ms: u32) -> Events {
    let call = Call { timeout: Some(Duration::from_secs(60)), ..call() };
    link.call(&ListEvents { from, limit: 100, wait_ms }, call).await.expect("events")
}

fn kinds(events: &Events) -> Vec<&str> {
    events.events.iter().map(|event| event.kind.as_str()).collect()
}

#[tokio::test]
async fn a_reader_that_waits_is_woken_by_what_happens() {
    let mesh = Mesh::start().await;
    let (admin, waiting) = (mesh.admin(), mesh.admin());
    ask(&admin, spec_of_one()).await.unwrap();
    let begin = read(&admin, EventsFrom::Tail(0), 0).await;
    assert!(begin.events.is_empty() && begin.next > 0);

    let began = tokio::time::Instant::now();
    let reading = tokio::spawn(async move { read(&waiting, EventsFrom::After(begin.next), LONG).await });
    let task = mesh.submit(&admin, spec()).await;
    let seen = reading.await.unwrap();
    assert_eq!((kinds(&seen), seen.events[0].task), (vec!["task.submitted"], Some(task)));
    assert!(began.elapsed() < Duration::from_millis(LONG.into()), "not by the end of the wait");

    // A worker that comes is no change of a task.
    let waiting = mesh.admin();
    // Connected already, it waits long before the worker has a certificate.
    read(&waiting, EventsFrom::Tail(0), 0).await;
    let began = tokio::time::Instant::now();
    let reading = tokio::spawn(async move { read(&waiting, EventsFrom::After(seen.next), LONG).await });
    let (link, identity) = mesh.member(Role::Worker, "without-tasks", "w").await;
    let mut worker = crate::mesh::Worker::join(&mesh, link, identity, 1).await;
    // It goes on reporting: that it was lost would be another event.
    while !reading.is_finished() {
        worker.beat(&[]).await;
    }
    assert_eq!(kinds(&reading.await.unwrap())[0], "worker.joined");
    assert!(began.elapsed() < Duration::from_millis(LONG.into()), "not by the end of the wait");
}

fn spec_of_one() -> ado_proto::request::Submit {
    ado_proto::request::Submit { name: None, specs: vec![spec()], copies: 1 }
}

#[tokio::test]
async fn a_wait_ends_without_events_and_goes_on_where_it_was() {
    let mesh = Mesh::start().await;
    let (ann, _) = mesh.member(Role::User, "a", "ann").await;
    let none = read(&ann, EventsFrom::After(0), 50).await;
    assert!(none.events.is_empty());
    // What happens elsewhere wakes the reader, is not shown, and is passed.
    let (waiting, _) = mesh.member(Role::User, "a", "eve").await;
    let reading = tokio::spawn(async move { read(&waiting, EventsFrom::After(none.next), LONG).await });
    for _ in 0..5 {
        mesh.submit(&mesh.admin(), spec()).await;
    }
    let own = mesh.submit(&ann, spec()).await;
    let seen = reading.await.unwrap();
    assert_eq!(seen.events.iter().map(|event| event.task).collect::<Vec<_>>(), [Some(own)]);
    assert!(seen.next > 5, "{}", seen.next);
    assert_eq!(read(&ann, EventsFrom::Tail(9), 0).await, seen);
    assert_eq!(read(&ann, EventsFrom::Since(seen.events[0].time), 0).await, seen);
    let later = read(&ann, EventsFrom::Since(Timestamp(i64::MAX)), 0).await;
    assert_eq!((later.events.len(), later.next), (0, seen.next));
}
