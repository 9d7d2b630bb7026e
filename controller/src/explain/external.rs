//! Where a workload's connection to a server outside the mesh would go: the destination that its sidecar gets, and the object
//! or setting that allows or refuses it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use tidegate_core::backend::ProxiedAs;
use tidegate_core::destination::{DestinationKey, DestinationTarget, HostSource, RequestedHost};
use tidegate_core::dns_name::{DnsName, DnsPattern};
use tidegate_core::egress::policies::EgressPolicies;
use tidegate_core::forward_proxy::{EgressProxyRule, ProxyTarget};
use tidegate_core::{Destination, EgressMode, TrustDomain};
use tidegate_crds::service_entry::{EntryProtocol, ServiceEntry};

use super::{ExplainError, HttpRequest};
use crate::compile::destination::Resolver;
use crate::compile::egress::rules::egress_of;
use crate::compile::route_features::Features;
use crate::compile::service_entry::{proxied_as, selected_pods};
use crate::compile::{NamespaceEgress, egress_mode};
use crate::index::{Index, service_named};
use crate::object::ObjectName;
use crate::object::pod::service_account;

/// A connection of an app to a server that is probably outside the mesh. It has a host, an address, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalQuery {
    /// The app's Pod. Its namespace decides about ServiceEntries, its service account about Egresses.
    pub caller: ObjectName,
    /// The name that the app resolves, and sends as SNI or `Host`.
    pub host: Option<String>,
    /// The address that it dials. `None`: those that ServiceEntries list for the host.
    pub address: Option<IpAddr>,
    /// The port that it dials.
    pub port: u16,
}

/// What the app's sidecar does with the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalExplanation {
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// Why, in a sentence.
    pub reason: String,
    /// `response_code_details` of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// The object that allows or refuses it, as `<kind> <namespace>/<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The host, or else the address, with the port.
    pub server: String,
    /// The address that was decided about; `None`: no object lists one for the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Why ServiceEntries that list the host or the address do not decide.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
    /// The port.
    pub port: u16,
}

/// Answers a question from the objects alone, like [`explain`](super::explain). `is_workload`: whether a Pod has a sidecar;
/// the address of one without a sidecar is not a destination of its own.
pub fn explain_external(
    index: &Index,
    trust_domain: &TrustDomain,
    is_workload: fn(&Pod) -> bool,
    query: &ExternalQuery,
) -> Result<ExternalExplanation, ExplainError> {
    let host = query.host.as_deref();
    if let Some(host) = host
        && let Some(service) = service_named(host).filter(|name| index.service(name).is_some())
    {
        return Err(ExplainError::IsService(host.to_owned(), service));
    }
    let resolver = Resolver { index, trust_domain, is_workload, features: Features::EXECUTED };
    let listed = query.address.or_else(|| listed_address(index, query));
    // An address that no object lists is as good as any other.
    let address = SocketAddr::new(listed.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), query.port);
    let found = destination(&resolver, address, query);
    let explained = ExternalExplanation {
        decision: "allow",
        reason: String::new(),
        code: None,
        rule: None,
        server: host.map_or_else(|| address.to_string(), |host| format!("{host}:{}", query.port)),
        address: listed.map(|_| address.to_string()),
        others: others(index, query),
        port: query.port,
    };
    Ok(explained.decided(index, query, address, found))
}

/// What the app's sidecar looks up: the address, and the host where hosts tell connections apart there.
fn destination(resolver: &Resolver<'_>, address: SocketAddr, query: &ExternalQuery) -> Destination {
    let at = |key: &DestinationKey| {
        resolver.destination(address, &resolver.entries(key), Some(&query.caller.namespace)).value
    };
    let otherwise = match at(&address.into()) {
        Destination::ByHost(otherwise) => *otherwise,
        found => return found,
    };
    let Some(name) = query.host.as_deref().and_then(|host| DnsName::parse(host).ok()) else {
        return otherwise;
    };
    // The question does not say whether the app speaks TLS: what either would find.
    let by = [HostSource::Tls, HostSource::Http].map(|source| {
        let host = Some(RequestedHost { source, name: name.clone() });
        at(&DestinationKey { address, host })
    });
    by.into_iter().find(|found| matches!(found, Destination::Routed { .. })).unwrap_or(otherwise)
}

