//! The objects that decide about traffic, and their names.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_crds::{IngressBackend, MeshConfig};

use crate::unreadable::Unreadable;

/// The kinds that the controller reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1`
    Namespace,
    /// `v1`
    ServiceAccount,
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `v1`
    Pod,
    /// `policy.openservicemesh.io/v1alpha1`
    IngressBackend,
    /// `config.openservicemesh.io/v1alpha2`
    MeshConfig,
}

/// A namespace and a name; shown as `<namespace>/<name>`. The namespace of a Namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

/// What names an object among all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

/// An object of one of the kinds that the controller reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// What a workload runs as.
    ServiceAccount(Arc<ServiceAccount>),
    /// What backends and sources name.
    Service(Arc<Service>),
    /// Where a Service's endpoints are.
    EndpointSlice(Arc<EndpointSlice>),
    /// A workload, or somebody else's.
    Pod(Arc<Pod>),
    /// Who may come in from outside the mesh.
    IngressBackend(Arc<IngressBackend>),
    /// The mesh's settings.
    MeshConfig(Arc<MeshConfig>),
    /// An IngressBackend or a MeshConfig that is stored and cannot be read.
    Unreadable(Arc<Unreadable>),
}

impl Kind {
    /// The `kind` of manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::IngressBackend => "IngressBackend",
            Self::MeshConfig => "MeshConfig",
        }
    }
}

impl ObjectName {
    /// A name from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name in an object's metadata; parts that are absent are empty.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }

    /// Reads `<namespace>/<name>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let is_whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        is_whole.then(|| Self::new(namespace, name))
    }

    /// `<namespace>/<name>`, to be shared.
    pub fn to_shared(&self) -> Arc<str> {
        self.to_string().into()
    }
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Pod(_) => Kind::Pod,
            Self::IngressBackend(_) => Kind::IngressBackend,
            Self::MeshConfig(_) => Kind::MeshConfig,
            Self::Unreadable(object) => object.kind,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::IngressBackend(object) => &object.metadata,
            Self::MeshConfig(object) => &object.metadata,
            Self::Unreadable(object) => &object.metadata,
        }
    }

    /// Its name among all objects.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: ObjectName::of(self.metadata()) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}
