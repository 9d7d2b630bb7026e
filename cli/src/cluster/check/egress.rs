//! Checks of ServiceEntries and EgressProxies: whether each is in force.

use kube::Resource;
use kube::api::ApiResource;
use tidegate_crds::{EgressProxy, ServiceEntry};

use super::objects::{full_name, is_served, members, of_kind};
use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;

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
    if let Some(outcome) = outcome::<ServiceEntry>(cluster).await.transpose() {
        report.add(&SERVICE_ENTRIES, outcome);
    }
    if let Some(outcome) = outcome::<EgressProxy>(cluster).await.transpose() {
        report.add(&EGRESS_PROXIES, outcome);
    }
}

/// Whether the objects of a kind have the condition `Accepted`.
async fn outcome<K: Resource<DynamicType = ()>>(cluster: &Cluster) -> anyhow::Result<Option<CheckOutcome>> {
    let kind = ApiResource::erase::<K>(&());
    if !is_served(cluster, &kind).await? {
        return Ok(None);
    }
    let mut namespaces = members(cluster).await?;
    namespaces.insert(cluster.control_plane.clone());
    let objects = of_kind(cluster, &kind, &namespaces).await?;
    let refused = objects.iter().filter_map(|object| {
        let conditions = object.data["status"]["conditions"].as_array()?;
        let ours = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
        let message = ours["message"].as_str().unwrap_or_default();
        (ours["status"] == "False").then(|| format!("{}: {message}", full_name(object)))
    });
    let refused: Vec<_> = refused.collect();
    Ok((!objects.is_empty()).then(|| CheckOutcome::warning_for(&refused)))
}
