//! Storage of the root, the published trust bundle, and the ingress controller's client certificate.
//!
//! Each is a trait with an implementation on files. All three are replaced as a whole, so that a reader sees one version
//! or the next, never a mixture: see [`versioned_folder`].

use std::collections::BTreeMap;
use std::io;

pub mod bundle_file;
pub mod root_folder;
pub mod secret_folder;
pub(crate) mod versioned_folder;

/// Named values that belong together, such as `tls.crt` and `tls.key`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NamedValues(pub BTreeMap<String, Vec<u8>>);

/// Entries at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredValues {
    /// The values.
    pub entries: NamedValues,
    /// Identifies this version uniquely.
    pub revision: String,
}

/// Why a store's operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another client has changed it since it was read; reread it.
    #[error("another client has changed it in the meantime")]
    Conflict,
    /// A file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The file and the operation.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// Earlier content exists but can no longer be read.
    #[error(
        "{place} held something before that cannot be read: {found}; restore it, or move the folder away"
    )]
    Lost {
        /// The folder.
        place: String,
        /// What was found of it.
        found: String,
    },
    /// A private key that this store has not written would be replaced.
    #[error("{0} is a key that was not written by this store and is never replaced: move it away")]
    ForeignKey(String),
    /// A name that would escape the store's folder.
    #[error("{0:?} is not a name that a Kubernetes object can have")]
    Name(String),
    /// Published everywhere except in these namespaces; sorted.
    #[error("{}", enumerate(.0))]
    Unreached(Vec<UnpublishedNamespace>),
    /// An error of another kind of store.
    #[error("{0}")]
    Other(String),
}

/// A namespace where the trust bundle cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct UnpublishedNamespace {
    /// The namespace.
    pub namespace: String,
    /// The reason.
    pub reason: String,
}

/// Maximum namespaces that a message names.
const NAMED: usize = 10;

/// Stores the certificate authority: keys, certificates and the step of a rotation.
#[tonic::async_trait]
pub trait RootStore: Send + Sync + 'static {
    /// Its place, for messages: `folder /var/lib/tidegate/ca`.
    fn place(&self) -> String;

    /// The stored entries, if any.
    async fn load(&self) -> Result<Option<StoredValues>, StoreError>;

    /// Writes `entries` if nothing is stored; returns what is stored afterwards. Of several concurrent callers, one writes and
    /// all get the same answer.
    async fn create_if_absent(&self, entries: NamedValues) -> Result<StoredValues, StoreError>;

    /// Replaces the entries if they still have this revision; [`StoreError::Conflict`] otherwise.
    async fn update(&self, revision: &str, entries: NamedValues) -> Result<StoredValues, StoreError>;
}

/// Publishes the trust bundle to all who verify the mesh's certificates.
#[tonic::async_trait]
pub trait BundlePublisher: Send + Sync + 'static {
    /// Makes sure that exactly this PEM text is published. Called about every second, so it also restores what others have
    /// changed; it should be cheap if there is nothing to do.
    async fn publish(&self, pem: &str) -> Result<(), StoreError>;

    /// What is already published, by any author, and where; `None` if nothing is. Only used if no authority is stored, because
    /// a bundle shows that there was one.
    async fn published(&self) -> Result<Option<PublishedBundle>, StoreError>;
}

/// A published trust bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBundle {
    /// Its place: a file's path, or a ConfigMap's namespace and name.
    pub place: String,
    /// Its PEM text.
    pub pem: String,
}

/// Stores Secrets for the ingress controller: its certificate (`kubernetes.io/tls`), and the roots alone.
#[tonic::async_trait]
pub trait SecretStore: Send + Sync + 'static {
    /// Creates the Secret or replaces its values in place, never by deleting it first.
    async fn put(&self, name: &SecretName, secret: &TlsSecret) -> Result<(), StoreError>;

    /// The Secret, if it has all three of its values.
    async fn get(&self, name: &SecretName) -> Result<Option<TlsSecret>, StoreError>;

    /// Creates a Secret of type `nginx.org/ca` with only these roots (PEM), or replaces them in place.
    async fn put_roots(&self, name: &SecretName, roots: &str) -> Result<(), StoreError>;

    /// The roots of such a Secret.
    async fn get_roots(&self, name: &SecretName) -> Result<Option<String>, StoreError>;

    /// Deletes the Secret, if this store wrote it.
    async fn remove(&self, name: &SecretName) -> Result<(), StoreError>;

    /// Records a Secret that this store wrote, so that it is among [`owned`](Self::owned) again. No effect for stores that
    /// cannot forget.
    async fn remember(&self, _name: &SecretName) -> Result<(), StoreError> {
        Ok(())
    }

    /// The existing Secrets that this store wrote.
    async fn owned(&self) -> Result<Vec<SecretName>, StoreError>;
}

/// A Secret's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The values of a `kubernetes.io/tls` Secret, each PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsSecret {
    /// `ca.crt`: every trusted root.
    pub ca_crt: String,
    /// `tls.crt`: the leaf, then its intermediates.
    pub tls_crt: String,
    /// `tls.key`: the leaf's private key (PKCS#8).
    pub tls_key: String,
}

impl std::fmt::Display for SecretName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl std::fmt::Display for UnpublishedNamespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "namespace {}: {}", self.namespace, self.reason)
    }
}

/// Names only, because some values are private keys.
impl std::fmt::Debug for NamedValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl std::fmt::Debug for TlsSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSecret").finish_non_exhaustive()
    }
}

impl StoreError {
    pub(crate) fn io(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.to_string(), source }
    }
}

/// A list, as far as a message has room for it.
pub(crate) fn enumerate<T: std::fmt::Display>(all: &[T]) -> String {
    let named: Vec<String> = all.iter().take(NAMED).map(ToString::to_string).collect();
    match all.len().saturating_sub(NAMED) {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

/// Runs blocking file operations outside the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Other(error.to_string()))?
}
