//! TrafficTargets as rules for mesh peers: what each grants at ports of HTTP, and at ports of other bytes.
//!
//! Within a target, TCPRoutes limit the ports and HTTPRouteGroups the requests, so that a request must meet both (the
//! example of the specification). Several targets are a union.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_core::policy::{ActivePeerRule, AppProtocol, PeerRule, PeerRuleState, PeerTraffic};
use tidegate_core::route::RouteMatch;
use tidegate_core::route::matching::{PathMatch, RpcMatch, ValueMatch};
use tidegate_core::{Identity, ObjectRef, TrustDomain};
use tidegate_crds::TrafficTarget;
use tidegate_crds::traffic_target::{Subject, TargetRule};
use tidegate_crds::validate::{self, Finding};

use crate::compile::audit::is_audit;
use crate::compile::fault::ObjectFault;
use crate::index::{CompiledMatch, Index, NamedMatches};
use crate::object::{Kind, ObjectName, OfKind};

/// The most TrafficTargets of one service account. Those beyond, which are the newest, grant nothing.
const MOST_TARGETS: usize = 1024;
/// The most TrafficTargets of a namespace that cannot be read and are shown in policies. They grant nothing anyway.
const MOST_UNREADABLE: usize = 16;

/// The TrafficTargets of a namespace, the oldest first.
pub(crate) struct NamespaceTargets {
    by_account: HashMap<Arc<str>, Vec<Arc<CompiledTarget>>>,
    /// Those that cannot be read, and may be about any account.
    about_any: Vec<Arc<CompiledTarget>>,
}

/// What one TrafficTarget grants.
pub(crate) struct CompiledTarget {
    /// Whether it is in audit mode.
    pub(crate) is_audit: bool,
    ports: Ports,
    http: Arc<PeerRule>,
    /// At ports whose bytes are not parsed; `None` if it says nothing about these.
    opaque: Option<Arc<PeerRule>>,
}

/// Ports of Pods.
enum Ports {
    All,
    These(BTreeSet<u16>),
}

/// What a TrafficTarget refers to.
#[derive(Default)]
struct Traffic {
    /// `None` without a TCPRoute.
    ports: Option<BTreeSet<u16>>,
    /// Whether a TCPRoute names no port, which means all.
    has_all_ports: bool,
    /// `None` without an HTTPRouteGroup.
    requests: Option<Vec<Arc<RouteMatch>>>,
}

impl NamespaceTargets {
    pub(crate) fn new(index: &Index, namespace: &str, trust_domain: &TrustDomain) -> Self {
        let mut targets = Self { by_account: HashMap::new(), about_any: Vec::new() };
        for (name, object) in by_age(index, namespace) {
            let of_account = targets.by_account.entry(account(object).into()).or_default();
            if of_account.len() < MOST_TARGETS {
                of_account.push(CompiledTarget::new(index, trust_domain, name, object).into());
            }
        }
        for object in index.unreadable_in(Kind::TrafficTarget, namespace).take(MOST_UNREADABLE) {
            let origin = object.name().to_ref(Kind::TrafficTarget);
            let compiled = Arc::new(CompiledTarget::invalid(origin, &object.reason()));
            match object.account() {
                Some(account) => targets.by_account.entry(account.into()).or_default().push(compiled),
                None => targets.about_any.push(compiled),
            }
        }
        targets
    }

    /// Those whose destination is this service account.
    pub(crate) fn of(&self, account: &str) -> impl Iterator<Item = &Arc<CompiledTarget>> {
        self.by_account.get(account).into_iter().flatten().chain(&self.about_any)
    }
}

impl CompiledTarget {
    fn new(index: &Index, trust_domain: &TrustDomain, name: &ObjectName, object: &TrafficTarget) -> Self {
        let origin = name.to_ref(TrafficTarget::KIND);
        let (traffic, sources) = match (fault(index, name, object), sources(trust_domain, name, object)) {
            (Some(fault), _) => {
                return Self { is_audit: is_audit(&object.metadata), ..Self::invalid(origin, &fault.reason) };
            }
            (None, Err(reason)) => {
                return Self { is_audit: is_audit(&object.metadata), ..Self::invalid(origin, &reason) };
            }
            (None, Ok(sources)) => (traffic(index, name, object).unwrap_or_default(), sources),
        };
        let rule = |traffic| {
            let state = PeerRuleState::Active(ActivePeerRule { sources: sources.clone(), traffic });
            Arc::new(PeerRule { origin: origin.clone(), state })
        };
        let grants_any =
            traffic.requests.as_ref().is_none_or(|requests| requests.iter().any(|one| one.is_any()));
        let any = rule(PeerTraffic::Any);
        let opaque = (grants_any || traffic.ports.is_some()).then(|| any.clone());
        let http =
            if grants_any { any } else { rule(PeerTraffic::Requests(traffic.requests.unwrap_or_default())) };
        let ports = match traffic.ports {
            Some(ports) if !traffic.has_all_ports => Ports::These(ports),
            _ => Ports::All,
        };
        Self { is_audit: is_audit(&object.metadata), ports, http, opaque }
    }

