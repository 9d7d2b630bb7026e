//! An object's share of memory, in bytes: the object, its index entries, and what is written about it.
//!
//! The estimates are upper bounds: lists may have allocated twice the room that they use, and each text is a separate
//! allocation.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodCondition, PodIP, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Stored;
use crate::object::Object;
use crate::object::kinds::kinds;

/// Copies of an object's name in the index, in its watch and in the record of its size.
const NAMES: usize = 768;
/// An index entry for something that an object refers to.
pub(crate) const REFERENCE: usize = 256;
/// The status of a policy, as kept, shown and written.
pub(crate) const STATUS: usize = 6 * 1024;
/// The overhead of an allocation.
const ALLOCATION: usize = 32;
/// The overhead of a map entry.
const ENTRY: usize = 128;

macro_rules! define_of {
    ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
        /// Bytes that an object takes, including its names.
        pub(crate) fn of(object: &Object) -> usize {
            NAMES
                + match object {
                    $(Object::$kind(object) => <$type as Stored>::size(object),)*
                    Object::Unreadable(object) => STATUS + object.size(),
                }
        }
    };
}

kinds!(define_of);

/// A Pod: each address has an entry in the index.
pub(super) fn of_pod(pod: &Pod) -> usize {
    let spec = pod.spec.iter();
    let containers = spec.clone().flat_map(|spec| spec.init_containers.iter().flatten());
    let containers: usize = containers.chain(spec.flat_map(|spec| &spec.containers)).map(of_container).sum();
    let status = pod.status.iter();
    let ips = status.clone().flat_map(|status| status.pod_ips.iter().flatten());
    let ips: usize = ips.map(|ip| item::<PodIP>() + REFERENCE + ip.ip.len()).sum();
    let conditions = status.clone().flat_map(|status| status.conditions.iter().flatten());
    let conditions: usize = conditions
        .map(|condition| item::<PodCondition>() + text(&condition.type_) + text(&condition.status))
        .sum();
    let status: usize =
        status.map(|status| REFERENCE + optional(&status.pod_ip) + optional(&status.phase)).sum();
    let names = pod.spec.iter().map(|spec| optional(&spec.service_account_name) + optional(&spec.node_name));
    size_of::<Pod>()
        + of_metadata(&pod.metadata)
        + containers
        + ips
        + conditions
        + status
        + names.sum::<usize>()
}

fn of_container(container: &Container) -> usize {
    let ports = container.ports.iter().flatten();
    let ports: usize =
        ports.map(|port| item::<ContainerPort>() + optional(&port.name) + optional(&port.protocol)).sum();
    let args: usize = container.args.iter().flatten().map(|argument| item::<String>() + text(argument)).sum();
    item::<Container>() + text(&container.name) + optional(&container.restart_policy) + args + ports
}

/// A Service: each cluster IP has an entry in the index.
pub(super) fn of_service(service: &Service) -> usize {
    let spec = service.spec.iter().map(|spec| {
        let ips: usize =
            spec.cluster_ips.iter().flatten().map(|ip| item::<String>() + REFERENCE + text(ip)).sum();
        let ports: usize = spec.ports.iter().flatten().map(of_service_port).sum();
        let selector: usize = spec.selector.as_ref().map_or(0, entries);
        optional(&spec.cluster_ip)
            + optional(&spec.external_name)
            + optional(&spec.internal_traffic_policy)
            + optional(&spec.session_affinity)
            + optional(&spec.type_)
            + ips
            + ports
            + selector
    });
    size_of::<Service>() + of_metadata(&service.metadata) + spec.sum::<usize>()
}

fn of_service_port(port: &ServicePort) -> usize {
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => text(name),
        Some(IntOrString::Int(_)) | None => 0,
    };
    item::<ServicePort>()
        + optional(&port.name)
        + optional(&port.protocol)
        + optional(&port.app_protocol)
        + target
}

/// An EndpointSlice: each endpoint has an entry for its Pod, or for each of its addresses.
pub(super) fn of_slice(slice: &EndpointSlice) -> usize {
    let endpoints: usize = slice.endpoints.iter().flatten().map(of_endpoint).sum();
    let ports: usize = slice
        .ports
        .iter()
        .flatten()
        .map(|port| {
            let texts = [&port.name, &port.protocol, &port.app_protocol].into_iter().map(optional);
            item::<EndpointPort>() + texts.sum::<usize>()
        })
        .sum();
    size_of::<EndpointSlice>() + of_metadata(&slice.metadata) + text(&slice.address_type) + endpoints + ports
}

/// An endpoint with its addresses, the reference to its Pod, and where it is.
fn of_endpoint(endpoint: &Endpoint) -> usize {
    let addresses: usize = endpoint.addresses.iter().map(|address| item::<String>() + text(address)).sum();
    let alone = REFERENCE * endpoint.addresses.len();
    let target = endpoint.target_ref.as_ref().map_or(alone, |target| {
        let texts = [&target.kind, &target.name, &target.namespace, &target.uid].into_iter().map(optional);
        REFERENCE + texts.sum::<usize>()
    });
    let hints = endpoint.hints.as_ref().map_or(0, |hints| {
        let nodes = hints.for_nodes.iter().flatten().map(|node| item::<ForNode>() + text(&node.name));
        let zones = hints.for_zones.iter().flatten().map(|zone| item::<ForZone>() + text(&zone.name));
        nodes.chain(zones).sum::<usize>()
    });
    item::<Endpoint>() + addresses + target + optional(&endpoint.node_name) + hints
}

