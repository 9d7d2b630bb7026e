//! Istio's `ServiceEntry`: names and addresses that workloads may reach, mostly outside the mesh.
//!
//! On a cluster with Istio the definition is Istio's and may be newer. So values that a later version may add to are read as
//! texts and compared where they decide (`meaning.rs`), and fields that are not known are passed over.

#![allow(clippy::duplicated_attributes, reason = "columns of one type")]

mod meaning;

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

pub use self::meaning::{EntryLocation, EntryProtocol, Resolution};
pub(crate) use self::meaning::{SOCKET, address_range, port};
use crate::bounded;
use crate::common_status::Condition;
use crate::numbers::{optional_count, port_number};

/// Maximum items of the lists, as in Istio's definition.
const MOST_HOSTS: usize = 256;
/// The same, of addresses.
const MOST_ADDRESSES: usize = 256;
/// The same, of ports.
const MOST_PORTS: usize = 256;
/// The same, of endpoints.
const MOST_ENDPOINTS: usize = 4096;
/// The same, of ports of one endpoint.
const MOST_ENDPOINT_PORTS: usize = 128;
/// The same, of `exportTo` and `subjectAltNames`; Istio has no bound.
const MOST_NAMES: usize = 256;
/// The same, of labels.
const MOST_LABELS: usize = 256;
/// Maximum characters of a label's value in `workloadSelector`.
const LABEL_VALUE: usize = 63;
/// Maximum characters of a host, of a name or of an endpoint's address.
const NAME: usize = 256;
/// Maximum characters of an address.
const ADDRESS: usize = 64;

/// The versions that are served beside `networking.istio.io/v1`, with the same fields.
pub const OLDER_SERVICE_ENTRIES: [&str; 2] = ["networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];

/// Names and addresses that workloads may reach.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "ServiceEntry",
    plural = "serviceentries",
    singular = "serviceentry",
    shortname = "se",
    category = "istio-io",
    category = "networking-istio-io",
    namespaced,
    status = "ServiceEntryStatus",
    derive = "PartialEq",
    doc = "Names and addresses that workloads may reach, mostly outside the mesh.",
    printcolumn(json_path = ".spec.hosts", name = "Hosts", type_ = "string"),
    printcolumn(json_path = ".spec.location", name = "Location", type_ = "string"),
    printcolumn(json_path = ".spec.resolution", name = "Resolution", type_ = "string"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// DNS names. A name may begin with `*.`.
    #[serde(deserialize_with = "hosts")]
    #[schemars(length(min = 1, max = MOST_HOSTS), inner(length(max = NAME)))]
    pub hosts: Vec<String>,
    /// IP addresses and CIDR ranges that workloads dial.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "addresses")]
    #[schemars(length(max = MOST_ADDRESSES), inner(length(max = ADDRESS)))]
    pub addresses: Vec<String>,
    /// Ports that workloads dial.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "ports")]
    #[schemars(
        length(max = MOST_PORTS),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub ports: Vec<EntryPort>,
    /// Whether the endpoints are part of the mesh. Default: `MESH_EXTERNAL`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, ADDRESS>"
    )]
    #[schemars(schema_with = "locations")]
    pub location: Option<String>,
    /// Where the endpoints' addresses come from. Default: `NONE`, the address that was dialled.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, ADDRESS>"
    )]
    #[schemars(schema_with = "resolutions")]
    pub resolution: Option<String>,
    /// The endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "endpoints")]
    #[schemars(length(max = MOST_ENDPOINTS))]
    pub endpoints: Vec<WorkloadEntry>,
    /// Pods that are the endpoints, instead of `endpoints`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// The namespaces whose workloads see the entry: names, `.` for its own, `*` for all, `~` for none. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "namespaces")]
    #[schemars(length(max = MOST_NAMES), inner(length(max = NAME)))]
    pub export_to: Vec<String>,
    /// Names that a server's certificate must have one of, where the sidecar speaks TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "names")]
    #[schemars(length(max = MOST_NAMES), inner(length(max = NAME)))]
    pub subject_alt_names: Vec<String>,
}

