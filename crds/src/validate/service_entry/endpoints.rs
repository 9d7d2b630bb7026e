//! Endpoints of a ServiceEntry.

use std::collections::BTreeSet;

use tidegate_core::{DnsName, Identity, TrustDomain};

use crate::service_entry::{EntryLocation, Resolution, SOCKET, ServiceEntrySpec, WorkloadEntry, port};
use crate::validate::Finding;
use crate::validate::findings::Findings;

pub(super) fn check(spec: &ServiceEntrySpec, findings: &mut Findings) {
    let resolution = spec.resolution().ok();
    check_selector(spec, resolution, findings);
    let count = spec.endpoints.len();
    match resolution {
        Some(resolution @ (Resolution::None | Resolution::DynamicDns)) if count > 0 => {
            findings.add("endpoints", || {
                let name = if resolution == Resolution::None { "NONE" } else { "DYNAMIC_DNS" };
                Finding::error("spec.endpoints", format!("not allowed with resolution {name}"))
            });
        }
        Some(Resolution::DnsRoundRobin) if count > 1 => findings.add("endpoints", || {
            Finding::error("spec.endpoints", format!("DNS_ROUND_ROBIN takes one endpoint, got {count}"))
        }),
        _ => {}
    }
    let names: BTreeSet<_> = spec.ports.iter().map(|port| port.name.as_str()).collect();
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        check_address(spec, resolution, endpoint, &format!("spec.endpoints[{i}].address"), findings);
        if let Some(Err(error)) =
            endpoint.account().map(|account| Identity::new(TrustDomain::default(), "default", account))
        {
            let path = format!("spec.endpoints[{i}].serviceAccount");
            findings.add("account", || Finding::error(path, error.to_string()));
        }
        for (name, number) in &endpoint.ports {
            let path = || format!("spec.endpoints[{i}].ports.{name}");
            if !names.contains(name.as_str()) {
                findings.add("endpoint port", || {
                    Finding::error(path(), format!("spec.ports has no port with the name '{name}'"))
                });
            }
            if port(*number).is_none() {
                findings.add("endpoint port", || {
                    Finding::error(path(), format!("expected 1 to 65535, got {number}"))
                });
            }
        }
    }
}

fn check_selector(spec: &ServiceEntrySpec, resolution: Option<Resolution>, findings: &mut Findings) {
    let Some(selector) = &spec.workload_selector else { return };
    let path = "spec.workloadSelector";
    if !spec.endpoints.is_empty() {
        let message = "not allowed beside spec.endpoints: one of both says who serves";
        findings.add("selector", || Finding::error(path, message));
    }
    for (name, value) in
        selector.labels.iter().filter(|(name, value)| [name, value].iter().any(|text| text.contains('*')))
    {
        findings.add("selector label", || {
            Finding::error(
                format!("{path}.labels.{name}"),
                format!("'*' is not allowed in a label, got '{name}: {value}'"),
            )
        });
    }
    if spec.selected_pods().is_none() {
        let message = match resolution {
            Some(Resolution::None) => "has no effect with resolution NONE",
            Some(Resolution::DynamicDns) => "has no effect with resolution DYNAMIC_DNS",
            _ => "has no labels, and selects no Pod",
        };
        findings.add("unused selector", || Finding::warning(path, message));
    } else if spec.location() == Ok(EntryLocation::External) && spec.endpoints.is_empty() {
        let message = "Pods with a sidecar refuse the plaintext of MESH_EXTERNAL: MESH_INTERNAL is for these";
        findings.add("plaintext", || Finding::warning("spec.location", message));
    }
}

fn check_address(
    spec: &ServiceEntrySpec,
    resolution: Option<Resolution>,
    endpoint: &WorkloadEntry,
    path: &str,
    findings: &mut Findings,
) {
    let Some(address) = endpoint.address.as_deref().filter(|address| !address.is_empty()) else {
        if endpoint.network.is_none() {
            findings.add("no address", || Finding::error(path, "required, unless network is set"));
        }
        return;
    };
    if let Some(socket) = address.strip_prefix(SOCKET) {
        check_socket(spec, endpoint, socket, path, findings);
        return;
    }
    if endpoint.ip().is_some() {
        return;
    }
    match resolution {
        Some(Resolution::Static) => findings.add("address", || {
            Finding::error(path, format!("expected an IP address or unix:// with STATIC, got '{address}'"))
        }),
        Some(Resolution::Dns | Resolution::DnsRoundRobin) if DnsName::parse(address).is_err() => {
            findings.add("address", || {
                Finding::error(path, format!("expected an IP address or a DNS name, got '{address}'"))
            });
        }
        _ => {}
    }
}

fn check_socket(
    spec: &ServiceEntrySpec,
    endpoint: &WorkloadEntry,
    socket: &str,
    path: &str,
    findings: &mut Findings,
) {
    if !(socket.starts_with('/') || socket.starts_with('@')) || socket.ends_with('/') {
        findings.add("socket", || {
            Finding::error(path, format!("expected unix:///path or unix://@name, got 'unix://{socket}'"))
        });
    }
    if !endpoint.ports.is_empty() {
        findings.add("socket ports", || Finding::error(path, "a unix:// address has no ports"));
    }
    if spec.ports.len() != 1 {
        findings.add("socket port", || {
            Finding::error(
                path,
                format!("a unix:// address needs one port in spec.ports, got {}", spec.ports.len()),
            )
        });
    }
}
