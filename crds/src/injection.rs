//! Which mesh a namespace is in, and which control plane the sidecar of a Pod connects to.
//!
//! The injector writes what is read here; see [`tidegate_core::contract`]. A cluster may hold several meshes: the labels
//! of a namespace determine its mesh ([`mesh_of`]), and a Pod's sidecar determines the Pod's control plane
//! ([`control_plane_of`]).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use tidegate_core::contract::flags;
use tidegate_core::contract::labels::{CONTROL_PLANE, IGNORE, INJECTION, MONITORED_BY};
use tidegate_core::contract::names::{self, DEFAULT_MESH_NAME};

/// The mesh that a namespace with these labels belongs to, if any: its policies apply there, its Services can be
/// sources, and it gets that mesh's trust bundle. It is one mesh at most.
pub fn mesh_of(labels: Option<&BTreeMap<String, String>>) -> Option<&str> {
    let labels = labels?;
    let label = |name: &str| labels.get(name).map(String::as_str);
    let by_injection = || (label(INJECTION) == Some("enabled")).then_some(DEFAULT_MESH_NAME);
    if kept_out_by(labels).is_some() { None } else { label(MONITORED_BY).or_else(by_injection) }
}

/// The label that keeps a namespace out of every mesh, whatever other labels it has; the charts' webhooks use the same
/// labels.
pub fn kept_out_by(labels: &BTreeMap<String, String>) -> Option<&'static str> {
    [IGNORE, CONTROL_PLANE].into_iter().find(|label| labels.contains_key(*label))
}

/// Whether a namespace with these labels belongs to the mesh of this name; see [`mesh_of`].
pub fn is_in_mesh(labels: Option<&BTreeMap<String, String>>, mesh_name: &str) -> bool {
    mesh_of(labels) == Some(mesh_name)
}

/// [`is_in_mesh`] of a Namespace.
pub fn namespace_is_in_mesh(namespace: &Namespace, mesh_name: &str) -> bool {
    is_in_mesh(namespace.metadata.labels.as_ref(), mesh_name)
}

/// Whether a Pod has a sidecar: its container exists. Labels do not count, because unlike containers they may change
/// while a Pod runs.
pub fn has_sidecar(pod: &Pod) -> bool {
    sidecar_container(pod).is_some()
}

/// The namespace of the control plane that a Pod's sidecar connects to, according to its arguments: unlike labels, they
/// cannot change while it runs. `None` without a sidecar, or if its arguments do not say.
pub fn control_plane_of(pod: &Pod) -> Option<&str> {
    sidecar_container(pod)?.args.as_deref()?.iter().find_map(|argument| control_plane_in(argument))
}

/// The control plane's namespace in an argument of a sidecar, if it is the one with the name of the controller's
/// certificate, `<controller>.<namespace>.<trust domain>`.
pub fn control_plane_in(argument: &str) -> Option<&str> {
    let name = flags::value(argument, flags::DISCOVERY_SERVER_NAME)?;
    let (namespace, _trust_domain) =
        name.strip_prefix(names::CONTROLLER)?.strip_prefix('.')?.split_once('.')?;
    Some(namespace)
}

/// Whether a Pod has a sidecar ([`has_sidecar`]) that connects to the control plane in this namespace. A sidecar whose
/// arguments do not say counts as one: this assumption of others does not change which peers it trusts.
pub fn has_sidecar_of(pod: &Pod, control_plane: &str) -> bool {
    has_sidecar(pod) && control_plane_of(pod).is_none_or(|namespace| namespace == control_plane)
}

/// The sidecar's container, if a Pod has it.
pub fn sidecar_container(pod: &Pod) -> Option<&Container> {
    let containers = pod.spec.as_ref()?.init_containers.as_deref()?;
    containers.iter().find(|container| {
        container.name == names::SIDECAR && container.restart_policy.as_deref() == Some("Always")
    })
}

#[cfg(test)]
mod tests {
    use tidegate_core::contract::labels::{INJECTED, SIDECAR_LABEL};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn with_arguments(arguments: &[&str]) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"labels": {SIDECAR_LABEL: INJECTED}},
            "spec": {"containers": [], "initContainers": [
                {"name": names::SIDECAR, "restartPolicy": "Always", "args": arguments},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn a_namespace_joins_by_either_label_and_leaves_by_ignore() {
        let is_in = |pairs: &[(&str, &str)]| is_in_mesh(Some(&labels(pairs)), "osm");
        assert!(is_in(&[(MONITORED_BY, "osm")]));
        assert!(is_in(&[(INJECTION, "enabled")]));
        assert!(!is_in(&[(MONITORED_BY, "other")]));
        assert!(!is_in(&[(INJECTION, "disabled")]));
        assert!(!is_in(&[(MONITORED_BY, "osm"), (INJECTION, "enabled"), (IGNORE, "true")]));
        assert!(!is_in_mesh(None, "osm"));
    }

    #[test]
    fn a_namespace_is_in_one_mesh_at_most_and_the_label_that_names_one_decides() {
        let mesh = |pairs: &[(&str, &str)]| mesh_of(Some(&labels(pairs))).map(str::to_owned);
        assert_eq!(mesh(&[(INJECTION, "enabled")]).as_deref(), Some("osm"));
        assert_eq!(mesh(&[(INJECTION, "enabled"), (MONITORED_BY, "blue")]).as_deref(), Some("blue"));
        assert_eq!(mesh(&[(INJECTION, "disabled"), (MONITORED_BY, "blue")]).as_deref(), Some("blue"));
        assert_eq!(mesh(&[(IGNORE, ""), (MONITORED_BY, "blue")]), None);
        assert_eq!(mesh(&[(CONTROL_PLANE, "x"), (MONITORED_BY, "blue")]), None);
        assert_eq!(mesh(&[]), None);
    }

    #[test]
    fn a_sidecar_belongs_to_the_control_plane_that_it_listens_to() {
        let name = "--discovery-server-name=tidegate-controller.mesh-a.cluster.local";
        let pod = with_arguments(&["--transparent", "--discovery-address=https://10.0.0.1:15128", name]);
        assert_eq!(control_plane_of(&pod), Some("mesh-a"));
        assert!(has_sidecar_of(&pod, "mesh-a") && !has_sidecar_of(&pod, "mesh-b"));
        for unknown in [&["--transparent"][..], &["--discovery-server-name=tidegate-controller"], &[]] {
            let pod = with_arguments(unknown);
            assert_eq!(control_plane_of(&pod), None, "{unknown:?}");
            assert!(has_sidecar_of(&pod, "mesh-b"), "{unknown:?}");
        }
        let mut unlabelled = with_arguments(&[name]);
        unlabelled.metadata.labels = None;
        assert!(has_sidecar_of(&unlabelled, "mesh-a"), "labels may be changed while it runs");
    }

    #[test]
    fn a_pod_has_a_sidecar_by_its_native_container_whatever_its_labels_say() {
        let pod = |value: &str, restart: Option<&str>| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"labels": {SIDECAR_LABEL: value}},
                "spec": {"containers": [], "initContainers": [{"name": names::SIDECAR, "restartPolicy": restart}]},
            }))
            .unwrap()
        };
        assert!(has_sidecar(&pod(INJECTED, Some("Always"))));
        assert!(has_sidecar(&pod("no", Some("Always"))));
        assert!(!has_sidecar(&pod(INJECTED, None)));
        assert!(!has_sidecar(&Pod::default()));
    }
}
