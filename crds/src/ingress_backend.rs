//! `IngressBackend`: which clients outside the mesh may reach a Service, and how.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::bounded::{self, NAME, WORD};
use crate::numbers::port_number;

/// Maximum backends of one IngressBackend.
pub const MOST_BACKENDS: usize = 256;
/// Maximum sources of one IngressBackend.
pub(crate) const MOST_SOURCES: usize = 1024;
/// Maximum server names of one backend, and maximum `matches`.
pub const MOST_NAMES: usize = 64;
/// Maximum characters of a server name: a host, possibly after `*.`.
const HOST: usize = NAME + 2;
/// Maximum characters of a principal: that of a SPIFFE ID.
const PRINCIPAL: usize = 2048;

/// Which traffic is admitted from outside the mesh.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "IngressBackend",
    plural = "ingressbackends",
    singular = "ingressbackend",
    shortname = "ingressbackend",
    namespaced,
    status = "IngressBackendStatus",
    derive = "PartialEq",
    doc = "Lets clients outside the mesh, such as an ingress controller, reach Services of its namespace.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct IngressBackendSpec {
    /// The Services to open, each at one port.
    #[serde(deserialize_with = "backends")]
    #[schemars(length(max = MOST_BACKENDS))]
    pub backends: Vec<BackendSpec>,
    /// Which clients may reach them. Addresses (`Service`, `IPRange`) are ORed, and so are principals; if both are
    /// given, a client must match both. An empty list admits every address.
    #[serde(deserialize_with = "sources")]
    #[schemars(length(max = MOST_SOURCES))]
    pub sources: Vec<IngressSourceSpec>,
    /// Accepted and ignored, as OSM did.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "matches")]
    #[schemars(length(max = MOST_NAMES))]
    pub matches: Option<Vec<Match>>,
}

/// A Service's port to open.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackendSpec {
    /// Name of a Service in the namespace of this object.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
    /// The port to open, and its protocol.
    pub port: BackendPort,
    /// How TLS is terminated if `port.protocol` is `https`. Absent: every field has its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
}

/// A port and its protocol.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackendPort {
    /// The Service's `targetPort`, which is the pod's port; not the Service's own port.
    #[schemars(schema_with = "port_number")]
    pub number: u16,
    /// The clients' protocol: `http` (plaintext), `https` (TLS, terminated at the sidecar), or `tcp` (bytes pass
    /// through unchanged). Case-insensitive.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub protocol: String,
}

/// How the sidecar terminates the TLS of ingress clients.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackendTls {
    /// Whether to skip the client certificate. `AuthenticatedPrincipal` sources are then ignored. Default: false.
    pub skip_client_cert_validation: bool,
    /// Server names (SNI) to serve: exact, or `*.` and a suffix. Absent or empty: any name, or none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "sni_hosts")]
    #[schemars(length(max = MOST_NAMES), inner(length(max = HOST)))]
    pub sni_hosts: Option<Vec<String>>,
}

/// One client or several.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IngressSourceSpec {
    /// `Service` (the addresses of its endpoints), `IPRange` (a CIDR), or `AuthenticatedPrincipal` (a name in the
    /// client's certificate).
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub kind: String,
    /// The Service's name, the CIDR, or the principal: a DNS name, a SPIFFE URI, or `*`.
    #[serde(deserialize_with = "bounded::text::<_, PRINCIPAL>")]
    #[schemars(length(max = PRINCIPAL))]
    pub name: String,
    /// The Service's namespace.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, WORD>"
    )]
    #[schemars(length(max = WORD))]
    pub namespace: Option<String>,
}

/// A reference, accepted and ignored.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Ignored.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub api_group: String,
    /// Ignored.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub kind: String,
    /// Ignored.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
}

/// Status of the object.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IngressBackendStatus {
    /// `committed` or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_status: Option<String>,
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Fields that other writers have set.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

fn backends<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BackendSpec>, D::Error> {
    bounded::list(deserializer, "spec.backends", MOST_BACKENDS)
}

fn sources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IngressSourceSpec>, D::Error> {
    bounded::list(deserializer, "spec.sources", MOST_SOURCES)
}

fn matches<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Match>>, D::Error> {
    bounded::optional_list(deserializer, "spec.matches", MOST_NAMES)
}

fn sni_hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    bounded::optional_texts::<_, HOST>(deserializer, "spec.backends[].tls.sniHosts", MOST_NAMES)
}
