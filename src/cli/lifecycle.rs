//! What happens to a task, in words for people; and the exit code it means. Pure.

use ado_proto::record::{Body, Desired, Ended, Loss, Outcome, Record};
use ado_proto::spec::Exit;

use super::error::{ADO_ERROR, TIMED_OUT};
use super::output::one_line;

/// Exit code of a cancelled task.
const CANCELLED: u8 = 130;
/// Exit code of an AI agent that says that it has failed: its process's own says nothing.
const AGENT_FAILED: u8 = 1;
/// Longest text from elsewhere in a line.
const WIDTH: usize = 400;

/// The words a record is worth, if any; and whether they are told even where nobody watches a terminal: what the exit code
/// does not say.
pub(crate) fn words(record: &Record) -> Option<(String, bool)> {
    let (matters, words) = match &record.body {
        Body::Submitted(_) => (false, "queued".into()),
        Body::Assigned(assigned) if assigned.attempt > 1 => {
            let name = one_line(&assigned.worker_name, WIDTH);
            (false, format!("assigned to {name}, attempt {}", assigned.attempt))
        }
        Body::Assigned(assigned) => (false, format!("assigned to {}", one_line(&assigned.worker_name, WIDTH))),
        Body::DesiredChanged(change) => {
            let words = match change.desired {
                Desired::Running => "resume asked for",
                Desired::Paused => "pause asked for",
                Desired::Cancelled => "cancellation asked for",
            };
            (false, format!("{words} by {}", one_line(&change.by, WIDTH)))
        }
        Body::Paused(_) => (false, "paused".into()),
        Body::Resumed(_) => (false, "resumed".into()),
        Body::WorkerLost(lost) => {
            let why = match lost.why {
                Loss::Silent => "it went silent",
                Loss::Restarted => "it died and came back",
                Loss::NotDelivered => "it never got the task",
                Loss::HandedBack => "it is shutting down",
            };
            (true, format!("worker lost: {why}"))
        }
        Body::Requeued(requeued) => (true, format!("queued again: {}", one_line(&requeued.why, WIDTH))),
        Body::Ended(ended) => (ending_matters(ended), ending(ended)),
        Body::Truncated(gap) if gap.bytes == 0 => (true, "more of its output is no longer kept".into()),
        Body::Truncated(gap) => (true, format!("{} bytes of its output are no longer kept", gap.bytes)),
        Body::Note(note) => (true, one_line(&note.text, WIDTH)),
        Body::Checkpointed(_) => (false, "checkpoint".into()),
        Body::Expired(expired) => (true, format!("timed out: its {} limit is over", expired.limit.as_str())),
        Body::Retries(retries) => {
            (false, format!("does {} again, asked for by {}", retries.task.short(), one_line(&retries.by, WIDTH)))
        }
        Body::Asked(asked) => {
            let choices: Vec<_> = asked.choices.iter().map(|choice| choice.id.as_str()).collect();
            let words = one_line(&format!("{} ({})", asked.text, choices.join(", ")), WIDTH);
            (true, format!("asks: {words}; `ado answer` answers"))
        }
        Body::Answered(answered) => {
            let what = answered.answer.text.as_ref().or(answered.answer.choice.as_ref());
            let what = one_line(what.map_or("nothing", String::as_str), WIDTH);
            match &answered.by {
                Some(by) => (false, format!("answered by {}: {what}", one_line(by, WIDTH))),
                None => (true, format!("nobody answered in time: {what}")),
            }
        }
        // Progress is a status line's to show.
        Body::AskClosed(_)
        | Body::Used(_)
        | Body::Started(_)
        | Body::Exited(_)
        | Body::Output(_)
        | Body::Skipped(_)
        | Body::Progress(_)
        | Body::Unknown { .. } => return None,
    };
    Some((words, matters))
}

/// How a task ended, in words.
pub(crate) fn ending(ended: &Ended) -> String {
    let word = crate::json::outcome_word(ended.outcome);
    match &ended.error {
        Some(error) => format!("{word}: {}", one_line(error, WIDTH)),
        None => word.into(),
    }
}

/// An exit code or a signal of the agent is in the exit code of the command; other failures are not.
fn ending_matters(ended: &Ended) -> bool {
    ended.outcome == Outcome::Failed && !matches!(ended.exit, Some(Exit::Code(_) | Exit::Signal(_)))
}

