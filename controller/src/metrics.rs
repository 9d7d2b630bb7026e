//! The controller's metrics.
//!
//! Counters get the suffix `_total` when they are encoded; `docs/operations.md` lists all of them with their meaning.
//! Labels are closed sets or namespaces of the cluster, so that no client chooses the number of series.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tidegate_runtime::metrics::Metrics;

/// Registered once; clones share the counters.
#[derive(Clone, Debug, Default)]
pub(crate) struct ControllerMetrics {
    pub(crate) workloads: Gauge,
    pub(crate) compiled: Counter,
    pub(crate) streams: Gauge,
    pub(crate) refused_streams: Counter,
    pub(crate) sent: Counter,
    pub(crate) acknowledged: Counter,
    pub(crate) rejected: Counter,
    pub(crate) workloads_left_out: NamespaceGauge,
    pub(crate) destinations_left_out: NamespaceGauge,
    limits: Family<LimitLabel, Counter>,
}

/// A number for each namespace, if other than 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct NamespaceGauge(Family<NamespaceLabel, Gauge>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceLabel {
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

impl ControllerMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            workloads_left_out: NamespaceGauge::register(
                metrics,
                "tidegate_controller_workloads_left_out",
                "Workloads without a policy because others of their namespace use up its share",
            ),
            destinations_left_out: NamespaceGauge::register(
                metrics,
                "tidegate_controller_destinations_left_out",
                "Addresses sent without endpoints because others of their namespace use up its share",
            ),
            workloads: metrics.register("tidegate_controller_workloads", "Workloads that have a policy"),
            compiled: metrics
                .register("tidegate_controller_policies_compiled", "Policies compiled, changed or not"),
            streams: metrics.register("tidegate_controller_discovery_streams", "Sidecars that are connected"),
            refused_streams: metrics.register(
                "tidegate_controller_discovery_streams_refused",
                "Streams ended because the peer may not subscribe to the workload that it named",
            ),
            sent: metrics.register("tidegate_controller_resources_sent", "Resources sent"),
            acknowledged: metrics
                .register("tidegate_controller_resources_acknowledged", "Resources that a sidecar applied"),
            rejected: metrics
                .register("tidegate_controller_resources_rejected", "Resources that a sidecar refused"),
            limits: metrics.register(
                "tidegate_controller_discovery_limits",
                "Times that a sidecar reached a limit of streams or destinations",
            ),
        }
    }

    /// Counts that a limit was reached, by its stable word (`ShareLimit::code`), which the log line has too.
    pub(crate) fn limit_reached(&self, limit: &'static str) {
        self.limits.get_or_create(&LimitLabel { limit }).inc();
    }
}

impl NamespaceGauge {
    pub(crate) fn register(metrics: &Metrics, name: &str, help: &str) -> Self {
        Self(metrics.register(name, help))
    }

    /// Sets the number of a namespace. At 0 the series ends, so that namespaces that are long gone do not stay on the
    /// page.
    pub(crate) fn set(&self, namespace: &str, count: usize) {
        let label = NamespaceLabel { namespace: namespace.to_owned() };
        if count == 0 {
            self.0.remove(&label);
        } else {
            self.0.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    #[cfg(test)]
    pub(crate) fn value(&self, namespace: &str) -> i64 {
        let label = NamespaceLabel { namespace: namespace.to_owned() };
        self.0.get(&label).map_or(0, |gauge| gauge.get())
    }
}
