//! What stands behind the addresses that this workload dials: subscribed to when first dialled, kept in step while they
//! are used, forgotten after.
//!
//! The workers look addresses up, the control thread's policy stream fills them in. While there is no stream nothing is
//! forgotten: what was known stays good. Destinations refer to backends and routes, of which each is kept once, as long
//! as anything refers to it ([`references`]).

mod affinity;
mod attempt_limits;
mod backend;
mod caller;
mod choice;
mod egress_proxies;
mod egress_usages;
mod endpoint;
mod find;
mod hosts;
mod live;
mod looked_up;
mod names;
mod peak_ewma;
mod references;
mod resolved;
mod routes;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_core::backend::{Backend, Locality};
use tidegate_core::destination::{DestinationKey, DestinationTarget};
use tidegate_core::forward_proxy::EgressProxyRule;
use tidegate_core::route::RouteTable;
use tidegate_core::{Destination, DnsName, EgressMode, ServiceRetry};
use tidegate_proto::ResourceName;
use tokio::sync::{Notify, watch};

pub(crate) use attempt_limits::AttemptLimits;
pub(crate) use backend::{BalancedBackend, BalancedEndpoint, TopologyView};
pub(crate) use choice::{EndpointChoice, NoEndpoint};
pub(crate) use egress_proxies::ProxiedDestination;
#[cfg(test)]
pub(crate) use find::ANSWER_TIMEOUT;
pub(crate) use find::Unanswered;
pub(crate) use hosts::{HostLookup, LiveHosts, PendingHost};
pub(crate) use live::LiveDestination;
pub(crate) use looked_up::NameAnswer;
pub(crate) use references::{ReferencedView, ReferencesFull};
pub(crate) use resolved::{PolicedAddress, ResolvedDestination, ResolvedTarget};
pub(crate) use routes::{ActiveRule, AppliedRule, DrawnShare, ResolvedRoutes};

use caller::ClientWorkload;
use endpoint::LoadSlot;
use references::References;

use crate::remotes::Remotes;

/// The most addresses, and hosts at them, that are kept. More are made room for by what was used longest ago.
const MOST: usize = 4096;

/// An address that was not dialled for this long, and that no open connection follows, is forgotten.
const UNUSED_AFTER: Duration = Duration::from_secs(600);

/// Every address in use.
#[derive(Default)]
pub(crate) struct Destinations {
    state: Mutex<DestinationsState>,
    news: Notify,
    /// The names that destinations in use lead to.
    names: watch::Sender<Arc<BTreeSet<DnsName>>>,
}

/// The state of an address.
pub(crate) enum Lookup {
    Known(Arc<ResolvedDestination>),
    /// Subscribed to, without an answer yet.
    Asked(watch::Receiver<Option<Arc<ResolvedDestination>>>),
    /// The controller was out of reach a while ago, and still is.
    OutOfReach,
}

/// A resource from the controller.
#[derive(Debug)]
pub(crate) enum Resource {
    Destination(Destination),
    Backend(Backend),
    Routes(RouteTable),
}

/// Changes of subscriptions for the stream to send.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SubscriptionChanges {
    pub(crate) wanted: Vec<ResourceName>,
    pub(crate) unwanted: Vec<ResourceName>,
}

/// Everything under one lock, which workers take once for each connection of the app.
#[derive(Default)]
struct DestinationsState {
    /// Addresses, and hosts at those whose connections are told apart by host.
    addresses: HashMap<DestinationKey, AddressEntry>,
    references: References,
    /// What is looked up in DNS for them.
    names: BTreeSet<DnsName>,
    /// Names whose subscriptions have changed, to be sent.
    pending: BTreeSet<ResourceName>,
    /// What has changed since the last [`Destinations::settle`].
    changed: BTreeSet<ResourceName>,
    /// Whether there may be references that are not held, or held values that nothing refers to.
    is_unsettled: bool,
    /// Whether the controller has announced more, possibly what is referred to.
    is_incomplete: bool,
    is_online: bool,
}

/// One address, or one host at an address.
struct AddressEntry {
    /// `None` until the controller has answered.
    destination: Option<Destination>,
    /// The same with its backends in place, for connections; those that wait for the answer hold a receiver.
    target: watch::Sender<Option<Arc<ResolvedDestination>>>,
    version: String,
    /// When it was dialled last.
    used: Instant,
    /// A connection has waited for an answer until its timeout.
    is_given_up: bool,
}

