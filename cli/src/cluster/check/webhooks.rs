//! Checks of the admission webhooks: they exist, select the right namespaces, and have a certificate that the API
//! server accepts.
//!
//! A webhook that selects no namespace of the mesh adds no sidecars, without an error anywhere; one that selects
//! kube-system or the control plane could keep the cluster from starting. So selectors are evaluated here as the API
//! server does.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use tidegate_core::contract::labels::MONITORED_BY;
use tidegate_core::contract::names::{self, name_in_mesh};
use tidegate_runtime::trust_bundle::TrustBundle;

use super::control_plane::bundle;
use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;

const CATEGORY: &str = "Webhooks";
/// The label that Kubernetes sets on each namespace with its name.
const NAME_OF_NAMESPACE: &str = "kubernetes.io/metadata.name";

const INJECTOR: Check = Check {
    id: "injector-webhook",
    category: CATEGORY,
    title: "pods of the mesh's namespaces get their sidecar",
    hint: "`tidegate upgrade` restores the webhook; tidegate-injector writes its caBundle: see its log",
};
const VALIDATOR: Check = Check {
    id: "validating-webhook",
    category: CATEGORY,
    title: "policies are checked when they are applied",
    hint: "`tidegate upgrade` restores the webhook; tidegate-controller writes its caBundle: see its log",
};

/// A webhook of either kind.
struct CheckedWebhook {
    name: String,
    client: WebhookClientConfig,
    selector: LabelSelector,
    resources: BTreeSet<String>,
}

/// The mutating webhook first: without it, no Pod gets a sidecar.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    report.add(&INJECTOR, judge(cluster, "MutatingWebhookConfiguration", names::INJECTOR, "pods").await);
    let validator = judge(cluster, "ValidatingWebhookConfiguration", names::CONTROLLER, "ingressbackends");
    report.add(&VALIDATOR, validator.await);
}

/// All faults of one webhook configuration: of the connection to it, and of its selection for `resource`.
async fn judge(cluster: &Cluster, kind: &str, name: &str, resource: &str) -> anyhow::Result<CheckOutcome> {
    let name = name_in_mesh(name, &cluster.mesh_name);
    let what = format!("{kind} {name}");
    let found = match kind {
        "MutatingWebhookConfiguration" => mutating(cluster, &name, &what).await?,
        _ => validating(cluster, &name, &what).await?,
    };
    let Some(webhooks) = found else { return Ok(CheckOutcome::failed(format!("{what} does not exist"))) };
    let trusted = bundle(cluster, &cluster.control_plane).await?;
    let mut wrong: Vec<String> = Vec::new();
    for webhook in &webhooks {
        wrong.extend(
            webhook.faults(cluster, trusted.as_ref()).map(|fault| format!("{}: {fault}", webhook.name)),
        );
    }
    wrong.extend(selection_faults(cluster, &webhooks, resource));
    Ok(CheckOutcome::failed_for(&wrong))
}

/// The webhooks of a MutatingWebhookConfiguration; `None` if it does not exist.
async fn mutating(cluster: &Cluster, name: &str, what: &str) -> anyhow::Result<Option<Vec<CheckedWebhook>>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let Some(found) = cluster.get(&api, name, what).await? else { return Ok(None) };
    let webhooks = found.webhooks.unwrap_or_default().into_iter().map(|webhook| CheckedWebhook {
        name: webhook.name,
        client: webhook.client_config,
        selector: webhook.namespace_selector.unwrap_or_default(),
        resources: webhook.rules.into_iter().flatten().filter_map(|rule| rule.resources).flatten().collect(),
    });
    Ok(Some(webhooks.collect()))
}

/// The webhooks of a ValidatingWebhookConfiguration; `None` if it does not exist. The API has a type of its own for
/// them.
async fn validating(
    cluster: &Cluster,
    name: &str,
    what: &str,
) -> anyhow::Result<Option<Vec<CheckedWebhook>>> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let Some(found) = cluster.get(&api, name, what).await? else { return Ok(None) };
    let webhooks = found.webhooks.unwrap_or_default().into_iter().map(|webhook| CheckedWebhook {
        name: webhook.name,
        client: webhook.client_config,
        selector: webhook.namespace_selector.unwrap_or_default(),
        resources: webhook.rules.into_iter().flatten().filter_map(|rule| rule.resources).flatten().collect(),
    });
    Ok(Some(webhooks.collect()))
}

impl CheckedWebhook {
    /// What keeps the API server from calling the webhook, or from trusting it: every root of the mesh must be in
    /// `caBundle`.
    fn faults(&self, cluster: &Cluster, trusted: Option<&TrustBundle>) -> impl Iterator<Item = String> {
        let mut faults = Vec::new();
        match &self.client.service {
            Some(service) if service.namespace == cluster.control_plane => {}
            Some(service) => faults.push(format!("it calls a Service in namespace {}", service.namespace)),
            None => faults.push("it does not call a Service".to_owned()),
        }
        let own = self.client.ca_bundle.as_ref().map(|bytes| TrustBundle::parse(&bytes.0));
        match (own, trusted) {
            (None, _) => faults.push("its caBundle is empty, so the API server does not trust it".to_owned()),
            (Some(Err(error)), _) => faults.push(format!("its caBundle {error}")),
            (Some(Ok(own)), Some(trusted)) => {
                let own: BTreeSet<String> = own.fingerprints().into_iter().collect();
                let missing = trusted.fingerprints().iter().filter(|root| !own.contains(*root)).count();
                if missing > 0 {
                    faults.push(format!("its caBundle lacks {missing} of the mesh's roots"));
                }
            }
            (Some(Ok(_)), None) => {}
        }
        faults.into_iter()
    }
}

/// Reports if the mesh's namespaces are not selected, or namespaces that must not be selected are.
fn selection_faults(cluster: &Cluster, webhooks: &[CheckedWebhook], resource: &str) -> Vec<String> {
    let concerned: Vec<&CheckedWebhook> =
        webhooks.iter().filter(|webhook| webhook.resources.iter().any(|name| name == resource)).collect();
    let is_selected = |labels: &[(&str, &str)]| {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        concerned.iter().any(|webhook| matches(&webhook.selector, &labels))
    };
    let mesh = cluster.mesh_name.as_str();
    let mut faults = Vec::new();
    if !is_selected(&[(NAME_OF_NAMESPACE, "any"), (MONITORED_BY, mesh)]) {
        faults.push(format!("no webhook for {resource} selects namespaces with label {MONITORED_BY}={mesh}"));
    }
    for name in ["kube-system", cluster.control_plane.as_str()] {
        if is_selected(&[(NAME_OF_NAMESPACE, name), (MONITORED_BY, mesh)]) {
            faults.push(format!("a webhook for {resource} selects namespace {name}, which it could block"));
        }
    }
    faults
}

/// Whether a label selector matches (`metav1.LabelSelector`); an unknown operator matches nothing.
fn matches(selector: &LabelSelector, labels: &BTreeMap<&str, &str>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(name, value)| labels.get(name.as_str()).is_some_and(|label| label == value));
    let expressions = selector.match_expressions.iter().flatten().all(|expression| {
        let label = labels.get(expression.key.as_str());
        let is_listed =
            label.is_some_and(|label| expression.values.iter().flatten().any(|value| value == label));
        match expression.operator.as_str() {
            "In" => is_listed,
            "NotIn" => !is_listed,
            "Exists" => label.is_some(),
            "DoesNotExist" => label.is_none(),
            _ => false,
        }
    });
    equal && expressions
}
