//! Check of SMI's objects, UpstreamTrafficSettings and Egresses: whether each is committed.

use std::collections::BTreeSet;

use kube::api::{Api, ApiResource, DynamicObject, ListParams, ResourceExt};
use tidegate_crds::injection::namespace_is_in_mesh;
use tidegate_crds::{Egress, HTTPRouteGroup, TCPRoute, TrafficSplit, TrafficTarget, UpstreamTrafficSetting};

use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;
use crate::cluster::namespace;

const STATUS: Check = Check {
    id: "traffic-targets-committed",
    category: "Policies",
    title: "each TrafficTarget, TrafficSplit, HTTPRouteGroup, TCPRoute, UpstreamTrafficSetting and Egress is committed",
    hint: "correct the object, or what it refers to; `tidegate policy list` shows every status",
};

/// Adds no finding if the mesh has no such object.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    if let Some(outcome) = outcome(cluster).await.transpose() {
        report.add(&STATUS, outcome);
    }
}

async fn outcome(cluster: &Cluster) -> anyhow::Result<Option<CheckOutcome>> {
    let namespaces = namespace::all(cluster).await?;
    let members: BTreeSet<String> = namespaces
        .iter()
        .filter(|namespace| namespace_is_in_mesh(namespace, &cluster.mesh_name))
        .map(ResourceExt::name_any)
        .collect();
    let kinds = [
        ApiResource::erase::<TrafficTarget>(&()),
        ApiResource::erase::<TrafficSplit>(&()),
        ApiResource::erase::<HTTPRouteGroup>(&()),
        ApiResource::erase::<TCPRoute>(&()),
        ApiResource::erase::<UpstreamTrafficSetting>(&()),
        ApiResource::erase::<Egress>(&()),
    ];
    let (mut count, mut errors) = (0, Vec::new());
    for resource in kinds {
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let what = format!("{}s of all namespaces", resource.kind);
        let objects = cluster.list(&api, ListParams::default(), &what).await?;
        let is_member =
            |object: &DynamicObject| object.namespace().is_some_and(|name| members.contains(&name));
        for object in objects.iter().filter(|object| is_member(object)) {
            count += 1;
            let status = &object.data["status"];
            if status["currentStatus"] == "error" {
                let reason = status["reason"].as_str().unwrap_or("error");
                let namespace = object.namespace().unwrap_or_default();
                errors.push(format!("{} {namespace}/{}: {reason}", resource.kind, object.name_any()));
            }
        }
    }
    Ok((count > 0).then(|| CheckOutcome::failed_for(&errors)))
}
