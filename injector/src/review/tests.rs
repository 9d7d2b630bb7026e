//! The webhook, asked over TLS as the API server asks.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_core::contract::annotations::SIDECAR_INJECTION;
use tidegate_core::contract::labels::{INJECTION, MONITORED_BY};
use tidegate_kubernetes::webhook::testing::{AdmissionClient, review};

use super::*;
use crate::NamespaceView;
use crate::state::ClusterStateWriter;

/// A webhook that knows a namespace of the mesh, `shop`, and one outside it, `other`.
struct Webhook {
    client: AdmissionClient,
    writer: ClusterStateWriter,
}

fn namespace(name: &str, label: (&str, &str)) -> (String, Arc<NamespaceView>) {
    let labels = [(label.0.to_owned(), label.1.to_owned())].into();
    let view = NamespaceView { name: name.to_owned(), labels, ..NamespaceView::default() };
    (name.to_owned(), Arc::new(view))
}

impl Webhook {
    async fn start() -> Self {
        Self::with_patience(Duration::from_secs(60)).await
    }

    async fn with_patience(patience: Duration) -> Self {
        let (writer, mut state) = ClusterState::new();
        state.patience = patience;
        writer.namespaces.send_replace(
            [namespace("shop", (INJECTION, "enabled")), namespace("other", (MONITORED_BY, "another"))].into(),
        );
        let settings = Settings::of_mesh("tidegate-system", "cluster.local", "tidegate/sidecar:1.0.0");
        let client = AdmissionClient::start("/mutate", Arc::new(PodReviewer::new(settings, state))).await;
        Self { client, writer }
    }

    /// What comes of a new Pod.
    async fn create(&self, namespace: &str, pod: &Value) -> Value {
        self.client.ask(&review("pods", "CREATE", namespace, pod)).await
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "app-", "creationTimestamp": null},
        "spec": {"containers": [{"name": "app", "image": "app", "resources": {}}]},
        "status": {},
    })
}

#[tokio::test]
async fn a_pod_of_a_meshed_namespace_gets_its_patch_and_another_none() {
    let webhook = Webhook::start().await;
    let answer = webhook.create("shop", &pod()).await;
    assert_eq!(answer["allowed"], true);
    assert_eq!(answer["patchType"], "JSONPatch");
    let patched = applied(&pod(), &answer);
    assert_eq!(patched["spec"]["initContainers"][0]["name"], "tidegate-sidecar");
    let answer = webhook.create("shop", &patched).await;
    assert_eq!((&answer["allowed"], &answer["patch"]), (&json!(true), &Value::Null));
    webhook.writer.namespaces.send_modify(|namespaces| {
        let (name, view) = namespace("shop", (MONITORED_BY, "osm"));
        namespaces.insert(name, view);
    });
    let answer = webhook.create("shop", &pod()).await;
    assert_eq!(
        (&answer["allowed"], &answer["patch"]),
        (&json!(true), &Value::Null),
        "no sidecar was requested"
    );
}

