//! Where things are kept: the root, the trust bundle for others, the ingress controller's client certificate.
//!
//! Each is a trait with an implementation on files. All three are swapped as a whole, so that a reader sees one
//! version or the next one and never a mixture: see [`versioned_folder`].

use std::collections::BTreeMap;
use std::io;

pub mod bundle_file;
pub mod root_folder;
pub mod secret_folder;
pub mod versioned_folder;

/// Named values that belong together, such as `tls.crt` and `tls.key`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entries(pub BTreeMap<String, Vec<u8>>);

/// Entries as they were at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The values.
    pub entries: Entries,
    /// Names this version; no two versions share one.
    pub revision: String,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another client has changed it since it was read; read it again.
    #[error("changed by another client meanwhile")]
    Conflict,
    /// The file system refused.
    #[error("{what}: {source}")]
    Io {
        /// Which file, for what.
        what: String,
        /// What it said.
        source: io::Error,
    },
    /// There was something, and it cannot be read any more.
    #[error(
        "{place} held something before that cannot be read: {found}; restore it, or move the folder away"
    )]
    Lost {
        /// The folder.
        place: String,
        /// What is there of it.
        found: String,
    },
    /// A private key that this store has not written stands in the way.
    #[error("{0} is a key that was not written here, and is never replaced: move it away")]
    ForeignKey(String),
    /// A name that would leave the store's folder.
    #[error("{0:?} is not a name that a Kubernetes object can have")]
    Name(String),
    /// What was to be published is, but in these namespaces; sorted.
    #[error("{}", enumerate(.0))]
    Unreached(Vec<Unreached>),
    /// Whatever another kind of store has to say.
    #[error("{0}")]
    Other(String),
}

/// A namespace that the trust bundle cannot be published in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Unreached {
    /// Which one.
    pub namespace: String,
    /// Why.
    pub reason: String,
}

/// How many namespaces a message names.
const NAMED: usize = 10;

/// Keeps the certificate authority: keys, certificates and the step of a rotation.
#[tonic::async_trait]
pub trait RootStore: Send + Sync + 'static {
    /// Where it is, for messages: `folder /var/lib/tidegate/ca`.
    fn place(&self) -> String;

    /// What is there, if anything.
    async fn load(&self) -> Result<Option<Stored>, StoreError>;

    /// Writes `entries` unless something is there already; returns what is there afterwards. Of several callers at
    /// once one writes and all get the same answer.
    async fn create_if_absent(&self, entries: Entries) -> Result<Stored, StoreError>;

    /// Replaces what is there if it still is of this revision; [`StoreError::Conflict`] otherwise.
    async fn update(&self, revision: &str, entries: Entries) -> Result<Stored, StoreError>;
}

/// Makes the trust bundle known to those who verify us and each other.
#[tonic::async_trait]
pub trait BundlePublisher: Send + Sync + 'static {
    /// Makes sure that exactly this PEM text is published. Called about each second, so it also puts back what
    /// somebody else has changed; it should be cheap when nothing has to be done.
    async fn publish(&self, pem: &str) -> Result<(), StoreError>;

    /// What is published already, by any author, and where; `None` where nothing is. Only asked where no authority is
    /// stored: a bundle says that there was one.
    async fn published(&self) -> Result<Option<PublishedBundle>, StoreError>;
}

/// A trust bundle that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBundle {
    /// Where: a file's path, or a ConfigMap's namespace and name.
    pub place: String,
    /// Its PEM text.
    pub pem: String,
}

/// Holds Secrets for the ingress controller: its certificate (`kubernetes.io/tls`), and the roots alone.
#[tonic::async_trait]
pub trait SecretStore: Send + Sync + 'static {
    /// Creates the Secret or replaces its values in place, never by deleting it first.
    async fn put(&self, name: &SecretName, secret: &TlsSecret) -> Result<(), StoreError>;

    /// The Secret, if all three of its values are there.
    async fn get(&self, name: &SecretName) -> Result<Option<TlsSecret>, StoreError>;

    /// Creates a Secret that holds these roots (PEM) and nothing else, type `nginx.org/ca`, or replaces them in place.
    async fn put_roots(&self, name: &SecretName, roots: &str) -> Result<(), StoreError>;

    /// The roots of such a Secret.
    async fn get_roots(&self, name: &SecretName) -> Result<Option<String>, StoreError>;

    /// Deletes the Secret, if this store wrote it.
    async fn remove(&self, name: &SecretName) -> Result<(), StoreError>;

    /// Has the Secret, which this store wrote, be among [`owned`](Self::owned) again. Nothing, where a store cannot forget.
    async fn remember(&self, _name: &SecretName) -> Result<(), StoreError> {
        Ok(())
    }

    /// The Secrets that this store wrote and that are still there.
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

impl std::fmt::Display for Unreached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "namespace {}: {}", self.namespace, self.reason)
    }
}

/// Names only: some of the values are private keys.
impl std::fmt::Debug for Entries {
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

/// What is in a list, as far as a message has room for it.
pub(crate) fn enumerate<T: std::fmt::Display>(all: &[T]) -> String {
    let named: Vec<String> = all.iter().take(NAMED).map(ToString::to_string).collect();
    match all.len().saturating_sub(NAMED) {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Other(error.to_string()))?
}
