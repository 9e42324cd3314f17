//! Where what was written leaves a terminal: at the beginning of a line or not, and in which colours. Pure.
//!
//! Reads text as [`super::super::filter::Filter`] lets it through: the only sequences in it are colours.

/// Longest list of colour sequences that is remembered, bytes. Programs that never reset drop their oldest.
const LONGEST: usize = 256;
const ESC: u8 = 0x1b;

/// The state of a terminal, as far as text changes it.
#[derive(Debug, Clone)]
pub(crate) struct Pen {
    at_line_start: bool,
    /// The colour sequences since the last reset, end to end.
    colours: Vec<u8>,
}

impl Default for Pen {
    fn default() -> Self {
        Self { at_line_start: true, colours: Vec::new() }
    }
}

impl Pen {
    /// Text was written.
    pub(crate) fn saw(&mut self, text: &[u8]) {
        let mut rest = text;
        while let Some(at) = rest.iter().position(|byte| *byte == ESC) {
            self.saw_plain(&rest[..at]);
            let Some(end) = rest[at..].iter().position(|byte| *byte == b'm') else { return };
            self.saw_colour(&rest[at..=at + end]);
            rest = &rest[at + end + 1..];
        }
        self.saw_plain(rest);
    }

    /// Bytes were written that may hold anything.
    pub(crate) fn saw_raw(&mut self, bytes: &[u8]) {
        self.saw_plain(bytes);
    }

    /// Whether the cursor is where a line begins that nothing was written on.
    pub(crate) fn at_line_start(&self) -> bool {
        self.at_line_start
    }

    /// What switches on the colours that are on; empty when none are.
    pub(crate) fn colours(&self) -> &[u8] {
        &self.colours
    }

    fn saw_plain(&mut self, text: &[u8]) {
        if let Some(last) = text.last() {
            self.at_line_start = *last == b'\n';
        }
    }

    fn saw_colour(&mut self, sequence: &[u8]) {
        let parameters = sequence.strip_prefix(b"\x1b[").and_then(|rest| rest.strip_suffix(b"m")).unwrap_or_default();
        let first = parameters.split(|byte| *byte == b';').next().unwrap_or_default();
        if first.iter().all(|byte| *byte == b'0') {
            self.colours.clear();
        }
        if parameters.iter().all(|byte| matches!(byte, b'0' | b';')) {
            return;
        }
        self.colours.extend_from_slice(sequence);
        while self.colours.len() > LONGEST {
            let oldest = self.colours[1..].iter().position(|byte| *byte == ESC).map_or(self.colours.len(), |at| at + 1);
            self.colours.drain(..oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, at_line_start: bool, colours: &str) {
        let mut pen = Pen::default();
        pen.saw(text.as_bytes());
        assert_eq!((pen.at_line_start(), std::str::from_utf8(pen.colours()).unwrap()), (at_line_start, colours));
    }

    #[test]
    fn colours_move_no_cursor() {
        check("", true, "");
        check("a", false, "");
        check("a\n", true, "");
        check("a\n\x1b[31m", true, "\x1b[31m");
        check("a\n\x1b[31mb", false, "\x1b[31m");
        check("a\r", false, "");
    }

    #[test]
    fn what_is_on_is_what_came_since_the_last_reset() {
        check("\x1b[31mred\x1b[1mbold\n", true, "\x1b[31m\x1b[1m");
        check("\x1b[31mred\x1b[0m\n", true, "");
        check("\x1b[31mred\x1b[m\n", true, "");
        check("\x1b[31mred\x1b[0;32mgreen\n", true, "\x1b[0;32m");
        check("\x1b[31m\x1b[38;5;0mblack\n", true, "\x1b[31m\x1b[38;5;0m");
    }

    #[test]
    fn programs_that_never_reset_cost_little() {
        let mut pen = Pen::default();
        for n in 0..1000 {
            pen.saw(format!("\x1b[38;5;{}mx", n % 256).as_bytes());
        }
        assert!(pen.colours().len() <= LONGEST && pen.colours().ends_with(b"\x1b[38;5;231m"));
        assert!(pen.colours().starts_with(b"\x1b["));
    }
}
