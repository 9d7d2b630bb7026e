//! The ingress controller's certificate in a Secret of any namespace.
//!
//! It is changed in place; labels and annotations by others stay. An annotation of the root's Secret records what was
//! written, so that an old Secret is found again without permission to list the Secrets of a cluster; only one that still
//! has our label is deleted, or recreated if it has become immutable.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};
use kube::core::Request;
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tidegate_core::contract::annotations::GATEWAY_SECRETS;
use tidegate_core::contract::labels::INSTANCE;
use tidegate_kubernetes::lean::{self, First, Meta, Only, Wanted};
use tidegate_kubernetes::watch::{KindMeter, ObjectWatch};
use tokio::sync::{Notify, watch};
use tracing::warn;

use super::follow::poke;
use super::root_secret::RootSecret;
use super::{OwnerLabels, bounded, is_ours, labels};
use crate::ingress_gateway::IngressGatewaySettings;
use crate::store::{SecretName, SecretStore, StoreError, TlsSecret};

#[cfg(test)]
mod tests;

/// The type of Secret that ingress controllers read client certificates from. A Secret's type cannot be changed.
const TLS: &str = "kubernetes.io/tls";
/// The type of Secret from which NGINX Inc.'s ingress controller reads roots, under the key `ca.crt`.
const CA: &str = "nginx.org/ca";
/// Added to the API server's refusal.
const RIGHTS_HINT: &str = "; add the namespace to the chart's value certManager.gatewaySecretNamespaces";

/// The fields of a Secret that are read.
#[derive(Deserialize)]
struct LeanSecret {
    metadata: Meta<Only<OwnerLabels>>,
    #[serde(default, rename = "type")]
    type_: Option<String>,
    #[serde(default)]
    data: Option<Only<SecretKeys>>,
}

/// The keys that we write. A value that is longer than any of ours is cut so that it still differs.
struct SecretKeys;

impl Wanted for SecretKeys {
    const NAMES: &'static [&'static str] = &["ca.crt", "tls.crt", "tls.key"];
    const MOST_BYTES: usize = 256 * 1024;
}

/// A [`SecretStore`] on Kubernetes.
#[derive(Clone)]
pub(crate) struct GatewaySecrets {
    client: Client,
    root: RootSecret,
    mesh_name: String,
}

impl GatewaySecrets {
    /// Writes Secrets for `mesh_name`; `root` records which.
    pub(crate) fn new(client: Client, root: RootSecret, mesh_name: &str) -> Self {
        Self { client, root, mesh_name: mesh_name.to_owned() }
    }

    fn secrets(&self, name: &SecretName) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &name.namespace)
    }

    /// [`bounded`], with a hint about a missing permission, because namespaces are granted one by one.
    async fn asked<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, StoreError> {
        let hinted = async {
            request.await.map_err(|error| match error {
                kube::Error::Api(mut status) if status.is_forbidden() => {
                    status.message.push_str(RIGHTS_HINT);
                    kube::Error::Api(status)
                }
                other => other,
            })
        };
        bounded(hinted).await
    }

    /// Whether the namespace does not exist. Uses a list, for which permission exists already.
    async fn is_gone(&self, namespace: &str) -> bool {
        #[derive(Deserialize)]
        struct NamespaceList {
            items: First<IgnoredAny, 1>,
        }
        let only = ListParams::default().fields(&format!("metadata.name={namespace}"));
        let found = async {
            let request = Request::new(Namespace::url_path(&(), None)).list(&only);
            self.client.request::<NamespaceList>(request.map_err(kube::Error::BuildRequest)?).await
        };
        bounded(found).await.is_ok_and(|found| found.items.0.is_empty())
    }

    /// Deletes a Secret that has our labels; any other one stays.
    async fn delete(&self, name: &SecretName) -> Result<(), StoreError> {
        let secrets = self.secrets(name);
        let found = self.asked(secrets.get_metadata_opt(&name.name)).await?;
        let Some(found) = found.filter(|found| is_ours(found.metadata.labels.as_ref(), &self.mesh_name))
        else {
            return Ok(());
        };
        self.asked(secrets.delete(&name.name, &exactly(found.metadata))).await.map(|_| ())
    }

    /// Removes a Secret from those that the root's annotation records.
    async fn forget(&self, name: &SecretName) -> Result<(), StoreError> {
        self.root.annotate(GATEWAY_SECRETS, |text| join(&without(parse(text), name))).await
    }
}

