//! The policy of one workload.
//!
//! The steps: which ports there are and which Services are in front of each; the rule for mesh peers, the same on
//! every port; the rules that objects grant on each port, within the workload's bound; and last the objects that
//! cannot be read, as rules that deny. The policy is complete: a port that is not in it admits no client.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use tidegate_core::identity::IdentityError;
use tidegate_core::policy::{InboundPolicy, IngressRule, MeshRule, PortPolicy, RuleState};
use tidegate_core::{Identity, ObjectRef, TrustDomain};

use super::fronts::{Behind, Fronts};
use super::ingress_backend::TOO_LARGE;
use super::ingress_backend::rules;
use super::mesh_config::mesh_rule;
use super::status::{self, PortRule};
use crate::index::Index;
use crate::object::ObjectName;
use crate::object::pod::service_account;
use crate::object::unreadable::Unreadable;
use crate::service::declared_ports;

/// The most that the ingress rules of one workload may take in the message to its sidecar, in bytes. A sidecar takes
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
    workload_by(&NamespaceRules::new(index, namespace), pod, trust_domain).map(|compiled| compiled.policy)
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
                + hosts.sum::<usize>()
        });
        WORKLOAD + ports.sum::<usize>() + ENTRY * self.left_out.len()
    }
}

/// Bytes of a workload's names and of what is known about its sidecar.
const WORKLOAD: usize = 2048;
/// Bytes of an entry of a map beside its content.
const ENTRY: usize = 64;

/// What is the same for all workloads of a namespace, to be made once for all of them.
pub(crate) struct NamespaceRules<'i> {
    fronts: Fronts<'i>,
    /// By Service (`<namespace>/<name>`) and port. What a rule grants is shared by all policies that it is in.
    by_backend: HashMap<(Arc<str>, u16), Vec<NumberedRule>>,
    unreadable: Vec<Arc<Unreadable>>,
    mesh: MeshRule,
}

/// A rule and its place in the order of its namespace's objects.
struct NumberedRule {
    number: usize,
    rule: IngressRule,
}

impl<'i> NamespaceRules<'i> {
    /// Compiles the rules of all objects of a namespace once; each of its workloads then takes those of its ports.
    pub(crate) fn new(index: &'i Index, namespace: &str) -> Self {
        let mut by_backend: HashMap<(Arc<str>, u16), Vec<NumberedRule>> = HashMap::new();
        for (number, PortRule { port, rule }) in status::rules(index, namespace).into_iter().enumerate() {
            by_backend.entry((rule.backend.clone(), port)).or_default().push(NumberedRule { number, rule });
        }
        let unreadable = index.unreadable_backends_in(namespace).take(MOST_UNREADABLE).cloned().collect();
        Self { fronts: Fronts::new(index, namespace), by_backend, unreadable, mesh: mesh_rule(index) }
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
pub(crate) fn workload_by(
    rules: &NamespaceRules<'_>,
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
    for Behind { service, ports: behind } in rules.fronts.of(pod) {
        for (number, protocol) in behind {
            let port = ports.entry(number).or_insert_with(|| open(protocol));
            port.services.push(service.clone());
        }
    }
    for (number, protocol) in declared_ports(pod) {
        ports.entry(number).or_insert_with(|| open(protocol));
    }
    let mut room = RuleBudget::new();
    for (number, port) in &mut ports {
        let granted = rules.rules(*number, port);
        port.ingress.extend(granted.into_iter().filter_map(|rule| room.take(rule)));
    }
    for object in &rules.unreadable {
        let (origin, state) = (object.name().to_ref(object.kind), RuleState::Invalid(object.reason().into()));
        for (number, port) in &mut ports {
            for service in port.services.iter().filter(|service| object.may_open(service, *number)) {
                let (origin, backend) = (origin.clone(), service.clone());
                port.ingress.extend(room.take(&IngressRule { origin, backend, state: state.clone() }));
            }
        }
    }
    let policy = InboundPolicy { workload: name.to_shared(), identity, ports };
    Ok(CompiledWorkload { policy, left_out: room.left_out })
}

/// What is left of [`MOST_RULE_BYTES`] for one workload.
struct RuleBudget {
    bytes: usize,
    left_out: BTreeSet<ObjectRef>,
}

impl RuleBudget {
    fn new() -> Self {
        Self { bytes: MOST_RULE_BYTES, left_out: BTreeSet::new() }
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
