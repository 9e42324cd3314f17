//! `ado task checkpoint`: make a point to go on from.

use std::io::Read;

use ado_proto::inside::{MAX_LINE, Say};
use serde_json::json;
use serde_json::value::RawValue;

use super::{done, say};
use crate::cli::Global;
use crate::cli::error::Error;

/// Make a point that the next attempt goes on from
///
/// Returns once it is durable. When the task is tried again, wherever that is, the next attempt finds the data in the
/// variable ADO_CHECKPOINT; without a checkpoint the variable is not set. Once the task's folder was a part of one, it is a
/// part of all that follow.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the next attempt is told: JSON of at most 64 KiB; `-` reads it from standard input
    #[arg(long, value_name = "JSON|-", default_value = "{}", allow_hyphen_values = true)]
    data: String,
    /// Keep all that is in the task's folder, too: the next attempt begins with that
    #[arg(long)]
    workspace: bool,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<u8, Error> {
    let text = match args.data.as_str() {
        "-" => stdin()?,
        _ => args.data,
    };
    let id = say(
        &Say::Checkpoint { data: json(&text)?, workspace: args.workspace },
        None,
        r#"ado task checkpoint --data "{\"page\":7}""#,
    )?
    .checkpoint_id;
    done(global, || json!({ "type": "checkpoint", "checkpointId": id }))
}

fn stdin() -> Result<String, Error> {
    let mut text = String::new();
    // More would be refused; it need not be read.
    let read = std::io::stdin().take(MAX_LINE as u64).read_to_string(&mut text);
    read.map_err(|error| Error::usage("cannot read standard input as text").because(error))?;
    Ok(text)
}

/// The text as it is, on one line: a newline of JSON is no more than a space, since strings hold none.
fn json(text: &str) -> Result<Box<RawValue>, Error> {
    let read = |text: String| RawValue::from_string(text);
    let line = read(text.trim().into()).and_then(|json| read(json.get().replace(['\n', '\r'], " ")));
    line.map_err(|error| {
        Error::usage("the checkpoint's data is no JSON")
            .because(error)
            .hint(r#"ado task checkpoint --data '{"page": 7}'"#)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_many_lines_becomes_one() {
        assert_eq!(json("{\n  \"a\": 1,\r\n  \"b\": \"x\\ny\"\n}\n").unwrap().get(), r#"{   "a": 1,    "b": "x\ny" }"#);
        assert_eq!(json(" 12345678901234567890123.10 ").unwrap().get(), "12345678901234567890123.10");
        for wrong in ["", "{page: 7}", "{} {}", "\"a\nb"] {
            assert!(json(wrong).is_err(), "{wrong}");
        }
    }
}
