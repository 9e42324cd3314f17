//! Text from elsewhere as cells of a screen, and numbers as short words. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::filter::Filter;
use super::super::output::one_line;

/// Text on one line that cannot steer a terminal: neither by controls nor by characters that reorder what is around them.
pub(super) fn safe(text: &str, width: usize) -> String {
    let shown: String = text.chars().map(|c| if is_format(c) { '\u{fffd}' } else { c }).collect();
    one_line(&shown, width)
}

/// Characters without a shape of their own: directions, joiners, marks of byte order.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// The last `most` lines of a task's output. Of a line that was written over with carriage returns the last state counts.
pub(super) fn lines(output: &[u8], most: usize) -> Vec<String> {
    let mut filtered = Vec::new();
    Filter::default().push(output, &mut filtered);
    let text = String::from_utf8_lossy(&without_colours(&filtered)).replace('\t', "    ");
    let lines: Vec<_> = text.lines().collect();
    let last = |line: &str| line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default().to_owned();
    let shown =
        |line: String| line.chars().map(|c| if c.is_control() || is_format(c) { '\u{fffd}' } else { c }).collect();
    lines[lines.len().saturating_sub(most)..].iter().map(|line| shown(last(line))).collect()
}

/// The filter passes nothing but colours after an escape.
fn without_colours(filtered: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(filtered.len());
    let mut within = false;
    for byte in filtered {
        match (within, byte) {
            (false, 0x1b) => within = true,
            (false, byte) => out.push(*byte),
            (true, byte) => within = *byte != b'm',
        }
    }
    out
}

/// Eight heights, the highest for the greatest of the last `width` values.
pub(super) fn curve(values: &VecDeque<Duration>, width: usize) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown: Vec<_> = values.iter().skip(values.len().saturating_sub(width)).map(Duration::as_micros).collect();
    let most = shown.iter().max().copied().unwrap_or(0).max(1);
    shown.iter().map(|value| HEIGHTS[((value * 8).saturating_sub(1) / most).min(7) as usize]).collect()
}

/// `850µs`, `12ms`, `1.4s`.
pub(super) fn span(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..1_000 => format!("{micros}µs"),
        micros @ 1_000..10_000 => format!("{:.1}ms", micros as f64 / 1e3),
        micros @ 10_000..1_000_000 => format!("{}ms", micros / 1_000),
        micros => format!("{:.1}s", micros as f64 / 1e6),
    }
}

/// `0`, `0.4`, `12`, `1.2k`, `3.4M`.
pub(super) fn rate(number: f64) -> String {
    match number {
        n if n < 0.05 => "0".into(),
        n if n < 10.0 => format!("{n:.1}"),
        n if n < 1e3 => format!("{n:.0}"),
        n if n < 1e6 => format!("{:.1}k", n / 1e3),
        n => format!("{:.1}M", n / 1e6),
    }
}

/// A bar of `width` cells, filled as far as `part` of `whole`.
pub(super) fn bar(part: u64, whole: u64, width: usize) -> String {
    let filled = (part.min(whole) * width as u64 + whole / 2).checked_div(whole).unwrap_or(0);
    let filled = usize::try_from(filled).unwrap_or(width).min(width);
    "█".repeat(filled) + &"░".repeat(width - filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agents_write_cannot_steer_the_screen() {
        assert_eq!(safe("a\u{1b}[2J\n b\u{202e}c", 40), "a\u{fffd}[2J b\u{fffd}c");
        assert_eq!(lines(b"\x1b[31mred\x1b[0m\x1b[2J\r\n10%\r50%\r100%\n\ttab\x07", 9), ["red", "100%", "    tab"]);
        assert_eq!(lines(b"1\n2\n3\n4", 2), ["3", "4"]);
        assert_eq!(lines("a\u{202e}b\u{9b}31mc\n".as_bytes(), 2), ["a\u{fffd}bc"]);
        assert_eq!(lines(b"", 2), [""; 0]);
    }

    #[test]
    fn numbers_are_short() {
        let spans = [0, 850, 1_400, 12_000, 999_999, 1_400_000].map(|us| span(Duration::from_micros(us)));
        assert_eq!(spans, ["0µs", "850µs", "1.4ms", "12ms", "999ms", "1.4s"]);
        assert_eq!([0.0, 0.4, 12.3, 1_234.0, 3_400_000.0].map(rate), ["0", "0.4", "12", "1.2k", "3.4M"]);
        assert_eq!(
            [bar(0, 4, 4), bar(1, 4, 4), bar(4, 4, 4), bar(9, 4, 4), bar(1, 0, 4)],
            ["░░░░", "█░░░", "████", "████", "░░░░"]
        );
        let values: VecDeque<_> = [9, 1, 4, 8].map(Duration::from_millis).into();
        assert_eq!(curve(&values, 3), "▁▄█");
        assert_eq!(curve(&VecDeque::new(), 3), "");
    }
}
