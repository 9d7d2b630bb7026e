//! Check of ServiceEntries: whether each is in force.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ResourceExt};
use tidegate_crds::ServiceEntry;
use tidegate_crds::injection::namespace_is_in_mesh;

use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;
use crate::cluster::namespace;

const STATUS: Check = Check {
    id: "service-entries-accepted",
    category: "Policies",
    title: "each ServiceEntry is in force",
    hint: "correct the entry; docs/egress.md lists what is supported and which of several entries counts",
};

/// Adds no finding if the mesh has no such object, or the cluster no such kind.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    if let Some(outcome) = outcome(cluster).await.transpose() {
        report.add(&STATUS, outcome);
    }
}

async fn outcome(cluster: &Cluster) -> anyhow::Result<Option<CheckOutcome>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let name = ServiceEntry::crd_name();
    if cluster.get(&definitions, name, &format!("CustomResourceDefinition {name}")).await?.is_none() {
        return Ok(None);
    }
    let namespaces = namespace::all(cluster).await?;
    let members: BTreeSet<String> = namespaces
        .iter()
        .filter(|namespace| namespace_is_in_mesh(namespace, &cluster.mesh_name))
        .map(ResourceExt::name_any)
        .collect();
    let resource = ApiResource::erase::<ServiceEntry>(&());
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let entries = cluster.list(&api, ListParams::default(), "ServiceEntries of all namespaces").await?;
    let is_member = |entry: &&DynamicObject| entry.namespace().is_some_and(|name| members.contains(&name));
    let entries: Vec<_> = entries.iter().filter(is_member).collect();
    let refused = entries.iter().filter_map(|entry| {
        let conditions = entry.data["status"]["conditions"].as_array()?;
        let ours = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
        let (namespace, message) = (entry.namespace().unwrap_or_default(), ours["message"].as_str());
        let text = || format!("{namespace}/{}: {}", entry.name_any(), message.unwrap_or_default());
        (ours["status"] == "False").then(text)
    });
    let refused: Vec<_> = refused.collect();
    Ok((!entries.is_empty()).then(|| CheckOutcome::warning_for(&refused)))
}
