//! Destinations, backends and routes: what sidecars subscribe to.
//!
//! A value is made when the first stream follows it, and again when a change affects it; it is withdrawn when the last
//! one leaves.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use tidegate_core::backend::{Backend, BackendProtocol, BackendRef};
use tidegate_core::destination::{DestinationKey, DestinationTarget};
use tidegate_core::route::{Action, DirectResponse, Route, RouteRule, RoutesName};
use tidegate_core::{Destination, ObjectRef, TrustDomain};
use tidegate_proto::ResourceName;
use tidegate_runtime::logging::LogThrottle;
use tracing::warn;

use super::shares::{self, NamespaceShares};
use super::store::{Follower, Published, Store};
use crate::compile::destination::{Resolved, Resolver};
use crate::compile::route_features::Features;
use crate::compile::routes_key::{self, RoutesKey};
use crate::compile::service_entry::EntriesAt;
use crate::compile::service_routes::PortRoutes;
use crate::index::{Affected, Index};
use crate::metrics::NamespaceGauge;
use crate::object::{Kind, ObjectName};

/// Bytes of what is noted of a Pod on which a value rests.
const PODS: usize = 256;

/// Every destination, backend and set of routes that a stream follows.
pub(crate) struct OnDemand {
    store: Arc<Store>,
    index: Arc<RwLock<Index>>,
    trust_domain: TrustDomain,
    is_workload: fn(&Pod) -> bool,
    features: Features,
    made: Mutex<Made>,
    /// Shared by all addresses outside the mesh that an object has.
    passthrough: Arc<Published>,
    /// Shared by all others outside the mesh, invented ones included.
    unknown: Arc<Published>,
    /// Shared by all whose connections are told apart by host, and lead nowhere known without one.
    by_host: Arc<Published>,
    /// Shared by those of Pods to which no Service leads.
    in_cluster: Arc<Published>,
    complaints: LogThrottle<Arc<str>>,
}

/// One stream's subscriptions. Dropping it ends them.
pub(crate) struct Subscriber {
    resources: Arc<OnDemand>,
    /// The namespace of the workload, whose own routes it gets.
    namespace: Arc<str>,
    follower: Follower,
    /// By the names that the controller keeps ([`routes_key`]).
    wanted: BTreeSet<Arc<ResourceName>>,
}

struct Made {
    by_name: BTreeMap<Arc<ResourceName>, Basis>,
    /// What the values of each namespace take. Beyond it a destination is blocked, and a backend has no endpoints.
    shares: NamespaceShares<Arc<ResourceName>>,
    /// By the Pods on which they rest.
    by_pod: BTreeMap<ObjectName, BTreeSet<Arc<ResourceName>>>,
}

/// What a value rests on.
#[derive(Default)]
struct Basis {
    pods: BTreeSet<ObjectName>,
    /// Of the objects that it is made from, whose shares it takes.
    namespaces: BTreeSet<Arc<str>>,
}

/// A value within the share of its namespace; none if the resource does not exist.
struct ResolvedValue {
    value: Option<Arc<Published>>,
    basis: Basis,
}

impl OnDemand {
    pub(crate) fn new(
        store: Arc<Store>,
        index: Arc<RwLock<Index>>,
        trust_domain: TrustDomain,
        is_workload: fn(&Pod) -> bool,
        left_out: NamespaceGauge,
    ) -> Self {
        let made = Made {
            by_name: BTreeMap::new(),
            shares: NamespaceShares::new(shares::SHARE, left_out),
            by_pod: BTreeMap::new(),
        };
        let by_host = Destination::ByHost(Box::new(Destination::Unknown));
        let outside = [Destination::Passthrough, Destination::Unknown, Destination::InCluster, by_host];
        let [passthrough, unknown, in_cluster, by_host] =
            outside.map(|outside| Arc::new(Published::destination(&outside)));
        let (made, complaints) = (Mutex::new(made), LogThrottle::default());
        let features = Features::EXECUTED;
        Self {
            store,
            index,
            trust_domain,
            is_workload,
            features,
            made,
            passthrough,
            unknown,
            by_host,
            in_cluster,
            complaints,
        }
    }

    /// The same for sidecars that carry out these features of routes.
    #[cfg(test)]
    pub(crate) fn with_features(self, features: Features) -> Self {
        Self { features, ..self }
    }

