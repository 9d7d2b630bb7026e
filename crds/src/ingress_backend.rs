//! `IngressBackend`: who outside the mesh may reach a Service, and how.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The `apiVersion` of IngressBackends.
pub const INGRESS_BACKEND: &str = "policy.openservicemesh.io/v1alpha1";

/// What is let in from outside the mesh.
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
    /// The Services that are opened, each at one port.
    pub backends: Vec<Backend>,
    /// Who may reach them. Addresses (`Service`, `IPRange`) add up, and so do principals; a client must be within
    /// both where both are given. An empty list lets every address in.
    pub sources: Vec<Source>,
    /// Accepted and ignored, as OSM did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Vec<Match>>,
}

/// A Service's port that is opened.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Name of a Service in the namespace of this object.
    pub name: String,
    /// The port that is opened and what clients speak there.
    pub port: BackendPort,
    /// How TLS is terminated where `port.protocol` is `https`. Absent: every field has its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
}

/// A port and its protocol.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackendPort {
    /// The Service's `targetPort`, that is the pod's port; not the Service's own port.
    #[schemars(schema_with = "port_number")]
    pub number: u16,
    /// What clients speak: `http` (plaintext), `https` (TLS, ended at the sidecar), or `tcp` (bytes that are passed
    /// on as they are). Letter case does not count.
    pub protocol: String,
}

/// How the sidecar ends the TLS of ingress clients.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackendTls {
    /// Whether to ask for no client certificate. `AuthenticatedPrincipal` sources then do not count. Default: false.
    pub skip_client_cert_validation: bool,
    /// Server names (SNI) that are served: exact, or `*.` and a suffix. Absent or empty: every name, and none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni_hosts: Option<Vec<String>>,
}

/// A client, or many.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// `Service` (the addresses of its endpoints), `IPRange` (a CIDR), or `AuthenticatedPrincipal` (a name in the
    /// client's certificate).
    pub kind: String,
    /// The Service's name, the CIDR, or the principal: a DNS name, a SPIFFE URI, or `*`.
    pub name: String,
    /// The Service's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A reference that is accepted and ignored.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Ignored.
    pub api_group: String,
    /// Ignored.
    pub kind: String,
    /// Ignored.
    pub name: String,
}

/// Whether the object is in force.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IngressBackendStatus {
    /// `committed` or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_status: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The `metadata.generation` of the object that this is said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Fields that others have written.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A port, 1 to 65535. Kubernetes knows `int32` and warns about formats that it does not know.
pub(crate) fn port_number(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 })
}
