//! TrafficTargets, from a file to what a mesh peer's connection and request get.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Client, End, RequestOutcome};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects;
use tidegate_tests::outside;
use tidegate_tests::pki::{Credentials, Leaf};
use tidegate_tests::wait::{self, SOON};

const TCP_PORT: u16 = 14002;
const H2C_PORT: u16 = 14004;
const OK: RequestOutcome = RequestOutcome::Status(200);
const FORBIDDEN: RequestOutcome = RequestOutcome::Status(403);
const RESET: RequestOutcome = RequestOutcome::Refused(End::Reset);
/// An open connection ends this soon after its policy.
const LIMIT: Duration = Duration::from_secs(1);

fn mesh() -> Mesh {
    let ports = vec![(TCP_PORT, "tcp-echo"), (H2C_PORT, "grpc-api")];
    let mut mesh = Mesh::with(Options { ports, ..Options::default() });
    mesh.apply("config", &[objects::mesh_config(false)]);
    mesh
}

fn target(name: &str, rules: &[Value], sources: &[&str]) -> Value {
    let account = |name: &&str| json!({"kind": "ServiceAccount", "name": name, "namespace": "shop"});
    json!({
        "apiVersion": "access.smi-spec.io/v1alpha3",
        "kind": "TrafficTarget",
        "metadata": {"name": name, "namespace": "httpbin"},
        "spec": {
            "destination": {"kind": "ServiceAccount", "name": "httpbin", "namespace": "httpbin"},
            "rules": rules,
            "sources": sources.iter().map(account).collect::<Vec<_>>(),
        },
    })
}

fn books(matches: &[&str]) -> Value {
    json!({"kind": "HTTPRouteGroup", "name": "books", "matches": matches})
}

fn group(get: &str) -> Value {
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "HTTPRouteGroup",
        "metadata": {"name": "books", "namespace": "httpbin"},
        "spec": {"matches": [
            {"name": "get", "pathRegex": get, "methods": ["GET"]},
            {"name": "new", "methods": ["GET"], "headers": {"x-version": "2.*"}},
        ]},
    })
}

fn tcp_route(ports: &[u16]) -> Value {
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "TCPRoute",
        "metadata": {"name": "ports", "namespace": "httpbin"},
        "spec": {"matches": {"ports": ports}},
    })
}

fn credentials(mesh: &Mesh, account: &str) -> Arc<Credentials> {
    Arc::new(mesh.sign(&Leaf::workload("shop", account)))
}

/// The sidecar of a Pod with this service account of namespace `shop`, as its peer sees it.
fn peer(mesh: &Mesh, account: &str, port: u16, protocol: &str) -> Client {
    let tls = mesh.tls().protocols(&[protocol]).credentials(credentials(mesh, account));
    Client::to(mesh.target_port(port)).from(mesh.stranger()).tls(tls)
}

/// `currentStatus`, `reason` and first warning of an object.
fn status(mesh: &Mesh, kind: &str, name: &str) -> [String; 3] {
    let found = mesh.status_of(kind, name);
    [&found["currentStatus"], &found["reason"], &found["warnings"][0]]
        .map(|text| text.as_str().unwrap_or_default().to_owned())
}

fn metric(mesh: &Mesh, line: &str) -> bool {
    let page = mesh.sidecar.admin_get("/metrics").unwrap();
    String::from_utf8_lossy(&page.body).contains(line)
}

