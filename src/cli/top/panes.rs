//! The panes of the picture: tasks, workers, events, the end of a log. Pure.

use std::time::Duration;

use ado_proto::request::{Load, SystemEvent, TaskInfo, WorkerInfo};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use unicode_width::UnicodeWidthStr;

use super::draw::{Theme, framed};
use super::model::{Feed, Model, Pane};
use super::rows::Task;
use super::text::{bar, rate, safe, span};
use crate::cli::list::percent;
use crate::cli::output::age;

/// A column: its title, its width, the screen's width from which it is shown, whether it is a number.
type Column = (&'static str, usize, usize, bool);

/// Of tasks. The command takes what is left.
const TASKS: [Column; 7] = [
    ("TASK", 15, 0, false),
    ("STATE", 9, 0, false),
    ("PROGRESS", 10, 60, false),
    ("AGE", 4, 48, true),
    ("WORKER", 12, 72, false),
    ("REC/S", 6, 100, true),
    ("STEP", 28, 110, false),
];

/// Of workers. Why one gets no task takes what is left.
const WORKERS: [Column; 7] = [
    ("WORKER", 16, 0, false),
    ("STATE", 12, 0, false),
    ("SLOTS", 13, 0, false),
    ("LOAD", 9, 60, true),
    ("FREE", 6, 76, true),
    ("RTT", 6, 60, true),
    ("HEARD", 6, 52, true),
];

/// A row: cells of columns in order, and what takes the rest.
fn row(columns: &[Column], cells: &[String], rest: &str, width: usize) -> String {
    let mut line = String::new();
    for ((_, wide, from, number), cell) in columns.iter().zip(cells) {
        if width < *from {
            continue;
        }
        let cell = safe(cell, *wide);
        let pad = " ".repeat(wide.saturating_sub(cell.width()));
        line.push_str(&if *number { format!("{pad}{cell}") } else { format!("{cell}{pad}") });
        line.push(' ');
    }
    line.push_str(&safe(rest, width.saturating_sub(line.width())));
    line
}

fn head(columns: &[Column], rest: &str, width: usize) -> String {
    let titles: Vec<_> = columns.iter().map(|column| column.0.to_owned()).collect();
    row(columns, &titles, rest, width)
}

/// The first of `rows` rows to show in `room` lines, so that the one at `at` is among them.
fn first_shown(rows: usize, room: usize, at: usize) -> usize {
    at.saturating_sub(room / 2).min(rows.saturating_sub(room))
}

pub(super) fn tasks(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let theme = Theme::of(model);
    let rows = model.view();
    let filter = if model.filter.is_empty() { String::new() } else { format!("  filter: {}", safe(&model.filter, 40)) };
    let title = format!("Tasks {}  {}{filter}", rows.len(), model.sort.word());
    let inside = framed(model, frame, area, &title, model.pane == Pane::Tasks, Some(Feed::Tasks));
    let width = usize::from(inside.width);
    let (selected, detail) = (model.selected(), inside.height >= 6);
    let room = usize::from(inside.height).saturating_sub(1 + usize::from(detail));
    let first = first_shown(rows.len(), room, selected.map_or(0, |(row, _)| row));
    let mut lines = vec![Line::styled(head(&TASKS, "COMMAND", width), theme.title(false))];
    for task in rows.iter().skip(first).take(room) {
        let style = theme.plain();
        let is_selected = selected.is_some_and(|(_, id)| id == task.info.id);
        lines.push(task_line(task, model, &theme, if is_selected { theme.selected(style) } else { style }, width));
    }
    if rows.is_empty() && model.has_tasks() {
        let text = if model.filter.is_empty() { "no tasks: start one with ado run" } else { "no task fits the filter" };
        lines.push(Line::styled(text, theme.title(false)));
    }
    if detail && let Some(task) = selected.and_then(|(_, id)| model.task(id)) {
        lines.resize(room + 1, Line::default());
        lines.push(Line::styled(safe(&sentence(&task.info), width), theme.title(false)));
    }
    frame.render_widget(Paragraph::new(lines), inside);
}

fn task_line(task: &Task, model: &Model, theme: &Theme, style: Style, width: usize) -> Line<'static> {
    let info = &task.info;
    let progress = percent(info).map(|percent| format!("{} {percent:>3}%", bar(percent.into(), 100, 5)));
    let step = info.progress.as_ref().and_then(|progress| progress.message.clone()).filter(|_| info.outcome.is_none());
    let cells = [
        info.id.short(),
        info.state.clone(),
        progress.unwrap_or_default(),
        age(model.now.since(info.created_at)),
        info.worker_name.clone().unwrap_or_else(|| "-".into()),
        task.rate.map(rate).unwrap_or_default(),
        step.unwrap_or_default(),
    ];
    let part = |from: usize, to: usize| row(&TASKS[from..to], &cells[from..to], "", width);
    let (id, state, mut rest) = (part(0, 1), part(1, 2), part(2, TASKS.len()));
    rest.push_str(&safe(&what(info), width.saturating_sub(id.width() + state.width() + rest.width())));
    // To the edge, so that a selected row is one bar.
    let pad = width.saturating_sub(id.width() + state.width() + rest.width());
    rest.push_str(&" ".repeat(pad));
    Line::from(vec![
        Span::styled(id, style),
        Span::styled(state, style.patch(theme.state(&info.state))),
        Span::styled(rest, style),
    ])
}

