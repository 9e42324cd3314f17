//! What the tasks watched do right now, in a line or a few. Pure.

use std::time::Duration;

use ado_proto::Timestamp;
use ado_proto::record::{Body, Desired, Outcome, Progress, Record};
use ado_proto::request::TaskInfo;
use unicode_width::UnicodeWidthChar;

use super::super::output::one_line;
use crate::client::Via;

/// Most tasks of a group that have a line of their own.
const MOST_LINES: usize = 8;
/// Longest text from elsewhere, characters.
const LONGEST: usize = 200;

/// What a task does, as far as its log tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Doing {
    state: State,
    /// What somebody wants, while it is not so yet.
    asked: Option<Desired>,
    progress: Progress,
    worker: Option<String>,
    began_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    #[default]
    Queued,
    Starting,
    Running,
    Paused,
    Ended(Outcome),
}

/// How the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    /// There, with this round trip, over this.
    Up(Duration, Via),
    /// Away for this long.
    Away(Duration),
}

impl Doing {
    /// What is known of a task where reading begins.
    pub(crate) fn of(info: &TaskInfo) -> Self {
        let state = match (info.outcome, info.state.as_str()) {
            (Some(outcome), _) => State::Ended(outcome),
            (_, "starting") => State::Starting,
            (_, "running" | "waiting") => State::Running,
            (_, "paused") => State::Paused,
            _ => State::Queued,
        };
        let wanted = match state {
            State::Paused => Desired::Paused,
            _ => Desired::Running,
        };
        Self {
            state,
            asked: (info.desired != wanted && info.outcome.is_none()).then_some(info.desired),
            progress: info.progress.clone().unwrap_or_default(),
            worker: info.worker_name.clone(),
            began_at: info.started_at,
        }
    }

    /// Something happened to it.
    pub(crate) fn saw(&mut self, record: &Record) {
        match &record.body {
            Body::Submitted(_) => self.state = State::Queued,
            Body::Assigned(assigned) => {
                (self.state, self.progress) = (State::Starting, Progress::default());
                self.worker = Some(assigned.worker_name.clone());
            }
            Body::Started(_) => {
                self.state = State::Running;
                self.began_at.get_or_insert(record.time);
            }
            Body::DesiredChanged(change) => {
                let already = (self.state == State::Paused) == (change.desired == Desired::Paused);
                let moot = already && change.desired != Desired::Cancelled;
                self.asked = (!moot).then_some(change.desired);
                // What does not run obeys at once.
                match (self.state, change.desired) {
                    (State::Queued, Desired::Paused) => (self.state, self.asked) = (State::Paused, None),
                    (State::Paused, Desired::Running) if self.worker.is_none() => {
                        (self.state, self.asked) = (State::Queued, None);
                    }
                    _ => {}
                }
            }
            Body::Paused(_) => (self.state, self.asked) = (State::Paused, None),
            Body::Resumed(_) => (self.state, self.asked) = (State::Running, None),
            Body::WorkerLost(_) | Body::Requeued(_) => (self.state, self.worker) = (State::Queued, None),
            Body::Ended(ended) => (self.state, self.asked) = (State::Ended(ended.outcome), None),
            Body::Progress(progress) => self.progress.take(progress),
            _ => {}
        }
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Whether it is paused, or about to be.
    pub(crate) fn is_paused(&self) -> bool {
        match self.asked {
            Some(desired) => desired == Desired::Paused,
            None => self.state == State::Paused,
        }
    }

    fn word(&self) -> &'static str {
        match (self.asked, self.state) {
            (Some(Desired::Cancelled), _) => "cancelling",
            (Some(Desired::Paused), _) => "pausing",
            (Some(Desired::Running), _) => "resuming",
            (None, State::Queued) => "queued",
            (None, State::Starting) => "starting",
            (None, State::Running) => "running",
            (None, State::Paused) => "paused",
            (None, State::Ended(outcome)) => crate::json::outcome_word(outcome),
        }
    }

    /// `running  40%  compiling  on box  1m 5s`
    fn words(&self, now: Timestamp) -> Vec<String> {
        let mut words = vec![self.word().to_owned()];
        if !matches!(self.state, State::Queued | State::Starting) {
            let Progress { percent, message } = &self.progress;
            words.extend(percent.map(|percent| format!("{percent}%")));
            words.extend(message.as_ref().map(|step| one_line(step, LONGEST)).filter(|step| !step.is_empty()));
        }
        words.extend(self.worker.as_ref().map(|worker| format!("on {}", one_line(worker, LONGEST))));
        words.extend(self.began_at.map(|began_at| clock(since(began_at, now))));
        words
    }
}

