//! SMI's policies: the manifests of docs/smi.md, applied as they are, with permissive mode off.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::mesh::Mesh;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::Pod;
use tidegate_tests::kubernetes::workload::Workload;
use tidegate_tests::wait::{self, SOON};

/// A path that TrafficTarget `buyers` allows.
const BOUGHT: &str = "http://bookstore.bookstore/books-bought";
const DATABASE: &str = "bookstore.bookstore:3306";

/// Permissive mode is off, as the example's MeshConfig says, until this is dropped: other suites use the same mesh.
struct Enforced(&'static Mesh);

impl Enforced {
    /// Applies the files of `examples/smi`, of which one has the MeshConfig.
    fn apply(mesh: &'static Mesh) -> Self {
        let enforced = Self(mesh);
        for file in ["bookstore.yaml", "split.yaml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/smi").join(file);
            mesh.cluster().apply(&fs::read_to_string(path).unwrap());
        }
        enforced
    }
}

impl Drop for Enforced {
    fn drop(&mut self) {
        self.0.patch_config(&json!({"traffic": {"enablePermissiveTrafficPolicyMode": true}}));
    }
}

/// A version of the bookstore: it has the labels that the example's Services select, and answers with its version.
fn bookstore(version: &str) -> Vec<Value> {
    let name = format!("bookstore-{version}");
    let arguments = ["serve", "--http=14001", "--tcp=3306", "--answers=/answers/all.json"];
    let workload = Workload::new("bookstore", &arguments)
        .ready_over_http(14001)
        .container("volumeMounts", json!([{"name": "answers", "mountPath": "/answers"}]))
        .pod("volumes", json!([{"name": "answers", "configMap": {"name": name}}]));
    let mut template = workload.template();
    template["metadata"]["labels"]["version"] = version.into();
    let answers = json!({"/books-bought": version}).to_string();
    let mut items = workload.surroundings();
    items.push(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"all.json": answers},
    }));
    items.push(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": "bookstore", "version": version}}, "template": template},
    }));
    items
}

/// A namespace of this name in the mesh, with a client of this name.
fn client(name: &str) -> (Namespace, Pod) {
    let namespace = Namespace::named(name);
    namespace.join();
    Workload::client(name).deploy(&namespace);
    let pod = namespace.pod(name);
    (namespace, pod)
}

/// Waits until an object of namespace `bookstore` has this `status.currentStatus`.
fn wait_status(cluster: &Cluster, kind: &str, name: &str, expected: &str) {
    cluster.wait_for(expected, &[kind, name, "-n", "bookstore"], |object| {
        (object["status"]["currentStatus"] == *expected).then_some(())
    });
}

/// How many of a hundred requests, one after the other, each version has answered.
fn versions(client: &Pod) -> [usize; 2] {
    let urls: Vec<_> = ["get"].into_iter().chain(std::iter::repeat_n(BOUGHT, 100)).collect();
    let answers = client.ask_all(&urls);
    ["v1", "v2"].map(|version| answers.iter().filter(|answer| answer["body"] == *version).count())
}

#[test]
fn the_example_s_policies_decide_between_pods() {
    let mesh = Mesh::get();
    let cluster = mesh.cluster();
    let store = Namespace::named("bookstore");
    store.join();
    for version in ["v1", "v2"] {
        store.apply(&json!({"apiVersion": "v1", "kind": "List", "items": bookstore(version)}).to_string());
        store.wait_rolled_out(&format!("deployment/bookstore-{version}"));
    }
    let (_buyers, buyer) = client("bookbuyer");
    let (_warehouse, warehouse) = client("bookwarehouse");
    let enforced = Enforced::apply(mesh);

    // What TrafficTargets allow.
    wait_status(cluster, "traffictarget", "buyers", "committed");
    buyer.get_until(BOUGHT, 200);
    buyer.get_until("http://bookstore.bookstore/admin", 403);
    warehouse.get_until(BOUGHT, 403);
    wait::until_true("the warehouse reaches the database", SOON, || {
        warehouse.tcp(DATABASE, "ping") == Ok("ping".to_owned())
    });
    assert!(buyer.tcp(DATABASE, "ping").is_err(), "only HTTP is allowed");

    // What the TrafficSplit makes of it.
    wait_status(cluster, "trafficsplit", "bookstore", "committed");
    wait::until_true("nine of ten requests go to v1", SOON, || versions(&buyer) == [90, 10]);
    cluster.kubectl(["delete", "service", "bookstore-v2", "-n", "bookstore"]);
    wait_status(cluster, "trafficsplit", "bookstore", "error");
    wait::until_true("the share of a backend that is gone is answered with 500", SOON, || {
        versions(&buyer) == [90, 0]
    });
    cluster.kubectl(["delete", "trafficsplit", "bookstore", "-n", "bookstore"]);
    wait::until_true("the Service's own endpoints share the requests", SOON, || {
        let [v1, v2] = versions(&buyer);
        v1 + v2 == 100 && v2 > 10
    });

    // Back in permissive mode, targets have no effect.
    drop(enforced);
    warehouse.get_until(BOUGHT, 200);
    buyer.get_until("http://bookstore.bookstore/admin", 404);
}
