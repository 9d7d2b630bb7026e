//! Verifies that a client certificate was issued by the mesh's CA, is valid, and is for clients. Which names are
//! allowed is decided by the policy.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tidegate_core::PeerCertificate;

/// Maximum number of certificates in a client's chain. Ours have two or three.
const MAX_CERTIFICATES: usize = 8;

/// Maximum bytes in a client's chain.
const MAX_BYTES: usize = 64 * 1024;

/// Verifies by webpki: a path to a root of the bundle, validity, and `clientAuth` if the extended key usage is
/// restricted. Refuses oversized chains first, and leaves whose names cannot be decoded.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
}

/// A refused certificate, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Presented {
    /// The names in it, if they could be decoded.
    pub(crate) names: String,
    /// Why it was refused.
    pub(crate) reason: String,
}

/// Why a chain is refused: rustls' error, which determines the alert, and a reason for the log.
pub(super) struct ChainRefusal {
    pub(super) error: Error,
    reason: String,
}

thread_local! {
    /// The last refused certificate, because rustls' verifiers can return only an error. A handshake runs on one
    /// thread, and its driver takes this value in the same step.
    static REFUSED: RefCell<Option<Presented>> = const { RefCell::new(None) };
}

/// Takes the certificate that was last refused on this thread.
pub(crate) fn take_refused() -> Option<Presented> {
    REFUSED.take()
}

impl ClientVerifier {
    /// Clients without a certificate are refused: a port where they are not has a configuration without this verifier.
    pub(super) fn new(roots: Arc<RootCertStore>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        // Cannot fail: a bundle holds at least one root, and there are no revocation lists.
        let webpki = builder.build().map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { webpki })
    }

    /// Verifies a chain outside a handshake, leaf first.
    pub(super) fn verify_chain(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), ChainRefusal> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(ChainRefusal {
                error: Error::NoCertificatesPresented,
                reason: "no certificate".into(),
            });
        };
        self.verify(leaf, intermediates, now)
    }

    /// The bounds of the chain first, then the leaf's names, then the path to a root. The refusal has the alert for the
    /// client, and the reason for the log.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), ChainRefusal> {
        let bytes: usize =
            leaf.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
        if intermediates.len() >= MAX_CERTIFICATES || bytes > MAX_BYTES {
            let reason =
                format!("a chain of {} certificates and {bytes} bytes is too long", intermediates.len() + 1);
            return Err(ChainRefusal { error: CertificateError::BadEncoding.into(), reason });
        }
        // Checked before the path is built: too many names or a NUL in a name are cheap to detect, and a certificate
        // that cannot be decoded here must not be verified.
        if let Err(error) = PeerCertificate::from_der(leaf) {
            return Err(ChainRefusal {
                error: CertificateError::BadEncoding.into(),
                reason: error.to_string(),
            });
        }
        self.webpki.verify_client_cert(leaf, intermediates, now).map(|_| ()).map_err(|error| ChainRefusal {
            reason: error.to_string(),
            error: match error {
                // A root of the same name with another key, such as one dropped in a rotation, is an unknown CA (alert
                // 48), not a malformed message (alert 51).
                Error::InvalidCertificate(CertificateError::BadSignature) => {
                    CertificateError::UnknownIssuer.into()
                }
                error => error,
            },
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, now).map(|()| ClientCertVerified::assertion()).map_err(|refusal| {
            let names = PeerCertificate::from_der(leaf).map(|leaf| leaf.display_names()).unwrap_or_default();
            REFUSED.set(Some(Presented { names, reason: refusal.reason }));
            refusal.error
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
