//! A certificate with its key, as a process presents it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_core::PeerCertificate;

use crate::chain::leads_to;
use crate::trust_bundle::{TrustBundle, fingerprint};

/// A verified certificate of this process, with its key.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The leaf, then the intermediates up to the root, which is left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key (PKCS #8).
    pub key: Arc<PrivateKeyDer<'static>>,
    /// The parsed leaf.
    pub leaf: PeerCertificate,
    /// Increases by one with each certificate, starting at 1.
    pub generation: u64,
}

impl Credentials {
    /// Time left before the leaf expires; zero once it has (RFC 5280 §4.1.2.5).
    pub(crate) fn time_left(&self, now: SystemTime) -> Duration {
        self.leaf.not_after.duration_since(now).unwrap_or_default()
    }

    /// Fingerprints of the bundle's roots, each of which alone makes the certificate valid at `now`, for a client and
    /// for a server.
    pub fn roots(&self, bundle: &TrustBundle, now: SystemTime) -> Vec<String> {
        let good = bundle.roots().iter().filter(|root| leads_to(&self.chain, root, now));
        good.map(|root| fingerprint(root)).collect()
    }

    /// Whether the leaf has expired at `now`.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.leaf.not_after
    }
}
