//! The metrics of a process, as OpenMetrics or in Prometheus' classic text format.
//!
//! Label values come from closed or bounded sets, so that no client can create an unbounded number of series.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::registry::{Metric, Registry};

mod format;

pub(crate) use self::format::Format;

/// The metrics of one process, or of one daemon among several in a process. Clones share them.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// An empty set of metrics.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a metric, or a family of them. Callers write the full name, `tidegate_…`, except for the suffix `_total` of
    /// counters and the full stop after the help text, which the encoder adds.
    pub fn register<M: Metric + Clone + Default>(&self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.registry(|registry| registry.register(name, help, metric.clone()));
        metric
    }

    /// Registers metrics that have no default, such as histograms.
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
        let counter: Counter = metrics.register("tidegate_tests", "Tests");
        metrics.add_collector(Box::new(Workers));
        counter.inc_by(3);
        let page = metrics.encode();
        assert_eq!(
            page,
            "# HELP tidegate_tests Tests.\n# TYPE tidegate_tests counter\ntidegate_tests_total 3\n\
             # HELP tidegate_workers Sum.\n# TYPE tidegate_workers counter\ntidegate_workers_total 7\n# EOF\n"
        );
    }
}
