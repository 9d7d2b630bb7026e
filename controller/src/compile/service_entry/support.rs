//! What sidecars do not carry out of ServiceEntries.

use tidegate_crds::service_entry::{Resolution, ServiceEntry, WorkloadEntry};

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

/// Why an entry is not in force; `None` if it is.
pub(super) fn of_entry(entry: &ServiceEntry) -> Option<String> {
    let spec = &entry.spec;
    match spec.resolution() {
        Ok(Resolution::None) => None,
        Ok(Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns) => {
            let sockets =
                spec.endpoints.iter().enumerate().filter_map(|(i, endpoint)| Some((i, endpoint.socket()?)));
            let (i, socket) = { sockets }.next()?;
            Some(format!(
                "spec.endpoints[{i}].address: '{socket}' is not supported: sidecars connect to IP addresses only"
            ))
        }
        Err(text) => Some(format!("spec.resolution: '{text}' is not supported")),
    }
}
