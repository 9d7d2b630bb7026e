//! The forward proxies through which connections leave the mesh, and which of them a connection or request uses.
//!
//! A rule applies to addresses that no object of the cluster has, and to ServiceEntries outside the mesh. Which rule it is, and
//! whether one applies at all, is known once the host is: from a ClientHello, from each request, or from the entry. A proxy
//! resolves the name that it gets, so it gets no other one than what allows the connection is about ([`TargetNames`]).

use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::backend::{
    Backend, BackendProtocol, BackendRef, Endpoint, ForwardProxy, LimitedUsage, ProxyRequest, Transport,
};
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::forward_proxy::{EgressProxyRule, ProxyTarget};

use super::backend::BalancedBackend;
use super::caller::ClientWorkload;
use super::{EndpointChoice, NoEndpoint};

/// The rules of this workload, in the order in which they count.
#[derive(Debug, Default)]
pub(super) struct ProxyRules(Vec<ProxiedRule>);

/// A rule with its proxies as they are balanced.
#[derive(Debug)]
struct ProxiedRule {
    rule: Arc<EgressProxyRule>,
    proxies: Arc<BalancedBackend>,
    /// For requests of plaintext HTTP/1.
    http_proxies: Arc<BalancedBackend>,
}

/// The names that proxies may get for connections to an address. Another one that a connection carries is as good as none: the
/// target is the address that was dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TargetNames {
    /// That which the connection or request names: no address was asked for, or the name is what a policy allows.
    Any,
    /// None: a policy allows the address, whatever a connection names.
    Address,
    /// That of a ServiceEntry's hosts which the request names.
    Hosts(Box<[DnsPattern]>),
    /// That of a ServiceEntry, whatever the connection carries.
    Only(Arc<str>),
}

/// An address whose connections may go through a proxy.
#[derive(Debug)]
pub(crate) struct ProxiedDestination {
    dialled: SocketAddr,
    rules: Arc<ProxyRules>,
    names: TargetNames,
    /// Where they go otherwise.
    direct: Arc<BalancedBackend>,
}

impl ProxyRules {
    /// Proxies that were there before keep their load and their ejection.
    pub(super) fn new(rules: &[Arc<EgressProxyRule>], caller: &ClientWorkload, before: &Self) -> Self {
        let prepared = |rule: &Arc<EgressProxyRule>| {
            let mut earlier = before.0.iter();
            let earlier = earlier.find(|known| known.rule.settings.origin == rule.settings.origin);
            let backend = |addresses: &[SocketAddr], before: Option<&Arc<BalancedBackend>>| {
                let backend = BalancedBackend::new(&backend(rule, addresses), caller, before.map(|it| &**it));
                Arc::new(backend.in_order())
            };
            let proxies = backend(&rule.proxies, earlier.map(|known| &known.proxies));
            let http_proxies = match &*rule.http_proxies {
                [] => proxies.clone(),
                addresses => backend(addresses, earlier.map(|known| &known.http_proxies)),
            };
            ProxiedRule { rule: rule.clone(), proxies, http_proxies }
        };
        Self(rules.iter().map(prepared).collect())
    }

    /// Whether they were made from these rules.
    pub(super) fn are(&self, rules: &[Arc<EgressProxyRule>]) -> bool {
        self.0.iter().map(|known| &known.rule).eq(rules)
    }

    /// What connections to an address may go through; `None`: nothing. `usage`: what is open without a proxy, if that is
    /// limited.
    pub(super) fn at(
        self: &Arc<Self>,
        dialled: SocketAddr,
        names: TargetNames,
        usage: Option<&Arc<LimitedUsage>>,
    ) -> Option<ProxiedDestination> {
        let may_apply = self.0.iter().any(|known| known.rule.may_apply(dialled));
        may_apply.then(|| ProxiedDestination {
            dialled,
            rules: self.clone(),
            names,
            direct: Arc::new(BalancedBackend::outside(dialled, usage.cloned())),
        })
    }
}

impl ProxiedDestination {
    /// Where no rule applies, connections go there.
    pub(super) fn otherwise(self, direct: Arc<BalancedBackend>) -> Self {
        Self { direct, ..self }
    }

