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

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use certificate::{CertificateSpec, IngressGatewayCertificate, SecretReference, service_cert_validity};
pub use feature_flags::FeatureFlags;
pub use observability::ObservabilitySpec;
pub use sidecar::{ResourceRequirements, SidecarSpec};
pub use tracing::{TracingError, TracingSpec};
pub use traffic::{ExternalAuthorizationSpec, FieldProblem, TrafficSpec};

use crate::common_status::CommonStatus;

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
    status = "CommonStatus",
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
