//! The dashboard's picture. Pure: what is known goes in, cells come out.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph};

use super::model::{Feed, Link, Mode, Model, Pane};
use super::panes::{events, preview, tasks, workers};
use super::text::{curve, rate, safe, span};
use crate::cli::output::age;

/// Screens lower than this show one pane, and one line above it.
const LOW: u16 = 14;
/// Width of the curve of answer times.
const CURVE: usize = 24;

const HELP: [(&str, &str); 12] = [
    ("↑ ↓ j k", "move; PgUp, PgDn, Home, End too"),
    ("Enter", "attach to the task; Ctrl-C comes back"),
    ("l", "show or hide the end of its log"),
    ("p  r", "pause, resume"),
    ("c", "cancel (asks first)"),
    ("/", "filter by id, name, state, worker, command"),
    ("Esc", "show all again"),
    ("s", "sort by something else"),
    ("Tab", "tasks, workers, events"),
    ("?", "this help"),
    ("q", "quit; no task is touched by it"),
    ("", "any key closes this"),
];

/// Draws it.
pub(super) fn draw(model: &Model, frame: &mut Frame<'_>) {
    let area = frame.area();
    let low = area.height < LOW;
    let head = if low { 1 } else { 3 };
    let [top, body, foot] =
        Layout::vertical([Constraint::Length(head), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    frame.render_widget(Paragraph::new(header(model, low, area.width.into())), top);
    panes(model, frame, body, low);
    frame.render_widget(Paragraph::new(footer(model, area.width.into())), foot);
    if model.mode == Mode::Help {
        help(frame, area);
    }
}

/// What each thing looks like. Without colours the same is said by bold, dim and reversed.
pub(super) struct Theme {
    colour: bool,
    stale: bool,
}

impl Theme {
    pub(super) fn of(model: &Model) -> Self {
        Self { colour: model.colour, stale: model.is_stale() }
    }

    pub(super) fn plain(&self) -> Style {
        if self.stale { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
    }

    pub(super) fn title(&self, focused: bool) -> Style {
        if focused { Style::new().add_modifier(Modifier::BOLD) } else { Style::new().add_modifier(Modifier::DIM) }
    }

    pub(super) fn selected(&self, style: Style) -> Style {
        style.add_modifier(Modifier::REVERSED)
    }

    pub(super) fn state(&self, state: &str) -> Style {
        let (colour, modifier) = match state {
            "running" | "ready" => (Color::Green, Modifier::empty()),
            "completed" => (Color::Reset, Modifier::DIM),
            "failed" | "lost" => (Color::Red, Modifier::BOLD),
            "starting" | "queued" => (Color::Cyan, Modifier::empty()),
            "paused" | "waiting" | "draining" | "disconnected" => (Color::Yellow, Modifier::empty()),
            _ => (Color::Reset, Modifier::DIM),
        };
        let style = self.plain().add_modifier(modifier);
        if self.colour && !self.stale { style.fg(colour) } else { style }
    }

    pub(super) fn bad(&self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.colour { style.fg(Color::Red) } else { style }
    }
}

fn header(model: &Model, low: bool, width: usize) -> Vec<Line<'static>> {
    let theme = Theme::of(model);
    let mut first = vec![Span::styled(format!("ado top  {}", safe(&model.mesh, 30)), theme.title(true))];
    match &model.link {
        Link::Unknown => first.push(Span::raw("  connecting")),
        Link::Up { rtt, path } => {
            first.push(Span::raw(format!("  {path}  rtt {}", span(*rtt))));
            if let Some(last) = model.answers.back() {
                first.push(Span::raw(format!("  answers in {} {}", span(*last), curve(&model.answers, CURVE))));
            }
        }
        Link::Away { for_, problem } => {
            let text = format!("not connected for {}: {problem}", age(*for_));
            first.extend([Span::raw("  "), Span::styled(safe(&text, width), theme.bad())]);
        }
    }
    if low {
        return vec![Line::from(first)];
    }
    vec![Line::from(first), states(model, &theme), totals(model, &theme)]
}

fn states(model: &Model, theme: &Theme) -> Line<'static> {
    let mut spans = vec![Span::styled("tasks    ", theme.plain())];
    if !model.has_tasks() {
        spans.push(Span::raw("…"));
    }
    let all = ["running", "starting", "waiting", "paused", "queued", "completed", "failed", "cancelled"];
    for state in all {
        let count = model.count(state);
        if count > 0 || (state == "running" && model.has_tasks()) {
            spans.push(Span::styled(format!("{count} {state}"), theme.state(state)));
            spans.push(Span::raw("  "));
        }
    }
    if model.more {
        spans.push(Span::styled("and older ones", theme.state("completed")));
    }
    Line::from(spans)
}

fn totals(model: &Model, theme: &Theme) -> Line<'static> {
    let workers = match &model.workers {
        None => "…".into(),
        Some(workers) => {
            let ready: Vec<_> = workers.iter().filter(|worker| worker.state == "ready").collect();
            let slots: u32 = ready.iter().map(|worker| worker.slots).sum();
            let busy: u32 = ready.iter().map(|worker| worker.busy).sum();
            format!("{} of {} ready, {busy} of {slots} slots busy", ready.len(), workers.len())
        }
    };
    let (records, events) = (rate(model.records_per_second()), rate(model.events_per_second()));
    Line::styled(format!("workers  {workers}   output {records} records/s   {events} events/s"), theme.plain())
}

