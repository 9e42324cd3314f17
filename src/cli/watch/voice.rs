//! One of several tasks that write at once: its lines stay whole and begin with its number. Pure.

use ado_proto::record::Stream;

use super::pen::Pen;
use super::sheet::{Sheet, index};

/// Longest line that is kept whole, bytes; what a task has of a longer one goes out when it is this much. A thousand tasks
/// that write to both streams hold 32 MiB.
const LONGEST_LINE: usize = 16 * 1024;
/// Ticks after which an unfinished line is shown on a terminal: it may be a question, or dots that tell progress.
const PATIENCE: u8 = 5;

/// Colours that tell tasks apart on dark and on light terminals. None of them looks like an error.
const COLOURS: [&str; 8] = ["36", "33", "32", "35", "34", "96", "93", "95"];

/// What a task says, line by line.
#[derive(Debug)]
pub(crate) struct Voice {
    index: u32,
    lines: [Line; 2],
}

#[derive(Debug)]
struct Line {
    prefix: String,
    terminal: bool,
    held: Vec<u8>,
    /// Colours where the held text begins.
    pen: Pen,
    ticks: u8,
}

/// The number of a task in its group of `count`, as it is shown.
pub(crate) fn prefix(index: u32, count: u32, terminal: bool, colour: bool) -> String {
    if !terminal {
        return format!("[{index}] ");
    }
    let width = count.saturating_sub(1).to_string().len();
    let number = format!("[{index:>width$}]");
    match colour {
        true => format!("\x1b[{}m{number}\x1b[0m ", COLOURS[index as usize % COLOURS.len()]),
        false => format!("{number} "),
    }
}

impl Voice {
    /// The voice of the member `index` of `count`; which streams are terminals that controls may not reach.
    pub(crate) fn new(index: u32, count: u32, terminal: [bool; 2], colour: bool) -> Self {
        let line = |terminal| Line {
            prefix: prefix(index, count, terminal, colour),
            terminal,
            held: Vec::new(),
            pen: Pen::default(),
            ticks: 0,
        };
        Self { index, lines: terminal.map(line) }
    }

    /// The task wrote this.
    pub(crate) fn write(&mut self, stream: Stream, text: &[u8], sheet: &mut Sheet) {
        for part in text.split_inclusive(|byte| *byte == b'\n') {
            let line = &mut self.lines[index(stream)];
            // Pieces, so that no text makes a line longer than its bound.
            for piece in part.chunks(LONGEST_LINE) {
                if line.held.is_empty() {
                    line.ticks = 0;
                }
                line.held.extend_from_slice(piece);
                if line.held.ends_with(b"\n") || line.held.len() >= LONGEST_LINE {
                    line.release((self.index, stream), sheet);
                }
            }
        }
    }

    /// Whether the beginning of a line waits for its end.
    pub(crate) fn holds(&self, stream: Stream) -> bool {
        !self.lines[index(stream)].held.is_empty()
    }

    /// A line of our own about the task.
    pub(crate) fn say(&self, text: &str, sheet: &mut Sheet) {
        sheet.say(&format!("{}{text}", self.lines[index(Stream::Stderr)].prefix));
    }

    /// Time passes: what waits for too long is shown on a terminal. In a pipe nobody waits for half a line.
    pub(crate) fn tick(&mut self, sheet: &mut Sheet) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = &mut self.lines[index(stream)];
            line.ticks = line.ticks.saturating_add(1);
            if line.terminal && line.ticks > PATIENCE {
                line.release((self.index, stream), sheet);
            }
        }
    }

    /// The task writes no more, or is watched no longer: what is left of its lines is a line.
    pub(crate) fn finish(&mut self, sheet: &mut Sheet) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = &mut self.lines[index(stream)];
            if !line.held.is_empty() {
                line.held.push(b'\n');
                line.release((self.index, stream), sheet);
            }
        }
    }
}

impl Line {
    fn release(&mut self, who: (u32, Stream), sheet: &mut Sheet) {
        let text = std::mem::take(&mut self.held);
        if text.is_empty() {
            return;
        }
        if !self.terminal {
            return sheet.spoken(who, &self.prefix, &text);
        }
        let (text, end) = match text.strip_suffix(b"\n") {
            Some(text) => (text, &b"\n"[..]),
            None => (text.as_slice(), &b""[..]),
        };
        let mut shown = self.pen.colours().to_vec();
        self.pen.saw(text);
        self.show(text, &mut shown);
        if !self.pen.colours().is_empty() || shown.contains(&0x1b) {
            shown.extend_from_slice(b"\x1b[0m");
        }
        shown.extend_from_slice(end);
        sheet.spoken(who, &self.prefix, &shown);
    }

