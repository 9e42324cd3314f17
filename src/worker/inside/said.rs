//! How much a task may say, and in which order it goes into the log. Pure: times are counted from an attempt's beginning.

use std::collections::VecDeque;
use std::time::Duration;

use ado_proto::record::{Body, Checkpointed, Note, Progress};
use ado_proto::spec::Exit;

/// Between two records of progress. What comes between is merged: nobody reads faster, and the log does not grow faster.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Notes are never cut off a log, so they are few: 5 a second, and 50 at once.
const NOTES: Rate = Rate { every: Duration::from_millis(200), burst: 50 };
/// Notes accepted while the log takes none (the spool is full).
const NOTES_WAITING: usize = 64;
/// A small checkpoint is one of these, one of the largest size is 17. They are never cut off a log either.
const CHECKPOINTS: Rate = Rate { every: Duration::from_millis(200), burst: 40 };
const CHECKPOINT_UNIT: usize = 4096;
/// Checkpoints asked for and not durable.
const CHECKPOINTS_WAITING: usize = 8;
/// Questions that wait for somebody at once.
pub(super) const ASKS_WAITING: usize = 8;
/// Reading lines costs the worker time: 2,000 short ones or 2 MB a second. Those who say more are read later.
const LINES: Rate = Rate { every: Duration::from_micros(500), burst: 2_000 };
const LINE_UNIT: usize = 1024;

/// Why something is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::worker) enum Refusal {
    /// Too many notes.
    #[error("too many log messages: 5 a second are recorded; try again in {} ms", .again_in.as_millis())]
    TooFast {
        /// When one may be accepted.
        again_in: Duration,
    },
    /// The log takes nothing at the moment.
    #[error(
        "{NOTES_WAITING} log messages wait already: the worker has no room for more until its controller takes some"
    )]
    Full,
    /// Too many checkpoints.
    #[error("{CHECKPOINTS_WAITING} checkpoints wait already to become durable")]
    Waiting,
    /// The task's folder cannot be a part of a checkpoint.
    #[error("no checkpoint: {0}")]
    Folder(String),
    /// Too many questions.
    #[error("{ASKS_WAITING} questions wait already for somebody's answer")]
    Asking,
    /// The attempt was given up.
    #[error("this attempt is over: nothing it says is recorded any more")]
    Over,
}

/// What comes next. `R` is whatever goes with a checkpoint.
#[derive(Debug, PartialEq)]
pub(super) enum Next<R> {
    /// This.
    Body(Body, Option<R>),
    /// Something, at this time.
    At(Duration),
    /// Nothing that is known yet.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Said<R> {
    over: bool,
    /// Notes and checkpoints, in the order in which they came.
    queue: VecDeque<(Body, Option<R>)>,
    notes_waiting: usize,
    checkpoints_waiting: usize,
    /// What was said of progress since the last record of it.
    progress: Option<Progress>,
    progress_at: Duration,
    notes: Allowance,
    checkpoints: Allowance,
    lines: Allowance,
    /// The last one counts.
    verdict: Option<Verdict>,
}

/// What a task says of its own end, before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It would fail again in the same way.
    Hopeless {
        /// Why.
        error: String,
    },
    /// What it needs is not to be had.
    Unavailable {
        /// What.
        what: String,
        /// How long it is of no use to try again.
        retry_after_ms: Option<u64>,
    },
}

impl<R> Said<R> {
    pub(super) fn new() -> Self {
        Self {
            over: false,
            queue: VecDeque::new(),
            notes_waiting: 0,
            checkpoints_waiting: 0,
            progress: None,
            progress_at: Duration::ZERO,
            notes: Allowance::of(NOTES),
            checkpoints: Allowance::of(CHECKPOINTS),
            lines: Allowance::of(LINES),
            verdict: None,
        }
    }

    /// See [`super::Voice::pace`].
    pub(super) fn pace(&mut self, now: Duration, bytes: usize) -> Duration {
        self.lines.reserve(now, units(bytes, LINE_UNIT))
    }

