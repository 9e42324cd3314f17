//! The rows of the dashboard: which tasks, in which order, how fast they write. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::TaskId;
use ado_proto::request::TaskInfo;

use crate::cli::list::percent;

/// A task and how fast its log grows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Task {
    pub(super) info: TaskInfo,
    /// Records a second; `None` before it was seen twice, and once it has ended.
    pub(super) rate: Option<f64>,
}

/// An order of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// What goes on before what is over; newest first.
    #[default]
    Active,
    Newest,
    Progress,
    Throughput,
    Worker,
    Name,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Active => Self::Newest,
            Self::Newest => Self::Progress,
            Self::Progress => Self::Throughput,
            Self::Throughput => Self::Worker,
            Self::Worker => Self::Name,
            Self::Name => Self::Active,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Active => "active first",
            Self::Newest => "newest first",
            Self::Progress => "by progress",
            Self::Throughput => "by throughput",
            Self::Worker => "by worker",
            Self::Name => "by name",
        }
    }
}

/// The tasks that fit the filter, in order.
pub(super) fn view<'a>(tasks: impl Iterator<Item = &'a Task>, filter: &str, sort: Sort) -> Vec<&'a Task> {
    let words: Vec<_> = filter.split_whitespace().map(str::to_lowercase).collect();
    // Ids rise with time: reversed, the newest come first.
    let mut rows: Vec<_> = tasks.filter(|task| words.iter().all(|word| has(&task.info, word))).collect();
    rows.sort_by_key(|task| Reverse(task.info.id));
    match sort {
        Sort::Newest => {}
        Sort::Active => rows.sort_by_key(|task| rank(&task.info)),
        Sort::Progress => rows.sort_by_key(|task| Reverse(percent(&task.info))),
        Sort::Throughput => rows.sort_by(|a, b| b.rate.unwrap_or(-1.0).total_cmp(&a.rate.unwrap_or(-1.0))),
        Sort::Worker => rows.sort_by_key(|task| (task.info.worker_name.is_none(), task.info.worker_name.clone())),
        Sort::Name => rows.sort_by_key(|task| (task.info.name.is_none(), task.info.name.clone())),
    }
    rows
}

/// Whether a word is in what people know a task by.
fn has(info: &TaskInfo, word: &str) -> bool {
    let group = info.group.map(|member| member.id.short());
    let texts = [
        Some(info.id.short()),
        Some(info.state.clone()),
        Some(info.spec.agent.clone()),
        Some(info.spec.input.summary()),
        Some(info.owner.clone()),
        info.name.clone(),
        info.worker_name.clone(),
        group,
    ];
    texts.into_iter().flatten().any(|text| text.to_lowercase().contains(word))
}

fn rank(info: &TaskInfo) -> u8 {
    match info.state.as_str() {
        "running" | "waiting" => 0,
        "starting" => 1,
        "paused" => 2,
        "queued" => 3,
        _ => 4,
    }
}

/// The tasks as they are now, and how fast each has written since they were last looked at, `span` ago.
pub(super) fn rates(
    before: BTreeMap<TaskId, Task>,
    now: Vec<TaskInfo>,
    span: Option<Duration>,
) -> BTreeMap<TaskId, Task> {
    let rate = |info: &TaskInfo| {
        let old = before.get(&info.id)?;
        let span = span.filter(|span| !span.is_zero() && info.outcome.is_none())?;
        let records = info.next_offset.0.saturating_sub(old.info.next_offset.0);
        let measured = records as f64 / span.as_secs_f64();
        // Half of what was shown before: numbers that jump cannot be read.
        Some(old.rate.map_or(measured, |shown| f64::midpoint(shown, measured)))
    };
    now.into_iter().map(|info| (info.id, Task { rate: rate(&info), info })).collect()
}
