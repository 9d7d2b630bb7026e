//! TLS towards clients: one set of configurations for each certificate and trust bundle, never one a connection.

use std::sync::Arc;

use tidegate_runtime::identity::Credentials;
use tidegate_runtime::trust_bundle::TrustBundle;

/// TLS configurations for one certificate and one trust bundle.
pub struct ServerTls {
    /// The certificate that is shown.
    pub credentials: Arc<Credentials>,
    /// What client certificates are verified by.
    pub bundle: Arc<TrustBundle>,
}