    /// A subscriber without subscriptions, for a workload of this namespace.
    pub(crate) fn subscriber(self: &Arc<Self>, namespace: &str) -> Subscriber {
        let (resources, follower) = (self.clone(), self.store.follower());
        Subscriber { resources, namespace: namespace.into(), follower, wanted: BTreeSet::new() }
    }

    /// Makes what is affected again and notifies its followers.
    pub(crate) fn update(&self, index: &Index, affected: &Affected) {
        let resolver = self.resolver(index);
        let names = self.lock().affected(affected);
        for name in names {
            self.update_one(&resolver, &name);
        }
        let again = self.lock().shares.take_new_room();
        for (_, name) in again {
            self.update_one(&resolver, &name);
        }
    }

    fn update_one(&self, resolver: &Resolver<'_>, name: &Arc<ResourceName>) {
        // Without the lock, so that sidecars that subscribe meanwhile do not wait for all of it.
        let resolution = self.resolve(resolver, name);
        let mut made = self.lock();
        if made.by_name.contains_key(name) {
            made.replace(name, resolution.basis);
            self.set(name, resolution.value);
        } else {
            // The last follower left meanwhile.
            made.give_back(name, resolution.basis.namespaces.iter());
        }
    }

    fn set(&self, name: &ResourceName, value: Option<Arc<Published>>) {
        match value {
            Some(value) => drop(self.store.publish(name, value)),
            None => self.store.withdraw(name),
        }
    }

    /// Makes a value. Takes the lock for moments only.
    fn resolve(&self, resolver: &Resolver<'_>, name: &Arc<ResourceName>) -> ResolvedValue {
        match &**name {
            ResourceName::Destination(key) => self.resolve_destination(resolver, name, key),
            ResourceName::Backend(backend) => self.resolve_backend(resolver, name, backend),
            ResourceName::Routes(routes) => self.resolve_routes(resolver, name, routes),
            // These are not made on demand.
            ResourceName::Listener { .. } => ResolvedValue::none(BTreeSet::new()),
        }
    }

    /// What an address, or a host at it, is for all clients and for those of namespaces to which ServiceEntries make it something
    /// else.
    fn resolve_destination(
        &self,
        resolver: &Resolver<'_>,
        name: &Arc<ResourceName>,
        key: &DestinationKey,
    ) -> ResolvedValue {
        let (address, entries) = (key.address, resolver.entries(key));
        let mut all = self.destination_for(resolver, name, address, &entries, None);
        let mut variants = Vec::new();
        for client in entries.clients() {
            let own = self.destination_for(resolver, name, address, &entries, Some(&client));
            if own.version() != all.version() {
                all.basis.pods.extend(own.basis.pods);
                all.basis.namespaces.extend(own.basis.namespaces);
                variants.extend(own.value.map(|value| (client, value)));
            }
        }
        if let Some(value) = all.value.as_mut().filter(|_| !variants.is_empty()) {
            *value = Arc::new(value.with_variants(variants));
        }
        all
    }

    /// What an address is for the clients of a namespace; `None`: of one that no ServiceEntry names.
    fn destination_for(
        &self,
        resolver: &Resolver<'_>,
        name: &Arc<ResourceName>,
        address: SocketAddr,
        entries: &EntriesAt<'_>,
        client: Option<&str>,
    ) -> ResolvedValue {
        let blocked = |reason: String| Published::destination(&Destination::Blocked(reason.into()));
        let owner = resolver.owner(address.ip());
        if let Some(owner) = owner
            && let Some(reason) = self.is_used_up(&owner.namespace, name)
        {
            return ResolvedValue::left_out(blocked(reason), &owner.namespace);
        }
        let Resolved { value, pods } = resolver.destination(address, entries, client);
        let backend = |backend: &BackendRef| {
            ObjectName::new(backend.object.namespace.clone(), backend.object.name.clone())
        };
        let leaf = match &value {
            Destination::ByHost(otherwise) if **otherwise == Destination::Unknown => {
                return ResolvedValue::shared(&self.by_host, pods);
            }
            Destination::ByHost(otherwise) => otherwise,
            other => other,
        };
        let owner = match leaf {
            Destination::Unknown => return ResolvedValue::shared(&self.unknown, pods),
            Destination::InCluster if value == Destination::InCluster => {
                return ResolvedValue::shared(&self.in_cluster, pods);
            }
            Destination::Passthrough => return ResolvedValue::shared(&self.passthrough, pods),
            Destination::Routed { target: DestinationTarget::Backend(name), .. } => Some(backend(name)),
            Destination::Routed { .. }
            | Destination::InCluster
            | Destination::Blocked(_)
            | Destination::ByHost(_) => owner.cloned(),
        };
        let published = Published::destination(&value);
        let Some(owner) = owner else { return ResolvedValue::shared(&Arc::new(published), pods) };
        match self.admit(&owner, name, &published, &pods) {
            Ok(()) => ResolvedValue::of(published, pods, &owner.namespace),
            Err(reason) => ResolvedValue::left_out(blocked(reason), &owner.namespace),
        }
    }

