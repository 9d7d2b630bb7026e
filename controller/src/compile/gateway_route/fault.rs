//! What is wrong with a route.

use tidegate_core::route::{Problem, RouteError};
use tidegate_kubernetes::lean::CUT;

/// A field holds a value that is not supported.
pub(super) const UNSUPPORTED_VALUE: &str = "UnsupportedValue";
/// Filters exclude each other.
pub(super) const INCOMPATIBLE_FILTERS: &str = "IncompatibleFilters";
/// A backend is not a Service.
pub(super) const INVALID_KIND: &str = "InvalidKind";
/// A Service, or its port, does not exist.
pub(super) const BACKEND_NOT_FOUND: &str = "BackendNotFound";
/// A backend's port does not speak HTTP.
pub(super) const UNSUPPORTED_PROTOCOL: &str = "UnsupportedProtocol";

/// Maximum bytes of a message, which contains what the route's author wrote.
const LONGEST_MESSAGE: usize = 512;

/// Why a part of a route is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteFault {
    /// In Gateway API's words.
    pub(super) reason: &'static str,
    /// The field and what is wrong with it.
    pub(super) message: String,
}

impl RouteFault {
    /// A fault with one of Gateway API's reasons.
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST_MESSAGE {
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
            message.push(CUT);
        }
        Self { reason, message }
    }

    /// A value at a path such as `filters[0]`.
    pub(super) fn unsupported(field: &str, why: &str) -> Self {
        Self::new(UNSUPPORTED_VALUE, format!("{field}: {why}"))
    }

    /// An error of the route model in a part of the route.
    /// `part` is its path in the rule, or empty.
    pub(super) fn of_model(part: &str, error: &RouteError) -> Self {
        let reason = match error.problem {
            Problem::NeedsPrefix | Problem::Conflict(_) | Problem::Repeated => INCOMPATIBLE_FILTERS,
            _ => UNSUPPORTED_VALUE,
        };
        let dot = if part.is_empty() { "" } else { "." };
        Self::new(reason, format!("{part}{dot}{error}"))
    }

    /// The same, in the rule at this place.
    pub(super) fn in_rule(self, at: usize) -> Self {
        Self { message: format!("rules[{at}]: {}", self.message), ..self }
    }
}
