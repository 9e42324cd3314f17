//! Which tasks a list is of, as far as no index knows it. Pure.

use ado_proto::Timestamp;
use ado_proto::request::TaskFilter;

use crate::task::Task;

/// Clocks of ids and of commits agree to within this: a task whose id is later than another's was not submitted earlier by
/// more.
const SLACK_MICROS: i64 = 600 * 1_000_000;

/// Whether a task fits. Group and name are the store's to look at.
pub(super) fn fits(task: &Task, only: &TaskFilter) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
    same(&only.agent, &task.spec.agent)
        && same(&only.pool, &task.spec.pool)
        && only.owner.as_ref().is_none_or(|owner| is_owner(&task.owner, owner))
        && only.worker.as_ref().is_none_or(|worker| is_worker(task, worker))
        && only.labels.iter().all(|(key, value)| task.spec.labels.get(key) == Some(value))
        && only.since.is_none_or(|since| task.created_at >= since)
}

/// Whether anything is asked that only looking at tasks can tell.
pub(super) fn looks_at_tasks(only: &TaskFilter) -> bool {
    let TaskFilter { group: _, name: _, owner, agent, pool, worker, labels, since } = only;
    [owner, agent, pool, worker].into_iter().any(Option::is_some) || !labels.is_empty() || since.is_some()
}

/// Whether no task that is older than this one can fit.
pub(super) fn is_past(task: &Task, only: &TaskFilter) -> bool {
    only.since.is_some_and(|Timestamp(since)| task.created_at.0 < since.saturating_sub(SLACK_MICROS))
}

/// `role/name`, or the name alone.
fn is_owner(owner: &str, wanted: &str) -> bool {
    owner == wanted || owner.split_once('/').is_some_and(|(_, name)| name == wanted)
}

/// Held, or last held, by a worker of this name or id.
fn is_worker(task: &Task, wanted: &str) -> bool {
    task.worker.as_ref().is_some_and(|holder| {
        holder.name == wanted || wanted.parse::<ado_proto::WorkerId>().is_ok_and(|wanted| holder.id == wanted)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ado_proto::record::Submitted;
    use ado_proto::spec::{Input, TaskSpec};
    use ado_proto::{Namespace, TaskId, WorkerId};
    use uuid::Uuid;

    use super::*;
    use crate::task::{self, Holder};

    fn task() -> Task {
        let mut spec = TaskSpec::new("shell", Input::Text("true".into()));
        spec.labels = BTreeMap::from([("gpu".into(), "yes".into()), ("zone".into(), "a".into())]);
        let submitted =
            Submitted { namespace: Namespace::default(), owner: "user/ann".into(), name: None, group: None, spec };
        let mut task = task::submit(TaskId(Uuid::from_u128(1)), submitted, Timestamp(1_000)).task;
        task.worker = Some(Holder { id: WorkerId(Uuid::from_u128(2)), name: "box-1".into() });
        task
    }

    #[test]
    fn every_question_decides_alone_and_all_together() {
        let check = |change: &dyn Fn(&mut TaskFilter), expected: bool| {
            let mut only = TaskFilter::default();
            change(&mut only);
            assert_eq!(fits(&task(), &only), expected, "{only:?}");
            assert!(looks_at_tasks(&only), "{only:?}");
        };
        let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        for owner in ["user/ann", "ann"] {
            check(&|only| only.owner = Some(owner.into()), true);
        }
        for owner in ["admin/ann", "user", "an", "user/", "/ann", ""] {
            check(&|only| only.owner = Some(owner.into()), false);
        }
        check(&|only| only.agent = Some("shell".into()), true);
        check(&|only| only.agent = Some("noop".into()), false);
        check(&|only| only.pool = Some("default".into()), true);
        check(&|only| only.pool = Some("gpu".into()), false);
        for worker in ["box-1", "00000000-0000-0000-0000-000000000002"] {
            check(&|only| only.worker = Some(worker.into()), true);
        }
        for worker in ["box", "00000000-0000-0000-0000-000000000003"] {
            check(&|only| only.worker = Some(worker.into()), false);
        }
        check(&|only| only.labels = label("gpu", "yes"), true);
        check(&|only| only.labels = label("gpu", "no"), false);
        check(&|only| only.labels = label("disk", "yes"), false);
        check(&|only| only.since = Some(Timestamp(1_000)), true);
        check(&|only| only.since = Some(Timestamp(1_001)), false);
        check(&|only| (only.agent, only.pool) = (Some("shell".into()), Some("gpu".into())), false);
    }

    #[test]
    fn nothing_asked_is_all_and_needs_no_look() {
        let labelled = TaskFilter { group: Some("g".into()), name: Some("n".into()), ..TaskFilter::default() };
        for only in [TaskFilter::default(), labelled] {
            assert!(fits(&task(), &only) && !looks_at_tasks(&only) && !is_past(&task(), &only));
        }
        let nobody = Task { worker: None, ..task() };
        assert!(!fits(&nobody, &TaskFilter { worker: Some("box-1".into()), ..TaskFilter::default() }));
    }

    #[test]
    fn the_past_begins_some_time_before_the_instant_asked_for() {
        let since = |since| TaskFilter { since: Some(Timestamp(since)), ..TaskFilter::default() };
        assert!(!is_past(&task(), &since(1_001)), "an older one may have been committed later");
        assert!(is_past(&task(), &since(1_001 + SLACK_MICROS)));
    }
}
