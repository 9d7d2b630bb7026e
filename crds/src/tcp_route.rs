//! `TCPRoute` of the Service Mesh Interface: ports that a TrafficTarget allows.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};

use crate::bounded;
use crate::common_status::CommonStatus;
use crate::numbers::port_numbers;

/// Maximum ports of one TCPRoute.
pub const MOST_PORTS: usize = 1024;

/// Ports of workloads.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "specs.smi-spec.io",
    version = "v1alpha4",
    kind = "TCPRoute",
    plural = "tcproutes",
    singular = "tcproute",
    shortname = "tr",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Names ports for the TrafficTargets of its namespace.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct TCPRouteSpec {
    /// Which connections match.
    pub matches: TcpMatch,
}

/// Ports.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TcpMatch {
    /// Ports of the Pod (a Service's `targetPort`). Empty: every port.
    #[serde(deserialize_with = "ports")]
    #[schemars(schema_with = "port_list")]
    pub ports: Vec<u16>,
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    bounded::list(deserializer, "spec.matches.ports", MOST_PORTS)
}

fn port_list(generator: &mut SchemaGenerator) -> Schema {
    port_numbers(generator, MOST_PORTS)
}