/// A port that workloads dial.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// Its number.
    #[schemars(schema_with = "port_number")]
    pub number: u32,
    /// What connections carry: `HTTP`, `HTTPS`, `GRPC`, `HTTP2`, `MONGO`, `TCP`, `TLS`. Default: detected.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, NAME>"
    )]
    #[schemars(length(max = NAME))]
    pub protocol: Option<String>,
    /// Its name.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
    /// The port of endpoints. Default: `number`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "port_number")]
    pub target_port: Option<u32>,
}

/// An endpoint.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntry {
    /// IP address, DNS name, or `unix://` and a path.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, NAME>"
    )]
    #[schemars(length(max = NAME))]
    pub address: Option<String>,
    /// Its ports, by the names of the entry's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "endpoint_ports")]
    #[schemars(schema_with = "endpoint_port_map")]
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    #[serde(default, skip_serializing)]
    #[schemars(schema_with = "labels")]
    pub labels: Unused,
    /// The network that the address belongs to.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, NAME>"
    )]
    #[schemars(length(max = NAME))]
    pub network: Option<String>,
    /// `region/zone/subzone`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, NAME>"
    )]
    #[schemars(length(max = NAME))]
    pub locality: Option<String>,
    /// Its share of connections, relative to the others'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub weight: Option<u32>,
    /// The service account as which it runs, in the entry's namespace.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, NAME>"
    )]
    #[schemars(length(max = 253))]
    pub service_account: Option<String>,
}

/// Pods of the entry's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct WorkloadSelector {
    /// Labels that a Pod must have. None selects no Pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "selected_labels")]
    #[schemars(schema_with = "selector_labels")]
    pub labels: BTreeMap<String, String>,
}

/// A value that is read by nothing, and not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unused;

/// Status of a ServiceEntry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntryStatus {
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted` is Tidegate's: whether the entry is in force, with a reason in one word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Fields that other writers have set.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl<'de> Deserialize<'de> for Unused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, NAME>(deserializer, "spec.hosts", MOST_HOSTS)
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, ADDRESS>(deserializer, "spec.addresses", MOST_ADDRESSES)
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EntryPort>, D::Error> {
    let ports = bounded::optional_list(deserializer, "spec.ports", MOST_PORTS)?;
    Ok(ports.unwrap_or_default())
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WorkloadEntry>, D::Error> {
    let endpoints = bounded::optional_list(deserializer, "spec.endpoints", MOST_ENDPOINTS)?;
    Ok(endpoints.unwrap_or_default())
}

fn namespaces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, NAME>(deserializer, "spec.exportTo", MOST_NAMES)
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, NAME>(deserializer, "spec.subjectAltNames", MOST_NAMES)
}

fn endpoint_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u32>, D::Error> {
    bounded::map::<_, NAME, _>(deserializer, "spec.endpoints[].ports", MOST_ENDPOINT_PORTS)
}

fn selected_labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let field = "spec.workloadSelector.labels";
    let labels = bounded::map::<_, NAME, bounded::Text<LABEL_VALUE>>(deserializer, field, MOST_LABELS)?;
    Ok(labels.into_iter().map(|(name, value)| (name, value.into())).collect())
}

fn locations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["MESH_EXTERNAL", "MESH_INTERNAL"], "nullable": true })
}

fn resolutions(_: &mut SchemaGenerator) -> Schema {
    let all = ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"];
    json_schema!({ "type": "string", "enum": all, "nullable": true })
}

fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": MOST_LABELS, "additionalProperties": { "type": "string" },
    })
}

fn selector_labels(_: &mut SchemaGenerator) -> Schema {
    let value = json_schema!({ "type": "string", "maxLength": LABEL_VALUE });
    json_schema!({ "type": "object", "maxProperties": MOST_LABELS, "additionalProperties": value })
}

fn endpoint_port_map(generator: &mut SchemaGenerator) -> Schema {
    let port = port_number(generator);
    json_schema!({ "type": "object", "maxProperties": MOST_ENDPOINT_PORTS, "additionalProperties": port })
}
