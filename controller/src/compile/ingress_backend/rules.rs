//! One IngressBackend as rules: a rule for each of its backends, in force or not.
//!
//! Sources are resolved first, because they are the same for all backends of the object: a Service becomes the
//! addresses of its ready endpoints at this moment, an IP range itself, a principal a name to require. Ranges and
//! Services restrict addresses, principals restrict certificates; a client needs one of each kind that is listed. An
//! object with an error in any source admits no client at any of its backends.
//!
//! Sizes are bounded three times: an object's rules together, the sources of a namespace's objects together, and the
//! rules of one workload ([`wire_bytes`], counted by `workload.rs`).

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use ipnet::IpNet;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::policy::{
    ActiveIngressRule, ClientCheck, IngressRule, IngressTransport, RuleState, Sources,
};
use tidegate_core::{CidrSet, ObjectRef, Principal};
use tidegate_crds::IngressBackendSpec;
use tidegate_crds::ingress_backend::{BackendSpec, IngressSourceSpec};
use tidegate_crds::validate::{self, Finding, IngressProtocol};

use crate::index::Index;
use crate::object::ObjectName;

/// What one backend of an IngressBackend grants, at whichever workloads stand behind it.
#[derive(Clone, Debug)]
pub(crate) struct BackendRule {
    pub(crate) backend: ObjectName,
    pub(crate) port: u16,
    pub(crate) state: RuleState,
}

/// Who may come, as its sources are resolved at this moment. Rules share it.
struct AdmittedClients {
    sources: Sources,
    principals: Arc<[Principal]>,
}

impl AdmittedClients {
    /// The same, unless it is too much for this many backends.
    fn for_backends(self, backends: usize) -> Result<Self, String> {
        let each = sources_bytes(&self.sources) + principals_bytes(&self.principals);
        let all = each.saturating_mul(backends);
        if all > MOST_OBJECT_BYTES {
            return Err(format!(
                "spec: {backends} backends, each with sources of {each} bytes, are {all} bytes, of which one object may \
                 have {MOST_OBJECT_BYTES}: list fewer, or ranges that cover several"
            ));
        }
        Ok(self)
    }
}

/// The most that the sources of all IngressBackends of a namespace may take, in bytes, once Services are replaced by the
/// addresses of their endpoints. Those of the oldest objects count first.
const MOST_NAMESPACE_BYTES: usize = 16 * 1024 * 1024;

/// What the sources of a namespace's IngressBackends are at this moment: each Service is looked up once, and all of them
/// together have a bound.
pub(crate) struct NamespaceSources<'i> {
    index: &'i Index,
    addresses: RefCell<HashMap<ObjectName, Rc<[IpNet]>>>,
    /// The IngressBackends that are beyond the bound.
    beyond: BTreeSet<&'i ObjectName>,
}

