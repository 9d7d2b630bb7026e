//! What is wrong with an object beyond its schema: pure functions, for the admission webhook, the controller and
//! the command line alike.
//!
//! Errors keep an object out, in the words of OSM's admission webhook. What OSM took stays taken: where that is
//! hardly what its author meant, it is a warning. OSM refused `https` with `skipClientCertValidation: true` and no
//! principal, though its text speaks of the opposite; that is a warning here.

mod findings;
mod ingress_backend;
mod mesh_config;

use std::fmt;

pub use findings::listed;
pub use ingress_backend::{Protocol, ingress_backend};
pub use mesh_config::mesh_config;

/// Something that is wrong, or likely not meant, at one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the object is kept out for it.
    pub severity: Severity,
    /// The field, such as `spec.backends[0].port.protocol`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// What a finding means for the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The object is accepted.
    Warning,
    /// It is not.
    Error,
}

impl Finding {
    /// A finding that keeps the object out.
    pub fn error(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, path: path.into(), message: message.into() }
    }

    /// A finding that does not.
    pub fn warning(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, path: path.into(), message: message.into() }
    }

    /// Whether the object is kept out for it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

#[cfg(test)]
impl Finding {
    /// What tests compare: how bad it is, too.
    pub(crate) fn with_severity(&self) -> String {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        format!("{severity}: {self}")
    }
}

/// The field and what is wrong with it; not how bad that is.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
