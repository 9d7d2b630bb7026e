//! Checks of a MeshConfig.

mod not_acted_on;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tidegate_core::identity::both_spellings;
use tidegate_core::{CidrSet, DnsName, Identity, Principal, San, go_duration, is_interface};

use super::Finding;
use crate::mesh_config::{
    ExternalAuthorizationSpec, FieldProblem, IngressGatewayCertificate, MeshConfigSpec,
};
use crate::quantity::{CONTAINER_RESOURCES, is_quantity};

/// Errors and probable mistakes in a MeshConfig, and its settings without effect. OSM had no admission check for it,
/// but its schema rejected invalid ranges. These are errors, and so are values that would fail every new Pod of the
/// mesh, and an ingress controller's certificate that would pass as a workload's.
pub fn mesh_config(spec: &MeshConfigSpec) -> Vec<Finding> {
    let mut findings: Vec<Finding> = not_acted_on::findings(spec).collect();
    if let Some(resources) = spec.sidecar.as_ref().and_then(|sidecar| sidecar.resources.as_ref()) {
        quantities("limits", resources.limits.as_ref(), &mut findings);
        quantities("requests", resources.requests.as_ref(), &mut findings);
    }
    if let Some(traffic) = &spec.traffic {
        interfaces(traffic.network_interface_exclusion_list.as_deref(), &mut findings);
        ranges("Exclusion", traffic.outbound_ip_range_exclusion_list.as_deref(), &mut findings);
        ranges("Inclusion", traffic.outbound_ip_range_inclusion_list.as_deref(), &mut findings);
    }
    let tracing = spec.observability.as_ref().and_then(|observability| observability.tracing.as_ref());
    if let Some(Err(problem)) = tracing.map(|tracing| tracing.settings("")) {
        findings.push(Finding::warning(problem.path(), problem.to_string()));
    }
    if let Some(external) = spec.external_authorization() {
        external_authorization(external, &mut findings);
    }
    let Some(certificate) = &spec.certificate else { return findings };
    if let Err(problem) = certificate.service_cert_validity() {
        findings.push(Finding::warning("spec.certificate.serviceCertValidityDuration", problem));
    }
    if let Some(gateway) = &certificate.ingress_gateway {
        ingress_gateway(gateway, &mut findings);
    }
    findings
}

fn quantities(which: &str, quantities: Option<&BTreeMap<String, IntOrString>>, findings: &mut Vec<Finding>) {
    for (resource, quantity) in quantities.into_iter().flatten() {
        let path = format!("spec.sidecar.resources.{which}.{resource}");
        if !CONTAINER_RESOURCES.contains(&resource.as_str()) {
            let message = format!("Expected one of {}, got '{resource}'", CONTAINER_RESOURCES.join(", "));
            findings.push(Finding::error(&path, message));
        }
        let text = match quantity {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(text) => text.clone(),
        };
        if !is_quantity(&text) {
            let message = format!("Expected a quantity such as 100m or 64Mi, got '{text}'");
            findings.push(Finding::error(path, message));
        }
    }
}

fn interfaces(list: Option<&[String]>, findings: &mut Vec<Finding>) {
    for (i, name) in list.into_iter().flatten().enumerate().filter(|(_, name)| !is_interface(name)) {
        let message = format!(
            "Expected the name of an interface: 1 to 15 letters, digits, '.', '_', '-' or '@', got '{name}'"
        );
        findings.push(Finding::error(format!("spec.traffic.networkInterfaceExclusionList[{i}]"), message));
    }
}

fn ranges(which: &str, list: Option<&[String]>, findings: &mut Vec<Finding>) {
    for (i, range) in list.into_iter().flatten().enumerate() {
        if CidrSet::parse([range.as_str()]).is_err() {
            let message = format!("Expected CIDR notation 'a.b.c.d/x', got '{range}'");
            findings.push(Finding::error(format!("spec.traffic.outboundIPRange{which}List[{i}]"), message));
        }
    }
}

/// Without a server that can be called, each request is refused.
fn external_authorization(external: &ExternalAuthorizationSpec, findings: &mut Vec<Finding>) {
    const PATH: &str = "spec.traffic.inboundExternalAuthorization";
    if let Err(FieldProblem { field, problem }) = external.server() {
        findings.push(Finding::error(format!("{PATH}.{field}"), problem));
    }
    if let Err((_, problem)) = external.check_timeout() {
        findings.push(Finding::warning(format!("{PATH}.timeout"), problem));
    }
}

