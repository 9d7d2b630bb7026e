//! Facts about a Pod, from its spec and status.
//!
//! Both are read from what `object/stored/lean.rs` keeps of a Pod: of the phase only the final ones, of the conditions that
//! it is not ready, of the spec the names of the account and of the node.

use k8s_openapi::api::core::v1::Pod;

/// The condition that says whether a Pod is ready.
pub(crate) const READY: &str = "Ready";
/// Label of a Job's Pods: its name.
const JOB_LABEL: &str = "batch.kubernetes.io/job-name";
/// Label of a ReplicaSet's Pods, if a Deployment has made it: the end of its name.
const TEMPLATE_LABEL: &str = "pod-template-hash";
/// Labels of the Pods of StatefulSets and DaemonSets, whose names end with an ordinal or with random letters.
const NUMBERED_LABELS: [&str; 2] = ["statefulset.kubernetes.io/pod-name", "pod-template-generation"];

/// Whether all of a Pod's containers have ended for good. Its address may then belong to another Pod.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a Pod takes new connections: it is ready and not being deleted. One that does not say whether it is ready, as in a
/// folder, is.
pub(crate) fn is_serving(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready =
        conditions.filter(|condition| condition.type_ == READY).all(|condition| condition.status == "True");
    is_ready && !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
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

/// What a Pod belongs to: the name of its Deployment, StatefulSet, DaemonSet or Job, as their controllers' labels and
/// names of Pods show it; else the Pod's own name, as of one that has no owner or whose name was cut off.
pub(crate) fn workload(pod: &Pod) -> &str {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let label = |key| pod.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let unnumbered = || name.rsplit_once('-').map(|(prefix, _)| prefix);
    let of_template = |hash| unnumbered()?.strip_suffix(hash)?.strip_suffix('-');
    let workload = if let Some(job) = label(JOB_LABEL) {
        Some(job)
    } else if let Some(hash) = label(TEMPLATE_LABEL) {
        of_template(hash)
    } else if NUMBERED_LABELS.iter().any(|key| label(key).is_some()) {
        unnumbered()
    } else {
        None
    };
    workload.filter(|workload| !workload.is_empty()).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, labels: &[(&str, &str)]) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.labels =
            Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        pod
    }

    #[test]
    fn a_pod_belongs_to_what_has_made_it() {
        for (name, labels, expected) in [
            ("cart-v1-7d4b9c6f5-x2x9p", &[("pod-template-hash", "7d4b9c6f5")][..], "cart-v1"),
            ("cut-off-7d4b9-x2x9p", &[("pod-template-hash", "7d4b9c6f5")], "cut-off-7d4b9-x2x9p"),
            ("db-0", &[("statefulset.kubernetes.io/pod-name", "db-0")], "db"),
            ("agent-x2x9p", &[("pod-template-generation", "1")], "agent"),
            ("nightly-28-x2x9p", &[("batch.kubernetes.io/job-name", "nightly-28")], "nightly-28"),
            ("curl", &[("app", "curl")], "curl"),
            ("-7d-x", &[("pod-template-hash", "7d")], "-7d-x"),
        ] {
            assert_eq!(workload(&pod(name, labels)), expected);
        }
    }
}
