//! Where a viewer is in a log. Pure: [`super::RecordStream`] carries out what this decides.

use std::time::Duration;

use ado_proto::record::{Body, Record};
use ado_proto::request::{Follow, Following, StartAt};
use ado_proto::session::FollowItem;
use ado_proto::{DecodeError, Offset, TaskId};
use bytes::Buf;

/// First wait between two openings that brought nothing; doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest wait between two openings.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Violations in a row, without a record in between, after which the log is given up.
const MOST_VIOLATIONS: u32 = 3;

/// How a controller broke the rules of a log. The stream it came on is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Records are missing.
    #[error("record {found} came where {expected} was due")]
    Gap {
        /// The record that was due.
        expected: Offset,
        /// The record that came.
        found: Offset,
    },
    /// The log was said to end, or to be idle, beyond what was sent.
    #[error("the log reaches to {said} but only records before {seen} came")]
    Withheld {
        /// One after the last record, as the controller says.
        said: Offset,
        /// One after the last record that came.
        seen: Offset,
    },
    /// Records before the stream said where it begins.
    #[error("records came before the place they begin at")]
    Early,
    /// A record cannot be read.
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
}

/// What to do with an item.
#[derive(Debug, PartialEq)]
pub(super) enum Took {
    /// Hand these on; none of them was seen before. May be empty.
    Records(Vec<Record>),
    /// All is read, and there will be no more.
    End,
    /// The reader stopped before the end: open another.
    Reopen,
    /// Somebody wants this viewer to leave: who.
    Detached(String),
    /// The log begins anew: open another, from the start.
    Reset(u64),
}

/// The next offset wanted, and of which log.
#[derive(Debug)]
pub(super) struct Cursor {
    task: TaskId,
    start: StartAt,
    follow: bool,
    without_output: bool,
    /// `None` until the controller said where `start` is.
    next: Option<Offset>,
    generation: Option<u64>,
    /// Bytes of the first output record that come before the lines asked for.
    skip: u32,
    /// Openings since the last one that brought something.
    fruitless: u32,
    violations: u32,
}

impl Cursor {
    pub(super) fn new(task: TaskId, start: StartAt, follow: bool) -> Self {
        let next = match start {
            StartAt::Offset(offset) => Some(offset),
            StartAt::Tail(_) | StartAt::Since(_) => None,
        };
        Self {
            task,
            start,
            follow,
            without_output: false,
            next,
            generation: None,
            skip: 0,
            fruitless: 0,
            violations: 0,
        }
    }

    /// Wants runs of output as one record each.
    pub(super) fn skip_output(&mut self) {
        self.without_output = true;
    }

    /// The next offset wanted, once it is known.
    pub(super) fn next(&self) -> Option<Offset> {
        self.next
    }

    /// Which task's log.
    pub(super) fn task(&self) -> TaskId {
        self.task
    }

    /// Of which log, once it is known.
    pub(super) fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// What to ask for.
    pub(super) fn request(&self) -> Follow {
        let from = self.next.map_or(self.start, StartAt::Offset);
        Follow {
            task: self.task,
            from,
            follow: self.follow,
            without_output: self.without_output,
            generation: self.generation,
        }
    }

    /// The reader stops for a while, of its own will: it asks at once when it goes on.
    pub(super) fn rest(&mut self) {
        self.fruitless = 0;
    }

    /// How long to wait before asking. The first question, and the first after something came, is asked at once.
    pub(super) fn wait(&mut self) -> Duration {
        let tried = self.fruitless;
        self.fruitless = tried.saturating_add(1);
        if tried == 0 { Duration::ZERO } else { (FIRST_WAIT * (1 << (tried - 1).min(10))).min(LONGEST_WAIT) }
    }

    /// The controller begins to read. `Some` is the generation of another log than the one read so far.
    pub(super) fn opened(&mut self, following: &Following) -> Result<Option<u64>, Violation> {
        if self.generation.is_some_and(|known| known != following.generation) {
            return Ok(Some(self.reset(following.generation)));
        }
        self.generation = Some(following.generation);
        match self.next {
            // The beginning of the log may be gone; then a `Truncated` record says so, from the offset asked for.
            Some(next) if following.from > next => Err(Violation::Gap { expected: next, found: following.from }),
            Some(_) => Ok(None),
            None => {
                self.next = Some(following.from);
                self.skip = following.skip;
                Ok(None)
            }
        }
    }

