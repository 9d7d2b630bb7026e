//! Checks of an Egress.

use std::collections::BTreeMap;

use tidegate_core::CidrSet;
use tidegate_core::dns_name::DnsPattern;

use super::Finding;
use super::findings::Findings;
use crate::egress::{EgressProtocol, EgressReference, EgressSpec};

/// All errors and probable mistakes in an Egress, in the order of its fields. Open Service Mesh's webhook refused references to
/// other kinds and a second UpstreamTrafficSetting; whatever else keeps a part from having an effect is a warning.
pub fn egress(spec: &EgressSpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    check_sources(spec, &mut findings);
    check_names(spec, &mut findings);
    check_ports(spec, &mut findings);
    check_matches(spec, &mut findings);
    findings.finish()
}

fn check_sources(spec: &EgressSpec, findings: &mut Findings) {
    if spec.sources.is_empty() {
        findings.add("sources", || {
            Finding::warning("spec.sources", "no source is listed, so this allows nothing")
        });
    }
    for (i, source) in spec.sources.iter().enumerate().filter(|(_, source)| source.kind != "ServiceAccount") {
        findings.add("source kind", || {
            let message = format!("'{}' is not supported: only ServiceAccount is", source.kind);
            Finding::error(format!("spec.sources[{i}].kind"), message)
        });
    }
}

fn check_names(spec: &EgressSpec, findings: &mut Findings) {
    for (i, host) in spec.hosts.iter().enumerate() {
        if let Err(error) = DnsPattern::parse(host) {
            findings.add("host", || Finding::error(format!("spec.hosts[{i}]"), format!("'{host}': {error}")));
        }
    }
    for (i, range) in spec.ip_addresses.iter().enumerate() {
        if CidrSet::parse([range.as_str()]).is_err() {
            findings.add("range", || {
                let message = format!("'{range}' is not a CIDR range, such as 192.0.2.0/24");
                Finding::error(format!("spec.ipAddresses[{i}]"), message)
            });
        }
    }
}

fn check_ports(spec: &EgressSpec, findings: &mut Findings) {
    if spec.ports.is_empty() {
        findings.add("ports", || Finding::warning("spec.ports", "no port is listed, so this allows nothing"));
    }
    let mut seen: BTreeMap<u16, &str> = BTreeMap::new();
    for (i, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        match port.carries() {
            None => findings.add("protocol", || {
                let message = format!(
                    "'{}' is not supported, so this port has no effect: use http, https, tcp or tcp-server-first",
                    port.protocol
                );
                Finding::warning(format!("{path}.protocol"), message)
            }),
            Some(EgressProtocol::Http) if spec.hosts.is_empty() => findings.add("http_hosts", || {
                Finding::warning(&path, "http needs hosts, and none is listed, so this port has no effect")
            }),
            Some(EgressProtocol::Tcp) if !spec.hosts.is_empty() => findings.add("tcp_hosts", || {
                let message = format!("{} is not looked at, so hosts do not restrict this port", port.protocol);
                Finding::warning(&path, message)
            }),
            Some(_) => {}
        }
        if let Some(other) = seen.insert(port.number, &port.protocol).filter(|other| *other != port.protocol)
        {
            findings.add("port twice", || {
                let message =
                    format!("port {} is listed as {other}, too: each allows what it is for", port.number);
                Finding::warning(&path, message)
            });
        }
    }
}

