//! The dead letter: doing its tasks again, taking them out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::record::{Member, Outcome as Ending};
use ado_proto::request::{
    DeadOnes, ErrorReply, ListTasks, PurgeDead, Request, RetryDead, SettledDead, SettledTask, encode_response,
};
use ado_proto::{Audience, GroupId, TaskId};

use super::tasks::applied;
use super::{Asked, unavailable};
use crate::controller::dispatch;
use crate::store::{Change, NewEvent, Outcome, Row, Unit, Write};
use crate::task::{self, Refusal, Settled};

/// Most tasks of one request: they are one transaction.
const AT_ONCE: u32 = 500;

impl Asked<'_> {
    pub(super) async fn retry_dead(&self, request: RetryDead) -> Result<Vec<u8>, ErrorReply> {
        if let Some(answer) = self.replayed::<RetryDead>().await? {
            return Ok(answer);
        }
        let (rows, next) = self.meant(&request.which).await?;
        let mut new_groups: BTreeMap<GroupId, GroupId> = BTreeMap::new();
        let mut ids: Vec<_> = rows.iter().map(|_| TaskId(self.shared.env.uuid())).collect();
        // In the order of the old ones: lists go by id.
        ids.sort_unstable();
        let mut by_age: Vec<_> = rows.iter().collect();
        by_age.sort_by_key(|row| row.task.id);
        let mut changes = Vec::with_capacity(2 * rows.len());
        for (row, id) in by_age.iter().zip(&ids) {
            // Members go on together, each with its index; the group they were of has ended.
            let group = row.task.group.map(|member| Member {
                id: *new_groups.entry(member.id).or_insert_with(|| GroupId(self.shared.env.uuid())),
                ..member
            });
            changes.extend(self.again(row.task.id, *id, group, request.fresh));
        }
        let old: Vec<_> = by_age.iter().map(|row| row.task.id).collect();
        // Of each pair of changes the first says what happened.
        let answer = move |outcomes: &[Outcome]| SettledDead {
            tasks: old.iter().zip(outcomes.iter().step_by(2)).map(|(id, outcome)| settled(*id, outcome)).collect(),
            next,
        };
        let once = self.once::<RetryDead>(answer.clone()).await?;
        let how = if request.fresh { " afresh" } else { "" };
        let audit = self.audit(RetryDead::NAME, format!("{}{how}", said(&request.which)));
        let (outcomes, kept) = self.commit(Unit { changes, once, audit: Some(audit) }).await?;
        let kept = kept.unwrap_or_else(|| encode_response(&Ok(answer(&outcomes))));
        let queued: Vec<_> = outcomes.into_iter().skip(1).step_by(2).filter_map(applied).collect();
        dispatch::give_hints(self.shared, &queued).await;
        Ok(kept)
    }

    pub(super) async fn purge_dead(&self, request: PurgeDead) -> Result<Vec<u8>, ErrorReply> {
        if let Some(answer) = self.replayed::<PurgeDead>().await? {
            return Ok(answer);
        }
        let (rows, next) = self.meant(&request.which).await?;
        let ids: Vec<_> = rows.iter().map(|row| row.task.id).collect();
        let changes = ids.iter().map(|id| settle(*id, Settled::Purged, self.access.owner.clone(), None)).collect();
        let answer = move |outcomes: &[Outcome]| SettledDead {
            tasks: ids.iter().zip(outcomes).map(|(id, outcome)| settled(*id, outcome)).collect(),
            next,
        };
        let once = self.once::<PurgeDead>(answer.clone()).await?;
        let audit = self.audit(PurgeDead::NAME, said(&request.which));
        let (outcomes, kept) = self.commit(Unit { changes, once, audit: Some(audit) }).await?;
        Ok(kept.unwrap_or_else(|| encode_response(&Ok(answer(&outcomes)))))
    }

    /// The tasks that are meant, and where to go on. Those of a group that did not fail are none of them, but a
    /// task that was named is, so that somebody is told why nothing was done.
    async fn meant(&self, which: &DeadOnes) -> Result<(Vec<Row>, Option<TaskId>), ErrorReply> {
        match which {
            DeadOnes::Named(reference) => {
                let mut rows = self.find(reference).await?;
                if rows.len() > 1 {
                    rows.retain(|row| matches!(row.task.state, task::State::Ended { outcome: Ending::Failed, .. }));
                }
                Ok((rows, None))
            }
            DeadOnes::All { only, ended_for_ms, before } => {
                let list = ListTasks { only: only.clone(), limit: AT_ONCE, dead: true, ..ListTasks::default() };
                let now = self.shared.store.now().await.map_err(unavailable)?;
                let long = Duration::from_millis(*ended_for_ms);
                let old = |row: &Row| row.task.ended_at.is_some_and(|at| now.since(at) >= long);
                let mut before = *before;
                // Some may be too young: a page without any that is meant is not the end.
                loop {
                    let (mut rows, next) = self.page(&ListTasks { before, ..list.clone() }).await?;
                    rows.retain(|row| old(row) && self.access.reaches(row));
                    before = next;
                    if !rows.is_empty() || before.is_none() {
                        return Ok((rows, before));
                    }
                }
            }
        }
    }

    /// Takes a task out of the dead letter, and makes the one that does it again.
    fn again(&self, old: TaskId, new: TaskId, group: Option<Member>, fresh: bool) -> [Change; 2] {
        let taken = Arc::new(Mutex::new(None));
        let by = self.access.owner.clone();
        let settle = settle(old, Settled::Retried(new), by.clone(), Some(taken.clone()));
        let make = move |now| {
            let old: Row = taken.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let decision = task::again(&old.task, new, group, by, fresh, now)
                .inspect_err(|refusal| tracing::error!(task = %old.task.id, %refusal, "cannot be done again"))
                .ok()?;
            let event = NewEvent {
                audience: Audience::Namespace(old.task.namespace.clone()),
                kind: "task.submitted",
                task: Some(new),
                worker: None,
                text: format!("{} by {}, does {} again", new.short(), decision.task.owner, old.task.id.short()),
            };
            Some(Write { row: Row::new(decision.task, None), records: decision.records, events: vec![event] })
        };
        [settle, Change::Create { id: new, make: Box::new(make) }]
    }
}

