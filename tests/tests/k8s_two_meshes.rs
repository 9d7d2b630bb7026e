//! Two meshes in one cluster: each has its own pods, its own root and its own namespaces, and works without the other.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::Write;
use std::process;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tidegate_tests::kubernetes::cluster::CommandFailure;
use tidegate_tests::kubernetes::forward::Admin;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, Mesh, VALUES};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::{Pod, PodOutcome};
use tidegate_tests::kubernetes::workload::{IMAGE, Workload};
use tidegate_tests::kubernetes::{Cluster, ROLLOUT};
use tidegate_tests::wait;

/// A mesh beside the one that all suites share, named like its control plane's namespace; removed when dropped.
struct Second {
    cluster: &'static Cluster,
    name: String,
}

impl Second {
    fn install() -> Self {
        let second = Self { cluster: Mesh::get().cluster(), name: format!("blue-{}", process::id()) };
        let mut values = NamedTempFile::new().unwrap();
        values.write_all(VALUES.as_bytes()).unwrap();
        let values = values.path().to_str().unwrap();
        second.tidegate(&["install", "--apply", "--skip-crds", "--wait", "--values", values]).unwrap();
        second
    }

    /// A command for this mesh.
    fn tidegate(&self, words: &[&str]) -> Result<String, CommandFailure> {
        let place = [format!("--tidegate-namespace={}", self.name), format!("--mesh-name={}", self.name)];
        self.cluster.try_tidegate(words.iter().copied().chain(place.iter().map(String::as_str)))
    }

    /// Adds a namespace to this mesh, with sidecars.
    fn add(&self, namespace: &Namespace) {
        self.tidegate(&["namespace", "add", namespace.name()]).unwrap();
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let pods = self.cluster.try_kubectl(["describe", "pods", "-n", &self.name], "");
            eprintln!("{}", pods.unwrap_or_else(|failure| failure.to_string()));
        }
        if self.cluster.try_get_json(&["namespace", &self.name]).is_ok() {
            let _ = self.tidegate(&["uninstall", "--yes", "--delete-namespace"]);
        }
    }
}

fn deploy(namespace: &Namespace) {
    Workload::http("server").deploy(namespace);
    Workload::client("client").deploy(namespace);
}

fn url(namespace: &Namespace) -> String {
    format!("http://server.{}/get", namespace.name())
}

/// The workloads, as `<namespace>/<name>`, for which a namespace's controller has policies.
fn workloads(cluster: &'static Cluster, control_plane: &str) -> BTreeSet<String> {
    let label = "app.kubernetes.io/name=tidegate-controller";
    let pods = cluster.get_json(&["pods", "-n", control_plane, "-l", label]);
    let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let answer = Admin::of(cluster, control_plane, &format!("pod/{pod}")).get("/workloads");
    let workloads: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
    workloads.iter().map(|workload| workload["workload"].as_str().unwrap().to_owned()).collect()
}

fn keys(pods: &[&Pod]) -> Vec<String> {
    pods.iter()
        .map(|pod| format!("{}/{}", pod.json()["metadata"]["namespace"].as_str().unwrap(), pod.name()))
        .collect()
}

/// The control plane that a pod's sidecar connects to.
fn control_plane(pod: &Value) -> Option<String> {
    let mut containers = pod["spec"]["initContainers"].as_array()?.iter();
    let sidecar = containers.find(|container| container["name"] == "tidegate-sidecar")?;
    let mut arguments = sidecar["args"].as_array()?.iter().filter_map(Value::as_str);
    let name = arguments.find_map(|argument| argument.strip_prefix("--discovery-server-name="))?;
    name.split('.').nth(1).map(str::to_owned)
}