    /// One that grants nothing, for this reason.
    fn invalid(origin: ObjectRef, reason: &str) -> Self {
        let rule = Arc::new(PeerRule { origin, state: PeerRuleState::Invalid(reason.into()) });
        Self { is_audit: false, ports: Ports::All, http: rule.clone(), opaque: Some(rule) }
    }

    /// What it grants at a port, if it is about it.
    pub(crate) fn rule(&self, port: u16, protocol: AppProtocol) -> Option<&Arc<PeerRule>> {
        let is_about_it = match &self.ports {
            Ports::All => true,
            Ports::These(ports) => ports.contains(&port),
        };
        let rule = if protocol.is_opaque() { self.opaque.as_ref() } else { Some(&self.http) };
        rule.filter(|_| is_about_it)
    }
}

/// The TrafficTargets of a namespace that are beyond [`MOST_TARGETS`].
pub(crate) fn beyond_bound<'i>(index: &'i Index, namespace: &str) -> BTreeSet<&'i ObjectName> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut beyond = BTreeSet::new();
    for (name, object) in by_age(index, namespace) {
        let count = counts.entry(account(object)).or_default();
        *count += 1;
        if *count > MOST_TARGETS {
            beyond.insert(name);
        }
    }
    beyond
}

/// The TrafficTargets of a namespace, the oldest first.
fn by_age<'i>(index: &'i Index, namespace: &str) -> Vec<(&'i ObjectName, &'i Arc<TrafficTarget>)> {
    let mut objects: Vec<_> = index.traffic_targets_in(namespace).collect();
    objects.sort_by(|(_, a), (_, b)| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
    objects
}

/// The service account of a target's destination.
fn account(object: &TrafficTarget) -> &str {
    &object.spec.destination.name
}

/// What keeps a target from granting anything to any peer.
pub(crate) fn fault(index: &Index, name: &ObjectName, object: &TrafficTarget) -> Option<ObjectFault> {
    if let Some(reason) = index.outside_mesh(&name.namespace) {
        return Some(ObjectFault::invalid(reason));
    }
    let spec = &object.spec;
    let findings = validate::traffic_target(&name.namespace, spec);
    if let Some(error) = findings.iter().find(|finding| finding.is_error()) {
        return Some(ObjectFault::invalid(error.to_string()));
    }
    // What OSM accepted and took no notice of, or what it would have to guess at.
    let is_supported = |rule: &TargetRule| matches!(rule.kind.as_str(), "HTTPRouteGroup" | "TCPRoute");
    let is_account = |subject: &Subject| subject.kind == "ServiceAccount";
    let is_whole = !spec.rules.is_empty()
        && spec.rules.iter().all(is_supported)
        && spec.sources.iter().chain([&spec.destination]).all(is_account);
    if !is_whole {
        let first = findings.iter().find(|finding| !finding.path.ends_with(".matches"));
        return Some(ObjectFault::invalid(first.map(Finding::to_string).unwrap_or_default()));
    }
    // Names are valid in every trust domain or in none.
    if let Err(reason) = sources(&TrustDomain::default(), name, object) {
        return Some(ObjectFault::invalid(reason));
    }
    traffic(index, name, object).err()
}

/// The identities of its sources, without those that no certificate can have.
fn sources(
    trust_domain: &TrustDomain,
    name: &ObjectName,
    object: &TrafficTarget,
) -> Result<Arc<[Identity]>, String> {
    let source = |(i, source): (usize, &Subject)| {
        let namespace = source.namespace_or(&name.namespace);
        Identity::new(trust_domain.clone(), namespace, &source.name)
            .map_err(|error| format!("spec.sources[{i}]: {error}"))
    };
    object.spec.sources.iter().enumerate().map(source).collect()
}

/// What the objects of a target's rules say. One that is missing or wrong invalidates the whole target: without it, the
/// target would grant more or less than its author knows.
fn traffic(index: &Index, name: &ObjectName, object: &TrafficTarget) -> Result<Traffic, ObjectFault> {
    let mut traffic = Traffic::default();
    for rule in &object.spec.rules {
        let route = ObjectName::new(name.namespace.clone(), rule.name.as_str());
        match rule.kind.as_str() {
            "TCPRoute" => {
                let found = index
                    .tcp_route(&route)
                    .ok_or_else(|| ObjectFault::missing(index, Kind::TCPRoute, &route))?;
                let ports = &found.spec.matches.ports;
                traffic.has_all_ports |= ports.is_empty();
                traffic.ports.get_or_insert_default().extend(ports);
            }
            _ => {
                let group = index
                    .route_group(&route)
                    .ok_or_else(|| ObjectFault::missing(index, Kind::HTTPRouteGroup, &route))?;
                let invalid =
                    |why: &str| ObjectFault::invalid_reference(format!("HTTPRouteGroup {route}: {why}"));
                let matches = group.matches.as_ref().map_err(|why| invalid(why))?;
                let requests = traffic.requests.get_or_insert_default();
                for one in named(matches, rule, &route)? {
                    requests.push(one.as_ref().map_err(|why| invalid(why))?.clone());
                }
            }
        }
    }
    Ok(traffic)
}

/// The matches that a rule names; without names, all of its group.
fn named<'m>(
    matches: &'m NamedMatches,
    rule: &TargetRule,
    group: &ObjectName,
) -> Result<Vec<&'m CompiledMatch>, ObjectFault> {
    let names = rule.matches.as_deref().unwrap_or_default();
    if names.is_empty() {
        return Ok(matches.all().collect());
    }
    let mut all = Vec::new();
    for name in names {
        let found = matches.named(name).ok_or_else(|| {
            let known = validate::listed(matches.names().map(|name| format!("'{name}'")));
            let known = if known.is_empty() { "none".to_owned() } else { known };
            let reason = format!("HTTPRouteGroup {group} has no match '{name}'; it has {known}");
            ObjectFault::reference_not_found(reason)
        })?;
        all.extend(found);
    }
    Ok(all)
}

