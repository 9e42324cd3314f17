//! What a set of latencies says. Pure; `benches/peers` includes this file as it is.

/// The smallest value that `percent` of the sorted values do not exceed (nearest rank). Zero of nothing.
pub(crate) fn percentile(sorted: &[u64], percent: f64) -> u64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0)
}

/// The value in the middle; of an even number the mean of two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (len, half) if len % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// Which of a writer's lines came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Every line before this one has come.
    dense: u64,
    /// Those that came after one that did not.
    ahead: std::collections::BTreeSet<u64>,
    repeated: u64,
}

impl Tally {
    /// A line came.
    pub(crate) fn saw(&mut self, seq: u64) {
        if seq < self.dense || !self.ahead.insert(seq) {
            self.repeated += 1;
        }
        while self.ahead.remove(&self.dense) {
            self.dense += 1;
        }
    }

    /// How many of `expected` lines never came.
    pub(crate) fn lost(&self, expected: u64) -> u64 {
        expected.saturating_sub(self.dense + self.ahead.range(..expected).count() as u64)
    }

    /// How many came again.
    pub(crate) fn repeated(&self) -> u64 {
        self.repeated
    }
}

/// What is left of differences between two clocks that nobody may compare: the fastest line is taken to have needed
/// `fastest`, the others that much more than it was.
pub(crate) fn spread(differences: &[i128], fastest: u64) -> Vec<u64> {
    let least = differences.iter().min().copied().unwrap_or(0);
    let above = |difference: &i128| u64::try_from(difference - least).unwrap_or(u64::MAX).saturating_add(fastest);
    differences.iter().map(above).collect()
}

/// How many values lie in each of the buckets up to 1, 2, 5, 10, 20, 50 … of `unit`: the first and the last bucket with
/// anything in it, and all between.
pub(crate) fn histogram(sorted: &[u64], unit: u64) -> Vec<(u64, usize)> {
    let mut buckets = Vec::new();
    let mut rest = sorted;
    for bound in (0..).map(|power| unit.saturating_mul([1, 2, 5][power % 3] * 10u64.saturating_pow(power as u32 / 3))) {
        if rest.is_empty() {
            break;
        }
        let within = rest.partition_point(|value| *value <= bound);
        if within > 0 || !buckets.is_empty() {
            buckets.push((bound, within));
        }
        rest = &rest[within..];
    }
    buckets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<u64> = (1..=100).collect();
        for (percent, value) in [(0.0, 1), (1.0, 1), (50.0, 50), (90.0, 90), (99.0, 99), (99.1, 100), (100.0, 100)] {
            assert_eq!(percentile(&hundred, percent), value, "{percent}");
        }
        assert_eq!(percentile(&[7], 99.0), 7);
        assert_eq!(percentile(&[1, 9], 50.0), 1);
        assert_eq!(percentile(&[], 50.0), 0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_spread_forgets_how_far_the_clocks_are_apart() {
        let here_is_ahead = [5_000_000_000, 5_000_000_700, 5_000_000_100];
        let there_is_ahead = here_is_ahead.map(|difference: i128| difference - 9_000_000_000);
        assert_eq!(spread(&here_is_ahead, 40), [40, 740, 140]);
        assert_eq!(spread(&there_is_ahead, 40), spread(&here_is_ahead, 40));
        assert_eq!(spread(&[], 40), [0; 0]);
    }

    #[test]
    fn buckets_have_round_bounds_and_hold_everything() {
        assert_eq!(histogram(&[1, 15, 16, 90, 150], 10), [(10, 1), (20, 2), (50, 0), (100, 1), (200, 1)]);
        assert_eq!(histogram(&[400], 10), [(500, 1)]);
        assert_eq!(histogram(&[], 10), []);
        let all = histogram(&[0, u64::MAX], 1000);
        assert_eq!(all.iter().map(|(_, count)| count).sum::<usize>(), 2);
    }

    proptest! {
        #[test]
        fn a_tally_agrees_with_counting(seen in proptest::collection::vec(0u64..40, 0..80), expected in 0u64..50) {
            let mut tally = Tally::default();
            seen.iter().for_each(|seq| tally.saw(*seq));
            let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
            prop_assert_eq!(tally.repeated(), (seen.len() - distinct.len()) as u64);
            prop_assert_eq!(tally.lost(expected), (0..expected).filter(|seq| !distinct.contains(seq)).count() as u64);
        }
    }
}
