//! What a line from a task means. Pure; the line may be anything.

use ado_proto::inside::Say;
use ado_proto::record::{MAX_ANSWER, MAX_CHECKPOINT, MAX_CHOICES, MAX_MESSAGE, Progress};
use serde_json::Value;
use serde_json::value::RawValue;

use super::said::Verdict;

/// Longest part of a complaint, characters: it may quote the line.
const COMPLAINT: usize = 300;

/// Whoever reads that a task has failed wants to know why.
const NO_REASON: &str = "the message is empty: say what is wrong";

/// Something a task may say, within all limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Progress(Progress),
    Checkpoint {
        /// JSON text.
        data: String,
        /// The task's folder is a part of it.
        workspace: bool,
    },
    Note(String),
    Ask(Asking),
    Verdict(Verdict),
}

/// What a task asks somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asking {
    pub(super) text: String,
    /// None: words are the answer.
    pub(super) options: Vec<String>,
    pub(super) default: Option<String>,
    pub(super) wait_ms: Option<u64>,
}

/// Reads a line; what is wrong with it, for its writer.
pub(super) fn read(line: &[u8]) -> Result<Wish, String> {
    let text = std::str::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())?;
    match serde_json::from_str::<Say<Box<RawValue>>>(text) {
        Ok(Say::Progress { percent, message }) => progress(percent, message),
        Ok(Say::Checkpoint { data, workspace }) => {
            checkpoint(data.get()).map(|data| Wish::Checkpoint { data, workspace })
        }
        Ok(Say::Log { message }) => one_line(&message, "the log message is empty").map(Wish::Note),
        Ok(Say::Ask { message, options, default, wait_ms }) => ask(&message, &options, default, wait_ms),
        Ok(Say::Hopeless { message }) => {
            one_line(&message, NO_REASON).map(|error| Wish::Verdict(Verdict::Hopeless { error }))
        }
        Ok(Say::Unavailable { message, retry_after_ms }) => {
            one_line(&message, NO_REASON).map(|what| Wish::Verdict(Verdict::Unavailable { what, retry_after_ms }))
        }
        Err(error) => Err(complaint(text, &error)),
    }
}

fn progress(percent: Option<u8>, message: Option<String>) -> Result<Wish, String> {
    if let Some(percent) = percent.filter(|percent| *percent > 100) {
        return Err(bad_percent(&percent.to_string()));
    }
    if percent.is_none() && message.is_none() {
        return Err("progress says nothing: give a percent, a message, or both".into());
    }
    let message = message.map(|message| clean(&message)).transpose()?;
    Ok(Wish::Progress(Progress { percent, message }))
}

fn ask(message: &str, options: &[String], default: Option<String>, wait_ms: Option<u64>) -> Result<Wish, String> {
    let text = clean(message)?;
    if text.is_empty() {
        return Err("the question is empty: say what is asked".into());
    }
    if options.len() > MAX_CHOICES {
        return Err(format!("a question has at most {MAX_CHOICES} options, not {}", options.len()));
    }
    let options = options.iter().map(|option| clean(option)).collect::<Result<Vec<_>, _>>()?;
    if let Some(option) = options.iter().find(|option| option.is_empty() || option.len() > MAX_ANSWER) {
        return Err(format!("an option has 1 to {MAX_ANSWER} bytes, not {}", option.len()));
    }
    match &default {
        Some(default) if !options.contains(default) => {
            Err(format!("the default `{}` is none of the options", short(default)))
        }
        None if wait_ms.is_some() => Err("a time to wait needs a default: what is answered when it is over".into()),
        _ => Ok(Wish::Ask(Asking { text, options, default, wait_ms })),
    }
}

fn one_line(message: &str, when_empty: &str) -> Result<String, String> {
    let text = clean(message)?;
    if text.is_empty() { Err(when_empty.into()) } else { Ok(text) }
}

/// The text as it was written, where it is short enough: numbers keep all their digits.
fn checkpoint(raw: &str) -> Result<String, String> {
    // A raw value may be nested too deeply, or name half a character, for anybody to read it again.
    let value: Value = serde_json::from_str(raw).map_err(|error| format!("the checkpoint's data: {error}"))?;
    if raw.len() <= MAX_CHECKPOINT {
        return Ok(raw.to_owned());
    }
    let text = value.to_string();
    if text.len() > MAX_CHECKPOINT {
        let size = text.len();
        return Err(format!("the checkpoint's data has {size} bytes as JSON; at most {MAX_CHECKPOINT} are kept"));
    }
    Ok(text)
}

/// One line that cannot harm a terminal.
fn clean(message: &str) -> Result<String, String> {
    let spaced = message.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    let cleaned: String = spaced.filter(|c| !c.is_control() && !turns_text(*c)).collect();
    let cleaned = cleaned.trim();
    if cleaned.len() > MAX_MESSAGE {
        return Err(format!("the message has {} bytes; at most {MAX_MESSAGE} are kept", cleaned.len()));
    }
    Ok(cleaned.to_owned())
}

/// Marks that make what follows run the other way, on the same line.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn complaint(text: &str, error: &serde_json::Error) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let percent = &value["progress"]["percent"];
    let whole = percent.as_u64().is_some_and(|percent| percent <= 100);
    if !percent.is_null() && !whole {
        return bad_percent(&percent.to_string());
    }
    let example = r#"{"progress":{"percent":40}}, {"checkpoint":{"data":{}}} or {"log":{"message":"…"}}"#;
    format!("not understood ({}); say one of {example}", short(&error.to_string()))
}

fn bad_percent(percent: &str) -> String {
    format!("percent is a whole number from 0 to 100, not {}", short(percent))
}

