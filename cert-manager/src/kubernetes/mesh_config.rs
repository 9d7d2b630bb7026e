//! From MeshConfig to the ingress gateway's settings, and back into its status.
//!
//! Settings that cannot be understood change nothing: the certificate that works stays and is renewed, the status says
//! which field is wrong. A MeshConfig that is away changes nothing either: it may come back in the next moment.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tidegate_crds::mesh_config::{IngressGatewayCertificate, MESH_CONFIG_NAME};
use tidegate_crds::{MeshConfig, MeshConfigStatus};
use tidegate_kubernetes::watch::{Watch, WatchMetrics};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::bounded;
use super::follow::{Mirror, named};
use crate::ingress_gateway::{GatewayStatus, IngressGatewaySettings, SettingsInput, SettingsProblem};

#[cfg(test)]
mod tests;

/// How often a status that could not be written is tried again.
const INTERVAL: Duration = Duration::from_secs(5);
const COMMITTED_STATUS: &str = "committed";
/// What every error of ours begins with.
const GATEWAY_PATH: &str = "spec.certificate.ingressGateway";
const COMMITTED: &str = "successfully committed by the system";

/// Follows the one MeshConfig.
pub struct MeshConfigFollower {
    api: Api<MeshConfig>,
    namespace: String,
    wake: Arc<Notify>,
    seen: Arc<Mirror<Seen>>,
    is_leader: watch::Receiver<bool>,
    settings: watch::Sender<Option<IngressGatewaySettings>>,
    active: watch::Sender<bool>,
    is_known: bool,
    _watch: JoinSet<()>,
}

/// What counts of a MeshConfig.
#[derive(Clone)]
struct Seen {
    gateway: Option<IngressGatewayCertificate>,
    status: Option<MeshConfigStatus>,
}

impl MeshConfigFollower {
    /// Follows the MeshConfig of the control plane's `namespace`. Only the replica that leads acts on it.
    pub fn start(
        client: Client,
        namespace: &str,
        is_leader: watch::Receiver<bool>,
        meters: &WatchMetrics,
    ) -> Self {
        let api: Api<MeshConfig> = Api::namespaced(client, namespace);
        let (wake, seen) = (Arc::new(Notify::new()), Mirror::new());
        let keep = |config: MeshConfig| {
            Some(Seen { gateway: config.spec.ingress_gateway().cloned(), status: config.status })
        };
        let mut watches = JoinSet::new();
        let configs = Watch::new(api.clone(), |_| {}, meters.kind("MeshConfig")).named(MESH_CONFIG_NAME);
        watches.spawn(seen.clone().follow(configs, keep, wake.clone()));
        Self {
            api,
            namespace: namespace.to_owned(),
            wake,
            seen,
            is_leader,
            settings: watch::channel(None).0,
            active: watch::channel(false).0,
            is_known: false,
            _watch: watches,
        }
    }

    /// The last settings that could be understood.
    pub fn settings(&self) -> watch::Receiver<Option<IngressGatewaySettings>> {
        self.settings.subscribe()
    }

    /// Whether this replica is the one to act on the settings, and knows them.
    pub fn active(&self) -> watch::Receiver<bool> {
        self.active.subscribe()
    }

    /// Follows for as long as it is polled; `gateway` says how the certificate is.
    pub async fn run(mut self, mut gateway: watch::Receiver<GatewayStatus>) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                changed = self.is_leader.changed() => if changed.is_err() { return },
                changed = gateway.changed() => if changed.is_err() { return },
                _ = interval.tick() => {}
            }
            let status = gateway.borrow_and_update().clone();
            match self.look(&status).await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    warn!(%error, "MeshConfig's status cannot be written; tried again");
                }
                Err(_) => {}
            }
        }
    }

    async fn look(&mut self, gateway: &GatewayStatus) -> Result<(), crate::store::StoreError> {
        let leads = *self.is_leader.borrow_and_update();
        let seen = self.seen.now();
        let seen = seen.and_then(|all| all.get(&named(&self.namespace, MESH_CONFIG_NAME)).cloned());
        let wanted = seen.as_ref().map(|seen| seen.gateway.as_ref().map(parse).transpose());
        let problems = match wanted {
            Some(Ok(wanted)) => {
                self.is_known = true;
                self.settings
                    .send_if_modified(|current| std::mem::replace(current, wanted.clone()) != wanted);
                Vec::new()
            }
            Some(Err(problems)) => problems,
            None => Vec::new(),
        };
        let is_active = leads && self.is_known;
        self.active.send_if_modified(|current| std::mem::replace(current, is_active) != is_active);
        let Some(seen) = seen.filter(|_| leads) else { return Ok(()) };
        let (current_status, reason) = match gateway {
            _ if !problems.is_empty() => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                ("error", problems.join("; "))
            }
            GatewayStatus::Failed { reason } if is_active => ("error", format!("{GATEWAY_PATH}: {reason}")),
            _ => (COMMITTED_STATUS, COMMITTED.to_owned()),
        };
        if !is_due(seen.status.unwrap_or_default(), current_status, &reason) {
            return Ok(());
        }
        let patch = json!({"status": {"currentStatus": current_status, "reason": reason}});
        let parameters = PatchParams::default();
        bounded(self.api.patch_status(MESH_CONFIG_NAME, &parameters, &Patch::Merge(&patch))).await.map(|_| ())
    }
}

impl std::fmt::Debug for MeshConfigFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshConfigFollower").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Whether the status must be written. The controller writes it too, about the other fields: where ours are right, what
/// it says stays, unless what stands there is an error of ours that is over.
fn is_due(found: MeshConfigStatus, current_status: &str, reason: &str) -> bool {
    let found_reason = found.reason.unwrap_or_default();
    match found.current_status.as_deref() {
        None | Some("") => true,
        Some(_) if current_status == COMMITTED_STATUS => found_reason.starts_with(GATEWAY_PATH),
        Some(found) => found != current_status || found_reason != reason,
    }
}

fn parse(wanted: &IngressGatewayCertificate) -> Result<IngressGatewaySettings, Vec<SettingsProblem>> {
    IngressGatewaySettings::parse(SettingsInput {
        subject_alt_names: &wanted.subject_alt_names,
        validity_duration: &wanted.validity_duration,
        secret_namespace: &wanted.secret.namespace,
        secret_name: &wanted.secret.name,
    })
}
