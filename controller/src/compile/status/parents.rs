//! What the status of a route says for each of its parents (Gateway API: `RouteParentStatus`).

use tidegate_crds::gateway_api::ParentRef;

/// The entry of one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParentStatus {
    /// The parent as the route names it.
    pub(crate) parent_ref: ParentRef,
    /// Its conditions, each type once.
    pub(crate) conditions: Vec<ParentCondition>,
}

/// A condition. Times and generations are added where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParentCondition {
    /// Its type, such as `Accepted`.
    pub(crate) kind: &'static str,
    /// Whether it holds.
    pub(crate) holds: bool,
    /// Why, in Gateway API's words.
    pub(crate) reason: &'static str,
    /// Why, in a sentence.
    pub(crate) message: String,
}

impl ParentCondition {
    /// Whether it is as the route's author wishes. `PartiallyInvalid` is the one condition that is there only when something
    /// is wrong.
    pub(crate) fn is_well(&self) -> bool {
        self.holds && self.kind != "PartiallyInvalid"
    }
}