impl<'i> NamespaceSources<'i> {
    /// What rules of this namespace refer to.
    pub(crate) fn new(index: &'i Index, namespace: &str) -> Self {
        let mut sources = Self { index, addresses: RefCell::default(), beyond: BTreeSet::new() };
        let mut objects: Vec<_> = index.ingress_backends_in(namespace).collect();
        objects.sort_by(|(_, a), (_, b)| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
        let mut room = MOST_NAMESPACE_BYTES;
        for (name, object) in objects {
            let bytes = sources.bytes(&object.spec.sources).min(MOST_OBJECT_BYTES);
            match room.checked_sub(bytes) {
                Some(rest) => room = rest,
                None => drop(sources.beyond.insert(name)),
            }
        }
        sources
    }

    /// What [`rules`] says of the first source that is a Service without ready endpoints, if there is one.
    pub(crate) fn missing(&self, sources: &[IngressSourceSpec]) -> Option<String> {
        let mut names = sources.iter().filter(|source| source.kind == "Service").map(service_name);
        names.find(|name| self.addresses(name).is_empty()).map(|name| without_endpoints(&name))
    }

    /// The ready endpoints of a Service.
    fn addresses(&self, service: &ObjectName) -> Rc<[IpNet]> {
        if let Some(known) = self.addresses.borrow().get(service) {
            return known.clone();
        }
        let addresses = self.index.ready_addresses(service).into_iter();
        let addresses: Rc<[IpNet]> = addresses.map(|address| IpNet::from(address.to_canonical())).collect();
        self.addresses.borrow_mut().insert(service.clone(), addresses.clone());
        addresses
    }

    /// Bytes that these sources take once resolved; an estimate that errs towards more.
    fn bytes(&self, sources: &[IngressSourceSpec]) -> usize {
        let bytes = |source: &IngressSourceSpec| match source.kind.as_str() {
            "Service" => size_of::<IpNet>() * self.addresses(&service_name(source)).len(),
            "AuthenticatedPrincipal" => size_of::<Principal>() + source.name.len(),
            _ => size_of::<IpNet>(),
        };
        sources.iter().map(bytes).sum()
    }
}

/// The name of a Service source. One without a namespace is an error of the whole object, found before.
fn service_name(source: &IngressSourceSpec) -> ObjectName {
    ObjectName::new(source.namespace.as_deref().unwrap_or_default(), source.name.as_str())
}

/// Bytes of a rule on the wire, about.
pub(crate) fn wire_bytes(rule: &IngressRule) -> usize {
    let state = match &rule.state {
        RuleState::Invalid(reason) => reason.len(),
        RuleState::Active(active) => {
            let transport = match &active.transport {
                IngressTransport::Https { sni_hosts, client } => {
                    let hosts: usize = sni_hosts.iter().map(|host| host.to_string().len() + 4).sum();
                    hosts
                        + match client {
                            ClientCheck::Principals(principals) => principals_bytes(principals),
                            ClientCheck::Skip => 0,
                        }
                }
                IngressTransport::Http | IngressTransport::Tcp => 0,
            };
            sources_bytes(&active.sources) + transport
        }
    };
    let ObjectRef { kind, namespace, name } = &rule.origin;
    kind.len() + namespace.len() + name.len() + rule.backend.len() + state + 24
}

/// Bytes of memory of a rule that are not shared with other workloads.
pub(crate) fn own_bytes(rule: &IngressRule) -> usize {
    match &rule.state {
        RuleState::Active(ActiveIngressRule {
            transport: IngressTransport::Https { sni_hosts, .. }, ..
        }) => sni_hosts.iter().map(|host| size_of::<DnsPattern>() + host.to_string().len() + 32).sum(),
        RuleState::Active(_) | RuleState::Invalid(_) => 0,
    }
}

/// A range is counted as text in the message to the sidecar: at most 20 bytes for IPv4, 44 for IPv6.
fn sources_bytes(sources: &Sources) -> usize {
    match sources {
        Sources::Any => 0,
        // As text.
        Sources::Ranges(ranges) => {
            ranges.ranges().iter().map(|range| if range.addr().is_ipv4() { 20 } else { 44 }).sum()
        }
    }
}

/// The names with 4 bytes each for their tag and length in the message.
fn principals_bytes(principals: &[Principal]) -> usize {
    principals
        .iter()
        .map(|principal| {
            4 + match principal {
                Principal::Any => 1,
                Principal::Dns(name) => name.as_str().len(),
                Principal::Uri(text) | Principal::Unmatchable(text) => text.len(),
            }
        })
        .sum()
}

/// The most that all rules of one IngressBackend may take together, in bytes: each of its backends lists all of its
/// sources.
pub(crate) const MOST_OBJECT_BYTES: usize = 1024 * 1024;

/// The rules of an IngressBackend, one for each of its backends in their order.
pub(crate) fn rules(
    sources: &NamespaceSources<'_>,
    name: &ObjectName,
    spec: &IngressBackendSpec,
) -> Vec<BackendRule> {
    let clients = match sources.index.outside_mesh(&name.namespace).or_else(|| error(spec)) {
        Some(reason) => Err(reason),
        None if sources.beyond.contains(name) => Err(beyond_namespace()),
        None => resolve(sources, &spec.sources).and_then(|clients| clients.for_backends(spec.backends.len())),
    };
    let clients = clients.map_err(Arc::<str>::from);
    let rule = |backend: &BackendSpec| {
        let active = match &clients {
            Ok(clients) => active(backend, clients).map_err(Arc::from),
            Err(reason) => Err(reason.clone()),
        };
        BackendRule {
            backend: ObjectName::new(name.namespace.clone(), backend.name.as_str()),
            port: backend.port.number,
            state: active.map_or_else(RuleState::Invalid, RuleState::Active),
        }
    };
    spec.backends.iter().map(rule).collect()
}

/// The first finding that keeps the whole object out.
pub(crate) fn error(spec: &IngressBackendSpec) -> Option<String> {
    let findings = validate::ingress_backend(spec);
    findings.into_iter().find(Finding::is_error).map(|finding| finding.to_string())
}

/// Addresses and names of the clients. A Service without ready endpoints makes the whole object invalid: without
/// it, the rule would be wider or narrower than its author knows.
fn resolve(known: &NamespaceSources<'_>, sources: &[IngressSourceSpec]) -> Result<AdmittedClients, String> {
    let (mut ranges, mut principals) = (Vec::new(), Vec::new());
    let mut is_restricted = false;
    for source in sources {
        match source.kind.as_str() {
            "AuthenticatedPrincipal" => principals.push(Principal::parse(&source.name)),
            "Service" => {
                is_restricted = true;
                let addresses = known.addresses(&service_name(source));
                if addresses.is_empty() {
                    return Err(without_endpoints(&service_name(source)));
                }
                ranges.extend_from_slice(&addresses);
            }
            "IPRange" => {
                is_restricted = true;
                let set = CidrSet::parse([source.name.as_str()]).map_err(|error| error.to_string())?;
                ranges.extend_from_slice(set.ranges());
            }
            other => return Err(format!("unknown source kind {other:?}")),
        }
    }
    let sources = if is_restricted { Sources::Ranges(ranges.into_iter().collect()) } else { Sources::Any };
    Ok(AdmittedClients { sources, principals: principals.into() })
}

/// The reason of a source that is a Service without ready endpoints, in OSM's words.
fn without_endpoints(service: &ObjectName) -> String {
    format!("endpoints not found for service {service}")
}

/// The reason of an object whose sources do not fit into [`MOST_NAMESPACE_BYTES`] beside older objects'.
fn beyond_namespace() -> String {
    let most = MOST_NAMESPACE_BYTES >> 20;
    format!(
        "spec.sources: the sources of all IngressBackends of one namespace may take {most} MiB, and older objects leave no \
         room: list fewer, or ranges that cover several"
    )
}

/// One backend's rule, as far as it can be in force.
fn active(backend: &BackendSpec, clients: &AdmittedClients) -> Result<ActiveIngressRule, String> {
    let transport = match IngressProtocol::parse(&backend.port.protocol) {
        Some(IngressProtocol::Http) => IngressTransport::Http,
        Some(IngressProtocol::Tcp) => IngressTransport::Tcp,
        Some(IngressProtocol::Https) => IngressTransport::Https {
            sni_hosts: sni_hosts(backend)?,
            client: client_check(backend, &clients.principals),
        },
        None => return Err(format!("unknown protocol {:?}", backend.port.protocol)),
    };
    Ok(ActiveIngressRule { sources: clients.sources.clone(), transport })
}

/// What is required of the client's certificate, for an `https` backend. Without principals any certificate of the
/// mesh's CA is admitted, as in OSM; `skipClientCertValidation` requests none and therefore ignores principals.
fn client_check(backend: &BackendSpec, principals: &Arc<[Principal]>) -> ClientCheck {
    let skips = backend.tls.as_ref().is_some_and(|tls| tls.skip_client_cert_validation);
    match (skips, principals.is_empty()) {
        (true, _) => ClientCheck::Skip,
        (false, true) => ClientCheck::Principals([Principal::Any].into()),
        (false, false) => ClientCheck::Principals(principals.clone()),
    }
}

/// Server names that can match. If none of the given names can, the rule admits nothing: an empty list would mean
/// every name.
fn sni_hosts(backend: &BackendSpec) -> Result<Vec<DnsPattern>, String> {
    let given = backend.tls.as_ref().and_then(|tls| tls.sni_hosts.as_deref()).unwrap_or_default();
    let usable: Vec<_> = given.iter().filter_map(|host| DnsPattern::parse(host).ok()).collect();
    if usable.is_empty() && !given.is_empty() {
        return Err(format!("none of the sniHosts of backend '{}' can match a server name", backend.name));
    }
    Ok(usable)
}
