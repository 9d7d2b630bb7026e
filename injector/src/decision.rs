//! Whether a Pod gets a sidecar.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use tidegate_crds::injection::{INJECTION, SIDECAR_INJECTION, is_in_mesh};

use crate::annotations::{AnnotationError, Annotations};
use crate::pod::PodView;

/// Namespaces of Kubernetes itself: a sidecar there could keep the cluster from starting.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// A namespace, as far as injection is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceView {
    /// Its name.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// Whether a Pod gets a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It does.
    Inject,
    /// It does not, and why.
    Leave(Reason),
}

/// Why a Pod gets no sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its namespace is Kubernetes' own or the control plane's.
    SystemNamespace,
    /// Its namespace does not belong to the mesh.
    NotInMesh,
    /// It shares the network of its node, which must not be redirected.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// Its own annotation says so.
    OptedOut,
    /// Neither its namespace nor the Pod itself asks for one.
    NotAskedFor,
}

/// Why there is no decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecisionError {
    /// An annotation cannot be read.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The Pod asks for what cannot be.
    #[error(
        "the pod asks for a sidecar by {SIDECAR_INJECTION}, but its hostNetwork is true: the node's network cannot be \
         redirected. Remove one of the two"
    )]
    HostNetwork,
}

impl NamespaceView {
    /// Whether it belongs to the mesh of this name.
    pub fn is_in_mesh(&self, mesh_name: &str) -> bool {
        is_in_mesh(Some(&self.labels), mesh_name)
    }
}

impl From<Namespace> for NamespaceView {
    fn from(namespace: Namespace) -> Self {
        let metadata = namespace.metadata;
        Self {
            name: metadata.name.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
        }
    }
}

impl Reason {
    /// What the Pod's author should know, where it may be a surprise.
    pub fn warning(self) -> Option<&'static str> {
        match self {
            Self::HostNetwork => {
                Some("no sidecar is added: the pod uses its node's network, so it is no part of the mesh")
            }
            Self::Windows => {
                Some("no sidecar is added: the pod runs on Windows, so it is no part of the mesh")
            }
            _ => None,
        }
    }

    /// The reason in a sentence.
    pub fn because(self, namespace: &str, mesh_name: &str) -> String {
        match self {
            Self::SystemNamespace => {
                format!("namespace {namespace} is Kubernetes' own or the control plane's")
            }
            Self::NotInMesh => format!(
                "namespace {namespace} is not in mesh {mesh_name}; `tidegate namespace add {namespace}` puts it there"
            ),
            Self::HostNetwork => "it uses its node's network (hostNetwork)".to_owned(),
            Self::Windows => "it runs on Windows".to_owned(),
            Self::OptedOut => format!("its annotation {SIDECAR_INJECTION} says so"),
            Self::NotAskedFor => format!("namespace {namespace} asks for none, and neither does the pod"),
        }
    }
}

/// Decides in OSM's order: what can have no sidecar has none; then the Pod's word counts, then its namespace's.
pub fn decide(
    pod: &PodView<'_>,
    namespace: &NamespaceView,
    mesh_name: &str,
    control_plane: &str,
) -> Result<Decision, DecisionError> {
    if is_system(&namespace.name, control_plane) {
        return Ok(Decision::Leave(Reason::SystemNamespace));
    }
    if !namespace.is_in_mesh(mesh_name) {
        return Ok(Decision::Leave(Reason::NotInMesh));
    }
    let asked = is_asked_for(pod, namespace)?;
    if let Some(reason) = impossible(pod) {
        // A word of the Pod's own that cannot be kept must not be passed over.
        if reason == Reason::HostNetwork && own_word(pod)? == Some(true) {
            return Err(DecisionError::HostNetwork);
        }
        return Ok(Decision::Leave(asked.err().unwrap_or(reason)));
    }
    Ok(asked.map_or_else(Decision::Leave, |()| Decision::Inject))
}

/// Whether a Pod gets a sidecar where no more than the name of its namespace is known: unless it cannot or says no.
pub(crate) fn decide_alone(
    pod: &PodView<'_>,
    namespace: &str,
    control_plane: &str,
) -> Result<Decision, DecisionError> {
    if is_system(namespace, control_plane) {
        return Ok(Decision::Leave(Reason::SystemNamespace));
    }
    let word = own_word(pod)?;
    Ok(match (impossible(pod), word) {
        (Some(Reason::HostNetwork), Some(true)) => return Err(DecisionError::HostNetwork),
        (Some(reason), _) => Decision::Leave(reason),
        (None, Some(false)) => Decision::Leave(Reason::OptedOut),
        (None, _) => Decision::Inject,
    })
}

fn is_system(namespace: &str, control_plane: &str) -> bool {
    namespace == control_plane || SYSTEM_NAMESPACES.contains(&namespace)
}

fn is_asked_for(pod: &PodView<'_>, namespace: &NamespaceView) -> Result<Result<(), Reason>, AnnotationError> {
    if let Some(word) = own_word(pod)? {
        return Ok(if word { Ok(()) } else { Err(Reason::OptedOut) });
    }
    let owner = format!("namespace {}", namespace.name);
    let by_annotation = Annotations::new(&owner, Some(&namespace.annotations)).switch(SIDECAR_INJECTION)?;
    let by_label = namespace.labels.get(INJECTION).is_some_and(|value| value == "enabled");
    Ok(if by_annotation.unwrap_or(by_label) { Ok(()) } else { Err(Reason::NotAskedFor) })
}

