//! How commands print what they found.

use std::io::{self, IsTerminal, Write};

use ado_proto::Timestamp;
use serde::Serialize;

use super::columns::{Scene, cut};

/// Text for people, JSON for programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    // For people.
    #[default]
    Text,
    // For programs.
    Json,
}

/// Prints one value: as a line of JSON, or as the text made for people.
pub(crate) fn print(format: Format, json: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
    let mut out = match format {
        Format::Text => text(),
        Format::Json => {
            let mut line = serde_json::to_string(json)?;
            line.push('\n');
            line
        }
    };
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    match write(&out) {
        // Whoever read has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes to stdout at once.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Width of a table that is not on a terminal.
const WIDTH: usize = 120;

/// How tables on stdout look.
pub(crate) fn scene(now: Timestamp) -> Scene {
    let width = terminal_size::terminal_size_of(io::stdout()).map_or(WIDTH, |(width, _)| usize::from(width.0));
    Scene { now, width, colours: colours(&io::stdout()) }
}

/// Whether a stream may be coloured: it is a terminal, and nobody has said no (<https://no-color.org>).
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Text from elsewhere, safe for a terminal: control characters other than newlines and tabs are replaced.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Text from elsewhere on one line of at most `width` characters.
pub(crate) fn one_line(text: &str, width: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    cut(&plain(&line), width)
}

/// A span of time in one short word: `42s`, `5m`, `3h`, `12d`.
pub(crate) fn age(span: std::time::Duration) -> String {
    match span.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds @ 3_600..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn text_from_elsewhere_stays_on_its_line() {
        assert_eq!(one_line("echo a\n\techo \u{1b}[31mb", 80), "echo a echo \u{fffd}[31mb");
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("äbcdefg", 6), "äbcde…");
        assert_eq!(one_line("abc", 0), "…");
    }

    #[test]
    fn spans() {
        let ages: Vec<_> = [0, 59, 60, 3_599, 7_200, 200_000].map(|s| age(Duration::from_secs(s))).into();
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "2h", "2d"]);
    }
}