/// What a task is, for people.
fn what(info: &TaskInfo) -> String {
    let summary = info.spec.input.summary();
    let summary = if info.spec.agent == "shell" { summary } else { format!("{}: {summary}", info.spec.agent) };
    info.name.as_ref().map_or_else(|| summary.clone(), |name| format!("[{name}] {summary}"))
}

/// What there is to say of the selected task.
fn sentence(info: &TaskInfo) -> String {
    let step = info.progress.as_ref().and_then(|progress| progress.message.clone()).filter(|_| info.outcome.is_none());
    let words = info.error.clone().or_else(|| info.reason.clone()).or(step).unwrap_or_else(|| what(info));
    format!("{}: {words}", info.id.short())
}

pub(super) fn workers(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let theme = Theme::of(model);
    let all = model.workers.as_deref().unwrap_or_default();
    let title = format!("Workers {}", all.len());
    let inside = framed(model, frame, area, &title, model.pane == Pane::Workers, Some(Feed::Workers));
    let width = usize::from(inside.width);
    let room = usize::from(inside.height).saturating_sub(1);
    let mut lines = vec![Line::styled(head(&WORKERS, "NOTE", width), theme.title(false))];
    let first = first_shown(all.len(), room, model.worker);
    for (index, worker) in all.iter().enumerate().skip(first).take(room) {
        let style = theme.state(&worker.state);
        let is_selected = index == model.worker && model.pane == Pane::Workers;
        lines.push(Line::styled(worker_line(worker, width), if is_selected { theme.selected(style) } else { style }));
    }
    if model.workers.is_some() && all.is_empty() {
        lines.push(Line::styled("no workers: start one with ado worker", theme.title(false)));
    }
    frame.render_widget(Paragraph::new(lines), inside);
}

fn worker_line(worker: &WorkerInfo, width: usize) -> String {
    let (busy, slots) = (u64::from(worker.busy), u64::from(worker.slots));
    let load = worker.load.filter(|load| load.cpus > 0);
    let of_cpus = |load: Load| format!("{:.1}/{}", f64::from(load.load_milli) / 1e3, load.cpus);
    let heard = Duration::from_millis(worker.heartbeat_age_ms);
    let cells = [
        worker.name.clone(),
        worker.state.clone(),
        format!("{} {busy}/{slots}", bar(busy, slots, 6)),
        load.map(of_cpus).unwrap_or_else(|| "-".into()),
        load.map(|load| bytes(load.memory_available)).unwrap_or_else(|| "-".into()),
        worker.rtt_us.map(|rtt| span(Duration::from_micros(rtt))).unwrap_or_else(|| "-".into()),
        age(heard),
    ];
    row(&WORKERS, &cells, worker.ineligible.as_deref().unwrap_or_default(), width)
}

/// `512M`, `3.4G`.
fn bytes(count: u64) -> String {
    let mib = count as f64 / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.0}M") } else { format!("{:.1}G", mib / 1024.0) }
}

pub(super) fn events(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let theme = Theme::of(model);
    let title = format!("Events {}", model.events.len());
    let inside = framed(model, frame, area, &title, model.pane == Pane::Events, Some(Feed::Events));
    let (width, room) = (usize::from(inside.width), usize::from(inside.height));
    let end = model.events.len() - model.scrolled.min(model.events.len());
    let shown = model.events.iter().take(end).skip(end.saturating_sub(room));
    let line = |event: &SystemEvent| {
        let (ago, kind) = (age(model.now.since(event.time)), safe(&event.kind, 16));
        Line::styled(format!("{ago:>4} ago  {kind:<16} {}", safe(&event.text, width)), theme.plain())
    };
    frame.render_widget(Paragraph::new(shown.map(line).collect::<Vec<_>>()), inside);
}

pub(super) fn preview(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let Some(preview) = &model.preview else { return };
    let theme = Theme::of(model);
    let inside = framed(model, frame, area, &format!("Log of {}", preview.task.short()), false, Some(Feed::Preview));
    let lines: Vec<_> = match &preview.lines {
        None => vec![Line::styled("…", theme.title(false))],
        Some(lines) if lines.is_empty() => vec![Line::styled("it has written nothing yet", theme.title(false))],
        Some(lines) => {
            let first = lines.len().saturating_sub(inside.height.into());
            lines[first..].iter().map(|line| Line::styled(line.clone(), theme.plain())).collect()
        }
    };
    frame.render_widget(Paragraph::new(lines), inside);
}
