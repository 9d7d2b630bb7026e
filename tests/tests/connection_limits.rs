//! `connectionSettings` of UpstreamTrafficSettings, from a file to what an app gets of a Service, through two sidecars.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;

use http::{HeaderValue, Request};
use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Connection, End, RequestOutcome};
use tidegate_tests::mesh::Options;
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const OVERFLOW: &[u8] = b"upstream connect error or disconnect/reset before headers. reset reason: overflow";

/// Limits the clients of the Service.
fn apply(story: &mut CallerMesh, settings: &Value) {
    let setting = json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "UpstreamTrafficSetting",
        "metadata": {"name": "limits", "namespace": "httpbin"},
        "spec": {"host": "called.httpbin.svc.cluster.local", "connectionSettings": settings},
    });
    story.mesh.apply("limits", &[setting]);
}

/// Limits them, and waits until the caller's sidecar, which has reached the Service, has these limits.
fn limit(story: &mut CallerMesh, settings: &Value) {
    apply(story, settings);
    let (tcp, http) = (&settings["tcp"], &settings["http"]);
    let expected: Vec<_> = [tcp, http].into_iter().filter_map(Value::as_object).flatten().collect();
    wait::until_true("the caller's sidecar has the limits", SOON, || {
        let limits = reference(story)["limits"].clone();
        expected.iter().all(|(name, value)| limits[name.as_str()] == **value)
    });
}

/// The Service's backend, as the caller's sidecar shows it.
fn reference(story: &CallerMesh) -> Value {
    let config = story.caller.admin_json("/config");
    let references = config["references"].as_array().unwrap();
    let is_backend = |known: &&Value| known["name"].as_str().unwrap().starts_with("backend/");
    references.iter().find(is_backend).cloned().unwrap_or_default()
}

/// Waits until the caller's access log and metrics have these words.
#[track_caller]
fn wait_told(story: &CallerMesh, details: &str, limit: &str) {
    let line = format!("tidegate_requests_limited_total{{limit=\"{limit}\"}}");
    wait::until_true("the caller's access log and metrics name the limit", SOON, || {
        let log = story.caller.log();
        let metrics = story.caller.admin_get("/metrics").unwrap();
        log.lines().any(|line| {
            line.contains(&format!("\"response_code_details\":\"{details}\""))
                && line.contains("\"response_flags\":\"UO\"")
        }) && String::from_utf8_lossy(&metrics.body).contains(&line)
    });
}

#[test]
fn a_client_has_no_more_requests_in_flight_than_the_service_allows() {
    let mut story = CallerMesh::start(Options::default());
    let app = App::start(story.mesh.app_address(), |conversation| {
        while let Some(request) = conversation.request()? {
            if request.target() == "/held" && !conversation.hold()? {
                return Ok(());
            }
            conversation.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        }
        Ok(())
    });
    assert_eq!(story.app().get("/"), OK);
    limit(&mut story, &json!({"http": {"maxRequests": 1}}));
    let client = story.app();
    let held = thread::spawn(move || client.get("/held"));
    app.wait_for_requests(2);
    assert_eq!(reference(&story)["inUse"]["requests"], 1);
    let answer = story.app().answer("/");
    assert_eq!((answer.status(), answer.body.as_slice()), (503, OVERFLOW));
    wait_told(&story, "upstream_reset_before_response_started{max_requests_overflow}", "max_requests");
    limit(&mut story, &json!({"http": {"maxRequests": 2}}));
    assert_eq!(story.app().get("/"), OK);
    app.release();
    assert_eq!(held.join().unwrap(), OK);
    limit(&mut story, &json!({"http": {"maxRequests": 1}}));
    wait::until_true("nothing is in flight", SOON, || reference(&story)["inUse"]["requests"] == 0);
    assert_eq!(story.app().get("/"), OK);
}

