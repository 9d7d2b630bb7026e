//! `MeshConfig`: the settings of the whole mesh. One object, `osm-mesh-config`, in the control plane's namespace.
//!
//! Every field of OSM v1.2.4 is here, so that its manifests apply; those that change nothing yet say so in their
//! description.

mod bounds;
mod certificate;
mod feature_flags;
mod observability;
mod sidecar;
mod traffic;

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use certificate::{CertificateSpec, IngressGatewayCertificate, SecretReference, service_cert_validity};
pub use feature_flags::FeatureFlags;
pub use observability::{ObservabilitySpec, TracingSpec};
pub use sidecar::{ResourceRequirements, SidecarSpec};
pub use traffic::{ExternalAuthorization, TrafficSpec};

/// The name of the one MeshConfig.
pub const MESH_CONFIG_NAME: &str = "osm-mesh-config";

/// The `apiVersion` of MeshConfigs.
pub const MESH_CONFIG: &str = "config.openservicemesh.io/v1alpha2";
/// The older one, of manifests for Open Service Mesh before v1.2, AKS and Azure Arc. It has the same fields and means
/// the same.
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
    /// Features that can be switched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_flags: Option<FeatureFlags>,
}

/// The condition that says whether the ingress controller's Secret is as `certificate.ingressGateway` asks for.
pub const INGRESS_GATEWAY_READY: &str = "IngressGatewayReady";

/// One side of an object's state, in the form that Kubernetes' own objects have.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    #[serde(default)]
    pub reason: String,
    /// Why, in a sentence.
    #[serde(default)]
    pub message: String,
    /// The `metadata.generation` of the object that this is said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Since when `status` is what it is, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// Whether the settings are in force.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigStatus {
    /// `committed` or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_status: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The `metadata.generation` of the object that this is said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Sides of it that have writers of their own: `IngressGatewayReady` is the cert-manager's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Fields that others have written.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl MeshConfigStatus {
    /// The condition of this type, if somebody has written it.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

impl MeshConfigSpec {
    /// Whether mesh peers may reach each other without a policy that says so. Default: false.
    pub fn is_permissive(&self) -> bool {
        let traffic = self.traffic.as_ref();
        traffic.and_then(|traffic| traffic.enable_permissive_traffic_policy_mode).unwrap_or(false)
    }

    /// The client certificate that is to be made for the ingress controller, if one is asked for.
    pub fn ingress_gateway(&self) -> Option<&IngressGatewayCertificate> {
        self.certificate.as_ref().and_then(|certificate| certificate.ingress_gateway.as_ref())
    }
}
