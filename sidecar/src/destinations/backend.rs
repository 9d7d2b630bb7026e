//! A backend as connections to it see it: its endpoints, and which of them the next connection or request goes to.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use tidegate_core::ObjectRef;
use tidegate_core::backend::{
    Backend, BackendProtocol, BackendRef, Endpoint, LimitedUsage, OriginalDestination, ProxiedAs, Topology,
    Transport, UsableEndpoints,
};
use tidegate_core::dns_name::{DnsName, DnsPattern};

use super::affinity::Affinity;
use super::caller::ClientWorkload;
use super::egress_proxies::TargetNames;
use super::endpoint::{EndpointState, LoadSlot, Moment, Peers};
use super::weights::EndpointWeights;
use crate::remotes::{EndpointRemote, RemoteId};

/// How many pairs are drawn before all endpoints are looked at.
const DRAWS: usize = 4;

/// How many endpoints are drawn by weight before weights no longer count.
const WEIGHTED_DRAWS: usize = 16;

/// The endpoints behind a name. All addresses and routes that lead to the backend share it.
#[derive(Debug)]
pub(crate) struct BalancedBackend {
    /// `<namespace>/<name>` of the object, of an EgressProxy behind its kind; `None`: outside the mesh.
    pub(crate) name: Option<Arc<str>>,
    /// A ServiceEntry's hosts.
    hosts: Box<[DnsPattern]>,
    /// What the endpoints speak.
    pub(crate) protocol: BackendProtocol,
    /// First those that this workload prefers.
    pub(crate) endpoints: Vec<BalancedEndpoint>,
    /// How many are preferred. The others get what is new only while none of these can be reached.
    preferred: usize,
    affinity: Option<Box<Affinity>>,
    weights: Option<Box<EndpointWeights>>,
    /// What this sidecar has open to it, if that is limited.
    usage: Option<Arc<LimitedUsage>>,
    /// Its endpoint is the address that was dialled.
    original_destination: Option<OriginalDestination>,
    /// Whether connections may go through forward proxies.
    proxied_as: Option<ProxiedAs>,
    /// Why a name of an endpoint could not be looked up.
    lookup_failure: Option<Arc<str>>,
    /// What it was made from, if its endpoints depend on where this workload runs.
    placed: Option<Box<Backend>>,
}

/// An endpoint.
#[derive(Debug)]
pub(crate) struct BalancedEndpoint {
    pub(crate) endpoint: Arc<Endpoint>,
    state: Arc<EndpointState>,
    peers: Peers,
    remote: EndpointRemote,
}

/// What a backend's topology means to this workload, for operators.
#[derive(Debug)]
pub(crate) struct TopologyView {
    /// The rule that says so.
    pub(crate) rule: &'static str,
    /// Endpoints that are used while none of the others can be reached.
    pub(crate) fallback: Vec<SocketAddr>,
    /// Endpoints that are not used.
    pub(crate) unused: Vec<SocketAddr>,
}

impl BalancedBackend {
    /// The endpoints of a backend that this workload uses; those that were there before keep their state.
    pub(super) fn new(backend: &Backend, caller: &ClientWorkload, before: Option<&Self>) -> Self {
        let UsableEndpoints { preferred, others } =
            backend.topology.usable(&backend.endpoints, caller.locality.as_ref());
        let count = preferred.len();
        let endpoints: Vec<_> = preferred.into_iter().chain(others).collect();
        let weights = EndpointWeights::new(backend, &endpoints);
        let known = before.into_iter().flat_map(|before| &before.endpoints);
        let known: HashMap<_, _> = known.map(|known| (known.endpoint.address, &known.state)).collect();
        let now = Moment::now();
        let state = |endpoint: &&Endpoint| match known.get(&endpoint.address) {
            Some(state) => Arc::clone(state),
            None if known.is_empty() => Arc::default(),
            None => Arc::new(EndpointState::added(now)),
        };
        let peers: Peers = endpoints.iter().map(state).collect();
        let name = name_of(&backend.name);
        let remote = |endpoint: &Endpoint| {
            if endpoint.via.is_some() {
                return EndpointRemote::proxied(&caller.remotes, &name);
            }
            let workload = backend.workloads.get(&endpoint.address);
            EndpointRemote::new(&caller.remotes, workload, &name, &*backend.name.object.kind == "Service")
        };
        let usage = LimitedUsage::new(&backend.limits, before.and_then(|before| before.usage.as_ref()));
        let balanced = |(endpoint, state): (&&Endpoint, &Arc<EndpointState>)| BalancedEndpoint {
            endpoint: Arc::new(Endpoint { usage: usage.clone(), ..Endpoint::clone(endpoint) }),
            state: state.clone(),
            peers: peers.clone(),
            remote: remote(endpoint),
        };
        let endpoints: Vec<_> = endpoints.iter().zip(&*peers).map(balanced).collect();
        let affinity = backend.affinity.map(|timeout| Box::new(Affinity::new(timeout, caller)));
        if let Some(affinity) = &affinity
            && let Some(before) = before
            && let Some(earlier) = &before.affinity
        {
            affinity.resume(earlier, |place| {
                let address = before.endpoints.get(place)?.endpoint.address;
                endpoints.iter().take(count).position(|choice| choice.endpoint.address == address)
            });
        }
        let is_placed = backend.topology != Topology::Any;
        Self {
            name: Some(name),
            hosts: backend.hosts.as_slice().into(),
            protocol: backend.protocol,
            endpoints,
            preferred: count,
            affinity,
            weights,
            usage,
            original_destination: backend.original_destination,
            proxied_as: backend.proxied_as,
            lookup_failure: None,
            placed: is_placed.then(|| Box::new(backend.clone())),
        }
    }

