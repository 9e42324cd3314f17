//! When something is tried again.

use std::time::Duration;

/// Full-jitter exponential back-off: uniform in `[0, min(cap, base * 2^failures)]`, so that a herd of retries spreads out
/// (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
///
/// `jitter` is uniform in `[0, 1)`; the wait never exceeds `cap`, whatever the arguments.
pub fn backoff(base: Duration, cap: Duration, failures: u32, jitter: f64) -> Duration {
    let ceiling = base.saturating_mul(2u32.saturating_pow(failures.min(31))).min(cap);
    // Out of range only for a ceiling near `Duration::MAX`, or a jitter that is not a number.
    Duration::try_from_secs_f64(ceiling.as_secs_f64() * jitter).unwrap_or(ceiling).min(ceiling)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(300);

    #[test]
    fn ceilings_double_up_to_the_cap() {
        // Just below 1: the ceiling, less a rounding error.
        let ceilings: Vec<_> =
            (0..12).map(|failures| backoff(BASE, CAP, failures, 1.0 - f64::EPSILON).as_secs_f64().round()).collect();
        assert_eq!(ceilings, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0, 300.0]);
    }

    #[test]
    fn jitter_spreads_over_the_whole_range() {
        assert_eq!(backoff(BASE, CAP, 3, 0.0), Duration::ZERO);
        assert_eq!(backoff(BASE, CAP, 3, 0.25), Duration::from_secs(2));
        assert_eq!(backoff(BASE, CAP, 3, 0.5), Duration::from_secs(4));
    }

    #[test]
    fn no_argument_panics_or_exceeds_the_cap() {
        for base in [Duration::ZERO, Duration::from_nanos(1), BASE, Duration::MAX] {
            for cap in [Duration::ZERO, BASE, CAP, Duration::MAX] {
                for failures in [0, 1, 30, 31, 32, u32::MAX] {
                    for jitter in [0.0, 0.5, 1.0, 2.0, -1.0, f64::NAN, f64::INFINITY] {
                        assert!(backoff(base, cap, failures, jitter) <= cap);
                    }
                }
            }
        }
    }
}
