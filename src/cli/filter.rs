//! Keeps an agent's output from steering the terminal it is shown on.
//!
//! Passes text, newlines, tabs, carriage returns and colours (SGR). Drops everything else that a terminal would act on:
//! titles, clipboard writes, queries it would answer as if typed, cursor movement, other character sets. Both spellings
//! of C1 controls count: one byte (0x80 to 0x9f) and UTF-8 (C2 80 to C2 9f). Pure, and indifferent to where the input is
//! split.

/// Longest parameter string of a colour sequence; longer ones are dropped.
const LONGEST_SGR: usize = 64;
const ESC: u8 = 0x1b;

/// The filter's memory between two pieces of one stream.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// Inside a UTF-8 character: this many continuation bytes are due.
    Character(u8),
    /// After C2, which may begin a C1 control. It is held back.
    Latin,
    /// After ESC.
    Escape,
    /// After ESC and intermediate bytes: one more byte ends it.
    EscapeIntermediate,
    /// In a control sequence; its parameters so far, `None` once it cannot be a colour.
    Csi(Option<Vec<u8>>),
    /// In a string that a terminal interprets: up to ST, BEL, CAN or SUB.
    String,
    /// After C2 in a string.
    StringLatin,
}

impl Filter {
    /// Appends what may be shown of `input` to `out`.
    pub(crate) fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        out.reserve(input.len());
        for byte in input {
            self.byte(*byte, out);
        }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        let state = std::mem::take(&mut self.state);
        self.state = match (state, byte) {
            (State::Character(due), 0x80..=0xbf) => {
                out.push(byte);
                if due > 1 { State::Character(due - 1) } else { State::Text }
            }
            (State::Latin, 0x80..=0x9f) => c1(byte),
            (State::Latin, 0xa0..=0xbf) => {
                out.extend_from_slice(&[0xc2, byte]);
                State::Text
            }
            (State::Text | State::Character(_) | State::Latin, _) => text(byte, out),
            // Within sequences CAN and SUB cancel, and ESC begins anew.
            (_, 0x18 | 0x1a) => State::Text,
            (State::StringLatin, 0x9c) => State::Text,
            (State::String | State::StringLatin, 0x07 | 0x9c) => State::Text,
            (State::String | State::StringLatin, 0xc2) => State::StringLatin,
            (_, ESC) => State::Escape,
            (State::String | State::StringLatin, _) => State::String,
            (State::Escape, b'[') => State::Csi(Some(Vec::new())),
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            (State::Escape | State::EscapeIntermediate, 0x20..=0x2f) => State::EscapeIntermediate,
            (State::Escape | State::EscapeIntermediate, 0x30..=0x7e) => State::Text,
            (State::Csi(parameters), _) => csi(parameters, byte, out),
            // Controls within an escape sequence are acted on by terminals; what is no sequence at all ends it.
            (state @ (State::Escape | State::EscapeIntermediate), 0x00..=0x1f | 0x7f) => {
                control(byte, out);
                state
            }
            (State::Escape | State::EscapeIntermediate, _) => text(byte, out),
        };
    }
}

/// A byte in a control sequence.
fn csi(parameters: Option<Vec<u8>>, byte: u8, out: &mut Vec<u8>) -> State {
    match byte {
        b'0'..=b'9' | b';' | b':' => {
            State::Csi(parameters.filter(|so_far| so_far.len() < LONGEST_SGR).map(|mut so_far| {
                so_far.push(byte);
                so_far
            }))
        }
        // Private parameters and intermediates make it something else than a colour.
        0x20..=0x3f => State::Csi(None),
        b'm' => {
            if let Some(parameters) = parameters {
                out.extend_from_slice(b"\x1b[");
                out.extend_from_slice(&parameters);
                out.push(b'm');
            }
            State::Text
        }
        0x40..=0x7e => State::Text,
        0x00..=0x1f | 0x7f => {
            control(byte, out);
            State::Csi(parameters)
        }
        0x80.. => text(byte, out),
    }
}

/// A byte where no sequence is open.
fn text(byte: u8, out: &mut Vec<u8>) -> State {
    match byte {
        ESC => State::Escape,
        0x00..=0x1f | 0x7f => {
            control(byte, out);
            State::Text
        }
        0x80..=0x9f => c1(byte),
        0xc2 => State::Latin,
        _ => {
            out.push(byte);
            match byte {
                0xc3..=0xdf => State::Character(1),
                0xe0..=0xef => State::Character(2),
                0xf0..=0xf4 => State::Character(3),
                _ => State::Text,
            }
        }
    }
}

