//! What the dashboard knows and what keys do to it. Pure: an input goes in, effects to carry out come out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ado_proto::record::Desired;
use ado_proto::request::{SystemEvent, TaskInfo, WorkerInfo};
use ado_proto::{TaskId, Timestamp};

use super::rows::{Sort, Task, rates, view};

/// Answer times that are remembered: as wide as their curve gets.
const ANSWERS: usize = 60;
/// Events that are remembered.
const EVENTS: usize = 200;
/// How long a word about something done is shown.
const NOTICE_FOR: Duration = Duration::from_secs(6);
/// Rows a page key moves.
const PAGE: usize = 10;
/// Longest filter.
const FILTER: usize = 60;

/// Everything that is shown.
pub(super) struct Model {
    /// The mesh, for people.
    pub(super) mesh: String,
    pub(super) now: Timestamp,
    /// With colours, or with bold, dim and reversed only.
    pub(super) colour: bool,
    pub(super) link: Link,
    /// Times between a question and its answer, newest last.
    pub(super) answers: VecDeque<Duration>,
    tasks: BTreeMap<TaskId, Task>,
    tasks_at: Option<Timestamp>,
    /// There are ended tasks beside these.
    pub(super) more: bool,
    pub(super) workers: Option<Vec<WorkerInfo>>,
    pub(super) events: VecDeque<SystemEvent>,
    /// When the latest events came.
    events_at: VecDeque<Timestamp>,
    /// What could not be had, and why.
    pub(super) troubles: BTreeMap<Feed, String>,
    pub(super) pane: Pane,
    pub(super) mode: Mode,
    pub(super) sort: Sort,
    pub(super) filter: String,
    selected: Option<TaskId>,
    cursor: usize,
    pub(super) worker: usize,
    /// Events below the bottom line.
    pub(super) scrolled: usize,
    pub(super) preview: Option<Preview>,
    pub(super) notice: Option<Notice>,
}

/// How the connection is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Link {
    /// Not looked at yet.
    #[default]
    Unknown,
    Up {
        rtt: Duration,
        path: String,
    },
    Away {
        for_: Duration,
        problem: String,
    },
}

/// What is asked for again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Feed {
    Tasks,
    Workers,
    Events,
    Preview,
    Answers,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Pane {
    #[default]
    Tasks,
    Workers,
    Events,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Normal,
    /// Typing a filter; the one before.
    Filter {
        before: String,
    },
    /// Asking whether to cancel.
    Confirm(TaskId),
    Help,
}

/// The end of a task's log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Preview {
    pub(super) task: TaskId,
    /// `None`: not there yet.
    pub(super) lines: Option<Vec<String>>,
}

/// A word about something done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) text: String,
    pub(super) error: bool,
    until: Timestamp,
}

/// A key, whatever terminal it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Tab,
    BackTab,
    Backspace,
    /// Ctrl-C.
    Interrupt,
}

/// What happens.
#[derive(Debug)]
pub(super) enum Input {
    Key(Key),
    /// Time goes on.
    Tick {
        now: Timestamp,
        link: Link,
    },
    Tasks {
        tasks: Vec<TaskInfo>,
        more: bool,
    },
    Workers(Vec<WorkerInfo>),
    Events(Vec<SystemEvent>),
    Answered(Duration),
    Preview {
        task: TaskId,
        lines: Vec<String>,
    },
    Failed {
        feed: Feed,
        why: String,
    },
    Said {
        text: String,
        error: bool,
    },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Quit,
    Attach(TaskId),
    Desire(TaskId, Desired),
    /// Show the end of this log, or none.
    Preview(Option<TaskId>),
}

impl Model {
    pub(super) fn new(mesh: impl Into<String>, now: Timestamp, colour: bool) -> Self {
        Self {
            mesh: mesh.into(),
            now,
            colour,
            link: Link::Unknown,
            answers: VecDeque::new(),
            tasks: BTreeMap::new(),
            tasks_at: None,
            more: false,
            workers: None,
            events: VecDeque::new(),
            events_at: VecDeque::new(),
            troubles: BTreeMap::new(),
            pane: Pane::Tasks,
            mode: Mode::Normal,
            sort: Sort::default(),
            filter: String::new(),
            selected: None,
            cursor: 0,
            worker: 0,
            scrolled: 0,
            preview: None,
            notice: None,
        }
    }

