//! What the webhook knows of the cluster: namespaces and the MeshConfig. Both are followed, so that a request does not wait
//! for the API server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use serde::Deserialize;
use tidegate_core::contract::names::MESH_CONFIG_NAME;
use tidegate_crds::{MeshConfig, MeshConfigSpec, stored};
use tidegate_kubernetes::watch::{Event, ObjectWatch, WatchMetrics};
use tidegate_runtime::readiness::Readiness;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::decision::NamespaceView;
use crate::settings::{MeshConfigError, MeshSettings};

/// How long a request waits for a namespace that the API server knows to be of the mesh and we do not yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known at a moment. Clones share it.
#[derive(Clone, Debug)]
pub struct ClusterState {
    namespaces: watch::Receiver<HashMap<String, Arc<NamespaceView>>>,
    mesh: watch::Receiver<Result<Arc<MeshSettings>, MeshConfigError>>,
    /// How long a namespace that is not known yet is waited for.
    pub(crate) patience: Duration,
}

/// Writes what a [`ClusterState`] reads.
#[derive(Debug)]
pub struct ClusterStateWriter {
    /// All namespaces by name.
    pub(crate) namespaces: watch::Sender<HashMap<String, Arc<NamespaceView>>>,
    /// What the MeshConfig says, or why it cannot be read.
    pub(crate) mesh: watch::Sender<Result<Arc<MeshSettings>, MeshConfigError>>,
}

impl ClusterState {
    /// An empty state, and its writer.
    pub fn new() -> (ClusterStateWriter, Self) {
        let (namespaces, namespaces_receiver) = watch::channel(HashMap::new());
        let (mesh, mesh_receiver) = watch::channel(Ok(Arc::default()));
        (
            ClusterStateWriter { namespaces, mesh },
            Self { namespaces: namespaces_receiver, mesh: mesh_receiver, patience: PATIENCE },
        )
    }

    /// What the MeshConfig says.
    pub(crate) fn mesh(&self) -> Result<Arc<MeshSettings>, MeshConfigError> {
        self.mesh.borrow().clone()
    }

    /// A namespace for which the API server has asked us, so that it belongs to the mesh: if it does not as far as we
    /// know, our watch lags, and it is waited for, shortly. `None` if it is unknown even then.
    pub(crate) async fn namespace(&self, name: &str, mesh_name: &str) -> Option<Arc<NamespaceView>> {
        let mut namespaces = self.namespaces.clone();
        let is_there = |namespaces: &HashMap<String, Arc<NamespaceView>>| {
            namespaces.get(name).is_some_and(|namespace| namespace.is_in_mesh(mesh_name))
        };
        // Either way the newest is taken.
        let _ = tokio::time::timeout(self.patience, namespaces.wait_for(is_there)).await;
        self.namespaces.borrow().get(name).cloned()
    }
}

impl ClusterStateWriter {
    /// Follows the API server until it is dropped. Readiness is blocked from this call on until all is read.
    pub fn follow(
        self,
        client: Client,
        control_plane: &str,
        metrics: &WatchMetrics,
        readiness: &Readiness,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (namespace_sender, namespace_events) = mpsc::channel(16);
        let (mesh_sender, mesh_events) = mpsc::channel(4);
        let namespaces = ObjectWatch::lean(
            Api::<Namespace>::all(client.clone()),
            NamespaceView::parse,
            metrics.kind("Namespace"),
        );
        let mesh_config = ObjectWatch::lean(
            Api::<MeshConfig>::namespaced(client, control_plane),
            // The watch does not fail for a MeshConfig that cannot be read: the error is returned when a Pod is created.
            |text| Ok(read(text)),
            metrics.kind("MeshConfig"),
        )
        .named(MESH_CONFIG_NAME);
        let blockers = (readiness.block("namespaces"), readiness.block("MeshConfig"));
        async move {
            tokio::join!(
                namespaces.run(namespace_sender, |event| event),
                mesh_config.run(mesh_sender, |event| event),
                keep_namespaces(namespace_events, self.namespaces, blockers.0),
                keep_mesh(mesh_events, self.mesh, blockers.1),
            );
        }
    }
}

/// Applies events until the watch ends. `blocker` keeps the process from being ready until the first list, without
/// which every Pod would be refused.
async fn keep_namespaces(
    mut events: mpsc::Receiver<Event<NamespaceView>>,
    sender: watch::Sender<HashMap<String, Arc<NamespaceView>>>,
    blocker: impl Sized,
) {
    let mut blocker = Some(blocker);
    while let Some(event) = events.recv().await {
        let Event::Changed { applied, deleted } = event else { continue };
        sender.send_modify(|namespaces| {
            for name in deleted {
                namespaces.remove(&name.name);
            }
            for namespace in applied {
                namespaces.insert(namespace.name.clone(), Arc::new(namespace));
            }
        });
        blocker = None;
    }
    drop(blocker);
}

/// The same for the MeshConfig. A deleted one means OSM's defaults; one that cannot be read is an error for each Pod,
/// because sidecars with other settings than the operator's would be worse than none.
async fn keep_mesh(
    mut events: mpsc::Receiver<Event<Result<MeshSettings, MeshConfigError>>>,
    sender: watch::Sender<Result<Arc<MeshSettings>, MeshConfigError>>,
    blocker: impl Sized,
) {
    let mut blocker = Some(blocker);
    let mut config = None;
    while let Some(event) = events.recv().await {
        if matches!(event, Event::Unreadable(_)) {
            continue;
        }
        event.update(&mut config);
        let settings = config.clone().unwrap_or_else(|| Ok(MeshSettings::default())).map(Arc::new);
        match &settings {
            Ok(_) => info!("MeshConfig read"),
            Err(error) => warn!(%error, "no sidecar can be added until this is mended"),
        }
        drop(sender.send_replace(settings));
        blocker = None;
    }
    drop(blocker);
}

/// Of the spec, up to the bounds of its definition; the rest of the object is not decoded.
fn read(text: &str) -> Result<MeshSettings, MeshConfigError> {
    #[derive(Deserialize)]
    struct MeshConfigSpecOnly {
        spec: MeshConfigSpec,
    }
    match serde_json::from_str::<MeshConfigSpecOnly>(text) {
        Ok(MeshConfigSpecOnly { spec }) => MeshSettings::parse(Some(&spec)),
        Err(error) => Err(stored::explained::<MeshConfig>(text, &error).1.into()),
    }
}
