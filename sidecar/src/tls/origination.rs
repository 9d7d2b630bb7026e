//! TLS towards servers outside the mesh, for apps that send plaintext: the roots and names of a [`TlsOrigination`], and
//! our own certificate where a server wants one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tidegate_core::policy::MeshProtocol;
use tidegate_core::tls_origination::{ServerName as Name, TlsOrigination, TrustRoots};
use tidegate_core::{ObjectRef, PeerCertificate, San};

use super::peer::verify_chain;

/// The most configurations that are kept.
const MOST_CONFIGS: usize = 256;

/// Roots and client certificates by the names that a [`TlsOrigination`] has for them, and the configurations for those.
/// Replaced as a whole when one of them changes.
#[derive(Default)]
pub struct OriginTls {
    roots: HashMap<TrustRoots, Arc<RootCertStore>>,
    certificates: HashMap<ObjectRef, Arc<CertifiedKey>>,
    configs: Mutex<HashMap<(TlsOrigination, MeshProtocol), Arc<ClientConfig>>>,
}

/// Why TLS cannot be spoken as a [`TlsOrigination`] has it.
#[derive(Debug, thiserror::Error)]
pub enum OriginTlsError {
    /// Objects that name the roots are missing or hold none.
    #[error("there are no trusted roots for the server: check the objects that name them")]
    NoRoots,
    /// The object with the client certificate is missing or holds none.
    #[error("there is no client certificate in {0}")]
    NoCertificate(ObjectRef),
    /// The server name cannot be sent.
    #[error("{0:?} is not a server name that TLS can send")]
    ServerName(Arc<str>),
    /// rustls refuses the configuration.
    #[error(transparent)]
    Tls(#[from] Error),
}

/// Accepts a server whose certificate chains to the roots, is for servers, and holds one of the names.
#[derive(Debug)]
struct ServerVerifier {
    roots: Arc<RootCertStore>,
    names: Vec<Name>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Another server answers.
#[derive(Debug, thiserror::Error)]
#[error("expected a server named {}, but the certificate is that of {found}", list(.expected))]
struct OtherName {
    expected: Vec<Name>,
    found: String,
}

impl OriginTls {
    /// With these roots and client certificates.
    pub fn new(
        roots: HashMap<TrustRoots, Arc<RootCertStore>>,
        certificates: HashMap<ObjectRef, Arc<CertifiedKey>>,
    ) -> Self {
        Self { roots, certificates, configs: Mutex::default() }
    }

    /// The configuration for a server, and for what is spoken inside TLS.
    pub fn config(
        &self,
        origination: &TlsOrigination,
        protocol: MeshProtocol,
    ) -> Result<Arc<ClientConfig>, OriginTlsError> {
        let mut known = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (origination.clone(), protocol);
        if let Some(config) = known.get(&key) {
            return Ok(config.clone());
        }
        if known.len() >= MOST_CONFIGS {
            known.clear();
        }
        let config = Arc::new(self.build(origination, protocol)?);
        known.insert(key, config.clone());
        Ok(config)
    }

    fn roots(&self, roots: &TrustRoots) -> Result<Arc<RootCertStore>, OriginTlsError> {
        let store = match roots {
            TrustRoots::Pem(pem) => Some(Arc::new(of_pem(pem)?)),
            TrustRoots::System | TrustRoots::Bundles(_) => self.roots.get(roots).cloned(),
        };
        store.filter(|roots| !roots.is_empty()).ok_or(OriginTlsError::NoRoots)
    }

    /// A configuration with these roots and names. No session is resumed.
    fn build(
        &self,
        origination: &TlsOrigination,
        protocol: MeshProtocol,
    ) -> Result<ClientConfig, OriginTlsError> {
        let provider = tidegate_runtime::tls::provider();
        let verifier = ServerVerifier {
            roots: self.roots(&origination.verify.roots)?,
            names: origination.verify.names.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &origination.client_certificate {
            None => builder.with_no_client_auth(),
            Some(object) => {
                let missing = || OriginTlsError::NoCertificate(object.clone());
                let key = self.certificates.get(object).ok_or_else(missing)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())))
            }
        };
        config.alpn_protocols = origin_alpn(protocol).iter().map(|name| name.to_vec()).collect();
        config.enable_sni = origination.sni.is_some();
        // A resumed session would skip the verification, and so outlive the server's certificate.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// The roots in a bundle. One that cannot be read refuses all.
fn of_pem(pem: &str) -> Result<RootCertStore, OriginTlsError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        store.add(certificate.map_err(|_| OriginTlsError::NoRoots)?)?;
    }
    Ok(store)
}

/// The ALPN protocols of what is spoken inside TLS to a server outside the mesh.
fn origin_alpn(protocol: MeshProtocol) -> &'static [&'static [u8]] {
    match protocol {
        MeshProtocol::Http1 => &[b"http/1.1"],
        MeshProtocol::Http2 => &[b"h2"],
        MeshProtocol::Tcp => &[],
    }
}

/// The name that the ClientHello sends; `None` for an address.
pub(crate) fn sni(origination: &TlsOrigination) -> Result<Option<ServerName<'static>>, OriginTlsError> {
    let Some(name) = &origination.sni else { return Ok(None) };
    let parsed = ServerName::try_from(String::from(&**name));
    parsed.map(Some).map_err(|_| OriginTlsError::ServerName(name.clone()))
}

impl fmt::Debug for OriginTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginTls").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_chain(leaf, intermediates, &self.roots, self.algorithms, now)?;
        let certificate = ParsedCertificate::try_from(leaf)?;
        if self.names.iter().any(|name| is_named(leaf, &certificate, name)) {
            return Ok(ServerCertVerified::assertion());
        }
        let found =
            PeerCertificate::from_der(leaf).map_or_else(|error| error.to_string(), |it| it.display_names());
        let error = OtherName { expected: self.names.clone(), found };
        Err(CertificateError::Other(OtherError(Arc::new(error))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.algorithms)
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

/// Whether a certificate has this name. DNS names are compared as the web does it: the certificate of a large site has
/// more of them than a workload's may.
fn is_named(leaf: &CertificateDer<'_>, certificate: &ParsedCertificate<'_>, name: &Name) -> bool {
    match name {
        Name::Dns(name) => ServerName::try_from(name.as_str())
            .is_ok_and(|name| verify_server_name(certificate, &name).is_ok()),
        Name::Uri(wanted) => {
            let sans = PeerCertificate::from_der(leaf).map(|it| it.sans).unwrap_or_default();
            sans.iter().any(|san| matches!(san, San::Uri(uri) if uri == wanted))
        }
    }
}

fn list(names: &[Name]) -> String {
    names.iter().map(Name::to_string).collect::<Vec<_>>().join(" or ")
}
