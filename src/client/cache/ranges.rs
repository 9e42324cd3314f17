//! Which offsets of a log are known. Pure.

use std::collections::BTreeMap;

use ado_proto::Offset;
use ado_proto::record::{Body, Record};

/// Offsets, as ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds the offsets from `first` on that are below `next`.
    pub(super) fn insert(&mut self, first: Offset, next: Offset) {
        let (mut first, mut next) = (first.0, next.0);
        if first >= next {
            return;
        }
        let touching: Vec<u64> =
            self.0.range(..=next).rev().take_while(|(_, end)| **end >= first).map(|(start, _)| *start).collect();
        for start in touching {
            let end = self.0.remove(&start).expect("it was just found");
            first = first.min(start);
            next = next.max(end);
        }
        self.0.insert(first, next);
    }

    /// Whether an offset is known.
    pub(super) fn contains(&self, offset: Offset) -> bool {
        self.0.range(..=offset.0).next_back().is_some_and(|(_, end)| offset.0 < *end)
    }
}

/// Records without a gap, end to end as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: Offset,
    pub(super) next: Offset,
    pub(super) bytes: Vec<u8>,
}

impl Run {
    /// Takes the record when it is the one that comes next.
    pub(super) fn extend(&mut self, record: &Record) -> bool {
        let fits = record.offset == self.next;
        if fits {
            record.encode(&mut self.bytes);
            self.next = record.offset.next();
        }
        fits
    }

    pub(super) fn begin(record: &Record) -> Self {
        let mut run = Self { first: record.offset, next: record.offset, bytes: Vec::new() };
        run.extend(record);
        run
    }
}

/// Whether a record is one of the log itself, not made up on reading it.
pub(super) fn is_stored(record: &Record) -> bool {
    !matches!(record.body, Body::Truncated(_) | Body::Skipped(_))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_a_set(inserts in proptest::collection::vec((0u64..40, 0u64..8), 0..20)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (first, length) in inserts {
                ranges.insert(Offset(first), Offset(first + length));
                model.extend(first..first + length);
            }
            for offset in 0..50 {
                prop_assert_eq!(ranges.contains(Offset(offset)), model.contains(&offset));
            }
            let ends: Vec<_> = ranges.0.iter().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", ranges);
        }
    }
}
