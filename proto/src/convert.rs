//! Converts between the wire's messages and the model that is evaluated: a file per model.
//!
//! Decoding is strict: an unknown enum value, an absent field or an invalid range rejects the whole resource, and the
//! sidecar keeps its last good version of it. Unknown content is never skipped.
//!
//! Each kind of resource has a `From` of its model and a `TryFrom` of its message, both in one file, and a test that
//! sends values through bytes and back. An error names the field by its path within the resource; the sidecar returns
//! it to the controller as the reason of a rejection, which `tidegate proxy status` shows.
//!
//! proto3 decodes an absent scalar as 0 or an empty string and an absent message as `None`. Such a default never
//! grants anything: where the model has a permissive value (any peer, plaintext, no client certificate), the message
//! spells it out as a member of a `oneof`, and an absent `oneof` is an error.

mod backend;
mod backend_limits;
mod destination;
mod dns_endpoints;
mod duration;
mod identity;
mod object_ref;
mod policy;
mod protocol;
mod rate;
mod routes;
mod telemetry;
mod topology;

use self::identity::{identities_from_wire, identities_to_wire, identity_from_wire, identity_to_wire};
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

/// A port from 1 to 65535. proto3 has no 16-bit integers, and its default, 0, is what an absent field decodes to.
fn port_number(path: &str, port: u32) -> Result<u16, ConversionError> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    number.ok_or_else(|| bad(path, format!("{port} is not a port")))
}

/// The error of a message, a member of a `oneof` or a required string that is absent.
fn missing(field: &str) -> ConversionError {
    bad(field, "missing")
}

/// The error of a value. `problem` contains the value, because the sidecar that logs it does not keep the message.
fn bad(field: &str, problem: impl ToString) -> ConversionError {
    ConversionError { field: field.to_owned(), problem: problem.to_string() }
}
