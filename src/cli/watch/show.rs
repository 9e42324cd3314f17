//! The loop: waits for what comes, paints it, writes it.

use std::io;
use std::pin::pin;
use std::time::Duration;

use ado_proto::record::{Asked, Body, Desired, Ended};
use ado_proto::request::StartAt;
use ado_proto::{GroupId, Offset, TaskId};
use futures_util::FutureExt;
use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::super::error::{Error, Kind};
use super::super::output::{Format, one_line};
use super::super::session::Session;
use super::super::signals::Signals;
use super::super::surviving::Surviving;
use super::menu::{Choice, Offer};
use super::painter::{Look, Painter};
use super::places::{Place, Places};
use super::progress::{self, Connection, Doing};
use super::question::{self, Questions};
use super::sheet::{Batch, Sheet, index as index_of};
use super::streams::{Came, Streams};
use super::terminal::{self, Keys, Terminal};
use super::wishes::{Heard, Wishes};
use super::{Finish, Watch, Watched, summary};
use crate::client::{ConnectionState, Step};
use crate::env::Env;

/// Most bytes written at once. What comes while they are written waits in the network's own windows.
const BATCH: usize = 256 * 1024;
/// Most bytes one of several tasks adds before the others have their turn.
const TURN: usize = 32 * 1024;
/// How long leaving waits for the write under way.
const LAST_WRITE: Duration = Duration::from_millis(100);
/// How often what changes by itself is looked at: the footer, lines that do not end, logs that are quiet.
const TICK: Duration = Duration::from_millis(100);

pub(super) struct Show<'a> {
    session: &'a Session,
    env: Env,
    group: Option<GroupId>,
    follow: bool,
    look: Look,
    members: Vec<Member>,
    streams: Streams,
    sheet: Sheet,
    terminal: Terminal,
    /// While something is asked that a key answers.
    keys: Option<Keys>,
    wishes: Wishes<'a>,
    ticks: Interval,
    /// People were told that the connection is gone.
    away: bool,
    /// Ctrl-C was pressed, and not answered yet.
    asked: bool,
    /// Members of whose logs more was painted than written.
    touched: Vec<usize>,
    /// Nobody reads what is being written.
    stuck: bool,
}

/// A task, and what was shown of it.
struct Member {
    task: TaskId,
    start: Option<StartAt>,
    painter: Painter,
    /// Only what this keeps; `None`: everything.
    surviving: Option<Surviving>,
    doing: Doing,
    questions: Questions,
    ended: Option<Ended>,
    painted: Shown,
    written: Shown,
    /// Nothing more will come, or is wanted.
    over: bool,
}

/// How much of a log was shown.
#[derive(Debug, Clone, Copy, Default)]
struct Shown {
    /// One after the last record.
    next: Option<Offset>,
    /// Of each stream: the record in which a line begins that is held back until it ends.
    held: [Option<Offset>; 2],
}

impl Shown {
    /// The first record of which something was not shown.
    fn whole(self) -> Option<Offset> {
        self.held.into_iter().flatten().chain(self.next).min()
    }
}

/// What to do after a step.
enum Then {
    GoOn,
    /// Somebody asked for this viewer to leave.
    SentAway(String),
    Failed(Error),
}

/// How a write ended.
enum Written {
    All,
    Leave,
    NobodyReads,
}