fn ingress_gateway(gateway: &IngressGatewayCertificate, findings: &mut Vec<Finding>) {
    const PATH: &str = "spec.certificate.ingressGateway";
    for (i, name) in gateway.subject_alt_names.iter().enumerate() {
        if matches!(Principal::parse(name), Principal::Any | Principal::Unmatchable(_)) {
            let message = format!("'{name}' is neither a DNS name nor a URI, so no certificate can hold it");
            findings.push(Finding::warning(format!("{PATH}.subjectAltNames[{i}]"), message));
        }
    }
    let names = gateway.subject_alt_names.iter().filter_map(|name| match Principal::parse(name) {
        Principal::Any | Principal::Unmatchable(_) => None,
        _ if name.contains("://") => Some(San::Uri(name.as_str().into())),
        _ => DnsName::parse(name).ok().map(San::Dns),
    });
    if let Some(identity) = Identity::spelled_out(&names.collect::<Vec<_>>()) {
        findings.push(Finding::error(format!("{PATH}.subjectAltNames"), both_spellings(&identity)));
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
    use crate::mesh_config::{CertificateSpec, SecretReference, TrafficSpec};

    #[test]
    fn an_invalid_range_is_an_error() {
        let traffic = TrafficSpec {
            outbound_ip_range_exclusion_list: Some(vec!["10.0.0.0/8".into()]),
            outbound_ip_range_inclusion_list: Some(vec!["fd00::/8".into(), "10.0.0.1".into()]),
            ..TrafficSpec::default()
        };
        let found = mesh_config(&MeshConfigSpec { traffic: Some(traffic), ..MeshConfigSpec::default() });
        let expected = Finding::error(
            "spec.traffic.outboundIPRangeInclusionList[1]",
            "Expected CIDR notation 'a.b.c.d/x', got '10.0.0.1'",
        );
        assert_eq!(found, [expected]);
    }

    #[test]
    fn an_external_authorization_needs_a_server_that_can_be_called() {
        let found = |fields: serde_json::Value| {
            let traffic = serde_json::json!({"traffic": {"inboundExternalAuthorization": fields}});
            let spec: MeshConfigSpec = serde_json::from_value(traffic).unwrap();
            let findings = mesh_config(&spec).into_iter();
            findings.map(|finding| (finding.is_error(), finding.to_string())).collect::<Vec<_>>()
        };
        let of = |field: &str| format!("spec.traffic.inboundExternalAuthorization.{field}: ");
        assert_eq!(found(serde_json::json!({"enable": false, "timeout": "soon"})), []);
        let good = serde_json::json!({"enable": true, "address": "opa.opa", "port": 9191, "timeout": "60s"});
        assert_eq!(found(good), []);
        for (fields, is_error, start) in [
            (serde_json::json!({"enable": true, "address": "opa.opa"}), true, of("port")),
            (serde_json::json!({"enable": true, "port": 9191}), true, of("address")),
            (serde_json::json!({"enable": true, "port": 9191, "address": "http://opa"}), true, of("address")),
            (
                serde_json::json!({"enable": true, "port": 1, "address": "a", "timeout": "2m"}),
                false,
                of("timeout") + "a request waits for 60s at most",
            ),
            (
                serde_json::json!({"enable": true, "port": 1, "address": "a", "includeRequestBodyInCheck": {}}),
                true,
                of("includeRequestBodyInCheck.maxRequestBytes") + "must be set from 1 to 32768",
            ),
            (
                serde_json::json!({"enable": true, "port": 1, "address": "a", "timeout": "soon"}),
                false,
                of("timeout"),
            ),
        ] {
            let [(error, text)] = found(fields).try_into().unwrap();
            assert!(error == is_error && text.starts_with(&start), "{text}");
        }
    }

    #[test]
    fn what_every_new_pod_would_fail_by_is_an_error() {
        let spec: MeshConfigSpec = serde_json::from_value(serde_json::json!({
            "sidecar": {"resources": {
                "limits": {"cpu": "much", "memory": -1, "ephemeral-storage": "1Gi"},
                "requests": {"cpu": 1, "gpu": "1"},
            }},
            "traffic": {"networkInterfaceExclusionList": ["net1", "a b"]},
        }))
        .unwrap();
        let resources = "spec.sidecar.resources";
        assert_eq!(
            mesh_config(&spec),
            [
                Finding::error(
                    format!("{resources}.limits.cpu"),
                    "Expected a quantity such as 100m or 64Mi, got 'much'"
                ),
                Finding::error(
                    format!("{resources}.limits.memory"),
                    "Expected a quantity such as 100m or 64Mi, got '-1'"
                ),
                Finding::error(
                    format!("{resources}.requests.gpu"),
                    "Expected one of cpu, memory, ephemeral-storage, got 'gpu'"
                ),
                Finding::error(
                    "spec.traffic.networkInterfaceExclusionList[1]",
                    "Expected the name of an interface: 1 to 15 letters, digits, '.', '_', '-' or '@', got 'a b'"
                ),
            ]
        );
    }

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

    #[test]
    fn a_gateway_certificate_that_would_be_a_workload_s_is_an_error_with_both_names() {
        let (dns, uri) = ("nginx.ingress.cluster.local", "spiffe://cluster.local/ns/ingress/sa/nginx");
        let found = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let secret = SecretReference { name: "a".into(), namespace: "b".into() };
            let gateway = IngressGatewayCertificate {
                subject_alt_names: names,
                validity_duration: "24h".into(),
                secret,
            };
            let certificate = CertificateSpec {
                service_cert_validity_duration: "24h".into(),
                cert_key_bit_size: 2048,
                ingress_gateway: Some(gateway),
            };
            mesh_config(&MeshConfigSpec { certificate: Some(certificate), ..MeshConfigSpec::default() })
        };
        assert_eq!(found(&[dns]), []);
        assert_eq!(found(&[uri]), []);
        let both = found(&[uri, dns]);
        assert!(both.len() == 1 && both[0].is_error(), "{both:?}");
        assert_eq!(both[0].path, "spec.certificate.ingressGateway.subjectAltNames");
        assert!(both[0].message.contains(dns) && both[0].message.contains(uri), "{both:?}");
    }

    #[test]
    fn a_life_of_workloads_certificates_that_cannot_be_is_a_warning() {
        for (text, problem) in [("soon", "\"soon\" is not a duration"), ("9s", "\"9s\" is less than 10s")] {
            let certificate = CertificateSpec {
                service_cert_validity_duration: text.into(),
                cert_key_bit_size: 2048,
                ingress_gateway: None,
            };
            let found =
                mesh_config(&MeshConfigSpec { certificate: Some(certificate), ..MeshConfigSpec::default() });
            assert_eq!(found[0].path, "spec.certificate.serviceCertValidityDuration");
            assert!(found[0].message.starts_with(problem) && !found[0].is_error(), "{found:?}");
        }
    }
}
