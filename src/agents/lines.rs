//! An agent's stdout as lines. A line may be anything, of any length.

/// Longest line that is looked at, bytes: a frame holds a whole file at times, and an image as base64. What is longer is
/// dropped and counted.
const LONGEST: usize = 16 * 1024 * 1024;

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Too long: how many bytes it had.
    TooLong(u64),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    /// Bytes of a line that is too long.
    dropped: u64,
}

impl Lines {
    /// Takes bytes; `line` gets every line that ends in them.
    pub fn take(&mut self, bytes: &[u8], mut line: impl FnMut(Line<'_>)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            if self.dropped > 0 || self.held.len() + text.len() > LONGEST {
                self.dropped += (self.held.len() + text.len()) as u64;
                self.held = Vec::new();
            } else if ends && self.held.is_empty() {
                line(Line::Whole(text));
                continue;
            } else {
                self.held.extend_from_slice(text);
            }
            if ends {
                match std::mem::take(&mut self.dropped) {
                    0 => line(Line::Whole(&self.held)),
                    bytes => line(Line::TooLong(bytes)),
                }
                self.held.clear();
                // A large frame now and then does not keep its memory.
                self.held.shrink_to(64 * 1024);
            }
        }
    }

    /// There will be no more: what is left is no frame.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(parts: &[&[u8]]) -> (Vec<Result<Vec<u8>, u64>>, Vec<u8>) {
        let (mut lines, mut read) = (Lines::default(), Vec::new());
        for part in parts {
            lines.take(part, |line| {
                read.push(match line {
                    Line::Whole(line) => Ok(line.to_vec()),
                    Line::TooLong(bytes) => Err(bytes),
                });
            });
        }
        (read, lines.rest())
    }

    #[test]
    fn a_line_of_any_length_costs_bounded_memory_and_the_next_one_is_whole() {
        let piece = vec![b'x'; 1024 * 1024];
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for _ in 0..100 {
            lines.take(&piece, |_| panic!("it has no end"));
            assert!(lines.held.capacity() <= 2 * LONGEST);
        }
        lines.take(b"yz\n{}\n", |line| seen.push(format!("{line:?}")));
        assert_eq!(seen, [format!("TooLong({})", 100 * piece.len() + 2), "Whole([123, 125])".into()]);
        assert!(lines.held.capacity() <= 64 * 1024);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200), at in 0..200usize) {
            let at = at.min(bytes.len());
            let (read, rest) = read(&[&bytes[..at], &bytes[at..]]);
            let mut again: Vec<u8> = read.into_iter().flat_map(|line| [line.unwrap(), vec![b'\n']].concat()).collect();
            again.extend_from_slice(&rest);
            prop_assert_eq!(again, bytes);
        }
    }
}