/// Takes a task out of the dead letter, if it is in there: `taken` is told then.
fn settle(id: TaskId, how: Settled, by: String, taken: Option<Arc<Mutex<Option<Row>>>>) -> Change {
    let decide = move |row: &Row, _| {
        task::settle(&row.task, row.settled)?;
        let after = Row { settled: Some(how), ..row.clone() };
        if let Some(taken) = taken {
            *taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(after.clone());
        }
        let (kind, text) = match how {
            Settled::Retried(new) => ("task.retried", format!("{} by {by} as {}", id.short(), new.short())),
            Settled::Purged => ("task.purged", format!("{} by {by}", id.short())),
        };
        let audience = Audience::Namespace(row.task.namespace.clone());
        let event = NewEvent { audience, kind, task: Some(id), worker: None, text };
        Ok(Write { row: after, records: Vec::new(), events: vec![event] })
    };
    Change::Update { id, decide: Box::new(decide) }
}

fn settled(task: TaskId, outcome: &Outcome) -> SettledTask {
    let (settled, unchanged) = match outcome {
        Outcome::Applied(write) => (write.row.settled, None),
        Outcome::Refused(refusal, row) => {
            let why = match refusal {
                Refusal::Already(_) | Refusal::NotOver => format!("has not failed: it is {}", row.task.state_word()),
                other => other.to_string(),
            };
            (row.settled, Some(why))
        }
        Outcome::Missing => (None, Some("gone".into())),
        Outcome::Locked => (None, Some("busy: try again".into())),
    };
    SettledTask { task, settled, unchanged }
}

/// For the audit log.
fn said(which: &DeadOnes) -> String {
    match which {
        DeadOnes::Named(reference) => reference.clone(),
        DeadOnes::All { ended_for_ms: 0, .. } => "all".into(),
        DeadOnes::All { ended_for_ms, .. } => format!("all that ended {} s ago or more", ended_for_ms / 1000),
    }
}
