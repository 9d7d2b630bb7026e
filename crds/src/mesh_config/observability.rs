//! `spec.observability`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bounds::{MOST_CHARACTERS, optional_text};

/// Logs, metrics and traces.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ObservabilitySpec {
    /// Log level of the control plane. Default: info. Accepted and not yet acted on.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub osm_log_level: Option<String>,
    /// Default: false. Accepted and not yet acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_debug_server: Option<bool>,
    /// Of early manifests of v1alpha1. Default: true. Accepted and not yet acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus_scraping: Option<bool>,
    /// Traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSpec>,
}

/// Where sidecars send traces.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TracingSpec {
    /// Default: false. Accepted and not yet acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// Default: 9411. Accepted and not yet acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub port: Option<i64>,
    /// Default: `jaeger.<control plane namespace>.svc.cluster.local`. Accepted and not yet acted on.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub address: Option<String>,
    /// Default: /api/v2/spans. Accepted and not yet acted on.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub endpoint: Option<String>,
}
