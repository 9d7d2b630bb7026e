//! Versioned values by the names of resources, and the streams that follow them.
//!
//! Each follower has a mailbox of changed names, not of values: a slow one gets the newest value once, and delays no
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use tidegate_core::Destination;
use tidegate_core::backend::Backend;
use tidegate_core::destination::DestinationTarget;
use tidegate_core::policy::InboundPolicy;
use tidegate_core::route::Route;
use tidegate_proto::ResourceName;
use tidegate_proto::discovery as wire;
use tidegate_proto::discovery::resource::Body;
use tokio::sync::Notify;

use super::version::version_of;

/// A value and its version.
#[derive(Debug)]
pub(crate) struct Published {
    /// A hash of its content.
    pub(crate) version: Arc<str>,
    /// The resources that it refers to.
    pub(crate) references: Vec<ResourceName>,
    content: Content,
    /// Bytes of the content on the wire.
    bytes: usize,
    /// Other values for the clients of some namespaces, sorted by namespace.
    variants: Vec<(Arc<str>, Arc<Published>)>,
}

#[derive(Clone, Debug)]
enum Content {
    /// The message is made when it is sent: it is as large again, and what it is made of is shared by workloads.
    Listener(Box<InboundPolicy>),
    Message(Box<Body>),
}

/// Every resource that has a value or a follower.
#[derive(Debug, Default)]
pub(crate) struct Store {
    entries: Mutex<BTreeMap<Arc<ResourceName>, ResourceEntry>>,
    followers: AtomicU64,
}

/// A resource: its value, if it exists, and the streams that follow it, which may be there first.
#[derive(Debug, Default)]
struct ResourceEntry {
    value: Option<Arc<Published>>,
    /// Sorted by `Follower::id`: thousands of streams may follow one backend.
    followers: Vec<(u64, Arc<Mailbox>)>,
}

/// A stream's end: which of the resources that it follows have changed.
#[derive(Debug)]
pub(crate) struct Follower {
    id: u64,
    mailbox: Arc<Mailbox>,
}

/// The names that have changed since the stream last took them. Each name is there once, however often it changes, so
/// a mailbox has at most as many names as the stream follows.
#[derive(Debug, Default)]
struct Mailbox {
    changed: Mutex<BTreeSet<Arc<ResourceName>>>,
    news: Notify,
}

impl Published {
    /// A workload's policy.
    pub(crate) fn listener(policy: InboundPolicy) -> Self {
        let mut message = wire::InboundPolicy::from(&policy);
        let bytes = message.encoded_len();
        // A version is shown to operators, and a hash of a weak password gives it away.
        message.egress_proxies.iter_mut().for_each(|proxy| proxy.authorization.clear());
        let version = version_of(&message);
        Self {
            version,
            references: Vec::new(),
            content: Content::Listener(Box::new(policy)),
            bytes,
            variants: Vec::new(),
        }
    }

    /// What stands behind an address.
    pub(crate) fn destination(destination: &Destination) -> Self {
        let leaf = match destination {
            Destination::ByHost(otherwise) => otherwise,
            other => other,
        };
        let reference = match leaf {
            Destination::Routed { target: DestinationTarget::Backend(backend), .. } => {
                Some(ResourceName::Backend(backend.clone()))
            }
            Destination::Routed { target: DestinationTarget::Routes(routes), .. } => {
                Some(ResourceName::Routes(routes.clone()))
            }
            Destination::Passthrough
            | Destination::Unknown
            | Destination::InCluster
            | Destination::Blocked(_)
            | Destination::ByHost(_) => None,
        };
        let message = wire::Destination::from(destination);
        Self {
            version: version_of(&message),
            references: reference.into_iter().collect(),
            bytes: message.encoded_len(),
            content: Content::Message(Box::new(Body::Destination(message))),
            variants: Vec::new(),
        }
    }

    /// A backend.
    pub(crate) fn backend(backend: &Backend) -> Self {
        let message = wire::Backend::from(backend);
        Self {
            version: version_of(&message),
            references: Vec::new(),
            bytes: message.encoded_len(),
            content: Content::Message(Box::new(Body::Backend(message))),
            variants: Vec::new(),
        }
    }

