//! From objects to policy: pure functions of an [`Index`].
//!
//! [`workload`] joins everything that decides about one Pod into one [`InboundPolicy`]; [`status`](mod@status) says
//! of each IngressBackend whether it is in force. Both read a rule through `ingress`, so that what a status says is
//! what sidecars do.

pub(crate) mod destination;
mod ingress;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use tidegate_core::identity::IdentityError;
use tidegate_core::policy::{AppProtocol, InboundPolicy, IngressRule, MeshRule, PortPolicy, RuleState};
use tidegate_core::{Identity, TrustDomain};

use self::ingress::BackendRule;
use crate::index::Index;
use crate::object::ObjectName;
use crate::service::{Selected, app_protocol, declared_ports, selects, tcp_ports};
use crate::unreadable::Unreadable;

/// Why a rule grants nothing at a workload that has no room for it.
pub(crate) const TOO_LARGE: &str = "all rules of one workload may take 512 KiB, and this one is beyond that: list fewer \
                                    backends or sources";
/// Why mesh peers are kept out where no policy lets them in.
const NOT_PERMISSIVE: &str = "permissive mode is off and no policy lets mesh peers in";
/// The same, where nobody has said what holds.
pub(crate) const NO_MESH_CONFIG: &str = "there is no MeshConfig osm-mesh-config, so permissive mode is off; make it with \
                              spec.traffic.enablePermissiveTrafficPolicyMode: true to let mesh peers in";

/// The most that the ingress rules of one workload may take in the message to its sidecar, in bytes. A sidecar takes
/// messages of 4 MiB.
pub(crate) const MOST_RULE_BYTES: usize = 512 * 1024;
/// The most Services' ports in front of one workload, counted for each Service. Those beyond are refused.
const MOST_SERVICE_PORTS: usize = 4096;

/// The policy of one workload.
///
/// Its ports are those of the Services in front of it, whether or not the Pod is ready (readiness says who is sent
/// traffic, not who may send it), and those that its containers declare. An error means that the Pod has no identity, and so no policy, and so no traffic.
pub fn workload(
    index: &Index,
    pod: &Pod,
    trust_domain: &TrustDomain,
) -> Result<InboundPolicy, IdentityError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    workload_by(&NamespaceRules::new(index, namespace), index, pod, trust_domain)
        .map(|compiled| compiled.policy)
}

/// The policy of a workload, and what did not fit into it.
pub(crate) struct CompiledWorkload {
    pub(crate) policy: InboundPolicy,
    /// The IngressBackends (`<namespace>/<name>`) whose rules would have made it larger than [`MOST_RULE_BYTES`].
    pub(crate) left_out: BTreeSet<Arc<str>>,
}

/// The rules of a namespace's IngressBackends, to be made once for all of its workloads.
pub(crate) struct NamespaceRules {
    /// In the order of their IngressBackends. What a rule grants is shared by all policies that it is in.
    by_port: BTreeMap<u16, Vec<IngressRule>>,
    unreadable: Vec<Arc<Unreadable>>,
    mesh: MeshRule,
}

impl NamespaceRules {
    pub(crate) fn new(index: &Index, namespace: &str) -> Self {
        let mut by_port: BTreeMap<u16, Vec<IngressRule>> = BTreeMap::new();
        for (name, backend) in index.ingress_backends_in(namespace) {
            let policy = name.to_shared();
            for BackendRule { backend, port, state } in ingress::rules(index, name, &backend.spec) {
                let rule = IngressRule { policy: policy.clone(), backend: backend.to_shared(), state };
                by_port.entry(port).or_default().push(rule);
            }
        }
        let unreadable = index.unreadable_backends_in(namespace).cloned().collect();
        Self { by_port, unreadable, mesh: mesh_rule(index) }
    }
}

/// [`workload`], by rules that are made already.
pub(crate) fn workload_by(
    rules: &NamespaceRules,
    index: &Index,
    pod: &Pod,
    trust_domain: &TrustDomain,
) -> Result<CompiledWorkload, IdentityError> {
    let name = ObjectName::of(&pod.metadata);
    let identity = Identity::new(trust_domain.clone(), &name.namespace, service_account(pod))?;
    let mut ports: BTreeMap<u16, PortPolicy> = BTreeMap::new();
    let open = |protocol| PortPolicy {
        protocol,
        services: Vec::new(),
        mesh: rules.mesh.clone(),
        ingress: Vec::new(),
    };
    let mut service_ports = 0;
    for (service_name, service) in index.services_in(&name.namespace) {
        let behind = ports_behind(index, service_name, service, pod);
        if behind.is_empty() {
            continue;
        }
        let service_name = service_name.to_shared();
        for (number, protocol) in behind.into_iter().take(MOST_SERVICE_PORTS - service_ports) {
            service_ports += 1;
            let port = ports.entry(number).or_insert_with(|| open(protocol));
            port.services.push(service_name.clone());
        }
    }
    for (number, protocol) in declared_ports(pod) {
        ports.entry(number).or_insert_with(|| open(protocol));
    }
    let mut room = Room::new();
    for (number, port) in &mut ports {
        let Some(of_port) = rules.by_port.get(number) else { continue };
        let services: BTreeSet<&str> = port.services.iter().map(|service| &**service).collect();
        let granted = of_port.iter().filter(|rule| services.contains(&*rule.backend));
        port.ingress.extend(granted.filter_map(|rule| room.take(rule)));
    }
    for object in &rules.unreadable {
        let (policy, state) = (object.name().to_shared(), RuleState::Invalid(object.reason().into()));
        for (number, port) in &mut ports {
            for service in port.services.iter().filter(|service| object.may_open(service, *number)) {
                let (policy, backend) = (policy.clone(), service.clone());
                port.ingress.extend(room.take(&IngressRule { policy, backend, state: state.clone() }));
            }
        }
    }
    let policy = InboundPolicy { workload: name.to_shared(), identity, ports };
    Ok(CompiledWorkload { policy, left_out: room.left_out })
}

