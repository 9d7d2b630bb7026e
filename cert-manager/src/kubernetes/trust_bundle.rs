//! The trust bundle in a ConfigMap of every namespace of the mesh and of the control plane's own.
//!
//! Every replica publishes the same text, by server-side apply, in any order. A ConfigMap that was deleted or edited is
//! restored as soon as its watch reports it. A namespace that leaves the mesh keeps its ConfigMap, which is still updated,
//! because sidecars run there until their Pods are restarted; if deleted by hand, it stays deleted. It contains no
//! secrets. Its name depends on the mesh, so that a namespace can have those of two meshes: Pods of both run there while
//! it moves from one to the other.
//!
//! A tenant with write access to ConfigMaps can make ours immutable. It is then deleted and recreated. A namespace where
//! that or anything else fails is reported and does not delay the others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions};
use kube::core::Request;
use kube::{Api, Client};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tidegate_core::contract::names::{CERT_MANAGER, TRUST_BUNDLE_KEY, trust_bundle_config_map};
use tidegate_kubernetes::lean::{Meta, Only, Wanted};
use tidegate_kubernetes::watch::{Name, ObjectWatch, WatchMetrics};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::follow::{MirroredObject, ObjectMirror, named};
use super::namespaces::{MeshMembership, Namespaces};
use super::{OwnerLabels, bounded, is_ours, labels};
use crate::store::{BundlePublisher, PublishedBundle, StoreError, UnpublishedNamespace};

#[cfg(test)]
mod tests;

/// Maximum namespaces that are written to at a time.
const CONCURRENCY: usize = 8;
/// Timeout of the first list.
const PATIENCE: Duration = Duration::from_secs(10);

/// A [`BundlePublisher`] to a mesh's namespaces.
pub(crate) struct TrustBundleConfigMaps {
    client: Client,
    mesh_name: String,
    /// The ConfigMap's name.
    name: String,
    namespaces: Namespaces,
    published: Arc<ObjectMirror<PublishedConfigMap>>,
    /// Aborted when this is dropped.
    _watches: JoinSet<()>,
}

/// The fields of a ConfigMap that are read.
#[derive(Deserialize)]
struct LeanMap {
    metadata: Meta<Only<OwnerLabels>>,
    #[serde(default)]
    data: Option<Only<BundleKey>>,
    #[serde(default)]
    immutable: Option<bool>,
}

/// The key of the bundle. A longer text than any bundle is cut so that it still differs.
struct BundleKey;

impl Wanted for BundleKey {
    const NAMES: &'static [&'static str] = &[TRUST_BUNDLE_KEY];
    const MOST_BYTES: usize = 256 * 1024;
}

/// The relevant fields of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PublishedConfigMap {
    /// SHA-256 of the bundle, because there is one in each namespace, and tenants may write large ones.
    digest: Option<[u8; 32]>,
    /// The bundle, only in the control plane's own namespace.
    pem: Option<Arc<str>>,
    is_ours: bool,
    is_immutable: bool,
    /// It is being deleted, and finalizers keep it.
    is_going: bool,
    uid: Option<String>,
}

/// A namespace that needs a write.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    namespace: String,
    /// Whether to create the ConfigMap if it does not exist.
    may_create: bool,
    /// UID of the immutable one that has to be deleted first.
    immutable: Option<String>,
    /// The immutable one is being deleted but still exists.
    is_stuck: bool,
}

impl TrustBundleConfigMaps {
    /// Publishes for `mesh_name` to its `namespaces`. Watches ConfigMaps, and notifies `wake` when one changes.
    pub(crate) fn start(
        client: Client,
        namespaces: Namespaces,
        mesh_name: &str,
        wake: &Arc<Notify>,
        meters: &WatchMetrics,
    ) -> Self {
        let published = ObjectMirror::new();
        let mut watches = JoinSet::new();
        let (mesh, own) = (mesh_name.to_owned(), namespaces.control_plane().to_owned());
        let read = move |text: &str| read(text, &mesh, &own);
        let maps: Api<ConfigMap> = Api::all(client.clone());
        let watch = ObjectWatch::lean(maps, read, meters.kind("ConfigMap"));
        let name = trust_bundle_config_map(mesh_name);
        let watch = watch.named(&name);
        watches.spawn(published.clone().follow(watch, wake.clone()));

        Self { client, mesh_name: mesh_name.to_owned(), name, namespaces, published, _watches: watches }
    }

    /// The writes that are needed so that exactly `pem` is published, in ConfigMaps that can be changed.
    async fn missing(&self, pem: &str) -> Option<Vec<Missing>> {
        let (namespaces, published) =
            (self.namespaces.all(PATIENCE).await?, self.published.all(PATIENCE).await?);
        let digest = Some(sha256(pem));
        // One that is being deleted cannot be written to.
        let staying = namespaces.into_iter().filter(|(_, MeshMembership { is_going, .. })| !is_going);
        let missing = staying.filter_map(
            |(Name { name: namespace, .. }, MeshMembership { is_ours: is_wanted, .. })| {
                let found = published.get(&named(&namespace, &self.name));
                let is_missing = match found {
                    Some(found) if found.is_ours => found.digest != digest || found.is_immutable,
                    _ => is_wanted,
                };
                let immutable = found.filter(|found| found.is_immutable);
                is_missing.then(|| Missing {
                    namespace,
                    may_create: is_wanted,
                    immutable: immutable.and_then(|found| found.uid.clone()),
                    is_stuck: immutable.is_some_and(|found| found.is_going),
                })
            },
        );
        Some(missing.collect())
    }

