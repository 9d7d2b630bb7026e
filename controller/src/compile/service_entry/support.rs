//! What sidecars do not carry out of ServiceEntries.
//!
//! Connections are told apart by the address that was dialled. So where hosts would have to tell them apart, by the server
//! name of TLS or by the host of a request, an entry's port is not in force.

use tidegate_crds::service_entry::{
    EntryPort, EntryProtocol, Resolution, ServiceEntry, ServiceEntrySpec, WorkloadEntry,
};

use super::EntryMatch;

/// Why an entry is not in force for connections that it matches; `None` if it is.
pub(super) fn unsupported(found: &EntryMatch<'_>) -> Option<String> {
    let is_one_address = found.range.is_some_and(|range| range.prefix_len() == range.max_prefix_len());
    let by_host = || if is_one_address { None } else { by_host(found.port) };
    of_spec(&found.entry.spec).or_else(by_host)
}

/// Why an entry, or a part of it, is not in force; `None` if all of it is.
pub(super) fn of_entry(entry: &ServiceEntry) -> Option<String> {
    let spec = &entry.spec;
    if let Some(reason) = of_spec(spec) {
        return Some(reason);
    }
    let mut ranges = spec.ranges();
    if !spec.addresses.is_empty() && ranges.all(|range| range.prefix_len() == range.max_prefix_len()) {
        return None;
    }
    let mut ports = spec.ports.iter().enumerate();
    ports.find_map(|(i, port)| Some(format!("spec.ports[{i}].protocol: {}", by_host(port)?)))
}

/// Settings that are accepted and not used.
pub(super) fn unused(entry: &ServiceEntry) -> Vec<String> {
    let spec = &entry.spec;
    let any = |is_set: fn(&WorkloadEntry) -> bool| spec.endpoints.iter().position(is_set);
    let of_endpoints = [
        ("weight", any(|endpoint| endpoint.weight.is_some()), "connections are balanced by latency"),
        ("locality", any(|endpoint| endpoint.locality.is_some()), "endpoints are used wherever they are"),
        ("network", any(|endpoint| endpoint.network.is_some()), "endpoints are dialled directly"),
    ];
    let of_endpoints = of_endpoints.into_iter().filter_map(|(field, at, instead)| {
        at.map(|i| format!("spec.endpoints[{i}].{field} has no effect: {instead}"))
    });
    let names = (!spec.subject_alt_names.is_empty())
        .then(|| "spec.subjectAltNames has no effect: the app's own TLS is passed on as it is".to_owned());
    of_endpoints.chain(names).collect()
}

/// Why nothing of an entry is in force.
fn of_spec(spec: &ServiceEntrySpec) -> Option<String> {
    match spec.resolution() {
        Ok(Resolution::None) => None,
        Ok(Resolution::Static) if spec.workload_selector.is_some() => {
            Some("spec.workloadSelector: not supported yet: list spec.endpoints".to_owned())
        }
        Ok(Resolution::Static) => {
            let at = spec.endpoints.iter().position(|endpoint| endpoint.ip().is_none())?;
            Some(format!("spec.endpoints[{at}].address: not supported yet: only IP addresses are"))
        }
        Ok(Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns) => {
            let text = spec.resolution.as_deref().unwrap_or_default();
            Some(format!("spec.resolution: {text} is not supported yet: only NONE and STATIC are"))
        }
        Err(text) => Some(format!("spec.resolution: '{text}' is not supported")),
    }
}

/// Why a port needs single addresses.
fn by_host(port: &EntryPort) -> Option<String> {
    let text = port.protocol.as_deref().unwrap_or_default();
    match port.protocol() {
        Ok(EntryProtocol::Tls | EntryProtocol::Http | EntryProtocol::Http2) => Some(format!(
            "{text} is not supported yet without single addresses, because hosts do not tell connections apart: list IP \
             addresses in spec.addresses, or use TCP"
        )),
        Ok(EntryProtocol::Tcp | EntryProtocol::Undeclared | EntryProtocol::Udp) => None,
        Err(text) => Some(format!("'{text}' is not supported")),
    }
}
