//! Checks of ServiceEntries and EgressProxies: whether each is in force.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ResourceExt};
use kube::{CustomResourceExt, Resource};
use tidegate_crds::injection::namespace_is_in_mesh;
use tidegate_crds::{EgressProxy, ServiceEntry};

use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;
use crate::cluster::namespace;

const SERVICE_ENTRIES: Check = Check {
    id: "service-entries-accepted",
    category: "Policies",
    title: "each ServiceEntry is in force",
    hint: "correct the entry; docs/egress.md lists what is supported and which of several entries counts",
};
const EGRESS_PROXIES: Check = Check {
    id: "egress-proxies-accepted",
    category: "Policies",
    title: "each EgressProxy is in force",
    hint: "correct the object, or what it refers to; docs/egress.md lists the reasons, and the Role that credentials need",
};

/// Adds no finding of a kind if the mesh has no such object, or the cluster no such kind.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    if let Some(outcome) = outcome::<ServiceEntry>(cluster, "ServiceEntries").await.transpose() {
        report.add(&SERVICE_ENTRIES, outcome);
    }
    if let Some(outcome) = outcome::<EgressProxy>(cluster, "EgressProxies").await.transpose() {
        report.add(&EGRESS_PROXIES, outcome);
    }
}

/// Whether the objects of a kind have the condition `Accepted`. `plural`: its name in messages.
async fn outcome<K: CustomResourceExt + Resource<DynamicType = ()>>(
    cluster: &Cluster,
    plural: &str,
) -> anyhow::Result<Option<CheckOutcome>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let name = K::crd_name();
    if cluster.get(&definitions, name, &format!("CustomResourceDefinition {name}")).await?.is_none() {
        return Ok(None);
    }
    let namespaces = namespace::all(cluster).await?;
    let members: BTreeSet<String> = namespaces
        .iter()
        .filter(|namespace| namespace_is_in_mesh(namespace, &cluster.mesh_name))
        .map(ResourceExt::name_any)
        .chain([cluster.control_plane.clone()])
        .collect();
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &ApiResource::erase::<K>(&()));
    let what = format!("{plural} of all namespaces");
    let objects = cluster.list(&api, ListParams::default(), &what).await?;
    let is_member = |object: &&DynamicObject| object.namespace().is_some_and(|name| members.contains(&name));
    let objects: Vec<_> = objects.iter().filter(is_member).collect();
    let refused = objects.iter().filter_map(|object| {
        let conditions = object.data["status"]["conditions"].as_array()?;
        let ours = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
        let (namespace, message) = (object.namespace().unwrap_or_default(), ours["message"].as_str());
        let text = || format!("{namespace}/{}: {}", object.name_any(), message.unwrap_or_default());
        (ours["status"] == "False").then(text)
    });
    let refused: Vec<_> = refused.collect();
    Ok((!objects.is_empty()).then(|| CheckOutcome::warning_for(&refused)))
}
