//! References to objects.
//!
//! An [`ObjectRef`](tidegate_core::ObjectRef) says which object a rule, a route or a limit came from. It is shown in
//! logs and by `tidegate explain`, and it is part of a backend's name.

use tidegate_core::ObjectRef;

use super::{ConversionError, missing};
use crate::discovery as wire;

pub(super) fn object_to_wire(object: &ObjectRef) -> wire::ObjectRef {
    wire::ObjectRef {
        kind: object.kind.to_string(),
        namespace: object.namespace.to_string(),
        name: object.name.to_string(),
    }
}

/// An object of any kind, also one that only the controller's version has. The namespace may be empty.
pub(super) fn object_from_wire(
    path: &str,
    object: Option<wire::ObjectRef>,
) -> Result<ObjectRef, ConversionError> {
    let object = object.ok_or_else(|| missing(path))?;
    for (field, text) in [("kind", &object.kind), ("name", &object.name)] {
        if text.is_empty() {
            return Err(missing(&format!("{path}.{field}")));
        }
    }
    Ok(ObjectRef { kind: object.kind.into(), namespace: object.namespace.into(), name: object.name.into() })
}