    /// Something came.
    pub(super) fn take(&mut self, item: FollowItem) -> Result<Took, Violation> {
        match item {
            FollowItem::Records(records) => self.records(records.decode()?).map(Took::Records),
            FollowItem::LogReset(reset) => Ok(Took::Reset(self.reset(reset.generation))),
            FollowItem::Idle(idle) => {
                self.reaches(idle.next)?;
                self.fruitful();
                Ok(Took::Records(Vec::new()))
            }
            FollowItem::End(end) => {
                self.reaches(end.next)?;
                Ok(if end.ended || !self.follow { Took::End } else { Took::Reopen })
            }
            FollowItem::Detached(detached) => Ok(Took::Detached(detached.by)),
            FollowItem::Unknown { .. } => Ok(Took::Records(Vec::new())),
        }
    }

    /// Whether the controller broke the rules too often.
    pub(super) fn violated(&mut self) -> bool {
        self.violations += 1;
        self.violations >= MOST_VIOLATIONS
    }

    /// Drops what was seen before. All or nothing: after a violation the cursor is where it was.
    fn records(&mut self, records: Vec<Record>) -> Result<Vec<Record>, Violation> {
        let mut next = self.next.ok_or(Violation::Early)?;
        let mut skip = self.skip;
        let mut fresh = Vec::with_capacity(records.len());
        for mut record in records {
            let span = record.span();
            if span.end <= next {
                continue;
            }
            if span.start > next {
                return Err(Violation::Gap { expected: next, found: span.start });
            }
            match &mut record.body {
                // Part of what it stands for was seen before. How many bytes of it nobody can tell.
                Body::Truncated(gap) => gap.from = next,
                Body::Skipped(run) => run.from = next,
                Body::Output(output) => {
                    let skipped = output.data.len().min(std::mem::take(&mut skip) as usize);
                    output.data.advance(skipped);
                    output.position += skipped as u64;
                }
                _ => {}
            }
            next = span.end;
            fresh.push(record);
        }
        if !fresh.is_empty() {
            self.fruitful();
        }
        self.next = Some(next);
        self.skip = skip;
        Ok(fresh)
    }

    fn reaches(&self, said: Offset) -> Result<(), Violation> {
        match self.next {
            Some(seen) if said > seen => Err(Violation::Withheld { said, seen }),
            Some(_) => Ok(()),
            None => Err(Violation::Early),
        }
    }

    fn fruitful(&mut self) {
        self.fruitless = 0;
        self.violations = 0;
    }

    fn reset(&mut self, generation: u64) -> u64 {
        self.generation = Some(generation);
        self.next = Some(Offset(0));
        self.skip = 0;
        generation
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Note, Output, Skipped, Stream, Truncated};
    use ado_proto::session::{End, Idle, LogReset, Records};
    use ado_proto::{Origin, Timestamp};

    use super::*;

    fn task() -> TaskId {
        TaskId(uuid::Uuid::from_u128(7))
    }

    fn note(offset: u64) -> Record {
        Record {
            offset: Offset(offset),
            origin: Origin::Controller,
            time: Timestamp(0),
            body: Note { text: offset.to_string() }.into(),
        }
    }

    fn records(offsets: impl IntoIterator<Item = u64>) -> FollowItem {
        let records: Vec<_> = offsets.into_iter().map(note).collect();
        Records::new(&records).into()
    }

