//! Keeps the ingress controller's Secret right, whatever changes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_runtime::drain;
use tokio::sync::watch;
use tracing::{error, info};

use super::certificate;
use super::settings::IngressGatewaySettings;
use crate::authority::AuthorityState;
use crate::manager::GatewayDependencies;
use crate::rules::{IssuingRules, Refusal};
use crate::store::{SecretName, StoreError};
use crate::telemetry::Telemetry;

#[cfg(test)]
mod tests;

/// How often the Secret and the wall clock are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// How the Secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayStatus {
    /// Nobody wants one.
    NotConfigured,
    /// Another replica keeps it, or the settings are not known yet.
    NotActive,
    /// It holds a certificate for the settings in force.
    Ready {
        /// What it was made for, and so which Secret.
        settings: IngressGatewaySettings,
        /// Serial number of its certificate in lower-case hex.
        serial: String,
        /// Last moment of the certificate's life.
        not_after: SystemTime,
    },
    /// It could not be made or written; this is tried again each second.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The task that keeps the Secret.
pub struct IngressGateway {
    pub(crate) gateway: GatewayDependencies,
    pub(crate) states: watch::Receiver<Arc<AuthorityState>>,
    pub(crate) rules: IssuingRules,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) status: watch::Sender<GatewayStatus>,
    /// What of the Secrets written before cannot be tidied up; it is logged once.
    pub(crate) untidy: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Secret {0}: {1}")]
    Store(SecretName, StoreError),
    #[error("the Secrets written before cannot be listed: {0}")]
    List(StoreError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl IngressGateway {
    pub(crate) fn new(
        gateway: GatewayDependencies,
        states: watch::Receiver<Arc<AuthorityState>>,
        rules: IssuingRules,
        telemetry: Arc<Telemetry>,
        status: watch::Sender<GatewayStatus>,
    ) -> Self {
        Self { gateway, states, rules, telemetry, status, untidy: None }
    }

    /// Keeps the Secret until the drain starts; the Secret stays then.
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut settings_may_change, mut turn_may_change) = (true, true);
        let wake = self.gateway.wake.clone();
        loop {
            tokio::select! {
                () = drain.started() => return,
                _ = interval.tick() => {}
                () = wake.notified() => {}
                changed = self.gateway.settings.changed(), if settings_may_change => {
                    settings_may_change = changed.is_ok();
                }
                changed = self.gateway.active.changed(), if turn_may_change => turn_may_change = changed.is_ok(),
                changed = self.states.changed() => if changed.is_err() { return },
            }
            self.keep().await;
        }
    }

    /// One look at everything.
    async fn keep(&mut self) {
        if !*self.gateway.active.borrow_and_update() {
            self.status.send_if_modified(|last| {
                std::mem::replace(last, GatewayStatus::NotActive) != GatewayStatus::NotActive
            });
            return;
        }
        let settings = self.gateway.settings.borrow_and_update().clone();
        let state = self.states.borrow_and_update().clone();
        let status = match self.try_keep(settings.as_ref(), &state).await {
            Ok(status) => status,
            Err(error) => GatewayStatus::Failed { reason: error.to_string() },
        };
        self.status.send_if_modified(|last| {
            if *last == status {
                return false;
            }
            if let GatewayStatus::Failed { reason } = &status {
                error!(%reason, "ingress gateway certificate");
            }
            *last = status;
            true
        });
    }

    async fn try_keep(
        &mut self,
        settings: Option<&IngressGatewaySettings>,
        state: &AuthorityState,
    ) -> Result<GatewayStatus, KeepError> {
        let status = match settings {
            Some(settings) => self.keep_secret(settings, state).await?,
            None => GatewayStatus::NotConfigured,
        };
        // After the new one is there: a controller that follows both names is never without.
        let tidied = self.tidy(settings).await;
        if settings.is_none() {
            tidied?;
            return Ok(status);
        }
        // A Secret that is right is, whatever becomes of others.
        let untidy = tidied.err().map(|error| error.to_string());
        if let Some(problem) = untidy.as_ref().filter(|_| self.untidy != untidy) {
            error!(problem, "ingress gateway certificates of before; tried again");
        }
        self.untidy = untidy;
        Ok(status)
    }

    /// Removes what no setting asks for any more, each as far as it can be, and sees that what is wanted will be found
    /// again.
    async fn tidy(&self, settings: Option<&IngressGatewaySettings>) -> Result<(), KeepError> {
        let store = &self.gateway.store;
        let wanted = settings.map(|settings| &settings.secret);
        let owned = store.owned().await.map_err(KeepError::List)?;
        let mut result = Ok(());
        if let Some(wanted) = wanted.filter(|wanted| !owned.contains(wanted)) {
            result = store.remember(wanted).await.map_err(|error| KeepError::Store(wanted.clone(), error));
        }
        for owned in owned.into_iter().filter(|owned| Some(owned) != wanted) {
            match store.remove(&owned).await {
                Ok(()) => {
                    info!(secret = %owned, "ingress gateway certificate removed: no setting asks for it");
                }
                Err(error) => result = Err(KeepError::Store(owned, error)),
            }
        }
        result
    }

    async fn keep_secret(
        &self,
        settings: &IngressGatewaySettings,
        state: &AuthorityState,
    ) -> Result<GatewayStatus, KeepError> {
        let failed = |error| KeepError::Store(settings.secret.clone(), error);
        let now = SystemTime::now();
        let found = self.gateway.store.get(&settings.secret).await.map_err(failed)?;
        let reason = match &found {
            None => Some("it is not there or not whole"),
            Some(secret) => certificate::why_replace(secret, settings, state, now),
        };
        let Some(reason) = reason else {
            let tls_crt = found.map(|secret| secret.tls_crt).unwrap_or_default();
            return Ok(read_status(settings, &tls_crt));
        };
        let (secret, issued) = certificate::issue(settings, state, &self.rules, now)?;
        self.gateway.store.put(&settings.secret, &secret).await.map_err(failed)?;
        info!(secret = %settings.secret, reason, "ingress gateway certificate written");
        self.telemetry.own("ingress-gateway", &issued);
        Ok(GatewayStatus::Ready {
            settings: settings.clone(),
            serial: issued.serial,
            not_after: issued.not_after,
        })
    }
}

impl std::fmt::Debug for IngressGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngressGateway").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

/// The status of a Secret that is right, whoever has written it.
fn read_status(settings: &IngressGatewaySettings, tls_crt: &str) -> GatewayStatus {
    let leaf = tidegate_runtime::tls::load_pem_certificates(tls_crt.as_bytes()).ok();
    let leaf = leaf.as_ref().and_then(|chain| chain.first());
    match leaf.map(|leaf| tidegate_core::PeerCertificate::from_der(leaf)) {
        Some(Ok(read)) => GatewayStatus::Ready {
            settings: settings.clone(),
            serial: read.serial,
            not_after: read.not_after,
        },
        _ => GatewayStatus::Failed { reason: format!("Secret {}: tls.crt cannot be read", settings.secret) },
    }
}