/// Bytes of a rule on the wire, about.
pub(crate) fn wire_bytes(rule: &PeerRule) -> usize {
    let ObjectRef { kind, namespace, name } = &rule.origin;
    let state = match &rule.state {
        PeerRuleState::Invalid(reason) => reason.len(),
        PeerRuleState::Active(ActivePeerRule { sources, traffic }) => {
            let matches = match traffic {
                PeerTraffic::Any => 0,
                PeerTraffic::Requests(matches) => matches.iter().map(|one| match_bytes(one)).sum(),
            };
            sources.iter().map(identity_bytes).sum::<usize>() + matches
        }
    };
    kind.len() + namespace.len() + name.len() + state + 24
}

/// Bytes of memory of a rule that are not shared with the objects: its sources, and its references to matches.
pub(crate) fn own_bytes(rule: &PeerRule) -> usize {
    let state = match &rule.state {
        PeerRuleState::Invalid(reason) => reason.len(),
        PeerRuleState::Active(ActivePeerRule { sources, traffic }) => {
            let matches = match traffic {
                PeerTraffic::Any => 0,
                PeerTraffic::Requests(matches) => matches.len() * 2 * size_of::<Arc<RouteMatch>>(),
            };
            let sources = sources.iter().map(|source| size_of::<Identity>() + 96 + identity_bytes(source));
            sources.sum::<usize>() + matches
        }
    };
    size_of::<PeerRule>() + 64 + state
}

/// Number of regular expressions of a rule.
pub(crate) fn expressions(rule: &PeerRule) -> usize {
    match &rule.state {
        PeerRuleState::Active(ActivePeerRule { traffic: PeerTraffic::Requests(matches), .. }) => {
            matches.iter().map(|one| one.expressions()).sum()
        }
        _ => 0,
    }
}

/// What an identity takes on the wire.
fn identity_bytes(identity: &Identity) -> usize {
    identity.trust_domain().as_str().len()
        + identity.namespace().len()
        + identity.service_account().len()
        + 12
}

/// Bytes of a match on the wire, about.
pub(crate) fn match_bytes(one: &RouteMatch) -> usize {
    let value = |value: &ValueMatch| match value {
        ValueMatch::Exact(text) => text.len(),
        ValueMatch::Regex(pattern) => pattern.as_str().len(),
    };
    let of_rpc =
        |rpc: &RpcMatch| [rpc.service(), rpc.method()].into_iter().flatten().map(value).sum::<usize>();
    let path = one.path().map_or(0, |path| match path {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path.as_str().len(),
        PathMatch::Regex(pattern) => pattern.as_str().len(),
        PathMatch::Rpc(rpc) => of_rpc(rpc),
    });
    let methods: usize = one.methods().iter().map(|method| 4 + method.as_str().len()).sum();
    let headers: usize =
        one.headers().iter().map(|header| 12 + header.name().as_str().len() + value(header.value())).sum();
    12 + path + methods + headers
}
