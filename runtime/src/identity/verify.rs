//! Verifies the CA's answer: our key, our mesh, our name, and currently valid.

use std::time::{Duration, SystemTime};

use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use tidegate_core::certificate::CertificateError;
use tidegate_core::{DnsName, Identity, PeerCertificate, San};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::tls;
use crate::trust_bundle::TrustBundle;

/// Maximum certificates of an answer, root included.
const MAX_CHAIN: usize = 10;

/// What is wrong with the CA's certificate.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The answer holds no certificate.
    #[error("no certificate in it")]
    Empty,
    /// More certificates than any path needs.
    #[error("{0} certificates, more than {MAX_CHAIN}")]
    TooLong(usize),
    /// The leaf cannot be parsed.
    #[error("leaf: {0}")]
    Leaf(#[from] CertificateError),
    /// The leaf is for another key than the one in the request.
    #[error("the leaf's public key is not ours")]
    OtherKey,
    /// Not valid now, not usable as both client and server, or not issued under a root of the trust bundle.
    #[error("{0}")]
    Chain(#[from] rustls::Error),
    /// The trust bundle cannot be used for verification.
    #[error("trust bundle: {0}")]
    TrustBundle(#[from] VerifierBuilderError),
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
    let leaf_der = chain.first().ok_or(VerifyError::Empty)?;
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

/// Whether `chain` is valid at `now` under a root of `bundle`, for a client and for a server alike.
pub(super) fn chains_to(
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(), VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::Empty)?;
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = UnixTime::since_unix_epoch(since_epoch);
    let provider = tls::provider();
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        &bundle.root_store(),
        intermediates,
        now,
        provider.signature_verification_algorithms.all,
    )?;
    WebPkiClientVerifier::builder_with_provider(bundle.root_store(), provider).build()?.verify_client_cert(
        leaf,
        intermediates,
        now,
    )?;
    Ok(())
}

/// Whether `chain`, leaf first, is valid at `now` under this root alone, for a client and for a server alike.
pub fn leads_to(chain: &[CertificateDer<'static>], root: &CertificateDer<'static>, now: SystemTime) -> bool {
    TrustBundle::from_certificates([root.clone()]).is_ok_and(|bundle| chains_to(chain, &bundle, now).is_ok())
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
