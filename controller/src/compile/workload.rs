//! The policy of one workload.
//!
//! The steps: which ports there are and which Services are in front of each; the rule for mesh peers, the same on
//! every port; the rules that objects grant on each port, within the workload's bound; and last the objects that
//! cannot be read, as rules that deny. The policy is complete: a port that is not in it admits no client.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use tidegate_core::backend::Locality;
use tidegate_core::egress::policies::EgressRule;
use tidegate_core::identity::IdentityError;
use tidegate_core::policy::{
    InboundPolicy, IngressRule, MeshRule, PeerRule, PeerRuleState, PortPolicy, RateLimits, RuleState,
};
use tidegate_core::route::MAX_EXPRESSIONS;
use tidegate_core::telemetry::{TelemetrySettings, TracingSettings};
use tidegate_core::{EgressMode, Identity, ObjectRef, ServiceRetry, TrustDomain};

use super::egress::rules::{self as egress, egress_of};
use super::egress_proxy::NamespaceEgress;
use super::external_authorization::MeshExternalAuthorization;
use super::fronts::{Behind, Fronts};
use super::ingress_backend::TOO_LARGE;
use super::ingress_backend::rules;
use super::mesh_config::{egress_mode, tracing};
use super::peers::NamespacePeers;
use super::retry::NamespaceRetries;
use super::status::{self, PortRule};
use super::traffic_target::{self, rules as target_rules};
use super::upstream_traffic_setting::limits::{self, NamespaceLimits};
use crate::index::Index;
use crate::object::pod::{self, node_name, service_account};
use crate::object::unreadable::Unreadable;
use crate::object::{Kind, ObjectName};
use crate::service::declared_ports;

/// The most that the rules of one workload may take in the message to its sidecar, in bytes. A sidecar takes
/// messages of 4 MiB.
pub(crate) const MOST_RULE_BYTES: usize = 512 * 1024;
/// The most IngressBackends of a namespace that cannot be read and are shown in policies. They grant nothing anyway.
const MOST_UNREADABLE: usize = 16;

/// The policy of one workload.
///
/// Its ports are those of the Services in front of it, whether or not the Pod is ready (readiness says who is sent
/// traffic, not who may send it), and those that its containers declare. An error means that the Pod has no identity, and so no policy, and so no traffic.
pub(crate) fn workload(
    index: &Index,
    pod: &Pod,
    trust_domain: &TrustDomain,
) -> Result<InboundPolicy, IdentityError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    workload_by(&NamespaceRules::new(index, namespace, trust_domain), pod).map(|compiled| compiled.policy)
}

/// The policy of a workload, and what did not fit into it.
pub(crate) struct CompiledWorkload {
    pub(crate) policy: InboundPolicy,
    /// The objects whose rules would have made it larger than [`MOST_RULE_BYTES`].
    pub(crate) left_out: BTreeSet<ObjectRef>,
}

impl CompiledWorkload {
    /// Bytes that it takes of the memory beside what it shares with other workloads.
    pub(crate) fn size(&self) -> usize {
        let ports = self.policy.ports.values().map(|port| {
            let hosts = port.ingress.iter().map(|rule| size_of::<IngressRule>() + rules::own_bytes(rule));
            ENTRY
                + size_of::<PortPolicy>()
                + 2 * size_of::<Arc<str>>() * port.services.len()
                + 2 * size_of::<Arc<PeerRule>>() * (peer_rules(&port.mesh).len() + port.rate_limits.len())
                + hosts.sum::<usize>()
        });
        let peers: HashMap<_, _> = self
            .policy
            .ports
            .values()
            .flat_map(|port| peer_rules(&port.mesh))
            .map(|rule| (Arc::as_ptr(rule), rule))
            .collect();
        let peers = peers.into_values().map(|rule| target_rules::own_bytes(rule));
        let limits = self.policy.ports.values().flat_map(|port| &port.rate_limits);
        let limits: HashMap<_, _> = limits.map(|limits| (Arc::as_ptr(limits), limits)).collect();
        let limits = limits.into_values().map(|limits| limits::own_bytes(limits));
        WORKLOAD
            + ports.sum::<usize>()
            + peers.sum::<usize>()
            + limits.sum::<usize>()
            + size_of::<Arc<ServiceRetry>>() * self.policy.retries.len()
            + ENTRY * self.left_out.len()
    }
}

