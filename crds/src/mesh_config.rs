//! `MeshConfig`: the settings of the whole mesh. One object, `osm-mesh-config`, in the control plane's namespace.
//!
//! It has every field of OSM v1.2.4, so that its manifests apply; the description of a field without effect says so.

mod bounds;
mod certificate;
mod feature_flags;
mod observability;
mod sidecar;
mod tracing;
mod traffic;

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use certificate::{CertificateSpec, IngressGatewayCertificate, SecretReference, service_cert_validity};
pub use feature_flags::FeatureFlags;
pub use observability::ObservabilitySpec;
pub use sidecar::{ResourceRequirements, SidecarSpec};
pub use tracing::{TracingError, TracingSpec};
pub use traffic::{ExternalAuthorizationSpec, FieldProblem, TrafficSpec};

/// The `apiVersion` of MeshConfigs.
pub(crate) const MESH_CONFIG: &str = "config.openservicemesh.io/v1alpha2";
/// The older `apiVersion`, in manifests for Open Service Mesh before v1.2, AKS and Azure Arc. It has the same fields
/// with the same meaning.
pub const OLDER_MESH_CONFIG: &str = "config.openservicemesh.io/v1alpha1";

/// Settings of the mesh.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "config.openservicemesh.io",
    version = "v1alpha2",
    kind = "MeshConfig",
    plural = "meshconfigs",
    singular = "meshconfig",
    shortname = "meshconfig",
    namespaced,
    status = "MeshConfigStatus",
    derive = "PartialEq",
    doc = "Settings of the mesh: the object osm-mesh-config in the control plane's namespace."
)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// Sidecars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarSpec>,
    /// Traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficSpec>,
    /// Logs, metrics and traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observability: Option<ObservabilitySpec>,
    /// Certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateSpec>,
    /// Optional features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_flags: Option<FeatureFlags>,
}

/// The condition that says whether the ingress controller's Secret matches `certificate.ingressGateway`.
pub const INGRESS_GATEWAY_READY: &str = "IngressGatewayReady";

/// One aspect of an object's state, in the form of Kubernetes' own conditions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The type of the condition.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The reason, in one word.
    #[serde(default)]
    pub reason: String,
    /// The reason, in a sentence.
    #[serde(default)]
    pub message: String,
    /// The `metadata.generation` that this condition describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// Status of the settings.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigStatus {
    /// `committed` or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_status: Option<String>,
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions that other writers set: `IngressGatewayReady` is the cert-manager's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Fields that other writers have set.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl MeshConfigStatus {
    /// The condition of this type, if it has been written.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

impl MeshConfigSpec {
    /// Whether mesh peers may reach each other without a policy. Default: false.
    pub fn is_permissive(&self) -> bool {
        let traffic = self.traffic.as_ref();
        traffic.and_then(|traffic| traffic.enable_permissive_traffic_policy_mode).unwrap_or(false)
    }

    /// The external authorization of requests, if it is enabled.
    pub fn external_authorization(&self) -> Option<&ExternalAuthorizationSpec> {
        let external = self.traffic.as_ref()?.inbound_external_authorization.as_ref();
        external.filter(|external| external.enable == Some(true))
    }

    /// Whether workloads may reach addresses that no object has. Default: true.
    pub fn is_egress_enabled(&self) -> bool {
        let traffic = self.traffic.as_ref();
        traffic.and_then(|traffic| traffic.enable_egress).unwrap_or(true)
    }

    /// The ingress controller's client certificate to issue, if configured.
    pub fn ingress_gateway(&self) -> Option<&IngressGatewayCertificate> {
        self.certificate.as_ref().and_then(|certificate| certificate.ingress_gateway.as_ref())
    }
}
