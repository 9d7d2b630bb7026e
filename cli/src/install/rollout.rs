//! Waits for the control plane, and reports what is not ready and why.

use std::time::Duration;

use anyhow::{bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::api::{Api, ListParams, ResourceExt};
use tidegate_core::contract::labels::{INSTANCE, NAME};

use super::INTERVAL;
use crate::cluster::client::Cluster;
use crate::cluster::control_plane::of_mesh;
use crate::output::printable;
use crate::patience::Patience;

/// Number of nodes for three replicas.
const NODES: usize = 3;
/// Waiting reasons of a container that starts normally.
const USUAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// The two alternating reasons of an image that cannot be pulled.
const IMAGE: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

/// Why a Deployment is not rolled out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Obstacle {
    /// The Pod, or the Deployment itself.
    what: String,
    /// One word, such as `ImagePullBackOff`.
    reason: String,
    message: String,
}

/// Waits until every Deployment of the mesh's control plane is rolled out. Each obstacle is reported once on standard
/// error, as soon as it is seen; those that remain at the timeout become the error.
pub(super) async fn wait(cluster: &Cluster, limit: Duration) -> anyhow::Result<()> {
    let mut patience = Patience::new(limit, INTERVAL);
    loop {
        let (unready, obstacles) = match look(cluster).await {
            Ok((unready, _)) if unready.is_empty() => return Ok(()),
            Ok(seen) => seen,
            Err(error) => {
                patience.bear(error).await?;
                continue;
            }
        };
        for obstacle in &obstacles {
            patience.say(format!("{} {}", obstacle.what, obstacle.reason), obstacle);
        }
        if patience.is_over() {
            let states = unready.iter().map(state).collect::<Vec<_>>().join(", ");
            let causes: String = obstacles.iter().map(|obstacle| format!("\n  {obstacle}")).collect();
            let hint = if obstacles.iter().any(|obstacle| IMAGE.contains(&obstacle.reason.as_str())) {
                "\nhint: the values image.registry and image.tag select the images (--set image.registry=…)"
            } else {
                ""
            };
            bail!("not ready after {}: {states}{causes}{hint}", humantime::format_duration(limit));
        }
        patience.pause().await;
    }
}

/// Deployments that are not rolled out, and the obstacles.
async fn look(cluster: &Cluster) -> anyhow::Result<(Vec<Deployment>, Vec<Obstacle>)> {
    let unready = unready(cluster).await?;
    let obstacles = obstacles(cluster, &unready).await?;
    Ok((unready, obstacles))
}

/// A warning if replicas would have to share nodes.
pub(super) async fn too_few_nodes(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let nodes = cluster.list(&Api::all(cluster.client.clone()), ListParams::default(), "nodes").await?;
    let usable = nodes.iter().filter(|node| takes_pods(node)).count();
    Ok((usable < NODES).then(|| {
        format!(
            "--ha runs three replicas of each daemon, but only {usable} of the cluster's {} nodes accept Pods: replicas share \
             nodes until there are {NODES}, and a node failure takes all of its replicas down",
            nodes.len()
        )
    }))
}

/// Whether a node takes Pods without tolerations: ready, not cordoned, without a taint that keeps Pods away.
fn takes_pods(node: &Node) -> bool {
    let is_ready = node.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    let spec = node.spec.as_ref();
    let is_tainted = spec.and_then(|spec| spec.taints.as_ref()).is_some_and(|taints| {
        taints.iter().any(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
    });
    is_ready && !is_tainted && spec.and_then(|spec| spec.unschedulable) != Some(true)
}

/// The Deployments of the mesh that are not rolled out yet; an error if it has none.
async fn unready(cluster: &Cluster) -> anyhow::Result<Vec<Deployment>> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.control_plane);
    let selector = of_mesh(&cluster.mesh_name);
    let what = format!("deployments of namespace {}", cluster.control_plane);
    let mut deployments = cluster.list(&api, ListParams::default().labels(&selector), &what).await?;
    ensure!(!deployments.is_empty(), "namespace {} has no Deployment of the mesh", cluster.control_plane);
    deployments.retain(|deployment| !is_rolled_out(deployment));
    Ok(deployments)
}

/// Judges like `kubectl rollout status`: the controller has observed the newest generation, and all replicas are of it
/// and available.
fn is_rolled_out(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let wanted = deployment.spec.replicas.unwrap_or(1);
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
}

/// `<name>: <ready> of <wanted> ready`.
fn state(deployment: &Deployment) -> String {
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.available_replicas.unwrap_or(0).min(status.updated_replicas.unwrap_or(0));
    format!("{}: {ready} of {} ready", deployment.name_any(), deployment.spec.replicas.unwrap_or(1))
}

/// What keeps these Deployments from being rolled out, from their own status and from that of their Pods.
async fn obstacles(cluster: &Cluster, unready: &[Deployment]) -> anyhow::Result<Vec<Obstacle>> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.control_plane);
    let mut found = Vec::new();
    for deployment in unready {
        let name = deployment.name_any();
        found.extend(refused_pods(deployment));
        let selector = format!("{NAME}={name},{INSTANCE}={}", cluster.mesh_name);
        let what = format!("pods of {name}");
        let pods = cluster.list(&api, ListParams::default().labels(&selector), &what).await?;
        found.extend(pods.iter().filter_map(obstacle));
    }
    Ok(found)
}

