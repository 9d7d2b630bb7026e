//! What is wrong with a TrafficSplit.

use crate::object::{Kind, ObjectName};

/// Why a split, or a share of it, is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitFault {
    /// In one word.
    pub(super) word: &'static str,
    /// In a sentence.
    pub(super) reason: String,
}

/// The reason of a Service or an HTTPRouteGroup that does not exist.
const REFERENCE_NOT_FOUND: &str = "ReferenceNotFound";

impl SplitFault {
    /// It is wrong by itself.
    pub(super) fn invalid(reason: String) -> Self {
        Self { word: "Invalid", reason }
    }

    /// An object that it refers to is wrong.
    pub(super) fn invalid_reference(reason: String) -> Self {
        Self { word: "InvalidReference", reason }
    }

    /// An object that it refers to is not there.
    pub(super) fn not_found(kind: Kind, name: &ObjectName) -> Self {
        Self { word: REFERENCE_NOT_FOUND, reason: format!("{kind} {name} does not exist") }
    }

    /// Another object decides.
    pub(super) fn conflicted(reason: String) -> Self {
        Self { word: "Conflicted", reason }
    }

    /// Sidecars have no room for it.
    pub(super) fn too_large(reason: String) -> Self {
        Self { word: "TooLarge", reason }
    }

    /// Whether an object that is not there is all that is wrong.
    pub(super) fn is_missing(&self) -> bool {
        self.word == REFERENCE_NOT_FOUND
    }
}
