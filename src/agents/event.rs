//! What drivers say of their agents, the same for all of them. Values only.

use ado_proto::AskDigest;
use ado_proto::record::{AskKind, Choice};
use ado_proto::spec::Usage;
use serde_json::Value;
use uuid::Uuid;

/// Something an agent did.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The agent's own words, as they come.
    Text(String),
    /// What came on its stdout and is no frame: a line without its end.
    Stray(Vec<u8>),
    /// It calls a tool.
    ToolBegan(Tool),
    /// A tool has ended. Everything before is in the agent's own files: a checkpoint may be taken here.
    ToolEnded {
        /// The agent's own word for which call.
        call: String,
    },
    /// What it does now: one line.
    Doing(String),
    /// It asks, and waits for [`super::Driver::answer`].
    Asks(Question),
    /// It does not want an answer any more.
    Withdrawn {
        /// [`Question::id`].
        id: String,
    },
    /// Something people should know though nothing has failed yet: one line.
    Warning(String),
    /// Its name of the conversation.
    Session(String),
    /// What it has used so far in this run.
    Used(Usage),
    /// It has said how its run ended. Nothing it says counts after that.
    Ended(Outcome),
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// The agent's own word for which call.
    pub call: String,
    /// The agent's name of the tool.
    pub name: String,
    /// What it is to do: one line.
    pub summary: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The agent did what it was asked.
    Done,
    /// It did not. Another try may.
    Failed(String),
    /// It did not, and another try would end in the same way.
    Hopeless(String),
    /// What it needs was not to be had.
    Away {
        /// What, and why not.
        what: String,
        /// How long it is of no use to try again, milliseconds, if anybody said.
        retry_after_ms: Option<u64>,
    },
}

impl Outcome {
    /// Of a model's API that answered with an error, or (`None`) did not answer.
    pub fn of_api(status: Option<u64>, message: &str) -> Self {
        let away = |what: &str| {
            let what = if message.is_empty() { what.to_owned() } else { format!("{what}: {}", one_line(message, 300)) };
            Self::Away { what, retry_after_ms: None }
        };
        match status {
            None => away("the model's API could not be reached"),
            Some(code @ (401 | 403)) => away(&format!("the model's API did not accept the credential ({code})")),
            Some(402) => away("the model's API wants to be paid (402)"),
            Some(429) => away("the model's API is limiting requests (429)"),
            Some(code @ 500..) => away(&format!("the model's API has failed or is overloaded ({code})")),
            Some(code) => {
                Self::Failed(format!("the model's API refused the request ({code}): {}", one_line(message, 300)))
            }
        }
    }
}

/// What an agent asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The agent's own word for it.
    pub id: String,
    /// What kind.
    pub kind: AskKind,
    /// What rules of permissions are about; `None`: no rule answers it.
    pub subject: Option<Subject>,
    /// For people: one line.
    pub text: String,
    /// All of it, as the agent has it.
    pub detail: Value,
    /// What can be answered.
    pub choices: Vec<Choice>,
    /// Whether words are an answer.
    pub free_text: bool,
    /// The choice that stands for "nobody answers".
    pub default: Option<String>,
}

impl Question {
    /// The same for the same question of another run.
    pub fn digest(&self) -> AskDigest {
        let tool = match &self.kind {
            AskKind::Permission { tool } => tool.as_str(),
            AskKind::Question => "",
        };
        let text = format!("{tool}\0{}\0{}", self.text, self.detail);
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let first: [u8; 16] = digest.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes");
        AskDigest(Uuid::from_bytes(first))
    }
}

/// A use of a tool, as rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The agent's name of the tool.
    pub tool: String,
    /// What kind of tool it is, the same for all agents.
    pub class: Class,
    /// The command, the path, the address: whatever it is about.
    pub about: String,
}

/// Kinds of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Runs a command.
    Shell,
    /// Changes files.
    Edit,
    /// Reads files.
    Read,
    /// Asks the network.
    Fetch,
    /// Anything else.
    Other,
}

impl Class {
    /// Its name in rules.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Edit => "edit",
            Self::Read => "read",
            Self::Fetch => "fetch",
            Self::Other => "other",
        }
    }
}

/// What a driver has to say: events for its worker, bytes for the agent's stdin.
#[derive(Debug, Default)]
pub struct Out {
    /// In order.
    pub events: Vec<Event>,
    /// Whole frames.
    pub bytes: Vec<u8>,
}

impl Out {
    pub(super) fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    /// A frame of its own line.
    pub(super) fn frame(&mut self, frame: &Value) {
        self.bytes.extend_from_slice(frame.to_string().as_bytes());
        self.bytes.push(b'\n');
    }
}

/// The words of a value: of a text its own, of anything else its JSON.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// At most so many bytes of text on one line: what comes from an agent may hold anything.
pub(super) fn one_line(text: &str, most: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > most {
        line.truncate(line.floor_char_boundary(most));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_that_is_away_is_nobodys_fault_and_a_bad_request_is() {
        let away = |status| matches!(Outcome::of_api(status, "injected"), Outcome::Away { .. });
        for status in [None, Some(401), Some(403), Some(429), Some(500), Some(529)] {
            assert!(away(status), "{status:?}");
        }
        assert!(!away(Some(400)) && !away(Some(404)) && !away(Some(413)));
        let Outcome::Away { what, .. } = Outcome::of_api(Some(529), "over\nloaded") else { panic!() };
        assert_eq!(what, "the model's API has failed or is overloaded (529): over loaded");
    }
}