impl ExternalExplanation {
    /// Fills in the decision.
    fn decided(self, index: &Index, query: &ExternalQuery, address: SocketAddr, found: Destination) -> Self {
        let what = self.address.clone().unwrap_or_else(|| self.server.clone());
        match found {
            Destination::Unknown => {
                match proxied(index, query, self.address.as_deref(), query.host.as_deref()) {
                    Some(proxied) if egress_mode(index) == EgressMode::AllowAny => {
                        Self { reason: "no object has the address".to_owned(), ..self }.through(proxied)
                    }
                    _ => self.unregistered(index, query, address),
                }
            }
            // Hosts were looked up before.
            Destination::InCluster | Destination::ByHost(_) => self.unregistered(index, query, address),
            Destination::Blocked(reason) => Self {
                decision: "deny",
                reason: reason.to_string(),
                code: Some("destination_blocked"),
                ..self
            },
            Destination::Passthrough => {
                let service = index.service_at(address.ip());
                let owner = service.map_or_else(|| "a Pod".to_owned(), |(name, _)| format!("Service {name}"));
                Self { reason: format!("{owner} has {what}; the connection goes there unchanged"), ..self }
            }
            Destination::Routed { target, .. } => {
                let (kind, owner) = match &target {
                    DestinationTarget::Backend(name) => {
                        let object = &name.object;
                        (&*object.kind, format!("{}/{}", object.namespace, object.name))
                    }
                    DestinationTarget::Routes(name) => ("Service", name.owner().to_owned()),
                };
                if kind == "ServiceEntry" && selects_none(index, &owner) {
                    let reason = format!(
                        "{kind} {owner} has {what}, and its workloadSelector selects no Pod that is ready"
                    );
                    let (code, rule) = (Some("no_healthy_upstream"), Some(format!("{kind} {owner}")));
                    return Self { decision: "deny", reason, code, rule, ..self };
                }
                let reason = match (&query.host, kind) {
                    (Some(host), "ServiceEntry") if !lists(index, &owner, host) => {
                        format!("{kind} {owner} has {what}, which decides; {host} is not one of its hosts")
                    }
                    _ => format!("{kind} {owner} has {what}"),
                };
                let found = Self { reason, rule: Some(format!("{kind} {owner}")), ..self };
                match entry_target(index, kind, &owner, query) {
                    Some(name) => found.through_any(index, query, name),
                    None => found,
                }
            }
        }
    }

    /// It goes through a forward proxy if there is one for a target of this name.
    fn through_any(self, index: &Index, query: &ExternalQuery, name: Option<&str>) -> Self {
        match proxied(index, query, self.address.as_deref(), name) {
            Some(proxied) => self.through(proxied),
            None => self,
        }
    }

    /// It goes through a forward proxy.
    fn through(self, ProxiedConnection { rule, labels }: ProxiedConnection) -> Self {
        let origin = rule.settings.origin.to_string();
        let pods = if labels.is_empty() { String::new() } else { format!(" of Pods with {labels}") };
        let Some(proxy) = rule.proxies.first() else {
            let reason = format!("{origin} has errors: connections{pods} to its ports are refused");
            let code = Some("no_healthy_upstream");
            return Self { decision: "deny", reason, code, rule: Some(origin), ..self };
        };
        let before = &self.reason;
        let reason = format!(
            "{before}; connections{pods} go through the forward proxy {proxy} of {origin}, which decides: plaintext HTTP/1 in \
             absolute form, the rest by CONNECT"
        );
        let rule = self.rule.or(Some(origin));
        Self { reason, rule, ..self }
    }

    /// No object has the address.
    fn unregistered(self, index: &Index, query: &ExternalQuery, address: SocketAddr) -> Self {
        let config = index.mesh_config().map(|(name, _)| name);
        let rule = config.map(|name| format!("MeshConfig {name}"));
        let mode = egress_mode(index);
        let account = index
            .pod(&query.caller)
            .map(|pod| ObjectName::new(query.caller.namespace.clone(), service_account(pod)));
        let of_account = |account| egress_of(index, &mode, &account, |_| true);
        match account.map_or_else(|| mode.clone(), of_account) {
            EgressMode::Policies(policies) => self.policed(index, &policies, query, address, rule),
            EgressMode::RegistryOnly(reason) => Self {
                decision: "deny",
                reason: reason.to_string(),
                code: Some("destination_unregistered"),
                rule,
                ..self
            },
            EgressMode::AllowAny => {
                let setting = match config {
                    Some(name) => format!("spec.traffic.enableEgress of MeshConfig {name} is not false"),
                    None => "there is no MeshConfig that turns egress off".to_owned(),
                };
                Self { reason: format!("no object has the address, and {setting}"), rule, ..self }
            }
        }
    }
}

/// A rule about forward proxies that applies, and the Pods that it is for.
struct ProxiedConnection {
    rule: Arc<EgressProxyRule>,
    /// `name=value, …`; empty: all.
    labels: String,
}

/// What a forward proxy would get as the target of connections to a ServiceEntry: its host, or `Some(None)` for the address;
/// `None` if they never go through one.
fn entry_target<'i>(
    index: &'i Index,
    kind: &str,
    owner: &str,
    query: &'i ExternalQuery,
) -> Option<Option<&'i str>> {
    let mut entries = index.service_entries().iter();
    let (_, entry) = entries.find(|(name, _)| kind == "ServiceEntry" && name.to_string() == owner)?;
    let port = entry.spec.port(query.port)?;
    let proxied_as = proxied_as(&entry.spec, port)?;
    if port.protocol() != Ok(EntryProtocol::Tcp) {
        return Some(query.host.as_deref().filter(|host| is_host(&entry.spec.hosts, host)));
    }
    match (proxied_as, &*entry.spec.hosts) {
        (ProxiedAs::Host, [only]) if DnsName::parse(only).is_ok() => Some(Some(only)),
        _ => Some(None),
    }
}

