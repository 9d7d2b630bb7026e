//! Which namespaces are in the mesh: they get the trust bundle, and their workloads get certificates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use serde::Deserialize;
use tidegate_crds::injection::is_in_mesh;
use tidegate_kubernetes::lean::{BoundedEntries, MembershipLabels, Meta, Only};
use tidegate_kubernetes::watch::{Name, ObjectWatch, WatchMetrics};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::follow::{MirroredObject, ObjectMirror, named};

/// Maximum labels of a namespace that are kept, and maximum bytes of them. A namespace with more does not match any
/// selector, but is in the mesh if its labels say so.
pub(crate) const MOST_LABELS: usize = 128;
/// See [`MOST_LABELS`].
pub(crate) const MOST_LABEL_BYTES: usize = 8 * 1024;

/// Follows the labels of all namespaces until its last copy is dropped.
#[derive(Clone)]
pub(crate) struct Namespaces {
    control_plane: Arc<str>,
    mirror: Arc<ObjectMirror<MeshMembership>>,
    _watch: Arc<AbortOnDrop>,
}

/// The relevant fields of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeshMembership {
    /// Whether it is in the mesh, or the control plane's own.
    pub(crate) is_ours: bool,
    /// Whether it is being deleted: its Pods run for a while longer, and nothing can be created in it.
    pub(crate) is_going: bool,
    /// Its labels; `None` if there are too many.
    pub(crate) labels: Option<Arc<BTreeMap<String, String>>>,
}

/// Ends the task with the last copy of [`Namespaces`].
struct AbortOnDrop(AbortHandle);

impl Namespaces {
    /// Starts to follow those of `mesh_name`, whose control plane runs in the namespace `control_plane`; notifies `wake`
    /// when one changes.
    pub(crate) fn start(
        client: Client,
        control_plane: &str,
        mesh_name: &str,
        wake: &Arc<Notify>,
        meters: &WatchMetrics,
    ) -> Self {
        let mirror = ObjectMirror::new();
        let (own, mesh) = (control_plane.to_owned(), mesh_name.to_owned());
        let read = move |text: &str| read(text, &mesh, &own);
        let watch = ObjectWatch::lean(Api::<Namespace>::all(client), read, meters.kind("Namespace"));
        let task = tokio::spawn(mirror.clone().follow(watch, wake.clone()));
        Self {
            control_plane: control_plane.into(),
            mirror,
            _watch: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// All of them, once they are listed; `None` if they are not within `patience`.
    pub(crate) async fn all(&self, patience: Duration) -> Option<BTreeMap<Name, MeshMembership>> {
        self.mirror.all(patience).await
    }

    /// All of them, if they were listed already.
    pub(crate) fn now(&self) -> Option<BTreeMap<Name, MeshMembership>> {
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

    /// One of them; `None` if it was not listed yet. The control plane's own always exists.
    pub(crate) fn find(&self, name: &str) -> Option<MeshMembership> {
        if self.is_control_plane(name) {
            return Some(MeshMembership { is_ours: true, is_going: false, labels: None });
        }
        self.mirror.find(&named("", name))
    }
}

/// Parses a Namespace's JSON twice: whether it is in the mesh must not depend on the number of other labels.
fn read(
    text: &str,
    mesh_name: &str,
    control_plane: &str,
) -> serde_json::Result<MirroredObject<MeshMembership>> {
    #[derive(Deserialize)]
    struct LabelledNamespace<L> {
        #[serde(bound = "L: Deserialize<'de>")]
        metadata: Meta<L>,
    }
    let LabelledNamespace::<Only<MembershipLabels>> { metadata } = serde_json::from_str(text)?;
    let name = metadata.name.unwrap_or_default();
    let is_in_mesh = is_in_mesh(metadata.labels.map(|labels| labels.entries).as_ref(), mesh_name);
    let LabelledNamespace::<BoundedEntries<MOST_LABELS, MOST_LABEL_BYTES>> { metadata: all } =
        serde_json::from_str(text)?;
    let labels = all.labels.unwrap_or_default();
    let value = MeshMembership {
        is_ours: is_in_mesh || name == control_plane,
        is_going: metadata.deletion_timestamp.is_some(),
        labels: (!labels.has_more).then(|| Arc::new(labels.entries)),
    };
    Ok(MirroredObject { name: named("", &name), value })
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
