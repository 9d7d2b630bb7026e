//! `spec.observability`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bounds::{MOST_CHARACTERS, optional_text};
use super::tracing::TracingSpec;

/// Logs, metrics and traces.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ObservabilitySpec {
    /// Log level of the control plane. Default: info. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub osm_log_level: Option<String>,
    /// Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_debug_server: Option<bool>,
    /// Used in early v1alpha1 manifests. Default: true. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus_scraping: Option<bool>,
    /// Traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSpec>,
}
