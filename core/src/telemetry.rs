//! What a sidecar reports about the traffic of its workload.

use std::sync::Arc;

use serde::Serialize;

/// Settings of a workload's metrics and traces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TelemetrySettings {
    /// What the pod belongs to, such as the name of its Deployment. `None`: the controller does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
}
