//! `spec.traffic`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::bounds::{MOST_CHARACTERS, MOST_ITEMS, optional_text, port_list, texts};
use crate::ingress_backend::port_number;

/// Traffic.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TrafficSpec {
    /// Whether workloads may reach destinations outside the mesh. Default: true. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_egress: Option<bool>,
    /// IPv4 ranges that bypass outbound interception. Default: none.
    #[serde(
        default,
        rename = "outboundIPRangeExclusionList",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "texts"
    )]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub outbound_ip_range_exclusion_list: Option<Vec<String>>,
    /// The only IPv4 ranges to which outbound interception applies. Default: all.
    #[serde(
        default,
        rename = "outboundIPRangeInclusionList",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "texts"
    )]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub outbound_ip_range_inclusion_list: Option<Vec<String>>,
    /// Ports that bypass outbound interception. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "port_list")]
    #[schemars(schema_with = "ports")]
    pub outbound_port_exclusion_list: Option<Vec<u16>>,
    /// Ports that bypass inbound interception. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "port_list")]
    #[schemars(schema_with = "ports")]
    pub inbound_port_exclusion_list: Option<Vec<u16>>,
    /// Network interfaces that bypass interception. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "texts")]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub network_interface_exclusion_list: Option<Vec<String>>,
    /// Whether workloads of the mesh may reach each other without a policy. Admits no client from outside the mesh.
    /// Default: false; the chart's MeshConfig sets true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_permissive_traffic_policy_mode: Option<bool>,
    /// Used in early v1alpha1 manifests: whether ingress controllers use HTTPS. Default: false.
    /// Accepted, but has no effect yet: each IngressBackend sets it.
    #[serde(default, rename = "useHTTPSIngress", skip_serializing_if = "Option::is_none")]
    pub use_https_ingress: Option<bool>,
    /// An external service that authorizes each request. Default: none. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_external_authorization: Option<ExternalAuthorization>,
}

/// Envoy's gRPC `ext_authz` service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuthorization {
    /// Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// Host name or address of the service. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub address: Option<String>,
    /// Port of the service. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "port_number")]
    pub port: Option<u16>,
    /// Prefix of its metrics. Default: inboundExtAuthz. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "stat_prefix")]
    pub stat_prefix: Option<String>,
    /// Timeout of a call. Default: 1s. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "timeout")]
    pub timeout: Option<String>,
    /// Whether requests pass if the service does not answer. Default: false. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_mode_allow: Option<bool>,
}

fn ports(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": MOST_ITEMS, "items": port_number(generator) })
}

fn stat_prefix(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "default": "inboundExtAuthz" })
}

fn timeout(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "default": "1s" })
}
