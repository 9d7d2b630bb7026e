//! What lies in the API server, mirrored, and a poke to whoever keeps things right.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use serde::de::DeserializeOwned;
use tidegate_kubernetes::watch::{Event, Name, Watch};
use tokio::sync::{Notify, mpsc, watch};
use tracing::warn;

/// Events that may wait.
const BUFFER: usize = 16;

/// What is kept of the objects that a watch covers; `None` until all were listed once.
pub(crate) struct Mirror<V>(watch::Sender<Option<BTreeMap<Name, V>>>);

impl<V: Clone + Send + Sync + 'static> Mirror<V> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::channel(None).0))
    }

    /// Everything, if all of it is known already.
    pub(crate) fn now(&self) -> Option<BTreeMap<Name, V>> {
        self.0.borrow().clone()
    }

    /// One object, if it is known already.
    pub(crate) fn find(&self, name: &Name) -> Option<V> {
        self.0.borrow().as_ref()?.get(name).cloned()
    }

    /// Everything, once all of it is known; `None` if it is not after `patience`.
    pub(crate) async fn all(&self, patience: Duration) -> Option<BTreeMap<Name, V>> {
        let mut content = self.0.subscribe();
        let known = tokio::time::timeout(patience, content.wait_for(Option::is_some)).await.ok()?;
        known.ok()?.clone()
    }

    /// Follows a watch for as long as it is polled, keeps what `keep` makes of its objects, and pokes `wake` after
    /// each change.
    pub(crate) async fn follow<K>(
        self: Arc<Self>,
        objects: Watch<K>,
        keep: impl Fn(K) -> Option<V> + Send,
        wake: Arc<Notify>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let (sender, mut events) = mpsc::channel(BUFFER);
        let taking = async {
            while let Some(event) = events.recv().await {
                match event {
                    Event::Changed { applied, deleted } => {
                        self.take(applied, &deleted, &keep);
                        wake.notify_one();
                    }
                    Event::Unreadable(reason) => {
                        let kind = std::any::type_name::<K>().rsplit("::").next().unwrap_or_default();
                        warn!(kind, reason, "the API server cannot be watched; tried again");
                    }
                }
            }
        };
        tokio::join!(objects.run(sender, |event| event), taking);
    }

    fn take<K: Resource>(&self, applied: Vec<K>, deleted: &[Name], keep: &impl Fn(K) -> Option<V>) {
        self.0.send_modify(|content| {
            let content = content.get_or_insert_default();
            for name in deleted {
                content.remove(name);
            }
            for object in applied {
                let metadata = object.meta();
                let name = named(
                    metadata.namespace.as_deref().unwrap_or_default(),
                    metadata.name.as_deref().unwrap_or_default(),
                );
                match keep(object) {
                    Some(value) => content.insert(name, value),
                    None => content.remove(&name),
                };
            }
        });
    }
}

/// The name of an object in a namespace.
pub(crate) fn named(namespace: &str, name: &str) -> Name {
    Name { namespace: namespace.to_owned(), name: name.to_owned() }
}
