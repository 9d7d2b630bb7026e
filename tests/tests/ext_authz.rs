//! External authorization: a real server of Envoy's protocol, from the MeshConfig to what a client gets.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use http::Request;
use serde_json::{Value, json};
use tidegate_proto::external_authorization::attribute_context::HttpRequest;
use tidegate_proto::external_authorization::{BoolValue, HeaderValueOption, OkHttpResponse, QueryParameter};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::authorizer::{Authorizer, CheckOutcome, allow, allow_with, deny, header};
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::daemon;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{self, backend, gateway, policy, range};
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const FORBIDDEN: RequestOutcome = RequestOutcome::Status(403);
const H2C_PORT: u16 = 14004;

/// A mesh whose gateway is admitted, and whose requests this server authorizes, with further settings.
fn mesh(server: SocketAddr, settings: Value) -> Mesh {
    let sidecar_arguments = vec!["--half-close-timeout=1s".to_owned()];
    let ports = vec![(H2C_PORT, "grpc-api")];
    let mut mesh = Mesh::with(Options { ports, sidecar_arguments, ..Options::default() });
    let backends = [backend("httpbin", PORT, "http"), backend("httpbin", H2C_PORT, "http")];
    mesh.apply("ingress", &[policy("ingress", &backends, &[gateway()])]);
    apply_config(&mut mesh, server, settings);
    mesh
}

fn apply_config(mesh: &mut Mesh, server: SocketAddr, settings: Value) {
    mesh.apply("config", &[config(server, settings)]);
}

fn config(server: SocketAddr, settings: Value) -> Value {
    let mut config = objects::mesh_config(true);
    let mut external =
        json!({"enable": true, "address": server.ip(), "port": server.port(), "timeout": "10s"});
    for (key, value) in settings.as_object().unwrap() {
        external[key] = value.clone();
    }
    config["spec"]["traffic"]["inboundExternalAuthorization"] = external;
    config
}

/// Allows what has this token, and denies the rest with a page.
fn token(request: &HttpRequest) -> CheckOutcome {
    match request.headers.get("authorization").map(String::as_str) {
        Some("Bearer good") => allow(),
        _ => deny(
            401,
            &[("www-authenticate", "Bearer"), ("set-cookie", "a=1"), ("set-cookie", "b=2")],
            "log in first",
        ),
    }
}

fn metric(mesh: &Mesh, line: &str) -> bool {
    let page = mesh.sidecar.admin_get("/metrics").unwrap();
    String::from_utf8_lossy(&page.body).contains(line)
}

fn get(path: &str, token: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: shop.test\r\nauthorization: Bearer {token}\r\n\r\n").into_bytes()
}