/// The line of one task that is watched alone, of at most `width` columns.
pub(crate) fn one(name: &str, doing: &Doing, connection: Connection, now: Timestamp, width: usize) -> String {
    let words = std::iter::once(name.to_owned()).chain(doing.words(now)).chain([connection.word()]);
    cut(&words.collect::<Vec<_>>().join("  "), width)
}

/// The lines of a group: itself, its members that do something, the number of the others. At most `height` lines of at
/// most `width` columns.
pub(crate) fn several(
    name: &str,
    doing: &[&Doing],
    connection: Connection,
    now: Timestamp,
    (width, height): (usize, usize),
) -> Vec<String> {
    let ended = counts(doing.iter().filter(|task| task.is_over()).copied());
    let first = [name.to_owned(), format!("{} tasks", doing.len())].into_iter();
    let first = first.chain((!ended.is_empty()).then_some(ended)).chain([connection.word()]);
    let mut lines = vec![cut(&first.collect::<Vec<_>>().join("  "), width)];
    let mut busy: Vec<_> = doing.iter().enumerate().filter(|(_, task)| !task.is_over()).collect();
    // Those that run first, each kind by index.
    busy.sort_by_key(|(_, task)| std::cmp::Reverse(task.state));
    let room = MOST_LINES.min(height.saturating_sub(2));
    let shown = busy.len().min(room);
    let digits = doing.len().saturating_sub(1).to_string().len();
    for (index, task) in &busy[..shown] {
        lines.push(cut(&format!("[{index:>digits$}] {}", task.words(now).join("  ")), width));
    }
    let others = counts(busy[shown..].iter().map(|(_, task)| **task));
    if shown < busy.len() {
        lines.push(cut(&format!("and {} more: {others}", busy.len() - shown), width));
    }
    lines.truncate(height.max(1));
    lines
}

/// `10 running, 2 queued`
fn counts<'a>(tasks: impl Iterator<Item = &'a Doing>) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for task in tasks {
        match counts.iter_mut().find(|(word, _)| *word == task.word()) {
            Some((_, count)) => *count += 1,
            None => counts.push((task.word(), 1)),
        }
    }
    counts.iter().map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

impl Connection {
    fn word(self) -> String {
        match self {
            Self::Up(rtt, Via::WebSocket) => format!("WebSocket, {}", Self::Up(rtt, Via::Udp).word()),
            Self::Up(rtt, Via::Udp) if rtt < Duration::from_millis(10) => {
                format!("rtt {:.1} ms", rtt.as_secs_f64() * 1e3)
            }
            Self::Up(rtt, Via::Udp) => format!("rtt {} ms", rtt.as_millis()),
            Self::Away(for_) => format!("reconnecting {}", clock(for_)),
        }
    }
}

/// For people only: the clocks of two machines are compared.
fn since(began_at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.0.saturating_sub(began_at.0)).unwrap_or(0))
}