/// Each mesh has its own root, in its own namespaces only.
fn assert_roots_are_separate(second: &Second, ours: &Namespace, theirs: &Namespace) {
    let bundle = |namespace: &Namespace, name: &str| {
        let map = second.cluster.try_get_json(&["configmap", "-n", namespace.name(), name]).ok()?;
        Some(map["data"]["ca.crt"].as_str()?.to_owned())
    };
    let (first, other) = ("tidegate-trust-bundle", format!("tidegate-trust-bundle-{}", second.name));
    assert!(bundle(ours, first).is_some() && bundle(theirs, &other).is_some());
    assert_ne!(bundle(ours, first), bundle(theirs, &other));
    assert_eq!((bundle(theirs, first), bundle(ours, &other)), (None, None));
}

/// A namespace changes its mesh: its pods stay in the first one until they are replaced.
fn assert_a_namespace_can_change_its_mesh(second: &Second, ours: &Namespace, theirs: &Namespace) {
    let cluster = second.cluster;
    let (our_client, their_client) = (ours.pod("client"), theirs.pod("client"));
    let other = format!("tidegate-trust-bundle-{}", second.name);
    let moves = Namespace::meshed("moves");
    deploy(&moves);
    let (client, server) = (moves.pod("client"), moves.pod("server"));
    client.get_until(&url(ours), 200);
    cluster.tidegate(["namespace", "remove", moves.name()]);
    let wrong = cluster.try_tidegate(["namespace", "add", theirs.name()]).unwrap_err();
    assert!(wrong.stderr.contains(&format!("it belongs to mesh [{}]", second.name)), "{wrong}");
    second.add(&moves);
    moves.wait_for("the other trust bundle", &["configmap", &other], |_| Some(()));
    our_client.get_until(&url(&moves), 200);
    client.get_until(&url(ours), 200);
    assert!(workloads(cluster, CONTROL_PLANE).is_superset(&keys(&[&client, &server]).into_iter().collect()));
    moves.kubectl(&["rollout", "restart", "deployment"]);
    for deployment in ["deployment/client", "deployment/server"] {
        moves.wait_rolled_out(deployment);
    }
    their_client.get_until(&url(&moves), 200);
    assert_eq!(our_client.get(&url(&moves)), PodOutcome::Refused("reset".to_owned()));
    assert_eq!(control_plane(&moves.pod("server").json()).as_deref(), Some(second.name.as_str()));
}

/// A copy of a pod, including its sidecar, joins the mesh that its namespace is in.
fn assert_a_copied_pod_joins_the_mesh_of_its_namespace(ours: &Namespace, theirs: &Namespace) {
    let mut copy = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "copy"}});
    copy["spec"] = json!({"containers": [{"name": "app", "image": IMAGE, "args": ["serve"]}]});
    let (made, refusals) = theirs.would_make(&[copy]);
    assert_eq!(refusals, Vec::<String>::new());
    let mut copy = made[0].clone();
    copy["metadata"] = json!({"name": "copy", "labels": copy["metadata"]["labels"]});
    let (made, refusals) = ours.would_make(&[copy]);
    assert_eq!(refusals, Vec::<String>::new());
    assert_eq!(control_plane(&made[0]).as_deref(), Some(CONTROL_PLANE));
}

#[test]
fn two_meshes_in_one_cluster_have_nothing_to_do_with_each_other() {
    let second = Second::install();
    let cluster = second.cluster;
    let (ours, theirs) = (Namespace::meshed("ours"), Namespace::new("theirs"));
    second.add(&theirs);
    for namespace in [&ours, &theirs] {
        deploy(namespace);
    }
    let [our_client, our_server] = ["client", "server"].map(|name| ours.pod(name));
    let [their_client, their_server] = ["client", "server"].map(|name| theirs.pod(name));

    // Each controller has its own pods, and none of the other's.
    assert_eq!(control_plane(&our_server.json()).as_deref(), Some(CONTROL_PLANE));
    assert_eq!(control_plane(&their_server.json()).as_deref(), Some(second.name.as_str()));
    let (of_first, of_second) = (workloads(cluster, CONTROL_PLANE), workloads(cluster, &second.name));
    assert_eq!(of_second, keys(&[&their_client, &their_server]).into_iter().collect());
    assert!(keys(&[&our_client, &our_server]).iter().all(|key| of_first.contains(key)), "{of_first:?}");
    assert!(of_first.is_disjoint(&of_second), "{of_first:?}");

    assert_roots_are_separate(&second, &ours, &theirs);

    // A mesh admits all its own workloads, and none of the other's.
    our_client.get_until(&url(&ours), 200);
    their_client.get_until(&url(&theirs), 200);
    let refused = PodOutcome::Refused("reset".to_owned());
    for (client, server, namespace) in
        [(&our_client, &their_server, &theirs), (&their_client, &our_server, &ours)]
    {
        assert_eq!(client.get(&url(namespace)), refused);
        assert_eq!(client.get(&format!("http://{}:8080/get", server.ip())), refused);
    }

    assert_a_namespace_can_change_its_mesh(&second, &ours, &theirs);
    assert_a_copied_pod_joins_the_mesh_of_its_namespace(&ours, &theirs);
    assert_commands_speak_of_their_own_mesh(&second, &ours, &theirs);
    assert_works_without(&second, &ours);
}

