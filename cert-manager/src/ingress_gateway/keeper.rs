//! Keeps the ingress controller's Secret correct, whatever changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_runtime::drain;
use tokio::sync::watch;
use tracing::{error, info};

use super::certificate;
use super::copies::MOST_NAMESPACES;
use super::dependencies::GatewayDependencies;
use super::settings::IngressGatewaySettings;
use crate::authority::AuthorityState;
use crate::rules::{IssuingRefusal, IssuingRules};
use crate::store::{SecretName, StoreError, enumerate};
use crate::telemetry::CaTelemetry;

#[cfg(test)]
mod tests;

/// Maximum Secrets to check each time, besides the one that the settings name; if there are more, they take turns.
const LOOKS: usize = 8;

/// The state of the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayStatus {
    /// No certificate is configured.
    NotConfigured,
    /// Another replica keeps it, or the settings have not been read yet.
    NotActive,
    /// It contains a certificate for the current settings.
    Ready {
        /// The settings that it was issued for, which also say which Secret it is in.
        settings: IngressGatewaySettings,
        /// Serial number of its certificate in lower-case hex.
        serial: String,
        /// When the certificate expires.
        not_after: SystemTime,
    },
    /// It could not be issued or written; retried every second.
    Failed {
        /// The reason.
        reason: String,
    },
}

/// One of the Secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
enum WantedSecret {
    /// Certificate, key and roots.
    Certificate(SecretName),
    /// The roots alone.
    Roots(SecretName),
}

/// Which Secrets to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    All,
    InTurn,
}

/// The task that keeps the Secrets correct.
pub(crate) struct IngressGateway {
    pub(crate) gateway: GatewayDependencies,
    pub(crate) states: watch::Receiver<Arc<AuthorityState>>,
    pub(crate) rules: IssuingRules,
    pub(crate) telemetry: Arc<CaTelemetry>,
    pub(crate) status: watch::Sender<GatewayStatus>,
    /// Why obsolete Secrets cannot be removed; logged once.
    pub(crate) untidy: Option<String>,
    /// Failures of Secrets besides the one that the settings name, from the last check of each.
    pub(crate) failures: BTreeMap<SecretName, String>,
    /// Which of those is next; `None` until all of them were checked once.
    pub(crate) turn: Option<usize>,
}

/// Why a Secret is not as it should be; the text goes to the condition of the MeshConfig.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Secret {0}: {1}")]
    Store(SecretName, StoreError),
    #[error("earlier Secrets cannot be listed: {0}")]
    List(StoreError),
    #[error(transparent)]
    Refused(#[from] IssuingRefusal),
}

impl IngressGateway {
    pub(crate) fn new(
        gateway: GatewayDependencies,
        states: watch::Receiver<Arc<AuthorityState>>,
        rules: IssuingRules,
        telemetry: Arc<CaTelemetry>,
        status: watch::Sender<GatewayStatus>,
    ) -> Self {
        Self {
            gateway,
            states,
            rules,
            telemetry,
            status,
            untidy: None,
            failures: BTreeMap::new(),
            turn: None,
        }
    }

