//! The roots that a process trusts, read from a file and kept up to date.
//!
//! Bundles are compared by their certificates: line endings, blank lines, comments, order and duplicates make no
//! difference, so rewriting the file with the same roots has no effect. Only the first root matters to followers of a
//! file: our CA puts the issuing root there.
//!
//! Beside the roots, a bundle may name *retired* roots: they verify no new connections, but connections that were
//! verified while they were trusted may continue. A root that is neither listed nor named as retired has been revoked.
//! Each retired root is a line `# tidegate.io/retired-root: <SHA-256 of its DER in hex>`, which other PEM readers skip
//! (RFC 7468 §2).

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem;
use tidegate_core::hex;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::tls;

/// Maximum bytes of a bundle's file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Maximum retired roots that a bundle names. Of more, the first are dropped, which ends connections under them.
pub const MOST_RETIRED: usize = 16;

/// Prefix of a line that names a retired root.
const RETIRED: &str = "# tidegate.io/retired-root: ";

/// Default polling interval of [`watch_file`].
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// At least one root certificate, each usable as a trust anchor, without duplicates.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    issuing: CertificateDer<'static>,
    store: Arc<RootCertStore>,
    /// Fingerprints of retired roots, in order of retirement.
    retired: Vec<String>,
    /// The retired roots that this process has trusted.
    outlived: Vec<CertificateDer<'static>>,
    /// `store` plus the outlived roots.
    lasting: Arc<RootCertStore>,
}

/// Why a text is not a trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustBundleError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The file is larger than any bundle.
    #[error("larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    /// A PEM section is malformed.
    #[error("is not PEM: {0}")]
    Pem(pem::Error),
    /// It holds no certificate: an empty bundle is a mistake.
    #[error("holds no certificate")]
    Empty,
    /// A certificate cannot be used as a trust anchor.
    #[error("certificate {position} cannot be a root: {source}")]
    Root {
        /// Its position, starting at 1.
        position: usize,
        /// The error.
        source: rustls::Error,
    },
}

impl TrustBundle {
    /// Parses PEM. One malformed certificate rejects the whole text: half a bundle would lock out half the mesh.
    pub fn parse(pem: &[u8]) -> Result<Self, TrustBundleError> {
        let bundle =
            Self::from_certificates(tls::load_pem_certificates(pem).map_err(TrustBundleError::Pem)?)?;
        let text = String::from_utf8_lossy(pem);
        let named = text.lines().filter_map(|line| line.strip_prefix(RETIRED)).map(str::trim_end);
        // Names that are not fingerprints are ignored.
        Ok(bundle.with_retired(named.filter(|name| is_fingerprint(name)).map(str::to_owned)))
    }

    /// A bundle of these roots; duplicates are dropped.
    pub fn from_certificates(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, TrustBundleError> {
        let mut seen = BTreeSet::new();
        let mut store = RootCertStore::empty();
        let mut roots = Vec::new();
        for (index, certificate) in certificates.into_iter().enumerate() {
            if !seen.insert(certificate.as_ref().to_vec()) {
                continue;
            }
            store
                .add(certificate.clone())
                .map_err(|source| TrustBundleError::Root { position: index + 1, source })?;
            roots.push(certificate);
        }
        let issuing = roots.first().cloned().ok_or(TrustBundleError::Empty)?;
        let store = Arc::new(store);
        Ok(Self { roots, issuing, lasting: store.clone(), store, retired: Vec::new(), outlived: Vec::new() })
    }

    /// The same roots, with fingerprints of retired ones in order of retirement. Of more than [`MOST_RETIRED`] the last
    /// ones are kept.
    pub fn with_retired(mut self, fingerprints: impl IntoIterator<Item = String>) -> Self {
        self.retired = fingerprints.into_iter().collect();
        self.retired.drain(..self.retired.len().saturating_sub(MOST_RETIRED));
        self
    }

    /// This bundle as the successor of another: keeps the certificates of retired roots that the other one had.
    pub fn in_place_of(mut self, before: &Self) -> Self {
        let known = before.roots.iter().chain(&before.outlived);
        let outlived =
            known.filter(|root| !self.roots.contains(root) && self.retired.contains(&fingerprint(root)));
        self.outlived = outlived.cloned().collect();
        let mut lasting = RootCertStore::clone(&self.store);
        // Each was a trust anchor before, so none can fail.
        lasting.add_parsable_certificates(self.outlived.iter().cloned());
        self.lasting = Arc::new(lasting);
        self
    }

    /// Reads a PEM file.
    pub fn read_file(path: &Path) -> Result<Self, TrustBundleError> {
        Self::parse(&read_limited(path)?)
    }

    /// The issuing root, which our CA writes first.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.issuing
    }

