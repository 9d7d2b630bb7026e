//! The certificate authority in a Secret that all replicas share.
//!
//! The replica that creates it first decides the root. Later writes carry the resource version that they are based on, so
//! that only one of several concurrent ones succeeds. Labels and annotations by others stay.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tidegate_core::contract::names::ROOT_SECRET;

use super::{bounded, labels};
use crate::store::{NamedValues, RootStore, StoreError, StoredValues};

#[cfg(test)]
mod tests;

/// How often to retry a change because another client was faster.
const MAX_TRIES: usize = 5;

/// A [`RootStore`] on the Secret [`ROOT_SECRET`].
#[derive(Clone)]
pub(crate) struct RootSecret {
    secrets: Api<Secret>,
    namespace: String,
    mesh_name: String,
}

impl RootSecret {
    /// Stores the authority of `mesh_name` in the control plane's `namespace`.
    pub(crate) fn new(client: Client, namespace: &str, mesh_name: &str) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            mesh_name: mesh_name.to_owned(),
        }
    }

    /// The value of an annotation of the Secret.
    pub(crate) async fn annotation(&self, name: &str) -> Result<Option<String>, StoreError> {
        let secret = bounded(self.secrets.get_metadata_opt(ROOT_SECRET)).await?;
        Ok(secret.and_then(|mut secret| secret.metadata.annotations.as_mut()?.remove(name)))
    }

    /// Replaces an annotation of the Secret, if it exists; `None` removes it.
    pub(crate) async fn annotate(
        &self,
        name: &str,
        change: impl Fn(Option<&str>) -> Option<String>,
    ) -> Result<(), StoreError> {
        for _ in 0..MAX_TRIES {
            let Some(mut secret) = bounded(self.secrets.get_opt(ROOT_SECRET)).await? else { return Ok(()) };
            let annotations = secret.metadata.annotations.get_or_insert_default();
            let before = annotations.remove(name);
            let after = change(before.as_deref());
            if before == after {
                return Ok(());
            }
            annotations.extend(after.map(|after| (name.to_owned(), after)));
            match bounded(self.secrets.replace(ROOT_SECRET, &PostParams::default(), &secret)).await {
                Err(StoreError::Conflict) => {}
                replaced => return replaced.map(|_| ()),
            }
        }
        Err(StoreError::Conflict)
    }

    /// Replaces all values, based on the version of `secret`: [`StoreError::Conflict`] if it has changed since.
    async fn replace(&self, mut secret: Secret, entries: &NamedValues) -> Result<StoredValues, StoreError> {
        secret.data = Some(data(entries));
        secret.metadata.labels.get_or_insert_default().extend(labels(&self.mesh_name));
        stored(bounded(self.secrets.replace(ROOT_SECRET, &PostParams::default(), &secret)).await?)
    }
}

#[tonic::async_trait]
impl RootStore for RootSecret {
    fn place(&self) -> String {
        format!("Secret {}/{ROOT_SECRET}", self.namespace)
    }

    async fn load(&self) -> Result<Option<StoredValues>, StoreError> {
        let secret = bounded(self.secrets.get_opt(ROOT_SECRET)).await?;
        // An operator has prepared a Secret without values.
        secret.filter(holds_something).map(stored).transpose()
    }

    async fn create_if_absent(&self, entries: NamedValues) -> Result<StoredValues, StoreError> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(ROOT_SECRET.to_owned()),
                labels: Some(labels(&self.mesh_name)),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(data(&entries)),
            ..Secret::default()
        };
        match bounded(self.secrets.create(&PostParams::default(), &secret)).await {
            Err(StoreError::Conflict) => {}
            created => return stored(created?),
        }
        match bounded(self.secrets.get(ROOT_SECRET)).await? {
            secret if holds_something(&secret) => stored(secret),
            empty => match self.replace(empty, &entries).await {
                Err(StoreError::Conflict) => stored(bounded(self.secrets.get(ROOT_SECRET)).await?),
                replaced => replaced,
            },
        }
    }

    async fn update(&self, revision: &str, entries: NamedValues) -> Result<StoredValues, StoreError> {
        match bounded(self.secrets.get_opt(ROOT_SECRET)).await? {
            Some(secret) if secret.metadata.resource_version.as_deref() == Some(revision) => {
                self.replace(secret, &entries).await
            }
            _ => Err(StoreError::Conflict),
        }
    }
}

impl std::fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootSecret").field("mesh_name", &self.mesh_name).finish_non_exhaustive()
    }
}

/// Whether it has values: an operator may have prepared it without any, and such a Secret counts as absent.
fn holds_something(secret: &Secret) -> bool {
    secret.data.as_ref().is_some_and(|data| !data.is_empty())
}

fn data(entries: &NamedValues) -> BTreeMap<String, ByteString> {
    entries.0.iter().map(|(name, value)| (name.clone(), ByteString(value.clone()))).collect()
}

/// What a Secret holds. Its resource version is the revision.
fn stored(secret: Secret) -> Result<StoredValues, StoreError> {
    let revision = secret.metadata.resource_version;
    let revision =
        revision.ok_or_else(|| StoreError::Other(format!("Secret {ROOT_SECRET} has no resourceVersion")))?;
    let data = secret.data.unwrap_or_default();
    let entries = NamedValues(data.into_iter().map(|(name, value)| (name, value.0)).collect());
    Ok(StoredValues { entries, revision })
}