/// The parts of metadata that are decoded: names, UID and labels.
pub(crate) fn of_metadata(metadata: &ObjectMeta) -> usize {
    let names = [&metadata.name, &metadata.namespace, &metadata.uid].into_iter().map(optional).sum::<usize>();
    names + [&metadata.labels, &metadata.annotations].into_iter().flatten().map(entries).sum::<usize>()
}

fn entries(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| ENTRY + text(key) + text(value)).sum()
}

/// An item's slot in a list that may have allocated twice the room that it uses.
pub(crate) fn item<T>() -> usize {
    2 * size_of::<T>()
}

pub(crate) fn text(text: &str) -> usize {
    ALLOCATION + text.len()
}

/// A text that may be absent, which takes nothing then.
pub(crate) fn optional(optional: &Option<String>) -> usize {
    optional.as_deref().map_or(0, text)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use serde_json::{Value, json};

    use super::*;
    use crate::object::stored::{custom, lean};

    /// The computed size of an object, and the bytes that decoding it leaves allocated.
    fn reckoned_and_held(decode: &dyn Fn() -> Object) -> (usize, usize) {
        let object = decode();
        let mut kept = None;
        let held = allocation_counter::measure(|| kept = Some(decode())).bytes_current;
        drop(black_box(kept));
        (of(&object), usize::try_from(held).unwrap())
    }

    #[test]
    fn no_object_takes_more_than_what_is_reckoned_for_it() {
        let labels: Value = (0..200).map(|i| (format!("label-{i}"), Value::from("v".repeat(50)))).collect();
        let ports: Vec<Value> = (0..900)
            .map(|i| json!({"name": format!("p{i}"), "port": i, "containerPort": i, "protocol": "TCP"}))
            .collect();
        let metadata = json!({"namespace": "shop", "name": "a", "uid": "u".repeat(36), "labels": labels});
        let sidecar =
            json!({"name": "tidegate-sidecar", "restartPolicy": "Always", "args": ["--transparent"]});
        let pod = json!({"metadata": metadata, "spec": {"serviceAccountName": "a", "nodeName": "n", "initContainers": [sidecar],
            "containers": [{"name": "a", "ports": ports}]}, "status": {"phase": "Failed", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "False"}]}})
        .to_string();
        let bare = json!({"metadata": {"namespace": "shop", "name": "a"}}).to_string();
        let service =
            json!({"metadata": metadata, "spec": {"ports": ports, "selector": labels, "clusterIP": "10.0.0.1",
                "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}})
            .to_string();
        let endpoint = |i| {
            let target = json!({"kind": "Pod", "name": format!("p{i}"), "uid": "u".repeat(36)});
            let hints = json!({"forZones": [{"name": "a"}], "forNodes": [{"name": "b"}, {"name": "c"}]});
            json!({"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": target,
                "nodeName": "n".repeat(30), "hints": hints})
        };
        let endpoints: Vec<Value> = (0..900).map(endpoint).collect();
        let slice =
            json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints})
                .to_string();
        let hosts: Vec<String> = (0..60).map(|i| format!("{i}.example")).collect();
        let backends: Vec<Value> = (0..200)
            .map(|i| {
                json!({"name": format!("b{i}"), "port": {"number": i, "protocol": "https"},
                "tls": {"skipClientCertValidation": false, "sniHosts": hosts}})
            })
            .collect();
        let sources: Vec<Value> =
            (0..900).map(|i| json!({"kind": "IPRange", "name": format!("10.0.0.{i}/32")})).collect();
        let backend =
            json!({"metadata": metadata, "spec": {"backends": backends, "sources": sources}}).to_string();
        let broken = json!({"metadata": metadata, "spec": {"backends": vec![json!({"name": "x"}); 2_000]}})
            .to_string();
        let check = |what: &str, decode: &dyn Fn() -> Object| {
            let (reckoned, held) = reckoned_and_held(decode);
            println!("{what}: {reckoned} bytes reckoned, {held} held");
            assert!(
                held <= reckoned && reckoned < 3 * held + 16 * 1024,
                "{what}: {held} held, {reckoned} reckoned"
            );
        };
        for text in [&pod, &bare] {
            check("pod", &|| Object::Pod(lean::pod(text, "tidegate-system").unwrap().into()));
        }
        for text in [&service, &bare] {
            check("service", &|| Object::Service(lean::service(text).unwrap().into()));
        }
        check("slice", &|| Object::EndpointSlice(lean::endpoint_slice(&slice).unwrap().into()));
        for text in [&backend, &broken] {
            check("policy", &|| custom::decode::<tidegate_crds::IngressBackend>(text).unwrap());
        }
    }
}
