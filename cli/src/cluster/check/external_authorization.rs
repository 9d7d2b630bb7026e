//! Check of the server that also authorizes requests: whether its Service has endpoints.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use tidegate_core::policy::ServerAddress;

use super::policies::{SERVICE_NAME, counts};
use super::{Check, CheckOutcome, CheckReport, control_plane};
use crate::cluster::client::Cluster;

const SERVER: Check = Check {
    id: "external-authorization",
    category: "Policies",
    title: "the server of the external authorization has endpoints",
    hint: "requests are refused, or with failureModeAllow forwarded unchecked, while the server cannot be reached",
};

/// Adds no finding if the MeshConfig does not enable it, or is reported by another check.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    let Ok(Some(config)) = control_plane::mesh_config(cluster).await else { return };
    let Some(server) = config.spec.external_authorization() else { return };
    if let Ok(server) = server.server() {
        report.add(&SERVER, outcome(cluster, &server.address).await);
    }
}

async fn outcome(cluster: &Cluster, address: &ServerAddress) -> anyhow::Result<CheckOutcome> {
    let ServerAddress::Name(name, port) = address else {
        return Ok(CheckOutcome::ok_with(format!("{address} is not looked up: it is not a Service's name")));
    };
    let mut labels = name.split('.');
    let (Some(name), Some(namespace), "svc") = (labels.next(), labels.next(), labels.next().unwrap_or("svc"))
    else {
        return Ok(CheckOutcome::ok_with(format!("{address} is not looked up: it is not a Service's name")));
    };
    let what = format!("Service {namespace}/{name}");
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let Some(service) = cluster.get(&services, name, &what).await? else {
        return Ok(CheckOutcome::warning(format!("{what} does not exist")));
    };
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    if !ports.into_iter().any(|one| one.port == i32::from(*port)) {
        return Ok(CheckOutcome::warning(format!("{what} has no port {port}")));
    }
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{SERVICE_NAME}={name}"));
    let slices = cluster.list(&slices, selector, &format!("endpoints of {what}")).await?;
    if slices.iter().any(|slice| slice.endpoints.iter().flatten().any(counts)) {
        return Ok(CheckOutcome::ok_with(format!("{address}")));
    }
    Ok(CheckOutcome::warning(format!("{what} has no ready endpoints")))
}
