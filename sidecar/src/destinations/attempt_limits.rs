//! What a rule, or an object about a Service, allows a request beyond one attempt of any length.

use std::sync::Arc;

use tidegate_core::ServiceRetry;
use tidegate_core::route::{RetryPolicy, RouteRule, Timeouts};

/// Time limits and retries. All requests that they are for share them.
#[derive(Debug)]
pub(crate) struct AttemptLimits {
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<RetryPolicy>,
}

impl AttemptLimits {
    /// `None`: the rule neither limits the time of its requests nor has them retried.
    pub(super) fn of(rule: &RouteRule) -> Option<Arc<Self>> {
        let timeouts = rule.timeouts;
        let is_limited = timeouts.request().is_some() || timeouts.backend_request().is_some();
        (is_limited || rule.retry.is_some()).then(|| Arc::new(Self { timeouts, retry: rule.retry.clone() }))
    }

    /// Those of requests to a Service.
    pub(super) fn of_service(retry: &ServiceRetry) -> Arc<Self> {
        Arc::new(Self { timeouts: retry.timeouts, retry: Some(retry.policy.clone()) })
    }
}
