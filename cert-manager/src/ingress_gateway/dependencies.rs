//! What the keeper of the ingress controller's certificate depends on.

use std::sync::Arc;

use tokio::sync::watch;

use super::settings::IngressGatewaySettings;
use crate::check_schedule::CheckSchedule;
use crate::store::SecretStore;

/// Dependencies of the ingress controller's certificate.
pub struct GatewayDependencies {
    /// The current settings; `None` if no certificate is configured.
    pub settings: watch::Receiver<Option<IngressGatewaySettings>>,
    /// Where the certificate goes.
    pub store: Arc<dyn SecretStore>,
    /// Whether this process is the replica that acts, and has read the settings. Otherwise existing Secrets stay as they are.
    pub active: watch::Receiver<bool>,
    /// When to check Secrets and the wall clock. Woken when the Secret that the settings name may have changed.
    pub checks: CheckSchedule,
}

impl std::fmt::Debug for GatewayDependencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayDependencies").field("active", &*self.active.borrow()).finish_non_exhaustive()
    }
}

impl GatewayDependencies {
    /// For the only process that uses the store.
    pub fn alone(
        settings: watch::Receiver<Option<IngressGatewaySettings>>,
        store: Arc<dyn SecretStore>,
    ) -> Self {
        // Without its sender the value stays true.
        Self { settings, store, active: watch::channel(true).1, checks: CheckSchedule::default() }
    }
}
