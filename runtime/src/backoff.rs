//! Delays between retries: exponential backoff with full jitter.

use std::time::Duration;

/// The delays of one series of retries. Each is uniformly random between zero and a ceiling that starts at `first` and
/// doubles up to `most`, so that clients that failed together do not retry together.
#[derive(Clone, Debug)]
pub struct ExponentialBackoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl ExponentialBackoff {
    /// A series without failures.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// The delay before the next retry; counts one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(rand::random::<f64>())
    }

    /// The current maximum of [`next_delay`](Self::next_delay).
    pub fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.most)
    }

    /// Failures since the start or the last [`reset`](Self::reset).
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Records a success: the next failure starts with a short delay again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(30);

    #[test]
    fn the_ceiling_doubles_up_to_the_most_and_never_overflows() {
        let mut backoff = ExponentialBackoff::new(FIRST, MOST);
        let ceilings = std::iter::repeat_with(|| {
            let ceiling = backoff.ceiling();
            assert!(backoff.next_delay() <= ceiling);
            ceiling.as_millis()
        });
        assert_eq!(
            ceilings.take(11).collect::<Vec<_>>(),
            [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]
        );
        backoff.failures = u32::MAX;
        assert!(backoff.next_delay() <= MOST);
        assert_eq!(backoff.ceiling(), MOST);
    }

    #[test]
    fn delays_are_spread_over_the_whole_range() {
        let delays: Vec<_> = (0..1000).map(|_| ExponentialBackoff::new(MOST, MOST).next_delay()).collect();
        assert!(delays.iter().any(|delay| *delay < MOST / 4));
        assert!(delays.iter().any(|delay| *delay > MOST / 4 * 3));
    }

    #[test]
    fn a_success_restarts_the_series() {
        let mut backoff = ExponentialBackoff::new(FIRST, MOST);
        backoff.next_delay();
        backoff.next_delay();
        assert_eq!(backoff.failures(), 2);
        backoff.reset();
        assert_eq!(backoff.ceiling(), FIRST);
    }
}
