//! Numbers with units, as people write them.

use std::time::Duration;

/// Longest time accepted: 400 days, far from where arithmetic ends.
const LONGEST: f64 = 400.0 * 86_400.0;

/// `250us`, `20ms`, `1.5s`, `2m`, `1h`; `0` needs no unit.
pub(crate) fn time(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (number, unit) = split(text)?;
    let seconds = number
        * match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
    (seconds <= LONGEST).then(|| Duration::from_nanos((seconds * 1e9).round() as u64))
}

/// `2%` or `0.02`, from 0 to 1.
pub(crate) fn share(text: &str) -> Option<f64> {
    let (number, unit) = split(text)?;
    let share = match unit {
        "%" => number / 100.0,
        "" => number,
        _ => return None,
    };
    (share <= 1.0).then_some(share)
}

/// `500kbit`, `20mbit`, `1gbit`, in bits a second, above 0.
pub(crate) fn rate(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let bits = number
        * match unit {
            "bit" => 1.0,
            "kbit" => 1e3,
            "mbit" => 1e6,
            "gbit" => 1e9,
            _ => return None,
        };
    (1.0..=1e12).contains(&bits).then_some(bits as u64)
}

/// `1200`, `64kB`, `2MB`.
pub(crate) fn bytes(text: &str) -> Option<usize> {
    let (number, unit) = split(text)?;
    let bytes = number
        * match unit {
            "" | "B" => 1.0,
            "kB" => 1e3,
            "MB" => 1e6,
            _ => return None,
        };
    (bytes <= 1e12 && bytes.fract() == 0.0).then_some(bytes as usize)
}

fn split(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}
