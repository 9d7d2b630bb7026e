//! TLS: one set of configurations for each certificate and trust bundle, never one a connection.
//!
//! [`ServerTls`] is for clients: it chooses the configuration by what the policy demands and the client offers,
//! `client_verifier` judges client certificates, [`stream`] is the connection itself. [`PeerTls`] is for connections
//! that we open to other sidecars, [`OriginTls`] for those to servers outside the mesh.

mod client_verifier;
mod origination;
mod peer;
pub mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, UnixTime};
use tidegate_core::policy::{AppProtocol, Terms};
use tidegate_runtime::identity::Credentials;
use tidegate_runtime::trust_bundle::TrustBundle;

use crate::detect::client_hello::{Alpn, MESH_PROTOCOLS};
use client_verifier::ClientVerifier;

pub(crate) use client_verifier::{Presented, take_refused};
pub(crate) use origination::sni;
pub use origination::{OriginTls, OriginTlsError};
pub use peer::PeerTls;
pub(crate) use peer::mesh_alpn;

/// TLS configurations for one certificate and one trust bundle.
pub struct ServerTls {
    /// The certificate that is shown.
    pub credentials: Arc<Credentials>,
    /// What client certificates are verified by.
    pub bundle: Arc<TrustBundle>,
    /// Fingerprints of the roots in it under which the certificate is good.
    pub certificate_roots: Vec<String>,
    /// Judges the clients of connections that are open.
    lasting: Arc<ClientVerifier>,
    mesh: [Arc<ServerConfig>; MESH_PROTOCOLS.len()],
    mutual: Family,
    open: Family,
}

/// The certificate and the trust bundle do not make a server.
#[derive(Debug, thiserror::Error)]
#[error("certificate or trust bundle cannot be served with: {0}")]
pub struct ServerTlsError(#[from] rustls::Error);

/// Configurations that differ in what they answer to ALPN.
struct Family {
    http1_first: Arc<ServerConfig>,
    http2_first: Arc<ServerConfig>,
    /// For clients that offer nothing that we speak: an answer would have to be a refusal (RFC 7301 §3.2).
    without: Arc<ServerConfig>,
}

const TLS12_AND_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

impl ServerTls {
    /// Builds every configuration.
    pub fn new(credentials: Arc<Credentials>, bundle: Arc<TrustBundle>) -> Result<Self, ServerTlsError> {
        let provider = tidegate_runtime::tls::provider();
        let verifier = Arc::new(ClientVerifier::new(bundle.root_store(), &provider)?);
        let lasting = Arc::new(ClientVerifier::new(bundle.lasting_store(), &provider)?);
        let key = CertifiedKey::from_der(credentials.chain.clone(), credentials.key.clone_key(), &provider)?;
        let certificate: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(key));

        let build = |versions: &[&'static SupportedProtocolVersion], mutual: bool, alpn: &[&[u8]]| {
            let builder =
                ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
            let builder = if mutual {
                builder.with_client_cert_verifier(verifier.clone())
            } else {
                builder.with_no_client_auth()
            };
            let mut config = builder.with_cert_resolver(certificate.clone());
            config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
            // A resumed session would carry a client certificate past its end, past a change of the trust bundle,
            // and past the client's own renewal.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        let family = |mutual: bool| {
            Ok::<_, rustls::Error>(Family {
                http1_first: build(TLS12_AND_13, mutual, &[b"http/1.1", b"h2"])?,
                http2_first: build(TLS12_AND_13, mutual, &[b"h2", b"http/1.1"])?,
                without: build(TLS12_AND_13, mutual, &[])?,
            })
        };
        let certificate_roots = credentials.roots(&bundle, SystemTime::now());
        let [http1, http2, tcp] = MESH_PROTOCOLS.map(|(name, _)| build(TLS13, true, &[name]));
        let mesh = [http1?, http2?, tcp?];
        let (mutual, open) = (family(true)?, family(false)?);
        Ok(Self { credentials, bundle, certificate_roots, lasting, mesh, mutual, open })
    }

    /// The configuration for a client that offers this and an app that speaks that; `None` if the terms are without
    /// TLS.
    pub fn config(&self, terms: Terms, offered: Alpn, app: AppProtocol) -> Option<&Arc<ServerConfig>> {
        match terms {
            Terms::MeshTls(protocol) => {
                let index = MESH_PROTOCOLS.iter().position(|(_, known)| *known == protocol)?;
                self.mesh.get(index)
            }
            Terms::IngressMutualTls => Some(self.mutual.choose(offered, app)),
            Terms::IngressTls => Some(self.open.choose(offered, app)),
            Terms::IngressPlaintext | Terms::BadRequest | Terms::Opaque => None,
        }
    }

    /// Judges the client certificate of an open connection again, leaf first, as a handshake at `now` would, but that
    /// roots count which were retired since, too.
    pub fn verify_again(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        self.lasting.verify_chain(chain, now).map_err(|refusal| refusal.error)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("certificate", &self.credentials.leaf.display_names())
            .field("generation", &self.credentials.generation)
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

impl Family {
    fn choose(&self, offered: Alpn, app: AppProtocol) -> &Arc<ServerConfig> {
        match app {
            _ if !offered.http1 && !offered.http2 => &self.without,
            AppProtocol::H2c | AppProtocol::Undeclared => &self.http2_first,
            AppProtocol::Http | AppProtocol::Tcp | AppProtocol::TcpServerFirst => &self.http1_first,
        }
    }
}

#[cfg(test)]
mod tests;
