//! Limits of retries relative to requests (GEP-3388: `retryConstraint`; Linkerd: `retryBudget`).
//!
//! A retry policy alone multiplies the load exactly when a backend fails. A budget is shared by all routes to a backend;
//! beyond it, a failure is final. Envoy's budget differs: it is a share of the requests in flight.

use std::time::Duration;

use serde::Serialize;

use crate::route::error::{Problem, RouteError};

/// The budget as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    percent: u32,
    interval: Duration,
    min_count: u32,
    min_interval: Duration,
}

/// A budget in use. Each data worker keeps one per backend: the percentage holds for each worker as for all of them, and
/// `min_count` is divided among them ([`Budget::divided_by`]).
///
/// Times are durations since an arbitrary fixed moment, and do not decrease. Counts are kept in ten time slots, so memory
/// is constant.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    budget: Budget,
    requests: SlidingWindow,
    retries: SlidingWindow,
    recent_retries: SlidingWindow,
}

/// Counts events within a sliding interval, with a resolution of a tenth of it.
#[derive(Clone, Debug)]
struct SlidingWindow {
    slot: Duration,
    counts: [u32; SLOTS],
    /// Number of the newest slot, counted from time zero.
    newest: u128,
}

const SLOTS: usize = 10;

impl Budget {
    /// Allows retries up to `percent` of the requests of the last `interval`, or `min_count` retries per `min_interval` if
    /// that is more, so that retries work at low request rates.
    pub fn new(
        percent: u32,
        interval: Duration,
        min_count: u32,
        min_interval: Duration,
    ) -> Result<Self, RouteError> {
        if percent > 100 {
            return Err(RouteError::new("budget.percent", percent, Problem::TooLarge(100)));
        }
        for (field, interval) in [("budget.interval", interval), ("minRetryRate.interval", min_interval)] {
            if interval.is_zero() {
                return Err(RouteError::new(field, format!("{interval:?}"), Problem::Empty));
            }
        }
        Ok(Self { percent, interval, min_count, min_interval })
    }

    /// Retries in percent of the requests of [`Budget::interval`].
    pub fn percent(&self) -> u32 {
        self.percent
    }

    /// The time over which requests and retries are compared.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Retries that are allowed per [`Budget::min_interval`] whatever the percentage.
    pub fn min_count(&self) -> u32 {
        self.min_count
    }

    /// The time to which [`Budget::min_count`] applies.
    pub fn min_interval(&self) -> Duration {
        self.min_interval
    }

    /// The budget of one of several workers that share the requests.
    #[must_use]
    pub fn divided_by(self, workers: u32) -> Self {
        Self { min_count: self.min_count.div_ceil(workers.max(1)), ..self }
    }
}

impl Default for Budget {
    /// 20 % of the requests of the last 10 s, and 10 retries each second: GEP-3388 and Linkerd.
    fn default() -> Self {
        Self {
            percent: 20,
            interval: Duration::from_secs(10),
            min_count: 10,
            min_interval: Duration::from_secs(1),
        }
    }
}

impl RetryBudget {
    /// An unused budget.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            requests: SlidingWindow::new(budget.interval),
            retries: SlidingWindow::new(budget.interval),
            recent_retries: SlidingWindow::new(budget.min_interval),
        }
    }

    /// Records a request. Retries are not requests.
    pub fn record_request(&mut self, now: Duration) {
        self.requests.add(now);
    }

    /// Records a retry.
    pub fn record_retry(&mut self, now: Duration) {
        self.retries.add(now);
        self.recent_retries.add(now);
    }

    /// Whether it holds nothing that counts any more.
    pub fn is_unused(&mut self, now: Duration) -> bool {
        self.requests.sum(now) + self.retries.sum(now) == 0
    }

    /// Whether one more retry is allowed.
    pub fn allows(&mut self, now: Duration) -> bool {
        let allowed = self.requests.sum(now) * u64::from(self.budget.percent) / 100;
        self.retries.sum(now) < allowed || self.recent_retries.sum(now) < u64::from(self.budget.min_count)
    }
}

impl SlidingWindow {
    fn new(interval: Duration) -> Self {
        let slot = (interval / u32::try_from(SLOTS).unwrap_or(1)).max(Duration::from_nanos(1));
        Self { slot, counts: [0; SLOTS], newest: 0 }
    }

    fn add(&mut self, now: Duration) {
        let at = self.advance(now);
        if let Some(count) = self.counts.get_mut(at) {
            *count = count.saturating_add(1);
        }
    }

    fn sum(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Clears expired slots and returns the index of the newest.
    fn advance(&mut self, now: Duration) -> usize {
        let slots = u128::try_from(SLOTS).unwrap_or(1);
        let place = |number: u128| usize::try_from(number % slots).unwrap_or(0);
        let current = now.as_nanos() / self.slot.as_nanos();
        let passed = current.saturating_sub(self.newest).min(slots);
        for number in 0..passed {
            if let Some(count) = self.counts.get_mut(place(current - number)) {
                *count = 0;
            }
        }
        self.newest = self.newest.max(current);
        place(self.newest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn milliseconds(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn half_of_the_requests_failing_costs_a_fifth_more_at_most() {
        let mut budget = RetryBudget::new(Budget::default());
        let (mut sent, mut retried) = (0_u32, 0_u32);
        // 1,000 requests each second for 30 s; every other attempt fails.
        for request in 0..30_000_u64 {
            let now = milliseconds(request);
            budget.record_request(now);
            sent += 1;
            if request % 2 == 0 && budget.allows(now) {
                budget.record_retry(now);
                retried += 1;
            }
        }
        let share = f64::from(retried) / f64::from(sent);
        assert!((0.19..=0.2).contains(&share), "{share}");
    }

    #[test]
    fn a_lone_request_may_be_retried_a_limited_number_of_times() {
        let mut budget = RetryBudget::new(Budget::default());
        budget.record_request(milliseconds(0));
        let retry = |budget: &mut RetryBudget, now| {
            let allows = budget.allows(now);
            if allows {
                budget.record_retry(now);
            }
            allows
        };
        assert_eq!((0..50).filter(|_| retry(&mut budget, milliseconds(5))).count(), 10);
        assert!(!retry(&mut budget, milliseconds(900)));
        assert!(retry(&mut budget, milliseconds(1100)), "a second later there are ten more");
    }

    #[test]
    fn a_worker_s_share_is_at_least_one_retry() {
        let per_worker = |workers| Budget::default().divided_by(workers).min_count;
        assert_eq!([per_worker(0), per_worker(2), per_worker(3), per_worker(64)], [10, 5, 4, 1]);
    }

    #[test]
    fn an_invalid_budget_is_refused() {
        let second = Duration::from_secs(1);
        let error = Budget::new(101, second, 1, second).unwrap_err();
        assert_eq!(error.to_string(), "budget.percent: \"101\" is more than 100");
        assert!(Budget::new(20, Duration::ZERO, 1, second).is_err());
        assert!(Budget::new(20, second, 1, Duration::ZERO).is_err());
    }

    proptest! {
        #[test]
        fn a_window_counts_what_happened_within_its_interval(
            steps in prop::collection::vec(0_u64..400, 0..200),
        ) {
            let mut window = SlidingWindow::new(Duration::from_secs(1));
            let (mut now, mut seen) = (0, Vec::new());
            for step in steps {
                now += step;
                window.add(milliseconds(now));
                seen.push(now);
                let within = seen.iter().filter(|at| **at / 100 + 10 > now / 100).count();
                prop_assert_eq!(window.sum(milliseconds(now)), u64::try_from(within).unwrap());
            }
        }
    }
}
