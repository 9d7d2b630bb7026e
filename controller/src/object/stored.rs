//! How objects of each kind are decoded, and what is kept of them.

mod builtin;
pub(crate) mod custom;
pub(crate) mod lean;
pub(crate) mod size;

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use serde::de::DeserializeOwned;
use tidegate_crds::Finding;

use super::{Object, OfKind};

/// A kind that sources read.
pub(crate) trait Stored:
    OfKind + Resource<DynamicType = ()> + DeserializeOwned + Clone + 'static
{
    /// Where objects are read on a cluster.
    const SCOPE: Scope = Scope::Cluster;
    /// Whether objects of this kind count towards their namespace's share of memory. False where cluster administrators
    /// create them.
    const HAS_SHARE: bool = true;
    /// What is missing while objects of this kind cannot be read. `None`: nothing is compiled without them.
    const MISSING_WITHOUT: Option<&'static str> = None;
    /// Whether a cluster may lack the kind's definition. Then it has no objects of the kind.
    const IS_OPTIONAL: bool = false;

    /// Decodes an object of a cluster from its JSON. `control_plane` is the namespace of our control plane.
    fn decode(text: &str, control_plane: &str) -> serde_json::Result<Object>;

    /// Bytes of memory that an object takes, including what is recorded and written about it.
    fn size(&self) -> usize;

    /// The parts that only custom resources have.
    fn custom() -> Option<CustomKind<Self>> {
        None
    }
}

/// Where objects are read on a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In all namespaces.
    Cluster,
    /// Only the object with this name, in the control plane's namespace.
    ControlPlane(&'static str),
    /// Only those that other objects refer to, each by its name.
    Referenced,
    /// Nowhere: they are read from folders only.
    Folder,
}

/// A kind defined by one of our CRDs.
pub(crate) struct CustomKind<K> {
    /// Its definition.
    pub(crate) definition: &'static LazyLock<CustomResourceDefinition>,
    /// Other `apiVersion`s with the same fields.
    pub(crate) older_versions: &'static [&'static str],
    /// Whether they are deprecated.
    pub(crate) are_older_deprecated: bool,
    findings: fn(&str, &K) -> Vec<Finding>,
}

impl<K: Resource> CustomKind<K> {
    /// A kind with one version. `findings`: errors and warnings of an object that was decoded, in this namespace.
    pub(crate) fn new(
        definition: &'static LazyLock<CustomResourceDefinition>,
        findings: fn(&str, &K) -> Vec<Finding>,
    ) -> Self {
        Self { definition, older_versions: &[], are_older_deprecated: false, findings }
    }

    /// The same, also in these versions, with the same fields.
    pub(crate) fn older(self, versions: &'static [&'static str], are_deprecated: bool) -> Self {
        Self { older_versions: versions, are_older_deprecated: are_deprecated, ..self }
    }

    /// Errors and warnings of an object that was decoded.
    pub(crate) fn findings(&self, object: &K) -> Vec<Finding> {
        (self.findings)(object.meta().namespace.as_deref().unwrap_or_default(), object)
    }
}