    /// The newest value counts; what it leaves out is as it was.
    pub(super) fn progress(&mut self, progress: &Progress) -> Result<(), Refusal> {
        self.goes_on()?;
        self.progress.get_or_insert_default().take(progress);
        Ok(())
    }

    pub(super) fn verdict(&mut self, verdict: Verdict) -> Result<(), Refusal> {
        self.goes_on()?;
        self.verdict = Some(verdict);
        Ok(())
    }

    /// How it ended, if it exited by itself: its own word counts more than its exit code.
    pub(super) fn judge(&mut self, exit: Exit) -> Exit {
        match (self.verdict.take(), exit) {
            (Some(Verdict::Hopeless { error }), Exit::Code(code)) => Exit::Hopeless { error, code },
            (Some(Verdict::Unavailable { what, retry_after_ms }), Exit::Code(_)) => {
                Exit::Unavailable { what, retry_after_ms }
            }
            (_, exit) => exit,
        }
    }

    pub(super) fn note(&mut self, now: Duration, text: String) -> Result<(), Refusal> {
        self.goes_on()?;
        if self.notes_waiting >= NOTES_WAITING {
            return Err(Refusal::Full);
        }
        self.notes.take(now, 1).map_err(|again_in| Refusal::TooFast { again_in })?;
        self.notes_waiting += 1;
        self.queue.push_back((Note { text }.into(), None));
        Ok(())
    }

    /// A question, or the end of one.
    pub(super) fn ask(&mut self, body: Body) -> Result<(), Refusal> {
        self.goes_on()?;
        self.queue.push_back((body, None));
        Ok(())
    }

    /// See [`super::Voice::wants_checkpoint`].
    pub(super) fn wants_checkpoint(&mut self, now: Duration, bytes: usize) -> Result<Duration, Refusal> {
        self.goes_on()?;
        if self.checkpoints_waiting >= CHECKPOINTS_WAITING {
            return Err(Refusal::Waiting);
        }
        self.checkpoints_waiting += 1;
        Ok(self.checkpoints.reserve(now, units(bytes, CHECKPOINT_UNIT)))
    }

    pub(super) fn checkpoint(&mut self, made: Checkpointed, reply: R) -> Result<(), Refusal> {
        self.goes_on()?;
        self.queue.push_back((made.into(), Some(reply)));
        Ok(())
    }

    pub(super) fn durable(&mut self) {
        self.checkpoints_waiting = self.checkpoints_waiting.saturating_sub(1);
    }

    /// What goes into the log next.
    pub(super) fn next(&mut self, now: Duration) -> Next<R> {
        if let Some((body, reply)) = self.queue.pop_front() {
            self.notes_waiting -= usize::from(matches!(body, Body::Note(_)));
            return Next::Body(body, reply);
        }
        if self.progress.is_some() && now < self.progress_at {
            return Next::At(self.progress_at);
        }
        match self.progress.take() {
            Some(progress) => {
                self.progress_at = now + PROGRESS_EVERY;
                Next::Body(progress.into(), None)
            }
            None => Next::Nothing,
        }
    }

    pub(super) fn last_words(&mut self) -> Vec<(Body, Option<R>)> {
        self.over = true;
        let progress = self.progress.take().map(|progress| (progress.into(), None));
        self.queue.drain(..).chain(progress).collect()
    }

    pub(super) fn silence(&mut self) {
        self.over = true;
        self.queue.clear();
        self.progress = None;
    }

    fn goes_on(&self) -> Result<(), Refusal> {
        if self.over { Err(Refusal::Over) } else { Ok(()) }
    }
}

/// One for each begun unit, and one more.
fn units(bytes: usize, unit: usize) -> u32 {
    u32::try_from(1 + bytes / unit).unwrap_or(u32::MAX)
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    /// In the long run.
    every: Duration,
    /// At once, after a silence.
    burst: u32,
}

