//! Check of SMI's objects, UpstreamTrafficSettings, Retries and Egresses: whether each is committed.

use kube::api::ApiResource;
use tidegate_crds::{
    Egress, HTTPRouteGroup, Retry, TCPRoute, TrafficSplit, TrafficTarget, UpstreamTrafficSetting,
};

use super::objects::{full_name, members, of_kind};
use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;

const STATUS: Check = Check {
    id: "traffic-targets-committed",
    category: "Policies",
    title: "each TrafficTarget, TrafficSplit, HTTPRouteGroup, TCPRoute, UpstreamTrafficSetting, Retry and Egress is committed",
    hint: "correct the object, or what it refers to; `tidegate policy list` shows every status",
};

/// Adds no finding if the mesh has no such object.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    if let Some(outcome) = outcome(cluster).await.transpose() {
        report.add(&STATUS, outcome);
    }
}

async fn outcome(cluster: &Cluster) -> anyhow::Result<Option<CheckOutcome>> {
    let namespaces = members(cluster).await?;
    let kinds = [
        ApiResource::erase::<TrafficTarget>(&()),
        ApiResource::erase::<TrafficSplit>(&()),
        ApiResource::erase::<HTTPRouteGroup>(&()),
        ApiResource::erase::<TCPRoute>(&()),
        ApiResource::erase::<UpstreamTrafficSetting>(&()),
        ApiResource::erase::<Retry>(&()),
        ApiResource::erase::<Egress>(&()),
    ];
    let (mut count, mut errors) = (0, Vec::new());
    for kind in kinds {
        for object in of_kind(cluster, &kind, &namespaces).await? {
            count += 1;
            let status = &object.data["status"];
            if status["currentStatus"] == "error" {
                let reason = status["reason"].as_str().unwrap_or("error");
                errors.push(format!("{} {}: {reason}", kind.kind, full_name(&object)));
            }
        }
    }
    Ok((count > 0).then(|| CheckOutcome::failed_for(&errors)))
}
