//! `spec.certificate`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_core::go_duration;

use super::bounds::{MOST_CHARACTERS, MOST_SUBJECT_ALT_NAMES, subject_alt_names, text};

/// Certificates of the mesh.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSpec {
    /// How long workload certificates are valid, such as `24h`; at most the cert-manager's `--max-lifetime`. Default:
    /// 24h.
    #[serde(deserialize_with = "text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub service_cert_validity_duration: String,
    /// Size of RSA keys in bits, 2048 to 4096. Default: 2048. Accepted, but has no effect yet: keys are ECDSA P-256.
    #[serde(default = "default_key_bits")]
    #[schemars(extend("format" = "int32"))]
    pub cert_key_bit_size: i64,
    /// The client certificate of the ingress controller. Default: none is issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_gateway: Option<IngressGatewayCertificate>,
}

/// The field's default, because early v1alpha1 manifests do not set it.
fn default_key_bits() -> i64 {
    2048
}

/// Minimum lifetime of a workload certificate: a shorter one would expire before it is renewed.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);

impl CertificateSpec {
    /// How long workload certificates are valid, or why the field is invalid.
    pub fn service_cert_validity(&self) -> Result<Duration, String> {
        service_cert_validity(&self.service_cert_validity_duration)
    }
}

/// Like [`CertificateSpec::service_cert_validity`], for the field's text.
pub fn service_cert_validity(text: &str) -> Result<Duration, String> {
    let life = go_duration::parse(text).map_err(|error| error.to_string())?;
    if life < SHORTEST_LIFE { Err(format!("{text:?} is less than 10s")) } else { Ok(life) }
}

/// The client certificate that the ingress controller presents to sidecars.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IngressGatewayCertificate {
    /// The names in the certificate, by convention `<service account>.<namespace>.<trust domain>`.
    #[serde(deserialize_with = "subject_alt_names")]
    #[schemars(length(min = 1, max = MOST_SUBJECT_ALT_NAMES), inner(length(max = MOST_CHARACTERS)))]
    pub subject_alt_names: Vec<String>,
    /// How long the certificate is valid, such as `24h`.
    #[serde(deserialize_with = "text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub validity_duration: String,
    /// The Secret of type `kubernetes.io/tls` that holds `ca.crt`, `tls.crt` and `tls.key`.
    pub secret: SecretReference,
}

/// A Secret.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Its name.
    #[serde(deserialize_with = "text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub name: String,
    /// Its namespace.
    #[serde(deserialize_with = "text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub namespace: String,
}
