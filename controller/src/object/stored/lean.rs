//! What is decoded of each kind: all that decides about a policy, and little else. Fields left out here cost no memory,
//! and a change to them compiles nothing.
//!
//! Lists are bounded, because an object's author chooses their length. Items beyond a bound are ignored, which opens
//! nothing: an unknown port is refused, an unknown label selects nothing. A selector that is too long selects nothing.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Namespace, Node, ObjectReference, Pod, PodCondition, PodIP, PodSpec, PodStatus,
    Service, ServicePort, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use tidegate_core::contract::names;
use tidegate_crds::injection::has_sidecar_of;
use tidegate_kubernetes::lean::{BoundedEntries, First, MembershipLabels, Meta, Only, Wanted};

use crate::object::node::ZONE_LABEL;
use crate::object::pod::READY;
use crate::service::SERVICE_NAME_LABEL;

/// Ports of a Pod, of a Service, and of an EndpointSlice.
const MOST_PORTS: usize = 1024;
/// Endpoints of an EndpointSlice: Kubernetes' own bound.
const MOST_ENDPOINTS: usize = 1000;
/// Addresses of an endpoint: Kubernetes' own bound.
const MOST_ADDRESSES: usize = 100;
/// Nodes and zones that an endpoint is meant for: Kubernetes' own bound.
const MOST_HINTS: usize = 8;
/// Conditions of a Pod that are read.
const MOST_CONDITIONS: usize = 64;
/// Labels of a Pod, and terms of a selector.
const MOST_LABELS: usize = 256;
/// Arguments of one of our containers.
const MOST_ARGUMENTS: usize = 256;
/// Containers of a Pod that are read.
const MOST_CONTAINERS: usize = 1024;

/// Decodes a Namespace: its name, and the labels that decide about its membership in a mesh.
pub(crate) fn namespace(text: &str) -> serde_json::Result<Namespace> {
    let MemberNamespace { mut metadata } = serde_json::from_str(text)?;
    let labels = metadata.labels.take().unwrap_or_default().entries;
    let metadata = ObjectMeta { labels: Some(labels), ..metadata.named() };
    Ok(Namespace { metadata, ..Namespace::default() })
}

/// Decodes a Node: its name, and its zone.
pub(crate) fn node(text: &str) -> serde_json::Result<Node> {
    let LeanNode { mut metadata } = serde_json::from_str(text)?;
    let labels = metadata.labels.take().unwrap_or_default().entries;
    Ok(Node { metadata: ObjectMeta { labels: Some(labels), ..metadata.named() }, ..Node::default() })
}

/// Decodes a Service. A selector with more terms than the bound is dropped as a whole: a part of it would select more
/// Pods.
pub(crate) fn service(text: &str) -> serde_json::Result<Service> {
    let LeanService { metadata, spec } = serde_json::from_str(text)?;
    let spec = spec.unwrap_or_default();
    let spec = ServiceSpec {
        cluster_ip: spec.cluster_ip,
        cluster_ips: spec.cluster_ips.map(|ips| ips.0),
        external_name: spec.external_name,
        internal_traffic_policy: spec.internal_traffic_policy.filter(|policy| policy != "Cluster"),
        ports: spec.ports.map(|ports| ports.0),
        publish_not_ready_addresses: spec.publish_not_ready_addresses,
        selector: spec.selector.filter(|selector| !selector.has_more).map(|selector| selector.entries),
        session_affinity: spec.session_affinity.filter(|affinity| affinity != "None"),
        session_affinity_config: spec.session_affinity_config,
        type_: spec.type_,
        ..ServiceSpec::default()
    };
    Ok(Service { metadata: metadata.named(), spec: Some(spec), status: None })
}

