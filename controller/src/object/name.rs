//! The key of an object: its kind, its namespace and its name.
//!
//! Names are `Arc<str>`: the index, watches, statuses and streams all hold the same objects' names, and a namespace
//! has thousands of objects.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ApiResource;
use tidegate_core::ObjectRef;

use super::kinds::kinds;

macro_rules! define_kind {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// The kinds that the controller reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Where the API server has its objects.
            pub fn resource(self) -> ApiResource {
                match self {
                    $(Self::$kind => ApiResource::erase::<$type>(&()),)*
                }
            }

            /// The name of its variant, which tells SMI's and Gateway API's TCPRoutes apart.
            pub(crate) fn variant(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)*
                }
            }
        }
    };
}

kinds!(define_kind);

/// A namespace and a name, displayed as `<namespace>/<name>`. That of a cluster-scoped object has
/// an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

/// Identifies an object among those of all kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

impl Kind {
    /// The `kind` of manifests.
    pub fn as_str(self) -> &'static str {
        if self == Self::GatewayTCPRoute { "TCPRoute" } else { self.variant() }
    }

    /// Whether Kubernetes itself has the kind, so that its objects are not only for a mesh.
    pub fn is_built_in(self) -> bool {
        matches!(
            self,
            Self::Namespace
                | Self::ServiceAccount
                | Self::Service
                | Self::EndpointSlice
                | Self::Pod
                | Self::Node
                | Self::Secret
        )
    }

    /// Whether objects of this kind belong to no namespace.
    pub(crate) fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }
}

impl ObjectName {
    /// A name from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name in an object's metadata; absent parts are empty.
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

    /// A reference to the object of this kind and name, for rules, denials and backends.
    pub(crate) fn to_ref(&self, kind: Kind) -> ObjectRef {
        ObjectRef { kind: kind.as_str().into(), namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// `<namespace>/<name>` as shared text.
    pub(crate) fn to_shared(&self) -> Arc<str> {
        self.to_string().into()
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
