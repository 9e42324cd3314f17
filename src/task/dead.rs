//! The dead letter: tasks that failed for good, until somebody does them again or takes them out.
//!
//! A task's log ends with its end, viewers leave there, and whoever was told that it failed was told so for good: what
//! becomes of it afterwards stands beside its log. To do it again is a new task, which names the old one.

use ado_proto::record::{Checkpointed, Member, Outcome, Retries, Submitted};
use ado_proto::{TaskId, Timestamp};

use super::{Decision, Refusal, Settled, State, Task, submit};

/// Whether a task can be taken out of the dead letter: it has failed, and nobody did so before.
///
/// # Errors
/// [`Refusal`] when it is not in there.
pub fn settle(task: &Task, settled: Option<Settled>) -> Result<(), Refusal> {
    match (&task.state, settled) {
        (_, Some(settled)) => Err(Refusal::Settled(settled)),
        (State::Ended { outcome: Outcome::Failed, .. }, None) => Ok(()),
        (State::Ended { outcome, .. }, None) => Err(Refusal::Already(*outcome)),
        _ => Err(Refusal::NotOver),
    }
}

/// A new task that does a failed one again, from its last checkpoint unless `fresh`. Attempts and limits begin anew.
///
/// # Errors
/// [`Refusal`] when the log cannot be made.
pub fn again(
    task: &Task,
    id: TaskId,
    group: Option<Member>,
    by: String,
    fresh: bool,
    now: Timestamp,
) -> Result<Decision, Refusal> {
    let submitted = Submitted {
        namespace: task.namespace.clone(),
        owner: task.owner.clone(),
        name: task.name.clone(),
        group,
        spec: task.spec.clone(),
    };
    let mut decision = submit(id, submitted, now);
    decision.own(now, Retries { task: task.id, by })?;
    if let Some(checkpoint) = task.checkpoint.as_ref().filter(|_| !fresh) {
        decision.own(
            now,
            Checkpointed { id: checkpoint.id, data: checkpoint.data.to_string(), snapshot: checkpoint.snapshot },
        )?;
    }
    Ok(decision)
}