/// Decodes an EndpointSlice: of its labels the Service's name only.
pub(crate) fn endpoint_slice(text: &str) -> serde_json::Result<EndpointSlice> {
    let LeanSlice { mut metadata, address_type, endpoints, ports } = serde_json::from_str(text)?;
    let labels = metadata.labels.take().unwrap_or_default().entries;
    let endpoints = endpoints.map(|endpoints| endpoints.0.into_iter().map(Endpoint::from).collect());
    Ok(EndpointSlice {
        address_type,
        endpoints,
        metadata: ObjectMeta { labels: Some(labels), ..metadata.named() },
        ports: ports.map(|ports| ports.0),
    })
}

/// Decodes a Pod. One without a sidecar of the control plane in this namespace is kept for its addresses and labels alone: they
/// show whether an endpoint is still the Pod's, and which ServiceEntries select it.
pub(crate) fn pod(text: &str, control_plane: &str) -> serde_json::Result<Pod> {
    let LeanPod { metadata, spec, status } = serde_json::from_str(text)?;
    let labels = metadata.labels.clone().map(|labels| labels.entries);
    let deletion_timestamp = metadata.deletion_timestamp.clone();
    let mut pod = Pod {
        metadata: ObjectMeta { labels, deletion_timestamp, ..metadata.named() },
        spec: spec.map(PodSpec::from),
        status: status.map(PodStatus::from),
    };
    if has_sidecar_of(&pod, control_plane) {
        forget_other_arguments(&mut pod);
    } else {
        pod.spec = None;
    }
    Ok(pod)
}

/// Removes all arguments but the sidecar's, which have served their purpose.
fn forget_other_arguments(pod: &mut Pod) {
    let containers = pod.spec.iter_mut().flat_map(|spec| spec.init_containers.iter_mut().flatten());
    for container in containers.filter(|container| container.name != names::INTERCEPT) {
        container.args = None;
    }
}

#[derive(Deserialize)]
struct MemberNamespace {
    metadata: Meta<Only<MembershipLabels>>,
}

/// The label with the name of the Service whose endpoints a slice holds.
struct ServiceName;

impl Wanted for ServiceName {
    const NAMES: &'static [&'static str] = &[SERVICE_NAME_LABEL];
}

#[derive(Deserialize)]
struct LeanNode {
    metadata: Meta<Only<Zone>>,
}

/// The label with the zone of a Node.
struct Zone;

impl Wanted for Zone {
    const NAMES: &'static [&'static str] = &[ZONE_LABEL];
}

#[derive(Deserialize)]
struct LeanService {
    metadata: Meta,
    #[serde(default)]
    spec: Option<LeanServiceSpec>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<First<String, 2>>,
    external_name: Option<String>,
    internal_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<SessionAffinityConfig>,
    ports: Option<First<ServicePort, MOST_PORTS>>,
    publish_not_ready_addresses: Option<bool>,
    selector: Option<BoundedEntries<MOST_LABELS>>,
    #[serde(rename = "type")]
    type_: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanSlice {
    metadata: Meta<Only<ServiceName>>,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Option<First<LeanEndpoint, MOST_ENDPOINTS>>,
    #[serde(default)]
    ports: Option<First<EndpointPort, MOST_PORTS>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanEndpoint {
    addresses: Option<First<String, MOST_ADDRESSES>>,
    conditions: Option<LeanConditions>,
    target_ref: Option<LeanReference>,
    node_name: Option<String>,
    hints: Option<LeanHints>,
}

/// Which clients the endpoint is meant for.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanHints {
    for_nodes: Option<First<ForNode, MOST_HINTS>>,
    for_zones: Option<First<ForZone, MOST_HINTS>>,
}

/// All three conditions decide which endpoints get traffic.
#[derive(Deserialize, Default)]
#[serde(default)]
struct LeanConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// The Pod behind an endpoint. Its UID tells it from an earlier Pod of the same name.
#[derive(Deserialize, Default)]
#[serde(default)]
struct LeanReference {
    kind: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize)]
