//! Mirrors the relevant fields of the API server's objects, and wakes the tasks that restore them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_kubernetes::watch::{Event, Name, ObjectWatch};
use tokio::sync::{Notify, mpsc, watch};

/// Maximum queued events.
const BUFFER: usize = 16;

/// The kept fields of the objects that a watch covers; `None` until all were listed once.
pub(crate) struct ObjectMirror<V>(watch::Sender<Option<BTreeMap<Name, V>>>);

/// An object's name and its kept fields.
#[derive(Debug)]
pub(crate) struct MirroredObject<V> {
    pub(crate) name: Name,
    pub(crate) value: V,
}

impl<V: Clone + Send + Sync + 'static> ObjectMirror<V> {
    /// A mirror that has nothing listed yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::channel(None).0))
    }

    /// All objects, if they were listed already.
    pub(crate) fn now(&self) -> Option<BTreeMap<Name, V>> {
        self.0.borrow().clone()
    }

    /// One object, if it exists and was listed already.
    pub(crate) fn find(&self, name: &Name) -> Option<V> {
        self.0.borrow().as_ref()?.get(name).cloned()
    }

    /// All objects, once they are listed; `None` if they are not within `patience`.
    pub(crate) async fn all(&self, patience: Duration) -> Option<BTreeMap<Name, V>> {
        let mut content = self.0.subscribe();
        let known = tokio::time::timeout(patience, content.wait_for(Option::is_some)).await.ok()?;
        known.ok()?.clone()
    }

    /// Follows a watch as long as it is polled, and notifies `wake` after each change.
    pub(crate) async fn follow(self: Arc<Self>, objects: ObjectWatch<MirroredObject<V>>, wake: Arc<Notify>) {
        tell_of(objects, &wake, |applied, deleted| self.take(applied, &deleted)).await;
    }

    /// Applies an event. The first one lists everything, so the content is known from then on.
    fn take(&self, applied: Vec<MirroredObject<V>>, deleted: &[Name]) {
        self.0.send_modify(|content| {
            let content = content.get_or_insert_default();
            for name in deleted {
                content.remove(name);
            }
            content.extend(applied.into_iter().map(|MirroredObject { name, value }| (name, value)));
        });
    }
}

/// Notifies `wake` after each change of the objects that a watch covers, as long as it is polled.
pub(crate) async fn poke(objects: ObjectWatch<()>, wake: Arc<Notify>) {
    tell_of(objects, &wake, |_, _| {}).await;
}

/// The watch itself logs objects that it cannot read.
async fn tell_of<K: Send + 'static>(
    objects: ObjectWatch<K>,
    wake: &Notify,
    mut take: impl FnMut(Vec<K>, Vec<Name>),
) {
    let (sender, mut events) = mpsc::channel(BUFFER);
    let taking = async {
        while let Some(event) = events.recv().await {
            if let Event::Changed { applied, deleted } = event {
                take(applied, deleted);
                wake.notify_one();
            }
        }
    };
    tokio::join!(objects.run(sender, |event| event), taking);
}

/// The name of an object in a namespace.
pub(crate) fn named(namespace: &str, name: &str) -> Name {
    Name { namespace: namespace.to_owned(), name: name.to_owned() }
}