    fn offsets(took: Took) -> Vec<u64> {
        match took {
            Took::Records(records) => records.iter().map(|record| record.offset.0).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn reading(from: u64) -> Cursor {
        let mut cursor = Cursor::new(task(), StartAt::Offset(Offset(from)), true);
        assert_eq!(cursor.opened(&Following { from: Offset(from), skip: 0, generation: 1 }), Ok(None));
        cursor
    }

    #[test]
    fn duplicates_are_dropped_by_offset() {
        let mut cursor = reading(0);
        assert_eq!(offsets(cursor.take(records(0..3)).unwrap()), [0, 1, 2]);
        assert_eq!(offsets(cursor.take(records(1..5)).unwrap()), [3, 4]);
        assert_eq!(offsets(cursor.take(records(0..2)).unwrap()), [0; 0]);
        assert_eq!(cursor.next(), Some(Offset(5)));
    }

    #[test]
    fn a_gap_is_refused_and_moves_nothing() {
        let mut cursor = reading(0);
        let gap = Violation::Gap { expected: Offset(2), found: Offset(3) };
        assert_eq!(cursor.take(records([0, 1, 3])), Err(gap));
        assert_eq!(cursor.next(), Some(Offset(0)));
        assert_eq!(cursor.request().from, StartAt::Offset(Offset(0)));
        assert_eq!(offsets(cursor.take(records(0..4)).unwrap()), [0, 1, 2, 3]);
    }

    #[test]
    fn reopening_asks_for_what_comes_next_of_the_same_log() {
        let mut cursor = Cursor::new(task(), StartAt::Tail(100), true);
        assert_eq!(cursor.request().from, StartAt::Tail(100));
        assert_eq!(cursor.request().generation, None);
        assert_eq!(cursor.opened(&Following { from: Offset(40), skip: 0, generation: 9 }), Ok(None));
        cursor.take(records(40..42)).unwrap();
        let again = cursor.request();
        assert_eq!((again.from, again.generation), (StartAt::Offset(Offset(42)), Some(9)));
        assert_eq!(
            cursor.opened(&Following { from: Offset(50), skip: 0, generation: 9 }),
            Err(Violation::Gap { expected: Offset(42), found: Offset(50) }),
        );
    }

    #[test]
    fn a_tail_begins_with_a_line_even_when_the_connection_is_lost_before_it_came() {
        let mut cursor = Cursor::new(task(), StartAt::Tail(1), true);
        cursor.opened(&Following { from: Offset(4), skip: 3, generation: 1 }).unwrap();
        cursor.opened(&Following { from: Offset(4), skip: 0, generation: 1 }).unwrap();
        let output = |offset, data: &'static str| Record {
            body: Output { stream: Stream::Stdout, position: 10, data: data.into() }.into(),
            ..note(offset)
        };
        let item = Records::new([&note(4), &output(5, "x\n\nline"), &output(6, " two")]).into();
        let Ok(Took::Records(records)) = cursor.take(item) else { panic!("no records") };
        assert_eq!(records[1].body, Output { stream: Stream::Stdout, position: 13, data: "line".into() }.into());
        assert_eq!(records[2], output(6, " two"));
    }

    #[test]
    fn a_truncated_beginning_is_no_gap() {
        let mut cursor = reading(5);
        let gap = Truncated { from: Offset(5), to: Offset(20), bytes: 7 };
        let item = Records::new([&Record { body: gap.into(), ..note(19) }, &note(20)]).into();
        assert_eq!(offsets(cursor.take(item).unwrap()), [19, 20]);
        assert_eq!(cursor.next(), Some(Offset(21)));
    }

    fn skipped(from: u64, to: u64) -> Record {
        Record { body: Skipped { from: Offset(from), to: Offset(to), bytes: 99 }.into(), ..note(to - 1) }
    }

    fn spans(took: Took) -> Vec<(u64, u64)> {
        match took {
            Took::Records(records) => records.iter().map(|it| (it.span().start.0, it.span().end.0)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_run_of_output_stands_for_all_its_offsets() {
        let mut cursor = reading(0);
        let mut take = |records: &[Record]| cursor.take(Records::new(records).into()).map(spans);
        assert_eq!(take(&[note(0), skipped(1, 8), note(8)]), Ok(vec![(0, 1), (1, 8), (8, 9)]));
        assert_eq!(take(&[skipped(1, 8), note(8)]), Ok(vec![]), "seen before");
        assert_eq!(take(&[skipped(1, 5), skipped(5, 9)]), Ok(vec![]), "cut otherwise");
        assert_eq!(take(&[skipped(9, 20)]), Ok(vec![(9, 20)]));
        let gap = Violation::Gap { expected: Offset(20), found: Offset(21) };
        assert_eq!(take(&[skipped(21, 30)]), Err(gap), "20 is missing, though the run ends far behind it");
        assert_eq!(take(&[skipped(20, 30)]), Ok(vec![(20, 30)]), "and nothing was moved by it");
        assert_eq!(cursor.take(Idle { next: Offset(30) }.into()), Ok(Took::Records(Vec::new())));
    }

    #[test]
    fn reconnecting_in_the_middle_of_a_run_goes_on_there() {
        let mut cursor = reading(0);
        cursor.skip_output();
        assert_eq!(cursor.take(Records::new([&skipped(0, 50)]).into()).map(spans), Ok(vec![(0, 50)]));
        let again = cursor.request();
        assert_eq!((again.from, again.without_output), (StartAt::Offset(Offset(50)), true));
        assert_eq!(cursor.opened(&Following { from: Offset(50), skip: 0, generation: 1 }), Ok(None));
        // A run that began before the cursor counts from the cursor on.
        assert_eq!(
            cursor.take(Records::new([&skipped(0, 80), &note(80)]).into()).map(spans),
            Ok(vec![(50, 80), (80, 81)])
        );
        assert_eq!(cursor.next(), Some(Offset(81)));
    }

    #[test]
    fn another_generation_begins_anew() {
        let mut cursor = reading(0);
        cursor.take(records(0..8)).unwrap();
        assert_eq!(cursor.take(LogReset { generation: 2 }.into()), Ok(Took::Reset(2)));
        let again = cursor.request();
        assert_eq!((again.from, again.generation), (StartAt::Offset(Offset(0)), Some(2)));

        let mut cursor = reading(0);
        cursor.take(records(0..8)).unwrap();
        assert_eq!(cursor.opened(&Following { from: Offset(8), skip: 0, generation: 3 }), Ok(Some(3)));
        assert_eq!(cursor.next(), Some(Offset(0)));
    }

    #[test]
    fn an_end_counts_only_when_all_was_read_and_the_task_is_over() {
        let mut cursor = reading(0);
        cursor.take(records(0..2)).unwrap();
        let withheld = Violation::Withheld { said: Offset(3), seen: Offset(2) };
        assert_eq!(cursor.take(End { next: Offset(3), ended: true }.into()), Err(withheld.clone()));
        assert_eq!(cursor.take(Idle { next: Offset(3) }.into()), Err(withheld));
        assert_eq!(cursor.take(End { next: Offset(2), ended: false }.into()), Ok(Took::Reopen));
        assert_eq!(cursor.take(End { next: Offset(2), ended: true }.into()), Ok(Took::End));

        let mut once = Cursor::new(task(), StartAt::Offset(Offset(0)), false);
        once.opened(&Following { from: Offset(0), skip: 0, generation: 1 }).unwrap();
        assert_eq!(once.take(End { next: Offset(0), ended: false }.into()), Ok(Took::End));
    }

    #[test]
    fn only_openings_that_bring_nothing_wait() {
        let mut cursor = reading(0);
        assert_eq!(cursor.wait(), Duration::ZERO);
        assert_eq!(cursor.wait(), FIRST_WAIT);
        assert_eq!(cursor.wait(), FIRST_WAIT * 2);
        cursor.take(records(0..1)).unwrap();
        assert_eq!(cursor.wait(), Duration::ZERO);
        for _ in 0..40 {
            assert!(cursor.wait() <= LONGEST_WAIT);
        }
    }

    #[test]
    fn violations_in_a_row_end_it() {
        let mut cursor = reading(0);
        assert!(!cursor.violated());
        assert!(!cursor.violated());
        cursor.take(records(0..1)).unwrap();
        assert!(!cursor.violated());
        assert!(!cursor.violated());
        assert!(cursor.violated());
    }

    #[test]
    fn broken_bytes_are_a_violation() {
        let mut cursor = reading(0);
        let item = Records(bytes::Bytes::from_static(&[0xff; 9])).into();
        assert!(matches!(cursor.take(item), Err(Violation::Unreadable(_))));
    }
}