struct LeanPod {
    metadata: Meta<BoundedEntries<MOST_LABELS>>,
    #[serde(default)]
    spec: Option<LeanPodSpec>,
    #[serde(default)]
    status: Option<LeanPodStatus>,
}

/// Of the spec: what decides about ports, about our own containers and about the identity, and where the Pod runs.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanPodSpec {
    containers: Option<First<LeanContainer, MOST_CONTAINERS>>,
    init_containers: Option<First<LeanContainer, MOST_CONTAINERS>>,
    host_network: Option<bool>,
    node_name: Option<String>,
    service_account_name: Option<String>,
    service_account: Option<String>,
}

/// Of a container: its ports, and the arguments of ours, which say what is excluded and which control plane is used.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanContainer {
    name: String,
    restart_policy: Option<String>,
    args: Option<First<String, MOST_ARGUMENTS>>,
    ports: Option<First<LeanPort, MOST_PORTS>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanPort {
    name: Option<String>,
    container_port: i32,
    protocol: Option<String>,
}

/// Of the status: whether the Pod has ended, that it is not ready, and its addresses, at most one of each family.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<First<PodIP, 2>>,
    conditions: Option<First<LeanPodCondition, MOST_CONDITIONS>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LeanPodCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

impl From<LeanEndpoint> for Endpoint {
    fn from(endpoint: LeanEndpoint) -> Self {
        Self {
            addresses: endpoint.addresses.map(|addresses| addresses.0).unwrap_or_default(),
            conditions: endpoint.conditions.map(|LeanConditions { ready, serving, terminating }| {
                EndpointConditions { ready, serving, terminating }
            }),
            target_ref: endpoint.target_ref.map(|LeanReference { kind, name, namespace, uid }| {
                ObjectReference { kind, name, namespace, uid, ..ObjectReference::default() }
            }),
            node_name: endpoint.node_name,
            hints: endpoint.hints.map(|LeanHints { for_nodes, for_zones }| EndpointHints {
                for_nodes: for_nodes.map(|nodes| nodes.0),
                for_zones: for_zones.map(|zones| zones.0),
            }),
            ..Self::default()
        }
    }
}

impl From<LeanPodSpec> for PodSpec {
    /// Only our own containers keep their names: the ports of the others are joined in one, in order.
    fn from(spec: LeanPodSpec) -> Self {
        let mut room = MOST_PORTS;
        let containers = spec.containers.map(|containers| containers.0).unwrap_or_default();
        let apps = declaring(containers.into_iter(), &mut room);
        let (mut ours, mut sidecars) = (Vec::new(), Vec::new());
        for container in spec.init_containers.into_iter().flat_map(|containers| containers.0) {
            match container.name.as_str() {
                names::INTERCEPT | names::SIDECAR => ours.push(Container {
                    name: container.name,
                    restart_policy: container.restart_policy,
                    args: container.args.map(|arguments| arguments.0),
                    ..Container::default()
                }),
                // Other init containers have ended before clients connect.
                _ if container.restart_policy.is_some() => sidecars.push(container),
                _ => {}
            }
        }
        ours.extend(declaring(sidecars.into_iter(), &mut room));
        Self {
            containers: apps.into_iter().collect(),
            init_containers: Some(ours),
            host_network: spec.host_network,
            node_name: spec.node_name,
            service_account_name: spec.service_account_name.or(spec.service_account),
            ..Self::default()
        }
    }
}

/// One container that declares the ports of all of these, up to `room` ports; `None` without ports.
fn declaring(containers: impl Iterator<Item = LeanContainer>, room: &mut usize) -> Option<Container> {
    let ports = containers.flat_map(|container| container.ports.map(|ports| ports.0).unwrap_or_default());
    let ports = ports.take(*room).map(|LeanPort { name, container_port, protocol }| ContainerPort {
        name,
        container_port,
        protocol,
        ..ContainerPort::default()
    });
    let ports: Vec<_> = ports.collect();
    *room -= ports.len();
    (!ports.is_empty()).then(|| Container { ports: Some(ports), ..Container::default() })
}

