//! `spec.certificate`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Certificates of the mesh.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSpec {
    /// How long workloads' certificates are valid, such as `24h`. Default: 24h. Accepted and not yet acted on.
    pub service_cert_validity_duration: String,
    /// Size of RSA keys in bits, 2048 to 4096. Default: 2048. Accepted and not yet acted on: keys are ECDSA P-256.
    #[schemars(extend("format" = "int32"))]
    pub cert_key_bit_size: i64,
    /// The client certificate of the ingress controller. Default: none is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_gateway: Option<IngressGatewayCertificate>,
}

/// The client certificate that the ingress controller shows to sidecars.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IngressGatewayCertificate {
    /// The names in the certificate, by convention `<service account>.<namespace>.<trust domain>`.
    #[schemars(length(min = 1))]
    pub subject_alt_names: Vec<String>,
    /// How long the certificate is valid, such as `24h`.
    pub validity_duration: String,
    /// The Secret of type `kubernetes.io/tls` that holds `ca.crt`, `tls.crt` and `tls.key`.
    pub secret: SecretReference,
}

/// A Secret.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}
