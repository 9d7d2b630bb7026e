//! What is the same for objects of every kind: names, versions, and metadata that nobody reads.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

/// The annotation in which `kubectl apply` keeps the whole manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object's name among all of its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Empty for objects that belong to no namespace.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

pub(super) fn name_of(object: &impl Resource) -> Name {
    let metadata = object.meta();
    Name {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// `metadata.resourceVersion`; empty if there is none.
pub(super) fn version_of(object: &impl Resource) -> String {
    object.meta().resource_version.clone().unwrap_or_default()
}

/// Leaves what tells an object from others and what its author says of it.
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
