//! Rows into what people are told.

use std::time::Duration;

use ado_proto::request::{CheckpointInfo, TaskInfo, WorkerDesired, WorkerInfo, encode_response};
use ado_proto::spec::{Exit, Input, Rules};
use ado_proto::{ControllerId, TaskId, Timestamp};
use serde::Serialize;

use super::fleet::{self, Seen};
use super::reason::reason;
use crate::scheduler::{Candidate, Presence, Taken};
use crate::store::{Row, Wish, Worker};
use crate::task::{Checkpoint, Open, State};

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
            spec.rules = Rules::default();
            task.asks.truncate(1);
            for ask in &mut task.asks {
                (ask.text, ask.detail) = (cut(std::mem::take(&mut ask.text), most), String::new());
                ask.choices.clear();
            }
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
            if let Some(
                Exit::NotStarted { error, .. }
                | Exit::Lost { error }
                | Exit::Unavailable { what: error, .. }
                | Exit::Hopeless { error, .. }
                | Exit::Failed { error },
            ) = &mut task.exit
            {
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
pub(super) fn task(row: &Row, fleet: &[Candidate], away: Option<&Open>, now: Timestamp) -> TaskInfo {
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
        reason: reason(row, fleet, away, now),
        retry_of: task.retry_of,
        settled: row.settled,
        asks: task.asks.iter().filter(|open| open.answer.is_none()).map(|open| open.ask.clone()).collect(),
        usage: task.usage,
    }
}

fn checkpoint(checkpoint: &Checkpoint) -> CheckpointInfo {
    CheckpointInfo {
        id: checkpoint.id,
        offset: checkpoint.offset,
        data: Some(checkpoint.data.to_string()),
        snapshot: checkpoint.snapshot,
    }
}

/// A registered worker, and what this controller knows of it.
pub(super) struct Member {
    /// As registered.
    pub(super) worker: Worker,
    /// While it is connected, here or elsewhere.
    pub(super) seen: Option<Seen>,
    /// The controller it is connected to.
    pub(super) controller: Option<ControllerId>,
    /// What is wanted of it.
    pub(super) wish: Option<Wish>,
    /// What it holds, in order of id.
    pub(super) holds: Vec<TaskId>,
}

impl Member {
    pub(super) fn presence(&self, lost_after: Duration, now: Timestamp) -> Presence {
        match &self.seen {
            _ if now.since(self.worker.seen_at) > lost_after => Presence::Lost,
            Some(_) => Presence::Connected,
            None => Presence::Disconnected,
        }
    }

    /// As placement sees it, or would see it if it were connected.
    pub(super) fn candidate(&self) -> Candidate {
        let known = self.seen.as_ref().map(|seen| seen.candidate.clone());
        // Nothing is placed on it, so nobody counts what those it holds may use.
        let unknown = || fleet::candidate(&self.worker, self.wish.as_ref(), self.holds.len(), Taken::default());
        known.unwrap_or_else(unknown)
    }
}

/// A worker as callers see it.
pub(super) fn worker(member: Member, presence: Presence, now: Timestamp) -> WorkerInfo {
    let Member { worker, seen, controller, wish, holds } = member;
    let is_draining = worker.draining || seen.as_ref().is_some_and(|seen| seen.candidate.draining);
    let is_tripped = seen.as_ref().is_some_and(|seen| seen.candidate.tripped.is_some());
    let state = match state(presence, is_draining, wish.as_ref(), holds.len()) {
        "ready" if is_tripped => "cordoned",
        state => state,
    };
    let report = seen.and_then(|seen| seen.report);
    let age = now.since(worker.seen_at);
    WorkerInfo {
        id: worker.id,
        name: worker.name,
        state: state.into(),
        pool: worker.pool,
        namespace: worker.namespace,
        slots: worker.slots,
        busy: u32::try_from(holds.len()).unwrap_or(u32::MAX),
        agents: worker.agents,
        labels: worker.labels,
        containment: worker.containment,
        heartbeat_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        build: worker.build,
        load: report.map(|report| report.load),
        rtt_us: report.map(|report| u64::try_from(report.rtt.as_micros()).unwrap_or(u64::MAX)),
        holds,
        ineligible: None,
        breaker: None,
        desired: wish.as_ref().map_or(WorkerDesired::Active, |wish| wish.desired),
        deadline: wish.as_ref().and_then(|wish| wish.deadline),
        desired_by: wish.map(|wish| wish.by),
        controller,
    }
}

/// One word.
pub(super) fn state(presence: Presence, is_draining: bool, wish: Option<&Wish>, holds: usize) -> &'static str {
    let desired = wish.map_or(WorkerDesired::Active, |wish| wish.desired);
    match (presence, desired) {
        // It has left, or it stays and takes nothing.
        (_, WorkerDesired::Drained) if holds == 0 && (is_draining || presence != Presence::Connected) => "drained",
        (Presence::Lost, _) => "lost",
        (_, WorkerDesired::Drained) => "draining",
        (Presence::Disconnected, _) if holds == 0 || !is_draining => "disconnected",
        _ if is_draining => "draining",
        (Presence::Disconnected, _) => "disconnected",
        (Presence::Connected, WorkerDesired::Cordoned) => "cordoned",
        (Presence::Connected, WorkerDesired::Active) => "ready",
    }
}

/// Shortens what workers hold when they would not fit one answer together: how many it is, is told beside it.
pub(super) fn shorten_workers(mut workers: Vec<WorkerInfo>) -> Vec<WorkerInfo> {
    for most in [16, 0] {
        if fitting(&workers) >= workers.len() {
            break;
        }
        workers.iter_mut().for_each(|worker| worker.holds.truncate(most));
    }
    workers
}
