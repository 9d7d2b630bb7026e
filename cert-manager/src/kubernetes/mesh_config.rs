//! From MeshConfig to the ingress gateway's settings and the lifetime of workloads' certificates, and back to its status.
//!
//! Invalid settings change nothing: the working certificate stays and is renewed, and our condition in the status says
//! which field is wrong. The rest of the status is the controller's. A deleted MeshConfig changes nothing either, because
//! it may be recreated in the next moment. Only our own fields are read, so that errors elsewhere in the object do not
//! delay certificates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::api::{Patch, PatchParams};
use kube::core::Request;
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tidegate_core::contract::names::{CERT_MANAGER, MESH_CONFIG_NAME};
use tidegate_crds::common_status::Condition;
use tidegate_crds::mesh_config::{INGRESS_GATEWAY_READY, IngressGatewayCertificate, service_cert_validity};
use tidegate_crds::{Finding, MeshConfig, stored};
use tidegate_kubernetes::lean::{First, Meta, Only, Wanted};
use tidegate_kubernetes::watch::{ObjectWatch, WatchMetrics};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::bounded;
use super::follow::{MirroredObject, ObjectMirror, named};
use super::namespaces::{MOST_LABEL_BYTES, MOST_LABELS, Namespaces};
use crate::ingress_gateway::{
    ANNOTATIONS, Copies, GatewayStatus, IngressGatewaySettings, SettingsInput, SettingsProblem,
};

#[cfg(test)]
mod tests;

/// The fields that the CA reads.
const GATEWAY: &str = "spec.certificate.ingressGateway";
/// The lifetime of workloads' certificates.
const LIFE: &str = "spec.certificate.serviceCertValidityDuration";
/// Maximum conditions of the status that are searched for ours.
const MOST_CONDITIONS: usize = 16;
/// How often to retry a status that could not be written.
const INTERVAL: Duration = Duration::from_secs(5);
/// The field manager of the condition, by which the API server records its owner.
const FIELD_MANAGER: &str = CERT_MANAGER;

/// Follows the one MeshConfig.
pub(crate) struct MeshConfigFollower {
    client: Client,
    api: Api<MeshConfig>,
    namespace: String,
    wake: Arc<Notify>,
    seen: Arc<ObjectMirror<MeshConfigView>>,
    namespaces: Namespaces,
    is_leader: watch::Receiver<bool>,
    settings: watch::Sender<Option<IngressGatewaySettings>>,
    workload_life: watch::Sender<Option<Duration>>,
    /// What is wrong with the MeshConfig's certificate lifetime.
    life_problem: Option<String>,
    /// Namespaces with too many labels to be selected.
    unselectable: usize,
    active: watch::Sender<bool>,
    is_known: bool,
    _watch: JoinSet<()>,
}

/// The relevant fields of a MeshConfig, or the field that cannot be read.
#[derive(Clone)]
struct MeshConfigView {
    gateway: Result<Option<IngressGatewayCertificate>, Finding>,
    life: Result<Option<String>, Finding>,
    /// Those of [`ANNOTATIONS`] that are set.
    annotations: BTreeMap<String, String>,
    generation: Option<i64>,
    condition: Option<Condition>,
}

impl MeshConfigFollower {
    /// Follows the MeshConfig of the control plane's `namespace`. Only the replica that leads acts on it.
    pub(crate) fn start(
        client: Client,
        namespace: &str,
        namespaces: Namespaces,
        is_leader: watch::Receiver<bool>,
        meters: &WatchMetrics,
    ) -> Self {
        let api: Api<MeshConfig> = Api::namespaced(client.clone(), namespace);
        let (wake, seen) = (Arc::new(Notify::new()), ObjectMirror::new());
        let mut watches = JoinSet::new();
        let configs = ObjectWatch::lean(api.clone(), MeshConfigView::read, meters.kind("MeshConfig"))
            .named(MESH_CONFIG_NAME);
        watches.spawn(seen.clone().follow(configs, wake.clone()));
        Self {
            client,
            api,
            namespace: namespace.to_owned(),
            wake,
            seen,
            namespaces,
            is_leader,
            settings: watch::channel(None).0,
            workload_life: watch::channel(None).0,
            life_problem: None,
            unselectable: 0,
            active: watch::channel(false).0,
            is_known: false,
            _watch: watches,
        }
    }

    /// The last valid settings.
    pub(crate) fn settings(&self) -> watch::Receiver<Option<IngressGatewaySettings>> {
        self.settings.subscribe()
    }

    /// The last valid lifetime of workloads' certificates.
    pub(crate) fn workload_life(&self) -> watch::Receiver<Option<Duration>> {
        self.workload_life.subscribe()
    }

