//! What is kept of each kind: all that decides about a policy, and little else. What is left out here costs no
//! memory, and a change to it compiles nothing.

use k8s_openapi::api::core::v1::{
    Container, Namespace, Pod, PodIP, PodSpec, PodStatus, Service, ServiceSpec, ServiceStatus,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use tidegate_crds::injection::{INTERCEPT_CONTAINER, has_sidecar_of};

use crate::index::SERVICE_NAME_LABEL;

pub(super) fn namespace(namespace: &mut Namespace) {
    let metadata = ObjectMeta { labels: namespace.metadata.labels.take(), ..named(&mut namespace.metadata) };
    *namespace = Namespace { metadata, ..Namespace::default() };
}

pub(super) fn service(service: &mut Service) {
    let spec = service.spec.take().unwrap_or_default();
    let kept = ServiceSpec {
        cluster_ip: spec.cluster_ip,
        cluster_ips: spec.cluster_ips,
        external_name: spec.external_name,
        ports: spec.ports,
        publish_not_ready_addresses: spec.publish_not_ready_addresses,
        selector: spec.selector,
        type_: spec.type_,
        ..ServiceSpec::default()
    };
    let metadata = named(&mut service.metadata);
    *service = Service { metadata, spec: Some(kept), status: None::<ServiceStatus> };
}

pub(super) fn endpoint_slice(slice: &mut EndpointSlice) {
    let labels = slice.metadata.labels.take().unwrap_or_default();
    let labels = labels.into_iter().filter(|(label, _)| label == SERVICE_NAME_LABEL).collect();
    slice.metadata = ObjectMeta { labels: Some(labels), ..named(&mut slice.metadata) };
    for endpoint in slice.endpoints.iter_mut().flatten() {
        let target = endpoint.target_ref.take().map(|mut target| {
            target.api_version = None;
            target.field_path = None;
            target.resource_version = None;
            target
        });
        *endpoint = Endpoint {
            addresses: std::mem::take(&mut endpoint.addresses),
            conditions: endpoint.conditions.take().map(|conditions| EndpointConditions {
                ready: conditions.ready,
                serving: conditions.serving,
                terminating: conditions.terminating,
            }),
            target_ref: target,
            ..Endpoint::default()
        };
    }
}

/// A Pod without a sidecar that listens to the control plane in this namespace is kept for its addresses alone: they
/// tell whether an endpoint is still the Pod's.
pub(super) fn pod(pod: &mut Pod, control_plane: &str) {
    let is_meshed = has_sidecar_of(pod, control_plane);
    let (spec, status) = (pod.spec.take(), pod.status.take());
    let mut metadata = named(&mut pod.metadata);
    if is_meshed {
        metadata.labels = pod.metadata.labels.take();
        metadata.deletion_timestamp = pod.metadata.deletion_timestamp.take();
    }
    let spec = spec.filter(|_| is_meshed).map(|spec| PodSpec {
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec.init_containers.map(|containers| {
            // Others have ended before anybody comes.
            let kept = containers.into_iter().filter(|c| is_intercept(c) || c.restart_policy.is_some());
            kept.map(container).collect()
        }),
        host_network: spec.host_network,
        service_account_name: spec.service_account_name.or(spec.service_account),
        ..PodSpec::default()
    });
    let status = status.map(|status| PodStatus {
        phase: status.phase.filter(|phase| phase != "Pending" && phase != "Running"),
        // One address is in both fields.
        pod_ips: status.pod_ips.filter(|ips: &Vec<PodIP>| ips.len() > 1),
        pod_ip: status.pod_ip,
        ..PodStatus::default()
    });
    *pod = Pod { metadata, spec, status };
}

/// The spec decides; the status is what we wrote ourselves.
pub(super) fn custom(object: &mut DynamicObject) {
    let generation = object.metadata.generation;
    object.metadata = ObjectMeta { generation, ..named(&mut object.metadata) };
    if let Some(fields) = object.data.as_object_mut() {
        fields.remove("status");
    }
}

/// What tells an object from others. Its version is not kept: objects that differ in nothing else are the same.
fn named(metadata: &mut ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.take(),
        namespace: metadata.namespace.take(),
        uid: metadata.uid.take(),
        ..ObjectMeta::default()
    }
}

fn is_intercept(container: &Container) -> bool {
    container.name == INTERCEPT_CONTAINER
}

fn container(container: Container) -> Container {
    Container {
        // They say which ports the sidecar does not see.
        args: container.args.filter(|_| container.name == INTERCEPT_CONTAINER),
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}