    fn resolve_backend(
        &self,
        resolver: &Resolver<'_>,
        name: &Arc<ResourceName>,
        backend: &BackendRef,
    ) -> ResolvedValue {
        let ObjectRef { namespace, name: object, .. } = &backend.object;
        let empty = || Published::backend(&Backend::new(backend.clone(), BackendProtocol::Tcp, Vec::new()));
        let Resolved { value, pods } = match self.is_used_up(namespace, name) {
            Some(_) => return ResolvedValue::left_out(empty(), namespace),
            None => resolver.backend(backend),
        };
        let Some(value) = value else { return ResolvedValue::none(pods) };
        let published = Published::backend(&value);
        let owner = ObjectName::new(namespace.clone(), object.clone());
        match self.admit(&owner, name, &published, &pods) {
            Ok(()) => ResolvedValue::of(published, pods, namespace),
            Err(_) => ResolvedValue::left_out(empty(), namespace),
        }
    }

    /// The routes that clients of one namespace get. Most namespaces get the same ones, which are kept once and counted once.
    fn resolve_routes(
        &self,
        resolver: &Resolver<'_>,
        name: &Arc<ResourceName>,
        routes: &RoutesName,
    ) -> ResolvedValue {
        let Some((RoutesKey { service, port }, caller)) = RoutesKey::parse(routes) else {
            return ResolvedValue::none(BTreeSet::new());
        };
        let Some(PortRoutes { routes, namespace }) = resolver.routes(&service, port, caller) else {
            return ResolvedValue::none(BTreeSet::new());
        };
        let left_out = |reason: &str| {
            let response = DirectResponse { status: 503, reason: reason.into() };
            let rules = vec![RouteRule::new(Action::Respond(response))];
            let route = Route { origin: service.to_ref(Kind::Service), created: 0, hosts: Vec::new(), rules };
            ResolvedValue::left_out(Published::routes(&[route]), &namespace)
        };
        if let Some(reason) = self.is_used_up(&namespace, name) {
            return left_out(&reason);
        }
        let published = Published::routes(&routes);
        if let Some(shared) = self.kept_for_others(&service, name, &published) {
            return ResolvedValue { value: Some(shared), basis: Basis::default() };
        }
        match self.admit(
            &ObjectName::new(namespace.clone(), &*service.name),
            name,
            &published,
            &BTreeSet::new(),
        ) {
            Ok(()) => ResolvedValue::of(published, BTreeSet::new(), &namespace),
            Err(reason) => left_out(&reason),
        }
    }

    /// The same routes, if clients of another namespace have them.
    fn kept_for_others(
        &self,
        service: &ObjectName,
        name: &Arc<ResourceName>,
        published: &Published,
    ) -> Option<Arc<Published>> {
        let names = self.lock().routes_of(service);
        let others = names.iter().filter(|other| *other != name);
        let mut values = others.filter_map(|other| self.store.value(other));
        values.find(|value| value.version == published.version)
    }

    /// Why a value is not made at all.
    fn is_used_up(&self, namespace: &Arc<str>, name: &Arc<ResourceName>) -> Option<String> {
        let mut made = self.lock();
        made.shares.is_used_up(namespace, name).then(|| made.shares.reason("destinations"))
    }

    /// Counts a value to its namespace's share, unless it does not fit: the reason.
    fn admit(
        &self,
        owner: &ObjectName,
        name: &Arc<ResourceName>,
        published: &Published,
        pods: &BTreeSet<ObjectName>,
    ) -> Result<(), String> {
        let bytes = published.held_bytes() + PODS * pods.len();
        let mut made = self.lock();
        if made.shares.admit(&owner.namespace, name, bytes) {
            return Ok(());
        }
        let reason = made.shares.reason("destinations");
        if self.complaints.admits(&owner.namespace, Instant::now()) {
            warn!(destination = %owner, %reason, "sidecars get it without endpoints");
        }
        Err(reason)
    }