fn short(text: &str) -> String {
    match text.char_indices().nth(COMPLAINT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn refused(line: &str, part: &str) {
        let error = read(line.as_bytes()).unwrap_err();
        assert!(error.contains(part), "{error}");
        assert!(error.len() < 2_000, "{error}");
    }

    fn progress(percent: Option<u8>, message: Option<&str>) -> Result<Wish, String> {
        Ok(Wish::Progress(Progress { percent, message: message.map(Into::into) }))
    }

    #[test]
    fn progress_is_a_percent_a_message_or_both() {
        let both = br#"{"progress":{"percent":40,"message":"compiling"}}"#;
        assert_eq!(read(both), progress(Some(40), Some("compiling")));
        assert_eq!(read(br#"{"progress":{"percent":0}}"#), progress(Some(0), None));
        assert_eq!(read(br#"{"progress":{"percent":100,"message":null}}"#), progress(Some(100), None));
        assert_eq!(read(br#"{"progress":{"message":""}}"#), progress(None, Some("")));
        refused(r#"{"progress":{}}"#, "says nothing");
        for percent in ["101", "255", "300", "-1", "40.5", r#""40""#, "1e400"] {
            refused(&format!(r#"{{"progress":{{"percent":{percent}}}}}"#), "");
        }
        refused(r#"{"progress":{"percent":101}}"#, "from 0 to 100, not 101");
        refused(r#"{"progress":{"percent":4000}}"#, "from 0 to 100, not 4000");
        refused(r#"{"progress":{"percent":40.5}}"#, "not 40.5");
    }

    #[test]
    fn messages_stay_on_their_line_and_harm_no_terminal() {
        let line = br#"{"log":{"message":" a\n\tb\u001b[31mc\u009b\u202ed\u2028e \u0000"}}"#;
        assert_eq!(read(line), Ok(Wish::Note("a  b[31mcd e".into())));
        refused(r#"{"log":{"message":"\n\u0007"}}"#, "empty");
        let long = "ä".repeat(MAX_MESSAGE / 2);
        let say = |message: &str| format!(r#"{{"log":{{"message":"{message}"}}}}"#);
        assert_eq!(read(say(&long).as_bytes()), Ok(Wish::Note(long.clone())));
        refused(&say(&format!("{long}x")), "4097 bytes; at most 4096");
    }

    #[test]
    fn a_checkpoint_is_any_json_to_the_last_digit() {
        let data = |json: &str| read(format!(r#"{{"checkpoint":{{"data":{json}}}}}"#).as_bytes());
        let wish = |json: &str| Wish::Checkpoint { data: json.into(), workspace: false };
        let whole = Wish::Checkpoint { data: "7".into(), workspace: true };
        assert_eq!(read(br#"{"checkpoint":{"data":7,"workspace":true}}"#), Ok(whole));
        for json in [r#"{"page":7}"#, "null", "[1, 2]", "123456789012345678901234567890.10", r#""a\u0000b""#] {
            assert_eq!(data(json), Ok(wish(json)));
        }
        let longest = format!("\"{}\"", "x".repeat(MAX_CHECKPOINT - 2));
        assert_eq!(data(&longest), Ok(wish(&longest)));
        // Escaped it is longer than it may be, as text it is not.
        let escaped = format!("\"{}\"", "\\u0078".repeat(MAX_CHECKPOINT - 2));
        assert_eq!(data(&escaped), Ok(wish(&longest)));
        let long = format!("\"{}\"", "x".repeat(MAX_CHECKPOINT - 1));
        assert!(data(&long).unwrap_err().contains("65537 bytes as JSON; at most 65536"));
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert!(data(&deep).unwrap_err().contains("recursion"));
        assert!(data(r#""\ud800""#).is_err(), "half a character");
    }

    #[test]
    fn a_question_has_options_or_takes_words() {
        let ask = |text: &str, options: &[&str], default: Option<&str>, wait_ms| {
            let options = options.iter().map(ToString::to_string).collect();
            Ok(Wish::Ask(Asking { text: text.into(), options, default: default.map(Into::into), wait_ms }))
        };
        assert_eq!(read(br#"{"ask":{"message":"Name?"}}"#), ask("Name?", &[], None, None));
        let timed = br#"{"ask":{"message":"Deploy?\n","options":["yes","no"],"default":"no","waitMs":5}}"#;
        assert_eq!(read(timed), ask("Deploy?", &["yes", "no"], Some("no"), Some(5)));
        refused(r#"{"ask":{"message":" "}}"#, "question is empty");
        refused(r#"{"ask":{"message":"x","options":[""]}}"#, "1 to 1024 bytes");
        refused(r#"{"ask":{"message":"x","options":["a"],"default":"b"}}"#, "`b` is none of the options");
        refused(r#"{"ask":{"message":"x","options":["a"],"waitMs":5}}"#, "needs a default");
        let many = (0..17).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(",");
        refused(&format!(r#"{{"ask":{{"message":"x","options":[{many}]}}}}"#), "at most 16 options, not 17");
    }

    #[test]
    fn everything_else_is_refused_with_an_example() {
        for line in ["", "x", "{}", "[]", r#"{"progress":4}"#, r#"{"kill":{}}"#, "{\"log\":{}}", "{\"checkpoint\":{}}"]
        {
            refused(line, "say one of {\"progress\"");
        }
        refused(r#"{"log":{"message":"x","task":"other"}}"#, "unknown field `task`");
        refused(r#"{"log":{"message":"x"}} {"log":{"message":"x"}}"#, "trailing");
        refused(&format!(r#"{{"{}":{{}}}}"#, "x".repeat(100_000)), "…");
        assert_eq!(read(b"{\"log\":{\"message\":\"\xff\"}}"), Err("the line is not UTF-8".into()));
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&line);
        }
    }
}
