//! TLS configurations, built once for each certificate and trust bundle, never per connection.
//!
//! [`ServerTls`] is for clients: it selects the configuration by what the policy requires and the client offers.
//! `client_verifier` verifies client certificates, [`stream`] is the connection itself. [`PeerTls`] is for connections
//! to other sidecars, [`OriginTls`] for those to servers outside the mesh.

mod client_verifier;
mod origination;
mod peer;
pub(crate) mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, UnixTime};
use tidegate_core::policy::{AppProtocol, Terms};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::trust_bundle::TrustBundle;

use crate::detect::client_hello::{Alpn, MESH_PROTOCOLS};
use client_verifier::ClientVerifier;

pub(crate) use client_verifier::{Presented, take_refused};
pub(crate) use origination::sni;
pub(crate) use origination::{OriginTls, OriginTlsError};
pub(crate) use peer::PeerTls;
pub(crate) use peer::mesh_alpn;

/// Server configurations for one certificate and one trust bundle.
pub struct ServerTls {
    /// The server certificate.
    pub credentials: Arc<Credentials>,
    /// The trust bundle that verifies client certificates.
    pub bundle: Arc<TrustBundle>,
    /// Fingerprints of the roots in the bundle that the server certificate chains to.
    pub certificate_roots: Vec<String>,
    /// Verifies the clients of open connections, also by retired roots.
    for_open_connections: Arc<ClientVerifier>,
    mesh: [Arc<ServerConfig>; MESH_PROTOCOLS.len()],
    mutual: AlpnConfigs,
    no_client_auth: AlpnConfigs,
}

/// Certificate and trust bundle cannot be used for a server.
#[derive(Debug, thiserror::Error)]
#[error("certificate or trust bundle cannot be served with: {0}")]
pub struct ServerTlsError(#[from] rustls::Error);

/// Configurations that differ in their ALPN protocols.
struct AlpnConfigs {
    http1_first: Arc<ServerConfig>,
    http2_first: Arc<ServerConfig>,
    /// For clients that offer none of our protocols: with ALPN, they would have to be refused (RFC 7301 §3.2).
    without: Arc<ServerConfig>,
}

/// Ingress controllers need TLS 1.2.
const TLS12_AND_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
/// Between sidecars.
const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

impl ServerTls {
    /// Builds every configuration.
    ///
    /// # Errors
    ///
    /// If rustls does not accept the certificate, its key or the roots.
    pub fn new(credentials: Arc<Credentials>, bundle: Arc<TrustBundle>) -> Result<Self, ServerTlsError> {
        let provider = tidegate_runtime::tls::provider();
        let verifier = Arc::new(ClientVerifier::new(bundle.root_store(), &provider)?);
        let for_open_connections = Arc::new(ClientVerifier::new(bundle.lasting_store(), &provider)?);
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
            // A resumed session would carry a client certificate past its expiry, past a change of the trust bundle,
            // and past the client's renewal.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        let family = |mutual: bool| {
            Ok::<_, rustls::Error>(AlpnConfigs {
                http1_first: build(TLS12_AND_13, mutual, &[b"http/1.1", b"h2"])?,
                http2_first: build(TLS12_AND_13, mutual, &[b"h2", b"http/1.1"])?,
                without: build(TLS12_AND_13, mutual, &[])?,
            })
        };
        let certificate_roots = credentials.roots(&bundle, SystemTime::now());
        let [http1, http2, tcp] = MESH_PROTOCOLS.map(|(name, _)| build(TLS13, true, &[name]));
        let mesh = [http1?, http2?, tcp?];
        let (mutual, no_client_auth) = (family(true)?, family(false)?);
        Ok(Self {
            credentials,
            bundle,
            certificate_roots,
            for_open_connections,
            mesh,
            mutual,
            no_client_auth,
        })
    }

    /// The configuration for what the client offers and the app's protocol; `None` if the terms exclude TLS.
    pub fn config(&self, terms: Terms, offered: Alpn, app: AppProtocol) -> Option<&Arc<ServerConfig>> {
        match terms {
            Terms::MeshTls(protocol) => {
                let index = MESH_PROTOCOLS.iter().position(|(_, known)| *known == protocol)?;
                self.mesh.get(index)
            }
            Terms::IngressMutualTls => Some(self.mutual.choose(offered, app)),
            Terms::IngressTls => Some(self.no_client_auth.choose(offered, app)),
            Terms::IngressPlaintext | Terms::BadRequest | Terms::Opaque => None,
        }
    }

    /// Verifies the client certificate of an open connection again, leaf first, as a handshake at `now` would, except
    /// that retired roots are accepted, too.
    pub(crate) fn verify_again(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.for_open_connections.verify_chain(chain, now).map_err(|refusal| refusal.error)
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

impl AlpnConfigs {
    /// The order of our protocols is that of preference (RFC 7301 §3.2): the app's own version first, so that a request
    /// keeps it.
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