    /// The first endpoint is preferred to the others.
    pub(super) fn in_order(mut self) -> Self {
        self.preferred = self.preferred.min(1);
        self
    }

    /// The same backend for a workload that runs elsewhere; `None` if that makes no difference.
    pub(super) fn moved(&self, caller: &ClientWorkload) -> Option<Self> {
        self.placed.as_ref().map(|backend| Self::new(backend, caller, Some(self)))
    }

    /// A backend that has no endpoints.
    pub(crate) fn empty(name: &BackendRef) -> Self {
        Self { name: Some(name_of(name)), ..Self::without_rules(BackendProtocol::Tcp, Vec::new()) }
    }

    /// Outside the mesh: the address that was dialled. `usage`: what is open there, if that is limited.
    pub(crate) fn outside(dialled: SocketAddr, usage: Option<Arc<LimitedUsage>>) -> Self {
        Self::without_rules(BackendProtocol::Http, vec![BalancedEndpoint::alone(dialled, usage)])
    }

    /// The same backend for connections to an address, which may be its endpoint.
    pub(super) fn at(self: &Arc<Self>, dialled: SocketAddr) -> Arc<Self> {
        let Some(OriginalDestination { port }) = self.original_destination else { return self.clone() };
        let address = SocketAddr::new(dialled.ip(), port.unwrap_or(dialled.port()));
        let endpoints = vec![BalancedEndpoint::alone(address, self.usage.clone())];
        Arc::new(Self { name: self.name.clone(), ..Self::without_rules(self.protocol, endpoints) })
    }

    fn without_rules(protocol: BackendProtocol, endpoints: Vec<BalancedEndpoint>) -> Self {
        Self {
            name: None,
            hosts: Box::default(),
            protocol,
            preferred: endpoints.len(),
            endpoints,
            affinity: None,
            weights: None,
            usage: None,
            original_destination: None,
            proxied_as: None,
            lookup_failure: None,
            placed: None,
        }
    }

    /// What access logs call the backend for connections that name a host: the ServiceEntry's host that matches, or its first
    /// one.
    pub(super) fn called(&self, host: Option<&DnsName>) -> Option<Arc<str>> {
        let matching = host.and_then(|host| self.hosts.iter().find(|known| known.matches(host.as_str())));
        matching.or(self.hosts.first()).map(|host| host.to_string().into())
    }

    /// The names that forward proxies may get for connections which a host tells apart, or none; `None`: connections are direct.
    pub(super) fn target_names(&self, host: Option<&DnsName>) -> Option<TargetNames> {
        let is_opaque = self.protocol == BackendProtocol::Tcp;
        Some(match (self.proxied_as?, host, &*self.hosts) {
            (_, Some(host), _) => TargetNames::Only(host.as_str().into()),
            (ProxiedAs::Host, None, [DnsPattern::Exact(only)]) if is_opaque => {
                TargetNames::Only(only.as_str().into())
            }
            (ProxiedAs::Host, None, hosts) if !is_opaque => TargetNames::Hosts(hosts.into()),
            (ProxiedAs::Host | ProxiedAs::Address, None, _) => TargetNames::Address,
        })
    }