fn control(byte: u8, out: &mut Vec<u8>) {
    if matches!(byte, b'\n' | b'\r' | b'\t') {
        out.push(byte);
    }
}

/// A C1 control.
fn c1(byte: u8) -> State {
    match byte {
        0x9b => State::Csi(Some(Vec::new())),
        0x90 | 0x98 | 0x9d..=0x9f => State::String,
        _ => State::Text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filtered(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Filter::default().push(input, &mut out);
        out
    }

    #[track_caller]
    fn check(input: &[u8], expected: &[u8]) {
        assert_eq!(filtered(input), expected, "{}", input.escape_ascii());
        // However it is split.
        for cut in 0..=input.len() {
            let (mut filter, mut out) = (Filter::default(), Vec::new());
            filter.push(&input[..cut], &mut out);
            filter.push(&input[cut..], &mut out);
            assert_eq!(out, expected, "{} cut at {cut}", input.escape_ascii());
        }
    }

    #[test]
    fn text_and_colours_pass() {
        check(b"plain\ttext\r\n", b"plain\ttext\r\n");
        check(b"\x1b[1;38:5:196mred\x1b[0m\x1b[m", b"\x1b[1;38:5:196mred\x1b[0m\x1b[m");
        check("zażółć gęślą jaźń © 漢字 🦀".as_bytes(), "zażółć gęślą jaźń © 漢字 🦀".as_bytes());
    }

    #[test]
    fn what_steers_a_terminal_is_dropped() {
        check(b"a\x1b]0;title\x07b", b"ab");
        check(b"a\x1b]52;c;ZXZpbA==\x1b\\b", b"ab");
        check(b"a\x1bP$qm\x1b\\b", b"ab");
        check(b"a\x1b_apc\x1b\\b\x1b^pm\x1b\\c\x1bXsos\x1b\\d", b"abcd");
        check(b"a\x1b[2J\x1b[H\x1b[?1049h\x1b[6n\x1b[>1mb", b"ab");
        check(b"a\x1b[1 qb\x1bcb\x1b(0b\x1b#8b", b"abbbb");
        check(b"a\x07\x08\x0b\x0e\x00\x7fb", b"ab");
    }

    #[test]
    fn c1_controls_count_in_both_spellings() {
        check(b"a\x9b2Jb\x9d0;t\x07c", b"abc");
        check(b"a\xc2\x9b2Jb\xc2\x9d0;t\xc2\x9cc\xc2\x85d", b"abcd");
        check(b"a\xc2\x9b31mb", b"a\x1b[31mb");
    }

    #[test]
    fn a_sequence_in_a_sequence_does_not_slip_through() {
        check(b"\x1b\x1b]0;x\x07y", b"y");
        check(b"\x1b[3\x1b[2Jy", b"y");
        check(b"\x1b[3\n1my", b"\n\x1b[31my");
        check(b"\x1b]0;\x1b[31mx\x07y", b"\x1b[31mxy");
        check(b"\x1b]0;never ended", b"");
        check(b"\x1b]0;a\x18b", b"b");
        check(&[b"\x1b[".as_slice(), &[b'1'; 65], b"mx"].concat(), b"x");
    }

    proptest! {
        #[test]
        fn whatever_comes_only_colours_follow_an_escape(
            bytes in proptest::collection::vec(
                prop_oneof![Just(0x1bu8), Just(b'['), Just(b']'), Just(0xc2), Just(0x9b), Just(b'm'), any::<u8>()], 0..200),
        ) {
            let out = filtered(&bytes);
            let mut rest = out.as_slice();
            while let Some(at) = rest.iter().position(|byte| *byte == ESC) {
                rest = &rest[at + 1..];
                prop_assert_eq!(rest.first(), Some(&b'['));
                let end = rest.iter().position(|byte| *byte == b'm').unwrap();
                prop_assert!(rest[1..end].iter().all(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')));
                rest = &rest[end..];
            }
            prop_assert!(!out.iter().any(|byte| *byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t' | &ESC)));
            // Filtering again changes nothing: no C1 control is left in any spelling.
            prop_assert_eq!(filtered(&out), out);
        }
    }
}