/// The rules of a port for mesh peers.
fn peer_rules(mesh: &MeshRule) -> &[Arc<PeerRule>] {
    match mesh {
        MeshRule::Rules(rules) | MeshRule::Audit(rules) => rules,
        MeshRule::Deny(_) | MeshRule::AnyPeer => &[],
    }
}

/// Bytes of a workload's names and of what is known about its sidecar.
const WORKLOAD: usize = 2048;
/// Bytes of an entry of a map beside its content.
const ENTRY: usize = 64;

/// What is the same for all workloads of a namespace, to be made once for all of them.
pub(crate) struct NamespaceRules<'i> {
    index: &'i Index,
    fronts: Fronts<'i>,
    /// By Service (`<namespace>/<name>`) and port. What a rule grants is shared by all policies that it is in.
    by_backend: HashMap<(Arc<str>, u16), Vec<NumberedRule>>,
    unreadable: Vec<Arc<Unreadable>>,
    peers: NamespacePeers,
    tracing: Option<TracingSettings>,
    limits: NamespaceLimits,
    retries: NamespaceRetries,
    external: MeshExternalAuthorization,
    trust_domain: TrustDomain,
    egress: EgressMode,
    egress_proxies: NamespaceEgress,
}

/// A rule and its place in the order of its namespace's objects.
struct NumberedRule {
    number: usize,
    rule: IngressRule,
}

impl<'i> NamespaceRules<'i> {
    /// Compiles the rules of all objects of a namespace once; each of its workloads then takes those of its ports.
    pub(crate) fn new(index: &'i Index, namespace: &str, trust_domain: &TrustDomain) -> Self {
        let mut by_backend: HashMap<(Arc<str>, u16), Vec<NumberedRule>> = HashMap::new();
        for (number, PortRule { port, rule }) in status::rules(index, namespace).into_iter().enumerate() {
            by_backend.entry((rule.backend.clone(), port)).or_default().push(NumberedRule { number, rule });
        }
        let unreadable = index.unreadable_in(Kind::IngressBackend, namespace);
        Self {
            index,
            fronts: Fronts::new(index, namespace),
            by_backend,
            unreadable: unreadable.take(MOST_UNREADABLE).cloned().collect(),
            peers: NamespacePeers::new(index, namespace, trust_domain),
            tracing: tracing(index),
            limits: NamespaceLimits::new(index, namespace),
            retries: NamespaceRetries::new(index, namespace),
            external: MeshExternalAuthorization::of(index),
            trust_domain: trust_domain.clone(),
            egress: egress_mode(index),
            egress_proxies: NamespaceEgress::new(index, namespace),
        }
    }

    /// The rules of a port, in the order of their objects.
    fn rules(&self, number: u16, port: &PortPolicy) -> Vec<&IngressRule> {
        let services: BTreeSet<&Arc<str>> = port.services.iter().collect();
        let of_port =
            services.into_iter().filter_map(|service| self.by_backend.get(&(service.clone(), number)));
        let mut rules: Vec<&NumberedRule> = of_port.flatten().collect();
        rules.sort_unstable_by_key(|rule| rule.number);
        rules.into_iter().map(|numbered| &numbered.rule).collect()
    }
}

