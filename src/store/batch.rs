//! One batch of changes over rows that are locked: runs the decisions in order, lets later ones see earlier ones, and
//! collects what is to be written. Every store runs this between its lock and its write.

use std::collections::{BTreeMap, BTreeSet};

use ado_proto::record::Record;
use ado_proto::{Offset, TaskId, Timestamp};

use super::{Audit, Change, NewEvent, Outcome, Row, Write};
use crate::task::{FoldError, Refusal, Task};

/// The tasks that a batch changes, as they are now.
pub(super) struct Batch {
    now: Timestamp,
    staged: BTreeMap<TaskId, Staged>,
    events: Vec<NewEvent>,
}

/// A task in a batch.
pub(super) struct Staged {
    /// As the changes so far left it.
    pub(super) row: Row,
    /// To be appended to its log.
    pub(super) records: Vec<Record>,
    /// Whether a change was applied.
    pub(super) changed: bool,
}

/// The tasks that changes name.
pub(super) fn ids<'a>(changes: impl IntoIterator<Item = &'a Change>) -> BTreeSet<TaskId> {
    changes.into_iter().map(|(Change::Create { id, .. } | Change::Update { id, .. })| *id).collect()
}

/// The line of the audit log of a unit with these outcomes.
pub(super) fn audited(audit: Audit, outcomes: &[Outcome]) -> Audit {
    let refused = |outcome: &Outcome| match outcome {
        Outcome::Applied(_) => None,
        Outcome::Refused(refusal, _) => Some(refusal.to_string()),
        Outcome::Missing => Some("no such task".into()),
        Outcome::Locked => Some("locked".into()),
    };
    match outcomes.iter().map(refused).collect::<Option<Vec<_>>>().unwrap_or_default().into_iter().next() {
        Some(result) => Audit { result, ..audit },
        None => audit,
    }
}

impl Batch {
    /// A batch at `now` over the rows that exist of those it names.
    pub(super) fn new(now: Timestamp, rows: impl IntoIterator<Item = Row>) -> Self {
        let stage = |row: Row| (row.task.id, Staged { row, records: Vec::new(), changed: false });
        Self { now, staged: rows.into_iter().map(stage).collect(), events: Vec::new() }
    }

    /// Runs the changes of one unit.
    pub(super) fn run(&mut self, changes: Vec<Change>) -> Vec<Outcome> {
        changes.into_iter().map(|change| self.change(change)).collect()
    }

    /// What is to be written: changed tasks in order of id, events in order of their changes.
    pub(super) fn finish(self) -> (Vec<Staged>, Vec<NewEvent>) {
        (self.staged.into_values().filter(|staged| staged.changed).collect(), self.events)
    }

    fn change(&mut self, change: Change) -> Outcome {
        match change {
            Change::Create { id, make } => match self.staged.get(&id) {
                Some(staged) => {
                    Outcome::Refused(Refusal::Fold(FoldError::NotTheBeginning), Box::new(staged.row.clone()))
                }
                None => match make(self.now) {
                    Some(write) => self.stage(id, write),
                    None => Outcome::Missing,
                },
            },
            Change::Update { id, decide } => match self.staged.get(&id) {
                Some(staged) => match decide(&staged.row, self.now) {
                    Ok(write) => self.stage(id, write),
                    Err(refusal) => Outcome::Refused(refusal, Box::new(staged.row.clone())),
                },
                None => Outcome::Missing,
            },
        }
    }

    /// A write whose records do not continue the log is refused alone: it must not take the batch with it.
    fn stage(&mut self, id: TaskId, write: Write) -> Outcome {
        let before = self.staged.get(&id);
        if let Err(error) = check(id, before.map(|staged| &staged.row.task), &write) {
            let row = before.map_or(write.row, |staged| staged.row.clone());
            return Outcome::Refused(Refusal::Fold(error), Box::new(row));
        }
        let staged = self.staged.entry(id).or_insert_with(|| Staged {
            row: write.row.clone(),
            records: Vec::new(),
            changed: false,
        });
        staged.row.clone_from(&write.row);
        staged.records.extend_from_slice(&write.records);
        staged.changed = true;
        self.events.extend_from_slice(&write.events);
        Outcome::Applied(Box::new(write))
    }
}

/// Whether the records can be read again, are dense from the end of the log and lead to the row.
fn check(id: TaskId, before: Option<&Task>, write: &Write) -> Result<(), FoldError> {
    if before.is_none() && write.records.is_empty() {
        return Err(FoldError::NotTheBeginning);
    }
    let mut next = before.map_or(Offset(0), |task| task.next_offset);
    for record in &write.records {
        if record.offset != next {
            return Err(FoldError::Offset { found: record.offset, expected: next });
        }
        // Nobody could read it again, nor what lies beside it.
        if !record.body.is_readable() {
            return Err(FoldError::TooLong(record.offset));
        }
        next = next.next();
    }
    if write.row.task.next_offset != next {
        return Err(FoldError::Offset { found: write.row.task.next_offset, expected: next });
    }
    debug_assert_eq!(
        fold(id, before.cloned(), &write.records).as_ref(),
        Ok(&write.row.task),
        "the row is the fold of its log"
    );
    Ok(())
}

/// The fold of `records` over `task`, or from the beginning of a log.
fn fold(id: TaskId, task: Option<Task>, records: &[Record]) -> Result<Task, FoldError> {
    let (mut task, rest) = match (task, records) {
        (Some(task), records) => (task, records),
        (None, [first, rest @ ..]) => (Task::begin(id, first)?, rest),
        (None, []) => return Err(FoldError::NotTheBeginning),
    };
    rest.iter().try_for_each(|record| task.apply(record))?;
    Ok(task)
}
