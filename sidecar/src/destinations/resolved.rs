//! A destination as connections to it see it: where they go, or the requests in them.

use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::backend::LimitedUsage;
use tidegate_core::egress::policies::{EgressPolicies, EgressRule};
use tidegate_core::policy::AppProtocol;

use super::attempt_limits::AttemptLimits;
use super::backend::{BalancedBackend, BalancedEndpoint, TopologyView};
use super::egress_proxies::ProxiedDestination;
use super::routes::{DrawnShare, ResolvedRoutes};
use super::{EndpointChoice, NoEndpoint};
use crate::connection_info::AddressOwner;

/// Where connections to an address go.
#[derive(Debug)]
pub(crate) struct ResolvedDestination {
    dialled: SocketAddr,
    /// What connections carry.
    protocol: AppProtocol,
    /// `<namespace>/<name>` of the Service or Pod; `None`: outside the mesh.
    name: Option<Arc<str>>,
    owner: AddressOwner,
    /// What access logs call it, if not that: a ServiceEntry's host.
    host: Option<Arc<str>>,
    target: ResolvedTarget,
    /// What requests are allowed that no rule limits.
    attempts: Option<Arc<AttemptLimits>>,
}

/// What decides where they go.
#[derive(Debug)]
pub(crate) enum ResolvedTarget {
    /// They are refused, for this reason.
    Blocked(Arc<str>),
    /// They are refused, for this reason: no object has the address. What a connection carries is looked at, so that the
    /// refusal can name the host.
    Unregistered(Arc<str>),
    /// They may go through a forward proxy, by the host that they name.
    Proxied(Box<ProxiedDestination>),
    /// No object has the address, and policies decide by the server that a connection or request names.
    Policies(PolicedAddress),
    /// All go to this backend.
    Backend(Arc<BalancedBackend>),
    /// The rule that applies to a request.
    Routes(ResolvedRoutes),
    /// What is known about the host that a connection or request is for; of one that names none, this.
    ByHost(Arc<ResolvedDestination>),
}

/// An address that no object has, at which policies allow some servers.
#[derive(Debug)]
pub(crate) struct PolicedAddress {
    pub(crate) policies: Arc<EgressPolicies>,
    /// By the places of rules: where connections go that one allows.
    allowed: Box<[Arc<ResolvedDestination>]>,
    /// Where those go that audit mode lets through.
    audited: Arc<ResolvedDestination>,
}

impl PolicedAddress {
    /// Where connections go that the rule at this place allows; `None`: that audit mode lets through.
    pub(crate) fn allowed(&self, rule: Option<usize>) -> &Arc<ResolvedDestination> {
        rule.and_then(|place| self.allowed.get(place)).unwrap_or(&self.audited)
    }
}

impl ResolvedDestination {
    /// Outside the mesh, as far as is known.
    pub(crate) fn outside(dialled: SocketAddr) -> Self {
        Self::to(dialled, Arc::new(BalancedBackend::outside(dialled, None)))
    }

    /// The same, where no object has the address. `usage`: what is open there, if that is limited.
    pub(crate) fn unknown(dialled: SocketAddr, usage: Option<&Arc<LimitedUsage>>) -> Self {
        let backend = BalancedBackend::outside(dialled, usage.cloned());
        Self { owner: AddressOwner::Unregistered, ..Self::to(dialled, Arc::new(backend)) }
    }

    /// What policies make of an address that no object has. `open`: where connections go that a rule allows, or audit mode.
    /// Where they allow any bytes, none are looked at.
    pub(super) fn by_policies(
        dialled: SocketAddr,
        policies: &Arc<EgressPolicies>,
        open: impl Fn(Option<&EgressRule>) -> Self,
    ) -> Self {
        let allowed_by = |rule: &EgressRule| Self {
            owner: AddressOwner::Object(rule.origin.to_string().into()),
            ..open(Some(rule))
        };
        if let Some(rule) = policies.for_bytes(dialled).and_then(|place| policies.rules.get(place)) {
            return allowed_by(rule);
        }
        if !policies.depends_on_server(dialled) && !policies.is_audit {
            return Self::unregistered(dialled, policies.reason.clone());
        }
        let target = ResolvedTarget::Policies(PolicedAddress {
            policies: policies.clone(),
            allowed: policies.rules.iter().map(|rule| Arc::new(allowed_by(rule))).collect(),
            audited: Arc::new(open(None)),
        });
        let owner = AddressOwner::Unregistered;
        Self { protocol: AppProtocol::Undeclared, owner, ..Self::with(dialled, None, target) }
    }

