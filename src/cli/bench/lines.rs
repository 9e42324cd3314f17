//! Lines that say when they were written. Knows nothing of ado: `benches/peers` includes this file as it is.

use std::io::{self, Write};
use std::time::Duration;

use nix::time::ClockId;

/// Where a line begins, whatever a viewer puts before it.
const MARK: &[u8] = b"@ado:";
/// Begins the line that names the clock.
const CLOCK: &str = "@clock:";

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// Which of several writers.
    pub(crate) stream: u32,
    /// Its place among the writer's lines, from 0.
    pub(crate) seq: u64,
    /// When it was written, [`monotonic_ns`] of the writer's machine.
    pub(crate) sent: u64,
}

impl Line {
    /// Writes it with its newline, filled up to `size` bytes if it is shorter.
    pub(crate) fn write(&self, size: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(MARK);
        out.extend_from_slice(format!("{}:{}:{}:", self.stream, self.seq, self.sent).as_bytes());
        let filled = start + size.saturating_sub(1);
        out.resize(out.len().max(filled), b'.');
        out.push(b'\n');
    }

    /// Reads one, without its newline; `None` for any other line.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let at = line.windows(MARK.len()).position(|window| window == MARK)?;
        let mut fields = line[at + MARK.len()..].splitn(4, |byte| *byte == b':');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        let line = Self { stream: field()?.parse().ok()?, seq: field()?.parse().ok()?, sent: field()?.parse().ok()? };
        fields.next().map(|_| line)
    }
}

/// The clock a header line names, if it is one.
pub(crate) fn clock_of(line: &[u8]) -> Option<&str> {
    std::str::from_utf8(line).ok()?.strip_prefix(CLOCK)
}

/// Writes a header that names the clock, and then `lines` lines, `rate` of them a second, each in a write of its own. A
/// line that is late is followed at once by those that are due: the schedule does not wait for the reader.
pub(crate) fn emit(stream: u32, rate: f64, lines: u64, size: usize, out: &mut impl Write) -> io::Result<()> {
    out.write_all(format!("{CLOCK}{}\n", clock_id().unwrap_or_default()).as_bytes())?;
    out.flush()?;
    let start = monotonic_ns();
    let mut buffer = Vec::with_capacity(size + 64);
    for seq in 0..lines {
        wait_until(start + (seq as f64 * 1e9 / rate) as u64);
        buffer.clear();
        Line { stream, seq, sent: monotonic_ns() }.write(size, &mut buffer);
        out.write_all(&buffer)?;
        out.flush()?;
    }
    Ok(())
}

/// CLOCK_MONOTONIC, nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = ClockId::CLOCK_MONOTONIC.now().expect("every system we run on has the clock");
    let part = |value: i64| u64::try_from(value).expect("it does not run backwards from its start");
    part(now.tv_sec()) * 1_000_000_000 + part(now.tv_nsec())
}

/// Which clock [`monotonic_ns`] reads: two processes that get the same may compare. `None` where nobody can tell.
pub(crate) fn clock_id() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    // A container may have a clock of its own (time_namespaces(7)).
    let namespace = std::fs::read_link("/proc/self/ns/time").unwrap_or_default();
    Some(format!("{}/{}", boot.trim(), namespace.display()))
}

#[expect(clippy::disallowed_methods, reason = "the schedule of lines is what is meant")]
fn wait_until(due: u64) {
    let ahead = due.saturating_sub(monotonic_ns());
    if ahead > 0 {
        std::thread::sleep(Duration::from_nanos(ahead));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_whatever_stands_before_it() {
        let line = Line { stream: 3, seq: 41, sent: 1_234_567_890_123 };
        for size in [0, 1, 80] {
            let mut out = b"earlier\n".to_vec();
            line.write(size, &mut out);
            let text = out.strip_prefix(b"earlier\n").unwrap();
            assert!(text.len() >= size && text.ends_with(b"\n") && (size < 80 || text.len() == size));
            let prefixed = [b"\x1b[36m[3/50 box] \x1b[0m", &text[..text.len() - 1]].concat();
            assert_eq!(Line::parse(&prefixed), Some(line));
        }
        for other in ["", "@ado:", "@ado:1:2", "@ado:1:2:3", "@ado:x:2:3:", "hello"] {
            assert_eq!(Line::parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn lines_are_written_in_order_with_rising_stamps_no_earlier_than_due() {
        let mut out = Vec::new();
        let begun = monotonic_ns();
        emit(7, 1000.0, 20, 60, &mut out).unwrap();
        assert!(monotonic_ns() - begun >= 19_000_000, "the last of 20 is due after 19 ms");
        let mut lines = out.split(|byte| *byte == b'\n');
        assert_eq!(clock_of(lines.next().unwrap()), Some(clock_id().unwrap_or_default().as_str()));
        let lines: Vec<_> = lines.filter_map(Line::parse).collect();
        assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        for (line, due) in lines.iter().zip((0..).step_by(1_000_000)) {
            assert!(line.stream == 7 && line.sent >= begun + due, "{line:?}");
        }
    }
}
