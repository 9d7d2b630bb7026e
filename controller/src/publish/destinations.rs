//! What stands behind each address that a sidecar has subscribed to.
//!
//! An address is resolved when the first sidecar subscribes to it, and again when a change affects it. Each subscriber
//! has a mailbox of changed addresses, not of values: a slow one gets the newest value once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use prost::Message;
use tidegate_core::TrustDomain;
use tidegate_core::destination::{Destination, MeshService};
use tidegate_proto::discovery as wire;
use tidegate_runtime::logging::LogThrottle;
use tokio::sync::Notify;
use tracing::warn;

use super::shares::{self, NamespaceShares};
use super::version::version_of;
use crate::compile::destination::{Resolved, Resolver};
use crate::index::{Affected, Index};
use crate::metrics::NamespaceGauge;
use crate::object::ObjectName;

/// Bytes of what is noted of a Pod on which a destination rests.
const PODS: usize = 256;

/// Every destination that has a subscriber.
pub(crate) struct Destinations {
    index: Arc<RwLock<Index>>,
    trust_domain: TrustDomain,
    is_workload: fn(&Pod) -> bool,
    entries: Mutex<Entries>,
    subscribers: AtomicU64,
    /// Shared by all addresses outside the mesh, invented ones included.
    passthrough: Arc<PublishedDestination>,
    complaints: LogThrottle<Arc<str>>,
}

/// A destination, ready to be sent.
#[derive(Debug)]
pub(crate) struct PublishedDestination {
    /// A hash of its content.
    pub(crate) version: Arc<str>,
    pub(crate) message: wire::Destination,
}

/// One stream's subscriptions. Dropping it ends them.
pub(crate) struct Subscriber {
    id: u64,
    destinations: Arc<Destinations>,
    mailbox: Arc<Mailbox>,
    wanted: BTreeSet<SocketAddr>,
}

struct Entries {
    by_address: BTreeMap<Key, Entry>,
    /// What the destinations of each namespace take. Beyond it a destination has no endpoints.
    shares: NamespaceShares<Key>,
    /// By the Pods on which they rest.
    by_pod: BTreeMap<ObjectName, BTreeSet<Key>>,
}

/// An address, sorted so that those of one IP stand together.
type Key = (IpAddr, u16);

struct Entry {
    published: Arc<PublishedDestination>,
    pods: BTreeSet<ObjectName>,
    /// Of the Service or the Pod.
    namespace: Option<Arc<str>>,
    subscribers: BTreeMap<u64, Arc<Mailbox>>,
}

/// What stands behind an address, within the share of its namespace.
struct Resolution {
    published: Arc<PublishedDestination>,
    pods: BTreeSet<ObjectName>,
    namespace: Option<Arc<str>>,
}

#[derive(Default)]
struct Mailbox {
    changed: Mutex<BTreeSet<SocketAddr>>,
    news: Notify,
}

impl Destinations {
    pub(crate) fn new(
        index: Arc<RwLock<Index>>,
        trust_domain: TrustDomain,
        is_workload: fn(&Pod) -> bool,
        left_out: NamespaceGauge,
    ) -> Self {
        let passthrough = Arc::new(PublishedDestination::new(&Destination::Passthrough));
        let entries = Entries {
            by_address: BTreeMap::new(),
            shares: NamespaceShares::new(shares::SHARE, left_out),
            by_pod: BTreeMap::new(),
        };
        let (entries, subscribers) = (Mutex::new(entries), AtomicU64::new(1));
        let complaints = LogThrottle::default();
        Self { index, trust_domain, is_workload, entries, subscribers, passthrough, complaints }
    }

    /// A subscriber without subscriptions.
    pub(crate) fn subscriber(self: &Arc<Self>) -> Subscriber {
        Subscriber {
            id: self.subscribers.fetch_add(1, Ordering::Relaxed),
            destinations: self.clone(),
            mailbox: Arc::default(),
            wanted: BTreeSet::new(),
        }
    }

