//! MeshConfig.

use tidegate_core::{Principal, go_duration};

use super::Finding;
use crate::mesh_config::{IngressGatewayCertificate, MeshConfigSpec};

/// What is likely not meant in a MeshConfig. OSM had no admission check for it, so nothing here is an error.
pub fn mesh_config(spec: &MeshConfigSpec) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(certificate) = &spec.certificate else { return findings };
    if let Err(error) = go_duration::parse(&certificate.service_cert_validity_duration) {
        findings.push(Finding::warning("spec.certificate.serviceCertValidityDuration", error.to_string()));
    }
    if let Some(gateway) = &certificate.ingress_gateway {
        ingress_gateway(gateway, &mut findings);
    }
    findings
}

fn ingress_gateway(gateway: &IngressGatewayCertificate, findings: &mut Vec<Finding>) {
    const PATH: &str = "spec.certificate.ingressGateway";
    for (i, name) in gateway.subject_alt_names.iter().enumerate() {
        if matches!(Principal::parse(name), Principal::Any | Principal::Unmatchable(_)) {
            let message = format!("'{name}' is neither a DNS name nor a URI, so no certificate can hold it");
            findings.push(Finding::warning(format!("{PATH}.subjectAltNames[{i}]"), message));
        }
    }
    if let Err(error) = go_duration::parse(&gateway.validity_duration) {
        findings.push(Finding::warning(format!("{PATH}.validityDuration"), error.to_string()));
    }
    for (field, value) in [("name", &gateway.secret.name), ("namespace", &gateway.secret.namespace)] {
        if value.is_empty() {
            findings.push(Finding::warning(format!("{PATH}.secret.{field}"), "must not be empty"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh_config::{CertificateSpec, SecretReference};

    #[test]
    fn settings_of_the_gateway_certificate_that_cannot_work_are_warnings() {
        let spec = MeshConfigSpec {
            certificate: Some(CertificateSpec {
                service_cert_validity_duration: "24h".into(),
                cert_key_bit_size: 2048,
                ingress_gateway: Some(IngressGatewayCertificate {
                    subject_alt_names: vec!["a.b.cluster.local".into(), "*.x".into()],
                    validity_duration: "soon".into(),
                    secret: SecretReference { name: String::new(), namespace: "osm-system".into() },
                }),
            }),
            ..MeshConfigSpec::default()
        };
        let found = mesh_config(&spec);
        let paths: Vec<_> = found.iter().map(|finding| finding.path.as_str()).collect();
        let gateway = "spec.certificate.ingressGateway";
        assert_eq!(
            paths,
            [
                format!("{gateway}.subjectAltNames[1]"),
                format!("{gateway}.validityDuration"),
                format!("{gateway}.secret.name"),
            ]
        );
        assert!(found.iter().all(|finding| !finding.is_error()));
    }
}
