//! Which namespaces belong to the mesh: in a folder all of them, on Kubernetes those with its labels.
//!
//! Labels are reduced to what they mean for this mesh ([`NamespaceMembership`]) when a Namespace is read. A namespace that is
//! not known yet counts as unlabelled, so that objects take effect only once their namespace is known to be in the
//! mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use tidegate_crds::injection::{kept_out_by, mesh_of};

use super::part::{Effect, Indexed};
use crate::object::ObjectName;

/// The namespaces that belong to the mesh.
#[derive(Clone, Debug, Default)]
pub(crate) enum MeshNamespaces {
    /// All of them: a manifest in the folder is meant for this mesh.
    #[default]
    Everything,
    /// Those with this mesh's label.
    Labelled {
        /// The mesh's name.
        mesh: Arc<str>,
        /// What each namespace's labels mean.
        namespaces: BTreeMap<Arc<str>, NamespaceMembership>,
    },
}

/// What a namespace's labels mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamespaceMembership {
    /// It belongs to this mesh.
    Member,
    /// Excluded by this label.
    Ignored(&'static str),
    /// It belongs to another mesh.
    Other(String),
    /// No label of any mesh.
    Unlabelled,
}

impl MeshNamespaces {
    /// The mesh of this name on a cluster; without a name, everything.
    pub(crate) fn new(name: Option<&str>) -> Self {
        match name {
            Some(name) => Self::Labelled { mesh: name.into(), namespaces: BTreeMap::new() },
            None => Self::Everything,
        }
    }

    /// Whether the index holds every Pod that exists, so that an endpoint of an unknown Pod is out of date.
    pub(crate) fn knows_every_pod(&self) -> bool {
        matches!(self, Self::Labelled { .. })
    }

    /// Reads a namespace's labels. Returns whether their meaning has changed.
    pub(crate) fn apply(&mut self, namespace: &Namespace) -> bool {
        let is_news = !self.knows(namespace);
        if let Self::Labelled { mesh, namespaces } = self {
            let name = namespace.metadata.name.as_deref().unwrap_or_default();
            namespaces.insert(name.into(), NamespaceMembership::of(namespace, mesh));
        }
        is_news
    }

    /// Whether a namespace's labels mean what they meant before.
    fn knows(&self, namespace: &Namespace) -> bool {
        let Self::Labelled { mesh, namespaces } = self else { return true };
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        namespaces.get(name) == Some(&NamespaceMembership::of(namespace, mesh))
    }

    /// Forgets a namespace.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Self::Labelled { namespaces, .. } = self {
            namespaces.remove(name);
        }
    }

    /// Why objects in this namespace have no effect, and what to do about it; `None` if it belongs to the mesh.
    pub(crate) fn outside(&self, namespace: &str) -> Option<String> {
        let Self::Labelled { mesh, namespaces } = self else { return None };
        let add = format!("`tidegate namespace add {namespace}` puts it in");
        Some(match namespaces.get(namespace) {
            Some(NamespaceMembership::Member) => return None,
            Some(NamespaceMembership::Ignored(label)) => {
                format!("namespace {namespace} has the label {label}: {add} once that is gone")
            }
            Some(NamespaceMembership::Other(other)) => {
                format!("namespace {namespace} is in mesh {other:?}, not in {mesh:?}, by its labels")
            }
            Some(NamespaceMembership::Unlabelled) | None => {
                // Every mesh on the cluster writes this status, so the text is the same for all.
                format!("namespace {namespace} is in no mesh: {add}")
            }
        })
    }

    /// Whether this namespace belongs to another mesh, whose controller reports on it.
    pub(crate) fn is_others(&self, namespace: &str) -> bool {
        let Self::Labelled { namespaces, .. } = self else { return false };
        matches!(namespaces.get(namespace), Some(NamespaceMembership::Other(_)))
    }
}

/// Of a Namespace, only its membership in the mesh is kept; of one in a folder, nothing.
impl Indexed for Namespace {
    type Part = MeshNamespaces;

    fn get<'p>(_: &'p MeshNamespaces, _: &ObjectName) -> Option<&'p Arc<Self>> {
        None
    }

    fn insert(part: &mut MeshNamespaces, _: ObjectName, object: Arc<Self>) {
        part.apply(&object);
    }

    fn remove(part: &mut MeshNamespaces, name: &ObjectName) {
        part.remove(&name.name);
    }

    fn effects(part: &MeshNamespaces, name: &ObjectName) -> Vec<Effect> {
        if part.knows_every_pod() { vec![Effect::Namespace(name.name.clone())] } else { Vec::new() }
    }

    fn holds(part: &MeshNamespaces, _: &ObjectName, object: &Self) -> bool {
        part.knows(object)
    }
}

impl NamespaceMembership {
    /// What the labels of a Namespace mean to the mesh of this name. A label that excludes takes precedence over a
    /// mesh's.
    fn of(namespace: &Namespace, mesh: &str) -> Self {
        let labels = namespace.metadata.labels.as_ref();
        match mesh_of(labels) {
            Some(found) if found == mesh => Self::Member,
            Some(other) => Self::Other(other.to_owned()),
            None => labels.and_then(kept_out_by).map_or(Self::Unlabelled, Self::Ignored),
        }
    }
}

#[cfg(test)]
mod tests;
