//! Which namespaces are the mesh's: where the trust bundle goes, and whose workloads get certificates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tidegate_crds::injection::namespace_is_in_mesh;
use tidegate_kubernetes::watch::{Name, Watch, WatchMetrics};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::follow::{Mirror, named};

/// Follows the labels of all namespaces until its last copy is dropped.
#[derive(Clone)]
pub struct Namespaces {
    control_plane: Arc<str>,
    mirror: Arc<Mirror<Membership>>,
    _watch: Arc<Ending>,
}

/// What counts of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Whether it is in the mesh, or the control plane's own.
    pub(crate) is_ours: bool,
    /// Whether it is being deleted: what runs there runs on for a while, and nothing can be made there.
    pub(crate) is_going: bool,
    /// Its labels.
    pub(crate) labels: Arc<BTreeMap<String, String>>,
}

struct Ending(AbortHandle);

impl Namespaces {
    /// Starts to follow those of `mesh_name`, whose control plane runs in the namespace `control_plane`; pokes `wake`
    /// when one changes.
    pub fn start(
        client: Client,
        control_plane: &str,
        mesh_name: &str,
        wake: &Arc<Notify>,
        meters: &WatchMetrics,
    ) -> Self {
        let mirror = Mirror::new();
        let (own, mesh) = (control_plane.to_owned(), mesh_name.to_owned());
        let keep = move |namespace: Namespace| {
            Some(Membership {
                is_ours: namespace_is_in_mesh(&namespace, &mesh)
                    || namespace.metadata.name.as_deref() == Some(own.as_str()),
                is_going: namespace.metadata.deletion_timestamp.is_some(),
                labels: Arc::new(namespace.metadata.labels.unwrap_or_default()),
            })
        };
        let watch = Watch::new(Api::all(client), |_| {}, meters.kind("Namespace"));
        let task = tokio::spawn(mirror.clone().follow(watch, keep, wake.clone()));
        Self { control_plane: control_plane.into(), mirror, _watch: Arc::new(Ending(task.abort_handle())) }
    }

    /// All of them, once all are known; `None` if they are not after `patience`.
    pub(crate) async fn all(&self, patience: Duration) -> Option<BTreeMap<Name, Membership>> {
        self.mirror.all(patience).await
    }

    /// All of them, if all are known already.
    pub(crate) fn now(&self) -> Option<BTreeMap<Name, Membership>> {
        self.mirror.now()
    }

    /// Whether it is the control plane's own.
    pub(crate) fn is_control_plane(&self, name: &str) -> bool {
        *self.control_plane == *name
    }

    /// The control plane's own.
    pub(crate) fn control_plane(&self) -> &str {
        &self.control_plane
    }

    /// One of them; `None` if it is not known yet. The control plane's own always is.
    pub(crate) fn find(&self, name: &str) -> Option<Membership> {
        if self.is_control_plane(name) {
            return Some(Membership { is_ours: true, is_going: false, labels: Arc::default() });
        }
        self.mirror.find(&named("", name))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}
