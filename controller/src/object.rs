//! The objects that decide about traffic, their names, and changes of them.

pub(crate) mod kinds;
mod name;
pub(crate) mod node;
pub(crate) mod pod;
pub mod secret;
pub(crate) mod stored;
pub mod unreadable;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use name::{Kind, ObjectKey, ObjectName};

use kinds::kinds;
use unreadable::Unreadable;

macro_rules! define_object {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// An object of one of the kinds that the controller reads.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $($(#[$doc])* $kind(Arc<$type>),)*
            /// A custom resource that cannot be read, or does not fit into its namespace's share.
            Unreadable(Arc<Unreadable>),
        }

        impl Object {
            /// Its kind.
            pub(crate) fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                    Self::Unreadable(object) => object.kind,
                }
            }

            /// Its metadata.
            pub(crate) fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Self::$kind(object) => &object.metadata,)*
                    Self::Unreadable(object) => &object.metadata,
                }
            }
        }
    };
}

kinds!(define_object);

/// The type of a kind's objects.
pub(crate) trait OfKind: Sized {
    /// The kind.
    const KIND: Kind;

    /// Wraps an object of this type.
    fn wrap(object: Arc<Self>) -> Object;
}

macro_rules! implement_of_kind {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        $(impl OfKind for $type {
            const KIND: Kind = Kind::$kind;

            fn wrap(object: Arc<Self>) -> Object {
                Object::$kind(object)
            }
        })*
    };
}

kinds!(implement_of_kind);

/// What happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It exists, with this content.
    Apply {
        /// The object.
        object: Object,
        /// Where it was read, such as `app.yaml:12`, if known.
        origin: Option<Arc<str>>,
    },
    /// It no longer exists.
    Delete(ObjectKey),
}

impl Object {
    /// Its name among all objects.
    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: ObjectName::of(self.metadata()) }
    }
}