    /// Keeps the Secret correct until the drain starts; the Secret stays afterwards.
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
        let checks = self.gateway.checks.clone();
        let mut ticks = checks.ticks();
        let (mut settings_may_change, mut turn_may_change) = (true, true);
        loop {
            let mut look = Look::All;
            tokio::select! {
                () = drain.started() => return,
                _ = ticks.tick() => look = Look::InTurn,
                () = checks.wake.notified() => {}
                changed = self.gateway.settings.changed(), if settings_may_change => {
                    settings_may_change = changed.is_ok();
                }
                changed = self.gateway.active.changed(), if turn_may_change => turn_may_change = changed.is_ok(),
                changed = self.states.changed() => if changed.is_err() { return },
            }
            self.keep(look).await;
        }
    }

    /// One check, and the status that results.
    async fn keep(&mut self, look: Look) {
        if !*self.gateway.active.borrow_and_update() {
            self.turn = None;
            self.status.send_if_modified(|last| {
                std::mem::replace(last, GatewayStatus::NotActive) != GatewayStatus::NotActive
            });
            return;
        }
        let settings = self.gateway.settings.borrow_and_update().clone();
        let state = self.states.borrow_and_update().clone();
        let status = match self.try_keep(settings.as_ref(), &state, look).await {
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

    /// The Secrets in order: the one that the settings name, the other configured ones, those no longer configured.
    async fn try_keep(
        &mut self,
        settings: Option<&IngressGatewaySettings>,
        state: &AuthorityState,
        look: Look,
    ) -> Result<GatewayStatus, KeepError> {
        let status = match settings {
            Some(settings) => {
                let status = self.keep_secret(settings, &settings.secret, state).await?;
                self.keep_others(settings, state, look).await;
                self.failure(settings).map_or(status, |reason| GatewayStatus::Failed { reason })
            }
            None => GatewayStatus::NotConfigured,
        };
        // Only now that the new one exists, so that a controller that reads both names always has one.
        let tidied = self.tidy(settings).await;
        if settings.is_none() {
            tidied?;
            return Ok(status);
        }
        // A correct Secret counts as such, whatever happens to others.
        let untidy = tidied.err().map(|error| error.to_string());
        if let Some(problem) = untidy.as_ref().filter(|_| self.untidy != untidy) {
            error!(problem, "ingress gateway certificates of before; tried again");
        }
        self.untidy = untidy;
        Ok(status)
    }

    /// Deletes Secrets that were removed from the configuration. Records those that could not be deleted, to try them again
    /// later.
    async fn tidy(&self, settings: Option<&IngressGatewaySettings>) -> Result<(), KeepError> {
        let store = &self.gateway.store;
        let wanted: BTreeSet<SecretName> = settings
            .map(|settings| settings.secrets().into_iter().chain(settings.ca_secrets()).collect())
            .unwrap_or_default();
        let owned: BTreeSet<SecretName> = store.owned().await.map_err(KeepError::List)?.into_iter().collect();
        let mut result = Ok(());
        // One that could not be written cannot be found either.
        for forgotten in wanted.difference(&owned).filter(|name| !self.failures.contains_key(name)) {
            result =
                store.remember(forgotten).await.map_err(|error| KeepError::Store(forgotten.clone(), error));
        }
        for owned in owned.into_iter().filter(|owned| !wanted.contains(owned)) {
            match store.remove(&owned).await {
                Ok(()) => {
                    info!(secret = %owned, "ingress gateway certificate removed: it is no longer configured");
                }
                Err(error) => result = Err(KeepError::Store(owned, error)),
            }
        }
        result
    }

    /// Keeps the additional Secrets correct. A failure of one does not affect the others.
    async fn keep_others(&mut self, settings: &IngressGatewaySettings, state: &AuthorityState, look: Look) {
        let certificates = settings.secrets().into_iter().skip(1).map(WantedSecret::Certificate);
        let others: Vec<_> =
            certificates.chain(settings.ca_secrets().into_iter().map(WantedSecret::Roots)).collect();
        self.failures.retain(|name, _| others.iter().any(|other| other.name() == name));
        let (turn, count) = match (look, self.turn) {
            (Look::InTurn, Some(turn)) => (turn, LOOKS.min(others.len())),
            _ => (0, others.len()),
        };
        for other in others.iter().cycle().skip(turn).take(count) {
            let kept = match other {
                WantedSecret::Certificate(name) => self.keep_secret(settings, name, state).await.map(drop),
                WantedSecret::Roots(name) => self.keep_roots(name, state).await,
            };
            match kept {
                Ok(()) => drop(self.failures.remove(other.name())),
                Err(error) => drop(self.failures.insert(other.name().clone(), error.to_string())),
            }
        }
        self.turn = Some((turn + count).checked_rem(others.len()).unwrap_or_default());
    }

    /// Failures of Secrets besides the one that the settings name.
    fn failure(&self, settings: &IngressGatewaySettings) -> Option<String> {
        let left_out = (settings.left_out > 0).then(|| {
            let count = settings.left_out;
            format!("{count} namespaces that are selected get none: {MOST_NAMESPACES} at most do")
        });
        let all: Vec<_> = left_out.into_iter().chain(self.failures.values().cloned()).collect();
        (!all.is_empty()).then(|| enumerate(&all))
    }

    /// Writes a Secret with the roots alone if its content differs.
    async fn keep_roots(&self, name: &SecretName, state: &AuthorityState) -> Result<(), KeepError> {
        let failed = |error| KeepError::Store(name.clone(), error);
        let roots = state.trusted_pem();
        if self.gateway.store.get_roots(name).await.map_err(failed)?.as_ref() != Some(&roots) {
            self.gateway.store.put_roots(name, &roots).await.map_err(failed)?;
            info!(secret = %name, "roots for the ingress controller written");
        }
        Ok(())
    }

    /// Writes a Secret with a new certificate if the present one is not as it should be; see
    /// [`certificate::why_replace`].
    async fn keep_secret(
        &self,
        settings: &IngressGatewaySettings,
        name: &SecretName,
        state: &AuthorityState,
    ) -> Result<GatewayStatus, KeepError> {
        let failed = |error| KeepError::Store(name.clone(), error);
        let now = SystemTime::now();
        let found = self.gateway.store.get(name).await.map_err(failed)?;
        let reason = match &found {
            None => Some("it is not there or not whole"),
            Some(secret) => certificate::why_replace(secret, settings, state, now),
        };
        let Some(reason) = reason else {
            let tls_crt = found.map(|secret| secret.tls_crt).unwrap_or_default();
            return Ok(read_status(settings, &tls_crt));
        };
        let (secret, issued) = certificate::issue(settings, state, &self.rules, now)?;
        self.gateway.store.put(name, &secret).await.map_err(failed)?;
        info!(secret = %name, reason, "ingress gateway certificate written");
        self.telemetry.own("ingress-gateway", &issued);
        Ok(GatewayStatus::Ready {
            settings: settings.clone(),
            serial: issued.serial,
            not_after: issued.not_after,
        })
    }
}

impl WantedSecret {
    fn name(&self) -> &SecretName {
        match self {
            Self::Certificate(name) | Self::Roots(name) => name,
        }
    }
}

impl std::fmt::Debug for IngressGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngressGateway").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

/// The status of a correct Secret, by any author.
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
