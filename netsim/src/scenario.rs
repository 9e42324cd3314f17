//! A link's parameters over time: one format for tests, benches, the proxy and the bridge.
//!
//! A line each; `#` begins a comment. Lines of [`Command`] hold from the start, or from their time:
//!
//! ```text
//! seed 7
//! profile wifi
//! set up rate 10mbit queue 100ms
//! at 5s down 3s                 # three seconds of silence
//! at 20s block udp
//! every 30s rebind              # at 30s, 60s, ...
//! every 10s from 1m until 5m cut up over 1200 500ms
//! ```

use std::time::Duration;

use crate::command::{Command, CommandError, ReadFile};
use crate::profile::Profile;
use crate::units;

/// What happens to a link, and when.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scenario {
    /// What its chance comes from.
    pub seed: u64,
    /// In the order they are written.
    pub steps: Vec<Step>,
}

/// A command and its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// When, from the start.
    pub at: Duration,
    /// Again and again, so far apart.
    pub every: Option<Duration>,
    /// Not after this.
    pub until: Option<Duration>,
    /// What.
    pub command: Command,
}

/// Why a text is no scenario.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {why}")]
pub struct ScenarioError {
    /// Which, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: Why,
}

/// What can be wrong with a line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Why {
    /// The command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The seed.
    #[error("`seed {0}` is not a number from 0 to 18446744073709551615")]
    Seed(String),
    /// A time.
    #[error("`{word} {value}`: not a time, as 250us, 20ms, 1.5s, 2m or 1h")]
    Time {
        /// Before it.
        word: &'static str,
        /// As typed.
        value: String,
    },
    /// Nothing between one time and the next.
    #[error("`every 0`: a command every so often needs a time above 0 between")]
    NoTimeBetween,
    /// An end before the beginning.
    #[error("`until {0}` is before the first time")]
    NeverRuns(String),
}

impl Scenario {
    /// Reads a scenario's text. `read_file` reads the traces it names.
    ///
    /// # Errors
    /// Names the first line that is wrong, and what would be right.
    pub fn parse(text: &str, read_file: ReadFile<'_>) -> Result<Self, ScenarioError> {
        let mut scenario = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                scenario.add(line, read_file).map_err(|why| ScenarioError { line: number + 1, why })?;
            }
        }
        Ok(scenario)
    }

    /// Puts a profile before all other lines.
    pub fn begin_with(&mut self, profile: Profile) {
        let command = Command::Profile(profile);
        self.steps.insert(0, Step { at: Duration::ZERO, every: None, until: None, command });
    }

    fn add(&mut self, line: &str, read_file: ReadFile<'_>) -> Result<(), Why> {
        let (word, rest) = split(line);
        if word == "seed" {
            self.seed = rest.parse().map_err(|_| Why::Seed(rest.to_owned()))?;
            return Ok(());
        }
        let mut step = Timed { rest: line, ..Timed::default() };
        if let Some(at) = step.take("at")? {
            let command = Command::parse(step.rest, read_file)?;
            self.steps.push(Step { at, every: None, until: None, command });
            return Ok(());
        }
        let every = step.take("every")?;
        if every == Some(Duration::ZERO) {
            return Err(Why::NoTimeBetween);
        }
        let from = if every.is_some() { step.take("from")? } else { None };
        let until = if every.is_some() { step.take("until")? } else { None };
        let at = from.or(every).unwrap_or_default();
        if until.is_some_and(|until| until < at) {
            return Err(Why::NeverRuns(step.last.to_owned()));
        }
        self.steps.push(Step { at, every, until, command: Command::parse(step.rest, read_file)? });
        Ok(())
    }
}

#[derive(Default)]
struct Timed<'a> {
    rest: &'a str,
    last: &'a str,
}

impl Timed<'_> {
    /// Takes `word TIME` off, if the line begins so.
    fn take(&mut self, word: &'static str) -> Result<Option<Duration>, Why> {
        let (first, rest) = split(self.rest);
        if first != word {
            return Ok(None);
        }
        let (value, rest) = split(rest);
        let time = units::time(value).ok_or_else(|| Why::Time { word, value: value.to_owned() })?;
        (self.rest, self.last) = (rest, value);
        Ok(Some(time))
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Edge, Way};
    use crate::link::{Packet, What};
    use crate::path::{Output, Path};

    fn parse(text: &str) -> Result<Scenario, String> {
        Scenario::parse(text, &|_| Err("no files here".to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_scenario_happens_in_time() {
        let scenario =
            parse("seed 7  # which\n\nset delay 10ms\nat 1s cut up 500ms\nevery 2s from 3s until 8s rebind\n");
        let mut path: Path<u32> = Path::new("link", &scenario.unwrap());
        let ms = |ms| Duration::from_millis(ms);
        for number in 0..20 {
            path.send(ms(u64::from(number) * 100), Way::Up, Packet::udp(100), number);
        }
        let (mut arrived, mut rebound) = (Vec::new(), Vec::new());
        while let Some(at) = path.next_at() {
            while let Some(output) = path.poll(at) {
                match output {
                    Output::Packet(Way::Up, event) => {
                        if let What::Delivered { payload, .. } = event.what {
                            assert_eq!(event.at - event.came_at, ms(10));
                            arrived.push(payload);
                        }
                    }
                    Output::Edge(at, Edge::RebindPort) => rebound.push(at.as_secs()),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(arrived, (0..10).chain(15..20).collect::<Vec<_>>());
        assert_eq!(rebound, [3, 5, 7]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, error) in [
            ("seed x", "line 1: `seed x` is not a number from 0 to 18446744073709551615"),
            ("# fine\nat noon down", "line 2: `at noon`: not a time, as 250us, 20ms, 1.5s, 2m or 1h"),
            ("every 0 rebind", "line 1: `every 0`: a command every so often needs a time above 0 between"),
            ("every 1s until 10ms rebind", "line 1: `until 10ms` is before the first time"),
            ("at 1s", "line 1: no command; there are set, profile, down, cut, block, heal, rebind and nat"),
            (
                "at 1s stats",
                "line 1: `stats` is no command; there are set, profile, down, cut, block, heal, rebind and nat",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text}");
        }
    }
}