    /// Makes one namespace right; a failure is reported with the namespace and does not concern the others.
    async fn write(&self, missing: Missing, pem: &str) -> Result<(), UnpublishedNamespace> {
        let namespace = missing.namespace.clone();
        self.try_write(missing, pem).await.map_err(|reason| UnpublishedNamespace { namespace, reason })
    }

    async fn try_write(&self, missing: Missing, pem: &str) -> Result<(), String> {
        let Missing { namespace, may_create, immutable, is_stuck } = missing;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
        if is_stuck {
            return Err(format!(
                "ConfigMap {} is immutable, and its finalizers keep it from being deleted",
                self.name
            ));
        }
        if let Some(uid) = immutable {
            warn!(
                namespace,
                name = self.name,
                "the ConfigMap of the trust bundle was made immutable: recreated"
            );
            self.delete(&maps, uid).await?;
            if !may_create {
                return Ok(());
            }
        }
        if self.apply(&maps, may_create, pem).await.map_err(|error| error.to_string())? {
            info!(namespace, "trust bundle published");
        }
        Ok(())
    }

    /// Deletes the ConfigMap with this UID, and not one that has replaced it. It may be gone already.
    async fn delete(&self, maps: &Api<ConfigMap>, uid: String) -> Result<(), String> {
        let parameters = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
            ..DeleteParams::default()
        };
        let deleted = async {
            match maps.delete(&self.name, &parameters).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                deleted => deleted.map(drop),
            }
        };
        let failed = |error| format!("ConfigMap {} is immutable and cannot be deleted: {error}", self.name);
        bounded(deleted).await.map_err(failed)
    }

    /// Writes the bundle by server-side apply, or by a merge patch, which never creates a ConfigMap. Returns false if there
    /// was nothing to write to: the ConfigMap or its namespace is being deleted.
    async fn apply(&self, maps: &Api<ConfigMap>, may_create: bool, pem: &str) -> Result<bool, StoreError> {
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
            (PatchParams::apply(CERT_MANAGER).force(), Patch::Apply(&wanted))
        } else {
            (PatchParams::default(), Patch::Merge(&wanted))
        };
        let applied = async {
            let request = Request::new(maps.resource_url()).patch(&self.name, &parameters, &patch);
            let request = request.map_err(kube::Error::BuildRequest)?;
            // The response is the whole ConfigMap, with content by others.
            match self.client.request::<IgnoredAny>(request).await {
                // It was just deleted, or is being deleted.
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
                Err(kube::Error::Api(status)) if status.message.contains("being terminated") => Ok(false),
                applied => applied.map(|_| true),
            }
        };
        bounded(applied).await
    }
}

#[tonic::async_trait]
impl BundlePublisher for TrustBundleConfigMaps {
    async fn publish(&self, pem: &str) -> Result<(), StoreError> {
        let missing = self.missing(pem).await.ok_or_else(|| {
            StoreError::Other("the API server has not yet listed namespaces and ConfigMaps".to_owned())
        })?;
        let mut written = futures_util::stream::iter(missing)
            .map(|missing| self.write(missing, pem))
            .buffer_unordered(CONCURRENCY);
        let mut unreached = Vec::new();
        while let Some(one) = written.next().await {
            unreached.extend(one.err());
        }
        unreached.sort();
        match unreached.iter().find(|one| self.namespaces.is_control_plane(&one.namespace)) {
            // The control plane's own namespace: the whole mesh depends on the bundle there.
            Some(own) => Err(StoreError::Other(own.to_string())),
            None if unreached.is_empty() => Ok(()),
            None => Err(StoreError::Unreached(unreached)),
        }
    }

    /// The bundle in the control plane's own namespace, where tenants may not write.
    async fn published(&self) -> Result<Option<PublishedBundle>, StoreError> {
        let all =
            self.published.all(PATIENCE).await.ok_or_else(|| {
                StoreError::Other("the API server has not yet listed ConfigMaps".to_owned())
            })?;
        let namespace = self.namespaces.control_plane();
        let found = all.get(&named(namespace, &self.name)).filter(|found| found.is_ours);
        let pem = found.and_then(|found| found.pem.clone());
        let pem = pem.map(|pem| pem.to_string());
        Ok(pem.map(|pem| PublishedBundle { place: format!("ConfigMap {namespace}/{}", self.name), pem }))
    }
}

impl std::fmt::Debug for TrustBundleConfigMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustBundleConfigMaps").field("mesh_name", &self.mesh_name).finish_non_exhaustive()
    }
}

/// Parses a ConfigMap's JSON, which may have any other content.
fn read(
    text: &str,
    mesh_name: &str,
    control_plane: &str,
) -> serde_json::Result<MirroredObject<PublishedConfigMap>> {
    let LeanMap { metadata, data, immutable } = serde_json::from_str(text)?;
    let namespace = metadata.namespace.unwrap_or_default();
    let data = data.unwrap_or_default();
    let pem = data.get(TRUST_BUNDLE_KEY);
    let value = PublishedConfigMap {
        digest: pem.map(sha256),
        pem: pem.filter(|_| namespace == control_plane).map(Arc::from),
        is_ours: is_ours(metadata.labels.map(|labels| labels.entries).as_ref(), mesh_name),
        is_immutable: immutable == Some(true),
        is_going: metadata.deletion_timestamp.is_some(),
        uid: metadata.uid,
    };
    Ok(MirroredObject { name: named(&namespace, &metadata.name.unwrap_or_default()), value })
}

fn sha256(text: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref());
    digest
}
