//! The webhook's TLS: the newest certificate. It requests no client certificate, because the API server presents none
//! by default.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::tls;
use tokio::sync::watch;
use tracing::warn;

/// The newest configuration, rebuilt for each certificate. `None` if the sender of certificates is dropped before the
/// first one.
pub(super) async fn configs(
    mut credentials: watch::Receiver<Option<Arc<Credentials>>>,
) -> Option<watch::Receiver<Arc<ServerConfig>>> {
    let first = loop {
        let current = credentials.borrow_and_update().clone();
        if let Some(config) = current.and_then(|current| config(&current)) {
            break config;
        }
        credentials.changed().await.ok()?;
    };
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                changed = credentials.changed() => changed.is_ok(),
                () = sender.closed() => false,
            };
            if !changed {
                return;
            }
            let current = credentials.borrow_and_update().clone();
            if let Some(config) = current.and_then(|current| config(&current)) {
                sender.send_replace(config);
            }
        }
    });
    Some(receiver)
}

/// TLS 1.3 only, which every supported API server speaks; no tickets and no session cache, so that a renewed
/// certificate is the one that new connections see. `None` after an error, which is logged: the configuration before
/// stays.
fn config(credentials: &Credentials) -> Option<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map(|builder| builder.with_no_client_auth());
    let config = builder
        .and_then(|builder| builder.with_single_cert(credentials.chain.clone(), credentials.key.clone_key()));
    match config {
        Ok(mut config) => {
            // HTTP/1.1: after a node failure, a hanging connection costs the API server only one request, not all of
            // them.
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Some(Arc::new(config))
        }
        Err(error) => {
            warn!(%error, "the webhook keeps its TLS configuration");
            None
        }
    }
}
