//! What a task asks, shown under the output of whoever watches it on a terminal, and answered with a key. Pure.

use ado_proto::record::{Asked, Body, Record};
use ado_proto::{AskId, TaskId};

/// Choices that have a key: one to nine. The others, and words, are for `ado answer`.
const KEYS: usize = 9;

/// The questions of one task that nobody has answered, as its log tells.
#[derive(Debug, Default)]
pub(crate) struct Questions(Vec<Asked>);

impl Questions {
    /// A record was seen.
    pub(crate) fn saw(&mut self, record: &Record) {
        match &record.body {
            Body::Asked(asked) => self.0.push(asked.clone()),
            Body::Answered(answered) => self.forget(answered.ask),
            Body::AskClosed(closed) => self.forget(closed.ask),
            Body::Assigned(_) | Body::Exited(_) | Body::WorkerLost(_) | Body::Expired(_) | Body::Ended(_) => {
                self.0.clear();
            }
            _ => {}
        }
    }

    /// Nothing more is to be done about a question here.
    pub(crate) fn forget(&mut self, ask: AskId) {
        self.0.retain(|asked| asked.id != ask);
    }

    /// The one that is shown.
    pub(crate) fn first(&self) -> Option<&Asked> {
        self.0.first()
    }
}

/// The lines that show it.
pub(crate) fn lines(task: TaskId, asked: &Asked) -> [String; 2] {
    let keys = asked.choices.iter().take(KEYS).enumerate().map(|(at, choice)| format!("{} {}", at + 1, choice.label));
    let mut keys: Vec<_> = keys.collect();
    if asked.free_text || keys.is_empty() {
        keys.push(format!("in words: ado answer {} --text …", task.short()));
    }
    [format!("{} asks: {}", task.short(), asked.text), format!("  {}", keys.join("  "))]
}

/// The choice that a key means, by its id.
pub(crate) fn choice<'a>(asked: &'a Asked, key: &[u8]) -> Option<&'a str> {
    let [digit @ b'1'..=b'9'] = key else { return None };
    asked.choices.get(usize::from(digit - b'1')).map(|choice| choice.id.as_str())
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Answer, Answered, AskKind, Choice};
    use ado_proto::{AskDigest, Offset, Origin, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn asked(number: u128) -> Asked {
        let choice = |id: &str| Choice { id: id.into(), label: format!("{id} it") };
        Asked {
            id: AskId(Uuid::from_u128(number)),
            digest: AskDigest(Uuid::nil()),
            kind: AskKind::Permission { tool: "Bash".into() },
            text: "may it use Bash: ls".into(),
            detail: "{}".into(),
            choices: vec![choice("allow"), choice("deny")],
            free_text: false,
            default: None,
            wait_ms: None,
        }
    }

    fn record(body: impl Into<Body>) -> Record {
        Record { offset: Offset(0), origin: Origin::Controller, time: Timestamp(0), body: body.into() }
    }

    #[test]
    fn a_question_is_shown_until_somebody_has_answered_and_keys_are_its_choices() {
        let mut questions = Questions::default();
        questions.saw(&record(asked(1)));
        questions.saw(&record(asked(2)));
        let first = questions.first().expect("one");
        let shown = lines(TaskId(Uuid::from_u128(7)), first);
        assert_eq!(shown, ["task-0000000007 asks: may it use Bash: ls", "  1 allow it  2 deny it"]);
        assert_eq!((choice(first, b"2"), choice(first, b"3"), choice(first, b"x")), (Some("deny"), None, None));
        let answer = Answer { choice: Some("allow".into()), text: None };
        questions.saw(&record(Answered { ask: AskId(Uuid::from_u128(1)), answer, by: None }));
        assert_eq!(questions.first().map(|asked| asked.id.0.as_u128()), Some(2));
        questions.saw(&record(ado_proto::record::Exited { exit: ado_proto::spec::Exit::Code(0) }));
        assert_eq!(questions.first(), None);
    }
}
