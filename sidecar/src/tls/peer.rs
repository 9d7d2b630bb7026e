//! TLS to other sidecars: TLS 1.3, our own certificate, and a peer with exactly the expected identity, or one of several.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tidegate_core::policy::MeshProtocol;
use tidegate_core::{Identity, PeerCertificate};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::trust_bundle::TrustBundle;

use crate::detect::client_hello::MESH_PROTOCOLS;

/// Maximum number of cached configurations. A workload talks to a few dozen others.
const MAX_CONFIGS: usize = 1024;

/// Maximum number of certificates in a server's chain, including the leaf.
const MAX_CERTIFICATES: usize = 8;

/// Client configurations for one certificate and one trust bundle, cached per expected identities and protocol.
pub struct PeerTls {
    /// The trust bundle that verifies certificates of peers.
    pub bundle: Arc<TrustBundle>,
    certificate: Arc<SingleCertAndKey>,
    algorithms: WebPkiSupportedAlgorithms,
    configs: Mutex<HashMap<ExpectedPeer, Arc<ClientConfig>>>,
}

/// The identities of which a peer must have one, and what it speaks.
#[derive(PartialEq, Eq, Hash)]
struct ExpectedPeer {
    identities: Box<[Identity]>,
    protocol: MeshProtocol,
}

/// Accepts the certificate of an expected workload: it must chain to the trust bundle, be valid for servers, and contain both
/// forms of the identity. Host names are not checked.
#[derive(Debug)]
struct PeerVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    expected: Box<[Identity]>,
}

/// The peer has another identity.
#[derive(Debug, thiserror::Error)]
#[error("expected {}, but the certificate is for {found}", list(.expected))]
struct OtherIdentity {
    expected: Box<[Identity]>,
    found: String,
}

/// The ALPN protocol of what is spoken inside TLS between sidecars.
pub(crate) fn mesh_alpn(protocol: MeshProtocol) -> &'static [u8] {
    let known = MESH_PROTOCOLS.iter().find(|(_, known)| *known == protocol);
    known.map(|(name, _)| *name).unwrap_or_default()
}

impl PeerTls {
    /// An empty cache for this certificate and these roots.
    ///
    /// # Errors
    ///
    /// If rustls does not accept the certificate or its key.
    pub fn new(credentials: &Credentials, bundle: Arc<TrustBundle>) -> Result<Self, Error> {
        let provider = tidegate_runtime::tls::provider();
        let key = CertifiedKey::from_der(credentials.chain.clone(), credentials.key.clone_key(), &provider)?;
        Ok(Self {
            bundle,
            certificate: Arc::new(SingleCertAndKey::from(key)),
            algorithms: provider.signature_verification_algorithms,
            configs: Mutex::default(),
        })
    }

    /// The configuration for a peer that must have one of these identities, and speak this protocol.
    pub fn config(&self, expected: &[Identity], protocol: MeshProtocol) -> Result<Arc<ClientConfig>, Error> {
        let mut known = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ExpectedPeer { identities: expected.into(), protocol };
        if let Some(config) = known.get(&key) {
            return Ok(config.clone());
        }
        if known.len() >= MAX_CONFIGS {
            known.clear();
        }
        let config = Arc::new(self.build(expected, protocol)?);
        known.insert(key, config.clone());
        Ok(config)
    }

    /// Verifies the peer's certificate of an open connection again, leaf first, as a handshake at `now` would, except
    /// that retired roots are accepted, too. Its identity cannot have changed.
    pub(crate) fn verify_again(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        verify_chain(leaf, intermediates, &self.bundle.lasting_store(), self.algorithms, now)
    }

    /// A configuration that accepts these identities alone.
    fn build(&self, expected: &[Identity], protocol: MeshProtocol) -> Result<ClientConfig, Error> {
        let verifier = PeerVerifier {
            roots: self.bundle.root_store(),
            algorithms: self.algorithms,
            expected: expected.into(),
        };
        let mut config = ClientConfig::builder_with_provider(tidegate_runtime::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.certificate.clone());
        // A resumed session would skip verification against a trust bundle that has changed.
        config.alpn_protocols = vec![mesh_alpn(protocol).to_vec()];
        config.resumption = Resumption::disabled();
        // There is no host name to send, and the destination is not disclosed on the network.
        config.enable_sni = false;
        Ok(config)
    }
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = PeerCertificate::from_der(leaf).map_err(|_| Error::from(CertificateError::BadEncoding))?;
        verify_chain(leaf, intermediates, &self.roots, self.algorithms, now)?;
        let is_peer = |expected: &Identity| {
            Identity::of_workload(&peer.sans, expected.trust_domain()).as_ref() == Some(expected)
        };
        if self.expected.iter().any(is_peer) {
            return Ok(ServerCertVerified::assertion());
        }
        let error = OtherIdentity { expected: self.expected.clone(), found: peer.display_names() };
        Err(CertificateError::Other(OtherError(Arc::new(error))).into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not supported between sidecars".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// `a`, `a or b`
fn list(identities: &[Identity]) -> String {
    identities.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// Verifies that a server's certificate chains to one of the roots, is valid now, and is for servers. Names are left to
/// the caller.
///
/// # Errors
///
/// [`CertificateError::BadEncoding`] if the chain is longer than any mesh needs, because building paths through it takes
/// time; else as webpki has it.
pub(super) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), Error> {
    if intermediates.len() >= MAX_CERTIFICATES {
        return Err(CertificateError::BadEncoding.into());
    }
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots,
        intermediates,
        now,
        algorithms.all,
    )
}