    /// Connections are refused.
    pub(crate) fn blocked(dialled: SocketAddr, reason: Arc<str>) -> Self {
        let target = ResolvedTarget::Blocked(reason);
        Self::with(dialled, None, target)
    }

    /// Connections are refused, because no object has the address.
    pub(crate) fn unregistered(dialled: SocketAddr, reason: Arc<str>) -> Self {
        let target = ResolvedTarget::Unregistered(reason);
        let owner = AddressOwner::Unregistered;
        Self { protocol: AppProtocol::Undeclared, owner, ..Self::with(dialled, None, target) }
    }

    /// Connections to an address that no object has go there, or through a forward proxy.
    pub(super) fn proxied(dialled: SocketAddr, proxied: ProxiedDestination) -> Self {
        let target = ResolvedTarget::Proxied(Box::new(proxied));
        let owner = AddressOwner::Unregistered;
        Self { protocol: AppProtocol::Undeclared, owner, ..Self::with(dialled, None, target) }
    }

    /// They may go through a forward proxy instead.
    pub(super) fn through(self, proxied: ProxiedDestination) -> Self {
        Self { target: ResolvedTarget::Proxied(Box::new(proxied)), ..self }
    }

    /// Connections go to this backend, as opaque bytes.
    pub(crate) fn to(dialled: SocketAddr, backend: Arc<BalancedBackend>) -> Self {
        Self::with(dialled, backend.name.clone(), ResolvedTarget::Backend(backend))
    }

    /// Hosts tell connections apart.
    pub(super) fn by_host(dialled: SocketAddr, otherwise: Self) -> Self {
        let owner = otherwise.owner.clone();
        let target = ResolvedTarget::ByHost(Arc::new(otherwise));
        Self { protocol: AppProtocol::Undeclared, owner, ..Self::with(dialled, None, target) }
    }

    /// Rules decide where requests go.
    pub(super) fn routed(dialled: SocketAddr, routes: ResolvedRoutes) -> Self {
        let name = Some(routes.name().owner().into());
        Self::with(dialled, name, ResolvedTarget::Routes(routes))
    }

    fn with(dialled: SocketAddr, name: Option<Arc<str>>, target: ResolvedTarget) -> Self {
        Self {
            dialled,
            protocol: AppProtocol::Tcp,
            name,
            host: None,
            owner: AddressOwner::Cluster,
            target,
            attempts: None,
        }
    }

    /// The address is this ServiceEntry's.
    pub(super) fn of_entry(self) -> Self {
        let owner = self.name.as_ref().map_or(AddressOwner::Cluster, |name| {
            AddressOwner::Object(format!("ServiceEntry {name}").into())
        });
        Self { owner, ..self }
    }

    /// Access logs call it by this host.
    pub(super) fn called(self, host: Option<Arc<str>>) -> Self {
        Self { host, ..self }
    }

    /// The port that the app dialled.
    pub(crate) fn port(&self) -> u16 {
        self.dialled.port()
    }

    /// Connections carry this protocol.
    pub(crate) fn carrying(self, protocol: AppProtocol) -> Self {
        Self { protocol, ..self }
    }

    /// Requests that no rule limits are allowed this beyond one attempt of any length.
    pub(super) fn limiting(self, attempts: Option<Arc<AttemptLimits>>) -> Self {
        Self { attempts, ..self }
    }

    /// What requests that no rule limits are allowed beyond one attempt of any length.
    pub(crate) fn attempts(&self) -> Option<&Arc<AttemptLimits>> {
        self.attempts.as_ref()
    }

    /// What connections carry.
    pub(crate) fn protocol(&self) -> AppProtocol {
        self.protocol
    }

    /// `<namespace>/<name>` of the Service or Pod; `None`: outside the mesh.
    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// Who has the address.
    pub(crate) fn owner(&self) -> &AddressOwner {
        &self.owner
    }

    /// Whether everything is refused but what policies allow for the server that the first bytes name: these are waited for.
    pub(crate) fn is_closed_but_for_servers(&self) -> bool {
        matches!(&self.target, ResolvedTarget::Policies(address) if !address.policies.is_audit)
    }

    /// What access logs call it: a ServiceEntry's host, or `<namespace>/<name>`; `None`: outside the mesh.
    pub(crate) fn service(&self) -> Option<&Arc<str>> {
        self.host.as_ref().or(self.name.as_ref())
    }

    pub(crate) fn target(&self) -> &ResolvedTarget {
        &self.target
    }

