//! Keeps `clientConfig.caBundle` of a webhook configuration in sync with the mesh's roots.
//!
//! Installations, upgrades and tools that restore applied manifests leave it empty or outdated; then the API server
//! refuses our certificate and with it every Pod of the mesh. Each replica of a daemon runs a keeper.

use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::{Api, Patch, PatchParams};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use serde::de::DeserializeOwned;
use serde_json::json;
use tidegate_runtime::backoff::ExponentialBackoff;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::{Blocker, Readiness};
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::watch::{Event, KindMeter, ObjectWatch};

/// Readiness blocker while the configuration holds other roots.
const BLOCKER: &str = "webhook configuration";
/// Maximum delay between repairs if another writer keeps writing other roots, for instance a replica whose copy of the
/// trust bundle is not up to date yet.
const SLOWEST_REPAIR: Duration = Duration::from_secs(10);
/// Timeout of one repair.
const PATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// A configuration that stayed right this long is not contended.
const PEACE: Duration = Duration::from_secs(60);

/// A configuration whose webhooks are all ours.
pub trait WebhookConfiguration:
    kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// The client configuration of each webhook, in order.
    fn client_configs(&self) -> Vec<&WebhookClientConfig>;
}

/// Keeps one webhook configuration right.
pub struct CaBundleKeeper<K> {
    name: String,
    api: Api<K>,
    trust_bundle: watch::Receiver<Arc<TrustBundle>>,
    readiness: Option<Readiness>,
    meter: KindMeter,
    blocker: Option<Blocker>,
    repairs: Counter,
    is_wrong: Gauge,
    pace: RepairPace,
}

/// When the next repair may happen.
struct RepairPace {
    backoff: ExponentialBackoff,
    last: Option<Instant>,
    not_before: Option<Instant>,
}

impl<K: WebhookConfiguration> CaBundleKeeper<K> {
    /// A keeper of the configuration `name`. If the process needs its webhook to be ready, readiness is blocked from
    /// now on while the configuration is missing or holds other roots; metrics report this in any case.
    pub fn new(
        client: kube::Client,
        name: impl Into<String>,
        trust_bundle: watch::Receiver<Arc<TrustBundle>>,
        metrics: &Metrics,
        meter: KindMeter,
        readiness: Option<Readiness>,
    ) -> Self {
        let repairs = metrics.register(
            "tidegate_webhook_ca_bundle_repairs",
            "Times that the roots in the webhook configuration were put right",
        );
        let is_wrong: Gauge = metrics.register(
            "tidegate_webhook_configuration_wrong",
            "1 while the webhook configuration is missing or holds other roots than ours, otherwise 0",
        );
        is_wrong.set(1);
        Self {
            name: name.into(),
            api: Api::all(client),
            trust_bundle,
            blocker: readiness.as_ref().map(|readiness| readiness.block(BLOCKER)),
            readiness,
            meter,
            repairs,
            is_wrong,
            pace: RepairPace::new(),
        }
    }

    /// Watches and repairs forever. The first repair of a stable configuration happens at once, repeated ones with
    /// growing delays.
    pub async fn run(self) {
        let (sender, events) = mpsc::channel(4);
        let watch = ObjectWatch::new(self.api.clone(), |_| (), self.meter.clone()).named(&self.name);
        tokio::select! {
            () = watch.run(sender, |event| event) => {}
            () = self.keep(events) => {}
        }
    }

    /// Applies events and repairs until the watch ends. A configuration that is missing is not created: it is part of
    /// the installation, and its rules are not known here.
    async fn keep(mut self, mut events: mpsc::Receiver<Event<K>>) {
        let mut current = None;
        loop {
            let repair = current.as_ref().and_then(|configuration| self.repair(configuration));
            self.note(current.is_some() && repair.is_none());
            tokio::select! {
                event = events.recv() => match event {
                    Some(event @ Event::Changed { .. }) => {
                        event.update(&mut current);
                        if current.is_none() {
                            warn!(name = self.name, "the webhook configuration is missing: this webhook is not called");
                        }
                    }
                    // The watch logs it and continues.
                    Some(Event::Unreadable(_)) => {}
                    None => return,
                },
                () = changed(&mut self.trust_bundle) => {}
                repair = due(repair, &self.pace) => {
                    if let Some(patched) = self.apply(&repair).await {
                        current = Some(patched);
                    }
                }
            }
        }
    }

