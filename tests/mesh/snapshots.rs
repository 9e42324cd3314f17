//! Blobs of snapshots: who may put and get which, how long they stay.

use std::collections::BTreeSet;
use std::time::Duration;

use ado::blobs::{Blobs, Place};
use ado::net::{Channel, Error};
use ado_proto::record::{Body, Checkpointed, Exited, Started};
use ado_proto::request::{
    DeadOnes, ErrorCode, GetBlob, PurgeDead, PutBlob, RetryDead, Settled, Submit, decode_response,
};
use ado_proto::session::Assignment;
use ado_proto::snapshot::{MAX_BLOB, Manifest, Pack};
use ado_proto::spec::{Containment, Exit, TaskSpec};
use ado_proto::{BlobId, CheckpointId, Incarnation, Seq, Snapshot, TaskId};
use bytes::Bytes;

use crate::mesh::{Mesh, Worker, ask, call, refusal, spec};

fn id(bytes: &[u8]) -> BlobId {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    BlobId(digest.as_ref().try_into().expect("32 bytes"))
}

/// Puts bytes under a name.
async fn put_as(worker: &Worker, request: &PutBlob, bytes: &[u8]) -> Result<(), Error> {
    let ((), Channel { mut tx, mut rx }) = worker.link.open(request, call()).await?;
    for part in bytes.chunks(100_000) {
        if tx.send(part).await.is_err() {
            break;
        }
    }
    tx.finish();
    let answer = rx.next().await?.expect("an answer");
    decode_response::<PutBlob>(&answer).expect("an answer").map_err(Error::Refused)
}

async fn put(worker: &Worker, held: &Assignment, bytes: &[u8]) -> BlobId {
    let id = id(bytes);
    put_as(worker, &request(worker, held, id, bytes), bytes).await.expect("it is kept");
    id
}

fn request(worker: &Worker, held: &Assignment, id: BlobId, bytes: &[u8]) -> PutBlob {
    let (task, epoch, incarnation) = (held.task, held.epoch, worker.incarnation);
    PutBlob { task, epoch, incarnation, id, len: bytes.len() as u64 }
}

async fn get(worker: &Worker, held: &Assignment, id: BlobId) -> Result<Vec<u8>, Error> {
    let (task, epoch, incarnation) = (held.task, held.epoch, worker.incarnation);
    let (follows, mut channel) = worker.link.open(&GetBlob { task, epoch, incarnation, id }, call()).await?;
    let mut bytes = Vec::new();
    while let Some(frame) = channel.rx.next().await? {
        bytes.extend_from_slice(&frame);
    }
    assert_eq!(bytes.len() as u64, follows.len);
    Ok(bytes)
}

fn started() -> Body {
    Started { pid: 1, containment: Containment::Subreaper }.into()
}

fn exited(code: i32) -> Body {
    Exited { exit: Exit::Code(code) }.into()
}

fn checkpoint(mesh: &Mesh, home: TaskId, manifest: BlobId) -> Body {
    let snapshot = Some(Snapshot { home, manifest, until: Seq(1), files: 1, bytes: 1 });
    Checkpointed { id: CheckpointId(mesh.env.uuid()), data: "7".into(), snapshot }.into()
}

/// A manifest that needs a pack, and the pack.
async fn snapshot(worker: &Worker, held: &Assignment, what: &str) -> (BlobId, BlobId) {
    let pack = put(worker, held, what.as_bytes()).await;
    let manifest = Manifest { packs: vec![Pack { id: pack, raw: 1 }], ..Manifest::default() };
    (put(worker, held, &manifest.encode().expect("it is short")).await, pack)
}

async fn hold(mesh: &Mesh, worker: &mut Worker) -> Assignment {
    let retried = TaskSpec { max_retries: 1, ..spec() };
    mesh.submit(&mesh.admin(), retried).await;
    let held = worker.assignment().await;
    worker.beat(&[(held.task, held.epoch)]).await;
    held
}

fn blobs(mesh: &Mesh) -> Blobs {
    Blobs::open(&Place::Folder(mesh.dir.path().join("controller/blobs"))).expect("a folder")
}

async fn kept(mesh: &Mesh, task: TaskId) -> BTreeSet<BlobId> {
    blobs(mesh).of(task).await.expect("a list").into_iter().map(|known| known.id).collect()
}