/// [`workload`], by rules that are made already.
pub(crate) fn workload_by(rules: &NamespaceRules<'_>, pod: &Pod) -> Result<CompiledWorkload, IdentityError> {
    let (name, account) = (ObjectName::of(&pod.metadata), service_account(pod));
    let identity = Identity::new(rules.trust_domain.clone(), &name.namespace, account)?;
    let mut ports: BTreeMap<u16, PortPolicy> = BTreeMap::new();
    let open = |number, protocol| PortPolicy {
        protocol,
        services: Vec::new(),
        mesh: rules.peers.rule(account, number, protocol),
        ingress: Vec::new(),
        rate_limits: Vec::new(),
    };
    for Behind { service, ports: behind } in rules.fronts.of(pod) {
        for (number, protocol) in behind {
            let port = ports.entry(number).or_insert_with(|| open(number, protocol));
            port.services.push(service.clone());
            port.rate_limits.extend(rules.limits.of(&service).cloned());
        }
    }
    for (number, protocol) in declared_ports(pod) {
        ports.entry(number).or_insert_with(|| open(number, protocol));
    }
    let mut room = RuleBudget::new();
    for (number, port) in &mut ports {
        let granted = rules.rules(*number, port);
        port.ingress.extend(granted.into_iter().filter_map(|rule| room.take(rule)));
    }
    for port in ports.values_mut() {
        room.take_peers(&mut port.mesh);
    }
    for port in ports.values_mut() {
        port.rate_limits.retain(|limits| room.take_limits(limits));
    }
    deny_unreadable(rules, &mut ports, &mut room);
    let (workload, locality) = (name.to_shared(), Some(locality(rules.index, pod)));
    let telemetry =
        TelemetrySettings { workload: Some(pod::workload(pod).into()), tracing: rules.tracing.clone() };
    let services = ports.values().flat_map(|port| &port.services);
    let external_authorization = rules.external.for_workload(&name, services);
    let of_account = ObjectName::new(name.namespace, account);
    let egress = egress_of(rules.index, &rules.egress, &of_account, |rule| room.take_egress(rule));
    let mut left_out = room.left_out;
    let retries = rules.retries.of(account, &mut left_out);
    let egress_proxies = rules.egress_proxies.of(pod);
    let policy = InboundPolicy {
        workload,
        identity,
        locality,
        telemetry,
        egress,
        retries,
        egress_proxies,
        ports,
        external_authorization,
    };
    Ok(CompiledWorkload { policy, left_out })
}

/// Adds a rule that denies for each object that cannot be read and may be about a port.
fn deny_unreadable(rules: &NamespaceRules<'_>, ports: &mut BTreeMap<u16, PortPolicy>, room: &mut RuleBudget) {
    for object in &rules.unreadable {
        let (origin, state) = (object.name().to_ref(object.kind), RuleState::Invalid(object.reason().into()));
        for (number, port) in &mut *ports {
            for service in port.services.iter().filter(|service| object.may_open(service, *number)) {
                let (origin, backend) = (origin.clone(), service.clone());
                port.ingress.extend(room.take(&IngressRule { origin, backend, state: state.clone() }));
            }
        }
    }
}

/// Where a Pod runs.
fn locality(index: &Index, pod: &Pod) -> Locality {
    let node = node_name(pod);
    Locality { node: node.map(Into::into), zone: node.and_then(|node| index.zone(node)).cloned() }
}

/// What is left of [`MOST_RULE_BYTES`] for one workload.
struct RuleBudget {
    bytes: usize,
    expressions: usize,
    left_out: BTreeSet<ObjectRef>,
    /// Rules for mesh peers that have been taken, each with what stands in the policy for it. Ports share them.
    peers: HashMap<*const PeerRule, Option<Arc<PeerRule>>>,
    /// Limits that have been taken, or left out. Ports share them.
    limits: HashMap<*const RateLimits, bool>,
}

impl RuleBudget {
    fn new() -> Self {
        Self {
            bytes: MOST_RULE_BYTES,
            expressions: MAX_EXPRESSIONS,
            left_out: BTreeSet::new(),
            peers: HashMap::new(),
            limits: HashMap::new(),
        }
    }

