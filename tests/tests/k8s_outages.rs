//! The mesh and the rest of the cluster while parts of the control plane are down.
//!
//! Each test stops something that all of them share, so they run one after another.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate_tests::kubernetes::load::PodLoad;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, DAEMONS, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::APP;
use tidegate_tests::kubernetes::workload::Workload;
use tidegate_tests::wait;

const SIDECAR_CONTAINER: &str = "tidegate-sidecar";
const INTERCEPT_CONTAINER: &str = "tidegate-intercept";

static ALONE: Mutex<()> = Mutex::new(());

/// The mesh, for one test at a time; restored when the test ends.
struct Alone {
    mesh: &'static Mesh,
    _guard: MutexGuard<'static, ()>,
}

impl Alone {
    fn with_the_mesh() -> Self {
        let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { mesh: Mesh::get(), _guard: guard }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        for daemon in DAEMONS {
            self.mesh.scale(daemon, 1);
        }
        if !thread::panicking() {
            self.mesh.wait_ready();
        }
    }
}

/// A backend under two loads: one that makes a connection for each request, one that keeps them.
struct LoadedBackend {
    namespace: Namespace,
    loads: Vec<PodLoad>,
}

impl LoadedBackend {
    fn start() -> Self {
        let namespace = Namespace::meshed("outage");
        Workload::http("server").deploy(&namespace);
        let url = "http://server/get";
        let loads = vec![
            PodLoad::start(&namespace, "fresh", url, &["--requests-per-connection=1"]),
            PodLoad::start(&namespace, "kept", url, &[]),
        ];
        Self { namespace, loads }
    }

    /// Keeps the load running for a while and fails unless all of it succeeded.
    fn assert_flawless(&self) {
        for load in &self.loads {
            load.wait_for(50);
            load.assert_flawless();
        }
    }

    /// Keeps the load running for this long.
    fn go_on(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.assert_flawless();
        }
    }
}

#[test]
fn with_the_whole_control_plane_away_for_a_minute_no_request_fails() {
    let alone = Alone::with_the_mesh();
    let loaded = LoadedBackend::start();
    for daemon in DAEMONS {
        alone.mesh.scale(daemon, 0);
    }
    loaded.go_on(Duration::from_secs(60));
    for daemon in DAEMONS {
        alone.mesh.scale(daemon, 1);
    }
    alone.mesh.wait_ready();
    loaded.assert_flawless();
    // And it keeps working: a new workload joins.
    Workload::client("late").deploy(&loaded.namespace);
    loaded.namespace.pod("late").get_until("http://server/get", 200);
}

#[test]
fn daemons_that_are_killed_again_and_again_cost_no_request() {
    let alone = Alone::with_the_mesh();
    let loaded = LoadedBackend::start();
    for _ in 0..10 {
        for daemon in DAEMONS {
            alone.mesh.kill(daemon);
            loaded.assert_flawless();
        }
    }
    alone.mesh.wait_ready();
    loaded.assert_flawless();
}

/// The state of a container of a pod, by its name.
fn container(pod: &Value, name: &str) -> Value {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| &pod["status"][list]);
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.find(|status| status["name"] == name).cloned().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether EndpointSlices list a ready endpoint of a Service.
fn is_offered(namespace: &Namespace, service: &str) -> bool {
    let label = format!("kubernetes.io/service-name={service}");
    let slices = namespace.get_json(&["endpointslices", "-l", &label]);
    let endpoints = slices["items"].as_array().into_iter().flatten();
    endpoints
        .filter_map(|slice| slice["endpoints"].as_array())
        .flatten()
        .any(|endpoint| endpoint["conditions"]["ready"] == true)
}

#[test]
fn a_pod_is_ready_only_once_its_sidecar_has_its_policy() {
    let alone = Alone::with_the_mesh();
    let namespace = Namespace::meshed("ready");
    Workload::client("client").deploy(&namespace);
    alone.mesh.scale("tidegate-controller", 0);
    Workload::http("server").apply(&namespace);
    let pod =
        namespace.wait_for("the sidecar waits for its policy alone", &["pods", "-l", "app=server"], |pods| {
            let pod = &pods["items"][0];
            container(pod, INTERCEPT_CONTAINER)["state"]["running"].as_object()?;
            let name = pod["metadata"]["name"].as_str()?;
            let log = ["logs", "-n", namespace.name(), name, "-c", INTERCEPT_CONTAINER];
            let log = namespace.cluster().try_kubectl(log, "").ok()?;
            let last = log.lines().rfind(|line| line.contains("waiting for"))?;
            (last.contains("policy") && !last.contains("certificate")).then(|| pod.clone())
        });
    // With its certificate, and without a policy: the app is not started, and no client is sent there.
    assert!(!is_ready(&pod) && !is_offered(&namespace, "server"), "{:#}", pod["status"]);
    assert_eq!(container(&pod, SIDECAR_CONTAINER)["ready"], false, "{:#}", pod["status"]);
    assert!(container(&pod, APP)["state"]["running"].is_null(), "{:#}", pod["status"]);
    alone.mesh.scale("tidegate-controller", 1);
    namespace.wait_rolled_out("deployment/server");
    namespace.pod("client").get_until("http://server/get", 200);
}

