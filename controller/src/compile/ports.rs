//! The ports that EndpointSlices list, and for which Pods.
//!
//! A Service without a selector has its ports in slices alone, and one with named `targetPort`s may have several
//! numbers, a slice for each. A slice's `appProtocol` takes precedence over that of the Service's port of the same
//! name.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use tidegate_core::policy::AppProtocol;

use crate::index::Index;
use crate::object::ObjectName;
use crate::service::{app_protocol, tcp_ports};

/// The ports of a Service's EndpointSlices.
pub(super) fn listed_ports(
    index: &Index,
    service_name: &ObjectName,
    service: &Service,
) -> BTreeMap<u16, AppProtocol> {
    let mut ports = BTreeMap::new();
    let slices = index.slices_of(service_name);
    for slice in slices.filter(|slice| slice.endpoints.iter().flatten().next().is_some()) {
        for (number, protocol) in ports_of_slice(slice, service) {
            ports.entry(number).or_insert(protocol);
        }
    }
    ports
}

/// The ports of one of a Service's EndpointSlices.
pub(super) fn ports_of_slice<'s>(
    slice: &'s EndpointSlice,
    service: &'s Service,
) -> impl Iterator<Item = (u16, AppProtocol)> + 's {
    let mut declared: HashMap<Option<&str>, Option<&str>> = HashMap::new();
    for port in tcp_ports(service) {
        declared.entry(port.name.as_deref()).or_insert(port.app_protocol.as_deref());
    }
    slice.ports.iter().flatten().filter_map(move |port| {
        let number = port.port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0)?;
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            return None;
        }
        let name = port.name.as_deref().filter(|name| !name.is_empty());
        let declared = declared.get(&name).copied().flatten();
        Some((number, app_protocol(port.app_protocol.as_deref().or(declared), name)))
    })
}

/// Whether an endpoint is this Pod. Its reference decides; the address counts only without a reference, because addresses
/// are reused by other Pods.
pub(super) fn is_endpoint(pod: &Pod, endpoint: &Endpoint) -> bool {
    if let Some(target) = &endpoint.target_ref {
        return target.kind.as_deref() == Some("Pod")
            && target.name == pod.metadata.name
            && target
                .namespace
                .as_ref()
                .is_none_or(|namespace| Some(namespace) == pod.metadata.namespace.as_ref())
            && (target.uid.is_none() || pod.metadata.uid.is_none() || target.uid == pod.metadata.uid);
    }
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref());
    address.is_some_and(|address| endpoint.addresses.contains(address))
}
