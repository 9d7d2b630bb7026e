//! Pods that no kubelet runs: a node that exists only in the API server, whose pods have the status of running pods.
//!
//! Everything that watches the API server sees them as real. They are created in a namespace of the mesh, so the
//! injector processes them like every pod; Services select them, and EndpointSlices name them.

use std::time::{Duration, Instant};

use ::http::Request;
use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tidegate_tests::kubernetes::mesh::CONTROL_PLANE;
use tidegate_tests::kubernetes::workload::IMAGE;

use super::site::ClusterSite;

/// Name of the node.
const NODE: &str = "synthetic";
/// Pods behind one Service.
const PODS_OF_A_SERVICE: usize = 20;
/// Concurrent API calls.
const CONCURRENCY: usize = 16;
/// Interval of the node's heartbeat; without one it counts as dead after 40 s.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long the controller may take to process all pods.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at the controller's metrics.
const POLL: Duration = Duration::from_millis(200);

/// Value of the controller's `app.kubernetes.io/name` label.
const CONTROLLER: &str = "tidegate-controller";
/// The controller's port for metrics.
const HEALTH_PORT: u16 = 9091;
/// Prefix of the metric of workloads that have a policy.
const WORKLOADS: &str = "tidegate_controller_workloads ";

/// Creates the node and `count` pods, and returns once the controller counts all of them.
pub(super) fn create(site: &mut ClusterSite, count: usize) -> Result<()> {
    let namespace = site.namespace("synthetic", true);
    site.block_on(create_node(site)).context("the synthetic node")?;
    let leases: Api<Lease> = Api::namespaced(site.client().clone(), "kube-node-lease");
    site.spawn(renew_lease(leases));
    site.block_on(create_all(site, namespace.name(), count))?;
    site.keep(namespace);
    Ok(())
}

/// Creates the node with the status of a ready one.
async fn create_node(site: &ClusterSite) -> Result<()> {
    let api: Api<Node> = Api::all(site.client().clone());
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        // Keeps all other pods off this node.
        "spec": {"taints": [{"key": "bench.tidegate.io/synthetic", "effect": "NoSchedule"}]},
    }))?;
    api.create(&PostParams::default(), &node).await?;
    let capacity = json!({"cpu": "1000", "memory": "1000Gi", "pods": "10000"});
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "192.0.2.10"}],
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": [condition("Ready")],
    }});
    api.patch_status(NODE, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Renews the node's Lease regularly; otherwise its pods would count as lost.
async fn renew_lease(api: Api<Lease>) {
    let mut due = tokio::time::interval(HEARTBEAT);
    loop {
        due.tick().await;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NODE},
            "spec": {
                "holderIdentity": NODE,
                "leaseDurationSeconds": 40,
                "renewTime": MicroTime(Timestamp::now()),
            },
        });
        let force = PatchParams::apply("tidegate-bench").force();
        if let Err(error) = api.patch(NODE, &force, &Patch::Apply(&lease)).await {
            eprintln!("the synthetic node's Lease: {error}");
        }
    }
}

/// Creates pods and their Services, and waits for the controller.
async fn create_all(site: &ClusterSite, namespace: &str, count: usize) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(site.client().clone(), namespace);
    stream::iter(0..count)
        .map(|index| create_pod(&pods, index))
        .buffer_unordered(CONCURRENCY)
        .try_collect::<()>()
        .await
        .context("a synthetic pod")?;
    // Last, so that each EndpointSlice is written once.
    let services: Api<Service> = Api::namespaced(site.client().clone(), namespace);
    for index in 0..count.div_ceil(PODS_OF_A_SERVICE) {
        let service = serde_json::from_value(service(index))?;
        services.create(&PostParams::default(), &service).await.context("a Service of synthetic pods")?;
    }
    until_processed(site, site.pods() + count).await
}

/// Creates a pod and sets its status.
async fn create_pod(api: &Api<Pod>, index: usize) -> Result<()> {
    let pod: Pod = serde_json::from_value(pod(index))?;
    api.create(&PostParams::default(), &pod).await?;
    api.patch_status(&name(index), &PatchParams::default(), &Patch::Merge(&status(index))).await?;
    Ok(())
}

/// Waits until the controller's metrics show a policy for this number of workloads.
async fn until_processed(site: &ClusterSite, wanted: usize) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(site.client().clone(), CONTROL_PLANE);
    let label = format!("app.kubernetes.io/name={CONTROLLER}");
    let controller = pods.list(&ListParams::default().labels(&label)).await?;
    let controller = controller.items.first().context("no pod of the controller")?;
    let controller = controller.metadata.name.as_deref().context("a pod without a name")?;
    let path = format!("/api/v1/namespaces/{CONTROL_PLANE}/pods/{controller}:{HEALTH_PORT}/proxy/metrics");
    let started = Instant::now();
    loop {
        let metrics = site.client().request_text(Request::get(&path).body(Vec::new())?).await?;
        let processed =
            metrics.lines().find_map(|line| line.strip_prefix(WORKLOADS)?.trim().parse::<usize>().ok());
        let processed = processed.with_context(|| format!("the controller's metrics have no {WORKLOADS}"))?;
        if processed >= wanted {
            return Ok(());
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "the controller has processed {processed} of {wanted} workloads after {PATIENCE:?}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Name of a pod.
fn name(index: usize) -> String {
    format!("pod-{index}")
}

/// The Service that selects a pod.
fn service_name(index: usize) -> String {
    format!("service-{}", index / PODS_OF_A_SERVICE)
}

/// A pod that is bound to the node.
fn pod(index: usize) -> Value {
    json!({
        "metadata": {"name": name(index), "labels": {"app": service_name(index)}},
        "spec": {
            "nodeName": NODE,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "app",
                "image": IMAGE,
                "args": ["serve", "--http=8080"],
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
            }],
        },
    })
}

/// The status that a kubelet sets on a ready pod.
fn status(index: usize) -> Value {
    // A network outside the cluster's pod and Service networks.
    let address = format!("10.200.{}.{}", index / 250, index % 250 + 1);
    let conditions = ["Initialized", "ContainersReady", "PodScheduled", "Ready"].map(condition);
    json!({"status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": "192.0.2.10",
        "conditions": conditions,
    }})
}

/// The Service with this index.
fn service(index: usize) -> Value {
    let name = service_name(index * PODS_OF_A_SERVICE);
    json!({
        "metadata": {
            "name": name,
            // Without this, the node's kube-proxy would write rules for unreachable Services.
            "labels": {"service.kubernetes.io/service-proxy-name": "none"},
        },
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    })
}

/// A status condition that is met.
fn condition(kind: &str) -> Value {
    let now = Time(Timestamp::now());
    json!({"type": kind, "status": "True", "reason": "Synthetic", "lastTransitionTime": now})
}
