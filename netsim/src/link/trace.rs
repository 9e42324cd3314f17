//! Recorded links, in mahimahi's format (Netravali et al., USENIX ATC 2015): a line for each moment, in milliseconds from the
//! start, at which 1500 bytes could be delivered. The recording repeats.

use std::time::Duration;

/// Bytes of one opportunity. What nobody waits to use is lost.
pub const OPPORTUNITY: usize = 1500;

/// A recorded link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    // Sorted.
    at_ms: Vec<u64>,
}

/// Why a text is no trace.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TraceError {
    /// A line that is not a number.
    #[error("line {line}: `{text}` is no time in whole milliseconds")]
    NotATime {
        /// Which, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// Times that go back.
    #[error("line {line}: {at} ms is before the line above, {before} ms")]
    Backwards {
        /// Which, from 1.
        line: usize,
        /// What it says.
        at: u64,
        /// What the one before says.
        before: u64,
    },
    /// Nothing to repeat.
    #[error("a trace needs a line with a time above 0: its last one is when it repeats")]
    Empty,
}

/// One opportunity: which time round, and which of the recording's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    round: u64,
    index: usize,
}

impl Trace {
    /// Reads a trace file's text.
    ///
    /// # Errors
    /// Names the line that is wrong.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut at_ms = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line_number = number + 1;
            let at = line
                .trim()
                .parse()
                .map_err(|_| TraceError::NotATime { line: line_number, text: line.trim().to_owned() })?;
            match at_ms.last() {
                Some(&before) if at < before => return Err(TraceError::Backwards { line: line_number, at, before }),
                _ => at_ms.push(at),
            }
        }
        if at_ms.last().is_none_or(|last| *last == 0) {
            return Err(TraceError::Empty);
        }
        Ok(Self { at_ms })
    }

    fn round_ms(&self) -> u64 {
        self.at_ms.last().copied().unwrap_or(1)
    }

    /// Bits a second if every opportunity is used.
    pub fn mean_rate(&self) -> u64 {
        (self.at_ms.len() as u64 * OPPORTUNITY as u64 * 8 * 1000) / self.round_ms()
    }

    /// The first opportunity after this time since the recording began.
    pub(crate) fn after(&self, since: Duration) -> Place {
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let (round, within) = (since_ms / self.round_ms(), since_ms % self.round_ms());
        // What is due now is over: it was used, or lost, before who asks now came.
        let index = self.at_ms.partition_point(|at| *at <= within);
        if index == self.at_ms.len() { Place { round: round + 1, index: 0 } } else { Place { round, index } }
    }

    pub(crate) fn next(&self, place: Place) -> Place {
        if place.index + 1 == self.at_ms.len() {
            Place { round: place.round + 1, index: 0 }
        } else {
            Place { index: place.index + 1, ..place }
        }
    }

    pub(crate) fn at(&self, place: Place) -> Duration {
        Duration::from_millis(place.round * self.round_ms() + self.at_ms[place.index])
    }
}
