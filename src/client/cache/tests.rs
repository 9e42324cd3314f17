//! Writers that are killed anywhere, several at once, and what is read afterwards.

use std::fs;
use std::time::Duration;

use ado_proto::record::{Desired, Ended, Outcome, Output, Skipped, Stream, Truncated};
use ado_proto::request::{CheckpointInfo, StartAt, TaskInfo};
use ado_proto::session::Records;
use ado_proto::spec::{Input, TaskSpec};
use ado_proto::{CheckpointId, Epoch, Namespace, Offset, Origin, Record, Seq, TaskId, Timestamp};
use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::logs::{Known, KnownLog, Name, Writer, sweep};
use super::tasks::{KnownTask, Writer as TasksWriter};
use super::{MAX_TASKS, Memory, Place, Recorder};
use crate::env::Env;

const MIB: u64 = 1024 * 1024;

fn place(dir: &tempfile::TempDir) -> Place {
    let place = Place { root: dir.path().into(), dir: dir.path().join("mesh"), max_bytes: 256 * MIB };
    fs::create_dir_all(&place.dir).unwrap();
    place
}

fn task(number: u128) -> TaskId {
    TaskId(Uuid::from_u128(number))
}

fn name(generation: u64) -> Name {
    Name { task: task(7), generation }
}

/// Record `offset` of the one true log; a line or a part of one.
fn record(offset: u64) -> Record {
    let text = if offset.is_multiple_of(3) { format!("{offset}\nx") } else { format!("{offset}\n") };
    let output = Output { stream: Stream::Stdout, position: offset * 10, data: Bytes::from(text) };
    Record {
        offset: Offset(offset),
        origin: Origin::Worker { epoch: Epoch(1), seq: Seq(offset) },
        time: Timestamp(1000 + offset.cast_signed()),
        body: output.into(),
    }
}

fn bytes(records: impl IntoIterator<Item = Record>) -> Bytes {
    Records::new(&records.into_iter().collect::<Vec<_>>()).0
}

fn write(writer: &mut Writer, first: u64, next: u64) {
    writer.take(bytes((first..next).map(record)), Timestamp(5)).unwrap();
    writer.flush().unwrap();
}

fn log(place: &Place) -> Option<KnownLog> {
    Memory::at(place.clone()).log(task(7), Timestamp(1_000_000))
}

/// What is read from the start, as offsets. Panics when a record is not the true one, or when a gap is not said.
fn read(log: &KnownLog) -> Vec<u64> {
    let mut next = 0;
    let mut offsets = Vec::new();
    for known in log.from(StartAt::Offset(Offset(0))) {
        match known {
            Known::Missing { from, to } => {
                assert!(from == Offset(next) && to > from);
                next = to.0;
            }
            Known::Record(found) => {
                assert_eq!(found, record(next));
                offsets.push(next);
                next += 1;
            }
        }
    }
    assert_eq!(log.next(), Offset(next));
    offsets
}

fn info(number: u128) -> TaskInfo {
    TaskInfo {
        id: task(number),
        namespace: Namespace::default(),
        owner: "user/ann".into(),
        name: None,
        group: None,
        state: "queued".into(),
        desired: Desired::Running,
        spec: TaskSpec::new("shell", Input::Text(format!("echo {number}"))),
        worker: None,
        worker_name: None,
        epoch: Epoch(0),
        attempt: 1,
        losses: 0,
        created_at: Timestamp(1_000_000),
        started_at: None,
        ended_at: None,
        not_before: Timestamp(1_000_000),
        outcome: None,
        exit: None,
        error: None,
        next_offset: Offset(1),
        progress: None,
        checkpoint: None,
        reason: None,
        retry_of: None,
        settled: None,
        asks: Vec::new(),
        usage: ado_proto::spec::Usage::default(),
    }
}

fn seen(number: u128, seconds: i64) -> KnownTask {
    KnownTask { seen_at: Timestamp(seconds * 1_000_000), info: info(number) }
}

fn tasks(place: &Place) -> Vec<u128> {
    Memory::at(place.clone()).tasks().iter().map(|task| task.info.id.0.as_u128()).collect()
}

