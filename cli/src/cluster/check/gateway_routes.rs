//! Check of Gateway API's routes: whether each is accepted for the Services that it names as parents, and leads somewhere.

use kube::api::{ApiResource, DynamicObject};
use serde_json::Value;
use tidegate_core::contract::names::GATEWAY_CONTROLLER;
use tidegate_crds::gateway_api::{GatewayRoute, Grpc, Http, Tcp, Tls};

use super::objects::{full_name, is_served, members, of_kind};
use super::{Check, CheckOutcome, CheckReport};
use crate::cluster::client::Cluster;

const ROUTES: Check = Check {
    id: "gateway-routes-accepted",
    category: "Policies",
    title: "each HTTPRoute, GRPCRoute, TLSRoute and TCPRoute of a Service is accepted, and its references are resolved",
    hint: "correct the route, or what it refers to; docs/gateway-api.md says what is carried out",
};
/// Conditions that say that something of a route is not in force, and their status then.
const FAULTS: [(&str, &str); 3] =
    [("Accepted", "False"), ("PartiallyInvalid", "True"), ("ResolvedRefs", "False")];

/// Adds no finding if the mesh has no route of a Service.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    if let Some(outcome) = outcome(cluster).await.transpose() {
        report.add(&ROUTES, outcome);
    }
}

async fn outcome(cluster: &Cluster) -> anyhow::Result<Option<CheckOutcome>> {
    let namespaces = members(cluster).await?;
    let kinds = [
        ApiResource::erase::<GatewayRoute<Http>>(&()),
        ApiResource::erase::<GatewayRoute<Grpc>>(&()),
        ApiResource::erase::<GatewayRoute<Tls>>(&()),
        ApiResource::erase::<GatewayRoute<Tcp>>(&()),
    ];
    let (mut count, mut faults) = (0, Vec::new());
    for kind in kinds {
        if !is_served(cluster, &kind).await? {
            continue;
        }
        for route in of_kind(cluster, &kind, &namespaces).await? {
            let parents = own_parents(&route);
            count += usize::from(!parents.is_empty());
            let conditions = parents.into_iter().flat_map(|parent| parent["conditions"].as_array()).flatten();
            faults.extend(conditions.filter(|condition| is_fault(condition)).map(|condition| {
                let message = condition["message"].as_str().unwrap_or_default();
                format!("{} {}: {message}", kind.kind, full_name(&route))
            }));
        }
    }
    faults.dedup();
    Ok((count > 0).then(|| CheckOutcome::warning_for(&faults)))
}

/// The entries of a route's status that this mesh's controller has written.
fn own_parents(route: &DynamicObject) -> Vec<&Value> {
    let parents = route.data["status"]["parents"].as_array().into_iter().flatten();
    parents.filter(|parent| parent["controllerName"] == GATEWAY_CONTROLLER).collect()
}

fn is_fault(condition: &Value) -> bool {
    FAULTS.iter().any(|(kind, status)| condition["type"] == *kind && condition["status"] == *status)
}
