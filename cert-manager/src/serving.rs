//! The service's own certificate: self-issued, renewed at half of its lifetime and whenever the authority changes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tidegate_core::San;
use tidegate_runtime::{drain, tls};
use tokio::sync::watch;
use tracing::error;

use crate::authority::AuthorityState;
use crate::rules::{BACKDATE, Issued, IssuingRefusal, IssuingRules};
use crate::telemetry::CaTelemetry;

/// How often to check the wall clock, which may jump.
const INTERVAL: Duration = Duration::from_secs(1);

/// Why the service has no certificate of its own.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The authority did not sign.
    #[error("no serving certificate: {0}")]
    Refused(#[from] IssuingRefusal),
    /// No key could be generated.
    #[error("no serving key: {0}")]
    Key(#[from] rcgen::Error),
    /// The TLS library refuses the certificate.
    #[error("serving certificate: {0}")]
    Tls(#[from] rustls::Error),
}

/// Keeps a serving certificate renewed.
pub(crate) struct ServingCertificate {
    names: Vec<San>,
    rules: IssuingRules,
    states: watch::Receiver<Arc<AuthorityState>>,
    telemetry: Arc<CaTelemetry>,
    configs: watch::Sender<Arc<ServerConfig>>,
    renew_at: SystemTime,
}

impl ServingCertificate {
    /// Issues the first certificate.
    pub(crate) fn new(
        names: Vec<San>,
        rules: IssuingRules,
        mut states: watch::Receiver<Arc<AuthorityState>>,
        telemetry: Arc<CaTelemetry>,
    ) -> Result<Self, ServingError> {
        let state = states.borrow_and_update().clone();
        let (config, renew_at) = issue(&names, &rules, &state, &telemetry)?;
        let configs = watch::channel(config).0;
        Ok(Self { names, rules, states, telemetry, configs, renew_at })
    }

    /// The TLS configuration of new connections.
    pub(crate) fn configs(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.configs.subscribe()
    }

    /// Renews until the drain starts.
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = drain.started() => return,
                changed = self.states.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(INTERVAL) => if SystemTime::now() < self.renew_at { continue },
            }
            let state = self.states.borrow_and_update().clone();
            match issue(&self.names, &self.rules, &state, &self.telemetry) {
                Ok((config, renew_at)) => {
                    self.configs.send_replace(config);
                    self.renew_at = renew_at;
                    failing = false;
                }
                Err(error) if !failing => {
                    error!(%error, "the serving certificate stays as it is");
                    failing = true;
                }
                Err(_) => {}
            }
        }
    }
}

/// A new key, its certificate and the TLS configuration with it, and when to renew: at half of the remaining lifetime.
fn issue(
    names: &[San],
    rules: &IssuingRules,
    state: &AuthorityState,
    telemetry: &CaTelemetry,
) -> Result<(Arc<ServerConfig>, SystemTime), ServingError> {
    let now = SystemTime::now();
    let key = KeyPair::generate()?;
    let not_after = rules.end_of_life(rules.default_life.min(rules.max_life), &state.issuer, now)?;
    let leaf = state
        .issuer
        .sign_leaf(&key.subject_public_key_info(), names, false, now - BACKDATE, not_after)
        .map_err(IssuingRefusal::from)?;
    let issued = Issued::read_back(leaf, names.to_vec())?;
    let mut chain = vec![issued.leaf.clone()];
    chain.extend(state.intermediates(issued.not_after));
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        // Callers authenticate by token: after an outage of the CA their certificates may have expired.
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Clients must verify the certificate on each connection.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    telemetry.own("serving", &issued);
    let life = issued.not_after.duration_since(now).unwrap_or_default();
    Ok((Arc::new(config), now + life / 2))
}