    /// Whether a rule applies whatever connections carry.
    pub(super) fn is_certain(&self) -> bool {
        match &self.names {
            TargetNames::Address | TargetNames::Only(_) => self.rule(self.named(None)).is_some(),
            TargetNames::Any | TargetNames::Hosts(_) => false,
        }
    }

    /// The first endpoint for a connection whose bytes are not parsed: a proxy that opens a tunnel to this server, or to the
    /// address that was dialled.
    pub(super) fn choose_for_connection(&self, server: Option<&str>) -> Result<EndpointChoice, NoEndpoint> {
        let name = self.named(server);
        match self.rule(name) {
            None => self.choose(&self.direct),
            Some(known) => Ok(self.choose(&known.proxies)?.through_tunnel(self.target(name))),
        }
    }

    /// The first endpoint for a request for a host. `is_absolute`: whether it is one of HTTP/1 that a proxy can send itself;
    /// others go through a tunnel.
    pub(crate) fn choose_for_request(
        &self,
        host: Option<&str>,
        is_absolute: bool,
    ) -> Result<EndpointChoice, NoEndpoint> {
        let name = self.named(host);
        match self.rule(name) {
            None => self.choose(&self.direct),
            Some(known) if is_absolute && is_same(name, host) => self.choose(&known.http_proxies),
            Some(known) => Ok(self.choose(&known.proxies)?.through_tunnel(self.target(name))),
        }
    }

    /// What access logs call the proxies for a host; `None` if it goes through none.
    pub(crate) fn service(&self, host: Option<&str>) -> Option<&Arc<str>> {
        self.rule(self.named(host))?.proxies.name.as_ref()
    }

    /// Where connections go to which no rule applies.
    pub(super) fn direct(&self) -> &Arc<BalancedBackend> {
        &self.direct
    }

    /// The objects whose rules may apply.
    pub(crate) fn origins(&self) -> impl Iterator<Item = String> {
        let rules = self.rules.0.iter().filter(|known| known.rule.may_apply(self.dialled));
        rules.map(|known| known.rule.settings.origin.to_string())
    }

    /// The name that a proxy gets for a connection or request that names this host.
    fn named<'n>(&'n self, host: Option<&'n str>) -> Option<&'n str> {
        match &self.names {
            TargetNames::Any => host,
            TargetNames::Address => None,
            TargetNames::Hosts(hosts) => host.filter(|host| hosts.iter().any(|known| known.matches(host))),
            TargetNames::Only(name) => Some(name),
        }
    }

    fn choose(&self, backend: &Arc<BalancedBackend>) -> Result<EndpointChoice, NoEndpoint> {
        EndpointChoice::first(backend, self.dialled.is_ipv4())
    }

    fn rule(&self, host: Option<&str>) -> Option<&ProxiedRule> {
        let target = ProxyTarget { host, dialled: self.dialled };
        self.rules.0.iter().find(|known| known.rule.applies(target))
    }

    /// `host:port`, with the port that was dialled.
    fn target(&self, host: Option<&str>) -> Arc<str> {
        let port = self.dialled.port();
        match host {
            Some(host) if host.contains(':') => format!("[{host}]:{port}").into(),
            Some(host) => format!("{host}:{port}").into(),
            None => SocketAddr::new(self.dialled.ip().to_canonical(), port).to_string().into(),
        }
    }
}

/// Whether a request for `host`, as a proxy reads it, is one for `name`.
fn is_same(name: Option<&str>, host: Option<&str>) -> bool {
    match (name, host) {
        (Some(name), Some(host)) => {
            host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case(name) || name == host
        }
        (name, host) => name == host,
    }
}

/// The proxies at these addresses. Without a tunnel they take requests in absolute form.
fn backend(rule: &EgressProxyRule, addresses: &[SocketAddr]) -> Backend {
    let object = rule.settings.origin.clone();
    let port = addresses.first().map_or(0, SocketAddr::port);
    let endpoint = |address: &SocketAddr| Endpoint {
        via: Some(ForwardProxy { settings: rule.settings.clone(), request: ProxyRequest::AbsoluteForm }),
        ..Endpoint::new(*address, Transport::Plain)
    };
    let endpoints = addresses.iter().map(endpoint).collect();
    Backend::new(BackendRef { object, port }, BackendProtocol::Http, endpoints)
}

#[cfg(test)]
mod tests;