    /// A carriage return takes the terminal back to where the prefix is: it is written again.
    fn show(&self, text: &[u8], shown: &mut Vec<u8>) {
        let mut parts = text.strip_suffix(b"\r").unwrap_or(text).split(|byte| *byte == b'\r');
        shown.extend_from_slice(parts.next().unwrap_or_default());
        for part in parts {
            shown.push(b'\r');
            shown.extend_from_slice(self.prefix.as_bytes());
            shown.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stdout and stderr are told.
    fn told(sheet: &mut Sheet) -> [String; 2] {
        let mut told = [String::new(), String::new()];
        for (stream, bytes) in sheet.take().pieces() {
            told[index(*stream)].push_str(std::str::from_utf8(bytes).unwrap());
        }
        told
    }

    #[test]
    fn lines_of_different_tasks_never_mix() {
        let mut sheet = Sheet::new([false; 2], false);
        let mut voices = [0, 1].map(|index| Voice::new(index, 2, [false; 2], false));
        voices[0].write(Stream::Stdout, b"he", &mut sheet);
        voices[1].write(Stream::Stdout, b"one\ntw", &mut sheet);
        voices[0].write(Stream::Stderr, b"oops\n", &mut sheet);
        voices[0].write(Stream::Stdout, b"llo\n", &mut sheet);
        voices[1].finish(&mut sheet);
        assert_eq!(told(&mut sheet), ["[1] one\n[0] hello\n[1] tw\n", "[0] oops\n"]);
    }

    #[test]
    fn a_pipe_gets_the_bytes_after_the_prefix() {
        let mut sheet = Sheet::new([false; 2], false);
        let mut voice = Voice::new(3, 40, [false; 2], true);
        voice.write(Stream::Stdout, b"\x1b]0;x\x07 10%\r20%\x1b[31m\r\n", &mut sheet);
        voice.tick(&mut sheet);
        assert_eq!(told(&mut sheet)[0], "[3] \x1b]0;x\x07 10%\r20%\x1b[31m\r\n");
    }

    #[test]
    fn a_line_that_never_ends_is_cut_without_losing_a_byte() {
        let mut sheet = Sheet::new([false; 2], false);
        let mut voices = [0, 1].map(|index| Voice::new(index, 2, [false; 2], false));
        voices[0].write(Stream::Stdout, &[b'x'; LONGEST_LINE + 3], &mut sheet);
        let long = "x".repeat(LONGEST_LINE);
        assert_eq!(told(&mut sheet)[0], format!("[0] {long}"));
        voices[0].write(Stream::Stdout, b"y\n", &mut sheet);
        assert_eq!(told(&mut sheet)[0], "xxxy\n", "nobody came between");
        voices[0].write(Stream::Stdout, &[b'x'; LONGEST_LINE], &mut sheet);
        voices[1].write(Stream::Stdout, b"me too\n", &mut sheet);
        voices[0].write(Stream::Stdout, b"y\n", &mut sheet);
        assert_eq!(told(&mut sheet)[0], format!("[0] {long}\n[1] me too\n[0] y\n"));
    }

    #[test]
    fn prefixes_on_a_terminal() {
        assert_eq!(prefix(3, 12, true, false), "[ 3] ");
        assert_eq!(prefix(9, 12, true, true), "\x1b[33m[ 9]\x1b[0m ");
        let some: std::collections::BTreeSet<_> = (0..8).map(|index| prefix(index, 8, true, true)).collect();
        assert_eq!(some.len(), 8);
    }

    #[test]
    fn on_a_terminal_colours_stay_with_their_task() {
        let mut sheet = Sheet::new([true; 2], false);
        let mut voices = [0, 1].map(|index| Voice::new(index, 2, [true; 2], false));
        voices[0].write(Stream::Stdout, b"\x1b[31mred\n", &mut sheet);
        voices[1].write(Stream::Stdout, b"plain\n", &mut sheet);
        voices[0].write(Stream::Stdout, b"still\x1b[0m\nplain\n", &mut sheet);
        assert_eq!(
            told(&mut sheet)[0],
            "[0] \x1b[31mred\x1b[0m\n[1] plain\n[0] \x1b[31mstill\x1b[0m\x1b[0m\n[0] plain\n"
        );
    }

    #[test]
    fn on_a_terminal_a_carriage_return_keeps_the_prefix() {
        let mut sheet = Sheet::new([true; 2], false);
        let mut voice = Voice::new(0, 2, [true; 2], false);
        voice.write(Stream::Stdout, b"10%\r20%\r\n", &mut sheet);
        assert_eq!(told(&mut sheet)[0], "[0] 10%\r[0] 20%\n");
    }

    #[test]
    fn on_a_terminal_half_a_line_is_shown_after_a_while() {
        let mut sheet = Sheet::new([true; 2], false);
        let mut voices = [0, 1].map(|index| Voice::new(index, 2, [true; 2], false));
        voices[0].write(Stream::Stdout, b"sure? ", &mut sheet);
        for _ in 0..PATIENCE {
            voices[0].tick(&mut sheet);
        }
        assert_eq!(told(&mut sheet)[0], "");
        voices[0].tick(&mut sheet);
        assert_eq!(told(&mut sheet)[0], "[0] sure? ");
        voices[1].write(Stream::Stderr, b"other\n", &mut sheet);
        voices[0].write(Stream::Stdout, b"yes\n", &mut sheet);
        assert_eq!(told(&mut sheet), ["[0] yes\n", "\n[1] other\n"]);
    }
}
