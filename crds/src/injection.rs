//! The labels, annotations and names by which namespaces join the mesh and Pods carry a sidecar.
//!
//! The injector writes them, the controller and the command line read them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};

/// Namespace label: the mesh that the namespace belongs to.
pub const MONITORED_BY: &str = "openservicemesh.io/monitored-by";
/// Namespace label: the mesh leaves it alone, whatever else is set.
pub const IGNORE: &str = "openservicemesh.io/ignore";
/// Namespace or Pod annotation: whether a sidecar is added.
pub const SIDECAR_INJECTION: &str = "openservicemesh.io/sidecar-injection";
/// Namespace label: `enabled` puts the namespace into the mesh and adds sidecars, all in one.
pub const INJECTION: &str = "tidegate.io/injection";
/// Namespace or Pod annotation: whether Prometheus is told to scrape sidecars.
pub const METRICS: &str = "openservicemesh.io/metrics";
/// Label that the injector puts on a Pod with a sidecar.
pub const SIDECAR_LABEL: &str = "tidegate.io/sidecar";
/// The value of [`SIDECAR_LABEL`].
pub const INJECTED: &str = "injected";
/// The native sidecar's container.
pub const SIDECAR_CONTAINER: &str = "tidegate-sidecar";
/// The init container that redirects the Pod's traffic.
pub const INTERCEPT_CONTAINER: &str = "tidegate-intercept";
/// What a mesh is called unless told otherwise: the name that OSM's users have on their namespaces.
pub const DEFAULT_MESH_NAME: &str = "osm";
/// The ConfigMap in each namespace of the mesh, and in the control plane's, that holds the trust bundle.
pub const TRUST_BUNDLE_CONFIG_MAP: &str = "tidegate-trust-bundle";
/// The key of the trust bundle, PEM, in [`TRUST_BUNDLE_CONFIG_MAP`].
pub const TRUST_BUNDLE_KEY: &str = "ca.crt";

/// Whether a namespace with these labels belongs to the mesh: its policies count, its Services can be sources, and it
/// gets the trust bundle.
pub fn is_in_mesh(labels: Option<&BTreeMap<String, String>>, mesh_name: &str) -> bool {
    let Some(labels) = labels else { return false };
    let label = |name: &str| labels.get(name).map(String::as_str);
    label(IGNORE).is_none() && (label(MONITORED_BY) == Some(mesh_name) || label(INJECTION) == Some("enabled"))
}

/// [`is_in_mesh`] of a Namespace.
pub fn namespace_is_in_mesh(namespace: &Namespace, mesh_name: &str) -> bool {
    is_in_mesh(namespace.metadata.labels.as_ref(), mesh_name)
}

/// Whether a Pod carries a sidecar: its container is there. Labels do not count: unlike containers, they may be changed
/// while a Pod runs.
pub fn has_sidecar(pod: &Pod) -> bool {
    sidecar_container(pod).is_some()
}

/// The sidecar's container, if a Pod has it.
pub fn sidecar_container(pod: &Pod) -> Option<&Container> {
    let containers = pod.spec.as_ref()?.init_containers.as_deref()?;
    containers.iter().find(|container| {
        container.name == SIDECAR_CONTAINER && container.restart_policy.as_deref() == Some("Always")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
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
    fn a_pod_has_a_sidecar_by_its_native_container_whatever_its_labels_say() {
        let pod = |value: &str, restart: Option<&str>| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"labels": {SIDECAR_LABEL: value}},
                "spec": {"containers": [], "initContainers": [{"name": SIDECAR_CONTAINER, "restartPolicy": restart}]},
            }))
            .unwrap()
        };
        assert!(has_sidecar(&pod(INJECTED, Some("Always"))));
        assert!(has_sidecar(&pod("no", Some("Always"))));
        assert!(!has_sidecar(&pod(INJECTED, None)));
        assert!(!has_sidecar(&Pod::default()));
    }
}
