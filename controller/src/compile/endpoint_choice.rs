//! What decides which endpoints of a Service its clients use: the conditions of each, and what the Service says about
//! clients.
//!
//! `trafficDistribution` is not read. Kubernetes' EndpointSlice controller sets hints by it, and only these decide, as for
//! kube-proxy. Hints of endpoints that are not ready do not count.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::Endpoint as SliceEndpoint;
use tidegate_core::backend::{Topology, TopologyHints};

/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`, and the most that it admits.
const DEFAULT_AFFINITY: i32 = 10_800;
/// The longest session affinity in seconds: Kubernetes' limit.
const MOST_AFFINITY: i32 = 86_400;

/// A missing condition counts as ready, as Kubernetes specifies for `EndpointConditions.ready`.
pub(super) fn is_ready(endpoint: &SliceEndpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

/// A Pod that terminates and still serves (KEP-1669): used only while no endpoint is ready.
pub(super) fn is_serving_its_last(endpoint: &SliceEndpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_some_and(|is| is.terminating == Some(true) && is.serving.unwrap_or(true))
}

/// Whether clients use endpoints on their own node only. A policy that Kubernetes may add later is read so, too: it leaves
/// out rather than adds.
pub(super) fn is_local(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.internal_traffic_policy.as_deref());
    policy.is_some_and(|policy| policy != "Cluster")
}

/// How the endpoints of a Service at these addresses depend on the client's place.
pub(super) fn topology<'s>(
    service: &Service,
    endpoints: impl Iterator<Item = (SocketAddr, &'s SliceEndpoint)>,
) -> Topology {
    if is_local(service) {
        let node =
            |(address, endpoint): (_, &SliceEndpoint)| Some((address, endpoint.node_name.as_deref()?.into()));
        return Topology::SameNode(endpoints.filter_map(node).collect());
    }
    let ready = endpoints.filter(|(_, endpoint)| is_ready(endpoint));
    let hints: BTreeMap<_, _> =
        ready.filter_map(|(address, endpoint)| Some((address, hints(endpoint)?))).collect();
    if hints.is_empty() { Topology::Any } else { Topology::Hints(hints) }
}

/// `None` without any.
fn hints(endpoint: &SliceEndpoint) -> Option<TopologyHints> {
    let hints = endpoint.hints.as_ref()?;
    let nodes: Vec<_> = hints.for_nodes.iter().flatten().map(|node| node.name.as_str().into()).collect();
    let zones: Vec<_> = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into()).collect();
    (!nodes.is_empty() || !zones.is_empty()).then_some(TopologyHints { nodes, zones })
}

/// How long a client keeps its endpoint after its last connection or request.
pub(super) fn affinity(service: &Service) -> Option<Duration> {
    let spec = service.spec.as_ref()?;
    spec.session_affinity.as_deref().filter(|affinity| *affinity == "ClientIP")?;
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY);
    u64::try_from(seconds.clamp(1, MOST_AFFINITY)).ok().map(Duration::from_secs)
}