fn check_matches(spec: &EgressSpec, findings: &mut Findings) {
    let mut settings = 0;
    for (i, reference) in spec.matches.iter().enumerate() {
        let path = format!("spec.matches[{i}]");
        match reference.refers_to() {
            Some(EgressReference::HttpRouteGroup) => {}
            Some(EgressReference::UpstreamTrafficSetting) => {
                settings += 1;
                if settings > 1 {
                    findings.add("settings", || {
                        Finding::error(&path, "Cannot have more than 1 UpstreamTrafficSetting match")
                    });
                }
            }
            None => findings.add("reference", || {
                let message = format!(
                    "'{}' of '{}' is not supported: expected HTTPRouteGroup of 'specs.smi-spec.io/v1alpha4' or \
                     UpstreamTrafficSetting of 'policy.openservicemesh.io/v1alpha1'",
                    reference.kind, reference.api_group
                );
                Finding::error(&path, message)
            }),
        }
    }
    let is_http = spec.ports.iter().any(|port| port.carries() == Some(EgressProtocol::Http));
    let names_group = spec.matches.iter().any(|one| one.refers_to() == Some(EgressReference::HttpRouteGroup));
    if names_group && !is_http {
        findings.add("http_groups", || {
            Finding::warning("spec.matches", "an HTTPRouteGroup restricts http ports, and none is listed")
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn findings(change: Value) -> Vec<String> {
        let mut spec = json!({
            "sources": [{"kind": "ServiceAccount", "name": "curl", "namespace": "curl"}],
            "hosts": ["httpbin.org"],
            "ports": [{"number": 80, "protocol": "http"}],
        });
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let spec: EgressSpec = serde_json::from_value(spec).unwrap();
        egress(&spec).iter().map(Finding::with_severity).collect()
    }

    #[test]
    fn what_osm_s_webhook_refused_is_refused() {
        let group = json!({"apiGroup": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup", "name": "a"});
        let setting = json!({"apiGroup": "policy.openservicemesh.io/v1alpha1", "kind": "UpstreamTrafficSetting", "name": "a"});
        assert_eq!(findings(json!({"matches": [group]})), Vec::<String>::new());
        assert_eq!(
            findings(json!({"matches": [setting, setting]})),
            ["error: spec.matches[1]: Cannot have more than 1 UpstreamTrafficSetting match"]
        );
        let other = json!({"apiGroup": "specs.smi-spec.io", "kind": "HTTPRouteGroup", "name": "a"});
        assert_eq!(
            findings(json!({"matches": [other]})),
            [
                "error: spec.matches[0]: 'HTTPRouteGroup' of 'specs.smi-spec.io' is not supported: expected HTTPRouteGroup of \
              'specs.smi-spec.io/v1alpha4' or UpstreamTrafficSetting of 'policy.openservicemesh.io/v1alpha1'"
            ]
        );
    }

    #[test]
    fn a_host_or_a_range_that_cannot_be_read_is_an_error() {
        for (hosts, ranges, start) in [
            (json!(["a b"]), json!([]), "error: spec.hosts[0]: 'a b': "),
            (json!(["a.*.example"]), json!([]), "error: spec.hosts[0]: 'a.*.example': "),
            (
                json!(["a.example"]),
                json!(["192.0.2.1"]),
                "error: spec.ipAddresses[0]: '192.0.2.1' is not a CIDR range",
            ),
            (
                json!(["a.example"]),
                json!(["192.0.2.1/33"]),
                "error: spec.ipAddresses[0]: '192.0.2.1/33' is not",
            ),
        ] {
            let found = findings(json!({"hosts": hosts, "ipAddresses": ranges}));
            assert!(found[0].starts_with(start), "{found:?}");
        }
        assert_eq!(findings(json!({"ipAddresses": ["192.0.2.0/24", "2001:db8::/32"]})), Vec::<String>::new());
    }

    #[test]
    fn what_has_no_effect_is_a_warning() {
        let ports = json!([
            {"number": 80, "protocol": "http"},
            {"number": 80, "protocol": "tcp"},
            {"number": 81, "protocol": "grpc"},
        ]);
        assert_eq!(
            findings(json!({"ports": ports, "sources": []})),
            [
                "warning: spec.sources: no source is listed, so this allows nothing",
                "warning: spec.ports[1]: tcp is not looked at, so hosts do not restrict this port",
                "warning: spec.ports[1]: port 80 is listed as http, too: each allows what it is for",
                "warning: spec.ports[2].protocol: 'grpc' is not supported, so this port has no effect: use http, https, tcp \
                 or tcp-server-first",
            ]
        );
        assert_eq!(
            findings(json!({"hosts": []})),
            ["warning: spec.ports[0]: http needs hosts, and none is listed, so this port has no effect"]
        );
    }
}
