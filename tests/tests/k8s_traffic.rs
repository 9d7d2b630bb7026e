//! Traffic of the mesh's pods, to each other and to the rest of the cluster.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::json;
use tidegate_tests::capture::capture;
use tidegate_tests::kubernetes::mesh::Mesh;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::PodOutcome;
use tidegate_tests::kubernetes::workload::Workload;

/// Part of every request that must not be readable on the wire.
const MARK: &str = "tidegate-plaintext-mark";

fn server() -> Workload {
    Workload::new("server", &["serve", "--http=8080", "--tcp=9000", "--greet=9025"])
        .port("http", 80, 8080)
        .port("tcp-echo", 9000, 9000)
        .port("tcp-smtp", 9025, 9025)
        .ready_over_http(8080)
}

#[test]
fn meshed_pods_reach_each_other_over_tls_only_and_the_rest_of_the_cluster_as_it_is() {
    let cluster = Mesh::get().cluster();
    let meshed = Namespace::meshed("traffic");
    let plain = Namespace::new("plain");
    server().deploy(&meshed);
    server().deploy(&plain);
    Workload::client("client").deploy(&meshed);
    let (client, server) = (meshed.pod("client"), meshed.pod("server"));
    let path = format!("/get?mark={MARK}");

    let by_service = format!("http://server{path}");
    let by_address = format!("http://{}:8080{path}", server.ip());
    client.get_until(&by_service, 200);
    let seen = capture(cluster.on_node(), MARK, client.ip(), || {
        for url in [&by_service, &by_address] {
            assert_eq!(client.get(url).ok()["args"]["mark"], MARK);
        }
        assert_eq!(client.tcp("server:9000", MARK), Ok(MARK.to_owned()));
    });
    assert!(seen.frames > 20 && seen.found == 0, "plaintext between meshed pods: {seen:?}");

    // To show that the capture works.
    let foreign = format!("http://server.{}{path}", plain.name());
    let seen = capture(cluster.on_node(), MARK, client.ip(), || {
        assert_eq!(client.get(&foreign).ok()["args"]["mark"], MARK);
    });
    assert!(seen.found > 0, "the capture misses what is there: {seen:?}");

    // A server that speaks first, in the mesh and outside of it.
    for host in ["server".to_owned(), format!("server.{}", plain.name())] {
        assert_eq!(client.ask(&["tcp", &format!("{host}:9025")])["answer"], "220 ready", "{host}");
    }
    // The API server, by its Service: it serves TLS itself, so plain HTTP gets its error.
    assert_eq!(client.get("http://kubernetes.default:443/").status(), 400);
}

#[test]
fn a_pod_outside_the_mesh_does_not_get_in_without_a_policy() {
    Mesh::get();
    let meshed = Namespace::meshed("traffic");
    let plain = Namespace::new("plain");
    server().deploy(&meshed);
    Workload::client("client").deploy(&plain);
    let client = plain.pod("client");
    for port in [8080, 9000] {
        let url = format!("http://{}:{port}/get", meshed.pod("server").ip());
        assert_eq!(client.get(&url), PodOutcome::Refused("reset".to_owned()), "{url}");
    }
}

#[test]
fn an_app_reaches_itself_through_its_own_service_and_address() {
    Mesh::get();
    let meshed = Namespace::meshed("traffic");
    server().deploy(&meshed);
    let server = meshed.pod("server");
    for url in [
        "http://server/get".to_owned(),
        format!("http://{}:8080/get", server.ip()),
        "http://127.0.0.1:8080/get".to_owned(),
    ] {
        server.get_until(&url, 200);
    }
}

#[test]
fn members_of_a_stateful_set_reach_each_other_by_their_own_names() {
    Mesh::get();
    let meshed = Namespace::meshed("members");
    let members = Workload::http("members");
    let mut items =
        vec![json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "members"}})];
    items.push(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "members"},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": {"app": "members"},
            "ports": [{"name": "http", "port": 8080, "targetPort": 8080}],
        },
    }));
    items.push(json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "members"},
        "spec": {
            "serviceName": "members",
            "replicas": 3,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "members"}},
            "template": members.template(),
        },
    }));
    meshed.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    meshed.wait_rolled_out("statefulset/members");
    let pods = meshed.pods("members");
    assert_eq!(pods.len(), 3);
    for from in &pods {
        for to in &pods {
            let body = from.get_until(&format!("http://{}.members:8080/hostname", to.name()), 200);
            assert_eq!(body["hostname"], to.name());
        }
    }
}

#[test]
fn a_namespace_that_leaves_the_mesh_is_plain_once_its_pods_are_new() {
    let cluster = Mesh::get().cluster();
    let namespace = Namespace::meshed("leaves");
    let plain = Namespace::new("plain");
    server().deploy(&namespace);
    Workload::client("client").deploy(&plain);
    let client = plain.pod("client");
    let url = format!("http://server.{}/get", namespace.name());
    assert_eq!(client.get(&url), PodOutcome::Refused("reset".to_owned()));
    cluster.tidegate(["namespace", "remove", namespace.name()]);
    namespace.kubectl(&["rollout", "restart", "deployment/server"]);
    namespace.wait_rolled_out("deployment/server");
    client.get_until(&url, 200);
    let pod = namespace.pod("server").json();
    assert_eq!(pod["spec"]["initContainers"], serde_json::Value::Null);
    assert_eq!(pod["status"]["containerStatuses"].as_array().unwrap().len(), 1);
}
