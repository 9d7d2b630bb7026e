//! The endpoints of a ServiceEntry that is part of the mesh: Pods that it selects, their shares, and the identities that they must have.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::dns::DnsServer;
use tidegate_tests::mesh::{Mesh, PORT};
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);

/// An entry of HTTP at port 8080 of this address, with `more` of its fields.
fn entry(dialled: SocketAddr, more: &Value) -> Value {
    let mut entry = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "api", "namespace": "httpbin"},
        "spec": {
            "hosts": ["api.example.com"],
            "addresses": [dialled.ip().to_string()],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{"number": 8080, "name": "http", "protocol": "HTTP", "targetPort": PORT}],
        },
    });
    for (field, value) in more.as_object().unwrap() {
        entry["spec"][field] = value.clone();
    }
    entry
}

fn get(mesh: &Mesh) -> RequestOutcome {
    Client::to(mesh.way_out()).get("/get")
}

#[test]
fn selected_pods_are_reached_by_mutual_tls_where_they_have_a_sidecar_and_come_and_go() {
    let mut mesh = Mesh::start();
    let dialled = mesh.block().at(61, 8080);
    let in_mesh = App::echo(mesh.app_address());
    let mut caller = mesh.caller(&dialled.to_string());
    caller.start_ready();
    mesh.apply("api", &[entry(dialled, &json!({"workloadSelector": {"labels": {"app": "httpbin"}}}))]);
    wait::until_true("the Pod answers", SOON, || get(&mesh) == OK);
    assert!(!in_mesh.requests().is_empty());
    let log = || mesh.sidecar.log().contains("spiffe://cluster.local/ns/httpbin/sa/caller");
    wait::until_true("its sidecar has seen the caller's certificate", SOON, log);

    let other = App::echo(mesh.block().at(62, PORT));
    let without = [("openservicemesh.io/sidecar-injection", "disabled")];
    let mut pod = objects::pod("other", "other", &mesh.block().ip(62).to_string(), &without);
    pod["metadata"]["labels"]["app"] = "httpbin".into();
    pod["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    mesh.apply("pod", std::slice::from_ref(&pod));
    (0..20).for_each(|_| assert_eq!(get(&mesh), OK));
    assert!(other.requests().is_empty(), "it is not ready");
    pod["status"]["conditions"][0]["status"] = "True".into();
    mesh.apply("pod", &[pod]);
    wait::until_true("the other Pod gets its share", SOON, || {
        get(&mesh) == OK && !other.requests().is_empty()
    });
    mesh.remove("pod");
    wait::until_true("it gets nothing any more", SOON, || {
        other.forget();
        (0..20).for_each(|_| assert_eq!(get(&mesh), OK));
        other.requests().is_empty()
    });
}

#[test]
fn endpoints_get_the_shares_of_their_weights() {
    let mut mesh = Mesh::start();
    let dialled = mesh.block().at(61, 8080);
    let apps = [62, 63].map(|host| App::echo(mesh.block().at(host, PORT)));
    let mut caller = mesh.caller(&dialled.to_string());
    caller.start_ready();
    let endpoint = |host, weight| json!({"address": mesh.block().ip(host).to_string(), "weight": weight});
    let endpoints = [endpoint(62, 3), endpoint(63, 0)];
    mesh.apply("api", &[entry(dialled, &json!({"endpoints": endpoints}))]);
    wait::until_true("they answer", SOON, || get(&mesh) == OK);
    apps.iter().for_each(App::forget);
    (0..40).for_each(|_| assert_eq!(get(&mesh), OK));
    assert_eq!(apps.each_ref().map(|app| app.requests().len()), [30, 10]);
}

#[test]
fn a_server_of_the_mesh_must_be_one_of_the_subject_alt_names() {
    let mut mesh = Mesh::start();
    let dialled = mesh.block().at(61, 8080);
    let _app = App::echo(mesh.app_address());
    let dns = DnsServer::start();
    let IpAddr::V4(ip) = mesh.target().ip() else { panic!() };
    dns.set("api.example.com", &[ip]);
    let mut caller = mesh.caller(&dialled.to_string());
    caller = caller.with_further(&format!("--dns-server={}", dns.address()));
    caller.start_ready();
    let of = |account: &str| format!("spiffe://cluster.local/ns/httpbin/sa/{account}");
    let names = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| of(name)).collect();
        json!({"resolution": "DNS", "subjectAltNames": names})
    };
    mesh.apply("api", &[entry(dialled, &names(&["other", "httpbin"]))]);
    wait::until_true("the server is the second one", SOON, || get(&mesh) == OK);
    mesh.apply("api", &[entry(dialled, &names(&["other", "stranger"]))]);
    wait::until_true("the server is another one", SOON, || get(&mesh) == RequestOutcome::Status(503));
    wait::until_true("the log says so", SOON, || {
        caller.log().contains("expected other.httpbin.cluster.local or stranger.httpbin.cluster.local")
    });
    mesh.apply("api", &[entry(dialled, &names(&["httpbin"]))]);
    wait::until_true("the server is this one", SOON, || get(&mesh) == OK);
}
