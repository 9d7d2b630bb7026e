//! Where statuses go.
//!
//! The engine hands each changed status to every [`StatusWriter`]: the board that the admin server shows, and on a
//! cluster the queue that writes to the objects. What a status says is decided in `compile/`.

pub mod kubernetes;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;

use crate::compile::status::{self, ObjectStatus, StatusScope};
use crate::index::Index;
use crate::object::ObjectKey;

/// Receives the status of objects whenever it changes.
pub trait StatusWriter: Send + Sync + 'static {
    /// Reports an object's new status. Must not block; `origin` is where the object was read.
    fn write(&self, key: &ObjectKey, status: &ObjectStatus, origin: Option<&Arc<str>>);
    /// Reports that the object is gone.
    fn remove(&self, key: &ObjectKey);
}

/// Statuses in memory, for sources without a status to write to. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusBoard(Arc<RwLock<BTreeMap<ObjectKey, PolicyStatus>>>);

/// The status of an object, as shown by `GET /policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Its kind, such as `IngressBackend`.
    pub kind: &'static str,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// `committed` or `error`.
    pub current_status: &'static str,
    /// The reason.
    pub reason: String,
    /// Likely mistakes.
    pub warnings: Vec<String>,
    /// Whether what it refers to works, if that is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// Where it was read, such as `app.yaml:12`.
    pub file: Option<String>,
    /// Whether the only problem is that it names objects that do not exist. Set by [`all`] only.
    #[serde(skip)]
    pub is_incomplete: bool,
}

/// The status of every policy and MeshConfig, from the objects alone: what a running controller would show.
pub fn all(index: &Index) -> Vec<PolicyStatus> {
    let statuses = status::statuses(&StatusScope::everything(index)).into_iter();
    let shown = statuses.map(|(kind, judged)| {
        let key = ObjectKey { kind, name: judged.name };
        let status = PolicyStatus::new(&key, &judged.status, index.origin(kind, &key.name));
        PolicyStatus { is_incomplete: judged.is_incomplete, ..status }
    });
    shown.collect()
}

impl StatusBoard {
    /// Every status, sorted by kind and name.
    pub(crate) fn list(&self) -> Vec<PolicyStatus> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl StatusWriter for StatusBoard {
    fn write(&self, key: &ObjectKey, status: &ObjectStatus, origin: Option<&Arc<str>>) {
        let shown = PolicyStatus::new(key, status, origin);
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), shown);
    }

    fn remove(&self, key: &ObjectKey) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl PolicyStatus {
    /// A status for display.
    pub(crate) fn new(key: &ObjectKey, status: &ObjectStatus, origin: Option<&Arc<str>>) -> Self {
        Self {
            kind: key.kind.as_str(),
            namespace: key.name.namespace.to_string(),
            name: key.name.name.to_string(),
            current_status: status.current.as_str(),
            reason: status.reason.clone(),
            warnings: status.warnings.clone(),
            healthy: status.health.as_ref().map(|health| health.is_healthy),
            file: origin.map(ToString::to_string),
            is_incomplete: false,
        }
    }
}
