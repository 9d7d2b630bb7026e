//! TLS configurations for gRPC between the mesh's own processes: TLS 1.3, HTTP/2, no resumption.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, ServerConfig};

use crate::credentials::Credentials;
use crate::tls;
use crate::trust_bundle::TrustBundle;

/// The ALPN protocol of gRPC (RFC 9113 §3.1).
const ALPN: &[u8] = b"h2";

/// Whether clients need a certificate. A presented certificate must chain to the bundle either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Connections without a certificate are refused.
    Required,
    /// Clients may connect without one, as they do to request their first certificate.
    Optional,
}

/// Why a TLS configuration could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Certificate and key do not match, or the provider cannot use them.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The bundle cannot be used to verify clients.
    #[error("TLS client verifier: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// A client's configuration: servers must chain to `bundle`; `credentials` are presented, if any.
pub fn client_config(
    bundle: &TrustBundle,
    credentials: Option<&Credentials>,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(bundle.root_store());
    let mut config = match credentials {
        Some(credentials) => {
            builder.with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Resumption would skip verification against a bundle that has changed since.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A server's configuration: presents `credentials`; clients' certificates must chain to `bundle`.
pub fn server_config(
    credentials: &Credentials,
    bundle: &TrustBundle,
    clients: ClientCertificates,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(bundle.root_store(), tls::provider());
    let verifier = match clients {
        ClientCertificates::Required => verifier.build()?,
        ClientCertificates::Optional => verifier.allow_unauthenticated().build()?,
    };
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // As on the client's side: every connection is verified in full.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
