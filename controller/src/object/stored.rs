//! How objects of each kind are read, and what is kept of them.

mod builtin;
pub(crate) mod custom;
pub(crate) mod lean;
pub(crate) mod size;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use serde::de::DeserializeOwned;
use tidegate_crds::Finding;

use super::{Object, OfKind};

/// A kind that sources read.
pub(crate) trait Stored:
    OfKind + Resource<DynamicType = ()> + DeserializeOwned + Clone + 'static
{
    /// Where a cluster's objects are looked for.
    const SCOPE: Scope = Scope::Cluster;
    /// Whether its objects count towards their namespace's share of the memory. Not where cluster administrators make
    /// them.
    const HAS_SHARE: bool = true;

    /// An object of a cluster, from its JSON. `control_plane` is the namespace of ours.
    fn decode(text: &str, control_plane: &str) -> serde_json::Result<Object>;

    /// Bytes that an object takes of the memory, what is noted and written about it among them.
    fn size(&self) -> usize;

    /// What a custom resource has that other kinds do not.
    fn custom() -> Option<CustomKind<Self>> {
        None
    }
}

/// Where objects are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In the whole cluster.
    Cluster,
    /// Under this one name, in the control plane's namespace.
    ControlPlane(&'static str),
    /// Nowhere: they are read from folders only.
    Folder,
}

/// A kind that our own definitions bring.
pub(crate) struct CustomKind<K> {
    /// Its definition.
    pub(crate) definition: fn() -> &'static CustomResourceDefinition,
    /// A deprecated `apiVersion` that has the same fields.
    pub(crate) older_version: Option<&'static str>,
    /// What is wrong with an object that can be read, or is likely not meant.
    pub(crate) findings: fn(&K) -> Vec<Finding>,
}