    /// The routes that clients of a port get.
    pub(crate) fn routes(routes: &[Route]) -> Self {
        let backends: BTreeSet<_> = routes.iter().flat_map(Route::backends).cloned().collect();
        let message = wire::Routes::from(routes);
        Self {
            version: version_of(&message),
            references: backends.into_iter().map(ResourceName::Backend).collect(),
            bytes: message.encoded_len(),
            content: Content::Message(Box::new(Body::Routes(message))),
            variants: Vec::new(),
        }
    }

    /// The same, with other values for the clients of these namespaces.
    pub(crate) fn with_variants(&self, mut variants: Vec<(Arc<str>, Arc<Self>)>) -> Self {
        variants.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self {
            version: self.version.clone(),
            references: self.references.clone(),
            content: self.content.clone(),
            bytes: self.bytes,
            variants,
        }
    }

    /// The value for the clients of a namespace.
    pub(crate) fn for_clients_of(self: Arc<Self>, namespace: &str) -> Arc<Self> {
        let place = self.variants.binary_search_by(|(client, _)| (**client).cmp(namespace));
        match place.ok().and_then(|place| self.variants.get(place)) {
            Some((_, own)) => own.clone(),
            None => self,
        }
    }

    /// Whether all clients get the same from both.
    fn is_same(&self, other: &Self) -> bool {
        let versions = |value: &Self| {
            let own = value.variants.iter();
            own.map(|(client, value)| (client.clone(), value.version.clone())).collect::<Vec<_>>()
        };
        self.version == other.version && versions(self) == versions(other)
    }

    /// The value as it is sent.
    pub(crate) fn body(&self) -> Body {
        match &self.content {
            Content::Listener(policy) => Body::Listener((&**policy).into()),
            Content::Message(body) => Body::clone(body),
        }
    }

    /// The policy of a listener.
    pub(crate) fn policy(&self) -> Option<&InboundPolicy> {
        match &self.content {
            Content::Listener(policy) => Some(policy),
            Content::Message(_) => None,
        }
    }

    /// Bytes that it takes of the memory: each text of a message is an allocation.
    pub(crate) fn held_bytes(&self) -> usize {
        512 + 4 * self.bytes
    }
}

impl Store {
    /// A follower of nothing yet.
    pub(crate) fn follower(&self) -> Follower {
        Follower { id: self.followers.fetch_add(1, Ordering::Relaxed), mailbox: Arc::default() }
    }

    /// Sets a value and notifies its followers. Returns whether it is another than before for any client.
    pub(crate) fn publish(&self, name: &ResourceName, value: Arc<Published>) -> bool {
        let mut entries = self.lock();
        if !entries.contains_key(name) {
            entries.insert(Arc::new(name.clone()), ResourceEntry::default());
        }
        let known = entries.get_key_value(name).map(|(name, _)| name.clone());
        let Some((entry, name)) = entries.get_mut(name).zip(known) else { return false };
        let is_news = entry.value.as_ref().is_none_or(|current| !current.is_same(&value));
        if is_news {
            entry.value = Some(value);
            entry.notify(&name);
        }
        is_news
    }

    /// Takes a value away and notifies its followers.
    pub(crate) fn withdraw(&self, name: &ResourceName) {
        let mut entries = self.lock();
        let Some((name, _)) = entries.get_key_value(name) else { return };
        let name = name.clone();
        let Some(entry) = entries.get_mut(&name) else { return };
        if entry.value.take().is_some() {
            entry.notify(&name);
        }
        if entry.followers.is_empty() {
            entries.remove(&name);
        }
    }

    /// The newest value.
    pub(crate) fn value(&self, name: &ResourceName) -> Option<Arc<Published>> {
        self.lock().get(name)?.value.clone()
    }

    /// Follows a resource, also one without a value. It counts as changed.
    pub(crate) fn follow(&self, name: &Arc<ResourceName>, follower: &Follower) {
        let mut entries = self.lock();
        let entry = entries.entry(name.clone()).or_default();
        if let Err(place) = entry.place_of(follower) {
            entry.followers.insert(place, (follower.id, follower.mailbox.clone()));
        }
        drop(entries);
        follower.mailbox.put(name);
    }

