//! Values as people type them. Pure.

use std::time::Duration;

use ado_proto::request::StartAt;
use ado_proto::{Offset, Timestamp};

/// `30s`, `10m`, `1h30m`, `500ms`, `2d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write 30s, 10m or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        let part = number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A duration as [`duration`] reads it.
pub(crate) use ado_proto::spec::span as show_duration;

/// `NAME=VALUE`; the value may be empty and may hold more `=`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

/// `NAME` or `NAME=VARIABLE`: the variable that is to hold a secret, and the secret's name. `github-token` goes to
/// `GITHUB_TOKEN` unless another variable is given.
pub(crate) fn secret(text: &str) -> Result<(String, String), String> {
    let (name, variable) = match text.split_once('=') {
        Some((name, variable)) => (name, variable.to_owned()),
        None => {
            let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            (text, text.chars().map(upper).collect())
        }
    };
    if name.is_empty() || variable.is_empty() {
        return Err(format!("`{text}` is neither NAME nor NAME=VARIABLE"));
    }
    Ok((variable, name.into()))
}

/// `start`, or an offset.
pub(crate) fn from(text: &str) -> Result<Offset, String> {
    if text == "start" {
        return Ok(Offset(0));
    }
    text.parse().map(Offset).map_err(|_| format!("`{text}` is neither an offset nor `start`"))
}

/// An instant, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    At(Timestamp),
    Ago(Duration),
}

/// `10m`, or RFC 3339.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    let wrong = |_| format!("`{text}` is neither a duration like 10m nor an instant like 2026-01-31T12:00:00Z");
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).map_err(wrong)?;
    let micros = time.unix_timestamp_nanos() / 1000;
    Ok(Since::At(Timestamp(i64::try_from(micros).expect("years up to 9999 fit microseconds in 64 bits"))))
}

impl Since {
    /// The instant, seen from now.
    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(ago) => {
                let ago = i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
                Timestamp(now.0.saturating_sub(ago))
            }
        }
    }
}

/// Where to begin reading a log.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Start {
    /// Begin at this offset, or at the `start`
    #[arg(long, value_name = "OFFSET|start", value_parser = from, allow_negative_numbers = true)]
    from: Option<Offset>,
    /// Begin this many lines before the end
    #[arg(long, value_name = "LINES", conflicts_with = "from")]
    tail: Option<u32>,
    /// Begin this long ago (10m) or at this instant (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with_all = ["from", "tail"])]
    since: Option<Since>,
}

/// Lines shown first on a terminal: of one task, or of a group's together.
const TERMINAL_TAIL: u32 = 100;
/// Fewest of them of each of a group's tasks.
const FEWEST_OF_EACH: u32 = 10;

impl Start {
    /// The place meant in each of so many tasks. Without a word: the last lines for a person at a terminal, everything
    /// otherwise.
    pub(crate) fn resolve(&self, terminal: bool, tasks: usize, now: Timestamp) -> StartAt {
        match (self.from, self.tail, self.since) {
            (Some(offset), ..) => StartAt::Offset(offset),
            (_, Some(lines), _) => StartAt::Tail(lines),
            (_, _, Some(since)) => StartAt::Since(since.at(now)),
            (None, None, None) if terminal => {
                let share = TERMINAL_TAIL / u32::try_from(tasks.max(1)).unwrap_or(u32::MAX);
                StartAt::Tail(if tasks > 1 { share.max(FEWEST_OF_EACH) } else { share })
            }
            (None, None, None) => StartAt::Offset(Offset(0)),
        }
    }
}

/// A rule of permissions.
pub(crate) fn rule(text: &str) -> Result<String, String> {
    crate::agents::check_rule(text).map(|()| text.into())
}

/// Dollars, in millionths.
pub(crate) fn micros(text: &str) -> Result<u64, String> {
    match text.trim_start_matches('$').parse::<f64>() {
        Ok(dollars) if dollars > 0.0 && dollars < 1e9 => Ok((dollars * 1e6).round().max(1.0) as u64),
        _ => Err(format!("`{text}` is no amount of dollars above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let seconds = |text| duration(text).map(|span| span.as_secs_f64());
        assert_eq!(seconds("30s"), Ok(30.0));
        assert_eq!(seconds("1h30m"), Ok(5_400.0));
        assert_eq!(seconds("500ms"), Ok(0.5));
        for text in ["500ms", "30s", "90s", "10m", "36h", "0s"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        assert_eq!(seconds("2d"), Ok(172_800.0));
        for wrong in ["", "10", "s", "10x", "1 h", "-1s", "99999999999999999999s", "99999999999999999d", "1m2"] {
            assert_eq!(duration(wrong), Err(format!("`{wrong}` is no duration: write 30s, 10m or 1h30m")));
        }
    }

    #[test]
    fn pairs_and_offsets() {
        assert_eq!(pair("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(pair("A="), Ok(("A".into(), String::new())));
        assert!(pair("=b").is_err() && pair("A").is_err());
        assert_eq!(from("start"), Ok(Offset(0)));
        assert_eq!(from("17"), Ok(Offset(17)));
        assert!(from("-1").is_err() && from("end").is_err());
    }

    #[test]
    fn beginnings() {
        let start = |from, tail, since| Start { from, tail, since };
        let now = Timestamp(3_600_000_000);
        assert_eq!(start(None, None, None).resolve(true, 1, now), StartAt::Tail(100));
        assert_eq!(start(None, None, None).resolve(false, 1, now), StartAt::Offset(Offset(0)));
        assert_eq!(start(None, None, None).resolve(true, 4, now), StartAt::Tail(25));
        assert_eq!(start(None, None, None).resolve(true, 1000, now), StartAt::Tail(10));
        assert_eq!(start(Some(Offset(4)), None, None).resolve(true, 1, now), StartAt::Offset(Offset(4)));
        let ago = since("10m").unwrap();
        assert_eq!(start(None, None, Some(ago)).resolve(true, 1, now), StartAt::Since(Timestamp(3_000_000_000)));
        assert_eq!(since("1970-01-01T01:00:00+01:00"), Ok(Since::At(Timestamp(0))));
        assert!(since("yesterday").is_err());
    }

    #[test]
    fn secrets_have_a_variable() {
        let pair = |variable: &str, name: &str| Ok((variable.to_owned(), name.to_owned()));
        assert_eq!(secret("github-token"), pair("GITHUB_TOKEN", "github-token"));
        assert_eq!(secret("github-token=Token"), pair("Token", "github-token"));
        assert!(secret("x=").is_err() && secret("=x").is_err() && secret("").is_err());
    }
}
