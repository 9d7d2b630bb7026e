//! The trust bundle in a ConfigMap of every namespace of the mesh and of the control plane's own.
//!
//! Every replica publishes: the same text, by server-side apply, so that it does not matter who comes first. A
//! ConfigMap that was deleted or edited is put back as soon as its watch tells. A namespace that leaves the mesh keeps
//! its ConfigMap, still kept fresh, because sidecars run on there until their pods are restarted; deleted by hand, it
//! stays deleted. It holds no secret. Its name is the mesh's own, so that a namespace may have those of two meshes: Pods of
//! both run there while it goes from one to the other.
//!
//! A tenant with write access to ConfigMaps can make ours immutable. It is then deleted and made anew. A namespace where
//! that, or anything else, fails is named and does not delay the others.

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
use tidegate_kubernetes::watch::{Name, Watch, WatchMetrics};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::follow::{Kept, Mirror, named};
use super::namespaces::{Membership, Namespaces};
use super::{OwnerLabels, bounded, is_ours, labels};
use crate::store::{BundlePublisher, PublishedBundle, StoreError, Unreached};

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

/// What is read of a ConfigMap.
#[derive(Deserialize)]
struct LeanMap {
    metadata: Meta<Only<OwnerLabels>>,
    #[serde(default)]
    data: Option<Only<BundleKey>>,
    #[serde(default)]
    immutable: Option<bool>,
}

/// The key of the bundle; of a text that is longer than any, as much that it is not taken for one.
struct BundleKey;

impl Wanted for BundleKey {
    const NAMES: &'static [&'static str] = &[TRUST_BUNDLE_KEY];
    const MOST_BYTES: usize = 256 * 1024;
}

/// What counts of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Published {
    /// SHA-256 of the bundle: tenants may write others, and there is one in each namespace.
    digest: Option<[u8; 32]>,
    /// The bundle, of the control plane's own namespace alone.
    pem: Option<Arc<str>>,
    is_ours: bool,
    is_immutable: bool,
    /// It is deleted already; finalizers keep it.
    is_going: bool,
    uid: Option<String>,
}

/// Where something has to be written.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    namespace: String,
    /// Whether a ConfigMap may be made where there is none.
    may_create: bool,
    /// UID of the immutable one that has to go first.
    immutable: Option<String>,
    /// The immutable one is deleted already, and still there.
    is_stuck: bool,
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
        let (mesh, own) = (mesh_name.to_owned(), namespaces.control_plane().to_owned());
        let read = move |text: &str| read(text, &mesh, &own);
        let maps: Api<ConfigMap> = Api::all(client.clone());
        let watch = Watch::lean(maps, read, meters.kind("ConfigMap"));
        let name = trust_bundle_config_map(mesh_name);
        let watch = watch.named(&name);
        watches.spawn(published.clone().follow(watch, wake.clone()));

        Self { client, mesh_name: mesh_name.to_owned(), name, namespaces, published, _watches: watches }
    }

    /// Where something has to be written so that exactly `pem` is published, in a ConfigMap that can be changed.
    async fn missing(&self, pem: &str) -> Option<Vec<Missing>> {
        let (namespaces, published) =
            (self.namespaces.all(PATIENCE).await?, self.published.all(PATIENCE).await?);
        let digest = Some(sha256(pem));
        // Nothing can be written into one that is about to go.
        let staying = namespaces.into_iter().filter(|(_, Membership { is_going, .. })| !is_going);
        let missing =
            staying.filter_map(|(Name { name: namespace, .. }, Membership { is_ours: is_wanted, .. })| {
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
            });
        Some(missing.collect())
    }

    async fn write(&self, missing: Missing, pem: &str) -> Result<(), Unreached> {
        let namespace = missing.namespace.clone();
        self.try_write(missing, pem).await.map_err(|reason| Unreached { namespace, reason })
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
            let parameters = DeleteParams {
                preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
                ..DeleteParams::default()
            };
            warn!(
                namespace,
                name = self.name,
                "the ConfigMap of the trust bundle was made immutable: made anew"
            );
            let failed =
                |error| format!("ConfigMap {} is immutable and cannot be deleted: {error}", self.name);
            let deleted = async {
                match maps.delete(&self.name, &parameters).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                    deleted => deleted.map(drop),
                }
            };
            bounded(deleted).await.map_err(failed)?;
            if !may_create {
                return Ok(());
            }
        }
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
            // The answer is the whole ConfigMap, with whatever else its namespace keeps there.
            match self.client.request::<IgnoredAny>(request).await {
                // It has just gone, or is going.
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
                Err(kube::Error::Api(status)) if status.message.contains("being terminated") => Ok(false),
                applied => applied.map(|_| true),
            }
        };
        match bounded(applied).await {
            Ok(true) => info!(namespace, "trust bundle published"),
            Ok(false) => {}
            Err(error) => return Err(error.to_string()),
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
            .map(|missing| self.write(missing, pem))
            .buffer_unordered(CONCURRENCY);
        let mut unreached = Vec::new();
        while let Some(one) = written.next().await {
            unreached.extend(one.err());
        }
        unreached.sort();
        match unreached.iter().find(|one| self.namespaces.is_control_plane(&one.namespace)) {
            // The control plane's own namespace: nothing in the mesh works without the bundle there.
            Some(own) => Err(StoreError::Other(own.to_string())),
            None if unreached.is_empty() => Ok(()),
            None => Err(StoreError::Unreached(unreached)),
        }
    }

    /// What is in the control plane's own namespace, where no tenant may write.
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

/// Reads a ConfigMap's JSON. Its author chooses what else is in it.
fn read(text: &str, mesh_name: &str, control_plane: &str) -> serde_json::Result<Kept<Published>> {
    let LeanMap { metadata, data, immutable } = serde_json::from_str(text)?;
    let namespace = metadata.namespace.unwrap_or_default();
    let data = data.unwrap_or_default();
    let pem = data.get(TRUST_BUNDLE_KEY);
    let value = Published {
        digest: pem.map(sha256),
        pem: pem.filter(|_| namespace == control_plane).map(Arc::from),
        is_ours: is_ours(metadata.labels.map(|labels| labels.entries).as_ref(), mesh_name),
        is_immutable: immutable == Some(true),
        is_going: metadata.deletion_timestamp.is_some(),
        uid: metadata.uid,
    };
    Ok(Kept { name: named(&namespace, &metadata.name.unwrap_or_default()), value })
}

fn sha256(text: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref());
    digest
}
