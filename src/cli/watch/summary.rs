//! How a group ended: a sentence, what to type next, one exit code. Pure.

use ado_proto::record::{Ended, Outcome};
use ado_proto::{GroupId, TaskId};
use serde_json::{Value, json};

use super::super::lifecycle::{ending, exit_code};

/// Most failures that are told one by one.
const MOST_FAILURES: usize = 5;
/// Most commands to type next.
const MOST_HINTS: usize = 3;

/// How a member ended; `None` where that is not known.
pub(crate) type Member<'a> = (TaskId, Option<&'a Ended>);

/// The exit code of a group: the first that is not zero, by index.
pub(crate) fn code(members: &[Member<'_>]) -> u8 {
    let codes =
        members.iter().filter_map(|(_, ended)| ended.map(|ended| exit_code(ended.outcome, ended.exit.as_ref())));
    codes.into_iter().find(|code| *code != 0).unwrap_or(0)
}

/// `group-…: 3 completed, 1 failed (2: exited with code 3)`, and commands that show more of the failures.
pub(crate) fn text(group: GroupId, members: &[Member<'_>]) -> (String, Vec<String>) {
    let count = |outcome| ended(members).filter(|(_, _, ended)| ended.outcome == outcome).count();
    let failed: Vec<_> = ended(members).filter(|(_, _, ended)| ended.outcome == Outcome::Failed).collect();
    let mut parts = Vec::new();
    let mut part = |count: usize, word: &str, more: String| {
        if count > 0 {
            parts.push(format!("{count} {word}{more}"));
        }
    };
    part(count(Outcome::Completed), "completed", String::new());
    part(failed.len(), "failed", reasons(&failed));
    part(count(Outcome::Cancelled), "cancelled", String::new());
    part(members.len() - ended(members).count(), "not over", String::new());
    let hints = failed.iter().take(MOST_HINTS).map(|(_, task, _)| format!("logs {}", task.short())).collect();
    (format!("{}: {}", group.short(), parts.join(", ")), hints)
}

/// The same for programs.
pub(crate) fn event(group: GroupId, members: &[Member<'_>]) -> Value {
    let count = |outcome| ended(members).filter(|(_, _, ended)| ended.outcome == outcome).count();
    let tasks = members.iter().enumerate().map(|(index, (task, ended))| {
        json!({
            "index": index,
            "taskId": task,
            "result": ended.map(|ended| crate::json::result(ended.outcome, ended.exit.as_ref())),
            "error": ended.and_then(|ended| ended.error.as_ref()),
        })
    });
    json!({
        "type": "summary",
        "groupId": group,
        "shortId": group.short(),
        "completed": count(Outcome::Completed),
        "failed": count(Outcome::Failed),
        "cancelled": count(Outcome::Cancelled),
        "exitCode": code(members),
        "tasks": tasks.collect::<Vec<_>>(),
    })
}

fn ended<'a>(members: &'a [Member<'_>]) -> impl Iterator<Item = (usize, TaskId, &'a Ended)> {
    members.iter().enumerate().filter_map(|(index, (task, ended))| Some((index, *task, (*ended)?)))
}

/// ` (2: exited with code 3; 4: …)`
fn reasons(failed: &[(usize, TaskId, &Ended)]) -> String {
    let reason = |(index, _, ended): &(usize, TaskId, &Ended)| {
        let words = ending(ended);
        format!("{index}: {}", words.strip_prefix("failed: ").unwrap_or(&words))
    };
    let mut reasons: Vec<_> = failed.iter().take(MOST_FAILURES).map(reason).collect();
    if failed.len() > MOST_FAILURES {
        reasons.push(format!("and {} more", failed.len() - MOST_FAILURES));
    }
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

#[cfg(test)]
mod tests {
    use ado_proto::spec::Exit;
    use uuid::Uuid;

    use super::*;

    fn task(number: u128) -> TaskId {
        TaskId(Uuid::from_u128(number))
    }

    fn failed(code: i32) -> Ended {
        let error = Some(format!("exited with code {code}"));
        Ended { outcome: Outcome::Failed, exit: Some(Exit::Code(code)), error }
    }

    const DONE: Ended = Ended { outcome: Outcome::Completed, exit: Some(Exit::Code(0)), error: None };
    const CANCELLED: Ended = Ended { outcome: Outcome::Cancelled, exit: None, error: None };

    #[test]
    fn a_sentence_and_what_to_type_next() {
        let (three, four) = (failed(3), failed(4));
        let group = GroupId(Uuid::from_u128(1));
        let members = [(task(0), Some(&DONE)), (task(1), Some(&DONE)), (task(2), Some(&three)), (task(3), None)];
        assert_eq!(
            text(group, &members),
            (
                "group-0000000001: 2 completed, 1 failed (2: exited with code 3), 1 not over".into(),
                vec!["logs task-0000000002".into()]
            ),
        );
        assert_eq!(text(group, &[(task(0), Some(&DONE))]), ("group-0000000001: 1 completed".into(), Vec::new()));
        let many: Vec<_> = (0..7).map(|number| (task(number), Some(&four))).collect();
        let (sentence, hints) = text(group, &many);
        assert!(sentence.ends_with("4: exited with code 4; and 2 more)"), "{sentence}");
        assert_eq!(hints.len(), 3);
    }

    #[test]
    fn the_exit_code_is_the_first_that_is_not_zero() {
        let (three, four) = (failed(3), failed(4));
        assert_eq!(code(&[(task(0), Some(&DONE)), (task(1), Some(&four)), (task(2), Some(&three))]), 4);
        assert_eq!(code(&[(task(0), Some(&CANCELLED)), (task(1), Some(&four))]), 130);
        assert_eq!(code(&[(task(0), Some(&DONE)), (task(1), None)]), 0);
    }

    #[test]
    fn programs_get_every_member() {
        let three = failed(3);
        let event = event(GroupId(Uuid::from_u128(1)), &[(task(0), Some(&DONE)), (task(1), Some(&three))]);
        assert_eq!((&event["completed"], &event["failed"], &event["exitCode"]), (&json!(1), &json!(1), &json!(3)));
        assert_eq!(event["tasks"][1]["result"], json!({ "outcome": "failed", "exitCode": 3 }));
    }
}