#[test]
fn each_request_of_a_peer_is_decided_and_the_app_gets_the_path_that_was_compared() {
    let mut mesh = mesh();
    let app = App::echo(mesh.app_address());
    let client = |mesh: &Mesh, account: &str| peer(mesh, account, PORT, "tidegate/h1");
    assert_eq!(client(&mesh, "buyer").get("/books/1"), RESET, "no target");

    mesh.apply("smi", &[target("books", &[books(&["get"])], &["buyer"]), group("/books/.*")]);
    assert_eq!(status(&mesh, "TrafficTarget", "books")[0], "committed");
    let mut connection = client(&mesh, "buyer").connect().unwrap();
    for (path, expected) in [
        ("/books/1", 200),
        ("/admin", 403),
        ("/books/../admin", 403),
        ("/books/..;/admin", 400),
        ("/x/..//books/%31?a=%41", 200),
    ] {
        let mut other = client(&mesh, "buyer").connect().unwrap();
        let connection = if expected == 400 { &mut other } else { &mut connection };
        let answer = connection.get(path).unwrap();
        assert_eq!(answer.status(), expected, "{path}");
        if expected == 403 {
            assert_eq!(answer.body, b"RBAC: access denied");
        }
    }
    let post = connection.request(b"POST /books/1 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").unwrap();
    assert_eq!(post.status(), 403);
    let received = String::from_utf8_lossy(&app.received()).into_owned();
    let lines: Vec<_> =
        received.lines().filter(|line| line.starts_with("GET ") || line.starts_with("POST ")).collect();
    assert_eq!(lines, ["GET /books/1 HTTP/1.1", "GET /books/1?a=%41 HTTP/1.1"]);
    assert_eq!(client(&mesh, "thief").get("/books/1"), FORBIDDEN, "another service account");
    assert_eq!(
        peer(&mesh, "buyer", PORT, "tidegate/tcp").get("/books/1"),
        RESET,
        "bytes that are not parsed"
    );
    wait::until_true("the log says why", SOON, || {
        mesh.sidecar.log().contains("carries bytes that are not parsed as HTTP")
    });
    wait::until_true("refused requests are counted", SOON, || {
        metric(&mesh, "tidegate_refused_total{reason=\"request_not_allowed\"} 3")
    });
    // A match of header fields alone, and a union with another target.
    mesh.apply("more", &[target("new", &[books(&["new"])], &["thief"])]);
    let mut thief = client(&mesh, "thief").connect().unwrap();
    for (version, expected) in [("2.1", 200), ("1", 403)] {
        let request = format!("GET /any HTTP/1.1\r\nhost: a\r\nX-Version: {version}\r\n\r\n");
        assert_eq!(thief.request(request.as_bytes()).unwrap().status(), expected);
    }
    assert_eq!(connection.get("/books/2").unwrap().status(), 200, "the other one is still in force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_http_2_are_decided_one_by_one() {
    let mut mesh = mesh();
    let app = H2cApp::start(mesh.app_port(H2C_PORT));
    mesh.apply("smi", &[target("books", &[books(&[])], &["buyer"]), group("/books/.*")]);
    let connection = H2Connection::open(&peer(&mesh, "buyer", H2C_PORT, "tidegate/h2")).await.unwrap();
    for (path, expected) in
        [("/books/1", 200), ("/admin", 403), ("/a/../books/2", 200), ("/books/..;/x", 400)]
    {
        assert_eq!(connection.get(path).await.unwrap().head.status().as_u16(), expected, "{path}");
    }
    drop(app);
}

#[test]
fn a_connection_ends_when_a_request_that_it_was_granted_no_longer_is() {
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    mesh.apply("smi", &[target("books", &[books(&["get"])], &["buyer", "payer"]), group("/(books|stream)")]);
    let open = |account: &str, path: &str| {
        let mut connection = peer(&mesh, account, PORT, "tidegate/h1").connect().unwrap();
        connection.write(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
        connection
    };
    let mut stream = open("buyer", "/stream");
    stream.read_until(b"tick").unwrap();
    let mut idle = peer(&mesh, "payer", PORT, "tidegate/h1").connect().unwrap();
    assert_eq!(idle.get("/books").unwrap().status(), 200);
    mesh.apply("smi", &[target("books", &[books(&["get"])], &["buyer", "payer"]), group("/books")]);
    let start = std::time::Instant::now();
    assert!(!matches!(stream.end(SOON), End::StillOpen));
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
}

#[test]
fn a_tcp_route_lets_a_peer_s_bytes_through_two_sidecars_and_without_it_they_are_reset() {
    let mut mesh = mesh();
    let _app = App::tcp_echo(mesh.app_port(TCP_PORT));
    let mut caller = mesh.caller("10.96.0.10:80");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "called", "namespace": "httpbin"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "tcp-echo", "port": 80, "targetPort": TCP_PORT}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "called-1", "namespace": "httpbin", "labels": {"kubernetes.io/service-name": "called"}},
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [mesh.target_port(TCP_PORT).ip().to_string()],
            "targetRef": {"kind": "Pod", "name": "httpbin", "namespace": "httpbin"},
        }],
        "ports": [{"name": "tcp-echo", "port": TCP_PORT}],
    });
    mesh.apply("service", &[service, slice]);
    caller.start_ready();
    let way_out = Client::to(mesh.way_out());
    let echoed = || way_out.exchange(b"ping", Duration::from_millis(500)).0 == b"ping";
    assert!(!echoed(), "no target");
    let mut open_to = |ports: &[u16], namespace: &str| {
        let mut target = target("tcp", &[json!({"kind": "TCPRoute", "name": "ports"})], &["caller"]);
        target["spec"]["sources"][0]["namespace"] = namespace.into();
        mesh.apply("smi", &[target, tcp_route(ports)]);
    };
    open_to(&[TCP_PORT], "httpbin");
    wait::until_true("the caller is admitted", SOON, echoed);
    assert!(outside::tls_is_echoed(way_out.target, "app.example"), "TLS of the app's own, such as gRPC's");
    let mut open = way_out.connect().unwrap();
    open.write(b"ping");
    open.read_until(b"ping").unwrap();
    open_to(&[PORT], "httpbin");
    assert_ne!(open.end(SOON), End::StillOpen);
    assert!(!echoed(), "another port");
    open_to(&[TCP_PORT], "shop");
    assert!(!echoed(), "a service account of another namespace");
    open_to(&[], "httpbin");
    wait::until_true("every port is open to the caller", SOON, echoed);
}