fn panes(model: &Model, frame: &mut Frame<'_>, area: Rect, low: bool) {
    if low {
        match (model.pane, &model.preview) {
            (Pane::Workers, _) => workers(model, frame, area),
            (Pane::Events, _) => events(model, frame, area),
            (Pane::Tasks, Some(_)) => preview(model, frame, area),
            (Pane::Tasks, None) => tasks(model, frame, area),
        }
        return;
    }
    let rows = model.workers.as_ref().map_or(1, |workers| workers.len().max(1));
    let quarter = (area.height / 4).max(4);
    let lower = match model.pane {
        Pane::Events => quarter + 2,
        Pane::Tasks | Pane::Workers => quarter.min(u16::try_from(rows + 2).unwrap_or(quarter)),
    };
    let log = if model.preview.is_some() { area.height / 3 } else { 0 };
    let [upper, middle, bottom] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(log), Constraint::Length(lower)]).areas(area);
    tasks(model, frame, upper);
    if model.preview.is_some() {
        preview(model, frame, middle);
    }
    match model.pane {
        Pane::Events => events(model, frame, bottom),
        Pane::Tasks | Pane::Workers => workers(model, frame, bottom),
    }
}

/// Draws a pane's title and returns the room below it.
pub(super) fn framed(
    model: &Model,
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    focused: bool,
    trouble: Option<Feed>,
) -> Rect {
    let theme = Theme::of(model);
    let mut spans = vec![Span::styled(format!(" {title} "), theme.title(focused))];
    if let Some(why) = trouble.and_then(|feed| model.troubles.get(&feed)) {
        spans.push(Span::styled(format!("{} ", safe(why, area.width.into())), theme.bad()));
    }
    let block = Block::new().borders(Borders::TOP).border_style(theme.title(focused)).title(Line::from(spans));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    inside
}

fn footer(model: &Model, width: usize) -> Line<'static> {
    let theme = Theme::of(model);
    match (&model.mode, &model.notice) {
        (Mode::Filter { .. }, _) => Line::from(vec![
            Span::styled("filter: ", theme.title(true)),
            Span::raw(safe(&model.filter, width.saturating_sub(10))),
            Span::styled(" ", theme.selected(Style::new())),
        ]),
        (Mode::Confirm(task), _) => {
            let name = model.task(*task).and_then(|task| task.info.name.clone());
            let name = name.map(|name| format!(" [{name}]")).unwrap_or_default();
            Line::styled(safe(&format!("cancel {}{name}? y/n", task.short()), width), theme.bad())
        }
        (_, Some(notice)) => {
            let style = if notice.error { theme.bad() } else { theme.title(true) };
            Line::styled(safe(&notice.text, width), style)
        }
        _ => {
            const KEYS: [&str; 9] =
                ["q quit", "? help", "Enter attach", "l log", "p pause", "r resume", "c cancel", "/ filter", "s sort"];
            let fitting = KEYS.iter().scan(0, |used, key| {
                *used += key.len() + 2;
                (*used <= width).then_some(*key)
            });
            Line::styled(fitting.collect::<Vec<_>>().join("  "), theme.title(false))
        }
    }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines = HELP.map(|(keys, what)| Line::from(format!(" {keys:<8} {what}")));
    let wide = HELP.iter().map(|(_, what)| what.chars().count()).max().unwrap_or(0) + 13;
    let (width, height) = (
        u16::try_from(wide).unwrap_or(u16::MAX).min(area.width),
        u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height),
    );
    let at = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, at);
    frame.render_widget(Paragraph::new(lines.to_vec()).block(Block::bordered().title(" Keys ")), at);
}