    /// Whether this replica acts on the settings and has read them.
    pub(crate) fn active(&self) -> watch::Receiver<bool> {
        self.active.subscribe()
    }

    /// Follows the MeshConfig as long as it is polled; `gateway` is the certificate's state.
    pub(crate) async fn run(mut self, mut gateway: watch::Receiver<GatewayStatus>) {
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
                    warn!(%error, "MeshConfig's condition cannot be written; tried again");
                }
                Err(_) => {}
            }
        }
    }

    /// Applies the MeshConfig as it is now, and writes our condition if it differs. The error is that of the write; the
    /// settings are applied in any case.
    async fn look(&mut self, gateway: &GatewayStatus) -> Result<(), crate::store::StoreError> {
        let leads = *self.is_leader.borrow_and_update();
        let seen = self.seen.now();
        let seen = seen.and_then(|all| all.get(&named(&self.namespace, MESH_CONFIG_NAME)).cloned());
        if let Some(seen) = &seen {
            self.follow_life(seen);
        }
        let wanted = seen.as_ref().map(|seen| match &seen.gateway {
            Ok(Some(gateway)) => self.with_copies(parse(gateway), &seen.annotations).transpose(),
            Ok(None) => Ok(None),
            Err(finding) => {
                Err(vec![SettingsProblem { path: finding.path.clone(), problem: finding.message.clone() }])
            }
        });
        let problems = match wanted {
            // The namespaces have not been listed yet.
            Some(Ok(None)) if seen.as_ref().is_some_and(|seen| matches!(seen.gateway, Ok(Some(_)))) => {
                Vec::new()
            }
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
        let settings = self.settings.borrow().clone();
        let Some(wanted) = condition(&problems, gateway, settings.as_ref(), is_active) else { return Ok(()) };
        let wanted = Condition { observed_generation: seen.generation, ..wanted };
        let Some(due) = due(seen.condition.as_ref(), wanted, SystemTime::now()) else { return Ok(()) };
        let patch = json!({
            "apiVersion": MeshConfig::api_version(&()), "kind": MeshConfig::kind(&()),
            "metadata": {"name": MESH_CONFIG_NAME}, "status": {"conditions": [due]},
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patched = async {
            let request = Request::new(self.api.resource_url());
            let patch = Patch::Apply(&patch);
            let request = request.patch_subresource("status", MESH_CONFIG_NAME, &parameters, &patch);
            // The response is the whole object, which may be unreadable.
            self.client.request::<IgnoredAny>(request.map_err(kube::Error::BuildRequest)?).await
        };
        bounded(patched).await.map(|_| ())
    }

    /// Settings with the annotations' copies; `None` until it is known which namespaces they select.
    fn with_copies(
        &mut self,
        settings: Result<IngressGatewaySettings, Vec<SettingsProblem>>,
        annotations: &BTreeMap<String, String>,
    ) -> Option<Result<IngressGatewaySettings, Vec<SettingsProblem>>> {
        let (settings, copies) = match (settings, Copies::parse(annotations)) {
            (Ok(settings), Ok(copies)) => (settings, copies),
            (settings, copies) => {
                let problems = settings.err().into_iter().chain(copies.err()).flatten().collect();
                return Some(Err(problems));
            }
        };
        let namespaces = if copies.selects() { self.namespaces.now()? } else { BTreeMap::new() };
        let staying = || namespaces.iter().filter(|(_, membership)| !membership.is_going);
        let unselectable = staying().filter(|(_, membership)| membership.labels.is_none()).count();
        if unselectable > 0 && unselectable != self.unselectable {
            warn!(
                namespaces = unselectable,
                "chosen by no selector of the ingress gateway's certificate: more than {MOST_LABELS} labels, or than \
                 {MOST_LABEL_BYTES} bytes of them"
            );
        }
        self.unselectable = unselectable;
        let labelled = staying()
            .filter_map(|(name, membership)| Some((name.name.as_str(), &**membership.labels.as_ref()?)));
        Some(copies.add_to(settings, labelled))
    }

    /// Applies the lifetime of workloads' certificates; an invalid one is logged once and changes nothing.
    fn follow_life(&mut self, seen: &MeshConfigView) {
        let wanted = match &seen.life {
            Ok(text) => text.as_deref().map(service_cert_validity).transpose(),
            Err(finding) => Err(finding.message.clone()),
        };
        let problem = match wanted {
            Ok(wanted) => {
                self.workload_life.send_if_modified(|life| std::mem::replace(life, wanted) != wanted);
                None
            }
            Err(problem) => Some(problem),
        };
        if let Some(problem) = problem.as_ref().filter(|_| self.life_problem != problem) {
            warn!(field = LIFE, problem, "the lifetime of workloads' certificates stays unchanged");
        }
        self.life_problem = problem;
    }
}

/// Our annotations; their parsers refuse longer values.
struct OurAnnotations;

impl Wanted for OurAnnotations {
    const NAMES: &'static [&'static str] = &ANNOTATIONS;
    const MOST_BYTES: usize = 16 * 1024;
}

impl MeshConfigView {
    /// Reads a MeshConfig's JSON. Each of our two fields is read on its own, so that an error in one leaves the other
    /// in force.
    fn read(text: &str) -> serde_json::Result<MirroredObject<Self>> {
        #[derive(Deserialize)]
        struct MeshConfigParts {
            metadata: Meta<IgnoredAny, Only<OurAnnotations>>,
            #[serde(default)]
            spec: Value,
            #[serde(default)]
            status: Option<LeanStatus>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct LeanStatus {
            conditions: Option<First<Value, MOST_CONDITIONS>>,
        }
        let MeshConfigParts { metadata, spec, status } = serde_json::from_str(text)?;
        let conditions = status.and_then(|status| status.conditions);
        let mut conditions = conditions.map(|conditions| conditions.0).unwrap_or_default().into_iter();
        let ours = conditions.find(|found| found["type"] == INGRESS_GATEWAY_READY);
        let spec = json!({ "spec": spec });
        let value = Self {
            gateway: stored::read_part::<MeshConfig, _>(&spec, GATEWAY),
            life: stored::read_part::<MeshConfig, _>(&spec, LIFE),
            annotations: metadata.annotations.unwrap_or_default().entries,
            generation: metadata.generation,
            condition: ours.and_then(|ours| serde_json::from_value(ours).ok()),
        };
        let [namespace, name] = [metadata.namespace, metadata.name].map(Option::unwrap_or_default);
        Ok(MirroredObject { name: named(&namespace, &name), value })
    }
}

impl std::fmt::Debug for MeshConfigFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshConfigFollower").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// The condition to report; `None` while it is unknown, for example while `gateway` is still about other settings than
/// the current ones.
fn condition(
    problems: &[SettingsProblem],
    gateway: &GatewayStatus,
    settings: Option<&IngressGatewaySettings>,
    is_active: bool,
) -> Option<Condition> {
    let (status, reason, message) = match (gateway, settings) {
        _ if !problems.is_empty() => {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            ("False", "SettingsNotUnderstood", problems.join("; "))
        }
        _ if !is_active => return None,
        (GatewayStatus::NotConfigured, None) => {
            ("Unknown", "NotConfigured", "no certificate is configured".to_owned())
        }
        (GatewayStatus::Failed { reason }, _) => ("False", "NotWritten", reason.clone()),
        (GatewayStatus::Ready { settings: kept, not_after, .. }, Some(settings)) if kept == settings => {
            let end = humantime::format_rfc3339_seconds(*not_after);
            let more = match kept.more_namespaces.len() {
                0 => String::new(),
                more => format!("; {more} more namespaces have one, too"),
            };
            ("True", "Written", format!("Secret {} holds a certificate until {end}{more}", kept.secret))
        }
        _ => return None,
    };
    Some(Condition {
        kind: INGRESS_GATEWAY_READY.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: None,
        last_transition_time: None,
    })
}

/// The condition to write, if it differs.
fn due(found: Option<&Condition>, wanted: Condition, now: SystemTime) -> Option<Condition> {
    let since = found
        .filter(|found| found.status == wanted.status)
        .and_then(|found| found.last_transition_time.clone());
    let words = |said: &Condition| (said.reason.clone(), said.message.clone(), said.observed_generation);
    let is_said = found.is_some_and(|found| words(found) == words(&wanted));
    if is_said && since.is_some() {
        return None;
    }
    let now = || humantime::format_rfc3339_seconds(now).to_string();
    Some(Condition { last_transition_time: Some(since.unwrap_or_else(now)), ..wanted })
}

/// Checks the fields of `ingressGateway`; every problem has its path.
fn parse(wanted: &IngressGatewayCertificate) -> Result<IngressGatewaySettings, Vec<SettingsProblem>> {
    IngressGatewaySettings::parse(SettingsInput {
        subject_alt_names: &wanted.subject_alt_names,
        validity_duration: &wanted.validity_duration,
        secret_namespace: &wanted.secret.namespace,
        secret_name: &wanted.secret.name,
    })
}
