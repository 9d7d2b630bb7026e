//! How requests to a Service are retried, whichever rule they get.

use std::sync::Arc;

use serde::Serialize;

use crate::object_ref::ObjectRef;
use crate::route::{RetryPolicy, Timeouts};

/// How a workload's requests to a Service are retried that no rule with limits of its own is for (OSM: `Retry`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRetry {
    /// The object that says so.
    pub origin: ObjectRef,
    /// The Service that is dialled, as `<namespace>/<name>`.
    pub service: Arc<str>,
    /// How long one attempt may take.
    pub timeouts: Timeouts,
    /// Which failures are retried.
    pub policy: RetryPolicy,
}