#[tokio::test]
async fn a_worker_puts_and_gets_only_what_belongs_to_what_it_holds() {
    let mesh = Mesh::start().await;
    let mut worker = mesh.worker(4).await;
    let held = hold(&mesh, &mut worker).await;
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n >> 3) as u8).collect();
    let blob = put(&worker, &held, &large).await;
    assert_eq!(kept(&mesh, held.task).await, [blob].into());

    // Nothing can be read before there is a checkpoint that says so.
    assert!(refusal(get(&worker, &held, blob).await, ErrorCode::NotFound).contains("there is no blob"));
    let mut attempt = worker.output(held.task, held.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), checkpoint(&mesh, held.task, blob)]).await;
    attempt.acknowledged().await;
    assert_eq!(get(&worker, &held, blob).await.expect("its own"), large);
    assert!(refusal(get(&worker, &held, id(b"other")).await, ErrorCode::NotFound).contains("there is no blob"));

    let holds = [(held.task, held.epoch)];
    let good = request(&worker, &held, id(b"x"), b"x");
    let with = |change: &dyn Fn(&mut PutBlob)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad
    };
    let stale = [
        with(&|it| it.epoch = it.epoch.next()),
        with(&|it| it.task = TaskId(mesh.env.uuid())),
        with(&|it| it.incarnation = Incarnation(mesh.env.uuid())),
    ];
    for bad in stale {
        worker.beat(&holds).await;
        assert!(refusal(put_as(&worker, &bad, b"x").await, ErrorCode::Stale).ends_with("is over"));
    }
    let other = mesh.member(ado_proto::Role::Worker, "default", "other").await;
    let other = Worker::join(&mesh, other.0, other.1, 1).await;
    let theirs = PutBlob { incarnation: other.incarnation, ..good.clone() };
    assert!(refusal(put_as(&other, &theirs, b"x").await, ErrorCode::Stale).ends_with("is over"));
    assert!(refusal(get(&other, &held, blob).await, ErrorCode::Stale).ends_with("is over"));
    let said = [
        (with(&|it| it.len = MAX_BLOB as u64 + 1), "has at most"),
        (with(&|it| it.id = id(b"y")), "is not blob"),
        (with(&|it| it.len = 2), "1 of the 2 bytes"),
        (with(&|it| it.len = 0), "more than the 0 bytes"),
    ];
    for (bad, why) in said {
        worker.beat(&holds).await;
        let message = refusal(put_as(&worker, &bad, b"x").await, ErrorCode::Invalid);
        assert!(message.contains(why), "{message}");
    }
    assert_eq!(kept(&mesh, held.task).await, [blob].into(), "nothing of all that");
    // The attempt is over, and with it its worker's right.
    attempt.send(2, vec![exited(0)]).await;
    attempt.acknowledged().await;
    assert!(refusal(put_as(&worker, &good, b"x").await, ErrorCode::Stale).ends_with("is over"));
    assert!(refusal(get(&worker, &held, blob).await, ErrorCode::Stale).ends_with("is over"));
}

#[tokio::test]
async fn nobody_goes_on_from_what_is_another_tasks() {
    let mesh = Mesh::start().await;
    let mut worker = mesh.worker(4).await;
    let (one, other) = (hold(&mesh, &mut worker).await, hold(&mesh, &mut worker).await);
    let secret = put(&worker, &one, b"secret").await;
    let mut attempt = worker.output(other.task, other.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), checkpoint(&mesh, one.task, secret)]).await;
    assert!(attempt.channel.rx.next().await.is_err(), "the stream is broken off");
    assert!(refusal(get(&worker, &other, secret).await, ErrorCode::NotFound).contains("there is no blob"));
}

