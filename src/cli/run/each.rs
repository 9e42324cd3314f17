//! `--each`: a task for every line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::MOST_TASKS;
use crate::cli::error::{Error, Kind};

/// Longest file that is read, bytes: the request has to fit one message of the protocol.
const LONGEST: u64 = 16 * 1024 * 1024;

/// The lines of a file, or of stdin (`-`), that are not empty.
pub(super) fn read(file: &Path) -> Result<Vec<String>, Error> {
    let name = if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
    let cannot = |error| Error::new(Kind::Local, format!("--each: cannot read {name}")).because(error);
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes).map_err(cannot)?;
    } else {
        File::open(file).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    }
    if bytes.len() as u64 > LONGEST {
        return Err(Error::usage(format!("--each: {name} is longer than {} MiB", LONGEST >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::usage(format!("--each: {name} is not UTF-8")))?;
    lines(&text, &name)
}

fn lines(text: &str, name: &str) -> Result<Vec<String>, Error> {
    let lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(Into::into).collect();
    match lines.len() {
        0 => Err(Error::usage(format!("--each: {name} has no line with text: there is nothing to run"))),
        count if count > MOST_TASKS => {
            let error =
                Error::usage(format!("--each: {name} has {count} lines, but a group has at most {MOST_TASKS} tasks"));
            Err(error.hint(format!("split -l {MOST_TASKS} {name}")))
        }
        _ => Ok(lines),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Format;

    #[test]
    fn every_line_with_text_is_a_task() {
        assert_eq!(lines("a b\n\n  \r\n c\r\nd", "f").unwrap(), ["a b", " c", "d"]);
        let empty = lines(" \n\n", "f").unwrap_err().render(Format::Text);
        assert!(empty.starts_with("error: --each: f has no line with text"), "{empty}");
        let many = lines(&"x\n".repeat(1001), "f").unwrap_err().render(Format::Text);
        assert!(many.contains("1001 lines") && many.contains("hint: split -l 1000 f"), "{many}");
    }
}
