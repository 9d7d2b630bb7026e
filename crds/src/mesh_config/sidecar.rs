//! `spec.sidecar`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::bounds::{MOST_CHARACTERS, MOST_ITEMS, MOST_QUANTITIES, optional_text, quantities, texts};

/// Sidecars.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    /// Whether the interception step runs privileged. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_privileged_init_container: Option<bool>,
    /// Log level of sidecars. Default: error.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "log_level")]
    pub log_level: Option<String>,
    /// Maximum sidecars of a controller; 0: no limit. Default: 0. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_data_plane_connections: Option<i64>,
    /// Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub envoy_image: Option<String>,
    /// Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub envoy_windows_image: Option<String>,
    /// Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub init_container_image: Option<String>,
    /// Resource requests and limits of a sidecar. Default: requests of 5m CPU and 16Mi memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Default: 0s, which means never. Accepted, but has no effect yet: changes are sent at once.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub config_resync_interval: Option<String>,
    /// Default: TLSv1_2. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "tls_min_version")]
    pub tls_min_protocol_version: Option<String>,
    /// Default: TLSv1_3. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "tls_max_version")]
    pub tls_max_protocol_version: Option<String>,
    /// Default: the TLS library's. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "texts")]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub cipher_suites: Option<Vec<String>>,
    /// Default: the TLS library's. Accepted, but has no effect yet.
    #[serde(
        default,
        rename = "ecdhCurves",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "texts"
    )]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub ecdh_curves: Option<Vec<String>>,
    /// Whether a sidecar reaches its app at localhost or at the pod's address. Default: Localhost.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "local_proxy_mode")]
    pub local_proxy_mode: Option<String>,
}

/// Requests and limits of a container, by resource.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResourceRequirements {
    /// The limits.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantities")]
    #[schemars(schema_with = "quantities_by_resource")]
    pub limits: Option<BTreeMap<String, IntOrString>>,
    /// The requests.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantities")]
    #[schemars(schema_with = "quantities_by_resource")]
    pub requests: Option<BTreeMap<String, IntOrString>>,
}

/// Quantities are integers or strings; k8s-openapi's schemas for its hundreds of types cost a build more than this one.
fn quantities_by_resource(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "additionalProperties": {
            "description": "IntOrString is a type that can hold an int32 or a string.  When used in JSON or YAML \
                            marshalling and unmarshalling, it produces or consumes the inner type.  This allows you to \
                            have, for example, a JSON field that can accept a name or number.",
            "x-kubernetes-int-or-string": true,
        },
        "maxProperties": MOST_QUANTITIES,
    })
}

fn log_level(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "enum": ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"],
    })
}

fn tls_min_version(_: &mut SchemaGenerator) -> Schema {
    tls_version("TLSv1_2")
}

fn tls_max_version(_: &mut SchemaGenerator) -> Schema {
    tls_version("TLSv1_3")
}

fn tls_version(default: &str) -> Schema {
    json_schema!({
        "type": "string",
        "enum": ["TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"],
        "default": default,
    })
}

fn local_proxy_mode(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["Localhost", "PodIP"], "default": "Localhost" })
}
