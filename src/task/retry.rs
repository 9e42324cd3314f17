//! When something is tried again.

use std::time::Duration;

/// Full-jitter exponential back-off: uniform in `[0, min(cap, base * 2^failures)]`, so that a herd of retries spreads out
/// (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
///
/// `jitter` is uniform in `[0, 1)`.
pub fn backoff(base: Duration, cap: Duration, failures: u32, jitter: f64) -> Duration {
    let ceiling = base.saturating_mul(2u32.saturating_pow(failures.min(31))).min(cap);
    ceiling.mul_f64(jitter.clamp(0.0, 1.0))
}
