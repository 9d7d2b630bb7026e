//! Token buckets: how many events per time are allowed, with room for a burst.
//!
//! A bucket is one number that only atomic operations read and write, so that threads share it without a lock. Splitting a
//! limit among threads instead would be wrong for a client whose connections are all on one of them. Which thread takes a
//! token does not matter, and nothing else is read because of it: relaxed ordering suffices.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// How fast a bucket fills, and how much it holds. It starts full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRate {
    /// Tokens that arrive per period, evenly: one each `per / tokens`.
    pub tokens: u32,
    /// The period.
    pub per: Duration,
    /// Tokens that the bucket holds beyond those of one period.
    pub burst: u32,
}

/// Tokens of one rate. Those that arrive while it is full are lost.
#[derive(Debug)]
pub struct TokenBucket {
    rate: TokenRate,
    /// Tokens that were taken, or lost before the last one was taken. Its tokens are those that have arrived, and those that it
    /// started with, without these.
    gone: AtomicU64,
}

impl TokenRate {
    /// Tokens that a full bucket holds.
    pub fn capacity(&self) -> u64 {
        u64::from(self.tokens) + u64::from(self.burst)
    }

    /// Tokens that arrive within this time.
    fn arrived(&self, elapsed: Duration) -> u64 {
        let tokens = elapsed.as_nanos().saturating_mul(self.tokens.into()) / self.per.as_nanos().max(1);
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for TokenRate {
    /// Such as `100 per minute and a burst of 20`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per ", self.tokens)?;
        match self.per.as_secs() {
            1 => f.write_str("second")?,
            60 => f.write_str("minute")?,
            3600 => f.write_str("hour")?,
            _ => write!(f, "{:?}", self.per)?,
        }
        match self.burst {
            0 => Ok(()),
            burst => write!(f, " and a burst of {burst}"),
        }
    }
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: TokenRate) -> Self {
        Self { rate, gone: AtomicU64::new(0) }
    }

    /// Its rate.
    pub fn rate(&self) -> TokenRate {
        self.rate
    }

    /// Takes a token, so long after the bucket was created; `false` if it has none.
    pub fn take(&self, elapsed: Duration) -> bool {
        let arrived = self.rate.arrived(elapsed);
        let most = arrived.saturating_add(self.rate.capacity());
        let take = |gone: u64| {
            let gone = gone.max(arrived);
            (gone < most).then(|| gone + 1)
        };
        self.gone.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    /// A bucket that is filled a nanosecond at a time.
    struct NaiveBucket {
        rate: TokenRate,
        now: u128,
        tokens: u64,
    }

    impl NaiveBucket {
        fn take(&mut self, at: Duration) -> bool {
            while self.now < at.as_nanos() {
                self.now += 1;
                let before = (self.now - 1) * u128::from(self.rate.tokens) / self.rate.per.as_nanos();
                let after = self.now * u128::from(self.rate.tokens) / self.rate.per.as_nanos();
                let arrived = u64::try_from(after - before).unwrap();
                self.tokens = (self.tokens + arrived).min(self.rate.capacity());
            }
            let has_one = self.tokens > 0;
            self.tokens -= u64::from(has_one);
            has_one
        }
    }

    proptest! {
        #[test]
        fn a_bucket_gives_what_one_that_is_filled_step_by_step_gives(
            tokens in 0_u32..5,
            per in 1_u64..40,
            burst in 0_u32..4,
            steps in prop::collection::vec(0_u64..30, 1..60),
        ) {
            let rate = TokenRate { tokens, per: Duration::from_nanos(per), burst };
            let bucket = TokenBucket::new(rate);
            let mut naive = NaiveBucket { rate, now: 0, tokens: rate.capacity() };
            let mut at = Duration::ZERO;
            for step in steps {
                at += Duration::from_nanos(step);
                prop_assert_eq!(bucket.take(at), naive.take(at), "at {:?}", at);
            }
        }
    }

    #[test]
    fn threads_together_get_what_the_bucket_holds_and_no_more() {
        let rate = TokenRate { tokens: 700, per: Duration::from_secs(3600), burst: 300 };
        let bucket = TokenBucket::new(rate);
        let taken = thread::scope(|scope| {
            let take = || (0..1000).filter(|_| bucket.take(Duration::ZERO)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(taken, 1000);
    }

    #[test]
    fn a_rate_reads_as_its_author_wrote_it() {
        let rate = |per, burst| TokenRate { tokens: 9, per: Duration::from_secs(per), burst }.to_string();
        assert_eq!(rate(1, 0), "9 per second");
        assert_eq!(rate(60, 3), "9 per minute and a burst of 3");
        assert_eq!(rate(5, 0), "9 per 5s");
    }

    #[test]
    fn a_thread_whose_clock_reading_is_older_takes_no_token_twice() {
        let rate = TokenRate { tokens: 1, per: Duration::from_secs(1), burst: 0 };
        let bucket = TokenBucket::new(rate);
        assert!(bucket.take(Duration::from_secs(5)));
        assert!(!bucket.take(Duration::from_secs(4)));
        assert!(!bucket.take(Duration::from_secs(5)));
        assert!(bucket.take(Duration::from_secs(6)));
    }

    #[test]
    fn the_greatest_rate_and_the_longest_time_do_not_overflow() {
        let rate = TokenRate { tokens: u32::MAX, per: Duration::from_nanos(1), burst: u32::MAX };
        let bucket = TokenBucket::new(rate);
        assert!(bucket.take(Duration::ZERO));
        bucket.take(Duration::MAX);
        assert!(!bucket.take(Duration::MAX), "as good as spent");
    }
}