    /// The tasks that are shown, in order.
    pub(super) fn view(&self) -> Vec<&Task> {
        view(self.tasks.values(), &self.filter, self.sort)
    }

    /// Whether the tasks came once.
    pub(super) fn has_tasks(&self) -> bool {
        self.tasks_at.is_some()
    }

    pub(super) fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// The row of the task that keys mean.
    pub(super) fn selected(&self) -> Option<(usize, TaskId)> {
        self.selected.map(|id| (self.cursor, id))
    }

    /// Tasks in a state.
    pub(super) fn count(&self, state: &str) -> usize {
        self.tasks.values().filter(|task| task.info.state == state).count()
    }

    /// Records that all tasks write, a second.
    pub(super) fn records_per_second(&self) -> f64 {
        self.tasks.values().filter_map(|task| task.rate).sum()
    }

    /// Events of the last ten seconds, a second.
    pub(super) fn events_per_second(&self) -> f64 {
        const OVER: Duration = Duration::from_secs(10);
        let recent = self.events_at.iter().filter(|at| self.now.since(**at) < OVER).count();
        recent as f64 / OVER.as_secs_f64()
    }

    /// Whether what is shown may be old.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self.link, Link::Away { .. })
    }

    fn say(&mut self, text: impl Into<String>, error: bool) {
        self.notice = Some(Notice { text: text.into(), error, until: self.now.after(NOTICE_FOR) });
    }

    /// Follows the selected task when rows move; when it is gone, the row stays.
    fn settle(&mut self) -> Option<Effect> {
        let rows: Vec<_> = self.view().iter().map(|task| task.info.id).collect();
        let found = self.selected.and_then(|id| rows.iter().position(|row| *row == id));
        self.cursor = found.unwrap_or(self.cursor.min(rows.len().saturating_sub(1)));
        self.selected = rows.get(self.cursor).copied();
        let wanted = self.selected;
        match (&self.preview, wanted) {
            (Some(preview), Some(task)) if preview.task != task => {
                self.preview = Some(Preview { task, lines: None });
                Some(Effect::Preview(wanted))
            }
            _ => None,
        }
    }

    fn select(&mut self, move_to: impl FnOnce(usize, usize) -> usize) {
        let rows = self.view();
        let cursor = move_to(self.cursor, rows.len().saturating_sub(1));
        let selected = rows.get(cursor).map(|task| task.info.id);
        (self.cursor, self.selected) = (cursor, selected);
    }
}

/// Takes what happened; says what is to be done.
pub(super) fn update(model: &mut Model, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    match input {
        Input::Key(key) => effects.extend(press(model, key)),
        Input::Tick { now, link } => {
            (model.now, model.link) = (now, link);
            if model.notice.as_ref().is_some_and(|notice| notice.until <= now) {
                model.notice = None;
            }
        }
        Input::Tasks { tasks, more } => {
            let span = model.tasks_at.map(|before| model.now.since(before));
            model.tasks = rates(std::mem::take(&mut model.tasks), tasks, span);
            (model.tasks_at, model.more) = (Some(model.now), more);
            model.troubles.remove(&Feed::Tasks);
        }
        Input::Workers(mut workers) => {
            workers.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
            model.worker = model.worker.min(workers.len().saturating_sub(1));
            model.workers = Some(workers);
            model.troubles.remove(&Feed::Workers);
        }
        Input::Events(events) => {
            model.troubles.remove(&Feed::Events);
            for event in events {
                if model.scrolled > 0 {
                    model.scrolled += 1;
                }
                model.events_at.push_back(model.now);
                model.events.push_back(event);
            }
            while model.events.len() > EVENTS {
                model.events.pop_front();
                model.events_at.pop_front();
            }
            model.scrolled = model.scrolled.min(model.events.len().saturating_sub(1));
        }
        Input::Answered(after) => {
            model.troubles.remove(&Feed::Answers);
            model.answers.push_back(after);
            if model.answers.len() > ANSWERS {
                model.answers.pop_front();
            }
        }
        Input::Preview { task, lines } => {
            model.troubles.remove(&Feed::Preview);
            if let Some(preview) = model.preview.as_mut().filter(|preview| preview.task == task) {
                preview.lines = Some(lines);
            }
        }
        Input::Failed { feed, why } => drop(model.troubles.insert(feed, why)),
        Input::Said { text, error } => model.say(text, error),
    }
    effects.extend(model.settle());
    effects
}