#[derive(Debug, Clone)]
enum Step {
    /// Writer `who` receives this range.
    Take { who: usize, first: u64, length: u64 },
    /// It is killed, with this much of the file's tail never written.
    Kill { who: usize, lost: u64 },
    /// Something else is in the tail.
    Scribble(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2usize, 0..60u64, 1..12u64).prop_map(|(who, first, length)| Step::Take { who, first, length }),
        2 => (0..2usize, 0..200u64).prop_map(|(who, lost)| Step::Kill { who, lost }),
        1 => proptest::collection::vec(any::<u8>(), 1..40).prop_map(Step::Scribble),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_is_read_is_always_part_of_the_true_log(steps in proptest::collection::vec(step(), 1..24)) {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir);
        let path = place.dir.join(format!("{}-{:016x}.log", task(7).0.simple(), 1));
        let mut writers = [Writer::new(&place, name(1)), Writer::new(&place, name(1))];
        let mut told = std::collections::BTreeSet::new();
        let mut damaged = false;
        for step in steps {
            match step {
                Step::Take { who, first, length } => {
                    write(&mut writers[who], first, first + length);
                    told.extend(first..first + length);
                }
                Step::Kill { who, lost } => {
                    writers[who] = Writer::new(&place, name(1));
                    if let Ok(file) = fs::OpenOptions::new().write(true).open(&path) {
                        let length = file.metadata().unwrap().len();
                        file.set_len(length.saturating_sub(lost)).unwrap();
                        damaged |= lost > 0;
                    }
                }
                Step::Scribble(noise) => {
                    let mut whole = fs::read(&path).unwrap_or_default();
                    whole.extend(noise);
                    fs::write(&path, whole).unwrap();
                }
            }
            let offsets = log(&place).map(|log| read(&log)).unwrap_or_default();
            prop_assert!(offsets.iter().all(|offset| told.contains(offset)));
            // Nothing that was written is lost but by damage.
            prop_assert!(damaged || offsets.len() == told.len(), "{offsets:?} of {told:?}");
        }
    }
}

#[test]
fn a_file_cut_at_any_byte_is_a_prefix_and_can_be_written_on() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let mut writer = Writer::new(&place, name(1));
    (0..6).for_each(|run| write(&mut writer, run * 5, run * 5 + 5));
    let path = fs::read_dir(&place.dir).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&path).unwrap();
    let mut lengths = std::collections::BTreeSet::new();
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let offsets = log(&place).map(|log| read(&log)).unwrap_or_default();
        assert_eq!(offsets, (0..offsets.len() as u64).collect::<Vec<_>>());
        lengths.insert(offsets.len());
        let mut next = Writer::new(&place, name(1));
        write(&mut next, 0, 40);
        assert_eq!(read(&log(&place).unwrap()).len(), 40, "cut at {cut}");
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 5, 10, 15, 20, 25, 30]);
}

#[test]
fn what_was_made_up_on_reading_is_not_kept_and_gaps_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let own = |offset, body: ado_proto::record::Body| Record { body, ..record(offset) };
    let truncated = own(4, Truncated { from: Offset(0), to: Offset(5), bytes: 9 }.into());
    let skipped = own(9, Skipped { from: Offset(7), to: Offset(10), bytes: 9 }.into());
    let mut writer = Writer::new(&place, name(1));
    writer.take(bytes([truncated, record(5), record(6), skipped, record(10)]), Timestamp(5)).unwrap();
    writer.flush().unwrap();
    let log = log(&place).unwrap();
    assert_eq!(read(&log), [5, 6, 10]);
    let missing: Vec<_> = log
        .from(StartAt::Offset(Offset(0)))
        .filter_map(|known| match known {
            Known::Missing { from, to } => Some((from.0, to.0)),
            Known::Record(_) => None,
        })
        .collect();
    assert_eq!(missing, [(0, 5), (7, 10)]);
}

#[test]
fn beginnings() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let mut writer = Writer::new(&place, name(1));
    write(&mut writer, 0, 4);
    write(&mut writer, 10, 14);
    let log = log(&place).unwrap();
    let text = |start| {
        let mut text = String::new();
        for known in log.from(start) {
            match known {
                Known::Record(Record { body: ado_proto::record::Body::Output(output), .. }) => {
                    text.push_str(std::str::from_utf8(&output.data).unwrap());
                }
                Known::Record(other) => panic!("{other:?}"),
                Known::Missing { from, to } => text.push_str(&format!("<{from}-{to}>")),
            }
        }
        text
    };
    assert_eq!(text(StartAt::Offset(Offset(2))), "2\n3\nx<4-10>10\n11\n12\nx13\n");
    assert_eq!(text(StartAt::Since(Timestamp(1011))), "11\n12\nx13\n");
    assert_eq!(text(StartAt::Since(Timestamp(9999))), "");
    assert_eq!(text(StartAt::Tail(1)), "x13\n");
    assert_eq!(text(StartAt::Tail(2)), "12\nx13\n");
    // More lines than the last part has: some of them may be in the gap.
    assert_eq!(text(StartAt::Tail(9)), "<4-10>10\n11\n12\nx13\n");
    assert!(!log.is_ended());
    let cut = log.from(StartAt::Tail(1)).next();
    let Some(Known::Record(Record { body: ado_proto::record::Body::Output(output), .. })) = cut else {
        panic!("{cut:?}");
    };
    assert_eq!(output.position, 123, "it begins within a record");
}

