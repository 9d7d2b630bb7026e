//! Checks of a ServiceEntry: the rules of Istio's definition (CEL) and of its webhook. Each finding names the field and its
//! value.

mod endpoints;

use std::collections::BTreeSet;

use tidegate_core::dns_name::{DnsName, DnsPattern};

use super::Finding;
use super::findings::Findings;
use crate::service_entry::{EntryPort, EntryProtocol, Resolution, ServiceEntrySpec, address_range, port};

/// All errors and probable mistakes, in the order of the fields. `namespace`: the entry's own.
pub fn service_entry(namespace: &str, spec: &ServiceEntrySpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    check_hosts(spec, &mut findings);
    check_addresses(spec, &mut findings);
    check_ports(spec, &mut findings);
    if let Err(text) = spec.location() {
        let supported = "MESH_EXTERNAL or MESH_INTERNAL";
        findings.add("location", || unsupported("spec.location", text, supported));
    }
    match spec.resolution() {
        Ok(resolution) => check_resolution(spec, resolution, &mut findings),
        Err(text) => {
            let supported = "NONE, STATIC, DNS, DNS_ROUND_ROBIN or DYNAMIC_DNS";
            findings.add("resolution", || unsupported("spec.resolution", text, supported));
        }
    }
    endpoints::check(spec, &mut findings);
    check_exports(namespace, spec, &mut findings);
    findings.finish()
}

fn check_hosts(spec: &ServiceEntrySpec, findings: &mut Findings) {
    if spec.hosts.is_empty() {
        findings.add("hosts", || Finding::error("spec.hosts", "at least one host is required"));
    }
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        if host == "*" {
            findings.add("host", || {
                Finding::error(path, "'*' is not allowed: name a domain, such as *.example.com")
            });
            continue;
        }
        let Err(error) = DnsPattern::parse(host) else { continue };
        let without_star = host.trim_matches('*').trim_matches('.');
        if host.contains('*') && DnsName::parse(without_star).is_ok() {
            findings.add("partial wildcard", || {
                Finding::warning(path, format!("'{host}' matches no host: only a first label may be '*'"))
            });
        } else {
            findings.add("host", || Finding::error(path, error.to_string()));
        }
    }
    let is_named = |port: &EntryPort| {
        matches!(port.protocol(), Ok(EntryProtocol::Http | EntryProtocol::Http2 | EntryProtocol::Tls))
    };
    let bytes = spec.ports.iter().position(|port| !is_named(port));
    if let (2.., Some(i)) = (spec.hosts.len(), bytes)
        && spec.resolution() != Ok(Resolution::None)
    {
        findings.add("several hosts", || {
            let message = "several hosts need ports that carry a host: HTTP, HTTP2, GRPC, HTTPS or TLS";
            Finding::error(format!("spec.ports[{i}].protocol"), message)
        });
    }
}

fn check_addresses(spec: &ServiceEntrySpec, findings: &mut Findings) {
    let takes_ranges = matches!(spec.resolution(), Ok(Resolution::None | Resolution::Static) | Err(_));
    for (i, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{i}]");
        match address_range(address) {
            None => findings.add("address", || {
                Finding::error(path, format!("expected an IP address or a CIDR range, got '{address}'"))
            }),
            Some(_) if address.contains('/') && !takes_ranges => findings.add("range", || {
                let message =
                    format!("'{address}' is a CIDR range, which only NONE and STATIC resolution take");
                Finding::error(path, message)
            }),
            Some(_) => {}
        }
    }
}

