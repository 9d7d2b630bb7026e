//! The metrics of a process, as OpenMetrics or in Prometheus' classic text format.
//!
//! Label values come from closed sets. A value from outside passes a [`LabelBudget`] first, so that no client can
//! create an unbounded number of series.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

mod format;

pub(crate) use self::format::Format;

/// The label value for all values beyond a [`LabelBudget`].
pub(crate) const OTHER: &str = "other";

/// The metrics of one process, or of one daemon among several in a process. Clones share them.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

/// Limits the distinct values of a label whose values come from outside.
#[derive(Debug)]
pub struct LabelBudget {
    most: usize,
    seen: Mutex<HashSet<Box<str>>>,
}

impl Metrics {
    /// An empty set of metrics.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers metrics. Callers write the full name, `tidegate_…`, except for the suffix `_total` of counters and the
    /// full stop after the help text, which the encoder adds.
    pub fn registry<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers a collector that runs at each [`encode`](Self::encode), such as the sum over all workers.
    pub fn add_collector(&self, collector: Box<dyn Collector>) {
        self.registry(|registry| registry.register_collector(collector));
    }

    /// Every metric as OpenMetrics 1.0 text, ending in `# EOF`.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail; a failing collector only omits its own part.
        if let Err(error) = self.registry(|registry| text::encode(&mut page, registry)) {
            tracing::warn!(%error, "a metrics collector failed");
        }
        page
    }

    /// Every metric in this format.
    pub(crate) fn encode_as(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.encode(),
            Format::Text => format::to_text(&self.encode()),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl LabelBudget {
    /// Admits the first `most` distinct values.
    pub fn new(most: usize) -> Self {
        Self { most, seen: Mutex::default() }
    }

    /// `value` if it is within the budget, otherwise [`OTHER`]. Values longer than 128 bytes never are.
    pub fn admit<'a>(&self, value: &'a str) -> &'a str {
        if value.len() > 128 {
            return OTHER;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(value) {
            return value;
        }
        if seen.len() >= self.most {
            return OTHER;
        }
        seen.insert(value.into());
        value
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::counter::{ConstCounter, Counter};

    use super::*;

    #[derive(Debug)]
    struct Workers;

    impl Collector for Workers {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let sum = ConstCounter::new(7_u64);
            let metric = encoder.encode_descriptor("tidegate_workers", "Sum.", None, sum.metric_type())?;
            sum.encode(metric)
        }
    }

    #[test]
    fn the_page_holds_registered_metrics_and_what_collectors_add() {
        let metrics = Metrics::new();
        let counter = Counter::<u64>::default();
        metrics.registry(|registry| registry.register("tidegate_tests", "Tests", counter.clone()));
        metrics.add_collector(Box::new(Workers));
        counter.inc_by(3);
        let page = metrics.encode();
        assert_eq!(
            page,
            "# HELP tidegate_tests Tests.\n# TYPE tidegate_tests counter\ntidegate_tests_total 3\n\
             # HELP tidegate_workers Sum.\n# TYPE tidegate_workers counter\ntidegate_workers_total 7\n# EOF\n"
        );
    }

    #[test]
    fn a_million_values_from_outside_make_no_more_than_the_budget() {
        let budget = LabelBudget::new(10);
        let values: HashSet<_> =
            (0..1_000_000).map(|i| budget.admit(&format!("host-{i}")).to_owned()).collect();
        assert_eq!(values.len(), 11);
        assert!(values.contains(OTHER));
        assert_eq!(budget.admit("host-3"), "host-3");
        assert_eq!(LabelBudget::new(10).admit(&"x".repeat(129)), OTHER);
    }
}
