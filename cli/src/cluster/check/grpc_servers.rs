//! Checks of the servers that sidecars call: the one that also authorizes requests, and rate limit services. Whether the Service
//! of each has endpoints, and whether they speak HTTP/2 in plaintext, as sidecars do.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use tidegate_controller::bypasses_sidecar;
use tidegate_core::policy::ServerAddress;
use tidegate_crds::injection::has_sidecar;
use tidegate_crds::{UpstreamTrafficSetting, UpstreamTrafficSettingSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::policies::{SERVICE_NAME, counts};
use super::{Check, CheckOutcome, CheckReport, CheckSeverity, control_plane};
use crate::cluster::admin::PodAdminError;
use crate::cluster::client::Cluster;

/// Time for the server's first frame.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum rate limit services that are looked up.
const MOST_SERVICES: usize = 16;

const AUTHORIZER: Check = Check {
    id: "external-authorization",
    category: "Policies",
    title: "the server of the external authorization can be reached",
    hint: "requests are refused, or with failureModeAllow forwarded unchecked, while the server cannot be reached",
};

const RATE_LIMITERS: Check = Check {
    id: "rate-limit-services",
    category: "Policies",
    title: "each rate limit service can be reached",
    hint: "while a service cannot be reached, nothing is counted; failOpen says whether requests and connections are then allowed",
};

/// Adds no finding if the mesh has no such server, or if another check reports the object that names it.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    authorizer(cluster, report).await;
    rate_limiters(cluster, report).await;
}

async fn authorizer(cluster: &Cluster, report: &mut CheckReport) {
    let Ok(Some(config)) = control_plane::mesh_config(cluster).await else { return };
    let Some(server) = config.spec.external_authorization() else { return };
    if let Ok(server) = server.server() {
        report.add(&AUTHORIZER, outcome(cluster, &server.address).await);
    }
}

/// The services of UpstreamTrafficSettings in force.
async fn rate_limiters(cluster: &Cluster, report: &mut CheckReport) {
    let resource = ApiResource::erase::<UpstreamTrafficSetting>(&());
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let what = "UpstreamTrafficSettings of all namespaces";
    let Ok(settings) = cluster.list(&api, ListParams::default(), what).await else { return };
    let mut services = BTreeMap::new();
    for setting in settings.iter().filter(|setting| setting.data["status"]["currentStatus"] == "committed") {
        let spec = serde_json::from_value::<UpstreamTrafficSettingSpec>(setting.data["spec"].clone());
        for service in spec.iter().flat_map(UpstreamTrafficSettingSpec::rate_limit_services) {
            if let Ok(address) = ServerAddress::parse(&service.host, service.port) {
                services.insert(address.to_string(), address);
            }
        }
    }
    if services.is_empty() {
        return;
    }
    let mut unreachable = Vec::new();
    for address in services.values().take(MOST_SERVICES) {
        match outcome(cluster, address).await {
            Ok(outcome) if outcome.severity == CheckSeverity::Ok => {}
            Ok(outcome) => unreachable.extend(outcome.message),
            Err(error) => return report.add(&RATE_LIMITERS, Err(error)),
        }
    }
    report.add(&RATE_LIMITERS, Ok(CheckOutcome::warning_for(&unreachable)));
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
    let mut ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let Some(port) = ports.find(|one| one.port == i32::from(*port)) else {
        return Ok(CheckOutcome::warning(format!("{what} has no port {port}")));
    };
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{SERVICE_NAME}={name}"));
    let slices = cluster.list(&slices, selector, &format!("endpoints of {what}")).await?;
    let Some((endpoint, number)) = slices.iter().find_map(|slice| ready(slice, port)) else {
        return Ok(CheckOutcome::warning(format!("{what} has no ready endpoints")));
    };
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let Some(pod) = target.and_then(|target| target.name.as_deref()) else {
        return Ok(CheckOutcome::ok_with(format!("{address}, whose endpoints are not Pods, is not called")));
    };
    Ok(match reach(cluster, namespace, pod, number).await? {
        Ok(()) => CheckOutcome::ok_with(format!("{address}")),
        Err(reason) => CheckOutcome::warning(format!("{what}: {reason}")),
    })
}

/// A ready endpoint of a Service's port, and the number of the port there.
fn ready<'s>(slice: &'s EndpointSlice, port: &ServicePort) -> Option<(&'s Endpoint, u16)> {
    let endpoint = slice.endpoints.iter().flatten().find(|endpoint| counts(endpoint))?;
    let name = port.name.as_deref().unwrap_or_default();
    let listed = slice.ports.iter().flatten().find(|one| one.name.as_deref().unwrap_or_default() == name)?;
    Some((endpoint, u16::try_from(listed.port?).ok()?))
}

/// Whether a Pod speaks HTTP/2 in plaintext at a port, to sidecars; otherwise why not. It is called through a port-forward, so
/// NetworkPolicies have no effect on the answer.
async fn reach(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    port: u16,
) -> anyhow::Result<Result<(), String>> {
    let what = format!("pod {namespace}/{name}");
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    if let Some(pod) = cluster.get(&pods, name, &what).await?
        && has_sidecar(&pod)
        && !bypasses_sidecar(&pod, port)
    {
        return Ok(Err(format!("{what} has a sidecar, which refuses plaintext at port {port}")));
    }
    match cluster.forward(namespace, name, port, speaks_http2).await {
        Ok(()) => Ok(Ok(())),
        Err(error @ PodAdminError::Unreachable { .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Begins a connection of HTTP/2 (RFC 9113 §3.4): the server's first frame is SETTINGS.
async fn speaks_http2(mut stream: DuplexStream) -> anyhow::Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const SETTINGS: u8 = 4;
    let first = async {
        stream.write_all(PREFACE).await?;
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        Ok::<_, std::io::Error>(header[3])
    };
    let kind = tokio::time::timeout(ANSWER_TIMEOUT, first).await??;
    ensure!(kind == SETTINGS, "it does not speak HTTP/2 in plaintext");
    Ok(())
}
