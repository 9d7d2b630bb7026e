//! Whether a Pod gets a sidecar.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use serde::Deserialize;
use tidegate_core::contract::annotations::SIDECAR_INJECTION;
use tidegate_core::contract::labels::INJECTION;
use tidegate_crds::injection::is_in_mesh;
use tidegate_kubernetes::lean::{MembershipLabels, Meta, Only};

use crate::annotations::{AnnotationError, Annotations, NamespaceAnnotations};
use crate::pod::PodView;

/// Namespaces of Kubernetes itself: a sidecar there could keep the cluster from starting.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// A namespace, as far as injection is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceView {
    /// Its name.
    pub name: String,
    /// `metadata.labels`, at least those that decide about its membership.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, at least those that are read of a namespace.
    pub annotations: BTreeMap<String, String>,
}

/// Whether a Pod gets a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InjectionDecision {
    /// It does.
    Inject,
    /// It does not, and why.
    Leave(NoSidecarReason),
}

/// Why a Pod gets no sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSidecarReason {
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
    /// Reads a Namespace's JSON, and of it no more than counts here.
    pub fn parse(json: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct NamespaceMetadata {
            metadata: Meta<Only<MembershipLabels>, Only<NamespaceAnnotations>>,
        }
        let NamespaceMetadata { metadata } = serde_json::from_str(json)?;
        Ok(Self {
            name: metadata.name.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default().entries,
            annotations: metadata.annotations.unwrap_or_default().entries,
        })
    }

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

