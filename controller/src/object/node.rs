//! Facts about a Node.

use k8s_openapi::api::core::v1::Node;

/// The label with a node's zone, set by cloud providers.
pub(crate) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The zone of a Node.
pub(crate) fn zone(node: &Node) -> Option<&str> {
    let zone = node.metadata.labels.as_ref()?.get(ZONE_LABEL)?;
    Some(zone.as_str()).filter(|zone| !zone.is_empty())
}
