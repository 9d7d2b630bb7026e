//! UpstreamTrafficSettings, from a file to what a mesh peer's connection and request get.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;

use http::{HeaderValue, Request};
use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Connection, End, RequestOutcome};
use tidegate_tests::limits::{H2C_PORT, TCP_PORT, group, mesh, peer, setting, status, wait_metric};
use tidegate_tests::mesh::PORT;
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const LIMITED: RequestOutcome = RequestOutcome::Status(429);

/// So many requests an hour and no burst: what is spent does not come back during a test.
fn requests(count: u32) -> Value {
    json!({"requests": count, "unit": "hour"})
}

#[test]
fn requests_over_the_limit_get_its_status_and_fields_whichever_worker_has_them() {
    let mut mesh = mesh();
    let app = App::echo(mesh.app_address());
    let mut limit = requests(9);
    limit["burst"] = 3.into();
    limit["responseStatusCode"] = 503.into();
    limit["responseHeadersToAdd"] = json!([{"name": "X-Limited", "value": "by httpbin"}]);
    mesh.apply("limits", &[setting(json!({"rateLimit": {"local": {"http": limit}}}))]);
    assert_eq!(status(&mesh)[0], "committed");
    let client = peer(&mesh, PORT, "tidegate/h1");
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = client.connect().unwrap();
            thread::spawn(move || {
                let answers = (0..4).map(|_| connection.get("/get").unwrap().status());
                answers.filter(|status| *status == 200).count()
            })
        })
        .collect();
    let allowed: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(allowed, 12, "of 32");
    assert_eq!(app.requests().len(), 12);
    let answer = client.answer("/get");
    assert_eq!((answer.status(), answer.body.as_slice()), (503, &b"local_rate_limited"[..]));
    assert_eq!(answer.value("x-limited"), Some("by httpbin"));
    assert_eq!(answer.value("content-type"), Some("text/plain"));
    wait_metric(&mesh, "tidegate_refused_total{reason=\"request_rate_limited\"} 21");
    wait::until_true("the access log names the flag and the object", SOON, || {
        let log = mesh.sidecar.log();
        log.contains("\"response_flags\":\"RL\"")
            && log.contains("the rate limit of requests is exceeded (UpstreamTrafficSetting httpbin/limits)")
    });
    // A request that ends there leaves its connection open for the next.
    let mut connection = client.connect().unwrap();
    assert_eq!(
        connection.request(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").unwrap().status(),
        503
    );
    assert_eq!(connection.get("/").unwrap().status(), 503);
}

