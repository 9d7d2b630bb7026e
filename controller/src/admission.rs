//! The validating webhook: it keeps policies and MeshConfigs that can only be mistakes from being stored.
//!
//! What OSM accepted is accepted; where it is unlikely to be what its author meant, `kubectl` shows a warning.
//! Conflicts with other objects, such as two policies for one backend, are reported in the objects' status. The checks
//! themselves are in [`tidegate_crds::validate`]. The webhook configuration covers `CREATE` and `UPDATE` of
//! `ingressbackends`, `upstreamtrafficsettings`, `retries`, `traffictargets`, `trafficsplits`, `httproutegroups`, `serviceentries` and
//! `egressproxies` in the mesh's namespaces, and of `egressproxies` and `meshconfigs` in the control plane's own, at path `/validate`, with `sideEffects: None`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidegate_core::contract::names::{self, MESH_CONFIG_NAME, name_in_mesh};
use tidegate_crds::{
    EgressProxySpec, EgressSpec, Finding, HTTPRouteGroupSpec, IngressBackendSpec, MeshConfigSpec, RetrySpec,
    ServiceEntrySpec, TrafficSplitSpec, TrafficTargetSpec, UpstreamTrafficSettingSpec, validate,
};
use tidegate_kubernetes::watch::KindMeter;
use tidegate_kubernetes::webhook::{
    AdmissionRequest, AdmissionReviewer, BoxFuture, CaBundleKeeper, Operation, Verdict, WebhookLimits,
    WebhookServer, WebhookStartError,
};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::drain;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Validates objects of the kinds that the controller reads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PolicyReviewer;

/// What the webhook needs.
pub struct WebhookDependencies {
    /// A client for the API server, which holds the webhook configuration.
    pub client: Client,
    /// The webhook's serving certificate.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// The roots to write into the webhook configuration.
    pub trust_bundle: watch::Receiver<Arc<TrustBundle>>,
    /// Where the webhook registers its metrics.
    pub metrics: Metrics,
    /// Metrics of the watch on the webhook configuration.
    pub meter: KindMeter,
    /// Blocked until there is a serving certificate.
    pub readiness: Readiness,
}

/// A running webhook. Dropping it starts the drain.
#[derive(Debug)]
pub struct ValidatingWebhook {
    trigger: drain::Trigger,
    keeper: JoinHandle<()>,
}

impl ValidatingWebhook {
    /// Listens on `address` and keeps the roots in the mesh's ValidatingWebhookConfiguration up to date.
    pub async fn start(
        address: SocketAddr,
        mesh_name: &str,
        dependencies: WebhookDependencies,
    ) -> Result<Self, WebhookStartError> {
        let WebhookDependencies { client, credentials, trust_bundle, metrics, meter, readiness } =
            dependencies;
        let reviewer = Arc::new(PolicyReviewer);
        let server =
            WebhookServer::bind(address, names::VALIDATE_PATH, reviewer, &metrics, WebhookLimits::default())
                .await?;
        let keeper = CaBundleKeeper::<ValidatingWebhookConfiguration>::new(
            client,
            name_in_mesh(names::CONTROLLER, mesh_name),
            trust_bundle,
            &metrics,
            meter,
            // Sidecars get their policies whether or not the webhook is called.
            None,
        );
        let (trigger, drain) = drain::channel();
        tokio::spawn(server.serve(credentials, readiness, drain));
        Ok(Self { trigger, keeper: tokio::spawn(keeper.run()) })
    }

    /// Answers requests in flight, and those that still arrive until every API server has noticed the shutdown.
    pub async fn shutdown(self, deadline: Duration) -> drain::DrainOutcome {
        self.keeper.abort();
        self.trigger.drain(deadline).await
    }
}

