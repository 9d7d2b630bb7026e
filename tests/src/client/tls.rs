//! The TLS half of a client: versions, names and certificates as a test needs them.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::pki::Credentials;

/// A client's TLS configuration.
#[derive(Clone, Debug)]
pub struct Tls {
    verifier: Arc<ByName>,
    versions: Vec<&'static SupportedProtocolVersion>,
    server_name: Option<ServerName<'static>>,
    protocols: Vec<Vec<u8>>,
    credentials: Option<Arc<Credentials>>,
    resumption: Option<Resumption>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.3
    Tls13,
    /// 1.2
    Tls12,
}

impl TlsVersion {
    /// Both, for tables.
    pub const ALL: [Self; 2] = [Self::Tls13, Self::Tls12];

    fn supported(self) -> &'static SupportedProtocolVersion {
        match self {
            Self::Tls13 => &rustls::version::TLS13,
            Self::Tls12 => &rustls::version::TLS12,
        }
    }
}

impl Tls {
    /// Trusts these roots and requires a server certificate with this name. Offers both versions, and sends no server
    /// name, no ALPN and no certificate, as ingress controllers do by default.
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>, expected: &str) -> Self {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).unwrap();
        }
        let inner = WebPkiServerVerifier::builder_with_provider(store.into(), provider()).build().unwrap();
        let expected = ServerName::try_from(expected.to_owned()).unwrap();
        Self {
            verifier: Arc::new(ByName { inner, expected }),
            versions: TlsVersion::ALL.map(TlsVersion::supported).to_vec(),
            server_name: None,
            protocols: Vec::new(),
            credentials: None,
            resumption: None,
        }
    }

    /// Offers this version only.
    #[must_use]
    pub fn version(mut self, version: TlsVersion) -> Self {
        self.versions = vec![version.supported()];
        self
    }

    /// Sends this server name.
    #[must_use]
    pub fn server_name(mut self, name: &str) -> Self {
        self.server_name = Some(ServerName::try_from(name.to_owned()).unwrap());
        self
    }

    /// Offers these ALPN protocols.
    #[must_use]
    pub fn protocols(mut self, protocols: &[&str]) -> Self {
        self.protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Presents this certificate.
    #[must_use]
    pub fn credentials(mut self, credentials: impl Into<Arc<Credentials>>) -> Self {
        self.credentials = Some(credentials.into());
        self
    }

    /// Resumes sessions if the server allows it.
    #[must_use]
    pub fn resuming(mut self) -> Self {
        self.resumption = Some(Resumption::in_memory_sessions(16));
        self
    }

    /// The configuration of a connection.
    pub fn config(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(self.verifier.clone());
        let mut config = match &self.credentials {
            None => builder.with_no_client_auth(),
            Some(credentials) => {
                // Not validated here: the server must see it, however odd.
                let key = provider().key_provider.load_private_key(credentials.key()).unwrap();
                let key = CertifiedKey::new(credentials.chain.clone(), key);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
            }
        };
        config.enable_sni = self.server_name.is_some();
        config.alpn_protocols.clone_from(&self.protocols);
        config.resumption = self.resumption.clone().unwrap_or_else(Resumption::disabled);
        config
    }

    /// The name given to rustls: the one to send, or any.
    pub fn name(&self) -> ServerName<'static> {
        self.server_name.clone().unwrap_or_else(|| self.verifier.expected.clone())
    }

    /// The client's side of a new connection.
    pub fn connection(&self) -> ClientConnection {
        ClientConnection::new(Arc::new(self.config()), self.name()).unwrap()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Verifies a name other than the one sent: ingress controllers send none and still verify one.
#[derive(Debug)]
struct ByName {
    inner: Arc<WebPkiServerVerifier>,
    expected: ServerName<'static>,
}

impl ServerCertVerifier for ByName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(leaf, intermediates, &self.expected, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
