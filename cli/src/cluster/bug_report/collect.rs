//! Collects a report from the cluster.
//!
//! Progress goes to standard error, because a large cluster takes minutes. Objects are cleaned before they are added:
//! without managed fields, without the copy that `kubectl apply` keeps, and without the arguments and environment of
//! containers that are not ours.

use std::fmt::Debug;

use http::Method;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use kube::api::{Api, DynamicObject, ListParams, LogParams, PartialObjectMeta, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tidegate_controller::object::Kind;
use tidegate_core::contract::flags;
use tidegate_core::contract::labels::{PART_OF, TIDEGATE};
use tidegate_core::contract::names::{self, METRICS_PATH, READY_PATH, trust_bundle_config_map};
use tidegate_crds::injection::namespace_is_in_mesh;

use super::{BugReport, Choice};
use crate::cluster::check;
use crate::cluster::client::Cluster;
use crate::cluster::control_plane::Part;

/// Number of sidecars to include by default.
const FIRST: usize = 20;
/// Number of log lines to keep.
const LINES: i64 = 20_000;
/// Annotation in which `kubectl apply` stores a full copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Fields of an app's container to keep. Arguments and environment may hold secrets.
const OF_CONTAINERS: [&str; 10] = [
    "name",
    "image",
    "ports",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "resources",
    "restartPolicy",
    "securityContext",
    "volumeMounts",
];

/// Collects everything that is available.
pub(super) async fn everything(cluster: &Cluster, choice: &Choice) -> BugReport {
    let mut report = BugReport::default();
    eprintln!("versions and checks");
    versions(cluster, &mut report).await;
    eprintln!("objects");
    let namespaces = objects(cluster, &mut report).await;
    eprintln!("control plane");
    control_plane(cluster, &mut report).await;
    sidecars(cluster, choice, &mut report).await;
    eprintln!("events");
    for namespace in namespaces.iter().chain([&cluster.control_plane]) {
        let path = format!("events/{namespace}.yaml");
        list_in::<Event>(cluster, &mut report, namespace, &path, ListParams::default()).await;
    }
    report
}

/// The versions of both sides, and the result of `tidegate check` at the time of the report.
async fn versions(cluster: &Cluster, report: &mut BugReport) {
    let server = match cluster.client.apiserver_version().await {
        Ok(version) => json!(version),
        Err(error) => json!(cluster.failed("get the version", &error).to_string()),
    };
    report.add_yaml(
        "versions.yaml",
        &json!({
            "tidegate": env!("CARGO_PKG_VERSION"), "kubernetes": server,
            "mesh": cluster.mesh_name, "namespace": cluster.control_plane,
        }),
    );
    report.add("check.txt", &check::as_text(cluster).await);
}

/// Collects Tidegate's objects and the objects that policies refer to. Returns the namespaces of the mesh.
async fn objects(cluster: &Cluster, report: &mut BugReport) -> Vec<String> {
    installation(cluster, report).await;
    secret_names(cluster, report).await;
    let members = members(cluster, report).await;
    for namespace in &members {
        objects_of_member(cluster, report, namespace).await;
    }
    members
}

/// Collects the control plane's objects, the webhooks, every object of the kinds that the mesh has for itself, and the nodes'
/// names and labels, among them zones.
async fn installation(cluster: &Cluster, report: &mut BugReport) {
    let client = &cluster.client;
    let home = cluster.control_plane.as_str();
    let all = ListParams::default;
    let ours = || ListParams::default().labels(&format!("{PART_OF}={TIDEGATE}"));
    list_in::<Deployment>(cluster, report, home, "objects/deployments.yaml", all()).await;
    list_in::<Pod>(cluster, report, home, "objects/pods.yaml", ours()).await;
    list_in::<Service>(cluster, report, home, "objects/services.yaml", all()).await;
    list_in::<Lease>(cluster, report, home, "objects/leases.yaml", all()).await;
    list(cluster, report, &Api::<ConfigMap>::all(client.clone()), "objects/configmaps.yaml", ours()).await;
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    list(cluster, report, &webhooks, "objects/mutatingwebhookconfigurations.yaml", ours()).await;
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    list(cluster, report, &webhooks, "objects/validatingwebhookconfigurations.yaml", ours()).await;
    for kind in Kind::ALL.iter().filter(|kind| !kind.is_built_in()) {
        let resource = kind.resource();
        // As stored: objects that cannot be parsed are the interesting ones.
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        // Two kinds have the same plural in different groups.
        let path = format!("objects/{}.{}.yaml", resource.plural, resource.group);
        list(cluster, report, &api, &path, all()).await;
    }
    names(cluster, report, &Api::<Node>::all(client.clone()), "objects/nodes.yaml").await;
}

/// Collects every Namespace, because labels decide which of them belong to the mesh. Returns those that do.
async fn members(cluster: &Cluster, report: &mut BugReport) -> Vec<String> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespaces = match cluster.list(&namespaces, ListParams::default(), "namespaces").await {
        Ok(namespaces) => namespaces,
        Err(error) => {
            report.miss("namespaces", &error);
            Vec::new()
        }
    };
    report.add_yaml("objects/namespaces.yaml", &namespaces.iter().map(cleaned).collect::<Vec<_>>());
    let members = namespaces.iter().filter(|namespace| namespace_is_in_mesh(namespace, &cluster.mesh_name));
    members.map(ResourceExt::name_any).collect()
}

