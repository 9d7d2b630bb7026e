//! The objects that decide about traffic, their names, and changes of them.

pub(crate) mod kinds;
mod name;
pub(crate) mod pod;
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
            /// A custom resource that is stored and cannot be read, or has no place.
            Unreadable(Arc<Unreadable>),
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                    Self::Unreadable(object) => object.kind,
                }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Self::$kind(object) => &object.metadata,)*
                    Self::Unreadable(object) => &object.metadata,
                }
            }
        }
    };
}

kinds!(define_object);

/// A type that is the objects of a kind.
pub(crate) trait OfKind: Sized {
    /// The kind.
    const KIND: Kind;

    /// An object of any kind, which is this one.
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

/// What happened to one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is there, as given.
    Apply {
        /// The object.
        object: Object,
        /// Where it was read, such as `app.yaml:12`, if that can be said.
        origin: Option<Arc<str>>,
    },
    /// It is there no more.
    Delete(ObjectKey),
}

impl Object {
    /// Its name among all objects.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: ObjectName::of(self.metadata()) }
    }
}
