//! Where each member of a group is read from, as a word people paste: `--from-each 12,end:3,0:40`. Pure.

use std::fmt;
use std::str::FromStr;

use ado_proto::Offset;
use ado_proto::request::StartAt;

/// Most members of a group.
pub(crate) const MOST_TASKS: usize = 1000;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At this offset.
    At(Offset),
    /// The last lines: nothing was shown yet.
    Tail(u32),
    /// All was shown.
    End,
}

/// A place for each member, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places(pub(crate) Vec<Place>);

impl Place {
    /// Where to begin, unless there is nothing to be read.
    pub(crate) fn start(self) -> Option<StartAt> {
        match self {
            Self::At(offset) => Some(StartAt::Offset(offset)),
            Self::Tail(lines) => Some(StartAt::Tail(lines)),
            Self::End => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(offset) => offset.fmt(f),
            Self::Tail(lines) => write!(f, "tail{lines}"),
            Self::End => f.write_str("end"),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match (text, text.strip_prefix("tail")) {
            ("end", _) => Ok(Self::End),
            (_, Some(lines)) => lines.parse().map(Self::Tail).map_err(drop),
            _ => text.parse().map(|offset| Self::At(Offset(offset))).map_err(drop),
        }
    }
}

impl fmt::Display for Places {
    /// Runs of one place are written once: `0:40` is forty times the start.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a == b);
        let words = runs.map(|run| match run.len() {
            1 => run[0].to_string(),
            count => format!("{}:{count}", run[0]),
        });
        f.write_str(&words.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Places {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut places = Vec::new();
        for word in text.split(',') {
            let wrong =
                || format!("`{word}` is no place: write an offset, `end` or `tail10`, and `:3` for three of them");
            let (place, count) = match word.split_once(':') {
                Some((place, count)) => (place, count.parse::<usize>().map_err(|_| wrong())?),
                None => (word, 1),
            };
            let place: Place = place.parse().map_err(|()| wrong())?;
            if count == 0 || count > MOST_TASKS - places.len().min(MOST_TASKS) {
                return Err(format!("`{word}`: a group has at most {MOST_TASKS} tasks"));
            }
            places.extend(std::iter::repeat_n(place, count));
        }
        Ok(Self(places))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words() {
        let places = Places(vec![Place::At(Offset(12)), Place::End, Place::End, Place::Tail(10), Place::At(Offset(0))]);
        assert_eq!(places.to_string(), "12,end:2,tail10,0");
        assert_eq!("12,end:2,tail10,0".parse(), Ok(places));
        for wrong in ["", "x", "1,", "1:x", "1:0", "end:1001", "1:600,2:600", "-1", "tail", "end2"] {
            assert!(wrong.parse::<Places>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_pasted(
            places in proptest::collection::vec(
                prop_oneof![(0..4u64).prop_map(|n| Place::At(Offset(n))), Just(Place::End), Just(Place::Tail(3))],
                1..MOST_TASKS,
            ),
        ) {
            let places = Places(places);
            prop_assert_eq!(places.to_string().parse::<Places>(), Ok(places));
        }
    }
}