/// Collects what policies of a namespace of the mesh refer to, and the roots that its sidecars trust.
async fn objects_of_member(cluster: &Cluster, report: &mut BugReport, namespace: &str) {
    let prefix = format!("objects/{namespace}");
    let all = ListParams::default;
    list_in::<Pod>(cluster, report, namespace, &format!("{prefix}/pods.yaml"), all()).await;
    list_in::<Service>(cluster, report, namespace, &format!("{prefix}/services.yaml"), all()).await;
    list_in::<EndpointSlice>(cluster, report, namespace, &format!("{prefix}/endpointslices.yaml"), all())
        .await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    names(cluster, report, &accounts, &format!("{prefix}/serviceaccounts.yaml")).await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let bundle = trust_bundle_config_map(&cluster.mesh_name);
    match cluster.get(&maps, &bundle, "the trust bundle").await {
        Ok(map) => report.add_yaml(format!("{prefix}/trust-bundle.yaml"), &map.map(|map| map.data)),
        Err(error) => report.miss(&prefix, &error),
    }
}

/// Requests only the metadata, so that the content of Secrets never leaves the API server.
async fn secret_names(cluster: &Cluster, report: &mut BugReport) {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.control_plane);
    names(cluster, report, &api, "objects/secret-names.yaml").await;
}

/// Collects names, ages and labels of objects as the file `path`, which also names it if they cannot be listed.
async fn names<K: Clone + DeserializeOwned + Debug>(
    cluster: &Cluster,
    report: &mut BugReport,
    api: &Api<K>,
    path: &str,
) {
    let name = |PartialObjectMeta { metadata, .. }: &PartialObjectMeta<K>| json!({"name": metadata.name, "created": metadata.creation_timestamp, "labels": metadata.labels});
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => report.add_yaml(path, &list.items.iter().map(name).collect::<Vec<_>>()),
        Err(error) => report.miss(path, &cluster.failed("list metadata", &error)),
    }
}

/// Logs and admin pages of every running Pod of the control plane.
async fn control_plane(cluster: &Cluster, report: &mut BugReport) {
    for part in Part::ALL {
        let pods = match cluster.running(part).await {
            Ok(pods) => pods,
            Err(error) => {
                report.miss(part.name(), &error);
                continue;
            }
        };
        if pods.is_empty() {
            report.miss(part.name(), &"no running pod");
        }
        for pod in pods {
            let name = pod.name_any();
            let prefix = format!("control-plane/{name}");
            logs(cluster, report, &pod, part.name(), &prefix).await;
            let pages: &[&str] = match part {
                Part::Controller => &[READY_PATH, METRICS_PATH, "/policies", "/problems", "/workloads"],
                Part::CertManager => &[READY_PATH, METRICS_PATH, "/rotation"],
                Part::Injector => &[READY_PATH, METRICS_PATH],
            };
            pages_of(cluster, report, &cluster.control_plane, &name, pages, &prefix).await;
        }
    }
}

/// Logs and admin pages of the chosen sidecars; without a choice those of the first [`FIRST`], and a note of how many
/// were left out.
async fn sidecars(cluster: &Cluster, choice: &Choice, report: &mut BugReport) {
    let pods = match cluster.meshed_pods(None).await {
        Ok(pods) => pods,
        Err(error) => return report.miss("sidecars", &error),
    };
    for (namespace, name) in &choice.pods {
        if !pods.iter().any(|pod| pod.namespace == *namespace && pod.name == *name) {
            report.miss(&format!("{namespace}/{name}"), &"no pod of this name with a sidecar");
        }
    }
    let is_open = choice.pods.is_empty() && choice.namespaces.is_empty();
    let chosen = pods.iter().filter(|pod| {
        is_open
            || choice.namespaces.contains(&pod.namespace)
            || choice.pods.iter().any(|(namespace, name)| *namespace == pod.namespace && *name == pod.name)
    });
    let most = if is_open && !choice.all { FIRST } else { usize::MAX };
    for pod in chosen.take(most) {
        eprintln!("sidecar of {}", pod.key());
        let prefix = format!("sidecars/{}", pod.key());
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &pod.namespace);
        match cluster.get(&api, &pod.name, &format!("pod {}", pod.key())).await {
            Ok(Some(found)) => {
                logs(cluster, report, &found, names::SIDECAR, &prefix).await;
                logs(cluster, report, &found, names::INTERCEPT, &prefix).await;
            }
            Ok(None) => report.miss(&prefix, &"the pod is gone"),
            Err(error) => report.miss(&prefix, &error),
        }
        pages_of(cluster, report, &pod.namespace, &pod.name, &[READY_PATH, METRICS_PATH, "/config"], &prefix)
            .await;
    }
    if is_open && !choice.all && pods.len() > FIRST {
        let left = pods.len() - FIRST;
        report.miss("sidecars", &format!("{left} more were skipped; --all includes every sidecar"));
    }
}