#[test]
fn a_request_is_answered_by_the_app_or_by_the_server_on_one_connection() {
    let server = Authorizer::start(token);
    let mesh = mesh(server.address(), json!({}));
    let app = App::echo(mesh.app_address());
    let mut connection = mesh.client().connect().unwrap();
    assert_eq!(connection.request(&get("/a", "good")).unwrap().status(), 200);
    let refused = connection.request(&get("/b", "bad")).unwrap();
    assert_eq!((refused.status(), refused.body.as_slice()), (401, &b"log in first"[..]));
    assert_eq!(refused.value("www-authenticate"), Some("Bearer"));
    assert_eq!(refused.values("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(
        (refused.value("content-type"), refused.value("content-length")),
        (Some("text/plain"), Some("12"))
    );
    let post = b"POST /c HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    assert_eq!(connection.request(post).unwrap().status(), 401, "its body is read over");
    let post = b"POST /d HTTP/1.1\r\nhost: a\r\nauthorization: Bearer good\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    assert_eq!(connection.request(post).unwrap().status(), 200);
    assert_eq!(connection.request(&get("/e", "good")).unwrap().status(), 200);
    let targets: Vec<_> = app.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(targets, ["/a", "/d", "/e"]);
    assert_eq!(app.requests()[1].body, b"body");
    wait::until_true("results are counted", SOON, || {
        metric(&mesh, "tidegate_external_authorizations_total{result=\"ok\"} 3")
            && metric(&mesh, "tidegate_external_authorizations_total{result=\"denied\"} 2")
            && metric(&mesh, "tidegate_refused_total{reason=\"externally_denied\"} 2")
    });
    wait::until_true("the access log has flag and details", SOON, || {
        let log = mesh.sidecar.log();
        log.contains("\"UAEX\"") && log.contains("ext_authz_denied")
    });
}

#[test]
fn the_server_gets_what_the_app_would_get() {
    let server = Authorizer::start(|_| allow());
    let mesh = mesh(server.address(), json!({}));
    let app = App::echo(mesh.app_address());
    let mut connection = mesh.client().connect().unwrap();
    let request =
        b"POST /a/../b?c=%41 HTTP/1.1\r\nHost: shop.test\r\nX-Twice: 1\r\nx-twice: 2\r\ncookie: a=b\r\n\
        x-forwarded-client-cert: forged\r\nConnection: x-hop\r\nx-hop: 1\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(connection.request(request).unwrap().status(), 200);
    let [check] = server.checks().try_into().unwrap();
    let http = check.request.unwrap().http.unwrap();
    assert_eq!((http.method.as_str(), http.path.as_str()), ("POST", "/a/../b?c=%41"));
    assert_eq!((http.host.as_str(), http.protocol.as_str(), http.size), ("shop.test", "HTTP/1.1", 2));
    for (name, value) in [
        (":method", "POST"),
        (":path", "/a/../b?c=%41"),
        (":authority", "shop.test"),
        ("x-twice", "1,2"),
        ("cookie", "a=b"),
        ("x-forwarded-for", &mesh.gateway().to_string()),
        ("x-forwarded-proto", "http"),
        ("x-request-id", &http.id),
    ] {
        assert_eq!(http.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    for name in ["x-forwarded-client-cert", "x-hop", "connection", "host"] {
        assert!(!http.headers.contains_key(name), "{name}");
    }
    assert_eq!(app.requests()[0].value("x-request-id"), Some(http.id.as_str()), "the app gets the same ID");
    let address = |peer: Option<tidegate_proto::external_authorization::attribute_context::Peer>| {
        peer.unwrap().address.unwrap().socket_address.unwrap()
    };
    assert_eq!(check.destination.as_ref().unwrap().principal, "spiffe://cluster.local/ns/httpbin/sa/httpbin");
    assert_eq!(address(check.source).address, mesh.gateway().to_string());
    assert_eq!(address(check.destination).port_value, u32::from(PORT));
}

#[test]
fn the_server_changes_the_request_and_the_response() {
    let append = |option| HeaderValueOption { append: Some(BoolValue { value: true }), ..option };
    let server = Authorizer::start(move |_| {
        let parameter = |key: &str, value: &str| QueryParameter { key: key.into(), value: value.into() };
        allow_with(OkHttpResponse {
            headers: vec![
                header("x-user", "alice"),
                append(header("x-group", "b")),
                header("host", "evil.test"),
                header("content-length", "99"),
            ],
            headers_to_remove: vec!["authorization".into(), "Host".into()],
            response_headers_to_add: vec![header("x-checked", "yes"), header("content-type", "text/html")],
            query_parameters_to_set: vec![parameter("user", "al ice")],
            query_parameters_to_remove: vec!["secret".into()],
        })
    });
    let mesh = mesh(server.address(), json!({}));
    let app = App::echo(mesh.app_address());
    let request = b"POST http://shop.test/x?secret=1&a=b HTTP/1.1\r\nHost: shop.test\r\nX-User: admin\r\nx-group: a\r\n\
        authorization: secret\r\ncontent-length: 2\r\n\r\nhi";
    let answer = mesh.client().connect().unwrap().request(request).unwrap();
    assert_eq!((answer.status(), answer.value("x-checked")), (200, Some("yes")));
    assert_eq!(answer.values("content-type"), ["text/html"]);
    let [received] = app.requests().try_into().unwrap();
    assert_eq!(received.target(), "/x?a=b&user=al%20ice");
    assert_eq!(received.values("x-user"), ["alice"], "a forged copy is replaced");
    assert_eq!(received.values("x-group"), ["a", "b"]);
    assert_eq!((received.values("host"), received.values("authorization")), (vec!["shop.test"], vec![]));
    assert_eq!((received.values("content-length"), received.body.as_slice()), (vec!["2"], &b"hi"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_and_grpc_clients_get_the_same_decisions() {
    let server = Authorizer::start(|request| match request.path.as_str() {
        "/edited" => allow_with(OkHttpResponse {
            headers: vec![header("x-user", "alice")],
            response_headers_to_add: vec![header("x-checked", "yes")],
            ..OkHttpResponse::default()
        }),
        _ => deny(401, &[("x-why", "no token")], "log in: 100% needed"),
    });
    let mesh = mesh(server.address(), json!({}));
    let app = H2cApp::start(mesh.app_port(H2C_PORT));
    let client = Client::to(mesh.target_port(H2C_PORT)).from(mesh.gateway());
    let connection = H2Connection::open(&client).await.unwrap();

    let allowed = connection.get("/edited").await.unwrap();
    assert_eq!(
        (allowed.head.status().as_u16(), &allowed.head.headers()["x-checked"]),
        (200, &"yes".parse().unwrap())
    );
    assert_eq!(app.requests()[0].head.headers()["x-user"], "alice");

    let refused = connection.get("/other").await.unwrap();
    assert_eq!((refused.head.status().as_u16(), refused.body.as_slice()), (401, &b"log in: 100% needed"[..]));
    assert_eq!(refused.head.headers()["x-why"], "no token");

    let call = Request::post("https://httpbin.test/s/m").header("content-type", "application/grpc");
    let call = connection.exchange(call.body(()).unwrap(), b"\0\0\0\0\0").await.unwrap();
    let fields = call.head.headers();
    assert_eq!((call.head.status().as_u16(), call.body.as_slice()), (200, &b""[..]));
    assert_eq!(
        (&fields["grpc-status"], &fields["grpc-message"]),
        (&"16".parse().unwrap(), &"log in: 100%25 needed".parse().unwrap())
    );
    assert_eq!(fields["content-type"], "application/grpc");
    assert_eq!(
        connection.get("/edited").await.unwrap().head.status().as_u16(),
        200,
        "the connection goes on"
    );
    assert_eq!(app.requests().len(), 2);
}

#[test]
fn a_check_that_fails_refuses_or_allows_as_the_mesh_config_says() {
    let server = Authorizer::start(|request| match request.path.as_str() {
        "/slow" => CheckOutcome::Wait,
        "/fails" => CheckOutcome::Fail(14),
        "/invalid" => allow_with(OkHttpResponse {
            headers: vec![header("x-user", "a\r\nb: c")],
            ..OkHttpResponse::default()
        }),
        _ => allow(),
    });
    let mut mesh = mesh(server.address(), json!({"timeout": "100ms"}));
    let _app = App::echo(mesh.app_address());
    let status = |mesh: &Mesh, path: &str| mesh.client().get(path);
    for path in ["/slow", "/fails", "/invalid"] {
        assert_eq!(status(&mesh, path), FORBIDDEN, "{path}");
    }
    assert_eq!(status(&mesh, "/"), OK);
    wait::until_true("failures are counted", SOON, || {
        metric(&mesh, "tidegate_external_authorizations_total{result=\"timeout\"} 1")
            && metric(&mesh, "tidegate_external_authorizations_total{result=\"error\"} 2")
            && metric(&mesh, "tidegate_refused_total{reason=\"external_authorization_failed\"} 3")
    });
    apply_config(&mut mesh, server.address(), json!({"timeout": "100ms", "failureModeAllow": true}));
    for path in ["/slow", "/fails", "/invalid"] {
        assert_eq!(status(&mesh, path), OK, "{path}");
    }
    wait::until_true("requests that passed without an answer are counted", SOON, || {
        metric(&mesh, "tidegate_external_authorizations_total{result=\"failure_mode_allowed\"} 3")
    });
}

#[test]
fn a_server_that_is_down_is_a_failure_and_is_used_again_when_it_is_back() {
    let first = Authorizer::start(|_| allow());
    let address = first.address();
    let mesh = mesh(address, json!({"timeout": "1s"}));
    let _app = App::echo(mesh.app_address());
    assert_eq!(mesh.client().get("/"), OK);
    drop(first);
    wait::until_true("requests are refused", SOON, || mesh.client().get("/") == FORBIDDEN);
    let _second = Authorizer::at(address, |_| allow());
    wait::until_true("requests are allowed again", SOON, || mesh.client().get("/") == OK);
    wait::until_true("both are logged", SOON, || {
        let log = mesh.sidecar.log();
        log.contains("external authorization fails") && log.contains("external authorization works again")
    });
}

#[test]
fn a_client_that_leaves_cancels_its_check() {
    let server = Authorizer::start(|_| CheckOutcome::Wait);
    let mesh = mesh(server.address(), json!({"timeout": "60s"}));
    let app = App::echo(mesh.app_address());
    let mut connection = mesh.client().connect().unwrap();
    connection.write(&get("/", "good"));
    wait::until_true("the check has begun", SOON, || server.checks().len() == 1);
    drop(connection);
    wait::until_true("the check is cancelled", SOON, || server.cancelled() == 1);
    assert!(app.requests().is_empty());
    wait::until_true("the access log says so", SOON, || {
        mesh.sidecar.log().contains("downstream_half_close_timeout")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_cancels_its_check() {
    let server = Authorizer::start(|_| CheckOutcome::Wait);
    let mesh = mesh(server.address(), json!({"timeout": "60s"}));
    let app = H2cApp::start(mesh.app_port(H2C_PORT));
    let client = Client::to(mesh.target_port(H2C_PORT)).from(mesh.gateway());
    let connection = H2Connection::open(&client).await.unwrap();
    let mut requests = connection.requests.clone().ready().await.unwrap();
    let request = Request::get("https://httpbin.test/").body(()).unwrap();
    let (_, mut stream) = requests.send_request(request, true).unwrap();
    wait::until_true("the check has begun", SOON, || server.checks().len() == 1);
    stream.send_reset(h2::Reason::CANCEL);
    wait::until_true("the check is cancelled", SOON, || server.cancelled() == 1);
    assert!(app.requests().is_empty());
}

#[test]
fn what_the_policy_refuses_is_not_checked() {
    let server = Authorizer::start(|_| allow());
    let mut mesh = mesh(server.address(), json!({}));
    let _app = App::echo(mesh.app_address());
    let backends = [backend("httpbin", PORT, "http")];
    mesh.apply("ingress", &[policy("ingress", &backends, &[gateway(), range("192.0.2.0/24")])]);
    let target = Client::to(mesh.target()).from(mesh.stranger());
    assert_ne!(target.get("/"), OK);
    assert!(server.checks().is_empty());
    assert_eq!(mesh.client().get("/"), OK);
    assert_eq!(server.checks().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_mode_forwards_requests_as_they_were_sent_and_reports_what_would_be_refused() {
    let server = Authorizer::start(token);
    let mut audit = config(server.address(), json!({"timeout": "500ms"}));
    audit["metadata"]["annotations"] = json!({"tidegate.io/audit": "true"});
    let mut mesh = mesh(server.address(), json!({}));
    let app = App::echo(mesh.app_address());
    mesh.apply("config", &[audit.clone()]);
    let post = b"POST /a HTTP/1.1\r\nhost: a\r\nauthorization: Bearer bad\r\ncontent-length: 4\r\n\r\nbody";
    let mut connection = mesh.client().connect().unwrap();
    assert_eq!(connection.request(post).unwrap().status(), 200);
    assert_eq!(connection.request(&get("/b", "good")).unwrap().status(), 200);
    let seen: Vec<_> =
        app.requests().iter().map(|request| (request.target().to_owned(), request.text())).collect();
    assert_eq!(seen, [("/a", "body"), ("/b", "")].map(|(path, body)| (path.to_owned(), body.to_owned())));
    let calls = H2cApp::start(mesh.app_port(H2C_PORT));
    let client = Client::to(mesh.target_port(H2C_PORT)).from(mesh.gateway());
    let http2 = H2Connection::open(&client).await.unwrap();
    assert_eq!(http2.get("/c").await.unwrap().head.status(), 200);
    assert_eq!(calls.requests().len(), 1);
    drop(server);
    assert_eq!(mesh.client().get("/d"), OK, "its check fails");
    audit["spec"]["traffic"]["inboundExternalAuthorization"] = json!({"enable": true, "address": "opa"});
    mesh.apply("config", &[audit]);
    assert_eq!(mesh.client().get("/e"), OK, "no server is configured");
    wait::until_true("what would be refused is counted", SOON, || {
        [
            ("externally_denied", 2),
            ("external_authorization_failed", 1),
            ("external_authorization_invalid", 1),
        ]
        .iter()
        .all(|(reason, count)| {
            metric(&mesh, &format!("tidegate_audit_refusals_total{{reason=\"{reason}\"}} {count}"))
        })
    });
    wait::until_true("the log says so", SOON, || {
        mesh.sidecar.log().contains("allowed: audit mode; otherwise refused")
    });
}

#[test]
fn a_setting_without_a_server_refuses_every_request_and_says_so() {
    let mut mesh = mesh("127.0.0.1:1".parse().unwrap(), json!({}));
    let _app = App::echo(mesh.app_address());
    let mut config = objects::mesh_config(true);
    config["spec"]["traffic"]["inboundExternalAuthorization"] = json!({"enable": true, "address": "opa"});
    mesh.apply("config", &[config]);
    assert_eq!(mesh.client().get("/"), FORBIDDEN);
    wait::until_true("the reason is counted", SOON, || {
        metric(&mesh, "tidegate_refused_total{reason=\"external_authorization_invalid\"} 1")
    });
    let policies = mesh.controller.admin_json("/policies").to_string();
    assert!(policies.contains("spec.traffic.inboundExternalAuthorization.port: must be set"), "{policies}");
}

/// Allows what has a body with this word in it.
fn polite(request: &HttpRequest) -> CheckOutcome {
    let is_polite =
        request.body.contains("please") || request.raw_body.windows(6).any(|word| word == b"please");
    if is_polite { allow() } else { deny(403, &[], "say please") }
}

/// The body that the server got in its last check, and whether it was only the beginning.
fn checked_body(server: &Authorizer) -> (String, bool) {
    let http = server.checks().pop().unwrap().request.unwrap().http.unwrap();
    let partial = http.headers["x-envoy-auth-partial-body"] == "true";
    (http.body + &String::from_utf8(http.raw_body).unwrap(), partial)
}

#[test]
fn the_server_gets_the_body_up_to_its_bound_and_the_app_all_of_it() {
    let server = Authorizer::start(polite);
    let mut mesh = mesh(server.address(), json!({"includeRequestBodyInCheck": {"maxRequestBytes": 16}}));
    let app = App::echo(mesh.app_address());
    let mut connection = mesh.client().connect().unwrap();
    let post =
        |fields: &str, body: &str| format!("POST /x HTTP/1.1\r\nhost: a\r\n{fields}\r\n{body}").into_bytes();
    let whole = post("content-length: 16\r\n", "please, my books");
    assert_eq!(connection.request(&whole).unwrap().status(), 200);
    assert_eq!(checked_body(&server), ("please, my books".into(), false));
    let chunked = post("transfer-encoding: chunked\r\n", "3\r\nple\r\n4;x=y\r\nase!\r\n0\r\n\r\n");
    assert_eq!(connection.request(&chunked).unwrap().status(), 200);
    assert_eq!(checked_body(&server), ("please!".into(), false));
    assert_eq!(connection.request(&post("content-length: 4\r\n", "gimm")).unwrap().status(), 403);
    assert_eq!(connection.request(&post("content-length: 0\r\n", "")).unwrap().status(), 403);
    let bodies: Vec<_> = app.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b"please, my books".to_vec(), b"please!".to_vec()]);

    let checks = server.checks().len();
    let longer = post("content-length: 17\r\n", "please, my books!");
    assert_eq!(mesh.client().connect().unwrap().request(&longer).unwrap().status(), 413);
    let malformed = post("transfer-encoding: chunked\r\n", "zz\r\n");
    assert_eq!(mesh.client().connect().unwrap().request(&malformed).unwrap().status(), 400);
    assert_eq!(server.checks().len(), checks, "neither is checked");
    wait::until_true("the refusal is logged", SOON, || {
        mesh.sidecar.log().contains("ext_authz_body_too_large")
    });

    let settings = json!({"maxRequestBytes": 6, "allowPartialMessage": true, "packAsBytes": true});
    apply_config(&mut mesh, server.address(), json!({"includeRequestBodyInCheck": settings}));
    app.forget();
    let mut connection = mesh.client().connect().unwrap();
    assert_eq!(connection.request(&longer).unwrap().status(), 200);
    assert_eq!(checked_body(&server), ("please".into(), true));
    assert_eq!(app.requests()[0].body, b"please, my books!");
}

#[test]
fn a_client_that_waits_sends_its_body_and_one_that_is_late_fails_its_check() {
    let server = Authorizer::start(polite);
    let settings = json!({"includeRequestBodyInCheck": {"maxRequestBytes": 100}, "timeout": "500ms"});
    let mesh = mesh(server.address(), settings);
    let _app = App::echo(mesh.app_address());
    let head = "POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n";
    let mut connection = mesh.client().connect().unwrap();
    connection.write(head.as_bytes());
    connection.read_until(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    connection.write(b"please");
    connection.read_until(b"HTTP/1.1 200 OK\r\n").unwrap();

    let mut connection = mesh.client().connect().unwrap();
    let head = "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nple";
    assert_eq!(connection.request(head.as_bytes()).unwrap().status(), 403);
    assert_eq!(server.checks().len(), 1);
    wait::until_true("the timeout is counted", SOON, || {
        metric(&mesh, "tidegate_external_authorizations_total{result=\"timeout\"} 1")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_gets_the_body_of_a_request_over_http2() {
    let server = Authorizer::start(polite);
    let settings = json!({"maxRequestBytes": 1000, "allowPartialMessage": false});
    let mut mesh = mesh(server.address(), json!({"includeRequestBodyInCheck": settings}));
    let app = H2cApp::start(mesh.app_port(H2C_PORT));
    let client = Client::to(mesh.target_port(H2C_PORT)).from(mesh.gateway());
    let connection = H2Connection::open(&client).await.unwrap();
    let post = || Request::post("http://httpbin.test/x").body(()).unwrap();
    let exact = format!("please{}", " ".repeat(994));
    let allowed = connection.exchange(post(), exact.as_bytes()).await.unwrap();
    assert_eq!((allowed.head.status().as_u16(), allowed.body.as_slice()), (200, exact.as_bytes()));
    assert_eq!(checked_body(&server), (exact.clone(), false));
    assert_eq!(app.requests()[0].body, exact.as_bytes());
    let refused = connection.exchange(post(), &[b'x'; 1000]).await.unwrap();
    assert_eq!(refused.head.status().as_u16(), 403);
    let longer = connection.exchange(post(), &[b'x'; 1001]).await.unwrap();
    assert_eq!(longer.head.status().as_u16(), 413);

    let settings = json!({"maxRequestBytes": 1000, "allowPartialMessage": true});
    apply_config(&mut mesh, server.address(), json!({"includeRequestBodyInCheck": settings}));
    let large = exact.repeat(300);
    let allowed = connection.exchange(post(), large.as_bytes()).await.unwrap();
    assert!(allowed.body == large.as_bytes(), "{} bytes", allowed.body.len());
    assert_eq!(checked_body(&server), (exact, true));
}

#[test]
fn the_documentation_s_example_authorizes_requests_and_is_explained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/external-authorization");
    let example = fs::read_to_string(folder.join("mesh-config.yaml")).unwrap();
    let page = include_str!("../../docs/external-authorization.md");
    let shown = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let shown = shown.trim_start_matches("spec:\n  traffic:\n");
    assert!(example.contains(shown), "{shown}");
    let command = page.lines().find(|line| line.starts_with("tidegate explain")).unwrap();
    let arguments = command.split_whitespace().skip(1);
    let root = folder.ancestors().nth(2).unwrap();
    let output = Command::new(daemon::ours("tidegate")).args(arguments).current_dir(root).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("opa.opa.svc.cluster.local:9191 decides within 1s"), "{said}");

    // The same MeshConfig, with the address of a server of this test.
    let server = Authorizer::start(token);
    let mut mesh = mesh(server.address(), json!({}));
    let (address, port) = (server.address().ip().to_string(), format!("port: {}", server.address().port()));
    let example = example.replace("opa.opa.svc.cluster.local", &address).replace("port: 9191", &port);
    mesh.apply_text("config", &example);
    let app = App::echo(mesh.app_address());
    let mut connection = mesh.client().connect().unwrap();
    assert_eq!(connection.request(&get("/a", "good")).unwrap().status(), 200);
    assert_eq!(connection.request(&get("/b", "bad")).unwrap().status(), 401);
    assert_eq!((app.requests().len(), server.checks().len()), (1, 2));
}