#[test]
fn permissive_mode_and_audit_mode_refuse_nothing_and_audit_mode_reports_what_would_be_refused() {
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let get = |mesh: &Mesh, account: &str, path: &str| peer(mesh, account, PORT, "tidegate/h1").get(path);
    let mut audited = target("books", &[books(&["get"])], &["buyer"]);
    mesh.apply("smi", &[audited.clone(), group("/books/.*")]);
    mesh.apply("config", &[objects::mesh_config(true)]);
    assert_eq!(get(&mesh, "thief", "/admin"), OK);
    assert!(status(&mesh, "TrafficTarget", "books")[2].starts_with("permissive mode is on"));
    assert!(!metric(&mesh, "tidegate_audit_refusals_total{"));

    audited["metadata"]["annotations"] = json!({"tidegate.io/audit": "true"});
    mesh.apply("smi", &[audited, group("/books/.*")]);
    for (count, is_permissive) in [(1, true), (2, false)] {
        mesh.apply("config", &[objects::mesh_config(is_permissive)]);
        assert_eq!(get(&mesh, "buyer", "/books/1"), OK);
        assert_eq!(get(&mesh, "buyer", "/admin"), OK);
        assert_eq!(get(&mesh, "thief", "/books/1"), OK);
        for reason in ["request_not_allowed", "peer_not_allowed"] {
            let line = format!("tidegate_audit_refusals_total{{reason=\"{reason}\"}} {count}");
            wait::until_true(&line, SOON, || metric(&mesh, &line));
        }
    }
    wait::until_true("the access log says what would be refused", SOON, || {
        mesh.sidecar
            .log()
            .contains("allowed: audit mode; otherwise refused: the mesh peer is not among the sources")
    });
}

#[test]
fn a_target_with_a_missing_reference_allows_nothing_and_says_so() {
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    mesh.apply("smi", &[target("books", &[books(&["get"])], &["buyer"])]);
    assert_eq!(
        status(&mesh, "TrafficTarget", "books")[..2],
        ["error".to_owned(), "HTTPRouteGroup httpbin/books does not exist".to_owned()]
    );
    let get = |mesh: &Mesh| peer(mesh, "buyer", PORT, "tidegate/h1").get("/books/1");
    assert_eq!(get(&mesh), FORBIDDEN);
    wait::until_true("it is counted", SOON, || {
        metric(&mesh, "tidegate_refused_total{reason=\"invalid_rule\"} 1")
    });
    mesh.apply("group", &[group("/books/.*")]);
    assert_eq!(get(&mesh), OK);
}
