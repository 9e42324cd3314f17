//! What went wrong, for people and for programs.

use std::fmt::Write as _;

use ado_proto::{ErrorCode, ErrorReply};
use serde_json::json;

use super::output::{Format, plain};
use crate::{client, local, net};

/// Exit code of an error of ado itself.
pub(crate) const ADO_ERROR: u8 = 125;
/// Exit code of what took longer than it may: a task, or waiting for one.
pub(crate) const TIMED_OUT: u8 = 124;

/// What kind of error: picks the exit code and the word programs see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line, the configuration or the controller's view of them.
    Usage,
    /// The controller said no.
    Refused(u16),
    /// Nobody answers.
    Network,
    /// Certificates or keys.
    Identity,
    /// The processes or files on this machine.
    Local,
    /// The user stopped it before anything was done.
    Interrupted,
    /// It took longer than the user wants to wait.
    TimedOut,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::TimedOut => TIMED_OUT,
            Self::Usage | Self::Refused(_) | Self::Network | Self::Identity | Self::Local => ADO_ERROR,
        }
    }

    fn word(self) -> &'static str {
        const CODES: [(ErrorCode, &str); 13] = [
            (ErrorCode::NotFound, "not_found"),
            (ErrorCode::Ambiguous, "ambiguous"),
            (ErrorCode::Invalid, "invalid"),
            (ErrorCode::Denied, "denied"),
            (ErrorCode::Conflict, "conflict"),
            (ErrorCode::Stale, "stale"),
            (ErrorCode::Unavailable, "unavailable"),
            (ErrorCode::Busy, "busy"),
            (ErrorCode::UnsupportedVersion, "unsupported_version"),
            (ErrorCode::BadToken, "bad_token"),
            (ErrorCode::BadCertificate, "bad_certificate"),
            (ErrorCode::Internal, "internal"),
            (ErrorCode::Stopping, "stopping"),
        ];
        match self {
            Self::Usage => "usage",
            Self::Refused(code) => {
                CODES.iter().find(|(known, _)| *known as u16 == code).map_or("refused", |(_, word)| word)
            }
            Self::Network => "network",
            Self::Identity => "identity",
            Self::Local => "local",
            Self::Interrupted => "interrupted",
            Self::TimedOut => "timed_out",
        }
    }
}

/// An error of a command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    /// What kind.
    pub(crate) kind: Kind,
    /// What was wrong, with which value, in lower case.
    message: String,
    /// Why.
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// Commands to type next.
    hints: Vec<String>,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, hints: Vec::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    #[must_use]
    pub(crate) fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Commands to type next talk to the mesh that was meant by `flag`, unless they name one or make a member of one.
    #[must_use]
    pub(crate) fn of_mesh(mut self, flag: &str) -> Self {
        let at_home =
            |hint: &&mut String| !["--context", "--remote", "ado join"].iter().any(|word| hint.contains(word));
        for hint in self.hints.iter_mut().filter(at_home) {
            if let Some(words) = hint.strip_prefix("ado ") {
                *hint = format!("ado {flag} {words}");
            }
        }
        self
    }

    /// The exit code of the program.
    pub(crate) fn code(&self) -> u8 {
        self.kind.code()
    }

    /// What is printed to stderr, with its last newline.
    pub(crate) fn render(&self, format: Format) -> String {
        match format {
            Format::Text => {
                let mut text = format!("error: {}\n", plain(&self.chain()));
                for hint in &self.hints {
                    let _ = writeln!(text, "hint: {}", plain(hint));
                }
                text
            }
            Format::Json => {
                let error = json!({
                    "kind": self.kind.word(),
                    "message": self.chain(),
                    "hints": self.hints,
                    "exitCode": self.code(),
                });
                format!("{}\n", json!({ "type": "error", "error": error }))
            }
        }
    }

    fn chain(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {}", self.message, causes(source.as_ref())),
            None => self.message.clone(),
        }
    }
}

/// An error and all that caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", causes(source)),
        None => error.to_string(),
    }
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Net(error) => error.into(),
            client::Error::Certs(error) => error.into(),
            client::Error::Violation(violation) => {
                Self::new(Kind::Network, "the controller does not send the log in order").because(violation)
            }
        }
    }
}

impl From<net::Error> for Error {
    fn from(error: net::Error) -> Self {
        match error {
            net::Error::Refused(reply) => reply.into(),
            net::Error::Certificate(text) => Self::new(Kind::Identity, text).hint("ado join <join string>"),
            net::Error::Version(text) => {
                Self::new(Kind::Network, text).hint("install the same version of ado on both sides")
            }
            error => Self::new(Kind::Network, causes(&error)),
        }
    }
}

impl From<ErrorReply> for Error {
    fn from(reply: ErrorReply) -> Self {
        Self { kind: Kind::Refused(reply.code), message: reply.message, source: None, hints: reply.hints }
    }
}

impl From<ado_certs::Error> for Error {
    fn from(error: ado_certs::Error) -> Self {
        Self::new(Kind::Identity, causes(&error))
    }
}

impl From<local::Error> for Error {
    fn from(error: local::Error) -> Self {
        let hint = match &error {
            local::Error::WillNotStop { pid, .. } => Some(format!("kill -9 {pid}")),
            local::Error::Silent(_) | local::Error::NotReady { .. } => Some("ado down; ado up".into()),
            _ => None,
        };
        let mut own = Self::new(Kind::Local, causes(&error));
        own.hints.extend(hint);
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_shown_as_the_controller_said_it() {
        let reply =
            ErrorReply::new(ErrorCode::Ambiguous, "`task-7k2m` means 2 tasks: task-7k2m9x0qvb, task-7k2mzzzzzz")
                .hint("give more characters");
        let error = Error::from(reply);
        assert_eq!(
            error.render(Format::Text),
            "error: `task-7k2m` means 2 tasks: task-7k2m9x0qvb, task-7k2mzzzzzz\nhint: give more characters\n",
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&error.render(Format::Json)).unwrap(),
            json!({"type": "error", "error": {
                "kind": "ambiguous",
                "message": "`task-7k2m` means 2 tasks: task-7k2m9x0qvb, task-7k2mzzzzzz",
                "hints": ["give more characters"],
                "exitCode": 125,
            }}),
        );
    }

    #[test]
    fn hints_talk_to_the_mesh_that_was_meant() {
        let error =
            Error::usage("x").hint("ado list --all").hint("ado join <join string>").hint("ado --context a list");
        let shown = error.of_mesh("--remote").render(Format::Text);
        let expected = "hint: ado --remote list --all\nhint: ado join <join string>\nhint: ado --context a list\n";
        assert_eq!(shown, format!("error: x\n{expected}"));
    }

    #[test]
    fn causes_follow_in_one_line_and_cannot_steer_the_terminal() {
        let cause = std::io::Error::other("disk \u{1b}]0;gone\u{7}");
        let error = Error::new(Kind::Local, "cannot write the log").because(cause);
        assert_eq!(error.render(Format::Text), "error: cannot write the log: disk \u{fffd}]0;gone\u{fffd}\n");
        assert_eq!(error.code(), 125);
        assert_eq!(Error::new(Kind::Interrupted, "stopped").code(), 130);
        let io = std::io::Error::other("no space");
        let folder = ado_certs::Error::Io { doing: "create", path: "/x".into(), source: io };
        let expected = "error: cannot create /x: no space\n";
        assert_eq!(Error::from(local::Error::Certs(folder)).render(Format::Text), expected);
    }
}