/// The exit code of a command that watched a task to its end.
pub(crate) fn exit_code(outcome: Outcome, exit: Option<&Exit>) -> u8 {
    match (outcome, exit) {
        (Outcome::Completed, _) => 0,
        (Outcome::Cancelled, _) => CANCELLED,
        // What the kernel keeps of an exit code. A failure never looks like success.
        (Outcome::Failed, Some(Exit::Code(code) | Exit::Hopeless { code, .. })) => match (*code & 0xff) as u8 {
            0 => ADO_ERROR,
            code => code,
        },
        (Outcome::Failed, Some(Exit::Signal(signal))) => u8::try_from(128 + signal).unwrap_or(ADO_ERROR),
        (Outcome::Failed, Some(Exit::Failed { .. })) => AGENT_FAILED,
        // As if it had been killed by hand.
        (Outcome::Failed, Some(Exit::OutOfMemory { .. })) => 137,
        (Outcome::Failed, Some(Exit::TimedOut(_))) => TIMED_OUT,
        (Outcome::Failed, Some(Exit::Cancelled)) => CANCELLED,
        (Outcome::Failed, Some(Exit::NotStarted { .. } | Exit::Lost { .. } | Exit::Unavailable { .. }) | None) => {
            ADO_ERROR
        }
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, Note, Requeued, WorkerLost};
    use ado_proto::spec::Limit;
    use ado_proto::{Epoch, Offset, Origin, Timestamp, WorkerId};
    use uuid::Uuid;

    use super::*;

    #[track_caller]
    fn check(body: impl Into<Body>, expected: Option<(&str, bool)>) {
        let record = Record { offset: Offset(1), origin: Origin::Controller, time: Timestamp(0), body: body.into() };
        assert_eq!(words(&record), expected.map(|(words, matters)| (words.into(), matters)));
    }

    #[test]
    fn lines() {
        let worker = WorkerId(Uuid::nil());
        let assigned =
            |attempt| Assigned { worker, worker_name: "box\u{1b}[2J".into(), epoch: Epoch(1), attempt, resumes: None };
        check(assigned(1), Some(("assigned to box\u{fffd}[2J", false)));
        check(assigned(2), Some(("assigned to box\u{fffd}[2J, attempt 2", false)));
        check(
            WorkerLost { worker, epoch: Epoch(1), why: Loss::Silent, charged: false },
            Some(("worker lost: it went silent", true)),
        );
        check(
            Requeued { not_before: Timestamp(0), charged: true, why: "exited with code 3".into() },
            Some(("queued again: exited with code 3", true)),
        );
        check(Note { text: "disk\nfull".into() }, Some(("disk full", true)));
    }

    #[test]
    fn an_ending_matters_when_the_exit_code_does_not_tell() {
        let ended = |outcome, exit, error: Option<&str>| Ended { outcome, exit, error: error.map(Into::into) };
        check(ended(Outcome::Completed, Some(Exit::Code(0)), None), Some(("completed", false)));
        check(
            ended(Outcome::Failed, Some(Exit::Code(3)), Some("exited with code 3")),
            Some(("failed: exited with code 3", false)),
        );
        check(
            ended(Outcome::Failed, Some(Exit::TimedOut(Limit::Attempt)), Some("timed out: ran for 1s")),
            Some(("failed: timed out: ran for 1s", true)),
        );
        check(ended(Outcome::Cancelled, None, None), Some(("cancelled", false)));
    }

    #[test]
    fn exit_codes() {
        let lost = Exit::Lost { error: "x".into() };
        let missing = Exit::NotStarted { error: "x".into(), permanent: true };
        for (outcome, exit, code) in [
            (Outcome::Completed, Some(Exit::Code(0)), 0),
            (Outcome::Failed, Some(Exit::Code(3)), 3),
            (Outcome::Failed, Some(Exit::Code(256)), 125),
            (Outcome::Failed, Some(Exit::Code(-1)), 255),
            (Outcome::Failed, Some(Exit::Signal(9)), 137),
            (Outcome::Failed, Some(Exit::Signal(1000)), 125),
            (Outcome::Failed, Some(Exit::TimedOut(Limit::Attempt)), 124),
            (Outcome::Failed, Some(Exit::TimedOut(Limit::Total)), 124),
            (Outcome::Failed, Some(Exit::OutOfMemory { limit: 1 }), 137),
            (Outcome::Failed, Some(missing), 125),
            (Outcome::Failed, Some(lost), 125),
            (Outcome::Failed, None, 125),
            (Outcome::Cancelled, Some(Exit::Code(0)), 130),
            (Outcome::Cancelled, None, 130),
        ] {
            assert_eq!(exit_code(outcome, exit.as_ref()), code, "{outcome:?} {exit:?}");
        }
    }
}