#[tokio::test]
async fn the_next_attempt_gets_the_snapshot_and_so_does_who_does_it_again() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let submit = Submit { name: None, specs: vec![TaskSpec { max_retries: 1, ..spec() }], copies: 1 };
    let task = ask(&admin, submit).await.expect("it is taken").tasks[0];
    let held = worker.assignment().await;
    assert_eq!(held.snapshot, None);
    worker.beat(&[(task, held.epoch)]).await;
    let (manifest, pack) = snapshot(&worker, &held, "pack").await;
    let mut attempt = worker.output(task, held.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), checkpoint(&mesh, task, manifest), exited(3)]).await;
    attempt.acknowledged().await;

    let next = worker.run(vec![started(), exited(3)]).await;
    let expected = Snapshot { home: task, manifest, until: Seq(1), files: 1, bytes: 1 };
    assert_eq!((next.task, next.snapshot, next.checkpoint.as_deref()), (task, Some(expected), Some("7")));

    let which = DeadOnes::Named(task.to_string());
    let settled = ask(&admin, RetryDead { which, fresh: false }).await.expect("it may");
    let Some(Settled::Retried(new)) = settled.tasks[0].settled else { panic!("{settled:?}") };
    let held = worker.assignment().await;
    worker.beat(&[(new, held.epoch)]).await;
    assert_eq!((held.task, held.snapshot), (new, Some(expected)), "it lies where it was");
    assert_eq!(get(&worker, &held, pack).await.expect("it may"), b"pack");
}

#[tokio::test]
async fn what_no_checkpoint_needs_goes_and_what_one_needs_stays() {
    let grace = Duration::from_millis(600);
    let mesh = Mesh::with_grace(grace).await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(4).await);
    let held = hold(&mesh, &mut worker).await;
    let mut holds = vec![(held.task, held.epoch)];
    let first = snapshot(&worker, &held, "first").await;
    let mut attempt = worker.output(held.task, held.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), checkpoint(&mesh, held.task, first.0)]).await;
    attempt.acknowledged().await;
    let second = snapshot(&worker, &held, "second").await;
    let all = BTreeSet::from([first.0, first.1, second.0, second.1]);
    assert_eq!(kept(&mesh, held.task).await, all);
    attempt.send(2, vec![checkpoint(&mesh, held.task, second.0)]).await;
    attempt.acknowledged().await;
    let needed = BTreeSet::from([second.0, second.1]);
    let until = async |worker: &mut Worker, holds: &[_], task, expected: &BTreeSet<BlobId>| {
        for _ in 0..200 {
            if kept(&mesh, task).await == *expected {
                return;
            }
            worker.beat(holds).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?} where {expected:?} is due", kept(&mesh, task).await);
    };
    until(&mut worker, &holds, held.task, &needed).await;

    // What is sent again and again is on its way to a checkpoint.
    let young = put(&worker, &held, b"on its way").await;
    for _ in 0..20 {
        worker.beat(&holds).await;
        tokio::time::sleep(grace / 6).await;
        put(&worker, &held, b"on its way").await;
        assert!(kept(&mesh, held.task).await.contains(&young));
    }
    until(&mut worker, &holds, held.task, &needed).await;

    // In the dead letter it waits for somebody to do it again, and then for that one's end.
    attempt.send(3, vec![exited(3)]).await;
    attempt.acknowledged().await;
    worker.run(vec![started(), exited(3)]).await;
    holds.clear();
    for _ in 0..10 {
        worker.beat(&holds).await;
        tokio::time::sleep(grace / 3).await;
    }
    assert_eq!(kept(&mesh, held.task).await, needed, "of a dead one");
    let which = || DeadOnes::Named(held.task.to_string());
    ask(&admin, RetryDead { which: which(), fresh: false }).await.expect("it may");
    let again = worker.assignment().await;
    holds.push((again.task, again.epoch));
    for _ in 0..10 {
        worker.beat(&holds).await;
        tokio::time::sleep(grace / 3).await;
    }
    assert_eq!(kept(&mesh, held.task).await, needed, "of one that is done again");
    let mut attempt = worker.output(again.task, again.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), exited(0)]).await;
    attempt.acknowledged().await;
    until(&mut worker, &[], held.task, &BTreeSet::new()).await;

    // What was not to be read is left alone.
    let held = hold(&mesh, &mut worker).await;
    let holds = [(held.task, held.epoch)];
    let broken = put(&worker, &held, b"no manifest").await;
    let unknown = put(&worker, &held, b"who knows").await;
    let mut attempt = worker.output(held.task, held.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), checkpoint(&mesh, held.task, broken)]).await;
    attempt.acknowledged().await;
    for _ in 0..10 {
        worker.beat(&holds).await;
        tokio::time::sleep(grace / 3).await;
    }
    assert_eq!(kept(&mesh, held.task).await, [broken, unknown].into());
    let _ = ask(&admin, PurgeDead { which: which() }).await;
    assert_eq!(blobs(&mesh).get(held.task, unknown).await.expect("a folder"), Some(Bytes::from_static(b"who knows")));
}