#[test]
fn another_generation_is_another_log_and_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    write(&mut Writer::new(&place, name(1)), 0, 9);
    write(&mut Writer::new(&place, name(2)), 0, 3);
    assert_eq!(read(&log(&place).unwrap()), [0, 1, 2]);
    assert_eq!(fs::read_dir(&place.dir).unwrap().count(), 1);
    // A file that is called like a log and says it is another one.
    let path = fs::read_dir(&place.dir).unwrap().next().unwrap().unwrap().path();
    fs::rename(&path, place.dir.join(format!("{}-{:016x}.log", task(7).0.simple(), 3))).unwrap();
    assert!(log(&place).is_none());
}

#[test]
fn a_long_log_keeps_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place { max_bytes: MIB, ..place(&dir) };
    let mut writer = Writer::new(&place, name(1));
    for offset in 0..400u64 {
        // Does not compress.
        let mut data = vec![0; 1024];
        Env::system().fill(&mut data);
        let output = Output { stream: Stream::Stdout, position: 0, data: data.into() };
        writer.take(bytes([Record { body: output.into(), ..record(offset) }]), Timestamp(5)).unwrap();
    }
    writer.flush().unwrap();
    let path = fs::read_dir(&place.dir).unwrap().next().unwrap().unwrap().path();
    assert!(fs::metadata(&path).unwrap().len() <= MIB / 4 + 70_000);
    let log = log(&place).unwrap();
    let known: Vec<_> = log.from(StartAt::Offset(Offset(0))).collect();
    assert!(matches!(known[0], Known::Missing { from: Offset(0), .. }));
    assert!(matches!(&known[known.len() - 1], Known::Record(record) if record.offset == Offset(399)));
    assert!(known[1..].iter().all(|known| matches!(known, Known::Record(_))), "no gap but at the beginning");
}

#[test]
fn logs_used_least_recently_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    for number in 1..=3 {
        write(&mut Writer::new(&place, Name { task: task(number), generation: 1 }), 0, 50);
    }
    let known = |number| Memory::at(place.clone()).log(task(number), Timestamp(number as i64)).is_some();
    // Reading is use, and the clock of this machine says when.
    assert!(known(3) && known(1) && known(2));
    let length = fs::read_dir(&place.dir).unwrap().next().unwrap().unwrap().metadata().unwrap().len();
    sweep(&place.root, 2 * length + 1).unwrap();
    assert!(!known(1) && known(2) && known(3));
}

#[test]
fn a_log_that_is_removed_or_replaced_while_it_is_written_goes_on_in_the_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let (mut one, mut two) = (Writer::new(&place, name(1)), Writer::new(&place, name(1)));
    write(&mut one, 0, 5);
    write(&mut two, 5, 10);
    sweep(&place.root, 0).unwrap();
    assert!(log(&place).is_none());
    write(&mut one, 3, 7);
    write(&mut two, 6, 12);
    assert_eq!(read(&log(&place).unwrap()), (3..12).collect::<Vec<_>>());
}

#[test]
fn tasks_are_the_newest_seen_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let (mut one, mut two) = (TasksWriter::new(&place), TasksWriter::new(&place));
    one.write(vec![seen(1, 10), seen(2, 10)]).unwrap();
    let mut ended = seen(1, 30);
    ended.info.state = "completed".into();
    two.write(vec![ended.clone()]).unwrap();
    // An answer that was on its way for longer does not undo it.
    one.write(vec![seen(1, 20)]).unwrap();
    let known = Memory::at(place.clone()).tasks();
    assert_eq!(known, [seen(2, 10), ended]);

    let length = || fs::metadata(place.tasks()).unwrap().len();
    let before = length();
    one.write(vec![seen(2, 12)]).unwrap();
    assert_eq!(length(), before, "what is known is not written again at once");
    one.write(vec![seen(2, 40)]).unwrap();
    assert_eq!(Memory::at(place.clone()).tasks()[0].seen_at, Timestamp(40_000_000));

    let many = |from: u128, seconds| (from..from + 900).map(|number| seen(number, seconds)).collect::<Vec<_>>();
    two.write(many(100, 50)).unwrap();
    one.write(many(2000, 60)).unwrap();
    let known = tasks(&place);
    assert_eq!(known.len(), MAX_TASKS);
    assert_eq!((known[0], known[899], known[900], known[999]), (2899, 2000, 999, 900));
    // The file is made smaller now and then, and nothing is lost by it.
    for round in 0..400 {
        one.write(many(2000, 100 + round * 30)).unwrap();
    }
    assert!(length() < 2 * MIB, "{}", length());
    two.write(vec![seen(5, 90_000)]).unwrap();
    assert!(tasks(&place).contains(&5) && tasks(&place).contains(&2000));
}