fn check_ports(spec: &ServiceEntrySpec, findings: &mut Findings) {
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, listed) in spec.ports.iter().enumerate() {
        let EntryPort { number, name, target_port, .. } = listed;
        let path = |field: &str| format!("spec.ports[{i}].{field}");
        let targets = target_port.iter().map(|target| ("targetPort", target));
        for (field, number) in [("number", number)].into_iter().chain(targets) {
            if port(*number).is_none() {
                findings.add("port number", || {
                    Finding::error(path(field), format!("expected 1 to 65535, got {number}"))
                });
            }
        }
        if !numbers.insert(number) {
            findings.add("duplicate number", || {
                Finding::error(path("number"), format!("{number} is the number of another port"))
            });
        }
        if !is_label(name) {
            findings.add("port name", || {
                let message = format!("expected at most 63 lower-case letters, digits and '-', got '{name}'");
                Finding::error(path("name"), message)
            });
        }
        if !names.insert(name) {
            findings.add("duplicate name", || {
                Finding::error(path("name"), format!("'{name}' is the name of another port"))
            });
        }
        match listed.protocol() {
            Err(text) => findings.add("protocol", || {
                unsupported(&path("protocol"), text, "HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS")
            }),
            Ok(EntryProtocol::Udp) => findings.add("udp", || {
                Finding::warning(path("protocol"), "UDP is not intercepted, so this port has no effect")
            }),
            Ok(_) => {}
        }
    }
}

fn check_resolution(spec: &ServiceEntrySpec, resolution: Resolution, findings: &mut Findings) {
    let hosts = || spec.hosts.iter().enumerate();
    match resolution {
        Resolution::None | Resolution::Static => {}
        Resolution::Dns | Resolution::DnsRoundRobin if spec.endpoints.is_empty() => {
            for (i, host) in hosts().filter(|(_, host)| host.starts_with('*')) {
                findings.add("wildcard", || {
                    let message =
                        format!("'{host}' cannot be resolved: without endpoints, DNS needs whole names");
                    Finding::error(format!("spec.hosts[{i}]"), message)
                });
            }
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {}
        Resolution::DynamicDns => {
            for (i, host) in hosts().filter(|(_, host)| !host.starts_with("*.")) {
                findings.add("whole name", || {
                    let message = format!(
                        "'{host}' is a whole name: DYNAMIC_DNS takes wildcards, such as *.example.com"
                    );
                    Finding::error(format!("spec.hosts[{i}]"), message)
                });
            }
            if !spec.addresses.is_empty() {
                findings.add("dynamic", || Finding::error("spec.addresses", "not allowed with DYNAMIC_DNS"));
            }
            let carries_host = |port: &EntryPort| {
                matches!(port.protocol(), Ok(EntryProtocol::Http | EntryProtocol::Http2 | EntryProtocol::Tls))
            };
            for (i, port) in spec.ports.iter().enumerate().filter(|(_, port)| !carries_host(port)) {
                findings.add("dynamic protocol", || {
                    let text = port.protocol.as_deref().unwrap_or_default();
                    let message =
                        format!("'{text}' carries no host: DYNAMIC_DNS takes HTTP, HTTP2, GRPC and TLS");
                    Finding::error(format!("spec.ports[{i}].protocol"), message)
                });
            }
        }
    }
}

fn check_exports(namespace: &str, spec: &ServiceEntrySpec, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (i, text) in spec.export_to.iter().enumerate() {
        let path = format!("spec.exportTo[{i}]");
        let name = if text == "." { namespace } else { text };
        if matches!(name, "*" | "~") {
            if spec.export_to.len() > 1 {
                findings.add("export alone", || Finding::error(path, format!("'{name}' must stand alone")));
            }
        } else if !is_label(name) {
            findings.add("export", || {
                Finding::error(path, format!("expected '*', '.', '~' or a namespace, got '{name}'"))
            });
        } else if !seen.insert(name) {
            findings.add("duplicate export", || {
                Finding::error(path, format!("'{text}' is namespace {name}, which is listed already"))
            });
        }
    }
}

fn unsupported(path: &str, text: &str, supported: &str) -> Finding {
    Finding::error(path, format!("'{text}' is not supported: expected {supported}"))
}

/// Whether a text is a DNS-1123 label, as names of ports and namespaces are.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests;