#[test]
fn no_request_waits_for_a_connection_where_none_may() {
    let mut story = CallerMesh::start(Options::default());
    let app = App::echo(story.mesh.app_address());
    apply(&mut story, &json!({"http": {"maxPendingRequests": 0}}));
    let answer = story.app().answer("/");
    assert_eq!((answer.status(), answer.body.as_slice()), (503, OVERFLOW));
    let details = "upstream_reset_before_response_started{max_pending_requests_overflow}";
    wait_told(&story, details, "max_pending_requests");
    assert!(app.requests().is_empty());
}

#[test]
fn what_may_not_be_retried_is_answered_as_it_failed_with_a_flag() {
    let mut story = CallerMesh::start(Options::default());
    let app = App::answering(
        story.mesh.app_address(),
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
    );
    let retry = json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "Retry",
        "metadata": {"name": "retry", "namespace": "httpbin"},
        "spec": {
            "source": {"kind": "ServiceAccount", "name": "caller", "namespace": "httpbin"},
            "destinations": [{"kind": "Service", "name": "called", "namespace": "httpbin"}],
            "retryPolicy": {"retryOn": "5xx", "numRetries": 1, "retryBackoffBaseInterval": "1ms"},
        },
    });
    story.mesh.apply("retries", &[retry]);
    wait::until_true("the caller's sidecar has the Retry", SOON, || {
        !story.caller.admin_json("/config")["policy"]["retries"][0].is_null()
    });
    let failed = RequestOutcome::Status(503);
    assert_eq!((story.app().get("/"), app.requests().len()), (failed, 2));
    limit(&mut story, &json!({"http": {"maxRetries": 0}}));
    assert_eq!((story.app().get("/"), app.requests().len()), (RequestOutcome::Status(503), 3));
    wait_told(&story, "via_upstream", "max_retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_grpc_beyond_the_limit_is_unavailable() {
    let mut story = CallerMesh::calling("grpc", Options { port_name: "grpc", ..Options::default() });
    let _app = H2cApp::start(story.mesh.app_address());
    let call = async |connection: &H2Connection| {
        let call = Request::post("http://called/a.B/C").header("content-type", "application/grpc");
        connection.exchange(call.body(()).unwrap(), &[0; 5]).await.unwrap()
    };
    let connection = H2Connection::open(&story.app()).await.unwrap();
    assert_eq!(call(&connection).await.body, [0; 5]);
    limit(&mut story, &json!({"tcp": {"maxConnections": 1}, "http": {"maxRequests": 0}}));
    let answer = call(&connection).await;
    let headers = answer.head.headers();
    assert_eq!(
        (answer.head.status().as_u16(), &headers["grpc-status"]),
        (200, &HeaderValue::from_static("14"))
    );
    assert_eq!(headers["grpc-message"].as_bytes(), OVERFLOW);
    wait_told(&story, "upstream_reset_before_response_started{max_requests_overflow}", "max_requests");
    limit(&mut story, &json!({"tcp": {"maxConnections": 1}, "http": {"maxRequests": 1}}));
    assert_eq!(call(&connection).await.body, [0; 5]);
}

#[test]
fn a_client_has_no_more_connections_of_bytes_than_the_service_allows() {
    let mut story = CallerMesh::calling("tcp-echo", Options { port_name: "tcp-echo", ..Options::default() });
    let _app = App::tcp_echo(story.mesh.app_address());
    let echo = |connection: &mut Connection| {
        connection.write(b"ping");
        connection.read_until(b"ping").is_ok()
    };
    assert!(echo(&mut story.app().connect().unwrap()));
    limit(&mut story, &json!({"tcp": {"maxConnections": 1}}));
    let mut first = story.app().connect().unwrap();
    assert!(echo(&mut first));
    assert_eq!(story.app().exchange(b"ping", SOON), (vec![], End::Reset));
    wait_told(&story, "upstream_max_connections", "max_connections");
    assert!(echo(&mut first));
    drop(first);
    wait::until_true("a place is free again", SOON, || reference(&story)["inUse"]["connections"] == 0);
    assert!(echo(&mut story.app().connect().unwrap()));
}