    /// Updates the gauge and the readiness of the process.
    fn note(&mut self, is_right: bool) {
        self.is_wrong.set(i64::from(!is_right));
        if is_right {
            self.blocker = None;
        } else if self.blocker.is_none() {
            self.blocker = self.readiness.as_ref().map(|readiness| readiness.block(BLOCKER));
        }
    }

    /// Sends a repair, and returns the configuration as stored. After a failure or a conflict the next event or the
    /// next turn tries again.
    async fn apply(&mut self, repair: &json_patch::Patch) -> Option<K> {
        let (parameters, patch) = (PatchParams::default(), Patch::<()>::Json(repair.clone()));
        let patched =
            tokio::time::timeout(PATCH_TIMEOUT, self.api.patch(&self.name, &parameters, &patch)).await;
        self.pace.repaired(Instant::now());
        let problem = match patched {
            Ok(Ok(patched)) => {
                self.repairs.inc();
                info!(
                    name = self.name,
                    "the webhook configuration held other roots than ours; it was put right"
                );
                return Some(patched);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATCH_TIMEOUT:?}"),
        };
        warn!(problem, name = self.name, "cannot put the roots in the webhook configuration right");
        None
    }

    /// The patch that repairs the configuration; `None` if it is right. The patch fails after a concurrent write.
    fn repair(&self, configuration: &K) -> Option<json_patch::Patch> {
        let bundle = self.trust_bundle.borrow();
        let wrong: Vec<_> = configuration
            .client_configs()
            .into_iter()
            .enumerate()
            .filter(|(_, client_config)| !holds(client_config, &bundle))
            .map(|(index, _)| index)
            .collect();
        if wrong.is_empty() {
            return None;
        }
        let pem = json!(ByteString(bundle.to_pem().into_bytes()));
        let version = json!(configuration.meta().resource_version);
        let unchanged = TestOperation { path: pointer(["metadata", "resourceVersion"]), value: version };
        let puts_right = wrong.into_iter().map(|index| {
            let path = pointer(["webhooks", &index.to_string(), "clientConfig", "caBundle"]);
            PatchOperation::Add(AddOperation { path, value: pem.clone() })
        });
        Some(json_patch::Patch(iter::once(PatchOperation::Test(unchanged)).chain(puts_right).collect()))
    }
}

impl WebhookConfiguration for MutatingWebhookConfiguration {
    fn client_configs(&self) -> Vec<&WebhookClientConfig> {
        self.webhooks.iter().flatten().map(|webhook| &webhook.client_config).collect()
    }
}

impl WebhookConfiguration for ValidatingWebhookConfiguration {
    fn client_configs(&self) -> Vec<&WebhookClientConfig> {
        self.webhooks.iter().flatten().map(|webhook| &webhook.client_config).collect()
    }
}

impl RepairPace {
    fn new() -> Self {
        Self {
            backoff: ExponentialBackoff::new(Duration::from_millis(250), SLOWEST_REPAIR),
            last: None,
            not_before: None,
        }
    }

    /// Time left until a repair may happen.
    fn delay(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |moment| moment.saturating_duration_since(now))
    }

    /// Records an attempt, successful or not, and sets the earliest time of the next one.
    fn repaired(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > PEACE) {
            self.backoff.reset();
        }
        self.last = Some(now);
        self.not_before = Some(now + self.backoff.next_delay());
    }
}

fn pointer<const N: usize>(tokens: [&str; N]) -> PointerBuf {
    PointerBuf::from_tokens(tokens)
}

/// Compares certificates, as bundles always do, so that differences in white space are not repaired.
fn holds(client_config: &WebhookClientConfig, bundle: &TrustBundle) -> bool {
    let ca_bundle = client_config.ca_bundle.as_ref();
    ca_bundle.and_then(|pem| TrustBundle::parse(&pem.0).ok()).is_some_and(|held| held == *bundle)
}

/// Returns the repair when the pace allows; never, if there is nothing to repair.
async fn due(repair: Option<json_patch::Patch>, pace: &RepairPace) -> json_patch::Patch {
    let Some(repair) = repair else { return std::future::pending().await };
    tokio::time::sleep(pace.delay(Instant::now())).await;
    repair
}

/// Returns when the roots have changed; never, if they can no longer change.
async fn changed(bundle: &mut watch::Receiver<Arc<TrustBundle>>) {
    if bundle.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