/// Pods that the API server refuses to create for a Deployment, such as because of a quota.
fn refused_pods(deployment: &Deployment) -> Option<Obstacle> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failed = conditions.iter().find(|condition| {
        condition.type_.as_deref() == Some("ReplicaFailure") && condition.status.as_deref() == Some("True")
    })?;
    Some(Obstacle {
        what: format!("deployment {}", deployment.name_any()),
        reason: failed.reason.clone().unwrap_or_else(|| "ReplicaFailure".to_owned()),
        message: failed.message.clone().unwrap_or_default(),
    })
}

/// What keeps a Pod from becoming ready, if its status says so.
fn obstacle(pod: &Pod) -> Option<Obstacle> {
    let status = pod.status.as_ref()?;
    let what = format!("pod {}", pod.name_any());
    let conditions = status.conditions.iter().flatten();
    let mut unscheduled =
        conditions.filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled.next() {
        let reason = condition.reason.clone().unwrap_or_else(|| "Unschedulable".to_owned());
        return Some(Obstacle { what, reason, message: condition.message.clone().unwrap_or_default() });
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.into_iter().find_map(troubled).map(|(reason, message)| Obstacle { what, reason, message })
}

/// Reason and message of a container that waits abnormally long or keeps exiting.
fn troubled(container: &ContainerStatus) -> Option<(String, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|reason| !USUAL.contains(reason))?;
    let reason = if IMAGE.contains(&reason) { IMAGE[1] } else { reason };
    let mut message = waiting.message.clone().unwrap_or_default();
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    if let Some(ended) = last.filter(|_| !IMAGE.contains(&reason)) {
        message += &format!(" (it exited with code {}; see its log)", ended.exit_code);
    }
    Some((reason.to_owned(), format!("image {}: {message}", container.image)))
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.what, self.reason, printable(&self.message))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::testing::{TestCluster, control_plane_pod};

    fn deployment(available: u32) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "tidegate-controller", "namespace": "tidegate-system", "generation": 2, "labels": {
                "app.kubernetes.io/instance": "osm", "app.kubernetes.io/part-of": "tidegate",
            }},
            "spec": {"replicas": 1, "selector": {}, "template": {}},
            "status": {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available},
        })
    }

    fn pod(status: &Value) -> Value {
        let mut pod = control_plane_pod("tidegate-controller", "c");
        pod["status"] = status.clone();
        pod
    }

    async fn failure(objects: Vec<Value>) -> String {
        let fake = TestCluster::start(objects).await;
        wait(&fake.cluster(), Duration::ZERO).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_pulled_is_named_with_its_pod_and_what_to_do() {
        let waiting = json!({"containerStatuses": [{
            "name": "controller", "image": "nowhere/controller:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such host"}},
        }]});
        let error = failure(vec![deployment(0), pod(&waiting)]).await;
        assert_eq!(
            error,
            "not ready after 0s: tidegate-controller: 0 of 1 ready\n  pod c: ImagePullBackOff: image \
             nowhere/controller:1: no such host\nhint: the values image.registry and image.tag select the images \
             (--set image.registry=…)"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_scheduled_or_is_refused_says_so() {
        let unscheduled = json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
        }]});
        let error = failure(vec![deployment(0), pod(&unscheduled)]).await;
        assert!(
            error.contains("pod c: Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."),
            "{error}"
        );
        let mut refused = deployment(0);
        refused["status"]["conditions"] = json!([{
            "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: small",
        }]);
        let error = failure(vec![refused]).await;
        assert!(
            error.contains("deployment tidegate-controller: FailedCreate: exceeded quota: small"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn it_is_over_once_the_newest_generation_is_available() {
        let fake = TestCluster::start(vec![deployment(1)]).await;
        wait(&fake.cluster(), Duration::ZERO).await.unwrap();
        let mut changed = deployment(1);
        changed["metadata"]["generation"] = json!(3);
        fake.put(changed);
        wait(&fake.cluster(), Duration::ZERO).await.unwrap_err();
    }

    #[tokio::test]
    async fn nodes_that_take_no_pods_do_not_count() {
        let node = |name: &str, spec: Value, ready: &str| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec,
                   "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let fake = TestCluster::start(vec![
            node("a", json!({}), "True"),
            node("b", json!({"unschedulable": true}), "True"),
            node("c", json!({"taints": [{"key": "control-plane", "effect": "NoSchedule"}]}), "True"),
            node("d", json!({}), "Unknown"),
            node("e", json!({}), "True"),
        ])
        .await;
        let warning = too_few_nodes(&fake.cluster()).await.unwrap().unwrap();
        assert!(warning.contains("2 of the cluster's 5 nodes accept Pods"), "{warning}");
        fake.put(node("d", json!({}), "True"));
        assert_eq!(too_few_nodes(&fake.cluster()).await.unwrap(), None);
    }
}