#[test]
fn a_large_checkpoint_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let mut large = seen(1, 1);
    let data = Some("x".repeat(60_000));
    large.info.checkpoint =
        Some(CheckpointInfo { id: CheckpointId(Uuid::nil()), offset: Offset(1), data, snapshot: None });
    TasksWriter::new(&place).write(vec![large]).unwrap();
    assert_eq!(Memory::at(place.clone()).tasks()[0].info.checkpoint.as_ref().unwrap().data, None);
    assert!(fs::metadata(place.tasks()).unwrap().len() < 4096);
}

#[tokio::test]
async fn a_recorder_keeps_what_it_is_told_and_forgets_what_is_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place { root: dir.path().into(), dir: dir.path().join("new"), max_bytes: MIB };
    let recorder = Recorder::start(place.clone(), Env::system());
    recorder.tasks(&[info(7), info(8)]);
    recorder.records(task(7), 1, &Records::new(&[record(0), record(1)]));
    recorder.finish(Duration::from_secs(60)).await;
    recorder.tasks(&[info(9)]);
    assert_eq!(tasks(&place), [8, 7], "after the end nothing is taken, and nothing fails");
    assert_eq!(read(&log(&place).unwrap()), [0, 1]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place.dir), 0o700);
        fs::read_dir(&place.dir).unwrap().for_each(|file| assert_eq!(mode(&file.unwrap().path()), 0o600));
    }

    let recorder = Recorder::start(place.clone(), Env::system());
    recorder.reset(2);
    recorder.tasks(&[info(3)]);
    recorder.finish(Duration::from_secs(60)).await;
    assert_eq!(tasks(&place), [3]);
    assert!(log(&place).is_none());
}

#[tokio::test]
async fn a_flood_is_kept_in_part_and_its_end_for_certain() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let recorder = Recorder::start(place.clone(), Env::system());
    let large = |offset| {
        let output = Output { stream: Stream::Stdout, position: 0, data: Bytes::from(vec![0; 32 * 1024]) };
        Record { body: output.into(), ..record(offset) }
    };
    let all = 1000;
    for offset in 0..all {
        recorder.records(task(7), 1, &Records::new([&large(offset)]));
        // Slower than its queue is emptied: nothing is skipped there.
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    recorder.finish(Duration::from_secs(60)).await;
    let known: Vec<_> = log(&place)
        .unwrap()
        .from(StartAt::Offset(Offset(0)))
        .filter_map(|known| match known {
            Known::Record(found) => Some(found.offset.0),
            Known::Missing { .. } => None,
        })
        .collect();
    assert!(known.len() > 250, "{} of 32 KiB each", known.len());
    assert!(known.len() < 900, "{} of 32 KiB each: a flood costs as much as it is long", known.len());
    assert_eq!((known[0], known.last()), (0, Some(&(all - 1))));
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_nobodys_trouble() {
    let dir = tempfile::tempdir().unwrap();
    // A file where the folder should be.
    fs::write(dir.path().join("new"), "").unwrap();
    let place = Place { root: dir.path().into(), dir: dir.path().join("new"), max_bytes: MIB };
    let recorder = Recorder::start(place.clone(), Env::system());
    for offset in 0..5000 {
        recorder.records(task(7), 1, &Records::new(&[record(offset)]));
    }
    recorder.finish(Duration::from_secs(60)).await;
    assert!(Memory::at(place).tasks().is_empty());
}

#[tokio::test]
async fn a_recorder_that_does_not_keep_up_skips() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    // Somebody stopped in the middle of writing: the thread waits for the lock, and nobody else does.
    let mut stopped = super::journal::Journal::new(place.tasks(), b"ado tasks 1".to_vec());
    let lock = stopped.lock().unwrap();
    let recorder = Recorder::start(place.clone(), Env::system());
    for offset in 0..50_000 {
        recorder.records(task(7), 1, &Records::new(&[record(offset)]));
    }
    drop(lock);
    // The thread has to make room before this can be taken.
    let ended = Ended { outcome: Outcome::Completed, exit: None, error: None };
    let last = Record { body: ended.into(), ..record(50_000) };
    while log(&place).is_none_or(|log| log.next() < Offset(50_001)) {
        recorder.records(task(7), 1, &Records::new([&last]));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    recorder.finish(Duration::from_secs(60)).await;
    let log = log(&place).unwrap();
    let gaps: Vec<_> =
        log.from(StartAt::Offset(Offset(0))).filter(|known| matches!(known, Known::Missing { .. })).collect();
    assert!(!gaps.is_empty(), "it was far behind");
    for known in log.from(StartAt::Offset(Offset(0))) {
        if let Known::Record(found) = known
            && found.offset < Offset(50_000)
        {
            assert_eq!(found, record(found.offset.0));
        }
    }
}
