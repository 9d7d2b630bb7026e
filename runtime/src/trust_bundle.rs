//! The roots that a process trusts, read from a file and kept fresh.
//!
//! A bundle is compared by the certificates in it: line endings, blank lines, comments, order and duplicates make no
//! difference, so that whoever rewrites the file with the same roots disturbs nobody. Only which one is first counts to
//! who follows a file: our CA puts the root there that issues.

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

/// The most bytes that a bundle's file may have.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How often [`watch_file`] looks, unless there is a reason for another interval.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// At least one root certificate, each usable as a trust anchor and there once.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    issuing: CertificateDer<'static>,
    store: Arc<RootCertStore>,
}

/// Why something is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustBundleError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The file is larger than any bundle is.
    #[error("larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    /// A PEM section is broken.
    #[error("is not PEM: {0}")]
    Pem(pem::Error),
    /// There is no certificate in it: a bundle that trusts nobody is a mistake.
    #[error("holds no certificate")]
    Empty,
    /// A section is no certificate that can be trusted.
    #[error("certificate {position} cannot be a root: {source}")]
    Root {
        /// Which one, counted from 1.
        position: usize,
        /// What is wrong with it.
        source: rustls::Error,
    },
}

impl TrustBundle {
    /// Reads PEM. One broken certificate refuses the whole text: half a bundle would lock out half the mesh.
    pub fn parse(pem: &[u8]) -> Result<Self, TrustBundleError> {
        Self::from_certificates(tls::load_pem_certificates(pem).map_err(TrustBundleError::Pem)?)
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
        Ok(Self { roots, issuing, store: Arc::new(store) })
    }

    /// Reads a PEM file.
    pub fn read_file(path: &Path) -> Result<Self, TrustBundleError> {
        Self::parse(&read_limited(path)?)
    }

    /// The root that issues, as our CA writes its bundles: the first.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.issuing
    }

    /// The roots, in the order they were given.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as rustls' verifiers take them.
    pub fn root_store(&self) -> Arc<RootCertStore> {
        self.store.clone()
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

/// SHA-256 of a certificate's DER in lower-case hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate).as_ref())
}

/// Waits until `path` holds a good bundle, then follows it: the receiver changes only when the set of roots does, or the
/// first of them.
///
/// The file is read each `interval`. It is not watched by inotify, because a Kubernetes volume replaces it through
/// symbolic links and some file systems report nothing. A file that is missing, empty or broken changes nothing: the
/// last good bundle stays, and the reason is logged once until it is another one. Reading ends when the last receiver
/// is dropped.
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
    /// What was last logged about the file, while it still holds.
    complaint: Option<String>,
}

impl WatchedFile {
    /// Reads the file once and passes on what is in it, if that is another set of roots.
    async fn follow(&mut self, sender: &watch::Sender<Arc<TrustBundle>>) {
        let Some(bundle) = self.read().await else { return };
        let is_same = {
            let last = sender.borrow();
            bundle == **last && bundle.issuing == last.issuing
        };
        if !is_same {
            info!(path = %self.path.display(), roots = ?bundle.fingerprints(), "trust bundle changed");
            sender.send_replace(Arc::new(bundle));
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
