//! Answers to what tasks ask.

use ado_proto::request::{AnswerGiven, ErrorCode, ErrorReply, GiveAnswer, encode_response};
use ado_proto::{AskId, TaskId};

use super::Asked;
use crate::controller::Shared;
use crate::controller::fleet;
use crate::controller::session::event_of;
use crate::queue::Word;
use crate::store::{Change, Outcome, Row, Unit, Write};
use crate::task::{self, Command, Refusal};

impl Asked<'_> {
    /// Accepts an answer, once.
    pub(super) async fn give_answer(&self, request: GiveAnswer) -> Result<Vec<u8>, ErrorReply> {
        if let Some(answer) = self.replayed::<GiveAnswer>().await? {
            return Ok(answer);
        }
        let rows = self.find(&request.reference).await?;
        let [row] = rows.as_slice() else {
            let message = format!("`{}` means {} tasks: each asks for itself", request.reference, rows.len());
            return Err(ErrorReply::new(ErrorCode::Ambiguous, message).hint("ado list --waiting"));
        };
        let id = row.task.id;
        // Which question is meant is decided now, and stays.
        let Some(ask) = request.ask.or_else(|| only(row)) else { return Err(refusal(row, &unclear(row))) };
        let change = self.give(id, ask, &request);
        let audit = self.audit("GiveAnswer", format!("{} {ask}", id.short()));
        let once = self.once::<GiveAnswer>({
            let given = request.answer.clone();
            move |outcomes| match outcomes {
                [outcome] => given_to(id, ask, outcome),
                _ => AnswerGiven { task: id, ask, answer: given, unchanged: Some("gone".into()) },
            }
        });
        let (outcomes, kept) =
            self.commit(Unit { changes: vec![change], once: once.await?, audit: Some(audit) }).await?;
        match outcomes.first() {
            Some(Outcome::Applied(write)) => {
                self.shared.tell_answers(&write.row);
                Ok(kept.unwrap_or_else(|| encode_response(&Ok(given_to(id, ask, &outcomes[0])))))
            }
            Some(Outcome::Refused(Refusal::Answered, _)) => {
                Ok(kept.unwrap_or_else(|| encode_response(&Ok(given_to(id, ask, &outcomes[0])))))
            }
            Some(Outcome::Refused(why, row)) => Err(refusal(row, why)),
            Some(Outcome::Missing) => Err(ErrorReply::new(ErrorCode::NotFound, "the task is gone")),
            Some(Outcome::Locked) => Err(ErrorReply::new(ErrorCode::Busy, "the task is busy").hint("try again")),
            None => kept.ok_or_else(|| ErrorReply::new(ErrorCode::Internal, "no answer was kept")),
        }
    }

    fn give(&self, id: TaskId, ask: AskId, request: &GiveAnswer) -> Change {
        let (answer, by, policy) = (request.answer.clone(), self.access.owner.clone(), self.shared.policy);
        let decide = move |row: &Row, now| {
            let command = Command::Answer { ask: Some(ask), answer, by };
            let decision = task::decide(&row.task, command, now, &policy, 0.0)?;
            let events = decision.records.iter().filter_map(|record| event_of(id, &decision.task, record)).collect();
            Ok(Write { row: Row::new(decision.task, row.lease.clone()), records: decision.records, events })
        };
        Change::Update { id, decide: Box::new(decide) }
    }
}

impl Shared {
    /// Tells the worker of a task what was answered. What gets lost is said again with its next heartbeat.
    pub(in crate::controller) fn tell_answers(&self, row: &Row) {
        let (Some(lease), Some(answers)) = (&row.lease, fleet::answers(&row.task)) else { return };
        if self.fleet.is_connected(lease.worker) {
            self.fleet.tell(lease.worker, lease.incarnation, answers);
        } else {
            self.say(Word::Wanted { task: row.task.id, worker: lease.worker });
        }
    }
}

/// The only question that is open.
fn only(row: &Row) -> Option<AskId> {
    let mut open = row.task.asks.iter().filter(|open| open.answer.is_none());
    open.next().filter(|_| open.next().is_none()).map(|open| open.ask.id)
}

/// Why it is not clear which question is meant.
fn unclear(row: &Row) -> Refusal {
    let open = row.task.asks.iter().filter(|open| open.answer.is_none()).count();
    match (&row.task.state, open) {
        (task::State::Ended { outcome, .. }, _) => Refusal::Already(*outcome),
        (_, 0) if row.task.asks.is_empty() && row.task.given.is_empty() => Refusal::NotAsked,
        (_, 0) => Refusal::Answered,
        (_, several) => Refusal::SeveralAsked(several),
    }
}

fn refusal(row: &Row, why: &Refusal) -> ErrorReply {
    let short = row.task.id.short();
    match why {
        Refusal::NotAsked => ErrorReply::new(ErrorCode::Conflict, format!("{short} asks nothing, or not that"))
            .hint(format!("ado status {short}"))
            .hint("ado list --waiting"),
        Refusal::SeveralAsked(_) => ErrorReply::new(ErrorCode::Ambiguous, format!("{short}: {why}"))
            .hint(format!("ado status {short} shows them; name one with --ask")),
        Refusal::NoAnswer(words) => ErrorReply::new(ErrorCode::Invalid, format!("{short}: {words}")),
        other => ErrorReply::new(ErrorCode::Conflict, format!("{short}: {other}")),
    }
}

fn given_to(task: TaskId, ask: AskId, outcome: &Outcome) -> AnswerGiven {
    let nothing = || ado_proto::record::Answer { choice: None, text: None };
    let of = |row: &Row| {
        let open = row.task.asks.iter().find(|open| open.ask.id == ask);
        open.and_then(|open| open.answer.clone()).unwrap_or_else(nothing)
    };
    match outcome {
        Outcome::Applied(write) => AnswerGiven { task, ask, answer: of(&write.row), unchanged: None },
        Outcome::Refused(refusal, row) => {
            AnswerGiven { task, ask, answer: of(row), unchanged: Some(refusal.to_string()) }
        }
        Outcome::Missing | Outcome::Locked => {
            AnswerGiven { task, ask, answer: nothing(), unchanged: Some("busy or gone: try again".into()) }
        }
    }
}
