//! Reading logs.

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
            assert_eq!((page.first_kept, page.next_offset, page.ended), (Offset(0), next_offset, false));
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
