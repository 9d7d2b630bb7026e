//! Limits of what one sidecar has open to a backend.
//!
//! Refused: a time of zero, in which nothing connects, and connections without requests.

use tidegate_core::backend::BackendLimits;

use super::duration::{duration_from_wire, duration_to_wire};
use super::{ConversionError, bad};
use crate::discovery as wire;

/// Absent if nothing is limited.
pub(super) fn limits_to_wire(limits: &BackendLimits) -> Option<wire::BackendLimits> {
    (!limits.is_unlimited()).then(|| wire::BackendLimits {
        max_connections: limits.max_connections,
        connect_timeout: limits.connect_timeout.map(duration_to_wire),
        max_requests: limits.max_requests,
        max_requests_per_connection: limits.max_requests_per_connection,
        max_pending_requests: limits.max_pending_requests,
        max_retries: limits.max_retries,
    })
}

/// An error's path is below `path`.
pub(super) fn limits_from_wire(
    path: &str,
    limits: Option<wire::BackendLimits>,
) -> Result<BackendLimits, ConversionError> {
    let Some(limits) = limits else { return Ok(BackendLimits::default()) };
    let field = |name: &str| format!("{path}.{name}");
    let timeout = |time| duration_from_wire(&field("connect_timeout"), Some(time));
    let connect_timeout = limits.connect_timeout.map(timeout).transpose()?;
    if connect_timeout.is_some_and(|time| time.is_zero()) {
        return Err(bad(&field("connect_timeout"), "zero"));
    }
    if limits.max_requests_per_connection == Some(0) {
        return Err(bad(&field("max_requests_per_connection"), "zero"));
    }
    Ok(BackendLimits {
        max_connections: limits.max_connections,
        connect_timeout,
        max_requests: limits.max_requests,
        max_requests_per_connection: limits.max_requests_per_connection,
        max_pending_requests: limits.max_pending_requests,
        max_retries: limits.max_retries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts_of_zero_that_let_nothing_through_are_refused() {
        let zero = wire::BackendLimits { connect_timeout: Some(Default::default()), ..Default::default() };
        let none = wire::BackendLimits { max_requests_per_connection: Some(0), ..Default::default() };
        let told =
            [zero, none].map(|limits| limits_from_wire("limits", Some(limits)).unwrap_err().to_string());
        assert_eq!(told, ["limits.connect_timeout: zero", "limits.max_requests_per_connection: zero"]);
    }
}
