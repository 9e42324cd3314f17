//! `ado task progress`: say how far a task is.

use ado_proto::inside::Say;
use serde_json::json;

use super::{AT_ONCE, done, say};
use crate::cli::Global;
use crate::cli::error::Error;

/// Say how far this task is
///
/// Shown by `ado status`, `ado list` and whoever watches. What is left out stays as it was. Of many reports the newest
/// counts, ten times a second.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A percentage, what the task does now, or both: 40 "compiling"
    #[arg(value_name = "PERCENT] [MESSAGE", num_args = 1..=2, required = true, allow_negative_numbers = true)]
    words: Vec<String>,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<u8, Error> {
    let (percent, message) = read(args.words)?;
    let words = Say::Progress { percent, message: message.clone() };
    say(&words, Some(AT_ONCE), "ado task progress 40 compiling")?;
    done(global, || json!({ "type": "progress", "percent": percent, "message": message }))
}

/// One word is a percentage if it looks like a number, else a message.
fn read(words: Vec<String>) -> Result<(Option<u8>, Option<String>), Error> {
    let mut words = words.into_iter();
    let (first, second) = (words.next().unwrap_or_default(), words.next());
    let number = first.strip_suffix('%').unwrap_or(&first);
    match (number.parse::<f64>(), second) {
        (Err(_), None) => Ok((None, Some(first))),
        (_, message) => match number.parse() {
            Ok(percent @ 0..=100) => Ok((Some(percent), message)),
            _ => Err(Error::usage(format!("`{first}` is no whole percentage from 0 to 100"))
                .hint("ado task progress 40 compiling")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(words: &[&str]) -> Option<(Option<u8>, Option<String>)> {
        read(words.iter().map(ToString::to_string).collect()).ok()
    }

    #[test]
    fn numbers_are_percentages_and_words_are_messages() {
        assert_eq!(reads(&["40"]), Some((Some(40), None)));
        assert_eq!(reads(&["100%", "done"]), Some((Some(100), Some("done".into()))));
        assert_eq!(reads(&["compiling"]), Some((None, Some("compiling".into()))));
        assert_eq!(reads(&["0", "40"]), Some((Some(0), Some("40".into()))));
        for wrong in [&["101"][..], &["-1"], &["4.5"], &["compiling", "40"], &["", "x"]] {
            assert_eq!(reads(wrong), None, "{wrong:?}");
        }
    }
}
