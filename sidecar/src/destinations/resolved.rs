//! A destination as connections to it see it: the backends that it leads to, and which endpoint comes next.

use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::backend::{BackendRef, Endpoint};
use tidegate_core::policy::AppProtocol;
use tidegate_core::route::{Action, BackendTarget, RequestView, RouteTable, WeightedBackend};

use super::backend::{BalancedBackend, BalancedEndpoint, TopologyView, random_below};

/// Where connections to an address go.
#[derive(Debug)]
pub(crate) struct ResolvedDestination {
    dialled: SocketAddr,
    /// Backends with their shares of the connections.
    backends: Vec<(u32, Arc<BalancedBackend>)>,
    /// What connections carry.
    protocol: AppProtocol,
    /// Why connections are refused.
    blocked: Option<Arc<str>>,
}

impl ResolvedDestination {
    /// Outside the mesh, as far as is known.
    pub(crate) fn outside(dialled: SocketAddr) -> Self {
        Self::to(dialled, vec![(1, Arc::new(BalancedBackend::outside(dialled)))])
    }

    /// Connections are refused.
    pub(crate) fn blocked(dialled: SocketAddr, reason: Arc<str>) -> Self {
        Self { blocked: Some(reason), ..Self::to(dialled, Vec::new()) }
    }

    /// Connections go to these backends, each with its weight, as opaque bytes.
    pub(crate) fn to(dialled: SocketAddr, backends: Vec<(u32, Arc<BalancedBackend>)>) -> Self {
        Self { dialled, backends, protocol: AppProtocol::Tcp, blocked: None }
    }

    /// Connections carry this protocol.
    pub(crate) fn carrying(self, protocol: AppProtocol) -> Self {
        Self { protocol, ..self }
    }

    /// What connections carry.
    pub(crate) fn protocol(&self) -> AppProtocol {
        self.protocol
    }

    /// `<namespace>/<name>` of the Service or Pod, of several the first; `None`: outside the mesh.
    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        self.backends.first().and_then(|(_, backend)| backend.name.as_ref())
    }

    /// Why connections are refused, if the controller says so.
    pub(crate) fn block_reason(&self) -> Option<&Arc<str>> {
        self.blocked.as_ref()
    }

    /// What the topologies of its backends mean to this workload.
    pub(crate) fn topologies(&self) -> Vec<TopologyView> {
        let is_ipv4 = self.dialled.is_ipv4();
        self.backends.iter().filter_map(|(_, backend)| backend.topology(is_ipv4)).collect()
    }

    /// Why there is no endpoint to try, for the access log.
    pub(crate) fn no_endpoint_details(&self) -> &'static str {
        if self.blocked.is_some() {
            "destination_blocked"
        } else if self.backends.iter().any(|(_, backend)| backend.has_unused(self.dialled.is_ipv4())) {
            "no_local_endpoint"
        } else {
            "no_healthy_upstream"
        }
    }

    /// The endpoints that connections may go to.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &BalancedEndpoint> {
        let all = self.backends.iter().flat_map(|(_, backend)| &backend.endpoints);
        all.filter(|choice| self.is_of_family(&choice.endpoint))
    }

    /// The next endpoint to try, of a backend that is drawn by its weight. One that was tried is out.
    pub(super) fn choose(&self, tried: &[SocketAddr]) -> Option<(&BalancedBackend, &BalancedEndpoint)> {
        let backend = match self.backends.as_slice() {
            [(_, only)] => only,
            several => drawn(several)?,
        };
        let is_wanted =
            |endpoint: &Endpoint| self.is_of_family(endpoint) && !tried.contains(&endpoint.address);
        Some((backend, backend.choose(is_wanted)?))
    }

    /// A client that dials IPv4 may have no way to IPv6 and the other way round: each family of a dual-stack Service leads
    /// to its own endpoints, as with kube-proxy. A forward proxy has addresses of its own.
    fn is_of_family(&self, endpoint: &Endpoint) -> bool {
        endpoint.via.is_some() || endpoint.address.is_ipv4() == self.dialled.is_ipv4()
    }
}

