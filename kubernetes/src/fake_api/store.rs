//! Objects, and the log of their changes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Resource, namespace, name.
type Key = (String, String, String);

/// The objects of all resources with one counter of versions, like etcd's revision, and every change since the start.
/// The log is never shortened, so that a position in it stays valid; [`ObjectStore::compact`] only refuses old
/// versions.
#[derive(Debug)]
pub(super) struct ObjectStore {
    objects: BTreeMap<Key, Value>,
    log: Vec<LoggedChange>,
    /// The version of the latest change.
    version: u64,
    /// Watches from before this version get 410 Gone.
    oldest: u64,
}

/// A change, or a bookmark.
#[derive(Debug)]
struct LoggedChange {
    version: u64,
    /// `None` for a bookmark, which all watches get.
    resource: Option<String>,
    kind: &'static str,
    object: Value,
}

/// Selects objects of a resource.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) resource: String,
    /// Empty: all namespaces.
    pub(super) namespace: String,
    pub(super) name: Option<String>,
    pub(super) labels: Vec<(String, String)>,
}

impl Default for ObjectStore {
    fn default() -> Self {
        // A watch from version 0 would mean any version.
        Self { objects: BTreeMap::new(), log: Vec::new(), version: 1, oldest: 0 }
    }
}

impl ObjectStore {
    /// The version of the latest change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// One object, by `""` as the namespace if it is cluster-scoped.
    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    /// Creates or replaces an object, with a new version. Its UID stays unless the object brings one.
    pub(super) fn put(&mut self, resource: &str, mut object: Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text("namespace"), text("name"));
        let before = self.objects.get(&key);
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.version += 1;
        let kept = before.map(|before| before["metadata"]["uid"].clone());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = kept.unwrap_or_else(|| format!("uid-{}", self.version).into());
        }
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log(Some(resource), kind, object.clone());
        self.objects.insert(key, object);
    }

    /// Deletes an object, if it exists. The event has the object's last content and a version of its own, as in a real
    /// server.
    pub(super) fn delete(&mut self, resource: &str, namespace: &str, name: &str) {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = self.objects.remove(&key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.log(Some(resource), "DELETED", object);
        }
    }

    /// Logs an event that only says which version has been reached.
    pub(super) fn bookmark(&mut self) {
        let metadata = json!({"resourceVersion": self.version.to_string()});
        let object = json!({"apiVersion": "v1", "kind": "Bookmark", "metadata": metadata});
        self.log(None, "BOOKMARK", object);
    }

    /// Makes every version up to now too old for watches and continued lists.
    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
    }

    /// Whether a watch from this version must begin with a list.
    pub(super) fn is_gone(&self, version: u64) -> bool {
        version < self.oldest
    }

    /// A page of the selected objects, starting at this position, and the next position if there are more.
    pub(super) fn page(
        &self,
        selection: &Selection,
        from: usize,
        limit: usize,
    ) -> (Vec<Value>, Option<usize>) {
        let all = self
            .objects
            .iter()
            .filter(|((resource, ..), object)| *resource == selection.resource && selection.covers(object));
        let mut rest = all.map(|(_, object)| object).skip(from);
        let page: Vec<_> = rest.by_ref().take(limit).cloned().collect();
        let next = from + page.len();
        (page, rest.next().map(|_| next))
    }

    /// Number of entries in the log, which is the position to continue from.
    pub(super) fn end_of_log(&self) -> usize {
        self.log.len()
    }

    /// The position of the first entry after a version.
    pub(super) fn position_after(&self, version: u64) -> usize {
        self.log.partition_point(|logged| logged.version <= version)
    }

    /// Events from a position on, as lines of a watch.
    pub(super) fn events(&self, selection: &Selection, from: usize, bookmarks: bool) -> Vec<Value> {
        let entries = self.log.get(from..).unwrap_or_default().iter();
        let events = entries.filter(|logged| match &logged.resource {
            Some(resource) => *resource == selection.resource && selection.covers(&logged.object),
            None => bookmarks,
        });
        events.map(|logged| json!({"type": logged.kind, "object": logged.object})).collect()
    }

    fn log(&mut self, resource: Option<&str>, kind: &'static str, object: Value) {
        let resource = resource.map(str::to_owned);
        self.log.push(LoggedChange { version: self.version, resource, kind, object });
    }
}

impl Selection {
    /// Whether the selectors match; an empty namespace selects all.
    fn covers(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        (self.namespace.is_empty() || self.namespace == namespace)
            && self.name.as_ref().is_none_or(|name| metadata["name"] == name.as_str())
            && self.labels.iter().all(|(key, value)| metadata["labels"][key] == value.as_str())
    }
}
