//! Secrets as folders: `<base>/<namespace>/<name>/{ca.crt,tls.crt,tls.key}`, or with `ca.crt` alone.
//!
//! Each is a [`versioned_folder`](super::versioned_folder): a reader that resolves `..data` once never gets the key of
//! one version and the certificate of another.

use std::fs;
use std::path::PathBuf;

use super::versioned_folder::VersionedFolder;
use super::{NamedValues, SecretName, SecretStore, StoreError, TlsSecret, blocking};

/// A [`SecretStore`] below one folder.
#[derive(Debug, Clone)]
pub struct SecretFolder(PathBuf);

impl SecretFolder {
    /// Stores Secrets below `base`, which is created with the first one.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self(base.into())
    }

    /// The folder of a Secret: `<base>/<namespace>/<name>`. Names that could leave `base` are refused.
    fn folder(&self, name: &SecretName) -> Result<VersionedFolder, StoreError> {
        for part in [&name.namespace, &name.name] {
            if !is_object_name(part) {
                return Err(StoreError::Name(part.clone()));
            }
        }
        Ok(VersionedFolder::public(self.0.join(&name.namespace).join(&name.name)))
    }

    /// Replaces the whole content in one step.
    async fn write(&self, name: &SecretName, values: &[(&str, &String)]) -> Result<(), StoreError> {
        let folder = self.folder(name)?;
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
        let entries = NamedValues(values.collect());
        blocking(move || folder.lock()?.write(&entries).map(|_| ())).await
    }

    /// Values of a Secret, if all of them exist.
    async fn read<const N: usize>(
        &self,
        name: &SecretName,
        keys: [&'static str; N],
    ) -> Result<Option<[String; N]>, StoreError> {
        let (folder, path) = (self.folder(name)?, self.0.join(&name.namespace).join(&name.name));
        blocking(move || {
            let mut stored = match folder.read() {
                Ok(Some(stored)) => stored,
                // Unlike a root, it can be reissued.
                Ok(None) | Err(StoreError::Lost { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let values = keys.iter().map_while(|key| {
                // The plain name counts too, because readers use it.
                let value = stored.entries.0.remove(*key)?;
                let visible = fs::read(path.join(key)).ok()?;
                String::from_utf8(value).ok().filter(|value| value.as_bytes() == visible)
            });
            Ok(values.collect::<Vec<_>>().try_into().ok())
        })
        .await
    }
}

#[tonic::async_trait]
impl SecretStore for SecretFolder {
    async fn put(&self, name: &SecretName, secret: &TlsSecret) -> Result<(), StoreError> {
        let values = [("ca.crt", &secret.ca_crt), ("tls.crt", &secret.tls_crt), ("tls.key", &secret.tls_key)];
        self.write(name, &values).await
    }

    async fn get(&self, name: &SecretName) -> Result<Option<TlsSecret>, StoreError> {
        let read = self.read(name, ["ca.crt", "tls.crt", "tls.key"]).await?;
        Ok(read.map(|[ca_crt, tls_crt, tls_key]| TlsSecret { ca_crt, tls_crt, tls_key }))
    }

    async fn put_roots(&self, name: &SecretName, roots: &str) -> Result<(), StoreError> {
        self.write(name, &[("ca.crt", &roots.to_owned())]).await
    }

    async fn get_roots(&self, name: &SecretName) -> Result<Option<String>, StoreError> {
        Ok(self.read(name, ["ca.crt"]).await?.map(|[roots]| roots))
    }

    async fn remove(&self, name: &SecretName) -> Result<(), StoreError> {
        let (folder, namespace) = (self.folder(name)?, self.0.join(&name.namespace));
        blocking(move || {
            folder.remove()?;
            // Removed only if empty.
            let _ = fs::remove_dir(namespace);
            Ok(())
        })
        .await
    }

    async fn owned(&self) -> Result<Vec<SecretName>, StoreError> {
        let base = self.0.clone();
        blocking(move || {
            let mut owned = Vec::new();
            for namespace in children(&base)? {
                for name in children(&base.join(&namespace))? {
                    if VersionedFolder::public(base.join(&namespace).join(&name)).is_ours() {
                        owned.push(SecretName { namespace: namespace.clone(), name });
                    }
                }
            }
            Ok(owned)
        })
        .await
    }
}

/// Names of the folders in a folder; none if there is no folder.
fn children(path: &std::path::Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io(path.display())(error)),
    };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_object_name(name))
        .collect())
}

/// A DNS-1123 subdomain, as Kubernetes names are; never `..` or a path.
pub(crate) fn is_object_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests;
