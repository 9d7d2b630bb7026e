//! Facts about a Pod, from its spec and status.
//!
//! Both are read from what `object/stored/lean.rs` keeps of a Pod: of the phase only the final ones, of the spec the
//! names of the account and of the node.

use k8s_openapi::api::core::v1::Pod;

/// Whether all of a Pod's containers have ended for good. Its address may then belong to another Pod.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The service account that a Pod runs as.
pub(crate) fn service_account(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    let account =
        spec.and_then(|spec| spec.service_account_name.as_deref().or(spec.service_account.as_deref()));
    account.filter(|account| !account.is_empty()).unwrap_or("default")
}

/// The name of the node that a Pod runs on; none before it is scheduled, and in folders that do not say so.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty())
}
