//! Watches: what lies in the API server, mirrored, and a poke to whoever keeps things right.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

/// The API server ends each watch after this many seconds; one that hangs is not waited for much longer.
const WATCH_SECONDS: u32 = 30;

/// What is kept of the objects that a watch selects, by namespace and name; `None` until all were listed once.
pub(crate) struct Mirror<V>(watch::Sender<Option<BTreeMap<ObjectKey, V>>>);

/// Namespace (empty where there is none) and name.
pub(crate) type ObjectKey = (String, String);

impl<V: Clone + Send + Sync + 'static> Mirror<V> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::channel(None).0))
    }

    /// Everything, if all of it is known already.
    pub(crate) fn now(&self) -> Option<BTreeMap<ObjectKey, V>> {
        self.0.borrow().clone()
    }

    /// Everything, once all of it is known; `None` if it is not after `patience`.
    pub(crate) async fn all(&self, patience: Duration) -> Option<BTreeMap<ObjectKey, V>> {
        let mut content = self.0.subscribe();
        let known = tokio::time::timeout(patience, content.wait_for(Option::is_some)).await.ok()?;
        known.ok()?.clone()
    }

    /// Follows what `config` selects for as long as it is polled, keeps what `keep` makes of it, and pokes `wake`
    /// after each change.
    pub(crate) async fn follow<K>(
        self: Arc<Self>,
        api: Api<K>,
        config: watcher::Config,
        keep: impl Fn(K) -> Option<V> + Send,
        wake: Arc<Notify>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let what = std::any::type_name::<K>().rsplit("::").next().unwrap_or_default();
        let mut events = std::pin::pin!(watcher(api, config.timeout(WATCH_SECONDS)).default_backoff());
        let mut listing = BTreeMap::new();
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    failing = false;
                    if self.take(event, &keep, &mut listing) {
                        wake.notify_one();
                    }
                }
                Err(error) if failing => debug!(what, error = reason(&error), "watch"),
                Err(error) => {
                    failing = true;
                    warn!(what, error = reason(&error), "the API server cannot be watched; tried again");
                }
            }
        }
    }

    /// Whether this may have changed what others see.
    fn take<K: Resource>(
        &self,
        event: watcher::Event<K>,
        keep: &impl Fn(K) -> Option<V>,
        listing: &mut BTreeMap<ObjectKey, V>,
    ) -> bool {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(object) => {
                let key = key(&object);
                if let Some(value) = keep(object) {
                    listing.insert(key, value);
                }
            }
            watcher::Event::InitDone => {
                self.0.send_replace(Some(std::mem::take(listing)));
                return true;
            }
            watcher::Event::Apply(object) => {
                let key = key(&object);
                let kept = keep(object);
                return self.change(|current| {
                    match kept {
                        Some(value) => current.insert(key, value),
                        None => current.remove(&key),
                    };
                });
            }
            watcher::Event::Delete(object) => {
                return self.change(|current| drop(current.remove(&key(&object))));
            }
        }
        false
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<ObjectKey, V>)) -> bool {
        self.0.send_if_modified(|content| content.as_mut().map(change).is_some())
    }
}

/// Selects one object by its name.
pub(crate) fn named(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}

fn reason(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => super::message(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}
