//! Reading logs.

use std::collections::BTreeSet;

use ado_proto::record::Note;

use super::*;

/// A log of many chunks with lifecycle records among their offsets: `Note`s after every third output, several in one
/// batch, batches of different lengths, a second apart.
async fn mixed(bed: &Bed) -> Vec<Record> {
    bed.create(task(1)).await;
    let epoch = bed.start(task(1), worker(1)).await;
    let mut seq = 1;
    for batch in 0..12u64 {
        bed.hand.advance(Duration::from_secs(1));
        let bodies: Vec<Body> = (0..=batch)
            .map(|n| match n % 4 {
                3 => Note { text: format!("note {n}") }.into(),
                _ => output(format!("line {n} of {batch}\n").repeat(n as usize * 9 + 1)),
            })
            .collect();
        let count = bodies.len() as u64;
        applied(&bed.run(task(1), append(epoch, seq, bodies)).await);
        seq += count;
    }
    bed.log(task(1)).await
}

pub(super) async fn a_log_is_read_from_any_offset(bed: Bed) {
    let log = mixed(&bed).await;
    let next_offset = Offset(log.len() as u64);
    for (position, record) in log.iter().enumerate() {
        assert_eq!(record.offset, Offset(position as u64));
    }
    for from in 0..log.len() {
        for max_bytes in [0, 1, 300, 3_000, 1 << 20] {
            let page = bed.store.read(task(1), Offset(from as u64), max_bytes).await.unwrap().unwrap();
            assert!(!page.records.is_empty());
            assert_eq!(page.records, log[from..from + page.records.len()], "from {from}, {max_bytes} bytes");
            assert_eq!((page.next_offset, page.ended), (next_offset, false));
        }
    }
    for past in [next_offset, next_offset.next(), Offset(u64::MAX)] {
        let page = bed.store.read(task(1), past, 1_000).await.unwrap().unwrap();
        assert_eq!((page.records.len(), page.next_offset), (0, next_offset));
    }
}

pub(super) async fn a_log_is_read_backwards(bed: Bed) {
    let log = mixed(&bed).await;
    for before in 1..=log.len() {
        for max_bytes in [0, 1, 300, 3_000, 1 << 20] {
            let page = bed.store.read_back(task(1), Offset(before as u64), max_bytes).await.unwrap().unwrap();
            assert!(!page.records.is_empty());
            let first = before - page.records.len();
            assert_eq!(page.records, log[first..before], "before {before}, {max_bytes} bytes");
        }
    }
    let page = bed.store.read_back(task(1), Offset(0), 1_000).await.unwrap().unwrap();
    assert_eq!(page.records.len(), 0);
    let page = bed.store.read_back(task(1), Offset(u64::MAX), usize::MAX).await.unwrap().unwrap();
    assert_eq!(page.records, log);
}

pub(super) async fn pages_are_about_as_large_as_asked(bed: Bed) {
    let log = mixed(&bed).await;
    let weigh = |records: &[Record]| records.iter().map(Record::weight).sum::<usize>();
    let last = log.len() as u64;
    for max_bytes in [500, 2_000, 9_000] {
        let page = bed.store.read(task(1), Offset(0), max_bytes).await.unwrap().unwrap().records;
        assert!(weigh(&page) <= max_bytes && weigh(&log[..=page.len()]) > max_bytes);
        let page = bed.store.read_back(task(1), Offset(last), max_bytes).await.unwrap().unwrap().records;
        assert!(weigh(&page) <= max_bytes && weigh(&log[log.len() - page.len() - 1..]) > max_bytes);
    }
}

pub(super) async fn large_output_comes_back_byte_for_byte(bed: Bed) {
    bed.create(task(1)).await;
    let epoch = bed.start(task(1), worker(1)).await;
    let mut random = [0u8; 32 * 1024];
    let mut bodies = Vec::new();
    for n in 0..24 {
        // Some of it cannot be compressed.
        if n % 2 == 0 {
            bed.hand.fill(&mut random);
        } else {
            random.fill(b'\n');
        }
        bodies.push(output(random.to_vec()));
    }
    applied(&bed.run(task(1), append(epoch, 1, bodies.clone())).await);
    let log = bed.log(task(1)).await;
    assert_eq!(log[3..].iter().map(|record| record.body.clone()).collect::<Vec<_>>(), bodies);
    let page = bed.store.read(task(1), Offset(20), 1).await.unwrap().unwrap();
    assert_eq!(page.records, log[20..21]);
}