#[test]
fn a_sidecar_that_comes_back_without_a_ca_takes_its_pod_out_of_its_services() {
    let alone = Alone::with_the_mesh();
    let namespace = Namespace::meshed("unready");
    Workload::http("server").deploy(&namespace);
    Workload::client("client").deploy(&namespace);
    let (server, client) = (namespace.pod("server"), namespace.pod("client"));
    client.get_until("http://server/get", 200);
    assert!(is_offered(&namespace, "server"));
    alone.mesh.scale("tidegate-cert-manager", 0);
    server.kill_sidecar();
    wait::until_true("the pod is unready and offered no more", Duration::from_secs(30), || {
        !is_ready(&server.json()) && !is_offered(&namespace, "server")
    });
    let pod = server.json();
    assert_eq!(container(&pod, SIDECAR_CONTAINER)["ready"], false, "{:#}", pod["status"]);
    // The sidecar's readiness fails; the app, whose probe goes unanswered meanwhile, keeps running.
    assert_eq!(container(&pod, APP)["restartCount"], 0, "{:#}", pod["status"]);
    alone.mesh.scale("tidegate-cert-manager", 1);
    wait::until_true("the pod is ready and offered again", Duration::from_secs(90), || {
        is_ready(&server.json()) && is_offered(&namespace, "server")
    });
    client.get_until("http://server/get", 200);
}

#[test]
fn a_restart_of_the_api_server_costs_no_request_and_changes_arrive_afterwards() {
    let alone = Alone::with_the_mesh();
    let cluster = alone.mesh.cluster();
    let loaded = LoadedBackend::start();
    cluster.kill_part("kube-apiserver");
    cluster.start_part("kube-apiserver");
    wait::until_true("the API server is back", Duration::from_secs(60), || {
        cluster.try_kubectl(["get", "--raw", "/readyz"], "").is_ok()
    });
    loaded.assert_flawless();
    // New endpoints reach sidecars: the watches have recovered.
    Workload::http("later").deploy(&loaded.namespace);
    loaded.loads[0].pod().get_until("http://later/get", 200);
}

#[test]
fn without_webhooks_labelled_namespaces_fail_closed_and_others_do_not_notice() {
    let alone = Alone::with_the_mesh();
    let (meshed, plain) = (Namespace::meshed("closed"), Namespace::new("open"));
    for daemon in ["tidegate-injector", "tidegate-controller"] {
        alone.mesh.scale(daemon, 0);
    }
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"},
        "spec": {"containers": [{
            "name": "app",
            "image": "tidegate.test/app:1",
            "imagePullPolicy": "IfNotPresent",
            "args": ["serve"],
        }]},
    });
    // Pods of the cluster itself and of the control plane start without them.
    let cluster = alone.mesh.cluster();
    for [namespace, deployment] in
        [["kube-system", "deployment/coredns"], [CONTROL_PLANE, "deployment/tidegate-cert-manager"]]
    {
        cluster.kubectl(["-n", namespace, "rollout", "restart", deployment]);
        cluster.kubectl(["-n", namespace, "rollout", "status", deployment, "--timeout=120s"]);
    }
    plain.apply(&pod.to_string());
    plain.kubectl(&["wait", "--for=condition=Ready", "pod/pod", "--timeout=60s"]);
    let refused = meshed.try_apply(&pod.to_string()).unwrap_err();
    assert!(refused.stderr.contains("injector.tidegate.io"), "{refused}");
    let ignored = Namespace::new("ignored");
    ignored.cluster().kubectl(["label", "namespace", ignored.name(), "openservicemesh.io/ignore=true"]);
    ignored.apply(&pod.to_string());
    let policy = "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: IngressBackend\nmetadata: {name: any}\n\
        spec: {backends: [], sources: []}\n";
    let refused = meshed.try_apply(policy).unwrap_err();
    assert!(refused.stderr.contains("controller.tidegate.io"), "{refused}");
}

#[test]
fn without_permissive_mode_a_mesh_peer_is_refused_too() {
    let alone = Alone::with_the_mesh();
    let meshed = Namespace::meshed("traffic");
    Workload::http("server").deploy(&meshed);
    Workload::client("client").deploy(&meshed);
    let client = meshed.pod("client");
    client.get_until("http://server/get", 200);
    let permissive = |is_on: bool| {
        alone.mesh.patch_config(&json!({"traffic": {"enablePermissiveTrafficPolicyMode": is_on}}));
    };
    permissive(false);
    wait::until_true("the peer is refused", Duration::from_secs(30), || {
        client.get("http://server/get").status() == 503
    });
    permissive(true);
    client.get_until("http://server/get", 200);
}