    /// Why connections are refused, if the controller says so.
    pub(crate) fn block_reason(&self) -> Option<&Arc<str>> {
        match &self.target {
            ResolvedTarget::Blocked(reason) => Some(reason),
            ResolvedTarget::Unregistered(_)
            | ResolvedTarget::Proxied(_)
            | ResolvedTarget::Policies(_)
            | ResolvedTarget::Backend(_)
            | ResolvedTarget::Routes(_)
            | ResolvedTarget::ByHost(_) => None,
        }
    }

    /// Whether what a connection is for has to be looked up by its host: what it is for without one.
    pub(crate) fn told_apart_by_host(&self) -> Option<&Arc<Self>> {
        match &self.target {
            ResolvedTarget::ByHost(otherwise) => Some(otherwise),
            _ => None,
        }
    }

    /// The first endpoint to try of one of its backends.
    pub(crate) fn choose(&self, backend: &Arc<BalancedBackend>) -> Result<EndpointChoice, NoEndpoint> {
        EndpointChoice::first(backend, self.dialled.is_ipv4())
    }

    /// The first endpoint to try for a connection whose bytes are not parsed. With routes, it goes where the rule leads that
    /// applies to every request, by the weights of its backends: no other rule can be evaluated, and none of a rule's filters
    /// has a meaning for it. `server`: the name of the server that the client asks for.
    pub(crate) fn choose_for_connection(&self, server: Option<&str>) -> Result<EndpointChoice, NoEndpoint> {
        let routes = match &self.target {
            ResolvedTarget::Blocked(_) => return Err(NoEndpoint::Blocked),
            ResolvedTarget::Unregistered(_) | ResolvedTarget::Policies(_) => {
                return Err(NoEndpoint::Unregistered);
            }
            ResolvedTarget::Proxied(proxied) => return proxied.choose_for_connection(server),
            ResolvedTarget::Backend(backend) => return self.choose(backend),
            ResolvedTarget::ByHost(otherwise) => return otherwise.choose_for_connection(server),
            ResolvedTarget::Routes(routes) => routes,
        };
        let rule = routes.table().catch_all(server).filter(|found| found.rule.filters.is_empty());
        match rule.and_then(|found| routes.rule(found.index)).map(|rule| routes.draw(rule).1) {
            Some(DrawnShare::Backend(backend)) => self.choose(backend),
            Some(DrawnShare::Nothing | DrawnShare::Invalid(_)) | None => Err(NoEndpoint::NoRoute),
        }
    }

    /// What access logs call the forward proxies for connections to this server, if there are any.
    pub(crate) fn forward_proxy(&self, server: Option<&str>) -> Option<&Arc<str>> {
        match &self.target {
            ResolvedTarget::Proxied(proxied) => proxied.service(server),
            _ => None,
        }
    }

    /// Whether where a connection goes depends on the host that it names, whatever it carries.
    pub(crate) fn is_proxied(&self) -> bool {
        self.protocol == AppProtocol::Undeclared && matches!(self.target, ResolvedTarget::Proxied(_))
    }

    /// Whether where a connection goes depends on the server that the client asks for.
    pub(crate) fn needs_server_name(&self) -> bool {
        self.protocol == AppProtocol::Tcp
            && matches!(&self.target, ResolvedTarget::Routes(routes) if routes.table().has_hosts())
    }

    /// What the topologies of its backends mean to this workload.
    pub(crate) fn topologies(&self) -> Vec<TopologyView> {
        let is_ipv4 = self.dialled.is_ipv4();
        self.backends().iter().filter_map(|backend| backend.topology(is_ipv4)).collect()
    }

    /// The endpoints that connections may go to.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &BalancedEndpoint> {
        let is_ipv4 = self.dialled.is_ipv4();
        let all = self.backends().iter().flat_map(|backend| &backend.endpoints);
        all.filter(move |choice| choice.is_for(is_ipv4))
    }

    /// Why names of its backends' endpoints could not be looked up.
    pub(crate) fn lookup_failures(&self) -> impl Iterator<Item = &str> {
        self.backends().iter().filter_map(|backend| backend.lookup_failure().map(|reason| &**reason))
    }

    fn backends(&self) -> &[Arc<BalancedBackend>] {
        match &self.target {
            ResolvedTarget::Blocked(_) | ResolvedTarget::Unregistered(_) | ResolvedTarget::Policies(_) => &[],
            ResolvedTarget::ByHost(otherwise) => otherwise.backends(),
            ResolvedTarget::Proxied(proxied) => std::slice::from_ref(proxied.direct()),
            ResolvedTarget::Backend(backend) => std::slice::from_ref(backend),
            ResolvedTarget::Routes(routes) => routes.backends(),
        }
    }
}

#[cfg(test)]
mod tests;
