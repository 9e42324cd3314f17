//! Rows into what people are told.

use ado_proto::Timestamp;
use ado_proto::record::Desired;
use ado_proto::request::{CheckpointInfo, TaskInfo, WorkerInfo, encode_response};
use ado_proto::spec::{Exit, Input};
use serde::Serialize;

use super::fleet::Fleet;
use crate::scheduler::{self, Candidate, Demand};
use crate::store::{Row, Worker};
use crate::task::{Checkpoint, State};

/// Most bytes of an answer; a frame's limit is a little more.
const ANSWER: usize = 960 * 1024;
/// What a task takes beside its texts: ids, names, numbers.
const NAMES: usize = 640;

/// How many of the first things fit one answer: at least one.
pub(super) fn fitting<T: Serialize>(things: &[T]) -> usize {
    let mut total = 0;
    let fits = things.iter().take_while(|thing| {
        total += encode_response(&Ok(thing)).len();
        total <= ANSWER
    });
    fits.count().max(1)
}

/// Shortens the texts of tasks that would not fit one answer together: everything there is to know of a task is in an
/// answer about it alone.
pub(super) fn shorten(mut tasks: Vec<TaskInfo>) -> Vec<TaskInfo> {
    if fitting(&tasks) >= tasks.len() {
        return tasks;
    }
    let share = ANSWER / tasks.len();
    for task in &mut tasks {
        if encode_response(&Ok(&*task)).len() > share {
            let most = share.saturating_sub(NAMES) / 5;
            let spec = &mut task.spec;
            spec.env.clear();
            spec.labels.clear();
            if let Some(checkpoint) = &mut task.checkpoint {
                checkpoint.data = None;
            }
            if let Some(message) = task.progress.as_mut().and_then(|progress| progress.message.as_mut()) {
                *message = cut(std::mem::take(message), most);
            }
            spec.input = Input::Text(cut(spec.input.summary(), most));
            spec.cwd = spec.cwd.take().map(|text| cut(text, most));
            task.error = task.error.take().map(|text| cut(text, most));
            task.reason = task.reason.take().map(|text| cut(text, most));
            if let Some(Exit::NotStarted { error, .. } | Exit::Lost { error }) = &mut task.exit {
                *error = cut(std::mem::take(error), 0);
            }
        }
    }
    tasks
}

fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

/// A task as callers see it.
pub(super) fn task(row: &Row, fleet: &[Candidate], now: Timestamp) -> TaskInfo {
    let task = &row.task;
    let (outcome, exit, error) = match &task.state {
        State::Ended { outcome, exit, error } => (Some(*outcome), exit.clone(), error.clone()),
        _ => (None, None, None),
    };
    let not_before = match task.state {
        State::Queued { not_before } => not_before,
        _ => task.created_at,
    };
    TaskInfo {
        id: task.id,
        namespace: task.namespace.clone(),
        owner: task.owner.clone(),
        name: task.name.clone(),
        group: task.group,
        state: task.state_word().into(),
        desired: task.desired,
        spec: task.spec.clone(),
        worker: task.worker.as_ref().map(|holder| holder.id),
        worker_name: task.worker.as_ref().map(|holder| holder.name.clone()),
        epoch: task.epoch,
        attempt: task.attempt(),
        losses: task.uncharged_losses,
        created_at: task.created_at,
        started_at: task.started_at,
        ended_at: task.ended_at,
        not_before,
        outcome,
        exit,
        error,
        next_offset: task.next_offset,
        progress: task.progress.clone(),
        checkpoint: task.checkpoint.as_ref().map(checkpoint),
        reason: reason(row, fleet, now),
    }
}

fn checkpoint(checkpoint: &Checkpoint) -> CheckpointInfo {
    CheckpointInfo { id: checkpoint.id, offset: checkpoint.offset, data: Some(checkpoint.data.to_string()) }
}

fn reason(row: &Row, fleet: &[Candidate], now: Timestamp) -> Option<String> {
    let task = &row.task;
    Some(match (&task.state, task.desired) {
        (State::Queued { .. }, Desired::Paused) => "paused before it started: `ado resume` lets it run".into(),
        (State::Queued { not_before }, _) if *not_before > now => {
            format!("tried again in {} s, after {} failed attempts", not_before.since(now).as_secs() + 1, task.failures)
        }
        (State::Queued { .. }, _) => scheduler::why_waiting(fleet, &Demand::of(&task.namespace, &task.spec)),
        (State::Starting | State::Running | State::Paused, _) if !is_connected(row, fleet) => {
            "its worker is not connected: it goes on there, or elsewhere when the lease has ended".into()
        }
        (State::Starting, _) => "its worker is starting it".into(),
        (State::Running | State::Paused, Desired::Cancelled) => "its worker is stopping it".into(),
        (State::Ended { error: Some(error), .. }, _) => error.clone(),
        _ => return None,
    })
}

fn is_connected(row: &Row, fleet: &[Candidate]) -> bool {
    row.lease.as_ref().is_some_and(|lease| fleet.iter().any(|worker| worker.id == lease.worker))
}

/// A worker as callers see it.
pub(super) fn worker(worker: Worker, fleet: &Fleet, lost_after: std::time::Duration, now: Timestamp) -> WorkerInfo {
    let age = now.since(worker.seen_at);
    let busy = fleet.busy(worker.id);
    let state = match (age > lost_after, worker.draining, busy) {
        (true, ..) => "lost",
        (_, true, _) => "draining",
        (_, _, None) => "disconnected",
        _ => "ready",
    };
    WorkerInfo {
        id: worker.id,
        name: worker.name,
        state: state.into(),
        pool: worker.pool,
        namespace: worker.namespace,
        slots: worker.slots,
        busy: busy.unwrap_or(0),
        agents: worker.agents,
        labels: worker.labels,
        containment: worker.containment,
        heartbeat_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        build: worker.build,
        load: None,
        rtt_us: None,
        holds: Vec::new(),
        ineligible: None,
    }
}
