//! What the keeper of the ingress controller's certificate depends on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::settings::IngressGatewaySettings;
use crate::store::SecretStore;

/// Dependencies of the ingress controller's certificate.
pub struct GatewayDependencies {
    /// The current settings; `None` if no certificate is configured.
    pub settings: watch::Receiver<Option<IngressGatewaySettings>>,
    /// Where the certificate goes.
    pub store: Arc<dyn SecretStore>,
    /// Whether this process is the replica that acts, and has read the settings. Otherwise existing Secrets stay as they are.
    pub active: watch::Receiver<bool>,
    /// Notified when the Secret may have changed, so that it is checked at once instead of after `interval`.
    pub wake: Arc<Notify>,
    /// How often to check Secrets and the wall clock in any case: [`LOOK_INTERVAL`].
    pub interval: Duration,
}

/// The usual [`GatewayDependencies::interval`].
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
        Self {
            settings,
            store,
            active: watch::channel(true).1,
            wake: Arc::default(),
            interval: LOOK_INTERVAL,
        }
    }
}
