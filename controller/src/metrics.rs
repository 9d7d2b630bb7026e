//! What the controller counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tidegate_runtime::metrics::Metrics;

#[derive(Clone, Debug, Default)]
pub(crate) struct ControllerMetrics {
    pub(crate) workloads: Gauge,
    pub(crate) compiled: Counter,
    pub(crate) streams: Gauge,
    pub(crate) refused_streams: Counter,
    pub(crate) sent: Counter,
    pub(crate) acknowledged: Counter,
    pub(crate) rejected: Counter,
}

impl ControllerMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.registry(|registry| {
            registry.register(
                "tidegate_controller_workloads",
                "Workloads that have a policy",
                own.workloads.clone(),
            );
            registry.register(
                "tidegate_controller_policies_compiled",
                "Policies compiled, changed or not",
                own.compiled.clone(),
            );
            registry.register(
                "tidegate_controller_discovery_streams",
                "Sidecars that are connected",
                own.streams.clone(),
            );
            registry.register(
                "tidegate_controller_discovery_streams_refused",
                "Streams ended because the peer may not ask for the workload that it named",
                own.refused_streams.clone(),
            );
            registry.register("tidegate_controller_resources_sent", "Resources sent", own.sent.clone());
            registry.register(
                "tidegate_controller_resources_acknowledged",
                "Resources that a sidecar took over",
                own.acknowledged.clone(),
            );
            registry.register(
                "tidegate_controller_resources_rejected",
                "Resources that a sidecar refused",
                own.rejected.clone(),
            );
        });
        own
    }
}