impl NoSidecarReason {
    /// What the Pod's author should know, where it may be a surprise.
    pub(crate) fn warning(self) -> Option<&'static str> {
        match self {
            Self::HostNetwork => {
                Some("no sidecar is added: the pod uses its node's network, so it is not part of the mesh")
            }
            Self::Windows => {
                Some("no sidecar is added: the pod runs on Windows, so it is not part of the mesh")
            }
            _ => None,
        }
    }

    /// The reason in a sentence.
    pub(crate) fn because(self, namespace: &str, mesh_name: &str) -> String {
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
pub(crate) fn decide(
    pod: &PodView<'_>,
    namespace: &NamespaceView,
    mesh_name: &str,
    control_plane: &str,
) -> Result<InjectionDecision, DecisionError> {
    if is_system(&namespace.name, control_plane) {
        return Ok(InjectionDecision::Leave(NoSidecarReason::SystemNamespace));
    }
    if !namespace.is_in_mesh(mesh_name) {
        return Ok(InjectionDecision::Leave(NoSidecarReason::NotInMesh));
    }
    let asked = is_asked_for(pod, namespace)?;
    if let Some(reason) = impossible(pod) {
        // A word of the Pod's own that cannot be kept must not be passed over.
        if reason == NoSidecarReason::HostNetwork && own_word(pod)? == Some(true) {
            return Err(DecisionError::HostNetwork);
        }
        return Ok(InjectionDecision::Leave(asked.err().unwrap_or(reason)));
    }
    Ok(asked.map_or_else(InjectionDecision::Leave, |()| InjectionDecision::Inject))
}

/// Whether a Pod gets a sidecar where no more than the name of its namespace is known: unless it cannot or says no.
pub(crate) fn decide_alone(
    pod: &PodView<'_>,
    namespace: &str,
    control_plane: &str,
) -> Result<InjectionDecision, DecisionError> {
    if is_system(namespace, control_plane) {
        return Ok(InjectionDecision::Leave(NoSidecarReason::SystemNamespace));
    }
    let word = own_word(pod)?;
    Ok(match (impossible(pod), word) {
        (Some(NoSidecarReason::HostNetwork), Some(true)) => return Err(DecisionError::HostNetwork),
        (Some(reason), _) => InjectionDecision::Leave(reason),
        (None, Some(false)) => InjectionDecision::Leave(NoSidecarReason::OptedOut),
        (None, _) => InjectionDecision::Inject,
    })
}

/// Whether no Pod of the namespace ever gets a sidecar.
fn is_system(namespace: &str, control_plane: &str) -> bool {
    namespace == control_plane || SYSTEM_NAMESPACES.contains(&namespace)
}

/// Whether a Pod is to get a sidecar, by its own annotation, else by its namespace's annotation, else by its
/// namespace's label. The inner error is why not.
fn is_asked_for(
    pod: &PodView<'_>,
    namespace: &NamespaceView,
) -> Result<Result<(), NoSidecarReason>, AnnotationError> {
    if let Some(word) = own_word(pod)? {
        return Ok(if word { Ok(()) } else { Err(NoSidecarReason::OptedOut) });
    }
    let owner = format!("namespace {}", namespace.name);
    let by_annotation = Annotations::new(&owner, Some(&namespace.annotations)).switch(SIDECAR_INJECTION)?;
    let by_label = namespace.labels.get(INJECTION).is_some_and(|value| value == "enabled");
    Ok(if by_annotation.unwrap_or(by_label) { Ok(()) } else { Err(NoSidecarReason::NotAskedFor) })
}

/// The Pod's own annotation; it has precedence over everything on its namespace.
fn own_word(pod: &PodView<'_>) -> Result<Option<bool>, AnnotationError> {
    Annotations::new("pod", pod.metadata.annotations.as_ref()).switch(SIDECAR_INJECTION)
}

/// Why this Pod cannot have a sidecar, whatever annotations say.
fn impossible(pod: &PodView<'_>) -> Option<NoSidecarReason> {
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        return Some(NoSidecarReason::HostNetwork);
    }
    let by_selector = spec.node_selector.as_ref().and_then(|selector| selector.os.as_ref());
    let by_field = spec.os.as_ref().map(|os| &os.name);
    by_selector.or(by_field).is_some_and(|os| os == "windows").then_some(NoSidecarReason::Windows)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tidegate_core::contract::annotations::{SIDECAR_LIMITS, SIDECAR_RESOURCE};
    use tidegate_core::contract::labels::{IGNORE, MONITORED_BY};

    use super::*;

    fn namespace(name: &str, labels: Value, annotations: Value) -> NamespaceView {
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        let read = NamespaceView::parse(&json!({ "metadata": metadata }).to_string()).unwrap();
        let whole: Namespace = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        assert_eq!(read, whole.into(), "nothing that counts is left out");
        read
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
        let out = InjectionDecision::Leave(NoSidecarReason::OptedOut);
        let not_asked = InjectionDecision::Leave(NoSidecarReason::NotAskedFor);
        for (namespace, without, yes, no) in [
            (&unset, not_asked, InjectionDecision::Inject, out),
            (&enabled, InjectionDecision::Inject, InjectionDecision::Inject, out),
            (&disabled, not_asked, InjectionDecision::Inject, out),
            (&by_label, InjectionDecision::Inject, InjectionDecision::Inject, out),
            (&label_off, not_asked, InjectionDecision::Inject, out),
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
            ("kube-system", label.clone(), NoSidecarReason::SystemNamespace),
            ("kube-public", label.clone(), NoSidecarReason::SystemNamespace),
            ("mesh", label, NoSidecarReason::SystemNamespace),
            ("shop", json!({}), NoSidecarReason::NotInMesh),
            ("shop", json!({ MONITORED_BY: "other" }), NoSidecarReason::NotInMesh),
            ("shop", json!({ MONITORED_BY: "osm", IGNORE: "" }), NoSidecarReason::NotInMesh),
        ] {
            let namespace = namespace(name, labels, json!({}));
            let decision = decide(&pod(Some("enabled"), plain()), &namespace, "osm", "mesh");
            assert_eq!(decision, Ok(InjectionDecision::Leave(reason)), "{name}");
        }
    }

    #[test]
    fn what_cannot_have_a_sidecar_is_left_alone_unless_it_asks_for_one_itself() {
        let shop = namespace("shop", json!({ INJECTION: "enabled" }), json!({}));
        let decide = |word, spec| decide(&pod(word, spec), &shop, "osm", "mesh");
        let host = json!({"containers": [], "hostNetwork": true});
        assert_eq!(decide(None, host.clone()), Ok(InjectionDecision::Leave(NoSidecarReason::HostNetwork)));
        assert_eq!(decide(Some("no"), host.clone()), Ok(InjectionDecision::Leave(NoSidecarReason::OptedOut)));
        assert_eq!(decide(Some("yes"), host), Err(DecisionError::HostNetwork));
        for windows in [
            json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "windows"}}),
            json!({"containers": [], "os": {"name": "windows"}}),
        ] {
            assert_eq!(decide(Some("yes"), windows), Ok(InjectionDecision::Leave(NoSidecarReason::Windows)));
        }
    }

    #[test]
    fn an_invalid_word_refuses_the_pod() {
        let shop = namespace("shop", json!({ INJECTION: "enabled" }), json!({ SIDECAR_INJECTION: "maybe" }));
        let error = |word| decide(&pod(word, plain()), &shop, "osm", "mesh").unwrap_err().to_string();
        assert!(error(Some("perhaps")).starts_with(&format!("annotation {SIDECAR_INJECTION} of the pod: ")));
        let text = error(None);
        assert!(
            text.starts_with(&format!("annotation {SIDECAR_INJECTION} of the namespace shop: ")),
            "{text}"
        );
    }

    #[test]
    fn a_namespace_takes_no_more_than_what_is_read_of_it_whatever_its_author_puts_in() {
        let limit = format!("{SIDECAR_RESOURCE}limits-cpu");
        let wrong: Value =
            (0..1_000).map(|i| (format!("{SIDECAR_RESOURCE}{i:04}"), Value::from("x"))).collect();
        let mut annotations =
            json!({SIDECAR_INJECTION: "no", limit: "2", SIDECAR_LIMITS: ",".repeat(200_000)});
        annotations.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let notes = (0..5_000).map(|i| (format!("example.com/{i}"), Value::from("x".repeat(40))));
        annotations.as_object_mut().unwrap().extend(notes);
        let mut labels: serde_json::Map<String, Value> =
            (0..5_000).map(|i| (format!("a{i}"), Value::from("x"))).collect();
        labels.insert(MONITORED_BY.to_owned(), "osm".into());
        let text =
            json!({"metadata": {"name": "shop", "labels": labels, "annotations": annotations}}).to_string();
        let held = allocation_counter::measure(|| {
            let shop = NamespaceView::parse(&text).unwrap();
            assert!(shop.is_in_mesh("osm"));
            assert_eq!(
                decide(&pod(None, plain()), &shop, "osm", "mesh"),
                Ok(InjectionDecision::Leave(NoSidecarReason::NotAskedFor))
            );
            // What was cut is not taken for something else, and of the wrong ones some are there to refuse the Pod.
            let annotations = Annotations::new("namespace shop", Some(&shop.annotations));
            assert!(annotations.sidecar_limits().is_err());
            assert!(annotations.set_resources(&mut crate::settings::Resources::default()).is_err());
        });
        assert!(held.bytes_max < 32 << 10, "{} bytes for {} of text", held.bytes_max, text.len());
    }
}