/// `42s`, `1m05s`, `3h07m`
fn clock(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

/// The beginning of a line that fits into `width` columns of any terminal. Where terminals differ in how wide a character
/// is, the wider one counts.
pub(crate) fn cut(line: &str, width: usize) -> String {
    let wide = |c: char| match c {
        // Asks for the wide form of the character before it.
        '\u{fe0f}' => 1,
        c => c.width_cjk().unwrap_or(1),
    };
    let mut left = width;
    let fits = line.chars().take_while(|c| {
        let fits = wide(*c) <= left;
        left = left.saturating_sub(wide(*c));
        fits
    });
    fits.collect()
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, DesiredChanged, Ended, Paused, Progress, Started};
    use ado_proto::spec::Containment;
    use ado_proto::{Epoch, Offset, Origin, WorkerId};

    use super::*;

    const UP: Connection = Connection::Up(Duration::from_millis(12), Via::Udp);

    fn record(second: i64, body: impl Into<Body>) -> Record {
        let time = Timestamp(second * 1_000_000);
        Record { offset: Offset(0), origin: Origin::Controller, time, body: body.into() }
    }

    fn assigned() -> Body {
        let worker = WorkerId(uuid::Uuid::nil());
        Assigned { worker, worker_name: "box\u{1b}[2J".into(), epoch: Epoch(1), attempt: 1, resumes: None }.into()
    }

    fn doing(bodies: impl IntoIterator<Item = Body>) -> Doing {
        let mut doing = Doing::default();
        for body in bodies {
            doing.saw(&record(10, body));
        }
        doing
    }

    fn started() -> Body {
        Started { pid: 1, containment: Containment::Subreaper }.into()
    }

    fn progress(percent: Option<u8>, message: Option<&str>) -> Body {
        Progress { percent, message: message.map(Into::into) }.into()
    }

    fn wanted(desired: Desired) -> Body {
        DesiredChanged { desired, generation: 1, by: "user/ann".into(), force: false }.into()
    }

    #[track_caller]
    fn check(bodies: impl IntoIterator<Item = Body>, expected: &str) {
        assert_eq!(one("task-x", &doing(bodies), UP, Timestamp(75_000_000), 200), expected);
    }

    #[test]
    fn percent_step_worker_elapsed_and_connection() {
        check([], "task-x  queued  rtt 12 ms");
        check([assigned()], "task-x  starting  on box\u{fffd}[2J  rtt 12 ms");
        let running = || [assigned(), started(), progress(Some(40), Some("compiling\nx"))].into_iter();
        check(running(), "task-x  running  40%  compiling x  on box\u{fffd}[2J  1m05s  rtt 12 ms");
        check(
            running().chain([progress(Some(50), None)]),
            "task-x  running  50%  compiling x  on box\u{fffd}[2J  1m05s  rtt 12 ms",
        );
        check(running().chain([assigned()]), "task-x  starting  on box\u{fffd}[2J  1m05s  rtt 12 ms");
        let away = Connection::Away(Duration::from_secs(3));
        assert_eq!(one("t", &Doing::default(), away, Timestamp(0), 200), "t  queued  reconnecting 3s");
    }

    #[test]
    fn what_somebody_wants_shows_until_it_is_so() {
        let running = || [assigned(), started(), wanted(Desired::Paused)].into_iter();
        assert_eq!((doing(running()).word(), doing(running()).is_paused()), ("pausing", true));
        let paused = || running().chain([Paused { generation: 1 }.into()]);
        assert_eq!((doing(paused()).word(), doing(paused()).is_paused()), ("paused", true));
        let resuming = doing(paused().chain([wanted(Desired::Running)]));
        assert_eq!((resuming.word(), resuming.is_paused()), ("resuming", false));
        assert_eq!(doing(paused().chain([wanted(Desired::Cancelled)])).word(), "cancelling");
        assert_eq!(doing([wanted(Desired::Paused)]).word(), "paused", "nothing runs that had to stop");
        let ended = Ended { outcome: Outcome::Cancelled, exit: None, error: None };
        assert_eq!(doing(running().chain([ended.into()])).word(), "cancelled");
    }

    #[test]
    fn a_group_has_a_line_a_task_up_to_a_number() {
        let running = doing([assigned(), started(), progress(Some(7), None)]);
        let queued = Doing::default();
        let over = doing([Ended { outcome: Outcome::Completed, exit: None, error: None }.into()]);
        let tasks: Vec<_> = [&over, &queued, &running].into_iter().chain(std::iter::repeat_n(&queued, 10)).collect();
        let lines = several("group-x", &tasks, UP, Timestamp(10_000_000), (40, 24));
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], "group-x  13 tasks  1 completed  rtt 12 m");
        assert_eq!(lines[1], "[ 2] running  7%  on box\u{fffd}[2J  0s");
        assert_eq!((lines[2].as_str(), lines[9].as_str()), ("[ 1] queued", "and 4 more: 4 queued"));
        for height in 0..12 {
            let few = several("group-x", &tasks, UP, Timestamp(0), (40, height));
            assert!(few.len() <= height.max(1), "{height}");
        }
    }

    #[test]
    fn lines_fit_terminals_that_show_characters_wide() {
        assert_eq!(cut("abcdef", 4), "abcd");
        assert_eq!(cut("漢字漢字", 5), "漢字");
        assert_eq!(cut("a…b", 2), "a", "some terminals need two columns for it");
        assert_eq!(cut("e\u{301}x", 2), "e\u{301}x");
    }
}