    /// The same, some of whose endpoints could not be looked up.
    pub(super) fn with_lookup_failure(self, lookup_failure: Option<Arc<str>>) -> Self {
        Self { lookup_failure, ..self }
    }

    /// Why a name of an endpoint could not be looked up, the newest time.
    pub(crate) fn lookup_failure(&self) -> Option<&Arc<str>> {
        self.lookup_failure.as_ref()
    }

    /// What this sidecar has open to it, if that is limited.
    pub(super) fn usage(&self) -> Option<&Arc<LimitedUsage>> {
        self.usage.as_ref()
    }

    /// Whether its topology leaves out endpoints of a family.
    pub(super) fn has_unused(&self, is_ipv4: bool) -> bool {
        let count = |addresses: &mut dyn Iterator<Item = SocketAddr>| {
            addresses.filter(|address| address.is_ipv4() == is_ipv4).count()
        };
        self.placed.as_ref().is_some_and(|backend| {
            let used = count(&mut self.endpoints.iter().map(|choice| choice.endpoint.address));
            count(&mut backend.endpoints.iter().map(|endpoint| endpoint.address)) > used
        })
    }

    /// What its topology means to connections to addresses of a family; `None` if it has none.
    pub(super) fn topology(&self, is_ipv4: bool) -> Option<TopologyView> {
        let backend = self.placed.as_ref()?;
        let rule = backend.topology.rule()?;
        let of_family = |addresses: Vec<SocketAddr>| {
            addresses.into_iter().filter(|address| address.is_ipv4() == is_ipv4).collect()
        };
        let used: Vec<_> = self.endpoints.iter().map(|choice| choice.endpoint.address).collect();
        let known: HashSet<_> = used.iter().collect();
        let all = backend.endpoints.iter().map(|endpoint| endpoint.address);
        let unused = all.filter(|address| !known.contains(address)).collect();
        let fallback = used.iter().skip(self.preferred).copied().collect();
        Some(TopologyView { rule, fallback: of_family(fallback), unused: of_family(unused) })
    }

    /// The next endpoint to try of those that are `wanted`, the preferred ones first. One that fails comes after all
    /// others.
    pub(super) fn choose(&self, wanted: impl Fn(&Endpoint) -> bool) -> Option<&BalancedEndpoint> {
        let now = Moment::now();
        let is_good = |choice: &&BalancedEndpoint| wanted(&choice.endpoint) && !choice.state.is_ejected(now);
        let chosen = match (&self.affinity, &self.weights) {
            (Some(affinity), _) => self.stay(affinity, is_good, now),
            (None, Some(weights)) => self.by_weight(weights, is_good, now),
            (None, None) => self.tiers().into_iter().find_map(|tier| balance(tier, is_good, now)),
        };
        chosen.or_else(|| {
            let left = self.endpoints.iter().filter(|choice| wanted(&choice.endpoint));
            left.min_by_key(|choice| choice.state.ejected_until())
        })
    }

    /// The next endpoint by weight. While those with most of the weight are not good, the others are balanced.
    fn by_weight(
        &self,
        weights: &EndpointWeights,
        is_good: impl Fn(&&BalancedEndpoint) -> bool,
        now: Moment,
    ) -> Option<&BalancedEndpoint> {
        let mut drawn = (0..WEIGHTED_DRAWS).filter_map(|_| self.endpoints.get(weights.next()?));
        drawn.find(&is_good).or_else(|| balance(&self.endpoints, is_good, now))
    }

    /// The endpoint that the client keeps, or a new one for it to keep.
    fn stay(
        &self,
        affinity: &Affinity,
        is_good: impl Fn(&&BalancedEndpoint) -> bool,
        now: Moment,
    ) -> Option<&BalancedEndpoint> {
        let kept = |is_ipv4| {
            let place = affinity.kept(is_ipv4, now)?;
            Some((place, self.endpoints.get(place)?))
        };
        let good = |(place, choice): (usize, _)| is_good(&choice).then_some((place, choice));
        let (place, choice) =
            [true, false].into_iter().find_map(|is_ipv4| kept(is_ipv4).and_then(good)).or_else(|| {
                let best = |places: Range<usize>| {
                    let choices = places.filter_map(|place| Some((place, self.endpoints.get(place)?)));
                    choices.filter_map(good).max_by_key(|(_, choice)| affinity.rank(choice.endpoint.address))
                };
                best(0..self.preferred).or_else(|| best(self.preferred..self.endpoints.len()))
            })?;
        let is_ipv4 = choice.endpoint.address.is_ipv4();
        // One that was only tried for this connection or request stays the client's.
        let is_kept =
            |(other, kept): (usize, &BalancedEndpoint)| other != place && !kept.state.is_ejected(now);
        if !kept(is_ipv4).is_some_and(is_kept) {
            affinity.keep(is_ipv4, place, now);
        }
        Some(choice)
    }

