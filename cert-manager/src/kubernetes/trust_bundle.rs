//! The trust bundle in a ConfigMap of every namespace of the mesh and of the control plane's own.
//!
//! Every replica publishes: the same text, by server-side apply, so that it does not matter who comes first. A
//! ConfigMap that was deleted or edited is put back as soon as its watch tells. A namespace that leaves the mesh keeps
//! its ConfigMap, still kept fresh, because sidecars run on there until their pods are restarted; deleted by hand, it
//! stays deleted. It holds no secret. Its name is the mesh's own, so that a namespace may have those of two meshes: Pods of
//! both run there while it goes from one to the other.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use tidegate_crds::injection::{TRUST_BUNDLE_KEY, trust_bundle_config_map};
use tidegate_kubernetes::watch::{Name, Watch, WatchMetrics};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::info;

use super::follow::{Mirror, named};
use super::namespaces::{Membership, Namespaces};
use super::{MANAGER, bounded, is_ours, labels};
use crate::store::{BundlePublisher, StoreError};

#[cfg(test)]
mod tests;

/// Namespaces that are written to at a time.
const CONCURRENCY: usize = 8;
/// How long the first list may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A [`BundlePublisher`] to a mesh's namespaces.
pub struct TrustBundleConfigMaps {
    client: Client,
    mesh_name: String,
    /// The ConfigMap's name.
    name: String,
    namespaces: Namespaces,
    published: Arc<Mirror<Published>>,
    /// Ends with this.
    _watches: JoinSet<()>,
}

/// What counts of a ConfigMap.
#[derive(Clone)]
struct Published {
    pem: Option<String>,
    is_ours: bool,
}

impl TrustBundleConfigMaps {
    /// Publishes for `mesh_name` to its `namespaces`. Watches ConfigMaps, and pokes `wake` when one changes.
    pub fn start(
        client: Client,
        namespaces: Namespaces,
        mesh_name: &str,
        wake: &Arc<Notify>,
        meters: &WatchMetrics,
    ) -> Self {
        let published = Mirror::new();
        let mut watches = JoinSet::new();
        let mesh = mesh_name.to_owned();
        let keep = move |map: ConfigMap| {
            let is_ours = is_ours(&map.metadata, &mesh);
            Some(Published { pem: map.data.and_then(|mut data| data.remove(TRUST_BUNDLE_KEY)), is_ours })
        };
        let watch = Watch::new(Api::all(client.clone()), |_| {}, meters.kind("ConfigMap"));
        let name = trust_bundle_config_map(mesh_name);
        let watch = watch.named(&name);
        watches.spawn(published.clone().follow(watch, keep, wake.clone()));

        Self { client, mesh_name: mesh_name.to_owned(), name, namespaces, published, _watches: watches }
    }

    /// Where something has to be written so that exactly `pem` is published, and whether it may be created there.
    async fn missing(&self, pem: &str) -> Option<Vec<(String, bool)>> {
        let (namespaces, published) =
            (self.namespaces.all(PATIENCE).await?, self.published.all(PATIENCE).await?);
        // Nothing can be written into one that is about to go.
        let staying = namespaces.into_iter().filter(|(_, Membership { is_going, .. })| !is_going);
        let missing =
            staying.filter_map(|(Name { name: namespace, .. }, Membership { is_ours: is_wanted, .. })| {
                let is_missing = match published.get(&named(&namespace, &self.name)) {
                    Some(found) if found.is_ours => found.pem.as_deref() != Some(pem),
                    _ => is_wanted,
                };
                is_missing.then_some((namespace, is_wanted))
            });
        Some(missing.collect())
    }

    async fn write(&self, namespace: &str, may_create: bool, pem: &str) -> Result<(), StoreError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let wanted = ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(labels(&self.mesh_name)),
                ..ObjectMeta::default()
            },
            data: Some([(TRUST_BUNDLE_KEY.to_owned(), pem.to_owned())].into()),
            ..ConfigMap::default()
        };
        let (parameters, patch) = if may_create {
            (PatchParams::apply(MANAGER).force(), Patch::Apply(&wanted))
        } else {
            (PatchParams::default(), Patch::Merge(&wanted))
        };
        let applied = async {
            match maps.patch(&self.name, &parameters, &patch).await {
                // It has just gone, or is going.
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
                Err(kube::Error::Api(status)) if status.message.contains("being terminated") => Ok(false),
                applied => applied.map(|_| true),
            }
        };
        match bounded(applied).await {
            Ok(true) => info!(namespace, "trust bundle published"),
            Ok(false) => {}
            Err(error) => return Err(StoreError::Other(format!("namespace {namespace}: {error}"))),
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl BundlePublisher for TrustBundleConfigMaps {
    async fn publish(&self, pem: &str) -> Result<(), StoreError> {
        let missing = self.missing(pem).await.ok_or_else(|| {
            StoreError::Other("the API server has not yet listed namespaces and ConfigMaps".to_owned())
        })?;
        let mut written = futures_util::stream::iter(missing)
            .map(|(namespace, may_create)| async move { self.write(&namespace, may_create, pem).await })
            .buffer_unordered(CONCURRENCY);
        let mut result = Ok(());
        while let Some(one) = written.next().await {
            if one.is_err() {
                result = one;
            }
        }
        result
    }
}

impl std::fmt::Debug for TrustBundleConfigMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustBundleConfigMaps").field("mesh_name", &self.mesh_name).finish_non_exhaustive()
    }
}
