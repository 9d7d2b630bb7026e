//! Waits between attempts.

use std::time::Duration;

use serde::Serialize;

use crate::route::error::{Problem, RouteError};

/// Exponential backoff with full jitter, as in Envoy: before retry N, counted from 1, a random time below
/// `min((2^N - 1) * base, max)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    base: Duration,
    max: Duration,
}

impl Backoff {
    /// No wait.
    pub const NONE: Self = Self { base: Duration::ZERO, max: Duration::ZERO };

    /// Backoff from a base interval up to a maximum, by default ten times the base (Envoy).
    pub fn new(base: Duration, max: Option<Duration>) -> Result<Self, RouteError> {
        let max = max.unwrap_or_else(|| base.saturating_mul(10));
        if max < base {
            return Err(RouteError::new("retry.backoff.max", format!("{max:?}"), Problem::BelowBase));
        }
        Ok(Self { base, max })
    }

    /// The base interval.
    pub fn base(&self) -> Duration {
        self.base
    }

    /// The longest wait.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The wait after `retries` retries. `random` must be uniformly distributed.
    pub fn wait(&self, retries: u32, random: u32) -> Duration {
        let factor = 2_u32.checked_pow(retries.saturating_add(1)).map_or(u32::MAX, |power| power - 1);
        let ceiling = self.base.saturating_mul(factor).min(self.max);
        let nanoseconds = ceiling.as_nanos().saturating_mul(u128::from(random)) >> u32::BITS;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

impl Default for Backoff {
    /// Envoy's: 25 ms, up to 250 ms.
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_grow_up_to_the_maximum() {
        let backoff = Backoff::default();
        let max_wait = |retries| backoff.wait(retries, u32::MAX).as_millis() + 1;
        assert_eq!(
            [max_wait(0), max_wait(1), max_wait(2), max_wait(3), max_wait(99)],
            [25, 75, 175, 250, 250]
        );
        assert_eq!(backoff.wait(3, 0), Duration::ZERO);
        assert_eq!(Backoff::NONE.wait(5, u32::MAX), Duration::ZERO);
    }

    #[test]
    fn the_maximum_is_at_least_the_base() {
        let error = Backoff::new(Duration::from_secs(2), Some(Duration::from_secs(1))).unwrap_err();
        assert_eq!(error.to_string(), "retry.backoff.max: \"1s\" is less than the base interval");
    }

    proptest! {
        #[test]
        fn no_wait_overflows_or_reaches_the_maximum(base: u64, retries: u32, random: u32) {
            let base = Duration::from_millis(base);
            let backoff = Backoff::new(base, None).unwrap();
            let wait = backoff.wait(retries, random);
            prop_assert!(wait < base.saturating_mul(10) || base.is_zero());
        }
    }
}
