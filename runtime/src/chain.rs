//! Whether a certificate is valid, by the chain that is presented with it.

use std::time::{Duration, SystemTime};

use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::tls;
use crate::trust_bundle::TrustBundle;

/// Why a chain is not valid.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// It holds no certificate.
    #[error("no certificate in it")]
    Empty,
    /// Not valid now, not usable as both client and server, or not issued under a root of the trust bundle.
    #[error("{0}")]
    Invalid(#[from] rustls::Error),
    /// The trust bundle cannot be used for verification.
    #[error("trust bundle: {0}")]
    TrustBundle(#[from] VerifierBuilderError),
}

/// Checks that `chain`, leaf first, is valid at `now` under a root of `bundle`, for a client and for a server alike.
pub(crate) fn chains_to(
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(), ChainError> {
    let (leaf, intermediates) = chain.split_first().ok_or(ChainError::Empty)?;
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