    /// The roots, in the order they were given.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots for rustls' verifiers.
    pub fn root_store(&self) -> Arc<RootCertStore> {
        self.store.clone()
    }

    /// The roots for verifying connections that are already open: the current ones, and retired ones that this process
    /// has trusted.
    pub fn lasting_store(&self) -> Arc<RootCertStore> {
        self.lasting.clone()
    }

    /// Whether both bundles treat open connections alike.
    pub fn judges_like(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.judging() == other.judging()
    }

    fn judging(&self) -> BTreeSet<&[u8]> {
        self.roots.iter().chain(&self.outlived).map(AsRef::as_ref).collect()
    }

    /// Fingerprints of retired roots, in order of retirement.
    pub fn retired(&self) -> &[String] {
        &self.retired
    }

    /// The text of a bundle's file: the roots as PEM, and a line for each retired one.
    pub fn to_text(&self) -> String {
        let retired = self.retired.iter().map(|fingerprint| format!("{RETIRED}{fingerprint}\n"));
        self.to_pem() + &retired.collect::<String>()
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        tls::pem_encode(&self.roots)
    }

    /// SHA-256 of each root's DER in lower-case hex, in the bundle's order.
    pub fn fingerprints(&self) -> Vec<String> {
        self.roots.iter().map(|root| fingerprint(root)).collect()
    }

    fn set(&self) -> BTreeSet<&[u8]> {
        self.roots.iter().map(AsRef::as_ref).collect()
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.set() == other.set()
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TrustBundle").field(&self.fingerprints()).finish()
    }
}

fn is_fingerprint(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 of a certificate's DER in lower-case hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate).as_ref())
}

/// Waits until `path` holds a valid bundle, then follows the file: the receiver changes only when the set of roots, the
/// first of them or the retired ones change.
///
/// The file is read every `interval`. inotify is not used, because a Kubernetes volume replaces the file through
/// symbolic links and some file systems report no events. A missing, empty or malformed file changes nothing: the last
/// good bundle stays, and each new reason is logged once. Reading ends when the last receiver is dropped.
pub async fn watch_file(path: impl Into<PathBuf>, interval: Duration) -> watch::Receiver<Arc<TrustBundle>> {
    let mut file = WatchedFile { path: path.into(), complaint: None };
    let first = loop {
        match file.read().await {
            Some(bundle) => break bundle,
            None => tokio::time::sleep(interval).await,
        }
    };
    info!(path = %file.path.display(), roots = ?first.fingerprints(), "trust bundle read");
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(interval) => {}
            }
            file.follow(&sender).await;
        }
    });
    receiver
}

struct WatchedFile {
    path: PathBuf,
    /// What was last logged about the file, while it still applies.
    complaint: Option<String>,
}

impl WatchedFile {
    /// Reads the file once and publishes the bundle if it differs.
    async fn follow(&mut self, sender: &watch::Sender<Arc<TrustBundle>>) {
        let Some(bundle) = self.read().await else { return };
        let last = sender.borrow().clone();
        let is_same = bundle == *last && bundle.issuing == last.issuing && bundle.retired == last.retired;
        if !is_same {
            info!(
                path = %self.path.display(), roots = ?bundle.fingerprints(), retired = ?bundle.retired,
                "trust bundle changed"
            );
            sender.send_replace(Arc::new(bundle.in_place_of(&last)));
        }
    }

    async fn read(&mut self) -> Option<TrustBundle> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || TrustBundle::read_file(&path)).await;
        let result = read.unwrap_or_else(|error| Err(TrustBundleError::Read(io::Error::other(error))));
        match result {
            Ok(bundle) => {
                self.complaint = None;
                Some(bundle)
            }
            Err(error) => {
                let reason = error.to_string();
                if self.complaint.as_ref() != Some(&reason) {
                    warn!(path = %self.path.display(), %reason, "trust bundle is not usable; the last good one, if any, stays");
                    self.complaint = Some(reason);
                }
                None
            }
        }
    }
}

fn read_limited(path: &Path) -> Result<Vec<u8>, TrustBundleError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TrustBundleError::TooLarge);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
