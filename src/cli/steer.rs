//! Asking for another state of tasks, and waiting until it is so: what `cancel`, `pause` and `resume` share.
//!
//! What is wanted is written down by the controller; what is, only a worker can say. Between the two a command waits.

use std::time::Duration;

use ado_proto::TaskId;
use ado_proto::record::Desired;
use ado_proto::request::{DesiredSet, TaskInfo};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::Global;
use super::error::{Error, Kind};
use super::observe::{self, is_over};
use super::output::{Format, plain, print};
use super::session::{App, Session};
use super::values;
use crate::config::Flags;

/// Tasks looked after at the same time.
const AT_ONCE: usize = 64;

/// How long to wait.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Waiting {
    /// Wait at most this long until it is so
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "30s")]
    timeout: Duration,
    /// Do not wait until it is so
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
}

/// What is wanted of tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) desired: Desired,
    /// Kill at once.
    pub(crate) force: bool,
}

/// What became of a wish for one task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    task: TaskId,
    /// As it was seen last.
    state: String,
    /// Why nothing changed, if so.
    unchanged: Option<String>,
    /// Nobody said in time that it is so.
    late: bool,
}

/// Every reference is tried; the first failure is told after the results of the others.
pub(crate) async fn run(global: Global, references: &[String], wish: Wish, waiting: Waiting) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let mut set: Vec<(DesiredSet, &str)> = Vec::new();
    let mut failed: Option<Error> = None;
    for reference in references {
        match session.client.set_desired(reference, wish.desired, wish.force).await {
            Ok(tasks) => set.extend(tasks.into_iter().map(|task| (task, reference.as_str()))),
            Err(error) => {
                failed.get_or_insert(error.into());
            }
        }
    }
    let until = (!waiting.no_wait).then(|| tokio::time::Instant::now() + waiting.timeout);
    let outcomes = tokio::select! {
        biased;
        outcomes = settle(&session, set.into_iter().map(|(set, _)| set).collect(), wish.desired, until) => outcomes?,
        () = session.taken_down() => return Err(observe::taken_down()),
    };
    let late: Vec<String> =
        outcomes.iter().filter(|outcome| outcome.late).map(|outcome| outcome.task.short()).collect();
    if let [first, ..] = &late[..] {
        failed.get_or_insert(
            Error::new(Kind::TimedOut, not_in_time(&late, wish.desired, waiting.timeout))
                .hint(session.command(&format!("status {first}"))),
        );
    }
    session.close().await;
    let json: Vec<Value> = outcomes.iter().map(to_json).collect();
    let text = || outcomes.iter().map(|outcome| to_text(outcome, wish.desired)).collect();
    match app.global {
        // What happened is no data; for programs it is.
        Global { quiet: true, output: Format::Text, .. } => {}
        Global { output, .. } => print(output, &json, text)?,
    }
    failed.map_or(Ok(0), Err)
}

/// Waits until all is as wanted, or the time is over.
async fn settle(
    session: &Session,
    set: Vec<DesiredSet>,
    desired: Desired,
    until: Option<tokio::time::Instant>,
) -> Result<Vec<Outcome>, Error> {
    session.stay();
    let waits = set.into_iter().map(async |set| {
        let task = set.task;
        let known = Outcome { task, state: set.state, unchanged: set.unchanged, late: false };
        let Some(until) = until.filter(|_| !is_settled(&known.state, desired)) else { return Ok(known) };
        let wanted = |info: &TaskInfo| is_settled(&info.state, desired) || info.desired != desired;
        match tokio::time::timeout_at(until, observe::until(session, task, wanted)).await {
            Ok(info) => info.map(|info| observed(known, &info, desired)),
            Err(_) => Ok(Outcome { late: true, ..known }),
        }
    });
    let all: Vec<Result<Outcome, Error>> = futures_util::stream::iter(waits).buffered(AT_ONCE).collect().await;
    all.into_iter().collect()
}

fn observed(known: Outcome, info: &TaskInfo, desired: Desired) -> Outcome {
    let other = !is_settled(&info.state, desired) && info.desired != desired;
    let unchanged = match (other, is_over(&info.state)) {
        (true, _) => Some(format!("somebody asked for {} meanwhile", crate::json::desired_word(info.desired))),
        // It was waited for: that somebody had asked before is of no interest now.
        (false, _) if known.unchanged.is_some() => None,
        (false, true) if desired != Desired::Cancelled => Some(format!("already {}", info.state)),
        (false, _) => None,
    };
    Outcome { state: info.state.clone(), unchanged, ..known }
}

