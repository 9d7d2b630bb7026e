//! What all kinds have in common: names, versions, and unused metadata.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// The annotation in which `kubectl apply` stores the whole manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object's name, unique within its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

/// The fields that a watch itself needs.
#[derive(Deserialize, Debug)]
pub(super) struct ObjectHead {
    #[serde(default)]
    metadata: Option<HeadMeta>,
}

/// `metadata` as far as a watch needs it.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    resource_version: Option<String>,
}

impl ObjectHead {
    /// The object's name, and `metadata.resourceVersion`; empty if there is none.
    pub(super) fn into_parts(self) -> (Name, String) {
        let HeadMeta { namespace, name, resource_version } = self.metadata.unwrap_or_default();
        let name = Name { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default() };
        (name, resource_version.unwrap_or_default())
    }
}

/// Keeps only identifying metadata and what the object's author has set.
pub(super) fn prune_metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.finalizers = None;
    metadata.generate_name = None;
    metadata.self_link = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            metadata.annotations = None;
        }
    }
}