#[test]
fn the_path_of_a_route_group_has_a_limit_of_its_own() {
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let route = json!([{"path": "/books/.*", "rateLimit": {"local": requests(1)}}]);
    let limits = setting(json!({"rateLimit": {"local": {"http": requests(2)}}, "httpRoutes": route}));
    mesh.apply("limits", &[limits, group("/books")]);
    let client = peer(&mesh, PORT, "tidegate/h1");
    let get = |path: &str| client.get(path);
    assert_eq!(status(&mesh)[0], "error");
    assert!(status(&mesh)[1].contains("has a match with pathRegex '/books/.*'"), "{:?}", status(&mesh));
    assert_eq!([get("/books/1"), get("/books/1"), get("/books/1")], [OK, OK, LIMITED], "the Service's");
    let limits = setting(json!({
        "rateLimit": {"local": {"http": requests(3)}},
        "httpRoutes": [{"path": "/books/.*", "rateLimit": {"local": requests(1)}}],
    }));
    mesh.apply("limits", &[limits, group("/books/.*")]);
    assert_eq!(status(&mesh)[0], "committed");
    assert_eq!([get("/books/1"), get("/a/..//books/2"), get("/books")], [OK, LIMITED, OK]);
    assert_eq!([get("/x"), get("/y"), get("/z")], [OK, OK, LIMITED]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_http_2_are_limited_one_by_one() {
    let mut mesh = mesh();
    let _app = H2cApp::start(mesh.app_port(H2C_PORT));
    let mut limit = requests(2);
    limit["responseHeadersToAdd"] = json!([{"name": "x-limited", "value": "yes"}]);
    mesh.apply("limits", &[setting(json!({"rateLimit": {"local": {"http": limit}}}))]);
    let connection = H2Connection::open(&peer(&mesh, H2C_PORT, "tidegate/h2")).await.unwrap();
    for expected in [200, 200, 429] {
        let answer = connection.get("/get").await.unwrap();
        assert_eq!(answer.head.status().as_u16(), expected);
        if expected == 429 {
            assert_eq!(answer.body, b"local_rate_limited");
            assert_eq!(answer.head.headers()["x-limited"], "yes");
        }
    }
    let call = Request::post("https://httpbin.test/a.B/C").header("content-type", "application/grpc");
    let answer = connection.exchange(call.body(()).unwrap(), &[0; 5]).await.unwrap();
    let headers = answer.head.headers();
    assert_eq!(
        (answer.head.status().as_u16(), &headers["grpc-status"]),
        (200, &HeaderValue::from_static("14"))
    );
    assert_eq!(
        (&headers["grpc-message"], &headers["x-limited"]),
        (&"local_rate_limited".parse().unwrap(), &"yes".parse().unwrap())
    );
}

#[test]
fn connections_over_the_limit_are_reset_also_those_of_bytes_and_open_ones_stay() {
    let mut mesh = mesh();
    let _apps = (App::echo(mesh.app_address()), App::tcp_echo(mesh.app_port(TCP_PORT)));
    let tcp = json!({"connections": 1, "unit": "hour", "burst": 1});
    mesh.apply("limits", &[setting(json!({"rateLimit": {"local": {"tcp": tcp}}}))]);
    let echo = |connection: &mut Connection| {
        connection.write(b"ping");
        connection.read_until(b"ping").is_ok()
    };
    let bytes = peer(&mesh, TCP_PORT, "tidegate/tcp");
    let (mut first, mut second) = (bytes.connect().unwrap(), bytes.connect().unwrap());
    assert!(echo(&mut first) && echo(&mut second));
    assert_eq!(bytes.exchange(b"ping", SOON), (vec![], End::Reset));
    assert!(echo(&mut first) && echo(&mut second));
    // A bucket of its own, of connections, not of requests.
    let http = peer(&mesh, PORT, "tidegate/h1");
    let mut open = http.connect().unwrap();
    for _ in 0..5 {
        assert_eq!(open.get("/get").unwrap().status(), 200);
    }
    assert_eq!([http.get("/"), http.get("/")], [OK, RequestOutcome::Refused(End::Reset)]);
    wait_metric(&mesh, "tidegate_refused_total{reason=\"connection_rate_limited\"} 2");
}

#[test]
fn audit_mode_refuses_nothing_and_reports_what_exceeds_a_limit_and_policies_come_first() {
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let tcp = json!({"connections": 1, "unit": "hour"});
    let mut limits = setting(json!({"rateLimit": {"local": {"http": requests(1), "tcp": tcp}}}));
    limits["metadata"]["annotations"] = json!({"tidegate.io/audit": "true"});
    mesh.apply("limits", &[limits]);
    let client = peer(&mesh, PORT, "tidegate/h1");
    assert_eq!([client.get("/"), client.get("/"), client.get("/")], [OK, OK, OK]);
    wait_metric(&mesh, "tidegate_audit_refusals_total{reason=\"request_rate_limited\"} 2");
    wait_metric(&mesh, "tidegate_audit_refusals_total{reason=\"connection_rate_limited\"} 2");
    // What the policy refuses takes no token.
    mesh.apply("limits", &[setting(json!({"rateLimit": {"local": {"http": requests(2)}}}))]);
    mesh.apply("config", &[objects::mesh_config(false)]);
    for _ in 0..3 {
        assert_eq!(client.get("/"), RequestOutcome::Refused(End::Reset));
    }
    mesh.apply("config", &[objects::mesh_config(true)]);
    assert_eq!([client.get("/"), client.get("/"), client.get("/")], [OK, OK, LIMITED]);
}

#[test]
fn a_change_elsewhere_does_not_fill_the_bucket_and_a_new_rate_does() {
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let limit = |count| setting(json!({"rateLimit": {"local": {"http": requests(count)}}}));
    mesh.apply("limits", &[limit(1)]);
    let client = peer(&mesh, PORT, "tidegate/h1");
    assert_eq!([client.get("/"), client.get("/")], [OK, LIMITED]);
    mesh.apply(
        "policy",
        &[objects::policy("p", &[objects::backend("httpbin", PORT, "http")], &[objects::gateway()])],
    );
    assert_eq!(client.get("/"), LIMITED);
    mesh.apply("limits", &[limit(2)]);
    assert_eq!([client.get("/"), client.get("/"), client.get("/")], [OK, OK, LIMITED]);
    mesh.apply("limits", &[]);
    assert_eq!(client.get("/"), OK);
}