fn own_word(pod: &PodView<'_>) -> Result<Option<bool>, AnnotationError> {
    Annotations::new("pod", pod.metadata.annotations.as_ref()).switch(SIDECAR_INJECTION)
}

fn impossible(pod: &PodView<'_>) -> Option<Reason> {
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        return Some(Reason::HostNetwork);
    }
    let by_selector = spec.node_selector.as_ref().and_then(|selector| selector.os.as_ref());
    let by_field = spec.os.as_ref().map(|os| &os.name);
    by_selector.or(by_field).is_some_and(|os| os == "windows").then_some(Reason::Windows)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tidegate_crds::injection::{IGNORE, MONITORED_BY};

    use super::*;

    fn namespace(name: &str, labels: Value, annotations: Value) -> NamespaceView {
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        serde_json::from_value::<Namespace>(json!({ "metadata": metadata })).unwrap().into()
    }

    fn pod(annotation: Option<&str>, spec: Value) -> PodView<'static> {
        let annotations = annotation.map(|value| json!({ SIDECAR_INJECTION: value }));
        let json = json!({"metadata": {"annotations": annotations}, "spec": spec}).to_string();
        PodView::parse(json.leak()).unwrap()
    }

    fn plain() -> Value {
        json!({"containers": []})
    }

    #[test]
    fn the_pod_s_word_counts_before_its_namespace_s() {
        let label = json!({ MONITORED_BY: "osm" });
        let unset = namespace("shop", label.clone(), json!({}));
        let enabled = namespace("shop", label.clone(), json!({ SIDECAR_INJECTION: "enabled" }));
        let disabled = namespace("shop", label, json!({ SIDECAR_INJECTION: "disabled" }));
        let by_label = namespace("shop", json!({ INJECTION: "enabled" }), json!({}));
        let label_off =
            namespace("shop", json!({ INJECTION: "enabled" }), json!({ SIDECAR_INJECTION: "no" }));
        let out = Decision::Leave(Reason::OptedOut);
        let not_asked = Decision::Leave(Reason::NotAskedFor);
        for (namespace, without, yes, no) in [
            (&unset, not_asked, Decision::Inject, out),
            (&enabled, Decision::Inject, Decision::Inject, out),
            (&disabled, not_asked, Decision::Inject, out),
            (&by_label, Decision::Inject, Decision::Inject, out),
            (&label_off, not_asked, Decision::Inject, out),
        ] {
            for (word, expected) in [(None, without), (Some("enabled"), yes), (Some("disabled"), no)] {
                let decision = decide(&pod(word, plain()), namespace, "osm", "tidegate-system");
                assert_eq!(decision, Ok(expected), "{namespace:?} {word:?}");
            }
        }
    }

    #[test]
    fn some_namespaces_never_count_whatever_a_pod_says() {
        let label = json!({ MONITORED_BY: "osm", INJECTION: "enabled" });
        for (name, labels, reason) in [
            ("kube-system", label.clone(), Reason::SystemNamespace),
            ("kube-public", label.clone(), Reason::SystemNamespace),
            ("mesh", label, Reason::SystemNamespace),
            ("shop", json!({}), Reason::NotInMesh),
            ("shop", json!({ MONITORED_BY: "other" }), Reason::NotInMesh),
            ("shop", json!({ MONITORED_BY: "osm", IGNORE: "" }), Reason::NotInMesh),
        ] {
            let namespace = namespace(name, labels, json!({}));
            let decision = decide(&pod(Some("enabled"), plain()), &namespace, "osm", "mesh");
            assert_eq!(decision, Ok(Decision::Leave(reason)), "{name}");
        }
    }

    #[test]
    fn what_cannot_have_a_sidecar_is_left_alone_unless_it_asks_for_one_itself() {
        let shop = namespace("shop", json!({ INJECTION: "enabled" }), json!({}));
        let decide = |word, spec| decide(&pod(word, spec), &shop, "osm", "mesh");
        let host = json!({"containers": [], "hostNetwork": true});
        assert_eq!(decide(None, host.clone()), Ok(Decision::Leave(Reason::HostNetwork)));
        assert_eq!(decide(Some("no"), host.clone()), Ok(Decision::Leave(Reason::OptedOut)));
        assert_eq!(decide(Some("yes"), host), Err(DecisionError::HostNetwork));
        for windows in [
            json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "windows"}}),
            json!({"containers": [], "os": {"name": "windows"}}),
        ] {
            assert_eq!(decide(Some("yes"), windows), Ok(Decision::Leave(Reason::Windows)));
        }
    }

    #[test]
    fn a_word_that_is_none_refuses_the_pod() {
        let shop = namespace("shop", json!({ INJECTION: "enabled" }), json!({ SIDECAR_INJECTION: "maybe" }));
        let error = |word| decide(&pod(word, plain()), &shop, "osm", "mesh").unwrap_err().to_string();
        assert!(error(Some("perhaps")).starts_with(&format!("annotation {SIDECAR_INJECTION} of the pod: ")));
        let text = error(None);
        assert!(
            text.starts_with(&format!("annotation {SIDECAR_INJECTION} of the namespace shop: ")),
            "{text}"
        );
    }
}
