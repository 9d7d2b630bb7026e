//! What stands behind each address that some sidecar has asked for, and who wants to hear of it.
//!
//! Nothing is worked out before somebody asks, and only what a change touches is worked out again. Each subscriber has
//! a mailbox that holds names of what has changed, not values: whoever is slow gets the newest value once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Pod;
use prost::Message;
use tidegate_core::TrustDomain;
use tidegate_core::destination::Destination;
use tidegate_proto::discovery as wire;
use tokio::sync::Notify;

use crate::compile::destination::Resolver;
use crate::index::{Index, Touched};
use crate::object::ObjectName;
use crate::workloads::version_of;

/// Every destination that has a subscriber.
pub(crate) struct Destinations {
    index: Arc<RwLock<Index>>,
    trust_domain: TrustDomain,
    is_workload: fn(&Pod) -> bool,
    entries: Mutex<Entries>,
    subscribers: AtomicU64,
    /// Of all addresses behind which nobody of the mesh stands, invented ones too.
    passthrough: Arc<PublishedDestination>,
}

/// A destination, ready to be sent.
#[derive(Debug)]
pub(crate) struct PublishedDestination {
    /// A hash of its content.
    pub(crate) version: Arc<str>,
    pub(crate) message: wire::Destination,
}

/// One stream's wishes. They end when it is dropped.
pub(crate) struct Subscriber {
    id: u64,
    destinations: Arc<Destinations>,
    mailbox: Arc<Mailbox>,
    wanted: BTreeSet<SocketAddr>,
}

#[derive(Default)]
struct Entries {
    by_address: BTreeMap<Key, Entry>,
    /// By the Pods on which they rest.
    by_pod: BTreeMap<ObjectName, BTreeSet<Key>>,
}

/// An address, sorted so that those of one IP stand together.
type Key = (IpAddr, u16);

struct Entry {
    published: Arc<PublishedDestination>,
    pods: BTreeSet<ObjectName>,
    subscribers: BTreeMap<u64, Arc<Mailbox>>,
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
    ) -> Self {
        let passthrough = Arc::new(PublishedDestination::new(&Destination::Passthrough));
        let (entries, subscribers) = (Mutex::default(), AtomicU64::new(1));
        Self { index, trust_domain, is_workload, entries, subscribers, passthrough }
    }

    fn published(&self, destination: &Destination) -> Arc<PublishedDestination> {
        match destination {
            Destination::Passthrough => self.passthrough.clone(),
            Destination::Service(_) => Arc::new(PublishedDestination::new(destination)),
        }
    }

    /// Somebody who may subscribe.
    pub(crate) fn subscriber(self: &Arc<Self>) -> Subscriber {
        Subscriber {
            id: self.subscribers.fetch_add(1, Ordering::Relaxed),
            destinations: self.clone(),
            mailbox: Arc::default(),
            wanted: BTreeSet::new(),
        }
    }

    /// Works out again what a change has touched, and tells those who want to know.
    pub(crate) fn update(&self, index: &Index, touched: &Touched) {
        let resolver = self.resolver(index);
        let keys = self.lock().touched(touched);
        for key in keys {
            // Without the lock, so that sidecars that ask meanwhile do not wait for all of it.
            let resolved = resolver.resolve(key.into());
            let published = self.published(&resolved.destination);
            self.lock().replace(key, published, resolved.pods);
        }
    }

    /// How many destinations somebody wants.
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
    fn touched(&self, touched: &Touched) -> BTreeSet<Key> {
        if touched.all {
            return self.by_address.keys().copied().collect();
        }
        let mut keys: BTreeSet<Key> = BTreeSet::new();
        for ip in &touched.addresses {
            keys.extend(self.by_address.range((*ip, 0)..=(*ip, u16::MAX)).map(|(key, _)| *key));
        }
        for pod in &touched.pods {
            keys.extend(self.by_pod.get(pod).into_iter().flatten());
        }
        keys
    }

    fn replace(&mut self, key: Key, published: Arc<PublishedDestination>, pods: BTreeSet<ObjectName>) {
        let Some(entry) = self.by_address.get_mut(&key) else { return };
        if published.version != entry.published.version {
            entry.published = published;
            entry.subscribers.values().for_each(|mailbox| mailbox.put(key.into()));
        }
        let before = std::mem::replace(&mut entry.pods, pods.clone());
        self.rests_no_more(key, before.difference(&pods));
        self.rests_on(key, &pods);
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
}

impl Subscriber {
    /// How many destinations it wants.
    pub(crate) fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether it wants this destination.
    pub(crate) fn wants(&self, address: SocketAddr) -> bool {
        self.wanted.contains(&address)
    }

    /// Wants a destination; it counts as changed.
    pub(crate) fn subscribe(&mut self, address: SocketAddr) {
        let is_new = self.wanted.insert(address);
        if is_new {
            let key = (address.ip(), address.port());
            let destinations = &self.destinations;
            // The index before the entries, as everywhere.
            let index = destinations.index.read().unwrap_or_else(PoisonError::into_inner);
            let mut entries = destinations.lock();
            if let Some(entry) = entries.by_address.get_mut(&key) {
                entry.subscribers.insert(self.id, self.mailbox.clone());
            } else {
                let resolved = destinations.resolver(&index).resolve(address);
                entries.rests_on(key, &resolved.pods);
                let published = destinations.published(&resolved.destination);
                let subscribers = BTreeMap::from([(self.id, self.mailbox.clone())]);
                entries.by_address.insert(key, Entry { published, pods: resolved.pods, subscribers });
            }
        }
        self.mailbox.put(address);
    }

    /// Wants a destination no longer; whether it did.
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