impl Destinations {
    /// Nothing is used yet by this workload, `<namespace>/<name>`.
    pub(crate) fn of_workload(workload: &str, remotes: Remotes) -> Self {
        let caller = ClientWorkload { workload: workload.into(), remotes, ..ClientWorkload::default() };
        let state =
            DestinationsState { references: References::of_caller(caller), ..DestinationsState::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    /// The workloads that are reached.
    pub(crate) fn remotes(&self) -> Remotes {
        self.lock().references.remotes().clone()
    }

    /// Looks an address, or a host at it, up; subscribes to one that is not there.
    pub(crate) fn look_up(&self, key: &DestinationKey) -> Lookup {
        let mut state = self.lock();
        if let Some(entry) = state.addresses.get_mut(key) {
            entry.used = Instant::now();
            let known = entry.target.borrow().clone();
            return match known {
                Some(target) => Lookup::Known(target),
                None if entry.is_given_up => Lookup::OutOfReach,
                None => Lookup::Asked(entry.target.subscribe()),
            };
        }
        let receiver = state.add(key);
        drop(state);
        self.news.notify_one();
        Lookup::Asked(receiver)
    }

    /// What is known about an address, now and later, for as long as what is returned lives; subscribes to one that is not
    /// there.
    fn follow(&self, key: &DestinationKey) -> watch::Receiver<Option<Arc<ResolvedDestination>>> {
        let mut state = self.lock();
        if let Some(entry) = state.addresses.get(key) {
            let mut receiver = entry.target.subscribe();
            receiver.mark_changed();
            return receiver;
        }
        let receiver = state.add(key);
        drop(state);
        self.news.notify_one();
        receiver
    }

    /// No answer came in time: until there is a stream again, other connections do not wait.
    pub(crate) fn give_up(&self, key: &DestinationKey) {
        let mut state = self.lock();
        let is_online = state.is_online;
        if let Some(entry) = state.addresses.get_mut(key) {
            entry.is_given_up = !is_online;
        }
    }

    /// There is a stream: what it subscribes to at its beginning, references first, so that the controller need not add
    /// them.
    pub(crate) fn connect(&self) -> Vec<ResourceName> {
        let mut state = self.lock();
        state.is_online = true;
        state.is_incomplete = false;
        state.settle_references();
        state.pending.clear();
        state.addresses.values_mut().for_each(|entry| entry.is_given_up = false);
        let addresses = state.addresses.keys().cloned().map(ResourceName::Destination);
        state.references.names().chain(addresses).collect()
    }

    /// The stream is gone.
    pub(crate) fn disconnect(&self) {
        let mut state = self.lock();
        state.is_online = false;
        state.pending.clear();
    }

    /// Waits for changes to send.
    pub(crate) async fn subscriptions(&self) -> SubscriptionChanges {
        loop {
            let subscriptions = self.take_subscriptions();
            if subscriptions != SubscriptionChanges::default() {
                return subscriptions;
            }
            self.news.notified().await;
        }
    }

    /// The changes since the last call; each name once, in its last state.
    fn take_subscriptions(&self) -> SubscriptionChanges {
        let mut state = self.lock();
        state.settle_references();
        let pending = std::mem::take(&mut state.pending);
        let (wanted, unwanted) = pending.into_iter().partition(|name| state.wants(name));
        SubscriptionChanges { wanted, unwanted }
    }

    /// Takes over a resource of `bytes` on the wire, which connections see from [`Destinations::settle`] on. An address
    /// that is not wanted any more is passed over.
    pub(crate) fn set(
        &self,
        name: &ResourceName,
        version: String,
        resource: Resource,
        bytes: usize,
    ) -> Result<(), ReferencesFull> {
        let mut state = self.lock();
        match (name, resource) {
            (ResourceName::Destination(key), Resource::Destination(destination)) => {
                let Some(entry) = state.addresses.get_mut(key) else { return Ok(()) };
                entry.version = version;
                entry.is_given_up = false;
                entry.destination = Some(destination);
            }
            (ResourceName::Backend(name), Resource::Backend(backend)) => {
                state.references.set_backend(name, version, &backend, bytes)?;
            }
            (ResourceName::Routes(name), Resource::Routes(table)) => {
                state.references.set_routes(name, version, table, bytes)?;
            }
            _ => return Ok(()),
        }
        state.has_changed(name);
        Ok(())
    }

    /// A resource cannot be taken over. What was known before stays; if there is nothing, connections are refused rather
    /// than passed on as if there were no mesh.
    pub(crate) fn refuse(&self, name: &ResourceName, reason: &str) {
        let mut state = self.lock();
        match name {
            ResourceName::Destination(key) => {
                let entry = state.addresses.get_mut(key);
                let Some(entry) = entry.filter(|entry| entry.destination.is_none()) else { return };
                entry.destination = Some(Destination::Blocked(reason.into()));
            }
            ResourceName::Backend(name) => state.references.refuse_backend(name),
            ResourceName::Routes(name) => state.references.end_routes(name),
            ResourceName::Listener { .. } => return,
        }
        state.has_changed(name);
    }

    /// The controller has no such resource, or no longer.
    pub(crate) fn remove(&self, name: &ResourceName) {
        let mut state = self.lock();
        match name {
            ResourceName::Backend(name) => state.references.remove_backend(name),
            ResourceName::Routes(name) => state.references.end_routes(name),
            // Each address is something.
            ResourceName::Destination(_) | ResourceName::Listener { .. } => return,
        }
        state.has_changed(name);
    }

    /// Where the workload runs, which decides about the endpoints of some backends. Connections see it from
    /// [`Destinations::settle`] on.
    pub(crate) fn locate(&self, locality: Option<Locality>) {
        let mut state = self.lock();
        for name in state.references.locate(locality) {
            state.has_changed(&ResourceName::Backend(name));
        }
    }

    /// Where connections to addresses that no object has go, and through which forward proxies. Connections see it from [`Destinations::settle`] on.
    pub(crate) fn set_egress(&self, mode: EgressMode, proxies: &[Arc<EgressProxyRule>]) {
        let mut state = self.lock();
        let are_proxies_news = state.references.set_egress_proxies(proxies);
        if !state.references.set_egress(mode) && !are_proxies_news {
            return;
        }
        let depends = |destination: &Destination| {
            let leaf = match destination {
                Destination::ByHost(otherwise) => otherwise,
                other => other,
            };
            match leaf {
                Destination::Unknown | Destination::InCluster => true,
                Destination::Routed { target: DestinationTarget::Backend(backend), .. } => {
                    &*backend.object.kind == "ServiceEntry"
                }
                _ => false,
            }
        };
        let unknown =
            state.addresses.iter().filter(|(_, entry)| entry.destination.as_ref().is_some_and(depends));
        for key in unknown.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            state.has_changed(&ResourceName::Destination(key));
        }
    }

    /// How requests to Services are retried. Connections see it from [`Destinations::settle`] on.
    pub(crate) fn set_retries(&self, retries: &[Arc<ServiceRetry>]) {
        let mut state = self.lock();
        if state.references.set_retries(retries) {
            let keys: Vec<_> = state.addresses.keys().cloned().collect();
            keys.into_iter().for_each(|key| state.has_changed(&ResourceName::Destination(key)));
        }
    }

    /// What an address is to connections while the controller has not answered.
    pub(crate) fn unanswered(&self, address: SocketAddr) -> ResolvedDestination {
        self.lock().references.unknown(address)
    }

    /// To be called after each response: lets connections see what has changed. If no more is announced, the next
    /// subscriptions include references that are not held, and values that nothing refers to are dropped.
    pub(crate) fn settle(&self, is_complete: bool) {
        let mut state = self.lock();
        state.is_incomplete = !is_complete;
        state.resolve();
        self.publish_names(&state);
        drop(state);
        self.news.notify_one();
    }

    /// Forgets what is not used. To be called now and then while there is a stream.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut state = self.lock();
        let is_unused = |entry: &AddressEntry| {
            now.saturating_duration_since(entry.used) > UNUSED_AFTER && entry.target.receiver_count() == 0
        };
        let unused = state.addresses.iter().filter(|(_, entry)| is_unused(entry)).map(|(key, _)| key.clone());
        for key in unused.collect::<Vec<_>>() {
            state.forget(key);
        }
        state.keep_names();
        self.publish_names(&state);
        drop(state);
        self.news.notify_one();
    }