pub(super) async fn unknown_records_are_kept(bed: Bed) {
    bed.create(task(1)).await;
    let epoch = bed.start(task(1), worker(1)).await;
    let unknown = |kind| Body::Unknown { kind, version: 3, bytes: Bytes::from_static(b"from the future") };
    applied(&bed.run(task(1), append(epoch, 1, vec![unknown(177), unknown(4_000), output("x")])).await);
    let bodies: Vec<_> = bed.log(task(1)).await.into_iter().skip(3).map(|record| record.body).collect();
    assert_eq!(bodies, [unknown(177), unknown(4_000), output("x")]);
}

pub(super) async fn the_first_offset_since_a_time(bed: Bed) {
    let log = mixed(&bed).await;
    let first = |since: Timestamp| {
        let found = log.iter().find(|record| record.time >= since);
        found.map_or(Offset(log.len() as u64), |record| record.offset)
    };
    let (begin, end) = (log[0].time.0, bed.hand.time().0);
    for since in (begin - 1_000_000..=end + 1_000_000).step_by(500_000) {
        let since = Timestamp(since);
        assert_eq!(bed.store.offset_since(task(1), since).await.unwrap(), Some(first(since)), "{since:?}");
    }
}

pub(super) async fn an_ended_log_says_so(bed: Bed) {
    bed.create(task(1)).await;
    let epoch = bed.start(task(1), worker(1)).await;
    applied(&bed.run(task(1), append(epoch, 1, vec![output("x"), exited(0)])).await);
    let row = bed.row(task(1)).await;
    assert_eq!((row.task.state_word(), row.lease), ("completed", None));
    for page in [
        bed.store.read(task(1), Offset(0), 1 << 20).await.unwrap().unwrap(),
        bed.store.read(task(1), row.task.next_offset, 1).await.unwrap().unwrap(),
        bed.store.read_back(task(1), row.task.next_offset, 1).await.unwrap().unwrap(),
    ] {
        assert!(page.ended);
        assert_eq!(page.next_offset, row.task.next_offset);
    }
}

pub(super) async fn the_clock_never_goes_back(bed: Bed) {
    let before = bed.store.now().await.unwrap();
    bed.create(task(1)).await;
    bed.hand.set(Timestamp(before.0 - 60_000_000));
    assert_eq!(bed.store.now().await.unwrap(), before);
    applied(&bed.run(task(1), claim(worker(1))).await);
    assert_eq!(bed.log(task(1)).await[1].time, before);
    // Nor does it stand still until the clock that was set back has caught up: leases end in the meantime.
    bed.hand.set(Timestamp(before.0 - 60_000_000 + 5));
    assert_eq!(bed.store.now().await.unwrap(), Timestamp(before.0 + 5));
}

/// A log that is capped: what is left of it, beside all there was.
async fn capped(bed: &Bed, most: u64) -> (Vec<Record>, Vec<Record>) {
    let all = mixed(bed).await;
    let bulk: u64 = all.iter().filter(|record| record.body.kind().0 >= 100).map(|record| record.weight() as u64).sum();
    let left = bed.store.cap_log(task(1), most).await.unwrap();
    assert!(left <= most && bulk > most, "{left} of {bulk}");
    assert_eq!(bed.store.cap_log(task(1), most).await.unwrap(), left, "that is enough");
    let page = bed.store.read(task(1), Offset(0), usize::MAX).await.unwrap().unwrap();
    assert_eq!(page.next_offset, Offset(all.len() as u64));
    (all, page.records)
}

/// The offsets that records stand for lie end to end.
fn covers(records: &[Record], from: Offset, to: Offset) {
    let mut next = from;
    for record in records {
        assert_eq!(record.span().start, next);
        next = record.span().end;
    }
    assert_eq!(next, to);
}

