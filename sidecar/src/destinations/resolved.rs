//! A destination as connections to it see it: where they go, or the requests in them.

use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::policy::AppProtocol;

use super::attempt_limits::AttemptLimits;
use super::backend::{BalancedBackend, BalancedEndpoint, TopologyView};
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
    /// All go to this backend.
    Backend(Arc<BalancedBackend>),
    /// The rule that applies to a request.
    Routes(ResolvedRoutes),
    /// What is known of the host that a connection or request is for; of one that names none, this.
    ByHost(Arc<ResolvedDestination>),
}

impl ResolvedDestination {
    /// Outside the mesh, as far as is known.
    pub(crate) fn outside(dialled: SocketAddr) -> Self {
        Self::to(dialled, Arc::new(BalancedBackend::outside(dialled)))
    }

    /// The same, where no object has the address.
    pub(crate) fn unknown(dialled: SocketAddr) -> Self {
        Self { owner: AddressOwner::Unregistered, ..Self::outside(dialled) }
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

    /// Connections go to this backend, as opaque bytes.
    pub(crate) fn to(dialled: SocketAddr, backend: Arc<BalancedBackend>) -> Self {
        Self::with(dialled, backend.name.clone(), ResolvedTarget::Backend(backend))
    }

    /// Hosts tell connections apart.
    pub(super) fn by_host(dialled: SocketAddr, otherwise: Self) -> Self {
        let target = ResolvedTarget::ByHost(Arc::new(otherwise));
        Self { protocol: AppProtocol::Undeclared, ..Self::with(dialled, None, target) }
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
        let owner = self.name.clone().map_or(AddressOwner::Cluster, AddressOwner::Entry);
        Self { owner, ..self }
    }

    /// Access logs call it by this host.
    pub(super) fn called(self, host: Option<Arc<str>>) -> Self {
        Self { host, ..self }
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
            ResolvedTarget::Unregistered(_) => return Err(NoEndpoint::Unregistered),
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
            ResolvedTarget::Blocked(_) | ResolvedTarget::Unregistered(_) => &[],
            ResolvedTarget::ByHost(otherwise) => otherwise.backends(),
            ResolvedTarget::Backend(backend) => std::slice::from_ref(backend),
            ResolvedTarget::Routes(routes) => routes.backends(),
        }
    }
}

#[cfg(test)]
mod tests;