impl From<LeanPodStatus> for PodStatus {
    fn from(status: LeanPodStatus) -> Self {
        let mut conditions = status.conditions.into_iter().flat_map(|conditions| conditions.0);
        let is_not_ready = conditions.any(|condition| condition.type_ == READY && condition.status != "True");
        Self {
            phase: status.phase.filter(|phase| phase != "Pending" && phase != "Running"),
            // A single address is in both fields.
            pod_ips: status.pod_ips.map(|ips| ips.0).filter(|ips| ips.len() > 1),
            pod_ip: status.pod_ip,
            conditions: is_not_ready.then(not_ready),
            ..Self::default()
        }
    }
}

/// The condition of a Pod that is not ready, which is the only one that is kept: most Pods have it for seconds.
fn not_ready() -> Vec<PodCondition> {
    vec![PodCondition { type_: READY.to_owned(), status: "False".to_owned(), ..PodCondition::default() }]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The peak of bytes allocated by `work`.
    fn held(work: impl FnOnce()) -> u64 {
        allocation_counter::measure(work).bytes_max
    }

    #[test]
    fn a_pod_takes_no_more_than_what_is_read_of_it_whatever_its_author_puts_in() {
        let volumes: Vec<Value> =
            (0..90_000).map(|i| json!({"name": format!("v{i}"), "emptyDir": {}})).collect();
        let containers: Vec<Value> = (0..5_000)
            .map(|i| json!({"name": format!("c{i}"), "args": vec![""; 20], "ports": [{"containerPort": i + 1}]}))
            .collect();
        let fields: Value = (0..20_000).map(|i| (format!("f:{i}"), json!({}))).collect();
        let text = json!({
            "metadata": {"name": "p", "namespace": "n", "managedFields": [{"fieldsV1": fields}]},
            "spec": {"volumes": volumes, "containers": containers},
        })
        .to_string();
        let bytes = held(|| drop(pod(&text, "tidegate-system").unwrap()));
        assert!(bytes < 3 << 19, "{bytes} bytes for {} of text", text.len());
    }

    #[test]
    fn the_first_ports_of_a_pod_are_kept_in_their_order_and_what_is_beyond_opens_nothing() {
        let containers: Vec<Value> = (0..2_000)
            .map(|i| json!({"name": format!("c{i}"), "ports": [{"name": format!("p{i}"), "containerPort": i + 1}]}))
            .collect();
        let text = json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": containers, "initContainers": [{"name": names::SIDECAR, "restartPolicy": "Always"}]},
        })
        .to_string();
        let pod = pod(&text, "tidegate-system").unwrap();
        let ports: Vec<u16> = crate::service::declared_ports(&pod).map(|(number, _)| number).collect();
        assert_eq!(ports, (1..=1024).collect::<Vec<u16>>());
    }

    #[test]
    fn a_selector_that_is_too_long_picks_nothing() {
        let selector = |terms: usize| {
            let terms: Value = (0..terms).map(|i| (format!("l{i}"), Value::from("x"))).collect();
            let text = json!({"metadata": {"name": "s"}, "spec": {"selector": terms}}).to_string();
            service(&text).unwrap().spec.unwrap().selector.map(|selector| selector.len())
        };
        assert_eq!((selector(256), selector(257)), (Some(256), None));
    }

    #[test]
    fn an_endpoint_slice_is_read_as_far_as_kubernetes_lets_it_go() {
        let endpoints: Vec<Value> =
            (0..1_500).map(|_| json!({"addresses": ["10.0.0.1"], "nodeName": "n"})).collect();
        let text =
            json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints}).to_string();
        assert_eq!(endpoint_slice(&text).unwrap().endpoints.unwrap().len(), 1_000);
    }
}
