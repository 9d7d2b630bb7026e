//! Failures that may have passed at the next attempt, such as those while a Pod restarts.
//!
//! A rotation waits while daemons restart, so that one failed request must not end it.

use super::admin::PodAdminError;
use super::client::ApiRequestError;
use super::control_plane::NoRunningPod;

/// Whether an error is of that kind. Missing permissions, for example, are not.
pub(crate) fn is_transient(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<NoRunningPod>()
            || cause.downcast_ref().is_some_and(|error: &ApiRequestError| error.is_transient)
            || cause.downcast_ref().is_some_and(PodAdminError::is_transient)
    })
}