/// What may be done at a rate: full at first, filled up with time.
#[derive(Debug)]
struct Allowance {
    rate: Rate,
    /// When it will be full again.
    full_at: Duration,
}

impl Allowance {
    fn of(rate: Rate) -> Self {
        Self { rate, full_at: Duration::ZERO }
    }

    /// Takes `count` now, or says how long to wait.
    fn take(&mut self, now: Duration, count: u32) -> Result<(), Duration> {
        let (at, full_at) = self.look(now, count);
        if at > now {
            return Err(at - now);
        }
        self.full_at = full_at;
        Ok(())
    }

    /// Takes `count` as soon as there is so much: when that is.
    fn reserve(&mut self, now: Duration, count: u32) -> Duration {
        let (at, full_at) = self.look(now, count);
        self.full_at = full_at;
        at
    }

    fn look(&self, now: Duration, count: u32) -> (Duration, Duration) {
        let full_at = self.full_at.max(now) + self.rate.every * count;
        let at = full_at.saturating_sub(self.rate.every * self.rate.burst).max(now);
        (at, full_at)
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::CheckpointId;
    use ado_proto::record::MAX_CHECKPOINT;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn progress(percent: Option<u8>, message: Option<&str>) -> Progress {
        Progress { percent, message: message.map(Into::into) }
    }

    fn checkpoint() -> Checkpointed {
        Checkpointed { id: CheckpointId(uuid::Uuid::nil()), data: "1".into(), snapshot: None }
    }

    fn said() -> Said<u8> {
        Said::new()
    }

    #[test]
    fn progress_comes_at_once_and_then_merged_ten_times_a_second() {
        let mut said = said();
        said.progress(&progress(Some(1), Some("one"))).unwrap();
        assert_eq!(said.next(ms(0)), Next::Body(progress(Some(1), Some("one")).into(), None));
        assert_eq!(said.next(ms(0)), Next::Nothing);
        said.progress(&progress(Some(2), Some("two"))).unwrap();
        said.progress(&progress(Some(3), None)).unwrap();
        assert_eq!(said.next(ms(99)), Next::At(ms(100)));
        assert_eq!(said.next(ms(100)), Next::Body(progress(Some(3), Some("two")).into(), None));
        let mut records = 0;
        for now in 101..10_101 {
            said.progress(&progress(Some(4), None)).unwrap();
            records += usize::from(matches!(said.next(ms(now)), Next::Body(..)));
        }
        assert_eq!(records, 100);
    }

    #[test]
    fn the_last_verdict_judges_an_exit_of_its_own() {
        let hopeless = || Verdict::Hopeless { error: "no JSON".into() };
        let judged = |verdicts: Vec<Verdict>, exit| {
            let mut said = said();
            verdicts.into_iter().for_each(|verdict| said.verdict(verdict).unwrap());
            said.judge(exit)
        };
        assert_eq!(judged(vec![], Exit::Code(3)), Exit::Code(3));
        let expected = Exit::Hopeless { error: "no JSON".into(), code: 0 };
        assert_eq!(judged(vec![hopeless()], Exit::Code(0)), expected);
        assert_eq!(judged(vec![hopeless()], Exit::Cancelled), Exit::Cancelled, "it did not end by itself");
        let away = Verdict::Unavailable { what: "quota".into(), retry_after_ms: Some(5) };
        let expected = Exit::Unavailable { what: "quota".into(), retry_after_ms: Some(5) };
        assert_eq!(judged(vec![hopeless(), away], Exit::Code(1)), expected);
        let mut over = said();
        over.silence();
        assert_eq!(over.verdict(hopeless()), Err(Refusal::Over));
    }

    #[test]
    fn notes_beyond_their_rate_are_refused_with_the_time_to_wait() {
        let mut said = said();
        let mut note = |now| {
            let result = said.note(ms(now), "x".into());
            said.next(ms(now));
            result
        };
        for _ in 0..50 {
            note(0).unwrap();
        }
        assert_eq!(note(0), Err(Refusal::TooFast { again_in: ms(200) }));
        assert_eq!(note(150), Err(Refusal::TooFast { again_in: ms(50) }));
        note(200).unwrap();
        assert_eq!(note(200), Err(Refusal::TooFast { again_in: ms(200) }));
        let accepted = (0..10_000).filter(|now| note(200 + now).is_ok()).count();
        assert_eq!(accepted, 49);
    }

    #[test]
    fn what_the_log_does_not_take_is_bounded() {
        let mut said = said();
        let mut accepted = 0;
        for second in 0..1_000 {
            match said.note(ms(second * 1000), "x".into()) {
                Ok(()) => accepted += 1,
                Err(refusal) => assert_eq!(refusal, Refusal::Full),
            }
        }
        assert_eq!(accepted, NOTES_WAITING);
        said.next(ms(1_000_000));
        said.note(ms(1_000_000), "x".into()).unwrap();
    }

    #[test]
    fn checkpoints_wait_their_turn_and_few_wait() {
        let mut said = said();
        let mut at = ms(0);
        for _ in 0..CHECKPOINTS_WAITING {
            at = said.wants_checkpoint(ms(0), MAX_CHECKPOINT).unwrap();
        }
        // 8 of 17 units each, of which 40 are there.
        assert_eq!(at, ms((8 * 17 - 40) * 200));
        assert_eq!(said.wants_checkpoint(ms(0), 1), Err(Refusal::Waiting));
        said.durable();
        assert_eq!(said.wants_checkpoint(at, 1), Ok(at + ms(200)));
        let mut small = super::Said::<u8>::new();
        for _ in 0..40 {
            assert_eq!(small.wants_checkpoint(ms(0), 100), Ok(ms(0)));
            small.durable();
        }
        assert_eq!(small.wants_checkpoint(ms(0), 100), Ok(ms(200)));
    }

    #[test]
    fn lines_beyond_their_rate_are_read_later() {
        let mut said = said();
        for _ in 0..2_000 {
            assert_eq!(said.pace(ms(0), 100), ms(0));
        }
        assert!(said.pace(ms(0), 100) > ms(0));
        let mut large = super::Said::<u8>::new();
        let last = (0..100).map(|_| large.pace(ms(0), 400_000)).last().unwrap();
        assert!(last > ms(18_000), "40 MB in {last:?}");
    }

    #[test]
    fn the_order_is_kept_and_checkpoints_keep_their_replies() {
        let mut said = said();
        said.note(ms(0), "a".into()).unwrap();
        said.checkpoint(checkpoint(), 7).unwrap();
        said.note(ms(0), "b".into()).unwrap();
        assert_eq!(said.next(ms(0)), Next::Body(Note { text: "a".into() }.into(), None));
        assert_eq!(said.next(ms(0)), Next::Body(checkpoint().into(), Some(7)));
        said.progress(&progress(Some(9), None)).unwrap();
        let last = said.last_words();
        assert_eq!(last, [(Note { text: "b".into() }.into(), None), (progress(Some(9), None).into(), None)]);
        assert_eq!(said.progress(&progress(Some(9), None)), Err(Refusal::Over));
    }

    #[test]
    fn once_given_up_nothing_counts() {
        let mut said = said();
        said.note(ms(0), "a".into()).unwrap();
        said.progress(&progress(Some(1), None)).unwrap();
        said.checkpoint(checkpoint(), 7).unwrap();
        said.silence();
        assert_eq!(said.next(ms(1000)), Next::Nothing);
        assert_eq!(said.progress(&progress(Some(9), None)), Err(Refusal::Over));
        assert_eq!(said.note(ms(0), "b".into()), Err(Refusal::Over));
        assert_eq!(said.checkpoint(checkpoint(), 7), Err(Refusal::Over));
        assert_eq!(said.wants_checkpoint(ms(0), 1), Err(Refusal::Over));
        assert_eq!(said.last_words(), []);
    }
}
