//! Converts between the wire's messages and the model that is evaluated: a file per model.
//!
//! Decoding is strict: an unknown enum value, an absent field or an invalid range rejects the whole resource, and the
//! sidecar keeps its last good version of it. Unknown content is never skipped.

mod backend;
mod destination;
mod identity;
mod object_ref;
mod policy;
mod protocol;
mod routes;

use self::identity::{identity_from_wire, identity_to_wire};
use self::object_ref::{object_from_wire, object_to_wire};

/// A field of a message that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConversionError {
    /// Path of the field within the resource, such as `ports[14001].ingress[0].sources`.
    pub field: String,
    /// The error, with the value.
    pub problem: String,
}

fn port_number(path: &str, port: u32) -> Result<u16, ConversionError> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    number.ok_or_else(|| bad(path, format!("{port} is not a port")))
}

fn missing(field: &str) -> ConversionError {
    bad(field, "missing")
}

fn bad(field: &str, problem: impl ToString) -> ConversionError {
    ConversionError { field: field.to_owned(), problem: problem.to_string() }
}
