//! The roots that a process trusts, read from a file and kept fresh.
//!
//! A bundle is compared by the certificates in it: line endings, blank lines, comments, order and duplicates make no
//! difference, so that writing the same roots again changes nothing. Only which one is first counts to
//! who follows a file: our CA puts the root there that issues.
//!
//! Beside the roots, a bundle may name roots that were *retired*: nothing new is verified by them, but connections that
//! were verified while they were trusted may live on. A root that is gone and is not named was revoked. Each one is a line
//! `# tidegate.io/retired-root: <SHA-256 of its DER in hex>`, which other readers of PEM skip (RFC 7468 §2).

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

/// The most retired roots that a bundle names. Of more, the first are left out: connections under them end.
pub const MOST_RETIRED: usize = 16;

/// How a line begins that names a retired root.
const RETIRED: &str = "# tidegate.io/retired-root: ";

/// How often [`watch_file`] looks, unless there is a reason for another interval.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// At least one root certificate, each usable as a trust anchor and there once.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    issuing: CertificateDer<'static>,
    store: Arc<RootCertStore>,
    /// Fingerprints of retired roots, the one that was retired first in front.
    retired: Vec<String>,
    /// Those of them that this process has trusted.
    outlived: Vec<CertificateDer<'static>>,
    /// `store`, and those.
    lasting: Arc<RootCertStore>,
}

/// Why a text is not a trust bundle.
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
    /// It holds no certificate: an empty bundle is a mistake.
    #[error("holds no certificate")]
    Empty,
    /// A section is not a certificate that can be trusted.
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
        let bundle =
            Self::from_certificates(tls::load_pem_certificates(pem).map_err(TrustBundleError::Pem)?)?;
        let text = String::from_utf8_lossy(pem);
        let named = text.lines().filter_map(|line| line.strip_prefix(RETIRED)).map(str::trim_end);
        // A text that is not a fingerprint names no root.
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

    /// The same roots, and fingerprints of retired ones, the one that was retired first in front. Of more than
    /// [`MOST_RETIRED`] the last ones count.
    pub fn with_retired(mut self, fingerprints: impl IntoIterator<Item = String>) -> Self {
        self.retired = fingerprints.into_iter().collect();
        self.retired.drain(..self.retired.len().saturating_sub(MOST_RETIRED));
        self
    }

    /// This bundle in place of another: of the retired roots that it names, those that the other one knew come along.
    pub fn in_place_of(mut self, before: &Self) -> Self {
        let known = before.roots.iter().chain(&before.outlived);
        let outlived =
            known.filter(|root| !self.roots.contains(root) && self.retired.contains(&fingerprint(root)));
        self.outlived = outlived.cloned().collect();
        let mut lasting = RootCertStore::clone(&self.store);
        // Each was a trust anchor before.
        lasting.add_parsable_certificates(self.outlived.iter().cloned());
        self.lasting = Arc::new(lasting);
        self
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

    /// What connections that are open already are judged by: the roots, and retired ones that this process has trusted.
    pub fn lasting_store(&self) -> Arc<RootCertStore> {
        self.lasting.clone()
    }

    /// Whether open connections are judged by both alike.
    pub fn judges_like(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.judging() == other.judging()
    }

    fn judging(&self) -> BTreeSet<&[u8]> {
        self.roots.iter().chain(&self.outlived).map(AsRef::as_ref).collect()
    }

    /// Fingerprints of retired roots, the one that was retired first in front.
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

/// Waits until `path` holds a good bundle, then follows it: the receiver changes only when the set of roots does, the
/// first of them, or what is said of retired ones.
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
