//! Checks of ServiceEntries and EgressProxies: whether each is in force, and whether proxies work.

use kube::Resource;
use kube::api::{ApiResource, DynamicObject};
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
const PROXIES_WORK: Check = Check {
    id: "egress-proxies-healthy",
    category: "Policies",
    title: "the proxies of each EgressProxy work",
    hint: "the message is what the controller sees of the proxy; docs/egress.md lists the reasons",
};

/// Adds no finding of a kind if the mesh has no such object, or the cluster no such kind.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    match objects::<ServiceEntry>(cluster).await {
        Ok(entries) if entries.is_empty() => {}
        entries => report.add(&SERVICE_ENTRIES, entries.map(|entries| outcome(&entries, "Accepted"))),
    }
    match objects::<EgressProxy>(cluster).await {
        Ok(proxies) if proxies.is_empty() => {}
        Ok(proxies) => {
            report.add(&EGRESS_PROXIES, Ok(outcome(&proxies, "Accepted")));
            report.add(&PROXIES_WORK, Ok(outcome(&proxies, "Healthy")));
        }
        Err(error) => report.add(&EGRESS_PROXIES, Err(error)),
    }
}

/// The objects of a kind in the mesh; none if the cluster lacks the kind.
async fn objects<K: Resource<DynamicType = ()>>(cluster: &Cluster) -> anyhow::Result<Vec<DynamicObject>> {
    let kind = ApiResource::erase::<K>(&());
    if !is_served(cluster, &kind).await? {
        return Ok(Vec::new());
    }
    let mut namespaces = members(cluster).await?;
    namespaces.insert(cluster.control_plane.clone());
    of_kind(cluster, &kind, &namespaces).await
}

/// Names the objects with a condition of this type that is `False`.
fn outcome(objects: &[DynamicObject], condition: &str) -> CheckOutcome {
    let failing = objects.iter().filter_map(|object| {
        let conditions = object.data["status"]["conditions"].as_array()?;
        let ours = conditions.iter().find(|known| known["type"] == condition)?;
        let message = ours["message"].as_str().unwrap_or_default();
        (ours["status"] == "False").then(|| format!("{}: {message}", full_name(object)))
    });
    CheckOutcome::warning_for(&failing.collect::<Vec<_>>())
}