/// Collects a container's log, and the log before its last restart.
async fn logs(cluster: &Cluster, report: &mut BugReport, pod: &Pod, container: &str, prefix: &str) {
    let spec = pod.spec.as_ref();
    let is_there = spec.is_some_and(|spec| {
        let of_init = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(of_init).any(|there| there.name == container)
    });
    if !is_there {
        return;
    }
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &pod.namespace().unwrap_or_default());
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.container_statuses.as_ref());
    let of_init = status.and_then(|status| status.init_container_statuses.as_ref());
    let has_restarted = statuses
        .into_iter()
        .chain(of_init)
        .flatten()
        .any(|status| status.name == container && status.restart_count > 0);
    let times: &[bool] = if has_restarted { &[false, true] } else { &[false] };
    for &previous in times {
        let params = LogParams {
            container: Some(container.to_owned()),
            tail_lines: Some(LINES),
            timestamps: true,
            previous,
            ..LogParams::default()
        };
        let suffix = if previous { ".previous" } else { "" };
        let path = format!("{prefix}/{container}{suffix}.log");
        match api.logs(&pod.name_any(), &params).await {
            Ok(log) => report.add(path, &log),
            Err(error) => report.miss(&path, &cluster.failed("read the log", &error)),
        }
    }
}

/// Collects pages of a Pod's admin server.
async fn pages_of(
    cluster: &Cluster,
    report: &mut BugReport,
    namespace: &str,
    name: &str,
    pages: &[&str],
    prefix: &str,
) {
    for page in pages {
        let path = format!("{prefix}{page}");
        match cluster.admin(Method::GET, namespace, name, page).await {
            Ok(body) => report.add(path, &String::from_utf8_lossy(&body)),
            Err(error) => report.miss(&path, &error),
        }
    }
}

/// Collects the objects of one kind in a namespace.
async fn list_in<K>(
    cluster: &Cluster,
    report: &mut BugReport,
    namespace: &str,
    path: &str,
    params: ListParams,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Serialize
        + Debug,
{
    list(cluster, report, &Api::<K>::namespaced(cluster.client.clone(), namespace), path, params).await;
}

/// Collects what `params` select as the file `path`, which also names it if it cannot be listed.
async fn list<K>(cluster: &Cluster, report: &mut BugReport, api: &Api<K>, path: &str, params: ListParams)
where
    K: Clone + DeserializeOwned + Serialize + Debug,
{
    match cluster.list(api, params, path).await {
        Ok(objects) => report.add_yaml(path, &objects.iter().map(cleaned).collect::<Vec<_>>()),
        Err(error) => report.miss(path, &error),
    }
}

/// An object without server-side bookkeeping, and without the app's arguments and environment.
fn cleaned(object: &impl Serialize) -> Value {
    let mut object = serde_json::to_value(object).unwrap_or_default();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
    }
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        let containers = object.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            if container.get("name").and_then(Value::as_str).is_some_and(is_our_container) {
                clean_our_arguments(container);
            } else {
                container.retain(|name, _| OF_CONTAINERS.contains(&name.as_str()));
                clean_probes(container);
            }
        }
    }
    object
}

/// Removes the app's probes from the sidecar's arguments.
fn clean_our_arguments(container: &mut Map<String, Value>) {
    let arguments = container.get_mut("args").and_then(Value::as_array_mut);
    for argument in arguments.into_iter().flatten() {
        if argument.as_str().is_some_and(|text| flags::value(text, flags::PROBES).is_some()) {
            *argument = json!(flags::argument(flags::PROBES, "<removed>"));
        }
    }
}

/// Removes headers and commands of probes, which may be secret.
fn clean_probes(container: &mut Map<String, Value>) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) else { continue };
        probe.remove("exec");
        if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            http.remove("httpHeaders");
        }
    }
}

/// Whether the arguments are our own flags, which hold no secret of the app except its probes.
fn is_our_container(name: &str) -> bool {
    name == names::SIDECAR || name == names::INTERCEPT || Part::ALL.iter().any(|part| part.name() == name)
}
