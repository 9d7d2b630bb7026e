//! EndpointSlices for Services that have none, derived from the Pods as Kubernetes' own controller does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::object::pod::{has_ended, node_name};
use crate::object::{Object, ObjectName};
use crate::service::SERVICE_NAME_LABEL;
use crate::service::{NamedPorts, selects, target_ports_of};

/// A port of an EndpointSlice.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct SlicePort {
    name: Option<String>,
    number: u16,
    app_protocol: Option<String>,
}

/// One EndpointSlice for each address family and set of ports of each Service that has a selector and no EndpointSlice.
pub(super) fn derive<'o>(objects: impl Iterator<Item = &'o Object>) -> Vec<Object> {
    let (mut services, mut pods, mut covered) = (Vec::new(), Vec::new(), BTreeSet::new());
    for object in objects {
        match object {
            Object::Service(service) => services.push(service),
            Object::Pod(pod) => pods.push(pod),
            Object::EndpointSlice(slice) => {
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                let labels = slice.metadata.labels.as_ref();
                if let Some(name) = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL)) {
                    covered.insert(ObjectName::new(namespace, name.as_str()));
                }
            }
            _ => {}
        }
    }
    services.retain(|service| !covered.contains(&ObjectName::of(&service.metadata)));
    services.into_iter().flat_map(|service| slices(service, &pods)).collect()
}

/// The slices of one Service. Pods whose named ports have different numbers are in different slices, as in
/// Kubernetes.
fn slices(service: &Service, pods: &[&Arc<Pod>]) -> Vec<Object> {
    let name = ObjectName::of(&service.metadata);
    let mut families: BTreeMap<(&str, Vec<SlicePort>), Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| selects(service, pod) && !has_ended(pod)) {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
        let family = match address.parse() {
            Ok(IpAddr::V4(_)) => "IPv4",
            Ok(IpAddr::V6(_)) => "IPv6",
            Err(_) => continue,
        };
        let named = NamedPorts::of(pod);
        let ports = target_ports_of(service, &named).map(|port| SlicePort {
            name: port.name.map(str::to_owned),
            number: port.number,
            app_protocol: port.app_protocol.map(str::to_owned),
        });
        families.entry((family, ports.collect())).or_default().push(endpoint(pod, address));
    }
    let slices = families.into_iter().enumerate();
    slices
        .map(|(i, ((family, ports), endpoints))| {
            let metadata = ObjectMeta {
                name: Some(format!("{}-pods-{i}", name.name)),
                namespace: Some(name.namespace.to_string()),
                labels: Some([(SERVICE_NAME_LABEL.to_owned(), name.name.to_string())].into()),
                ..ObjectMeta::default()
            };
            let ports = ports.into_iter().map(|port| EndpointPort {
                app_protocol: port.app_protocol,
                name: port.name,
                port: Some(port.number.into()),
                protocol: Some("TCP".to_owned()),
            });
            Object::EndpointSlice(Arc::new(EndpointSlice {
                address_type: family.to_owned(),
                endpoints: Some(endpoints),
                metadata,
                ports: Some(ports.collect()),
            }))
        })
        .collect()
}

/// A Pod as an endpoint: ready unless its `Ready` condition says `False`, because manifests rarely have a status.
fn endpoint(pod: &Pod, address: String) -> Endpoint {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_unready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "False");
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions { ready: Some(!is_unready), ..EndpointConditions::default() }),
        node_name: node_name(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}