    /// Follows a resource. It is made unless another stream follows it already.
    fn follow(&self, name: &Arc<ResourceName>, follower: &Follower) {
        // The index before the values, as everywhere.
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        {
            let made = self.lock();
            if made.by_name.contains_key(name) {
                return self.store.follow(name, follower);
            }
        }
        let resolution = self.resolve(&self.resolver(&index), name);
        let mut made = self.lock();
        self.store.follow(name, follower);
        // Another stream may have been faster: it has made the same.
        if !made.by_name.contains_key(name) {
            made.insert(name, resolution.basis);
            self.set(name, resolution.value);
        }
    }

    fn leave(&self, name: &Arc<ResourceName>, follower: &Follower) {
        let mut made = self.lock();
        if self.store.leave(name, follower) {
            made.remove(name);
            self.store.withdraw(name);
        }
    }

    /// How many resources are followed.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().by_name.len()
    }

    fn resolver<'i>(&'i self, index: &'i Index) -> Resolver<'i> {
        Resolver {
            index,
            trust_domain: &self.trust_domain,
            is_workload: self.is_workload,
            features: self.features,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand").field("count", &self.lock().by_name.len()).finish_non_exhaustive()
    }
}

impl Made {
    fn affected(&self, affected: &Affected) -> BTreeSet<Arc<ResourceName>> {
        if affected.all {
            return self.by_name.keys().cloned().collect();
        }
        let between = |first: ResourceName, last: ResourceName| {
            self.by_name
                .range::<ResourceName, _>(&first..=&last)
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>()
        };
        let mut names: BTreeSet<Arc<ResourceName>> = BTreeSet::new();
        let addresses = affected.addresses.iter().map(|ip| (*ip, *ip));
        let ranges = affected.ranges.iter().map(|range| (range.network(), range.broadcast()));
        for (first, last) in addresses.chain(ranges) {
            let first = ResourceName::Destination(SocketAddr::new(first, 0).into());
            let is_in = |name: &ResourceName| matches!(name, ResourceName::Destination(key) if key.address.ip() <= last);
            let from_there = self.by_name.range::<ResourceName, _>(&first..).map(|(name, _)| name);
            names.extend(from_there.take_while(|name| is_in(name)).cloned());
        }
        let services = affected.services.iter().map(|service| service.to_ref(Kind::Service));
        let entries = affected.entries.iter().map(|entry| entry.to_ref(Kind::ServiceEntry));
        for object in services.chain(entries) {
            let at = |port| ResourceName::Backend(BackendRef { object: object.clone(), port });
            names.extend(between(at(0), at(u16::MAX)));
        }
        for service in &affected.routed {
            names.extend(self.routes_of(service));
        }
        for pod in &affected.pods {
            names.extend(self.by_pod.get(pod).into_iter().flatten().cloned());
        }
        names
    }

    /// The routes of all ports of a Service, for the clients of each namespace.
    fn routes_of(&self, service: &ObjectName) -> Vec<Arc<ResourceName>> {
        let Some((first, last)) = RoutesKey::range(service) else { return Vec::new() };
        let range = ResourceName::Routes(first)..ResourceName::Routes(last);
        self.by_name
            .range::<ResourceName, _>(&range.start..&range.end)
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn insert(&mut self, name: &Arc<ResourceName>, basis: Basis) {
        self.rests_on(name, &basis.pods);
        self.by_name.insert(name.clone(), basis);
    }

    fn replace(&mut self, name: &Arc<ResourceName>, basis: Basis) {
        let before = self.by_name.insert(name.clone(), Basis::default()).unwrap_or_default();
        self.give_back(name, before.namespaces.difference(&basis.namespaces));
        self.rests_no_more(name, before.pods.difference(&basis.pods));
        self.insert(name, basis);
    }

    fn remove(&mut self, name: &Arc<ResourceName>) {
        if let Some(basis) = self.by_name.remove(name) {
            self.rests_no_more(name, basis.pods.iter());
            self.give_back(name, basis.namespaces.iter());
        }
    }

    fn give_back<'n>(&mut self, name: &Arc<ResourceName>, namespaces: impl Iterator<Item = &'n Arc<str>>) {
        for namespace in namespaces {
            self.shares.release(namespace, name);
        }
    }

    fn rests_on(&mut self, name: &Arc<ResourceName>, pods: &BTreeSet<ObjectName>) {
        for pod in pods {
            self.by_pod.entry(pod.clone()).or_default().insert(name.clone());
        }
    }

