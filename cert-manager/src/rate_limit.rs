//! Limits requests per identity or host: a token bucket for each, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The limit of an identity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    /// Requests per second on average.
    pub(crate) per_second: f64,
    /// Requests at once.
    pub burst: u32,
    /// Maximum identities to remember; beyond it, the least recent one is forgotten.
    pub(crate) max_identities: usize,
}

impl Default for RateLimit {
    /// Ten requests per second, 100 at once: a Deployment of 100 Pods may start together. 20,000 identities.
    fn default() -> Self {
        Self { per_second: 10.0, burst: 100, max_identities: 20_000 }
    }
}

/// Counts requests by client.
#[derive(Debug)]
pub(crate) struct RateLimiter<K> {
    limit: RateLimit,
    buckets: Mutex<HashMap<K, Bucket>>,
}

/// A token bucket: what was left at a moment. It fills with time, up to the burst.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Clone + Eq + Hash> RateLimiter<K> {
    /// A limiter with full buckets.
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self { limit, buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes a token for one request, or returns the time until there is one.
    pub(crate) fn take(&self, identity: &K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(identity) && buckets.len() >= self.limit.max_identities.max(1) {
            self.evict(&mut buckets, now);
        }
        let full = f64::from(self.limit.burst.max(1));
        let bucket = buckets.entry(identity.clone()).or_insert(Bucket { tokens: full, at: now });
        bucket.tokens = self.tokens(bucket, now);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let seconds = (1.0 - bucket.tokens) / self.limit.per_second.max(1e-6);
        Err(Duration::from_secs_f64(seconds.min(1e9)))
    }

    /// The tokens of a bucket now, at most the burst.
    fn tokens(&self, bucket: &Bucket, now: Instant) -> f64 {
        let refilled = now.saturating_duration_since(bucket.at).as_secs_f64() * self.limit.per_second;
        (bucket.tokens + refilled).min(f64::from(self.limit.burst.max(1)))
    }

    /// Forgets clients whose buckets are full again, which makes no difference to them. If there are none, forgets the least
    /// recent one.
    fn evict(&self, buckets: &mut HashMap<K, Bucket>, now: Instant) {
        let full = f64::from(self.limit.burst.max(1));
        buckets.retain(|_, bucket| self.tokens(bucket, now) < full);
        if buckets.len() >= self.limit.max_identities.max(1)
            && let Some(oldest) = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(id, _)| id.clone())
        {
            buckets.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::{Identity, TrustDomain};

    use super::*;

    fn identity(name: &str) -> Identity {
        Identity::new(TrustDomain::default(), "ns", name).unwrap()
    }

    fn limiter(max_identities: usize) -> RateLimiter<Identity> {
        RateLimiter::new(RateLimit { per_second: 2.0, burst: 3, max_identities })
    }

    #[test]
    fn a_burst_is_taken_and_then_the_rate_holds() {
        let (limiter, start, a) = (limiter(10), Instant::now(), identity("a"));
        for _ in 0..3 {
            assert_eq!(limiter.take(&a, start), Ok(()));
        }
        assert_eq!(limiter.take(&a, start), Err(Duration::from_millis(500)));
        let later = start + Duration::from_millis(500);
        assert_eq!(limiter.take(&a, later), Ok(()));
        assert!(limiter.take(&a, later).is_err());
    }

    #[test]
    fn one_identity_takes_nothing_from_another() {
        let (limiter, now) = (limiter(10), Instant::now());
        while limiter.take(&identity("a"), now).is_ok() {}
        assert_eq!(limiter.take(&identity("b"), now), Ok(()));
    }

    #[test]
    fn memory_is_bounded_and_idle_identities_go_first() {
        let (limiter, start) = (limiter(3), Instant::now());
        let busy = identity("busy");
        while limiter.take(&busy, start).is_ok() {}
        for i in 0..1000 {
            let _ = limiter.take(&identity(&format!("i{i}")), start + Duration::from_millis(i));
            assert!(limiter.buckets.lock().unwrap().len() <= 3);
        }
        let limiter = self::limiter(3);
        for name in ["idle-1", "idle-2"] {
            limiter.take(&identity(name), start).unwrap();
        }
        let later = start + Duration::from_secs(60);
        while limiter.take(&busy, later).is_ok() {}
        limiter.take(&identity("new"), later).unwrap();
        assert!(limiter.take(&busy, later).is_err(), "a busy identity was forgotten");
    }
}