/// A backend at random, by weight.
fn drawn(backends: &[(u32, Arc<BalancedBackend>)]) -> Option<&Arc<BalancedBackend>> {
    let sum = backends.iter().map(|(weight, _)| usize::try_from(*weight).unwrap_or_default()).sum();
    let mut number = random_below(sum)?;
    let mut backends = backends.iter();
    loop {
        let (weight, backend) = backends.next()?;
        match number.checked_sub(usize::try_from(*weight).unwrap_or_default()) {
            Some(rest) => number = rest,
            None => return Some(backend),
        }
    }
}

/// The shares of connections whose bytes are not parsed: those of the rule that matches everything. `None` in a share
/// for what is not a backend.
pub(super) fn opaque_shares<'t>(table: &'t RouteTable) -> Vec<(u32, Option<&'t BackendRef>)> {
    let Some(selected) = table.select(&OpaqueConnection) else { return Vec::new() };
    let Action::Forward(shares) = &selected.rule.action else { return Vec::new() };
    let backend = |share: &'t WeightedBackend| match &share.target {
        BackendTarget::Backend(backend) => Some(backend),
        BackendTarget::App | BackendTarget::Invalid(_) => None,
    };
    shares.iter().map(|share| (share.weight, backend(share))).collect()
}

/// What rules see of a connection that carries no requests.
struct OpaqueConnection;

impl RequestView for OpaqueConnection {
    fn method(&self) -> &[u8] {
        b""
    }

    fn authority(&self) -> &[u8] {
        b""
    }

    fn path(&self) -> &[u8] {
        b""
    }

    fn query(&self) -> Option<&[u8]> {
        None
    }

    fn field<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> {
        iter::empty()
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::ObjectRef;
    use tidegate_core::backend::{Backend, BackendProtocol, Transport};

    use super::super::caller::Caller;
    use super::*;

    fn backend(addresses: &[&str]) -> Arc<BalancedBackend> {
        let endpoint = |text: &&str| Endpoint::new(text.parse().unwrap(), Transport::Plain);
        let name = BackendRef { object: ObjectRef::new("Service", "a", "b"), port: 80 };
        let backend = Backend::new(name, BackendProtocol::Tcp, addresses.iter().map(endpoint).collect());
        Arc::new(BalancedBackend::new(&backend, &Caller::default(), None))
    }

    fn dialled() -> SocketAddr {
        "10.96.0.1:80".parse().unwrap()
    }

    #[test]
    fn each_family_of_an_address_leads_to_its_own_endpoints() {
        let backend = backend(&["10.0.0.1:80", "[fd00::1]:80"]);
        for (dialled, endpoint) in [("10.96.0.1:80", "10.0.0.1:80"), ("[fd00:96::1]:80", "[fd00::1]:80")] {
            let target = ResolvedDestination::to(dialled.parse().unwrap(), vec![(1, backend.clone())]);
            for _ in 0..20 {
                assert_eq!(target.choose(&[]).unwrap().1.endpoint.address.to_string(), endpoint);
            }
            assert_eq!(target.endpoints().count(), 1);
            assert!(target.choose(&[endpoint.parse().unwrap()]).is_none());
        }
    }

    #[test]
    fn backends_are_drawn_by_their_weights_and_those_without_weight_never() {
        let [a, b, c] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"].map(|address| backend(&[address]));
        let target = ResolvedDestination::to(dialled(), vec![(0, a), (90, b), (10, c)]);
        let chosen = || target.choose(&[]).unwrap().1.endpoint.address.to_string();
        let count = (0..2000).filter(|_| chosen() == "10.0.0.2:80").count();
        assert!((1700..=1900).contains(&count), "{count}");
        assert!((0..200).all(|_| chosen() != "10.0.0.1:80"));
        let none =
            ResolvedDestination::to(dialled(), vec![(0, backend(&["10.0.0.1:80"])), (0, backend(&[]))]);
        assert!(none.choose(&[]).is_none());
    }

    #[test]
    fn a_blocked_destination_has_no_endpoints_and_a_reason() {
        let blocked = ResolvedDestination::blocked(dialled(), "no policy".into());
        assert!(blocked.choose(&[]).is_none() && blocked.name().is_none());
        assert_eq!(blocked.block_reason().map(|reason| &**reason), Some("no policy"));
    }
}
