//! TLS configurations for gRPC between the mesh's own processes: TLS 1.3, HTTP/2, nothing resumed.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, ServerConfig};

use crate::identity::Credentials;
use crate::tls;
use crate::trust_bundle::TrustBundle;

/// The one protocol that gRPC speaks (RFC 9113 §3.1).
const ALPN: &[u8] = b"h2";

/// What a server wants of its clients' certificates. A certificate that is shown must chain to the bundle either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// No certificate, no connection.
    Required,
    /// Clients may come without one, as those that ask for their first certificate do.
    Optional,
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The certificate and the key do not go together, or the provider cannot use them.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The bundle cannot verify clients.
    #[error("TLS client verifier: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// A client's side: servers must chain to `bundle`; `credentials` are shown if there are any.
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
    // A resumed session would skip the verification against a bundle that has changed since.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A server's side: shows `credentials`; clients' certificates must chain to `bundle`.
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
    // As on the client's side: every connection is judged anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
