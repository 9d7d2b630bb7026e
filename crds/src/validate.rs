//! Checks of an object beyond its schema: pure functions, shared by the admission webhook, the controller and the
//! command line.
//!
//! Errors reject an object, in the words of OSM's admission webhook. What OSM accepted stays accepted: if it is
//! probably unintended, it is a warning. OSM refused `https` with `skipClientCertValidation: true` and no principal,
//! although its documentation says the opposite; that is a warning here.

mod egress;
mod egress_proxy;
mod findings;
mod http_route_group;
mod ingress_backend;
mod mesh_config;
mod retry;
mod service_entry;
mod traffic_split;
mod traffic_target;
mod upstream_traffic_setting;

use std::fmt;

pub use egress::egress;
pub use egress_proxy::egress_proxy;
pub use findings::listed;
pub use http_route_group::{http_route_group, too_many_expressions};
pub use ingress_backend::{IngressProtocol, ingress_backend};
pub use mesh_config::mesh_config;
pub use retry::retry;
pub use service_entry::service_entry;
pub use traffic_split::traffic_split;
pub use traffic_target::traffic_target;
pub use upstream_traffic_setting::upstream_traffic_setting;

/// An error or warning about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it rejects the object.
    pub severity: Severity,
    /// The field, such as `spec.backends[0].port.protocol`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// The consequence of a finding for the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The object is accepted.
    Warning,
    /// The object is rejected.
    Error,
}

impl Finding {
    /// A finding that rejects the object.
    pub fn error(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, path: path.into(), message: message.into() }
    }

    /// A finding that does not reject the object.
    pub fn warning(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, path: path.into(), message: message.into() }
    }

    /// Whether the object is rejected.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

#[cfg(test)]
impl Finding {
    /// The text with the severity, for comparison in tests.
    pub(crate) fn with_severity(&self) -> String {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        format!("{severity}: {self}")
    }
}

/// The field and the message, without the severity.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