/// The first EgressProxy that applies to a connection of some Pod of the namespace to this host.
fn proxied(
    index: &Index,
    query: &ExternalQuery,
    address: Option<&str>,
    host: Option<&str>,
) -> Option<ProxiedConnection> {
    let ip = address.and_then(|address| address.parse::<SocketAddr>().ok()).map(|address| address.ip());
    let dialled = SocketAddr::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), query.port);
    let target = ProxyTarget { host, dialled };
    let rules = NamespaceEgress::new(index, &query.caller.namespace);
    let (labels, rule) = rules.iter().find(|(_, rule)| rule.applies(target))?;
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Some(ProxiedConnection { rule: rule.clone(), labels: labels.join(", ") })
}

impl ExternalExplanation {
    /// What policies allow at an address that no object has: any bytes, or TLS or HTTP for the host.
    fn policed(
        self,
        index: &Index,
        policies: &EgressPolicies,
        query: &ExternalQuery,
        address: SocketAddr,
        config: Option<String>,
    ) -> Self {
        let host = query.host.as_deref();
        let request = HttpRequest::default();
        let of_request = |host| {
            let normal = request.normal(policies.needs_normal_path()).ok()?;
            policies.for_request(address, host, &normal).ok()
        };
        let found = policies
            .for_bytes(address)
            .map(|rule| (rule, "any bytes to the address"))
            .or_else(|| Some((policies.for_tls(address, host)?, "TLS with this server name")))
            .or_else(|| Some((of_request(host?)?, "requests such as GET / for this host")));
        let found = found.and_then(|(place, what)| Some((policies.rules.get(place)?, what)));
        match found {
            Some((rule, what)) => {
                let reason = format!("{} allows {what}", rule.origin);
                let name = host.filter(|_| !rule.decides_by_address());
                let allowed = Self { reason, rule: Some(rule.origin.to_string()), ..self };
                allowed.through_any(index, query, name)
            }
            None if policies.is_audit => {
                Self { reason: format!("audit mode: {}", policies.reason), rule: config, ..self }
            }
            None => Self {
                decision: "deny",
                reason: policies.reason.to_string(),
                code: Some("destination_unregistered"),
                rule: config,
                ..self
            },
        }
    }
}

/// The first address that a ServiceEntry lists for the host and the port, and that the client sees.
fn listed_address(index: &Index, query: &ExternalQuery) -> Option<IpAddr> {
    let host = query.host.as_deref()?;
    let entries = index.service_entries().iter();
    let mut ranges = entries
        .filter(|(name, entry)| entry.spec.is_exported_to(&query.caller.namespace, &name.namespace))
        .filter(|(_, entry)| entry.spec.port(query.port).is_some() && is_host(&entry.spec.hosts, host))
        .flat_map(|(_, entry)| entry.spec.ranges());
    ranges.next().map(|range| range.addr())
}

/// Why entries that list the host do not decide about it.
fn others(index: &Index, query: &ExternalQuery) -> Vec<String> {
    let Some(host) = query.host.as_deref() else { return Vec::new() };
    let entries = index.service_entries().iter().filter(|(_, entry)| is_host(&entry.spec.hosts, host));
    let reason = |(name, entry): (&ObjectName, &Arc<ServiceEntry>)| {
        if let Some(reason) = index.outside_mesh(&name.namespace) {
            return Some(format!("ServiceEntry {name} lists the host, but {reason}"));
        }
        if !entry.spec.is_exported_to(&query.caller.namespace, &name.namespace) {
            let caller = &query.caller.namespace;
            return Some(format!(
                "ServiceEntry {name} lists the host, but is not exported to namespace {caller}"
            ));
        }
        let ports: BTreeSet<u32> = entry.spec.ports.iter().map(|port| port.number).collect();
        (!ports.contains(&query.port.into()))
            .then(|| format!("ServiceEntry {name} lists the host, but has only the ports {ports:?}"))
    };
    entries.filter_map(reason).collect()
}

/// Whether a ServiceEntry, as `<namespace>/<name>`, lists a host.
fn lists(index: &Index, owner: &str, host: &str) -> bool {
    let mut entries = index.service_entries().iter();
    entries.any(|(name, entry)| name.to_string() == owner && is_host(&entry.spec.hosts, host))
}

/// Whether a ServiceEntry, as `<namespace>/<name>`, has Pods as endpoints, and none of them takes connections.
fn selects_none(index: &Index, owner: &str) -> bool {
    let entry = ObjectName::parse(owner).and_then(|name| index.service_entries().entry(&name));
    entry.is_some_and(|(name, entry)| {
        entry.spec.selected_pods().is_some() && selected_pods(index, name, &entry.spec).next().is_none()
    })
}

/// Whether one of these hosts, which may begin with `*.`, is this one.
fn is_host(hosts: &[String], host: &str) -> bool {
    hosts.iter().any(|listed| DnsPattern::parse(listed).is_ok_and(|pattern| pattern.matches(host)))
}

#[cfg(test)]
mod tests;