impl<'a> Show<'a> {
    pub(super) fn new(watch: Watch<'a>, signals: &'a mut Signals) -> Self {
        let Watch { session, env, group, tasks, follow, look, on_interrupt } = watch;
        let logs = tasks
            .iter()
            .enumerate()
            .filter_map(|(index, watched)| Some((index, session.client.follow(watched.task, watched.start?, follow))));
        let streams = Streams::new(logs, follow);
        let reference = group.map_or_else(|| tasks[0].task.to_string(), |group| group.to_string());
        let count = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        let member = |(index, watched): (usize, Watched)| {
            let painter = Painter::new(watched.task, watched.worker, watched.look);
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            Member {
                task: watched.task,
                painter: if group.is_some() { painter.among(index, count) } else { painter },
                surviving: watched.surviving,
                doing: watched.doing,
                questions: Questions::default(),
                ended: watched.ended,
                painted: Shown::default(),
                written: Shown::default(),
                over: watched.start.is_none(),
                start: watched.start,
            }
        };
        let members = tasks.into_iter().enumerate().map(member).collect();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            session,
            env,
            group,
            follow,
            look,
            members,
            streams,
            sheet: Sheet::new(look.terminals(), look.raw),
            terminal: Terminal::default(),
            keys: None,
            wishes: Wishes::new(session.client.clone(), reference, on_interrupt, signals),
            ticks,
            away: false,
            asked: false,
            touched: Vec::new(),
            stuck: false,
        }
    }

    pub(super) async fn run(mut self) -> Result<Finish, Error> {
        if self.shows_status() {
            self.wishes.catch_keys()?;
        }
        let session = self.session;
        // One for all turns of the loop: it looks now and then, and each turn may be shorter than that.
        let mut taken_down = pin!(session.taken_down());
        let ticks = self.shows_status() || self.group.is_some();
        loop {
            let mut then = Then::GoOn;
            tokio::select! {
                biased;
                heard = self.wishes.hear() => match heard {
                    Heard::Leave => return Ok(self.leave(None).await),
                    heard => self.heard(heard),
                },
                _ = self.ticks.tick(), if ticks => self.tick(),
                key = pressed(&mut self.keys) => self.answer(key.as_deref()),
                came = self.streams.next() => match came {
                    Some(came) => then = self.gather(came),
                    None => return self.end().await,
                },
                () = &mut taken_down => return Err(self.taken_down().await),
            }
            self.listen();
            self.draw();
            match self.write().await? {
                Written::All => {}
                Written::Leave => return Ok(self.leave(None).await),
                Written::NobodyReads => return Ok(Finish::NobodyReads),
            }
            match then {
                Then::GoOn => {}
                Then::SentAway(by) => return Ok(self.leave(Some(by)).await),
                Then::Failed(error) => return Err(self.failed(error).await),
            }
            if std::mem::take(&mut self.asked) {
                match self.ask().await? {
                    Choice::Detach => return Ok(self.leave(None).await),
                    Choice::Pause => self.wishes.want(Desired::Paused),
                    Choice::Resume => self.wishes.want(Desired::Running),
                    Choice::Cancel => self.wishes.want(Desired::Cancelled),
                    Choice::GoOn => {}
                }
            }
        }
    }

    /// Takes what came and all that follows without waiting: of each log its turn.
    fn gather(&mut self, mut came: Came) -> Then {
        loop {
            let (index, mut stream, mut step) = (came.index, came.stream, Some(came.step));
            let turn = if self.group.is_some() { TURN } else { BATCH };
            let enough = self.sheet.weight().saturating_add(turn).min(BATCH);
            let mut then = Then::GoOn;
            while let Some(now) = step.take() {
                match now {
                    None | Some(Ok(Step::End)) => self.members[index].over = true,
                    Some(Ok(Step::Detached { by })) => then = self.sent_away(index, by),
                    Some(Err(error)) => then = Then::Failed(error.into()),
                    Some(Ok(step)) => self.paint(index, step),
                }
                let on = matches!(then, Then::GoOn) && !self.members[index].over;
                if on && self.sheet.weight() < enough {
                    step = stream.next().now_or_never();
                }
            }
            self.members[index].painted.next = stream.next_offset();
            self.touched.push(index);
            if self.members[index].over {
                self.members[index].painter.finish(&mut self.sheet);
            } else {
                self.streams.give_back(index, stream);
            }
            if !matches!(then, Then::GoOn) || self.sheet.weight() >= BATCH {
                return then;
            }
            match self.streams.next().now_or_never() {
                Some(Some(next)) => came = next,
                Some(None) | None => return Then::GoOn,
            }
        }
    }

    fn paint(&mut self, index: usize, step: Step) {
        let member = &mut self.members[index];
        match step {
            // What does not survive is not seen: neither is what it says of itself.
            Step::Record(record) if member.surviving.as_ref().is_some_and(|surviving| !surviving.keeps(&record)) => {}
            Step::Record(record) => {
                member.painter.record(&record, &mut self.sheet);
                member.doing.saw(&record);
                member.questions.saw(&record);
                if let Body::Output(output) = &record.body {
                    let held = &mut member.painted.held[index_of(output.stream)];
                    let begins = held.is_none() || output.data.contains(&b'\n');
                    *held = if begins { Some(record.offset) } else { *held };
                    *held = held.filter(|_| member.painter.holds(output.stream));
                }
                if let Body::Ended(ended) = record.body {
                    member.ended = Some(ended);
                }
            }
            Step::Paused { .. } if !std::mem::replace(&mut self.away, true) => {
                self.notice("connection lost: waiting for it (what runs goes on)");
            }
            Step::Resumed if std::mem::take(&mut self.away) => self.notice("connected"),
            Step::Reset { generation } => member.painter.reset(generation, &mut self.sheet),
            Step::Paused { .. } | Step::Resumed | Step::Detached { .. } | Step::End => {}
        }
    }

    /// Somebody does not want this viewer to see a task. Of several the others are shown on, as long as all of them are
    /// read: who waits for a place could not be told.
    fn sent_away(&mut self, index: usize, by: String) -> Then {
        let member = &mut self.members[index];
        member.over = true;
        // It is not over for who comes back.
        let others = self.members.iter().any(|member| !member.over);
        if !others || self.streams.some_wait() {
            return Then::SentAway(by);
        }
        let text = format!("detached by {}: no longer shown", one_line(&by, 100));
        self.members[index].painter.notice(&text, true, &mut self.sheet);
        Then::GoOn
    }

    /// A line of our own about the connection. Where there is a footer, that says it.
    fn notice(&mut self, words: &str) {
        if self.look.format == Format::Text && self.look.stderr_terminal && !self.shows_status() {
            let line = format!("{}: {words}", self.name());
            if self.look.lines == super::Lines::Fitting {
                self.sheet.say(&line);
            }
        }
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Leave => {}
            Heard::Ask => self.asked = true,
            Heard::Suspend => self.suspend(),
            Heard::Cancelling if self.look.format == Format::Text => {
                if self.look.stderr_terminal && self.terminal.echoes() {
                    self.sheet.disturbed();
                }
                self.sheet.say(&format!("cancelling {}; Ctrl-C again leaves", self.name()));
            }
            Heard::Cancelling => {}
            Heard::Failed(error) => {
                let text = Error::from(error).render(self.look.format);
                self.sheet.say(text.trim_end());
            }
        }
    }

    fn suspend(&mut self) {
        self.sheet.erase();
        // What is to be written is small: nothing was painted since the last write.
        let _ = self.sheet.take().write();
        self.terminal.suspend();
    }

    fn tick(&mut self) {
        self.streams.tick();
        for member in &mut self.members {
            member.painter.tick(&mut self.sheet);
        }
    }

    /// Whether there may be a footer at all.
    fn shows_status(&self) -> bool {
        self.follow && self.look.status
    }

    /// The question that is shown, and whose it is.
    fn question(&self) -> Option<(usize, &Asked)> {
        self.members.iter().enumerate().find_map(|(index, member)| Some((index, member.questions.first()?)))
    }

    /// Takes keys while something is asked.
    fn listen(&mut self) {
        let asks = self.shows_status() && self.wishes.asks() && self.question().is_some();
        match (asks, self.keys.is_some()) {
            (true, false) => self.keys = self.terminal.keys().ok(),
            (false, true) => {
                self.keys = None;
                self.terminal.restore();
            }
            _ => {}
        }
    }

    /// A key was pressed; `None`: there is no keyboard any more.
    fn answer(&mut self, key: Option<&[u8]>) {
        let Some(key) = key else {
            self.keys = None;
            return self.members.iter_mut().for_each(|member| member.questions = Questions::default());
        };
        let chosen = self
            .question()
            .and_then(|(index, asked)| Some((index, asked.id, question::choice(asked, key)?.to_owned())));
        if let Some((index, ask, choice)) = chosen {
            self.members[index].questions.forget(ask);
            self.wishes.answer(self.members[index].task, ask, &choice);
        }
    }

    /// Brings the footer up to date.
    fn draw(&mut self) {
        if !self.shows_status() || self.members.iter().all(|member| member.over) {
            return self.sheet.erase();
        }
        if !terminal::in_foreground() {
            return;
        }
        self.terminal.hush();
        let now = Instant::now();
        if self.sheet.may_draw(now) {
            let footer = self.footer();
            self.sheet.draw(&footer, now);
        }
    }

    fn footer(&self) -> Vec<String> {
        let (columns, rows) = terminal::size();
        // The last column stays free: a terminal that has written there is about to begin another line.
        let width = columns - 1;
        let (name, now) = (self.name(), self.env.now());
        let connection = match self.session.client.connection() {
            ConnectionState::Connected { rtt, via, .. } => Connection::Up(rtt, via),
            ConnectionState::Connecting { since, .. } => Connection::Away(since.elapsed()),
            ConnectionState::Closed { .. } => Connection::Away(Duration::ZERO),
        };
        let lines = match self.group {
            None => vec![progress::one(&name, &self.members[0].doing, connection, now, width)],
            Some(_) => {
                let doing: Vec<_> = self.members.iter().map(|member| &member.doing).collect();
                progress::several(&name, &doing, connection, now, (width, rows / 2))
            }
        };
        let asked = self.question().filter(|_| self.keys.is_some());
        let asked = asked.map(|(index, asked)| question::lines(self.members[index].task, asked));
        let cut = |line: String| progress::cut(&line, width);
        let lines: Vec<_> = asked.into_iter().flatten().map(cut).chain(lines).collect();
        match self.look.colour {
            true => lines.into_iter().map(|line| format!("\x1b[2m{line}\x1b[0m")).collect(),
            false => lines,
        }
    }

    /// Writes what was painted. A write may block for as long as the reader does not read; signals are heard meanwhile.
    async fn write(&mut self) -> Result<Written, Error> {
        let mut writing = pin!(write(self.sheet.take()));
        loop {
            tokio::select! {
                biased;
                heard = self.wishes.hear() => match heard {
                    Heard::Ask if !self.asked => self.asked = true,
                    Heard::Leave | Heard::Ask => {
                        // A reader that reads has it all by now: then it is not to be shown again.
                        match tokio::time::timeout(LAST_WRITE, writing).await {
                            Ok(Ok(())) => self.was_written(),
                            _ => self.stuck = true,
                        }
                        return Ok(Written::Leave);
                    }
                    heard => self.heard(heard),
                },
                done = &mut writing => return match done {
                    Ok(()) => {
                        self.was_written();
                        Ok(Written::All)
                    }
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Written::NobodyReads),
                    Err(error) => Err(Error::new(Kind::Local, "cannot write the output").because(error)),
                },
            }
        }
    }

    fn was_written(&mut self) {
        for index in self.touched.drain(..) {
            self.members[index].written = self.members[index].painted;
        }
    }

    /// Asks what is wanted. What tasks write meanwhile waits in the network's own windows.
    async fn ask(&mut self) -> Result<Choice, Error> {
        self.keys = None;
        let offer = Offer {
            resume: self.members.iter().any(|member| !member.doing.is_over() && member.doing.is_paused()),
            pause: self.members.iter().any(|member| !member.doing.is_over() && !member.doing.is_paused()),
        };
        self.wishes.catch_keys()?;
        if self.terminal.echoes() {
            self.sheet.disturbed();
        }
        self.sheet.erase();
        let choice = loop {
            let Ok(mut keys) = self.terminal.keys() else { break Choice::Detach };
            let line = progress::cut(&offer.line(&self.name()), terminal::size().0 - 1);
            self.sheet.ask(&[line]);
            match self.write().await? {
                Written::All if !self.asked => {}
                _ => break Choice::Detach,
            }
            tokio::select! {
                biased;
                heard = self.wishes.hear() => match heard {
                    Heard::Suspend => self.suspend(),
                    Heard::Failed(error) => self.heard(Heard::Failed(error)),
                    Heard::Leave | Heard::Ask | Heard::Cancelling => break Choice::Detach,
                },
                key = keys.next() => match key {
                    Some(key) => if let Some(choice) = offer.choice(&key) { break choice },
                    None => break Choice::Detach,
                },
            }
        };
        self.asked = false;
        self.sheet.erase();
        self.terminal.restore();
        Ok(choice)
    }

    /// All was shown.
    async fn end(mut self) -> Result<Finish, Error> {
        let members: Vec<_> = self.members.iter().map(|member| (member.task, member.ended.as_ref())).collect();
        let code = summary::code(&members);
        let told = self.follow && self.look.lines != super::Lines::None;
        let summed = self.group.filter(|_| told).map(|group| match self.look.format {
            Format::Text => {
                let (sentence, next) = summary::text(group, &members);
                let hints = next.iter().map(|words| format!("\nhint: {}", self.session.command(words)));
                std::iter::once(sentence).chain(hints).collect()
            }
            Format::Json => summary::event(group, &members).to_string(),
        });
        for member in &mut self.members {
            member.painter.finish(&mut self.sheet);
        }
        self.sheet.finish();
        if let Some(text) = summed {
            self.sheet.say(&text);
        }
        match self.write().await? {
            Written::NobodyReads => Ok(Finish::NobodyReads),
            Written::All | Written::Leave => Ok(Finish::End(code)),
        }
    }

    /// Says how to come back.
    async fn leave(mut self, by: Option<String>) -> Finish {
        let by_signal = by.is_none();
        self.put_away().await;
        let command = self.continuation();
        match self.look.format {
            Format::Text => {
                if by_signal && self.look.stderr_terminal && self.terminal.echoes() {
                    // The terminal has echoed what the user typed.
                    self.sheet.disturbed();
                }
                let who = by.map(|by| format!(" by {}", one_line(&by, 100))).unwrap_or_default();
                let goes_on = if self.group.is_some() { "the tasks go on" } else { "the task goes on" };
                self.sheet.say(&format!("detached{who}: {goes_on}; continue with\n  {command}"));
            }
            Format::Json => match self.group {
                None => self.members[0].painter.left(self.members[0].written.whole(), &command, &mut self.sheet),
                Some(group) => {
                    let next: Vec<_> = self.members.iter().map(|member| member.written.whole()).collect();
                    let event = json!({ "type": "detached", "groupId": group, "next": next, "command": command });
                    self.sheet.say(&event.to_string());
                }
            },
        }
        self.terminal.restore();
        // Whoever closed stderr does not want to know.
        let _ = tokio::time::timeout(LAST_WRITE, write(self.sheet.take())).await;
        Finish::Detached
    }

    /// Nobody will write more, however long one waits.
    async fn taken_down(self) -> Error {
        let what = if self.group.is_some() { "the tasks wait" } else { "the task waits" };
        let text = format!("the controller and the worker of this machine were stopped (`ado down`): {what} for them");
        self.failed(Error::new(Kind::Local, text)).await
    }

    async fn failed(mut self, error: Error) -> Error {
        self.put_away().await;
        error.hint(self.continuation())
    }

    /// Writes what was held back, if somebody reads, and leaves the terminal as it was found.
    async fn put_away(&mut self) {
        for member in &mut self.members {
            member.painter.finish(&mut self.sheet);
        }
        self.sheet.finish();
        let rest = self.sheet.take();
        if !self.stuck && matches!(tokio::time::timeout(LAST_WRITE, write(rest)).await, Ok(Ok(()))) {
            self.was_written();
            for member in &mut self.members {
                member.written.held = [None; 2];
            }
        }
    }

    fn name(&self) -> String {
        self.group.map_or_else(|| self.members[0].task.short(), GroupId::short)
    }

    /// The command that shows what was not shown yet, once.
    fn continuation(&self) -> String {
        let places: Vec<_> = self.members.iter().map(Member::place).collect();
        let from = match (self.group, &places[..]) {
            (Some(_), _) => format!(" --from-each {}", Places(places)),
            (None, [Place::At(offset)]) => format!(" --from {offset}"),
            (None, _) => String::new(),
        };
        self.session.command(&format!("attach {}{from}", self.name()))
    }
}

impl Member {
    /// Where to go on.
    fn place(&self) -> Place {
        match (self.written.whole(), self.start) {
            (_, None) => Place::End,
            (Some(_), _) if self.over && self.ended.is_some() && self.written.held == [None; 2] => Place::End,
            (Some(offset), _) | (None, Some(StartAt::Offset(offset))) => Place::At(offset),
            (None, Some(StartAt::Tail(lines))) => Place::Tail(lines),
            (None, Some(StartAt::Since(_))) => Place::At(Offset(0)),
        }
    }
}

/// Pending for ever while nothing is asked.
async fn pressed(keys: &mut Option<Keys>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.next().await,
        None => std::future::pending().await,
    }
}

/// Blocks a thread of its own for as long as the reader does not read.
async fn write(batch: Batch) -> io::Result<()> {
    if batch.weight() == 0 {
        return Ok(());
    }
    tokio::task::spawn_blocking(move || batch.write()).await.map_err(io::Error::other)?
}
