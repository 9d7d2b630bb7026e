//! What sidecars do not carry out of ServiceEntries.

use tidegate_core::Identity;
use tidegate_crds::ServiceEntrySpec;
use tidegate_crds::service_entry::{EntryLocation, Resolution, ServiceEntry, WorkloadEntry};

/// The names of workloads.
const WORKLOADS: &str = "spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>";

/// Settings that are accepted and not used.
pub(super) fn unused(entry: &ServiceEntry) -> Vec<String> {
    let spec = &entry.spec;
    let any = |is_set: fn(&WorkloadEntry) -> bool| spec.endpoints.iter().position(is_set);
    let of_endpoints = [
        ("locality", any(|endpoint| endpoint.locality.is_some()), "endpoints are used wherever they are"),
        ("network", any(|endpoint| endpoint.network.is_some()), "endpoints are dialled directly"),
    ];
    let of_endpoints = of_endpoints.into_iter().filter_map(|(field, at, instead)| {
        at.map(|i| format!("spec.endpoints[{i}].{field} has no effect: {instead}"))
    });
    let nowhere = any(|endpoint| endpoint.address.as_deref().is_none_or(str::is_empty));
    let nowhere = nowhere.map(|i| format!("spec.endpoints[{i}] has no address, and is left out"));
    of_endpoints.chain(nowhere).chain(unused_names(spec)).collect()
}

/// `subjectAltNames` that no server has, or none is compared with.
fn unused_names(spec: &ServiceEntrySpec) -> Option<String> {
    if spec.subject_alt_names.is_empty() {
        return None;
    }
    if spec.location() != Ok(EntryLocation::Internal) {
        return Some(
            "spec.subjectAltNames has no effect: the app's own TLS is passed on as it is".to_owned(),
        );
    }
    if spec.resolution() == Ok(Resolution::None) {
        return Some("spec.subjectAltNames has no effect with resolution NONE".to_owned());
    }
    foreign_name(spec)
}

/// Why an entry is not in force; `None` if it is.
pub(super) fn of_entry(entry: &ServiceEntry) -> Option<String> {
    let spec = &entry.spec;
    match spec.resolution() {
        Ok(Resolution::None) => None,
        Ok(_) => unix_socket(spec).or_else(|| no_server(spec)),
        Err(text) => Some(format!("spec.resolution: '{text}' is not supported")),
    }
}

/// A sidecar has files and rights of its own: an entry of another namespace must not have it open any socket that it can.
fn unix_socket(spec: &ServiceEntrySpec) -> Option<String> {
    let mut endpoints = spec.endpoints.iter().enumerate();
    let (i, socket) = endpoints.find_map(|(i, endpoint)| Some((i, endpoint.socket()?)))?;
    let path = format!("spec.endpoints[{i}].address");
    Some(format!("{path}: '{socket}' is not supported: sidecars connect to IP addresses only"))
}

/// Without a name of a workload, nothing could be verified, and connections would be plaintext.
fn no_server(spec: &ServiceEntrySpec) -> Option<String> {
    let is_internal = spec.location() == Ok(EntryLocation::Internal);
    if is_internal && spec.server_identities().next().is_none() { foreign_name(spec) } else { None }
}

/// The first of `subjectAltNames` that is not a workload's.
fn foreign_name(spec: &ServiceEntrySpec) -> Option<String> {
    let mut names = spec.subject_alt_names.iter().enumerate();
    let (i, name) = names.find(|(_, name)| Identity::from_spiffe_uri(name).is_err())?;
    Some(format!(
        "spec.subjectAltNames[{i}]: '{name}' is not a name of a workload in the mesh: expected {WORKLOADS}"
    ))
}