fn applied(pod: &Value, answer: &Value) -> Value {
    let patch: k8s_openapi::ByteString = serde_json::from_value(answer["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    patched
}

#[tokio::test]
async fn a_pod_that_comes_with_another_mesh_s_sidecar_gets_ours_in_its_place_and_a_warning() {
    let webhook = Webhook::start().await;
    let mut pod = pod();
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": 80}});
    let ours = applied(&pod, &webhook.create("shop", &pod).await);

    let (writer, state) = ClusterState::new();
    writer.namespaces.send_replace([namespace("shop", (MONITORED_BY, "blue"))].into());
    writer.namespaces.send_modify(|namespaces| {
        let view = namespaces.get_mut("shop").unwrap();
        let annotations = [(SIDECAR_INJECTION.to_owned(), "enabled".to_owned())].into();
        *view = Arc::new(NamespaceView { annotations, ..NamespaceView::clone(view) });
    });
    let settings = Settings::of_mesh("blue-system", "cluster.local", "tidegate/sidecar:2.0.0");
    let settings = Settings { mesh_name: "blue".to_owned(), ..settings };
    let blue = AdmissionClient::start("/mutate", Arc::new(PodReviewer::new(settings, state))).await;
    let create = review("pods", "CREATE", "shop", &pod);
    let first = blue.ask(&create).await;
    assert_eq!(first["warnings"], Value::Null);
    let theirs = applied(&pod, &first);
    assert_eq!(theirs["spec"]["volumes"][0]["configMap"]["name"], "tidegate-trust-bundle-blue");

    let answer = webhook.create("shop", &theirs).await;
    let warning = "the pod comes with a sidecar of the control plane in namespace blue-system; it gets one of mesh osm \
                   instead, which its namespace is in";
    assert_eq!(answer["warnings"], json!([warning]));
    let paths = |pod: &Value| pod["spec"]["containers"][0]["readinessProbe"].clone();
    let made = applied(&theirs, &answer);
    assert_eq!(made["spec"]["initContainers"], ours["spec"]["initContainers"]);
    assert_eq!(made["spec"]["volumes"], ours["spec"]["volumes"]);
    assert_eq!(paths(&made), paths(&ours));
}

#[tokio::test]
async fn a_namespace_that_the_watch_has_not_told_of_yet_is_waited_for() {
    let webhook = Webhook::start().await;
    let request = review("pods", "CREATE", "new", &pod());
    let asking = webhook.client.ask(&request);
    let telling = async {
        tokio::task::yield_now().await;
        webhook.writer.namespaces.send_modify(|namespaces| {
            let (name, view) = namespace("new", (INJECTION, "enabled"));
            namespaces.insert(name, view);
        });
    };
    let (answer, ()) = tokio::join!(asking, telling);
    assert_eq!(answer["patchType"], "JSONPatch");
    let webhook = Webhook::with_patience(Duration::ZERO).await;
    for name in ["unknown", "other"] {
        let answer = webhook.create(name, &pod()).await;
        assert_eq!(answer["allowed"], false);
        let expected = format!("namespace {name} is not known to be in the mesh yet; try again");
        assert_eq!(answer["status"]["message"], expected);
    }
}

#[tokio::test]
async fn a_pod_that_would_go_around_the_mesh_is_refused_with_what_to_do() {
    let webhook = Webhook::start().await;
    let mut spoof = pod();
    spoof["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1500});
    let answer = webhook.create("shop", &spoof).await;
    assert_eq!(answer["allowed"], false);
    let message = answer["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("spec.containers[0].securityContext.runAsUser: user 1500"), "{message}");
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    let answer = webhook.create("shop", &host).await;
    assert_eq!(answer["allowed"], true);
    assert!(answer["warnings"][0].as_str().unwrap().contains("node's network"));
}

#[tokio::test]
async fn debug_containers_of_meshed_pods_may_not_undo_interception() {
    let webhook = Webhook::start().await;
    let mut meshed = pod();
    meshed["metadata"]["labels"] = json!({"tidegate.io/sidecar": "injected"});
    meshed["spec"]["initContainers"] = json!([{"name": "tidegate-sidecar", "restartPolicy": "Always"}]);
    let update = |debugged: &Value| {
        let mut request = review("pods/ephemeralcontainers", "UPDATE", "shop", debugged);
        request["request"]["oldObject"] = meshed.clone();
        request
    };
    for (context, field) in [
        (json!({"runAsUser": 1500}), Some("runAsUser")),
        (json!({"capabilities": {"add": ["NET_ADMIN"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["SYS_PTRACE", "net_admin"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["Cap_Net_Admin"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["cap_sys_admin"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["all"]}}), Some("capabilities.add")),
        (json!({"privileged": true}), Some("privileged")),
        (json!({"capabilities": {"add": ["SYS_PTRACE"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["NET_RAW", "BPF"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["DAC_READ_SEARCH"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["SETUID"]}}), Some("capabilities.add")),
        (json!({"capabilities": {"add": ["CAP_YET_TO_COME"]}}), Some("capabilities.add")),
        (json!({"runAsUser": 0, "capabilities": {"add": ["NET_RAW", "cap_kill"]}}), None),
        (json!({"capabilities": {"drop": ["ALL"]}}), None),
    ] {
        let mut debugged = meshed.clone();
        debugged["spec"]["ephemeralContainers"] = json!([{"name": "debugger", "securityContext": context}]);
        let request = update(&debugged);
        let answer = webhook.client.ask(&request).await;
        assert_eq!(answer["allowed"], json!(field.is_none()), "{context}");
        if let Some(field) = field {
            let message = answer["status"]["message"].as_str().unwrap();
            let path = format!("spec.ephemeralContainers[0].securityContext.{field}: ");
            assert!(message.starts_with(&path), "{message}");
            assert!(
                message.contains("kubectl debug --profile=baseline") || field == "runAsUser",
                "{message}"
            );
        }
        let mut again = update(&debugged);
        again["request"]["oldObject"] = debugged.clone();
        assert_eq!(webhook.client.ask(&again).await["allowed"], true, "what is there cannot be taken away");
        debugged["metadata"]["labels"] = json!({});
        let request = update(&debugged);
        let without_label = webhook.client.ask(&request).await;
        assert_eq!(without_label["allowed"], answer["allowed"], "debugging may change labels");
        debugged["spec"]["initContainers"] = json!([]);
        let request = update(&debugged);
        assert_eq!(webhook.client.ask(&request).await["allowed"], true, "outside the mesh anything goes");
    }
}

#[tokio::test]
async fn the_sidecar_s_token_is_mounted_by_the_sidecar_alone() {
    let webhook = Webhook::start().await;
    let mounts = json!([{"name": "a", "mountPath": "/a"}, {"name": "tidegate-token", "mountPath": "/b"}]);
    let expected = "volumeMounts[1].name: tidegate-token holds the token by which the sidecar gets the pod's certificate; \
                    no other container may mount it";
    let mut spoof = pod();
    spoof["spec"]["containers"][0]["volumeMounts"] = mounts.clone();
    let answer = webhook.create("shop", &spoof).await;
    assert_eq!(answer["status"]["message"], format!("spec.containers[0].{expected}"));
    let meshed = applied(&pod(), &webhook.create("shop", &pod()).await);
    let mut debugged = meshed.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "debugger", "volumeMounts": mounts}]);
    let mut request = review("pods/ephemeralcontainers", "UPDATE", "shop", &debugged);
    request["request"]["oldObject"] = meshed;
    let answer = webhook.client.ask(&request).await;
    assert_eq!(answer["status"]["message"], format!("spec.ephemeralContainers[0].{expected}"));
}

#[tokio::test]
async fn a_running_pod_keeps_the_images_of_our_containers_and_may_change_its_own() {
    let webhook = Webhook::start().await;
    let meshed = applied(&pod(), &webhook.create("shop", &pod()).await);
    let update = async |old: &Value, new: &Value| {
        let mut request = review("pods", "UPDATE", "shop", new);
        request["request"]["oldObject"] = old.clone();
        webhook.client.ask(&request).await
    };
    let with_image = |list: &str, index: usize, image: &str| {
        let mut pod = meshed.clone();
        pod["spec"][list][index]["image"] = json!(image);
        pod
    };
    for (index, name) in ["tidegate-sidecar", "tidegate-intercept"].into_iter().enumerate() {
        let changed = with_image("initContainers", index, "evil:1");
        let answer = update(&meshed, &changed).await;
        assert_eq!(answer["allowed"], false, "{name}");
        let message = answer["status"]["message"].as_str().unwrap();
        let expected = format!(
            "spec.initContainers[{index}].image: a running pod keeps the {name} that it was made with"
        );
        assert!(message.starts_with(&expected) && message.contains("got \"evil:1\""), "{message}");
        assert_eq!(update(&changed, &changed).await["allowed"], true, "what is there already may stay");
        assert_eq!(update(&changed, &meshed).await["allowed"], true, "the injector's own may come back");
    }
    let mut labelled = with_image("containers", 0, "app:2");
    labelled["metadata"]["labels"] = json!({});
    assert_eq!(update(&meshed, &labelled).await["allowed"], true);
    let mut other = pod();
    other["spec"]["initContainers"] = json!([{"name": "tidegate-intercept", "image": "a"}]);
    let mut changed = other.clone();
    changed["spec"]["initContainers"][0]["image"] = json!("b");
    assert_eq!(update(&other, &changed).await["allowed"], true, "a pod outside the mesh");
}

#[tokio::test]
async fn a_copy_without_its_labels_is_refused_with_what_keeps_them() {
    let webhook = Webhook::start().await;
    let mut copy = applied(&pod(), &webhook.create("shop", &pod()).await);
    assert_eq!(webhook.create("shop", &copy).await["allowed"], true);
    copy["metadata"]["labels"] = json!({});
    let keeps = "kubectl debug POD --copy-to=NAME --keep-labels makes one with a sidecar of its own";
    let answer = webhook.create("shop", &copy).await;
    let message = answer["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("spec.initContainers[0].name: ") && message.contains(keeps), "{message}");
    // kubectl debug --keep-init-containers=false leaves the volumes.
    copy["spec"]["initContainers"] = json!([]);
    let answer = webhook.create("shop", &copy).await;
    let message = answer["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("spec.volumes[0].name: ") && message.contains(keeps), "{message}");
}

#[tokio::test]
async fn a_dry_run_gets_the_same_answer() {
    let webhook = Webhook::start().await;
    let mut request = review("pods", "CREATE", "shop", &pod());
    let answer = webhook.client.ask(&request).await;
    request["request"]["dryRun"] = json!(true);
    assert_eq!(webhook.client.ask(&request).await, answer);
}

#[tokio::test]
async fn while_the_mesh_config_cannot_be_read_pods_are_refused_with_its_field() {
    let webhook = Webhook::start().await;
    let spec = serde_json::from_value(json!({"sidecar": {"logLevel": "loud"}})).unwrap();
    let _ = webhook.writer.mesh.send_replace(crate::settings::MeshSettings::parse(Some(&spec)).map(Arc::new));
    let answer = webhook.create("shop", &pod()).await;
    assert_eq!(answer["status"]["message"], "MeshConfig: spec.sidecar.logLevel: \"loud\" is not a level");
}