    /// Ends [`Store::follow`]. Returns whether the resource has no other follower.
    pub(crate) fn leave(&self, name: &ResourceName, follower: &Follower) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(name) else { return true };
        if let Ok(place) = entry.place_of(follower) {
            entry.followers.remove(place);
        }
        let is_last = entry.followers.is_empty();
        if is_last && entry.value.is_none() {
            entries.remove(name);
        }
        is_last
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<ResourceName>, ResourceEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResourceEntry {
    /// Where the follower is, or where it belongs.
    fn place_of(&self, follower: &Follower) -> Result<usize, usize> {
        self.followers.binary_search_by_key(&follower.id, |(id, _)| *id)
    }

    fn notify(&self, name: &Arc<ResourceName>) {
        self.followers.iter().for_each(|(_, mailbox)| mailbox.put(name));
    }
}

impl Follower {
    /// Has a resource count as changed.
    pub(crate) fn put(&self, name: &Arc<ResourceName>) {
        self.mailbox.put(name);
    }

    /// Waits until something has changed since the last call.
    pub(crate) async fn changed(&self) {
        self.mailbox.news.notified().await;
    }

    /// The next resource that has changed, in the order of names; `None` once all are taken.
    pub(crate) fn next_change(&self) -> Option<Arc<ResourceName>> {
        self.mailbox.lock().pop_first()
    }

    /// Whether [`Follower::next_change`] has more.
    pub(crate) fn has_changes(&self) -> bool {
        !self.mailbox.lock().is_empty()
    }
}

impl Mailbox {
    fn put(&self, name: &Arc<ResourceName>) {
        self.lock().insert(name.clone());
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Arc<ResourceName>>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<ResourceName> {
        Arc::new(ResourceName::parse(text).unwrap())
    }

    fn blocked(reason: &str) -> Arc<Published> {
        Arc::new(Published::destination(&Destination::Blocked(reason.into())))
    }

    #[test]
    fn a_follower_gets_each_change_once_and_only_the_newest_value() {
        let store = Store::default();
        let (name, follower) = (name("destination/10.0.0.1:80"), store.follower());
        store.follow(&name, &follower);
        assert_eq!(follower.next_change(), Some(name.clone()));
        assert!(store.publish(&name, blocked("a")) && store.publish(&name, blocked("b")));
        assert!(!store.publish(&name, blocked("b")), "the same again");
        assert_eq!((follower.next_change(), follower.next_change()), (Some(name.clone()), None));
        assert_eq!(store.value(&name).unwrap().version, blocked("b").version);
        store.withdraw(&name);
        assert!(follower.has_changes() && store.value(&name).is_none());
    }

    #[test]
    fn a_resource_without_followers_and_value_takes_no_memory() {
        let store = Store::default();
        let (first, second) = (store.follower(), store.follower());
        let name = name("backend/Service/shop/cart:80");
        store.follow(&name, &first);
        store.follow(&name, &second);
        assert!(!store.leave(&name, &first) && store.leave(&name, &second));
        assert!(store.lock().is_empty());
        store.publish(&name, blocked("a"));
        assert!(store.leave(&name, &first), "a value stays until it is withdrawn");
        store.withdraw(&name);
        assert!(store.lock().is_empty());
    }

    #[test]
    fn what_a_destination_refers_to_comes_before_other_destinations() {
        let store = Store::default();
        let follower = store.follower();
        let [d1, d2, backend, listener] =
            ["destination/10.0.0.1:1", "destination/10.0.0.2:2", "backend/Service/a/b:1", "listener/a/b"]
                .map(name);
        for name in [&d2, &d1] {
            store.follow(name, &follower);
        }
        assert_eq!(follower.next_change(), Some(d1));
        for name in [&backend, &listener] {
            store.follow(name, &follower);
        }
        let rest: Vec<_> = std::iter::from_fn(|| follower.next_change()).collect();
        assert_eq!(rest, [listener, backend, d2]);
    }
    #[test]
    fn clients_of_a_namespace_get_their_variant_and_a_change_of_it_alone_is_news() {
        let store = Store::default();
        let (name, follower) = (name("destination/192.0.2.1:443"), store.follower());
        store.follow(&name, &follower);
        let value = |own: &str| {
            let variants = vec![("web".into(), blocked(own)), ("shop".into(), blocked("shop"))];
            Arc::new(blocked("all").with_variants(variants))
        };
        assert!(store.publish(&name, value("a")) && !store.publish(&name, value("a")));
        assert!(store.publish(&name, value("b")), "it is another for clients of web");
        let seen = |namespace: &str| store.value(&name).unwrap().for_clients_of(namespace).version.clone();
        assert_eq!(seen("web"), blocked("b").version);
        assert_eq!(seen("shop"), blocked("shop").version);
        assert_eq!(seen("other"), blocked("all").version);
        assert!(store.publish(&name, blocked("all")), "without variants");
    }
}
