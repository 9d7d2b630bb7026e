//! Whether a client certificate is one of the mesh's CA, alive, and for clients. Who it names is the policy's matter.

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

/// The most certificates in a client's chain. Ours have two or three.
const MAX_CERTIFICATES: usize = 8;

/// The most bytes in a client's chain.
const MAX_BYTES: usize = 64 * 1024;

/// Verifies by webpki: a path to a root of the bundle, validity, and `clientAuth` where the extended key usage is
/// limited at all. Before that it refuses chains whose size is an attack, after that leaves whose names cannot be read.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
}

/// A certificate that was refused, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Presented {
    /// The names that it holds, if they could be read.
    pub(crate) names: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// Why a chain is refused: in rustls' words, which choose the alert, and in ours.
pub(super) struct Refusal {
    pub(super) error: Error,
    reason: String,
}

thread_local! {
    /// rustls' verifiers have no way to say more than an error. A handshake runs on one thread, and whoever drives it
    /// takes this in the same step.
    static REFUSED: RefCell<Option<Presented>> = const { RefCell::new(None) };
}

/// The certificate that was refused last on this thread; once.
pub(crate) fn take_refused() -> Option<Presented> {
    REFUSED.take()
}

impl ClientVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        // A bundle holds at least one root and there are no revocation lists: nothing is left that can fail.
        let webpki = builder.build().map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { webpki })
    }

    pub(super) fn verify_chain(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Refusal> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(Refusal { error: Error::NoCertificatesPresented, reason: "no certificate".into() });
        };
        self.verify(leaf, intermediates, now)
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let bytes: usize =
            leaf.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
        if intermediates.len() >= MAX_CERTIFICATES || bytes > MAX_BYTES {
            let reason =
                format!("a chain of {} certificates and {bytes} bytes is too long", intermediates.len() + 1);
            return Err(Refusal { error: CertificateError::BadEncoding.into(), reason });
        }
        // Before the path is built: names without number or with a NUL are cheap to find, and what is not read here
        // must not be verified.
        if let Err(error) = PeerCertificate::from_der(leaf) {
            return Err(Refusal { error: CertificateError::BadEncoding.into(), reason: error.to_string() });
        }
        self.webpki.verify_client_cert(leaf, intermediates, now).map(|_| ()).map_err(|error| Refusal {
            reason: error.to_string(),
            error: match error {
                // A root of the same name with another key, such as one that was dropped in a rotation, is another CA
                // to the client (alert 48) and no broken message (alert 51).
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