pub(super) async fn a_cap_drops_the_oldest_output_and_nothing_else(bed: Bed) {
    let (all, left) = capped(&bed, 9_000).await;
    let end = Offset(all.len() as u64);
    covers(&left, Offset(0), end);
    let is_gap = |record: &&Record| matches!(record.body, Body::Truncated(_));
    let dropped: BTreeSet<_> =
        left.iter().filter(is_gap).flat_map(|record| record.span().start.0..record.span().end.0).collect();
    assert!(!dropped.is_empty());
    for record in &all {
        let is_bulk = record.body.kind().0 >= 100;
        assert_eq!(left.contains(record), !dropped.contains(&record.offset.0), "{record:?}");
        assert!(is_bulk || !dropped.contains(&record.offset.0), "what says what happened stays: {record:?}");
    }
    let first_left = left.iter().find(|record| record.body.kind().0 >= 100).expect("some output is left").offset;
    assert!(dropped.iter().all(|offset| *offset < first_left.0), "the oldest");
    let bytes: u64 = left
        .iter()
        .filter_map(|record| match &record.body {
            Body::Truncated(gap) => Some(gap.bytes),
            _ => None,
        })
        .sum();
    assert!(bytes > 0);
    // From anywhere, in pages of any size, there and back.
    for from in 0..all.len() as u64 {
        for max_bytes in [0, 600, 1 << 20] {
            let page = bed.store.read(task(1), Offset(from), max_bytes).await.unwrap().unwrap().records;
            covers(&page, Offset(from), page.last().unwrap().span().end);
            let page = bed.store.read_back(task(1), Offset(from + 1), max_bytes).await.unwrap().unwrap().records;
            covers(&page, page[0].span().start, Offset(from + 1));
        }
    }
    // It goes on, and is capped again: one gap grows.
    let epoch = bed.row(task(1)).await.task.epoch;
    let seq = bed.row(task(1)).await.task.next_seq;
    let bodies = (0..40).map(|_| output("x".repeat(400))).collect();
    applied(&bed.run(task(1), append(epoch, seq.0, bodies)).await);
    let kept = bed.store.cap_log(task(1), 9_000).await.unwrap();
    assert!(kept <= 9_000);
    let page = bed.store.read(task(1), Offset(0), usize::MAX).await.unwrap().unwrap();
    covers(&page.records, Offset(0), page.next_offset);
    assert!(bed.store.cap_log(task(1), 0).await.unwrap() == 0);
    let page = bed.store.read(task(1), Offset(0), usize::MAX).await.unwrap().unwrap();
    covers(&page.records, Offset(0), page.next_offset);
    assert!(page.records.iter().all(|record| record.body.kind().0 < 100), "all output is gone");
    assert_eq!(bed.store.cap_log(task(9), 0).await.unwrap(), 0, "there is no such task");
}

pub(super) async fn tasks_that_ended_long_ago_are_forgotten(bed: Bed) {
    let month = Duration::from_secs(30 * 24 * 3600);
    for n in 1..=3 {
        bed.create(task(n)).await;
        let epoch = bed.start(task(n), worker(1)).await;
        applied(&bed.run(task(n), append(epoch, 1, vec![output("x")])).await);
        if n < 3 {
            applied(&bed.run(task(n), append(epoch, 2, vec![exited(0)])).await);
        }
        bed.hand.advance(Duration::from_secs(1));
    }
    bed.hand.advance(month - Duration::from_secs(3));
    assert_eq!(bed.store.forget_tasks(month).await.unwrap(), 0);
    bed.hand.advance(Duration::from_micros(1));
    assert_eq!(bed.store.forget_tasks(month).await.unwrap(), 1, "the first");
    assert_eq!(bed.store.row(task(1)).await.unwrap(), None);
    assert_eq!(bed.store.read(task(1), Offset(0), 100).await.unwrap(), None);
    assert_eq!(bed.log(task(2)).await.len(), 6);
    bed.hand.advance(month * 3);
    assert_eq!(bed.store.forget_tasks(month).await.unwrap(), 1, "what runs is kept");
    assert_eq!(bed.log(task(3)).await.len(), 4);
    let epoch = bed.row(task(3)).await.task.epoch;
    applied(&bed.run(task(3), append(epoch, 2, vec![exited(0)])).await);
    bed.hand.advance(month * 2);
    assert_eq!(bed.store.forget_tasks(month).await.unwrap(), 1, "the last of that day");
    // The same day again.
    bed.create(task(4)).await;
    let epoch = bed.start(task(4), worker(1)).await;
    applied(&bed.run(task(4), append(epoch, 1, vec![output("x")])).await);
    assert_eq!(bed.log(task(4)).await.len(), 4);
}