    /// Resolves the affected addresses again and notifies their subscribers.
    pub(crate) fn update(&self, index: &Index, affected: &Affected) {
        let resolver = self.resolver(index);
        let keys = self.lock().affected(affected);
        for key in keys {
            self.update_one(&resolver, key);
        }
        let again = self.lock().shares.take_new_room();
        for (_, key) in again {
            self.update_one(&resolver, key);
        }
    }

    fn update_one(&self, resolver: &Resolver<'_>, key: Key) {
        // Without the lock, so that sidecars that ask meanwhile do not wait for all of it.
        let resolution = self.resolve(resolver, key);
        self.lock().replace(key, resolution);
    }

    /// What stands behind an address. Takes the lock for moments only.
    fn resolve(&self, resolver: &Resolver<'_>, key: Key) -> Resolution {
        let owner = resolver.owner(key.0);
        if let Some(owner) = owner
            && self.lock().shares.is_used_up(&owner.namespace, &key)
        {
            return Resolution::closed(owner);
        }
        let Resolved { destination, pods } = resolver.resolve(key.into());
        let Some(owner) = owner.filter(|_| destination != Destination::Passthrough) else {
            return Resolution { published: self.passthrough.clone(), pods, namespace: None };
        };
        let published = PublishedDestination::new(&destination);
        let bytes = published.held_bytes() + PODS * pods.len();
        let mut entries = self.lock();
        if !entries.shares.admit(&owner.namespace, &key, bytes) {
            if self.complaints.admits(&owner.namespace, Instant::now()) {
                let reason = entries.shares.reason("destinations");
                warn!(destination = %owner, %reason, "sidecars are told that it has no endpoints");
            }
            return Resolution::closed(owner);
        }
        Resolution { published: Arc::new(published), pods, namespace: Some(owner.namespace.clone()) }
    }

    /// How many destinations have a subscriber.
    pub(crate) fn count(&self) -> usize {
        self.lock().by_address.len()
    }

    fn resolver<'i>(&'i self, index: &'i Index) -> Resolver<'i> {
        Resolver { index, trust_domain: &self.trust_domain, is_workload: self.is_workload }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Destinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destinations").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Entries {
    fn affected(&self, affected: &Affected) -> BTreeSet<Key> {
        if affected.all {
            return self.by_address.keys().copied().collect();
        }
        let mut keys: BTreeSet<Key> = BTreeSet::new();
        for ip in &affected.addresses {
            keys.extend(self.by_address.range((*ip, 0)..=(*ip, u16::MAX)).map(|(key, _)| *key));
        }
        for pod in &affected.pods {
            keys.extend(self.by_pod.get(pod).into_iter().flatten());
        }
        keys
    }

    fn replace(&mut self, key: Key, resolution: Resolution) {
        let Resolution { published, pods, namespace } = resolution;
        let Some(entry) = self.by_address.get_mut(&key) else {
            // The last subscriber left meanwhile.
            return self.give_back(key, namespace.as_ref());
        };
        if published.version != entry.published.version {
            entry.published = published;
            entry.subscribers.values().for_each(|mailbox| mailbox.put(key.into()));
        }
        let before = std::mem::replace(&mut entry.pods, pods.clone());
        let owner = std::mem::replace(&mut entry.namespace, namespace.clone());
        if owner != namespace {
            self.give_back(key, owner.as_ref());
        }
        self.rests_no_more(key, before.difference(&pods));
        self.rests_on(key, &pods);
    }

    fn give_back(&mut self, key: Key, namespace: Option<&Arc<str>>) {
        if let Some(namespace) = namespace {
            self.shares.release(namespace, &key);
        }
    }

    /// Adds a subscriber to a destination that is there already; whether it is.
    fn join(&mut self, key: Key, subscriber: u64, mailbox: &Arc<Mailbox>) -> bool {
        let Some(entry) = self.by_address.get_mut(&key) else { return false };
        entry.subscribers.insert(subscriber, mailbox.clone());
        true
    }

    /// A destination with its first subscriber, unless another one was faster.
    fn insert(&mut self, key: Key, resolution: Resolution, subscriber: u64, mailbox: &Arc<Mailbox>) {
        if self.join(key, subscriber, mailbox) {
            return;
        }
        let Resolution { published, pods, namespace } = resolution;
        self.rests_on(key, &pods);
        let subscribers = BTreeMap::from([(subscriber, mailbox.clone())]);
        self.by_address.insert(key, Entry { published, pods, namespace, subscribers });
    }

    fn rests_on(&mut self, key: Key, pods: &BTreeSet<ObjectName>) {
        for pod in pods {
            self.by_pod.entry(pod.clone()).or_default().insert(key);
        }
    }

    fn rests_no_more<'p>(&mut self, key: Key, pods: impl Iterator<Item = &'p ObjectName>) {
        for pod in pods {
            if let Some(keys) = self.by_pod.get_mut(pod) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_pod.remove(pod);
                }
            }
        }
    }

    fn leave(&mut self, key: Key, subscriber: u64) {
        let Some(entry) = self.by_address.get_mut(&key) else { return };
        entry.subscribers.remove(&subscriber);
        if entry.subscribers.is_empty()
            && let Some(entry) = self.by_address.remove(&key)
        {
            self.rests_no_more(key, entry.pods.iter());
            self.give_back(key, entry.namespace.as_ref());
        }
    }
}

