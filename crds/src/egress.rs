//! `Egress` of Open Service Mesh: what the workloads of service accounts may reach outside the mesh while
//! `spec.traffic.enableEgress` is off.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use crate::bounded::{self, NAME, WORD};
use crate::common_status::CommonStatus;
use crate::numbers::port_number;

/// Maximum sources of one Egress.
const MOST_SOURCES: usize = 256;
/// Maximum hosts.
const MOST_HOSTS: usize = 256;
/// Maximum ranges of addresses.
const MOST_ADDRESSES: usize = 256;
/// Maximum ports.
const MOST_PORTS: usize = 64;
/// Maximum references to other objects.
const MOST_MATCHES: usize = 64;

/// What workloads may reach outside the mesh.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "Egress",
    plural = "egresses",
    singular = "egress",
    shortname = "egress",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Lets the workloads of service accounts reach servers outside the mesh, while spec.traffic.enableEgress is off.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressSpec {
    /// The workloads.
    #[serde(deserialize_with = "sources")]
    #[schemars(length(max = MOST_SOURCES))]
    pub sources: Vec<EgressSource>,
    /// Names of servers: `Host` of HTTP, the server name (SNI) of TLS. A name may begin with `*.`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "hosts")]
    #[schemars(length(max = MOST_HOSTS), inner(length(max = NAME)))]
    pub hosts: Vec<String>,
    /// CIDR ranges that workloads dial. Empty: any address.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "addresses")]
    #[schemars(length(max = MOST_ADDRESSES), inner(length(max = WORD)))]
    pub ip_addresses: Vec<String>,
    /// Ports that workloads dial.
    #[serde(deserialize_with = "ports")]
    #[schemars(length(max = MOST_PORTS))]
    pub ports: Vec<EgressPort>,
    /// Objects of the same namespace: HTTPRouteGroups whose matches requests must be of, and at most one
    /// UpstreamTrafficSetting.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "matches")]
    #[schemars(length(max = MOST_MATCHES))]
    pub matches: Vec<EgressMatch>,
}

/// The workloads of a service account.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressSource {
    /// `ServiceAccount`.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(schema_with = "source_kind")]
    pub kind: String,
    /// Name of the service account.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
    /// Its namespace.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub namespace: String,
}

/// A port that workloads dial.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressPort {
    /// Its number.
    #[schemars(schema_with = "port_number")]
    pub number: u16,
    /// `http`, `https`, `tcp` or `tcp-server-first`.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub protocol: String,
}

/// A reference to an object of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressMatch {
    /// Group and version: `specs.smi-spec.io/v1alpha4` or `policy.openservicemesh.io/v1alpha1`.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub api_group: String,
    /// `HTTPRouteGroup` or `UpstreamTrafficSetting`.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub kind: String,
    /// Its name.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
}

/// What a port of an Egress carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressProtocol {
    /// HTTP in plaintext.
    Http,
    /// TLS of the app's own.
    Https,
    /// Bytes that are not looked at.
    Tcp,
}

/// What a reference of an Egress is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressReference {
    /// An HTTPRouteGroup.
    HttpRouteGroup,
    /// An UpstreamTrafficSetting.
    UpstreamTrafficSetting,
}

impl EgressPort {
    /// What it carries; `None` for a word that is not known.
    pub fn carries(&self) -> Option<EgressProtocol> {
        match self.protocol.as_str() {
            "http" => Some(EgressProtocol::Http),
            "https" => Some(EgressProtocol::Https),
            "tcp" | "tcp-server-first" => Some(EgressProtocol::Tcp),
            _ => None,
        }
    }
}

impl EgressMatch {
    /// What it refers to; `None` for another kind. The group has its version, as Open Service Mesh wants it.
    pub fn refers_to(&self) -> Option<EgressReference> {
        match (self.api_group.as_str(), self.kind.as_str()) {
            ("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup") => Some(EgressReference::HttpRouteGroup),
            ("policy.openservicemesh.io/v1alpha1", "UpstreamTrafficSetting") => {
                Some(EgressReference::UpstreamTrafficSetting)
            }
            _ => None,
        }
    }
}

fn source_kind(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["ServiceAccount"] })
}

fn sources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EgressSource>, D::Error> {
    bounded::list(deserializer, "spec.sources", MOST_SOURCES)
}

fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, NAME>(deserializer, "spec.hosts", MOST_HOSTS)
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, WORD>(deserializer, "spec.ipAddresses", MOST_ADDRESSES)
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EgressPort>, D::Error> {
    bounded::list(deserializer, "spec.ports", MOST_PORTS)
}

fn matches<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EgressMatch>, D::Error> {
    Ok(bounded::optional_list(deserializer, "spec.matches", MOST_MATCHES)?.unwrap_or_default())
}
