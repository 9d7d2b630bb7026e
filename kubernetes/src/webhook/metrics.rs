//! Metrics of a webhook.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tidegate_runtime::metrics::Metrics;

use super::review::ReviewOutcome;

/// Upper bounds in seconds.
const BUCKETS: [f64; 9] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0];

/// Counts of verdicts, and how long they took. Clones share them.
#[derive(Clone)]
pub(super) struct WebhookMetrics {
    admissions: Family<[(&'static str, &'static str); 1], Counter>,
    duration: Histogram,
}

impl WebhookMetrics {
    /// Registers them; the families appear on the page with their first value.
    pub(super) fn register(metrics: &Metrics) -> Self {
        let admissions = metrics.register(
            "tidegate_admissions",
            "Admission requests by result: allowed, patched, denied, invalid for what is not a request, or busy for what \
             found no memory in time",
        );
        let duration = Histogram::new(BUCKETS);
        metrics.registry(|registry| {
            registry.register(
                "tidegate_admission_duration_seconds",
                "Time from the last byte of an admission request to its answer",
                duration.clone(),
            );
        });
        Self { admissions, duration }
    }

    /// A request with a verdict. `took` is the time since its last byte, without the wait for memory.
    pub(super) fn answered(&self, outcome: &ReviewOutcome, took: Duration) {
        let result = match outcome {
            ReviewOutcome::Allowed => "allowed",
            ReviewOutcome::Patched(_) => "patched",
            ReviewOutcome::Denied(_) => "denied",
        };
        self.admissions.get_or_create(&[("result", result)]).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// A request that got 503 because memory or a thread was not free in time.
    pub(super) fn busy(&self) {
        self.admissions.get_or_create(&[("result", "busy")]).inc();
    }

    /// A request that is not an AdmissionReview, or whose body is too large or too slow.
    pub(super) fn invalid(&self) {
        self.admissions.get_or_create(&[("result", "invalid")]).inc();
    }
}