fn assert_commands_speak_of_their_own_mesh(second: &Second, ours: &Namespace, theirs: &Namespace) {
    let list: Vec<Value> =
        serde_json::from_str(&second.cluster.tidegate(["mesh", "list", "-o", "json"])).unwrap();
    let namespaces = |mesh: &str| {
        let mesh = list.iter().find(|one| one["mesh"] == mesh).unwrap_or_else(|| panic!("{mesh}: {list:?}"));
        mesh["addedNamespaces"].as_array().unwrap().clone()
    };
    let (first, other) = (namespaces("osm"), namespaces(&second.name));
    assert!(first.contains(&json!(ours.name())) && !first.contains(&json!(theirs.name())), "{first:?}");
    assert!(other.contains(&json!(theirs.name())) && !other.contains(&json!(ours.name())), "{other:?}");

    let status = second.tidegate(&["proxy", "status"]).unwrap();
    assert!(status.contains(theirs.name()) && !status.contains(ours.name()), "{status}");
    let check = second.tidegate(&["check"]).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(!check.contains(ours.name()), "{check}");
}

fn assert_works_without(second: &Second, ours: &Namespace) {
    let cluster = second.cluster;
    let refusal = second.tidegate(&["uninstall", "--yes", "--delete-all"]).unwrap_err();
    assert!(refusal.stderr.contains(&format!("mesh osm in namespace {CONTROL_PLANE}")), "{refusal}");
    second
        .tidegate(&["uninstall", "--yes", "--delete-root", "--delete-mesh-config", "--delete-namespace"])
        .unwrap();
    cluster.wait_until_gone(&["namespace", &second.name]);
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration", "clusterrole"] {
        let names = cluster.kubectl(["get", kind, "-o", "name"]);
        assert!(!names.contains(&second.name) && names.contains("tidegate-"), "{kind}: {names}");
    }

    let (client, server) = (ours.pod("client"), ours.pod("server"));
    assert_eq!(client.get(&url(ours)).status(), 200);
    let policy = json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
        "metadata": {"name": "server"},
        "spec": {
            "backends": [{"name": "server", "port": {"number": 8080, "protocol": "http"}}],
            "sources": [{"kind": "IPRange", "name": "10.99.0.0/16"}],
        },
    });
    ours.apply(&policy.to_string());
    assert_eq!(ours.policy_status("server").0, "committed");
    let mut wrong = policy;
    wrong["spec"]["sources"][0]["name"] = json!("10.99.0.0");
    assert!(ours.try_apply(&wrong.to_string()).is_err(), "the webhook is there");
    ours.kubectl(&["rollout", "restart", "deployment/server"]);
    ours.wait_rolled_out("deployment/server");
    wait::until_true("the new pod is the controller's", ROLLOUT, || {
        let workloads = workloads(cluster, CONTROL_PLANE);
        ours.pods("server")
            .iter()
            .any(|pod| pod.name() != server.name() && keys(&[pod]).iter().all(|key| workloads.contains(key)))
    });
    client.get_until(&url(ours), 200);
}
