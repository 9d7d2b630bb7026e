//! `spec.featureFlags`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Optional features.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FeatureFlags {
    /// Default: true. Accepted, but has no effect yet.
    #[serde(default, rename = "enableWASMStats", skip_serializing_if = "Option::is_none")]
    pub enable_wasm_stats: Option<bool>,
    /// Default: true. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_egress_policy: Option<bool>,
    /// Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_multicluster_mode: Option<bool>,
    /// Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_snapshot_cache_mode: Option<bool>,
    /// Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_async_proxy_service_mapping: Option<bool>,
    /// Default: true. Accepted, but has no effect yet: IngressBackends are always enforced, as in OSM v1.2.4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_ingress_backend_policy: Option<bool>,
    /// Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_envoy_active_health_checks: Option<bool>,
    /// Default: false. Retries always count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_retry_policy: Option<bool>,
    /// Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_mesh_root_certificate: Option<bool>,
}