/// Watches the Secret that the settings name, and notifies `wake` when it changes, as long as it is polled.
pub(crate) async fn follow(
    client: Client,
    mut settings: watch::Receiver<Option<IngressGatewaySettings>>,
    wake: Arc<Notify>,
    meter: KindMeter,
) {
    loop {
        let name = settings.borrow_and_update().as_ref().map(|settings| settings.secret.clone());
        let following = async {
            match &name {
                Some(name) => {
                    let api: Api<Secret> = Api::namespaced(client.clone(), &name.namespace);
                    // Its keys are read when they are needed.
                    let watch = ObjectWatch::lean(api, |_| Ok(()), meter.clone()).named(&name.name);
                    poke(watch, wake.clone()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = following => {}
            changed = settings.changed() => if changed.is_err() { return },
        }
    }
}

impl GatewaySecrets {
    /// Creates a Secret or sets `values` in it; other keys, labels and annotations stay. Recorded before it is written,
    /// so that a Secret is never left behind unrecorded.
    async fn write(&self, name: &SecretName, kind: &str, values: &[(&str, &str)]) -> Result<(), StoreError> {
        self.remember(name).await?;
        let secrets = self.secrets(name);
        let found = match self.asked(secrets.get_opt(&name.name)).await? {
            Some(secret) => {
                check_type(secret.type_.as_deref(), kind)?;
                Some(self.check_mesh(secret)?)
            }
            None => None,
        };
        // It cannot be changed, so its certificate would expire.
        let (found, immutable) = match found {
            Some(secret) if secret.immutable == Some(true) => (None, Some(secret)),
            found => (found, None),
        };
        if let Some(Secret { metadata, .. }) = immutable {
            warn!(secret = %name, "the Secret was made immutable: recreated");
            self.asked(secrets.delete(&name.name, &exactly(metadata))).await?;
        }
        let is_new = found.is_none();
        let mut secret = found.unwrap_or_else(|| Secret {
            metadata: ObjectMeta { name: Some(name.name.clone()), ..ObjectMeta::default() },
            type_: Some(kind.to_owned()),
            ..Secret::default()
        });
        secret.metadata.labels.get_or_insert_default().extend(labels(&self.mesh_name));
        let data = secret.data.get_or_insert_default();
        for (key, value) in values {
            data.insert((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
        }
        let parameters = PostParams::default();
        if is_new {
            self.asked(secrets.create(&parameters, &secret)).await?;
        } else {
            self.asked(secrets.replace(&name.name, &parameters, &secret)).await?;
        }
        Ok(())
    }

    /// The values of one of our Secrets, if all exist. Other content is not decoded.
    async fn read<const N: usize>(
        &self,
        name: &SecretName,
        kind: &str,
        keys: [&str; N],
    ) -> Result<Option<[String; N]>, StoreError> {
        let secrets = self.secrets(name);
        let Some(secret) = self.asked(lean::get::<_, LeanSecret>(&secrets, &name.name)).await? else {
            return Ok(None);
        };
        check_type(secret.type_.as_deref(), kind)?;
        if !is_ours(secret.metadata.labels.map(|labels| labels.entries).as_ref(), &self.mesh_name) {
            return Ok(None);
        }
        let data = secret.data.unwrap_or_default();
        let values = keys.iter().map_while(|key| {
            String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data.get(key)?).ok()?).ok()
        });
        Ok(values.collect::<Vec<_>>().try_into().ok())
    }

    /// Kept by the certificate authority of another mesh: the two would overwrite it in turns.
    fn check_mesh(&self, secret: Secret) -> Result<Secret, StoreError> {
        let labels = secret.metadata.labels.as_ref();
        let mesh = labels.and_then(|labels| labels.get(INSTANCE));
        match mesh.filter(|mesh| is_ours(labels, mesh) && **mesh != self.mesh_name) {
            Some(mesh) => Err(StoreError::Other(format!(
                "is there and belongs to mesh {mesh:?}, not to {:?}; it is left alone: name another Secret or delete \
                 this one",
                self.mesh_name
            ))),
            None => Ok(secret),
        }
    }
}

#[tonic::async_trait]
impl SecretStore for GatewaySecrets {
    async fn put(&self, name: &SecretName, values: &TlsSecret) -> Result<(), StoreError> {
        let values =
            [("ca.crt", &*values.ca_crt), ("tls.crt", &*values.tls_crt), ("tls.key", &*values.tls_key)];
        self.write(name, TLS, &values).await
    }

    async fn get(&self, name: &SecretName) -> Result<Option<TlsSecret>, StoreError> {
        let read = self.read(name, TLS, ["ca.crt", "tls.crt", "tls.key"]).await?;
        Ok(read.map(|[ca_crt, tls_crt, tls_key]| TlsSecret { ca_crt, tls_crt, tls_key }))
    }

    async fn put_roots(&self, name: &SecretName, roots: &str) -> Result<(), StoreError> {
        self.write(name, CA, &[("ca.crt", roots)]).await
    }

    async fn get_roots(&self, name: &SecretName) -> Result<Option<String>, StoreError> {
        Ok(self.read(name, CA, ["ca.crt"]).await?.map(|[roots]| roots))
    }

    async fn remove(&self, name: &SecretName) -> Result<(), StoreError> {
        match self.delete(name).await {
            // The Secret is gone with its namespace, and so is our permission to look for it.
            Err(_) if self.is_gone(&name.namespace).await => {}
            deleted => deleted?,
        }
        self.forget(name).await
    }

    async fn remember(&self, name: &SecretName) -> Result<(), StoreError> {
        self.root.annotate(GATEWAY_SECRETS, |text| join(&with(parse(text), name))).await
    }

    async fn owned(&self) -> Result<Vec<SecretName>, StoreError> {
        let text = self.root.annotation(GATEWAY_SECRETS).await?;
        Ok(parse(text.as_deref()).into_iter().collect())
    }
}

impl std::fmt::Debug for GatewaySecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewaySecrets").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Deletes the object that was read, and not one that replaced it since.
fn exactly(metadata: ObjectMeta) -> DeleteParams {
    let preconditions = Preconditions { uid: metadata.uid, resource_version: metadata.resource_version };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

/// An error unless the Secret has the type that it should have.
fn check_type(found: Option<&str>, kind: &str) -> Result<(), StoreError> {
    match found {
        Some(found) if found == kind => Ok(()),
        other => Err(StoreError::Other(format!(
            "is there with type {:?}, which cannot be changed to {kind:?}; it is left alone: name another Secret or \
             delete this one",
            other.unwrap_or("Opaque")
        ))),
    }
}

/// The Secrets that the annotation records: `namespace/name`, separated by commas. Anything else in it is skipped.
fn parse(text: Option<&str>) -> BTreeSet<SecretName> {
    let names = text.unwrap_or_default().split(',').filter_map(|name| {
        let (namespace, name) = name.trim().split_once('/')?;
        Some(SecretName { namespace: namespace.to_owned(), name: name.to_owned() })
    });
    names.collect()
}

fn with(mut names: BTreeSet<SecretName>, name: &SecretName) -> BTreeSet<SecretName> {
    names.insert(name.clone());
    names
}

fn without(mut names: BTreeSet<SecretName>, name: &SecretName) -> BTreeSet<SecretName> {
    names.remove(name);
    names
}

/// The annotation's text; `None` removes it.
fn join(names: &BTreeSet<SecretName>) -> Option<String> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    (!names.is_empty()).then(|| names.join(","))
}
