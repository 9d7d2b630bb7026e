//! Measures what a sidecar adds to the creation of a pod: to the API call, which waits for the webhook, and to the time
//! until the pod is ready.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use tidegate_crds::injection::has_sidecar;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::workload::IMAGE;

use super::results::{Creation, Figures};
use super::site::ClusterSite;

/// Timeout for a pod to become ready.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause between one pod's readiness and the creation of the next, so that the kubelet is idle again.
const PAUSE: Duration = Duration::from_millis(300);

/// Pods of one kind.
struct PodKind {
    /// Namespace that the pods are created in.
    namespace: Namespace,
    /// Whether the namespace is in the mesh.
    is_injected: bool,
    /// Whether the pods have a readiness probe over HTTP.
    has_probe: bool,
    /// Seconds that each API call took.
    call: Figures,
    /// Seconds from each call's start until the pod was ready.
    ready: Figures,
}

/// Creates `count` pods of each kind, one after another, kinds in turn. No Service selects them.
pub(super) fn measure(site: &mut ClusterSite, count: usize) -> Result<Vec<Creation>> {
    let mut kinds = Vec::new();
    for has_probe in [false, true] {
        for is_injected in [false, true] {
            let namespace = site.namespace("created", is_injected);
            let (call, ready) = (Figures::default(), Figures::default());
            kinds.push(PodKind { namespace, is_injected, has_probe, call, ready });
        }
    }
    for number in 0..=count {
        for kind in &mut kinds {
            let (call, ready) = site
                .block_on(create(site, kind, number))
                .with_context(|| format!("pod {number} in namespace {}", kind.namespace.name()))?;
            // The first pod of each kind does not count: trust bundle and watches may not exist yet.
            if number > 0 {
                kind.call.0.push(call.as_secs_f64());
                kind.ready.0.push(ready.as_secs_f64());
            }
        }
    }
    let names: Vec<_> = kinds.iter().map(|kind| kind.namespace.name().to_owned()).collect();
    let measured = kinds
        .into_iter()
        .map(|PodKind { is_injected, has_probe, call, ready, .. }| Creation {
            is_injected,
            has_probe,
            call,
            ready,
        })
        .collect();
    for name in names {
        site.cluster().wait_until_gone(&["namespace", &name]);
    }
    Ok(measured)
}

/// Creates a pod. Returns the duration of the call, and the time from the call's start until the pod was ready.
async fn create(site: &ClusterSite, kind: &PodKind, number: usize) -> Result<(Duration, Duration)> {
    let api: Api<Pod> = Api::namespaced(site.client().clone(), kind.namespace.name());
    let name = format!("pod-{number}");
    let pod: Pod = serde_json::from_value(pod(&name, kind.has_probe))?;
    let only_this = WatchParams::default().fields(&format!("metadata.name={name}"));
    // The watch starts before the pod exists, so that no event is missed.
    let events = api.watch(&only_this, "0").await.context("cannot watch pods")?;
    let mut events = pin!(events);
    let start = Instant::now();
    let created = api.create(&PostParams::default(), &pod).await.context("cannot create it")?;
    let call = start.elapsed();
    ensure!(
        has_sidecar(&created) == kind.is_injected,
        "it has {} sidecar",
        if kind.is_injected { "no" } else { "a" }
    );
    let until_ready = async {
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_ready(&pod) => {
                    return Ok(start.elapsed());
                }
                WatchEvent::Error(status) => bail!("the watch failed: {status:?}"),
                _ => {}
            }
        }
        bail!("the watch has ended")
    };
    let ready = tokio::time::timeout(LIMIT, until_ready)
        .await
        .with_context(|| format!("not ready after {LIMIT:?}"))??;
    tokio::time::sleep(PAUSE).await;
    Ok((call, ready))
}

/// Whether a pod's status has the condition `Ready`.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A pod with one container that serves HTTP.
fn pod(name: &str, has_probe: bool) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": ["serve", "--http=8080"],
                "ports": [{"containerPort": 8080}],
            }],
        },
    });
    if has_probe {
        pod["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"path": "/healthz", "port": 8080}});
    }
    pod
}