    /// Every address, and every host at one, with its destination, if it is resolved; sorted.
    pub(crate) fn view(&self) -> Vec<(DestinationKey, String, Option<Arc<ResolvedDestination>>)> {
        let state = self.lock();
        let entries = state.addresses.iter();
        let mut view: Vec<_> = entries
            .map(|(key, entry)| (key.clone(), entry.version.clone(), entry.target.borrow().clone()))
            .collect();
        view.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        view
    }

    /// The backends and routes that are held, sorted by name.
    pub(crate) fn view_references(&self) -> Vec<ReferencedView> {
        self.lock().references.view()
    }

    /// The names and versions of all resources that are in force.
    pub(crate) fn versions(&self) -> Vec<(ResourceName, String)> {
        let state = self.lock();
        let addresses = state.addresses.iter().filter(|(_, entry)| !entry.version.is_empty());
        let addresses =
            addresses.map(|(key, entry)| (ResourceName::Destination(key.clone()), entry.version.clone()));
        addresses.chain(state.references.versions()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, DestinationsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DestinationsState {
    /// Adds an address, or a host at one, to be subscribed to.
    fn add(&mut self, key: &DestinationKey) -> watch::Receiver<Option<Arc<ResolvedDestination>>> {
        self.make_room();
        let (target, receiver) = watch::channel(None);
        let (version, used) = (String::new(), Instant::now());
        let entry = AddressEntry { destination: None, target, version, used, is_given_up: false };
        self.addresses.insert(key.clone(), entry);
        self.enqueue(ResourceName::Destination(key.clone()));
        receiver
    }

    /// Forgets the address that was used longest ago, if there are as many as there may be.
    fn make_room(&mut self) {
        if self.addresses.len() >= MOST
            && let Some((oldest, _)) = self.addresses.iter().min_by_key(|(_, entry)| entry.used)
        {
            let oldest = oldest.clone();
            self.forget(oldest);
        }
    }

    /// Unsubscribes from an address. Connections that are open hold what they resolved to.
    fn forget(&mut self, key: DestinationKey) {
        self.addresses.remove(&key);
        self.is_unsettled = true;
        self.enqueue(ResourceName::Destination(key));
    }

    /// Notes that a resource was set, refused or removed since the last [`Destinations::settle`].
    fn has_changed(&mut self, name: &ResourceName) {
        self.changed.insert(name.clone());
        // A backend that is in use refers to nothing and stays in use.
        self.is_unsettled |=
            !matches!(name, ResourceName::Backend(backend) if self.references.is_needed(backend));
    }

    /// Without a stream there is nothing to send: a new one begins with all that is wanted.
    fn enqueue(&mut self, name: ResourceName) {
        if self.is_online {
            self.pending.insert(name);
        }
    }

    /// Whether the stream is to be subscribed to this resource.
    fn wants(&self, name: &ResourceName) -> bool {
        match name {
            ResourceName::Destination(key) => self.addresses.contains_key(key),
            _ => self.references.holds(name),
        }
    }

    /// Brings what connections see up to what has changed.
    fn resolve(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return;
        }
        self.keep_names();
        for (key, entry) in &self.addresses {
            let Some(destination) = &entry.destination else { continue };
            let is_affected = changed.contains(&ResourceName::Destination(key.clone()))
                || self.references.of(destination).any(|name| changed.contains(&name));
            if !is_affected {
                continue;
            }
            if let Some(target) = self.references.resolve(key, destination) {
                entry.target.send_replace(Some(Arc::new(target)));
            }
        }
    }

    /// Subscribes to references that are not held, and drops what nothing refers to.
    fn settle_references(&mut self) {
        if !self.is_unsettled || self.is_incomplete {
            return;
        }
        self.is_unsettled = false;
        let destinations = self.addresses.values().filter_map(|entry| entry.destination.as_ref());
        let needed: BTreeSet<_> =
            destinations.flat_map(|destination| self.references.of(destination)).collect();
        for name in self.references.keep(needed) {
            self.enqueue(name);
        }
    }
}