    /// The endpoints that are preferred, and the others.
    fn tiers(&self) -> [&[BalancedEndpoint]; 2] {
        self.endpoints.split_at_checked(self.preferred).map_or([&self.endpoints, &[]], <[_; 2]>::from)
    }
}

/// Of two endpoints that are drawn, the one that is expected to respond first (power of two choices).
fn balance(
    endpoints: &[BalancedEndpoint],
    is_good: impl Fn(&&BalancedEndpoint) -> bool,
    now: Moment,
) -> Option<&BalancedEndpoint> {
    for _ in 0..DRAWS {
        let (first, second) = draw_two(endpoints)?;
        let choices = [first, second].into_iter().filter(&is_good);
        if let Some(choice) = cheapest(choices, now) {
            return Some(choice);
        }
    }
    cheapest(endpoints.iter().filter(is_good), now)
}

/// Two different endpoints, or the only one twice.
fn draw_two(endpoints: &[BalancedEndpoint]) -> Option<(&BalancedEndpoint, &BalancedEndpoint)> {
    let first = random_below(endpoints.len())?;
    let step = random_below(endpoints.len() - 1).map_or(0, |step| step + 1);
    let second = (first + step) % endpoints.len();
    endpoints.get(first).zip(endpoints.get(second))
}

fn cheapest<'b>(
    choices: impl Iterator<Item = &'b BalancedEndpoint>,
    now: Moment,
) -> Option<&'b BalancedEndpoint> {
    choices
        .map(|choice| (choice.state.cost(now), choice))
        .min_by(|(first, _), (second, _)| first.total_cmp(second))
        .map(|(_, choice)| choice)
}

/// Whether an endpoint is for clients that dial an address of a family. A client that dials IPv4 may have no way to IPv6 and
/// the other way round: each family of a dual-stack Service leads to its own endpoints, as with kube-proxy. A forward proxy has
/// addresses of its own.
pub(super) fn is_of_family(endpoint: &Endpoint, is_ipv4: bool) -> bool {
    endpoint.via.is_some() || endpoint.address.is_ipv4() == is_ipv4
}

impl BalancedEndpoint {
    /// The only endpoint of its backend.
    fn alone(address: SocketAddr, usage: Option<Arc<LimitedUsage>>) -> Self {
        let endpoint = Arc::new(Endpoint { usage, ..Endpoint::new(address, Transport::Plain) });
        let state = Arc::<EndpointState>::default();
        let peers = Arc::from([state.clone()]);
        Self { endpoint, state, peers, remote: EndpointRemote::outside() }
    }

    /// Whether it is for clients that dial an address of this family.
    pub(super) fn is_for(&self, is_ipv4: bool) -> bool {
        is_of_family(&self.endpoint, is_ipv4)
    }

    /// Connections and requests that are open.
    pub(crate) fn open(&self) -> usize {
        self.state.open()
    }

    /// The workload there.
    pub(super) fn remote(&self) -> RemoteId {
        self.remote.id(&self.endpoint)
    }

    /// Counts one more connection or request for as long as what is returned lives. It takes the result.
    pub(crate) fn hold(&self) -> LoadSlot {
        LoadSlot::new(&self.state, &self.peers)
    }
}

fn name_of(backend: &BackendRef) -> Arc<str> {
    let ObjectRef { kind, namespace, name } = &backend.object;
    match &**kind {
        "EgressProxy" => format!("{kind}/{namespace}/{name}").into(),
        _ => format!("{namespace}/{name}").into(),
    }
}

fn random_below(count: usize) -> Option<usize> {
    rand::random::<u32>().try_into().ok().and_then(|number: usize| number.checked_rem(count))
}

#[cfg(test)]
mod tests;