/// What is left of [`MOST_RULE_BYTES`] for one workload.
struct Room {
    bytes: usize,
    left_out: BTreeSet<Arc<str>>,
}

impl Room {
    fn new() -> Self {
        Self { bytes: MOST_RULE_BYTES, left_out: BTreeSet::new() }
    }

    /// A rule that goes into the policy: in its place one that grants nothing and says why, if it is too large, and
    /// none at all where not even that fits.
    fn take(&mut self, rule: &IngressRule) -> Option<IngressRule> {
        if let Some(rest) = self.bytes.checked_sub(ingress::wire_bytes(rule)) {
            self.bytes = rest;
            return Some(rule.clone());
        }
        self.left_out.insert(rule.policy.clone());
        let short = IngressRule { state: RuleState::Invalid(TOO_LARGE.into()), ..rule.clone() };
        self.bytes = self.bytes.checked_sub(ingress::wire_bytes(&short))?;
        Some(short)
    }
}

/// What a Pod runs as.
pub fn service_account(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    let account =
        spec.and_then(|spec| spec.service_account_name.as_deref().or(spec.service_account.as_deref()));
    account.filter(|account| !account.is_empty()).unwrap_or("default")
}

fn mesh_rule(index: &Index) -> MeshRule {
    if let Some(config) = index.unreadable_mesh_config() {
        return MeshRule::Deny(format!("MeshConfig {}: {}", config.name(), config.reason()).into());
    }
    match index.mesh_config_spec() {
        Some(config) if config.is_permissive() => MeshRule::AnyPeer,
        Some(_) => MeshRule::Deny(NOT_PERMISSIVE.into()),
        None => MeshRule::Deny(NO_MESH_CONFIG.into()),
    }
}

/// The Pod's ports behind a Service: by the Service's selector, or by EndpointSlices that list the Pod.
fn ports_behind(
    index: &Index,
    service_name: &ObjectName,
    service: &Service,
    pod: &Pod,
) -> BTreeMap<u16, AppProtocol> {
    let mut ports = BTreeMap::new();
    if selects(service, pod) {
        for port in (Selected { service, pod }).ports() {
            ports.entry(port.number).or_insert(port.protocol());
        }
    }
    for (number, protocol) in listed_ports(index, service_name, service, Some(pod)) {
        ports.entry(number).or_insert(protocol);
    }
    ports
}

/// The ports of a Service's EndpointSlices; of those only that list the Pod, if one is given.
fn listed_ports(
    index: &Index,
    service_name: &ObjectName,
    service: &Service,
    pod: Option<&Pod>,
) -> BTreeMap<u16, AppProtocol> {
    let mut ports = BTreeMap::new();
    let lists = |endpoint| pod.is_none_or(|pod| is_endpoint(pod, endpoint));
    for slice in index.slices_of(service_name).filter(|slice| slice.endpoints.iter().flatten().any(lists)) {
        for port in slice.ports.iter().flatten() {
            let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else { continue };
            if number == 0 || port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
                continue;
            }
            let name = port.name.as_deref().filter(|name| !name.is_empty());
            let declared = tcp_ports(service).find(|declared| declared.name.as_deref() == name);
            let declared = declared.and_then(|declared| declared.app_protocol.as_deref());
            ports.entry(number).or_insert(app_protocol(port.app_protocol.as_deref().or(declared), name));
        }
    }
    ports
}

/// Whether an endpoint is this Pod. Its reference decides; an address only where there is none, for addresses are
/// given to the next Pod.
fn is_endpoint(pod: &Pod, endpoint: &k8s_openapi::api::discovery::v1::Endpoint) -> bool {
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

/// A Pod such as a Service would select, for asking what would hold for one.
pub(crate) fn imagined_pod(name: &ObjectName, service: &Service) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.name.to_string());
    pod.metadata.namespace = Some(name.namespace.to_string());
    pod.metadata.labels = service.spec.as_ref().and_then(|spec| spec.selector.clone());
    pod
}

/// The numbers that an IngressBackend may name for a Service, sorted.
pub(crate) fn target_ports(index: &Index, name: &ObjectName, service: &Arc<Service>) -> Vec<u16> {
    let numbered = tcp_ports(service).filter_map(crate::service::numbered_target);
    let mut ports: Vec<u16> = numbered.collect();
    for (_, pod) in index.pods_in(&name.namespace).filter(|(_, pod)| selects(service, pod)) {
        ports.extend((Selected { service, pod }).ports().iter().map(|port| port.number));
    }
    ports.extend(listed_ports(index, name, service, None).into_keys());
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests;