/// Whether a task in this state needs no more to be as wanted: it is so, or it is over and never will.
fn is_settled(state: &str, desired: Desired) -> bool {
    is_over(state)
        || match desired {
            Desired::Running => state != "paused",
            Desired::Paused => state == "paused",
            Desired::Cancelled => false,
        }
}

fn not_in_time(late: &[String], desired: Desired, waited: Duration) -> String {
    let what = match desired {
        Desired::Running => "resumed",
        Desired::Paused => "paused",
        Desired::Cancelled => "cancelled",
    };
    let shown = late[..late.len().min(5)].join(", ");
    let others = late.len().saturating_sub(5);
    let others = if others == 0 { String::new() } else { format!(" and {others} more") };
    format!("{shown}{others}: not {what} within {}; it is still wanted", values::show_duration(waited))
}

fn to_json(outcome: &Outcome) -> Value {
    json!({
        "taskId": outcome.task,
        "shortId": outcome.task.short(),
        "status": outcome.state,
        "unchanged": outcome.unchanged,
    })
}

fn to_text(outcome: &Outcome, desired: Desired) -> String {
    let state = outcome.state.as_str();
    let words = match (&outcome.unchanged, desired) {
        (Some(why), _) if !is_settled(state, desired) => plain(why),
        // As the state says it: "already asked for" is not what people want to know.
        (Some(_), _) => format!("already {state}"),
        (None, Desired::Cancelled) if is_over(state) => state.into(),
        (None, Desired::Cancelled) => "cancelling".into(),
        (None, Desired::Paused) if is_settled(state, desired) => state.into(),
        (None, Desired::Paused) => "pausing".into(),
        (None, Desired::Running) if state == "paused" => "resuming".into(),
        (None, Desired::Running) if state == "running" => "resumed".into(),
        (None, Desired::Running) => format!("resumed, {state}"),
    };
    format!("{}: {words}\n", outcome.task.short())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[track_caller]
    fn check(desired: Desired, state: &str, unchanged: Option<&str>, words: &str) {
        let task = TaskId(Uuid::from_u128(7));
        let outcome = Outcome { task, state: state.into(), unchanged: unchanged.map(Into::into), late: false };
        assert_eq!(to_text(&outcome, desired), format!("task-0000000007: {words}\n"));
    }

    #[test]
    fn words() {
        check(Desired::Paused, "paused", None, "paused");
        check(Desired::Paused, "running", None, "pausing");
        check(Desired::Paused, "paused", Some("already asked for"), "already paused");
        check(Desired::Paused, "running", Some("already asked for"), "already asked for");
        check(Desired::Paused, "completed", Some("already completed"), "already completed");
        check(Desired::Running, "running", None, "resumed");
        check(Desired::Running, "queued", None, "resumed, queued");
        check(Desired::Running, "running", Some("already asked for"), "already running");
        check(Desired::Running, "paused", None, "resuming");
        check(Desired::Cancelled, "cancelled", None, "cancelled");
        check(Desired::Cancelled, "running", None, "cancelling");
        check(Desired::Cancelled, "failed", Some("already failed"), "already failed");
        check(Desired::Cancelled, "cancelled", Some("already cancelled"), "already cancelled");
    }

    #[test]
    fn what_was_seen_after_waiting() {
        let known = |unchanged: Option<&str>| Outcome {
            task: TaskId(Uuid::from_u128(7)),
            state: "running".into(),
            unchanged: unchanged.map(Into::into),
            late: false,
        };
        let mut info = crate::cli::status::tests::info();
        (info.state, info.desired) = ("paused".into(), Desired::Paused);
        let seen = observed(known(Some("already asked for")), &info, Desired::Paused);
        assert_eq!((seen.state.as_str(), seen.unchanged), ("paused", None));
        info.state = "completed".into();
        let ended = observed(known(None), &info, Desired::Paused).unchanged;
        assert_eq!(ended.as_deref(), Some("already completed"), "it ended before it could be paused");
        (info.state, info.desired) = ("running".into(), Desired::Running);
        let other = observed(known(None), &info, Desired::Paused).unchanged;
        assert_eq!(other.as_deref(), Some("somebody asked for running meanwhile"));
    }

    #[test]
    fn many_late_tasks_are_counted() {
        let late: Vec<String> = (0..7).map(|n| format!("task-{n}")).collect();
        let text = not_in_time(&late, Desired::Paused, Duration::from_millis(1500));
        assert!(text.starts_with("task-0, ") && text.contains(" and 2 more: not paused within 1500ms"), "{text}");
    }
}
