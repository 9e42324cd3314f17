//! Viewers: exact, from anywhere, at anybody's speed.

use ado_proto::record::{Body, Exited, Output, Progress, Started, Stream};
use ado_proto::request::{Follow, StartAt};
use ado_proto::session::FollowItem;
use ado_proto::spec::{Containment, Exit};
use ado_proto::{Offset, Record};
use bytes::Bytes;

use crate::mesh::{Mesh, call, follow, follow_quietly, kinds, next, read, spec};

const PIECE: usize = 32 * 1024;

fn piece(number: u64) -> Body {
    let data: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(PIECE).collect();
    Output { stream: Stream::Stdout, position: number * PIECE as u64, data: Bytes::from(data) }.into()
}

fn bytes(records: &[Record]) -> Vec<u8> {
    let data = |record: &Record| match &record.body {
        Body::Output(output) => output.data.to_vec(),
        _ => Vec::new(),
    };
    records.iter().flat_map(data).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_that_does_not_read_slows_nobody_and_misses_nothing() {
    const PIECES: u64 = 640; // 20 MiB: far more than all buffers between
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let (slow, quick) = (mesh.admin(), mesh.admin());
    let (_, mut stopped) = follow(&slow, task, StartAt::Offset(Offset(0))).await;
    let (_, mut live) = follow(&quick, task, StartAt::Offset(Offset(0))).await;
    let reading = tokio::spawn(async move { read(&mut live).await.0 });

    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    attempt.send(0, vec![Started { pid: 1, containment: Containment::Group }.into()]).await;
    attempt.acknowledged().await;
    for number in 0..PIECES {
        attempt.send(number + 1, vec![piece(number)]).await;
        if number % 8 == 0 {
            worker.beat(&[(task, assignment.epoch)]).await;
        }
    }
    attempt.send(PIECES + 1, vec![Exited { exit: Exit::Code(0) }.into()]).await;
    while attempt.acknowledged().await.0 < PIECES + 2 {
        worker.beat(&[(task, assignment.epoch)]).await;
    }

    let expected: Vec<u8> = (0..PIECES).flat_map(|n| n.to_le_bytes().into_iter().cycle().take(PIECE)).collect();
    let live = reading.await.unwrap();
    assert!(bytes(&live) == expected, "the quick viewer has everything while the other has not read a byte");
    let late = read(&mut stopped).await.0;
    assert!(late == live, "and the slow one gets the same");
}

#[tokio::test]
async fn a_cursor_of_another_store_is_told_so() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let task = mesh.submit(&admin, spec()).await;
    let request =
        Follow { task, from: StartAt::Offset(Offset(0)), follow: true, without_output: false, generation: Some(1) };
    let (following, mut channel) = admin.open(&request, call()).await.unwrap();
    assert_ne!(following.generation, 1);
    match next(&mut channel).await {
        FollowItem::LogReset(reset) => assert_eq!(reset.generation, following.generation),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn begins_at_an_offset_a_line_or_an_instant() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let line = |text: &'static str| -> Body {
        Output { stream: Stream::Stdout, position: 0, data: Bytes::from_static(text.as_bytes()) }.into()
    };
    let end = Exited { exit: Exit::Code(0) }.into();
    let start = Started { pid: 1, containment: Containment::Group }.into();
    worker.run(vec![start, line("one\ntwo\n"), line("three\nfo"), line("ur\n"), end]).await;
    let everything = {
        let (_, mut channel) = follow(&admin, task, StartAt::Offset(Offset(0))).await;
        read(&mut channel).await.0
    };
    for from in 0..=everything.len() as u64 {
        let (_, mut channel) = follow(&admin, task, StartAt::Offset(Offset(from))).await;
        assert_eq!(read(&mut channel).await.0, everything[usize::try_from(from).unwrap()..], "from {from}");
    }
    for (lines, expected) in
        [(1, "four\n"), (2, "three\nfour\n"), (3, "two\nthree\nfour\n"), (9, "one\ntwo\nthree\nfour\n")]
    {
        let (skip, mut channel) = follow(&admin, task, StartAt::Tail(lines)).await;
        let shown = bytes(&read(&mut channel).await.0);
        assert_eq!(String::from_utf8_lossy(&shown[skip as usize..]), expected, "{lines} lines");
    }
    let since = everything[3].time;
    let (_, mut channel) = follow(&admin, task, StartAt::Since(since)).await;
    let first = read(&mut channel).await.0[0].clone();
    assert!(first.time >= since && first.offset <= everything[3].offset, "{first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_stay_gets_what_there_was_when_it_asked() {
    const PIECES: u64 = 64; // 2 MiB before, and 20 MiB after
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    attempt.send(0, vec![Started { pid: 1, containment: Containment::Group }.into()]).await;
    let mut channel = None;
    for number in 0..PIECES * 10 {
        if number == PIECES {
            while attempt.acknowledged().await.0 < PIECES + 1 {}
            let request = Follow {
                task,
                from: StartAt::Offset(Offset(0)),
                follow: false,
                without_output: false,
                generation: None,
            };
            channel = Some(admin.open(&request, call()).await.unwrap().1);
        }
        attempt.send(number + 1, vec![piece(number)]).await;
        if number % 8 == 0 {
            worker.beat(&[(task, assignment.epoch)]).await;
        }
    }
    while attempt.acknowledged().await.0 < PIECES * 10 + 1 {
        worker.beat(&[(task, assignment.epoch)]).await;
    }
    let (records, end) = read(&mut channel.unwrap()).await;
    assert!(!end.ended && end.next.0 == records.len() as u64);
    assert!((PIECES..PIECES * 2).contains(&end.next.0), "up to {}", end.next);
}

/// Records cover every offset from `from` to the end exactly once. Returns how many were skipped.
fn covered(records: &[Record], from: u64, end: u64) -> u64 {
    let mut next = Offset(from);
    let mut skipped = 0;
    for record in records {
        assert_eq!(record.span().start, next, "{record:?}");
        next = record.span().end;
        assert_eq!(record.offset.next(), next, "{record:?}");
        if let Body::Skipped(run) = &record.body {
            skipped += run.to.0 - run.from.0;
        }
    }
    assert_eq!(next, Offset(end));
    skipped
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_want_output_gets_few_small_frames_and_every_offset() {
    const PIECES: u64 = 2000;
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let mut live = follow_quietly(&admin, task, 0).await;
    let reading = tokio::spawn(async move {
        let (mut records, mut frames) = (Vec::new(), 0);
        let began = tokio::time::Instant::now();
        loop {
            match next(&mut live).await {
                FollowItem::Records(more) => {
                    frames += 1;
                    records.extend(more.decode().unwrap());
                }
                FollowItem::End(end) => return (records, frames, end, began.elapsed()),
                FollowItem::Idle(_) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    attempt.send(0, vec![Started { pid: 1, containment: Containment::Group }.into()]).await;
    for number in 0..PIECES {
        let body = match number {
            1000 => Progress { percent: Some(50), message: None }.into(),
            _ => Output { stream: Stream::Stdout, position: number, data: Bytes::from_static(b"x") }.into(),
        };
        attempt.send(number + 1, vec![body]).await;
        // One commit each as often as not: a flood of small writes.
        attempt.acknowledged().await;
        if number % 50 == 0 {
            worker.beat(&[(task, assignment.epoch)]).await;
        }
    }
    attempt.send(PIECES + 1, vec![Exited { exit: Exit::Code(0) }.into()]).await;
    let (records, frames, end, took) = reading.await.unwrap();
    assert_eq!(covered(&records, 0, end.next.0), PIECES - 1, "one was progress");
    let others: Vec<_> = records.iter().filter(|it| !matches!(it.body, Body::Skipped(_))).cloned().collect();
    assert_eq!(kinds(&others), ["Submitted", "Assigned", "Started", "Progress", "Exited", "Ended"]);
    // Ten frames a second, and one for everything else.
    let most = 6 + u64::try_from(took.as_millis()).unwrap() / 100 + 1;
    assert!(frames <= most, "{frames} frames in {took:?}");

    // From the store, and from the middle of the run.
    for from in [0, 1, 3, 500, 1003, 1500, end.next.0 - 1, end.next.0] {
        let began = tokio::time::Instant::now();
        let mut late = follow_quietly(&admin, task, from).await;
        let (again, end) = read(&mut late).await;
        covered(&again, from, end.next.0);
        // Two runs and what is between and around them; a run is cut where reading it took longer than a frame may wait.
        let most = 8 + began.elapsed().as_millis() / 100;
        assert!(again.len() as u128 <= most, "{} records from {from}", again.len());
    }
}

#[tokio::test]
async fn a_quiet_viewer_is_not_kept_waiting_for_the_next_record() {
    let mesh = Mesh::start().await;
    let (admin, mut worker) = (mesh.admin(), mesh.worker(1).await);
    let task = mesh.submit(&admin, spec()).await;
    let mut quiet = follow_quietly(&admin, task, 0).await;
    let assignment = worker.assignment().await;
    worker.beat(&[(task, assignment.epoch)]).await;
    let mut attempt = worker.output(task, assignment.epoch).await.unwrap();
    let started: Body = Started { pid: 1, containment: Containment::Group }.into();
    attempt.send(0, vec![started, piece(0), piece(1)]).await;
    let mut seen = Vec::new();
    // Nothing follows the output, and its place comes all the same.
    while seen.last().is_none_or(|last: &Record| !matches!(last.body, Body::Skipped(_))) {
        worker.beat(&[(task, assignment.epoch)]).await;
        match next(&mut quiet).await {
            FollowItem::Records(more) => seen.extend(more.decode().unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(covered(&seen, 0, 5), 2);

    // And who does not stay gets the run at once, before it is told that this is all.
    let from = StartAt::Offset(Offset(0));
    let request = Follow { task, from, follow: false, without_output: true, generation: None };
    let (records, end) = read(&mut admin.open(&request, call()).await.unwrap().1).await;
    assert!(!end.ended);
    assert_eq!(covered(&records, 0, end.next.0), 2);
}
