//! Verifies the CA's answer: our key, our mesh, our name, and currently valid.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tidegate_core::certificate::CertificateError;
use tidegate_core::{DnsName, Identity, PeerCertificate, San};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::chain::{ChainError, chains_to};
use crate::trust_bundle::TrustBundle;

/// Maximum certificates of an answer, root included.
const MAX_CHAIN: usize = 10;

/// What is wrong with the CA's certificate.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// More certificates than any path needs.
    #[error("{0} certificates, more than {MAX_CHAIN}")]
    TooLong(usize),
    /// The leaf cannot be parsed.
    #[error("leaf: {0}")]
    Leaf(#[from] CertificateError),
    /// The leaf is for another key than the one in the request.
    #[error("the leaf's public key is not ours")]
    OtherKey,
    /// The certificate is missing, or not valid under the trust bundle.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The leaf's names lack a spelling of our identity.
    #[error("the leaf does not name {expected} as both DNS name and SPIFFE URI; it names {found:?}")]
    OtherIdentity {
        /// Our identity.
        expected: Identity,
        /// The names in the leaf.
        found: String,
    },
}

/// Verifies the certificates of an answer, leaf first. Returns the leaf and the chain to present to peers, without the
/// root.
pub(super) fn verify(
    mut chain: Vec<CertificateDer<'static>>,
    public_key: &[u8],
    expected: Option<&Identity>,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(Vec<CertificateDer<'static>>, PeerCertificate), VerifyError> {
    if chain.len() > MAX_CHAIN {
        return Err(VerifyError::TooLong(chain.len()));
    }
    let leaf_der = chain.first().ok_or(ChainError::Empty)?;
    let leaf = PeerCertificate::from_der(leaf_der)?;
    let (_, parsed) = X509Certificate::from_der(leaf_der).map_err(|_| CertificateError::Der)?;
    if parsed.public_key().raw != public_key {
        return Err(VerifyError::OtherKey);
    }
    if let Some(expected) = expected
        && !names(&leaf, expected)
    {
        return Err(VerifyError::OtherIdentity { expected: expected.clone(), found: leaf.display_names() });
    }
    while chain.len() > 1 && chain.last().is_some_and(is_self_issued) {
        chain.pop();
    }
    chains_to(&chain, bundle, now)?;
    Ok((chain, leaf))
}

fn names(leaf: &PeerCertificate, expected: &Identity) -> bool {
    let uri = San::Uri(expected.spiffe_uri().into());
    let dns = DnsName::parse(&expected.dns_name()).map(San::Dns);
    leaf.sans.contains(&uri) && dns.is_ok_and(|dns| leaf.sans.contains(&dns))
}

fn is_self_issued(certificate: &CertificateDer<'static>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, certificate)| certificate.subject().as_raw() == certificate.issuer().as_raw())
}