impl PublishedDestination {
    fn new(destination: &Destination) -> Self {
        let message = wire::Destination::from(destination);
        Self { version: version_of(&message), message }
    }

    /// Bytes of the message on the wire.
    pub(crate) fn size(&self) -> usize {
        self.message.encoded_len()
    }

    /// Bytes that it takes of the memory: each text of the message is an allocation.
    fn held_bytes(&self) -> usize {
        512 + 4 * self.size()
    }
}

impl Resolution {
    /// No endpoints: a connection is refused, and never passed on as if there were no mesh.
    fn closed(owner: &ObjectName) -> Self {
        let service = MeshService { name: owner.to_shared(), endpoints: Vec::new() };
        let published = Arc::new(PublishedDestination::new(&Destination::Service(service)));
        Self { published, pods: BTreeSet::new(), namespace: Some(owner.namespace.clone()) }
    }
}

impl Subscriber {
    /// How many destinations it is subscribed to.
    pub(crate) fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether it is subscribed to this destination.
    pub(crate) fn wants(&self, address: SocketAddr) -> bool {
        self.wanted.contains(&address)
    }

    /// Subscribes to a destination, which counts as changed.
    pub(crate) fn subscribe(&mut self, address: SocketAddr) {
        let is_new = self.wanted.insert(address);
        if is_new {
            let key = (address.ip(), address.port());
            let destinations = &self.destinations;
            // The index before the entries, as everywhere.
            let index = destinations.index.read().unwrap_or_else(PoisonError::into_inner);
            let is_known = destinations.lock().join(key, self.id, &self.mailbox);
            if !is_known {
                let resolution = destinations.resolve(&destinations.resolver(&index), key);
                destinations.lock().insert(key, resolution, self.id, &self.mailbox);
            }
        }
        self.mailbox.put(address);
    }

    /// Ends a subscription. Returns whether there was one.
    pub(crate) fn unsubscribe(&mut self, address: SocketAddr) -> bool {
        let was_wanted = self.wanted.remove(&address);
        if was_wanted {
            self.destinations.lock().leave((address.ip(), address.port()), self.id);
        }
        was_wanted
    }

    /// Waits until something has changed since the last call.
    pub(crate) async fn changed(&self) {
        self.mailbox.news.notified().await;
    }

    /// What has changed, one at a time; nothing once all was taken.
    pub(crate) fn next_change(&self) -> Option<(SocketAddr, Arc<PublishedDestination>)> {
        loop {
            let address = self.mailbox.lock().pop_first()?;
            let entries = self.destinations.lock();
            let entry = entries.by_address.get(&(address.ip(), address.port()));
            if let Some(entry) = entry.filter(|_| self.wanted.contains(&address)) {
                return Some((address, entry.published.clone()));
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let mut entries = self.destinations.lock();
        for address in &self.wanted {
            entries.leave((address.ip(), address.port()), self.id);
        }
    }
}

impl Mailbox {
    fn put(&self, address: SocketAddr) {
        self.lock().insert(address);
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<SocketAddr>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
