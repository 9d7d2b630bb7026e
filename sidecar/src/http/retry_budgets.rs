//! Retry budgets of the backends that a worker sends to: one for each, whichever routes lead there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_core::route::RetryPolicy;
use tidegate_core::route::retry::RetryBudget;

/// A worker's retry budgets. A backend has that of the policy that its first request had.
pub(crate) struct RetryBudgets {
    of: RefCell<HashMap<Arc<str>, RetryBudget>>,
    /// The workers that divide each budget.
    workers: u32,
    /// Moments are measured from here.
    start: Instant,
}

impl RetryBudgets {
    /// Of one of `workers` workers.
    pub(super) fn new(workers: u32) -> Self {
        Self { of: RefCell::default(), workers, start: Instant::now() }
    }

    /// Records a request of a rule with this policy.
    pub(super) fn record_request(&self, backend: &Arc<str>, policy: &RetryPolicy) {
        self.with(backend, policy, RetryBudget::record_request);
    }

    /// Records a retry.
    pub(super) fn record_retry(&self, backend: &Arc<str>, policy: &RetryPolicy) {
        self.with(backend, policy, RetryBudget::record_retry);
    }

    /// Whether one more retry is allowed. A policy without a budget has the default one.
    pub(super) fn allows(&self, backend: &Arc<str>, policy: &RetryPolicy) -> bool {
        self.with(backend, policy, RetryBudget::allows)
    }

    /// Forgets backends that get no requests. To be called on every tick of the worker.
    pub(super) fn sweep(&self) {
        let now = self.start.elapsed();
        self.of.borrow_mut().retain(|_, budget| !budget.is_unused(now));
    }

    fn with<R>(
        &self,
        backend: &Arc<str>,
        policy: &RetryPolicy,
        act: impl FnOnce(&mut RetryBudget, Duration) -> R,
    ) -> R {
        let now = self.start.elapsed();
        let mut of = self.of.borrow_mut();
        if let Some(budget) = of.get_mut(backend) {
            return act(budget, now);
        }
        let shared = policy.budget().copied().unwrap_or_default();
        let new = RetryBudget::new(shared.divided_by(self.workers));
        act(of.entry(backend.clone()).or_insert(new), now)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::route::retry::{Backoff, RetryMethods, RetryOn};

    use super::*;

    #[test]
    fn each_backend_has_a_budget_that_ends_without_requests() {
        let policy = RetryPolicy::new(RetryOn::default(), RetryMethods::All, 1, Backoff::NONE, None).unwrap();
        let budgets = RetryBudgets::new(1);
        let (one, other) = (Arc::from("shop/one"), Arc::from("shop/other"));
        budgets.record_request(&one, &policy);
        while budgets.allows(&one, &policy) {
            budgets.record_retry(&one, &policy);
        }
        assert!(budgets.allows(&other, &policy), "another backend's");
        budgets.sweep();
        assert!(!budgets.allows(&one, &policy));
        let RetryBudgets { start, of, workers } = budgets;
        let later = RetryBudgets { start: start - Duration::from_secs(60), of, workers };
        later.sweep();
        assert!(later.of.borrow().is_empty() && later.allows(&one, &policy));
    }

    #[test]
    fn workers_divide_the_retries_that_are_always_allowed() {
        let policy = RetryPolicy::new(RetryOn::default(), RetryMethods::All, 1, Backoff::NONE, None).unwrap();
        let backend = Arc::from("shop/one");
        let retries = |workers| {
            let budgets = RetryBudgets::new(workers);
            let allowed = (0..100).take_while(|_| {
                let allows = budgets.allows(&backend, &policy);
                budgets.record_retry(&backend, &policy);
                allows
            });
            allowed.count()
        };
        assert_eq!([retries(1), retries(2), retries(4)], [10, 5, 3]);
    }
}
