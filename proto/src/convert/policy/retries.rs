//! How requests to a Service are retried. An absent policy is an error.

use tidegate_core::ServiceRetry;
use tidegate_core::route::Timeouts;

use crate::convert::duration::{duration_from_wire, duration_to_wire};
use crate::convert::routes::inner;
use crate::convert::routes::retry::{retry_from_wire, retry_to_wire};
use crate::convert::{ConversionError, missing, object_from_wire, object_to_wire};
use crate::discovery as wire;

pub(super) fn retry_of_service_to_wire(retry: &ServiceRetry) -> wire::ServiceRetry {
    wire::ServiceRetry {
        origin: Some(object_to_wire(&retry.origin)),
        service: retry.service.to_string(),
        attempt_timeout: retry.timeouts.backend_request().map(duration_to_wire),
        policy: Some(retry_to_wire(&retry.policy)),
    }
}

/// `path` is that of the retry in the policy.
pub(super) fn retry_of_service_from_wire(
    path: &str,
    retry: wire::ServiceRetry,
) -> Result<ServiceRetry, ConversionError> {
    let attempt = |time| duration_from_wire(&format!("{path}.attempt_timeout"), Some(time));
    let attempt = retry.attempt_timeout.map(attempt).transpose()?;
    let policy = retry.policy.ok_or_else(|| missing(&format!("{path}.policy")))?;
    Ok(ServiceRetry {
        origin: object_from_wire(&format!("{path}.origin"), retry.origin)?,
        service: retry.service.into(),
        timeouts: Timeouts::new(None, attempt).map_err(|error| inner(path, &error))?,
        policy: retry_from_wire(path, policy)?,
    })
}