impl AdmissionReviewer for PolicyReviewer {
    fn review<'a>(&'a self, request: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict> {
        let verdict = match (request.kind().group.as_str(), request.kind().kind.as_str()) {
            _ if !matches!(request.operation(), Operation::Create | Operation::Update) => Verdict::allowed(),
            ("policy.openservicemesh.io", "IngressBackend") => {
                judge(request, |object: &ReviewedObject<IngressBackendSpec>| {
                    validate::ingress_backend(&object.spec)
                })
            }
            ("access.smi-spec.io", "TrafficTarget") => {
                judge(request, |object: &ReviewedObject<TrafficTargetSpec>| {
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    validate::traffic_target(namespace, &object.spec)
                })
            }
            ("split.smi-spec.io", "TrafficSplit") => {
                judge(request, |object: &ReviewedObject<TrafficSplitSpec>| {
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    validate::traffic_split(namespace, &object.spec)
                })
            }
            ("specs.smi-spec.io", "HTTPRouteGroup") => {
                judge(request, |object: &ReviewedObject<HTTPRouteGroupSpec>| {
                    validate::http_route_group(&object.spec)
                })
            }
            ("policy.openservicemesh.io", "UpstreamTrafficSetting") => {
                judge(request, |object: &ReviewedObject<UpstreamTrafficSettingSpec>| {
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    validate::upstream_traffic_setting(namespace, &object.spec)
                })
            }
            ("policy.openservicemesh.io", "Retry") => judge(request, |object: &ReviewedObject<RetrySpec>| {
                let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                validate::retry(namespace, &object.spec)
            }),
            ("policy.openservicemesh.io", "Egress") => {
                judge(request, |object: &ReviewedObject<EgressSpec>| validate::egress(&object.spec))
            }
            ("networking.istio.io", "ServiceEntry") => {
                judge(request, |object: &ReviewedObject<ServiceEntrySpec>| {
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    validate::service_entry(namespace, &object.spec)
                })
            }
            ("tidegate.io", "EgressProxy") => judge(request, |object: &ReviewedObject<EgressProxySpec>| {
                validate::egress_proxy(&object.spec)
            }),
            ("config.openservicemesh.io", "MeshConfig") => judge(request, mesh_config),
            _ => Verdict::allowed(),
        };
        Box::pin(std::future::ready(verdict))
    }
}

/// What is decoded of an object: its author may put anything else into it.
#[derive(Deserialize)]
struct ReviewedObject<S> {
    #[serde(default)]
    metadata: ReviewedMeta,
    spec: S,
}

/// What is read of an object's metadata.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ReviewedMeta {
    name: Option<String>,
    namespace: Option<String>,
    deletion_timestamp: Option<Time>,
}

/// Beyond the checks of the spec: a MeshConfig of another name is stored, as OSM did, with a warning that it has no
/// effect.
fn mesh_config(object: &ReviewedObject<MeshConfigSpec>) -> Vec<Finding> {
    let mut findings = validate::mesh_config(&object.spec);
    if object.metadata.name.as_deref().is_some_and(|name| name != MESH_CONFIG_NAME) {
        findings.push(Finding::warning("metadata.name", format!("only {MESH_CONFIG_NAME} is read")));
    }
    findings
}

/// Denies an object with errors, unless the stored object has the same ones and the update changes something else, such
/// as a finalizer.
fn judge<K>(request: &AdmissionRequest<'_>, findings: impl Fn(&K) -> Vec<Finding>) -> Verdict
where
    K: DeserializeOwned,
{
    let object: K = match request.object() {
        Ok(Some(object)) => object,
        Ok(None) => return Verdict::allowed(),
        // The owner of a finalizer must be able to remove it.
        Err(_) if is_going(request) => return Verdict::allowed(),
        Err(error) => return Verdict::denied(format!("the object cannot be read: {error}")),
    };
    let found = findings(&object);
    let is_stored = || request.old_object().ok().flatten().is_some_and(|old: K| findings(&old) == found);
    let (errors, warnings): (Vec<_>, Vec<_>) = found.iter().partition(|finding| finding.is_error());
    if errors.is_empty() || is_going(request) || is_stored() {
        return Verdict::allowed().with_warnings(found.iter().map(text));
    }
    let errors: Vec<_> = errors.into_iter().map(text).collect();
    Verdict::denied(errors.join("; ")).with_warnings(warnings.into_iter().map(text))
}

/// Whether the object is being deleted, decoded without the fields of its kind.
fn is_going(request: &AdmissionRequest<'_>) -> bool {
    /// What is read of an object that is about to be deleted.
    #[derive(Deserialize)]
    struct Deletable {
        metadata: ReviewedMeta,
    }
    request
        .object::<Deletable>()
        .ok()
        .flatten()
        .is_some_and(|object| object.metadata.deletion_timestamp.is_some())
}

/// OSM's message first, then the field, which OSM did not name.
fn text(finding: &Finding) -> String {
    format!("{} ({})", finding.message, finding.path)
}

#[cfg(test)]
mod tests;