    fn rests_no_more<'p>(&mut self, name: &Arc<ResourceName>, pods: impl Iterator<Item = &'p ObjectName>) {
        for pod in pods {
            if let Some(names) = self.by_pod.get_mut(pod) {
                names.remove(name);
                if names.is_empty() {
                    self.by_pod.remove(pod);
                }
            }
        }
    }
}

impl ResolvedValue {
    fn of(value: Published, pods: BTreeSet<ObjectName>, namespace: &Arc<str>) -> Self {
        let namespaces = [namespace.clone()].into();
        Self { value: Some(Arc::new(value)), basis: Basis { pods, namespaces } }
    }

    /// A value that takes the share of no namespace.
    fn shared(value: &Arc<Published>, pods: BTreeSet<ObjectName>) -> Self {
        Self { value: Some(value.clone()), basis: Basis { pods, namespaces: BTreeSet::new() } }
    }

    fn version(&self) -> Option<&Arc<str>> {
        self.value.as_ref().map(|value| &value.version)
    }

    /// For want of room. A connection is refused, and never passed on as if there were no mesh.
    fn left_out(value: Published, namespace: &Arc<str>) -> Self {
        Self::of(value, BTreeSet::new(), namespace)
    }

    fn none(pods: BTreeSet<ObjectName>) -> Self {
        Self { value: None, basis: Basis { pods, namespaces: BTreeSet::new() } }
    }
}

impl Subscriber {
    /// How many resources it is subscribed to.
    pub(crate) fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether it is subscribed to this resource.
    pub(crate) fn wants(&self, name: &ResourceName) -> bool {
        self.kept(name).is_some_and(|kept| self.wanted.contains(&*kept))
    }

    /// Subscribes to a resource, which counts as changed.
    pub(crate) fn subscribe(&mut self, name: Arc<ResourceName>) {
        let Some(name) = self.kept(&name).map(|kept| Arc::new(kept.into_owned())) else { return };
        if self.wanted.contains(&name) {
            return self.follower.put(&name);
        }
        match *name {
            ResourceName::Listener { .. } => self.resources.store.follow(&name, &self.follower),
            _ => self.resources.follow(&name, &self.follower),
        }
        self.wanted.insert(name);
    }

    /// Ends a subscription. Returns whether there was one.
    pub(crate) fn unsubscribe(&mut self, name: &ResourceName) -> bool {
        let Some(name) = self.kept(name).and_then(|kept| self.wanted.take(&*kept)) else { return false };
        self.leave(&name);
        true
    }

    /// Ends up to `most` subscriptions. Returns whether there are more.
    pub(crate) fn leave_some(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(name) = self.wanted.pop_first() else { return false };
            self.leave(&name);
        }
        !self.wanted.is_empty()
    }

    /// Waits until something has changed since the last call.
    pub(crate) async fn changed(&self) {
        self.follower.changed().await;
    }

    /// What has changed and its newest value, one at a time; `None` once all was taken.
    pub(crate) fn next_change(&self) -> Option<(Arc<ResourceName>, Option<Arc<Published>>)> {
        loop {
            let name = self.follower.next_change()?;
            if self.wanted.contains(&name) {
                let value = self.resources.store.value(&name);
                let value = value.map(|value| value.for_clients_of(&self.namespace));
                return Some((shown(name)?, value));
            }
        }
    }

    /// Whether [`Subscriber::next_change`] may have more.
    pub(crate) fn has_changes(&self) -> bool {
        self.follower.has_changes()
    }

    /// The name that the controller keeps for this workload.
    fn kept<'n>(&self, name: &'n ResourceName) -> Option<Cow<'n, ResourceName>> {
        match name {
            ResourceName::Routes(routes) => {
                let kept = routes_key::kept_for(routes, &self.namespace)?;
                Some(Cow::Owned(ResourceName::Routes(kept)))
            }
            _ => Some(Cow::Borrowed(name)),
        }
    }

    fn leave(&self, name: &Arc<ResourceName>) {
        match **name {
            ResourceName::Listener { .. } => drop(self.resources.store.leave(name, &self.follower)),
            _ => self.resources.leave(name, &self.follower),
        }
    }
}

/// A name that the controller keeps, as sidecars know it.
fn shown(name: Arc<ResourceName>) -> Option<Arc<ResourceName>> {
    match &*name {
        ResourceName::Routes(kept) => Some(Arc::new(ResourceName::Routes(routes_key::on_the_wire(kept)?))),
        _ => Some(name),
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        for name in &self.wanted {
            self.leave(name);
        }
    }
}

#[cfg(test)]
mod tests;