    /// Whether there is room for limits at one more port. Those without room are not enforced, as their status says.
    fn take_limits(&mut self, limits: &Arc<RateLimits>) -> bool {
        let Some(rest) = self.bytes.checked_sub(4) else {
            self.left_out.insert(limits.origin.clone());
            return false;
        };
        self.bytes = rest;
        if let Some(is_taken) = self.limits.get(&Arc::as_ptr(limits)) {
            return *is_taken;
        }
        let rest = self.bytes.checked_sub(limits::wire_bytes(limits));
        let expressions = self.expressions.checked_sub(limits::expressions(limits));
        let is_taken = if let (Some(rest), Some(expressions)) = (rest, expressions) {
            (self.bytes, self.expressions) = (rest, expressions);
            true
        } else {
            self.left_out.insert(limits.origin.clone());
            false
        };
        self.limits.insert(Arc::as_ptr(limits), is_taken);
        is_taken
    }

    /// Whether there is room for a rule about what leaves the mesh. One without room allows nothing, as its status says.
    fn take_egress(&mut self, rule: &EgressRule) -> bool {
        let rest = self.bytes.checked_sub(egress::wire_bytes(rule));
        let expressions = self.expressions.checked_sub(egress::expressions(rule));
        let (Some(rest), Some(expressions)) = (rest, expressions) else {
            self.left_out.insert(rule.origin.clone());
            return false;
        };
        (self.bytes, self.expressions) = (rest, expressions);
        true
    }

    /// Like [`RuleBudget::take`], for the rules of a port for mesh peers.
    fn take_peers(&mut self, mesh: &mut MeshRule) {
        if let MeshRule::Rules(rules) | MeshRule::Audit(rules) = mesh {
            *rules = std::mem::take(rules).iter().filter_map(|rule| self.take_peer(rule)).collect();
        }
    }

    /// A rule for peers, if there is room for it.
    fn take_peer(&mut self, rule: &Arc<PeerRule>) -> Option<Arc<PeerRule>> {
        // Of one more port that refers to it.
        self.bytes = self.bytes.checked_sub(4)?;
        if let Some(taken) = self.peers.get(&Arc::as_ptr(rule)) {
            return taken.clone();
        }
        let rest = self.bytes.checked_sub(target_rules::wire_bytes(rule));
        let expressions = self.expressions.checked_sub(target_rules::expressions(rule));
        let taken = if let (Some(rest), Some(expressions)) = (rest, expressions) {
            (self.bytes, self.expressions) = (rest, expressions);
            Some(rule.clone())
        } else {
            self.left_out.insert(rule.origin.clone());
            let state = PeerRuleState::Invalid(traffic_target::TOO_LARGE.into());
            let short = PeerRule { origin: rule.origin.clone(), state };
            let rest = self.bytes.checked_sub(target_rules::wire_bytes(&short));
            rest.map(|rest| {
                self.bytes = rest;
                Arc::new(short)
            })
        };
        self.peers.insert(Arc::as_ptr(rule), taken.clone());
        taken
    }

    /// A rule that goes into the policy: in its place one that grants nothing and says why, if it is too large, and
    /// none at all where not even that fits.
    fn take(&mut self, rule: &IngressRule) -> Option<IngressRule> {
        if let Some(rest) = self.bytes.checked_sub(rules::wire_bytes(rule)) {
            self.bytes = rest;
            return Some(rule.clone());
        }
        self.left_out.insert(rule.origin.clone());
        let short = IngressRule { state: RuleState::Invalid(TOO_LARGE.into()), ..rule.clone() };
        self.bytes = self.bytes.checked_sub(rules::wire_bytes(&short))?;
        Some(short)
    }
}

/// A Pod such as a Service would select, for asking what would hold for one.
pub(crate) fn imagined_pod(name: &ObjectName, service: &Service) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.name.to_string());
    pod.metadata.namespace = Some(name.namespace.to_string());
    pod.metadata.labels = service.spec.as_ref().and_then(|spec| spec.selector.clone());
    pod
}
