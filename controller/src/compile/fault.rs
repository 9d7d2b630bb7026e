//! What is wrong with an object that decides about traffic.

use crate::index::Index;
use crate::object::{Kind, ObjectName};

/// Why an object, or a part of it, is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectFault {
    /// In one word.
    pub(crate) word: &'static str,
    /// In a sentence.
    pub(crate) reason: String,
}

/// The word for an object that is not there.
const REFERENCE_NOT_FOUND: &str = "ReferenceNotFound";

impl ObjectFault {
    /// It is wrong by itself.
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self { word: "Invalid", reason: reason.into() }
    }

    /// An object that it refers to is wrong.
    pub(super) fn invalid_reference(reason: impl Into<String>) -> Self {
        Self { word: "InvalidReference", reason: reason.into() }
    }

    /// An object that it refers to, or a part of one, is not there.
    pub(super) fn reference_not_found(reason: impl Into<String>) -> Self {
        Self { word: REFERENCE_NOT_FOUND, reason: reason.into() }
    }

    /// This object, which it refers to, is not there, or cannot be read.
    pub(super) fn missing(index: &Index, kind: Kind, name: &ObjectName) -> Self {
        match index.unreadable_reason(kind, name) {
            Some(reason) => Self::invalid_reference(format!("{kind} {name}: {reason}")),
            None => Self::reference_not_found(format!("{kind} {name} does not exist")),
        }
    }

    /// Another object decides.
    pub(super) fn conflicted(reason: impl Into<String>) -> Self {
        Self { word: "Conflicted", reason: reason.into() }
    }

    /// Sidecars have no room for it.
    pub(super) fn too_large(reason: impl Into<String>) -> Self {
        Self { word: "TooLarge", reason: reason.into() }
    }

    /// Whether an object that is not there is all that is wrong.
    pub(super) fn is_missing(&self) -> bool {
        self.word == REFERENCE_NOT_FOUND
    }
}
