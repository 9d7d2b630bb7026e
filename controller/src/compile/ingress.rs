//! One IngressBackend as rules: a rule for each of its backends, in force or not.

use std::sync::Arc;

use ipnet::IpNet;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::policy::{
    ActiveIngressRule, ClientCheck, IngressRule, IngressTransport, RuleState, Sources,
};
use tidegate_core::{CidrSet, Principal};
use tidegate_crds::IngressBackendSpec;
use tidegate_crds::ingress_backend::{Backend, Source};
use tidegate_crds::validate::{self, Finding, Protocol};

use crate::index::Index;
use crate::object::ObjectName;

/// What one backend of an IngressBackend grants, at whichever workloads stand behind it.
#[derive(Clone, Debug)]
pub(super) struct BackendRule {
    pub(super) backend: ObjectName,
    pub(super) port: u16,
    pub(super) state: RuleState,
}

/// Who may come, as its sources are resolved at this moment. Rules share it.
struct Clients {
    sources: Sources,
    principals: Arc<[Principal]>,
}

impl Clients {
    /// The same, unless it is too much for so many backends.
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

/// Bytes of a rule on the wire, about.
pub(super) fn wire_bytes(rule: &IngressRule) -> usize {
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
    rule.policy.len() + rule.backend.len() + state + 16
}

fn sources_bytes(sources: &Sources) -> usize {
    match sources {
        Sources::Any => 0,
        // As text.
        Sources::Ranges(ranges) => {
            ranges.ranges().iter().map(|range| if range.addr().is_ipv4() { 20 } else { 44 }).sum()
        }
    }
}

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
pub(super) const MOST_OBJECT_BYTES: usize = 1024 * 1024;

/// The rules of an IngressBackend, one for each of its backends in their order.
pub(super) fn rules(index: &Index, name: &ObjectName, spec: &IngressBackendSpec) -> Vec<BackendRule> {
    let clients = match index.outside_mesh(&name.namespace).or_else(|| error(spec)) {
        Some(reason) => Err(reason),
        None => resolve(index, &spec.sources).and_then(|clients| clients.for_backends(spec.backends.len())),
    };
    let rule = |backend: &Backend| {
        let active = clients.as_ref().map_err(Clone::clone).and_then(|clients| active(backend, clients));
        BackendRule {
            backend: ObjectName::new(name.namespace.clone(), backend.name.as_str()),
            port: backend.port.number,
            state: active.map_or_else(|reason| RuleState::Invalid(reason.into()), RuleState::Active),
        }
    };
    spec.backends.iter().map(rule).collect()
}

/// The first finding that keeps the whole object out.
pub(super) fn error(spec: &IngressBackendSpec) -> Option<String> {
    let findings = validate::ingress_backend(spec);
    findings.into_iter().find(Finding::is_error).map(|finding| finding.to_string())
}

/// Addresses and names of the clients. A Service without ready endpoints makes the whole object invalid: without
/// it, the rule would be wider or narrower than its author knows.
fn resolve(index: &Index, sources: &[Source]) -> Result<Clients, String> {
    let (mut ranges, mut principals) = (Vec::new(), Vec::new());
    let mut is_restricted = false;
    for source in sources {
        match source.kind.as_str() {
            "AuthenticatedPrincipal" => principals.push(Principal::parse(&source.name)),
            "Service" => {
                is_restricted = true;
                let service =
                    ObjectName::new(source.namespace.as_deref().unwrap_or_default(), source.name.as_str());
                let addresses = index.ready_addresses(&service);
                if addresses.is_empty() {
                    return Err(without_endpoints(&service));
                }
                ranges.extend(addresses.into_iter().map(|address| IpNet::from(address.to_canonical())));
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
    Ok(Clients { sources, principals: principals.into() })
}

fn without_endpoints(service: &ObjectName) -> String {
    format!("endpoints not found for service {service}")
}

/// What [`rules`] says of the first source that is a Service without ready endpoints, if there is one.
pub(super) fn missing_source(index: &Index, sources: &[Source]) -> Option<String> {
    let services = sources.iter().filter(|source| source.kind == "Service");
    let mut names = services
        .map(|source| ObjectName::new(source.namespace.as_deref().unwrap_or_default(), source.name.as_str()));
    names.find(|name| index.ready_addresses(name).is_empty()).map(|name| without_endpoints(&name))
}

fn active(backend: &Backend, clients: &Clients) -> Result<ActiveIngressRule, String> {
    let transport = match Protocol::parse(&backend.port.protocol) {
        Some(Protocol::Http) => IngressTransport::Http,
        Some(Protocol::Tcp) => IngressTransport::Tcp,
        Some(Protocol::Https) => IngressTransport::Https {
            sni_hosts: sni_hosts(backend)?,
            client: client_check(backend, &clients.principals),
        },
        None => return Err(format!("unknown protocol {:?}", backend.port.protocol)),
    };
    Ok(ActiveIngressRule { sources: clients.sources.clone(), transport })
}

fn client_check(backend: &Backend, principals: &Arc<[Principal]>) -> ClientCheck {
    let skips = backend.tls.as_ref().is_some_and(|tls| tls.skip_client_cert_validation);
    match (skips, principals.is_empty()) {
        (true, _) => ClientCheck::Skip,
        (false, true) => ClientCheck::Principals([Principal::Any].into()),
        (false, false) => ClientCheck::Principals(principals.clone()),
    }
}

/// Server names that can match. If none of those given can, nothing may be let in: an empty list would mean
/// every name.
fn sni_hosts(backend: &Backend) -> Result<Vec<DnsPattern>, String> {
    let given = backend.tls.as_ref().and_then(|tls| tls.sni_hosts.as_deref()).unwrap_or_default();
    let usable: Vec<_> = given.iter().filter_map(|host| DnsPattern::parse(host).ok()).collect();
    if usable.is_empty() && !given.is_empty() {
        return Err(format!("none of the sniHosts of backend '{}' can match a server name", backend.name));
    }
    Ok(usable)
}