fn press(model: &mut Model, key: Key) -> Option<Effect> {
    if key == Key::Interrupt {
        return Some(Effect::Quit);
    }
    match std::mem::take(&mut model.mode) {
        Mode::Normal => normal(model, key),
        Mode::Help => None,
        Mode::Confirm(task) => match key {
            Key::Char('y' | 'Y') => Some(Effect::Desire(task, Desired::Cancelled)),
            _ => {
                model.say("not cancelled", false);
                None
            }
        },
        Mode::Filter { before } => {
            type_filter(model, key, before);
            None
        }
    }
}

fn type_filter(model: &mut Model, key: Key, before: String) {
    match key {
        Key::Enter => return,
        Key::Escape => {
            model.filter = before;
            return;
        }
        Key::Backspace => drop(model.filter.pop()),
        Key::Char(c) if model.filter.chars().count() < FILTER && !c.is_control() => model.filter.push(c),
        _ => {}
    }
    model.mode = Mode::Filter { before };
}

fn normal(model: &mut Model, key: Key) -> Option<Effect> {
    let selected = model.selected.filter(|_| model.pane == Pane::Tasks);
    match key {
        Key::Char('q') => return Some(Effect::Quit),
        Key::Char('?' | 'h') => model.mode = Mode::Help,
        Key::Char('/') => model.mode = Mode::Filter { before: model.filter.clone() },
        Key::Char('s') => model.sort = model.sort.next(),
        Key::Escape => model.filter.clear(),
        Key::Tab => model.pane = next_pane(model.pane),
        Key::BackTab => model.pane = next_pane(next_pane(model.pane)),
        Key::Char('l') => return toggle_preview(model),
        Key::Enter | Key::Char('a') => return selected.map(Effect::Attach),
        Key::Char('p') => return selected.map(|task| Effect::Desire(task, Desired::Paused)),
        Key::Char('r') => return selected.map(|task| Effect::Desire(task, Desired::Running)),
        Key::Char('c') => match selected.and_then(|id| model.task(id)) {
            Some(task) if task.info.outcome.is_some() => {
                let text = format!("{} is {} already", task.info.id.short(), task.info.state);
                model.say(text, true);
            }
            Some(task) => model.mode = Mode::Confirm(task.info.id),
            None => {}
        },
        Key::Up | Key::Char('k') => step(model, |at, _| at.saturating_sub(1)),
        Key::Down | Key::Char('j') => step(model, |at, last| (at + 1).min(last)),
        Key::PageUp => step(model, |at, _| at.saturating_sub(PAGE)),
        Key::PageDown => step(model, |at, last| (at + PAGE).min(last)),
        Key::Home | Key::Char('g') => step(model, |_, _| 0),
        Key::End | Key::Char('G') => step(model, |_, last| last),
        Key::Char(_) | Key::Backspace | Key::Interrupt => {}
    }
    None
}

fn next_pane(pane: Pane) -> Pane {
    match pane {
        Pane::Tasks => Pane::Workers,
        Pane::Workers => Pane::Events,
        Pane::Events => Pane::Tasks,
    }
}

/// Moves in the pane that has the keys: from a row, and the last row there is, to another.
fn step(model: &mut Model, to: impl FnOnce(usize, usize) -> usize) {
    match model.pane {
        Pane::Tasks => model.select(to),
        Pane::Workers => {
            model.worker = to(model.worker, model.workers.as_ref().map_or(0, |all| all.len().saturating_sub(1)));
        }
        Pane::Events => {
            // Counted from the end, where new ones come.
            let last = model.events.len().saturating_sub(1);
            model.scrolled = last - to(last - model.scrolled, last);
        }
    }
}

fn toggle_preview(model: &mut Model) -> Option<Effect> {
    if model.preview.take().is_some() {
        return Some(Effect::Preview(None));
    }
    let task = model.selected?;
    model.preview = Some(Preview { task, lines: None });
    Some(Effect::Preview(Some(task)))
}
