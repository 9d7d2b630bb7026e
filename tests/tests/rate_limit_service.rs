//! Global rate limits: a real server of Envoy's protocol, from the UpstreamTrafficSetting to what a mesh peer gets.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use http::Request;
use serde_json::{Value, json};
use tidegate_proto::rate_limit::rate_limit_response::rate_limit::Unit;
use tidegate_proto::rate_limit::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use tidegate_proto::rate_limit::{Duration, HeaderValue, RateLimitResponse};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::authorizer::{self, Authorizer};
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Connection, End, RequestOutcome};
use tidegate_tests::daemon;
use tidegate_tests::limits::{H2C_PORT, TCP_PORT, group, mesh, peer, setting, status, wait_metric};
use tidegate_tests::mesh::{Mesh, PORT};
use tidegate_tests::objects;
use tidegate_tests::rate_limiter::{LimitOutcome, RateLimiter, over_limit, within_limit};
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const LIMITED: RequestOutcome = RequestOutcome::Status(429);
const FAILED: RequestOutcome = RequestOutcome::Status(500);

/// `rateLimit` with a global limit of requests by this server.
fn limit(server: SocketAddr, settings: Value) -> Value {
    let mut http = json!({
        "rateLimitService": {"host": server.ip(), "port": server.port()},
        "domain": "shop",
        "descriptors": [{"entries": [{"genericKey": {"value": "all"}}]}],
        "timeout": "10s",
    });
    for (key, value) in settings.as_object().unwrap() {
        http[key] = value.clone();
    }
    json!({"global": {"http": http}})
}

/// The same of connections.
fn connection_limit(server: SocketAddr, fail_open: bool) -> Value {
    json!({"global": {"tcp": {
        "rateLimitService": {"host": server.ip(), "port": server.port()},
        "domain": "shop",
        "descriptors": [{"entries": [{"key": "service", "value": "httpbin"}, {"key": "kind", "value": "tcp"}]}],
        "timeout": "10s",
        "failOpen": fail_open,
    }}})
}

fn apply(mesh: &mut Mesh, rate_limit: Value) {
    mesh.apply("limits", &[setting(json!({"rateLimit": rate_limit}))]);
    assert_eq!(status(mesh)[0], "committed", "{:?}", status(mesh));
}

fn request(method: &str, path: &str, fields: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: shop.test\r\n{fields}\r\n").into_bytes()
}

#[test]
fn each_kind_of_entry_describes_requests_and_one_that_is_missing_leaves_its_descriptor_out() {
    let server = RateLimiter::start(|_| within_limit());
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let matching = |headers: Value, expect: bool| json!({"headerValueMatch": {"key": "plan", "value": "gold", "headers": headers, "expectMatch": expect}});
    let descriptors = json!([
        {"entries": [{"genericKey": {"key": "service", "value": "httpbin"}}, {"remoteAddress": {}}]},
        {"entries": [{"requestHeader": {"name": "X-User", "key": "user"}}]},
        {"entries": [{"requestHeader": {"name": ":path", "key": "path"}}, matching(json!([{"name": "x-plan", "prefix": "gold"}]), true)]},
        {"entries": [matching(json!([{"name": "x-plan", "present": true}]), false)]},
    ]);
    apply(&mut mesh, limit(server.address(), json!({"descriptors": descriptors})));
    let mut connection = peer(&mesh, PORT, "tidegate/h1").connect().unwrap();
    let first = format!("service=httpbin,remote_address={}", mesh.stranger());
    for (fields, expected) in [
        ("x-user: alice\r\nx-plan: gold-2\r\n", vec![&*first, "user=alice", "path=/a?b,plan=gold"]),
        ("x-plan: silver\r\n", vec![&*first]),
        ("x-user: a\r\nx-user: b\r\n", vec![&*first, "user=a,b", "plan=gold"]),
    ] {
        assert_eq!(connection.request(&request("GET", "/a?b", fields)).unwrap().status(), 200);
        let (domain, descriptors) = server.calls().pop().unwrap();
        assert_eq!(
            (domain.as_str(), descriptors),
            ("shop", expected.iter().map(ToString::to_string).collect())
        );
    }
    // A request without any descriptor is not limited.
    let descriptors = json!([{"entries": [{"requestHeader": {"name": "x-user", "key": "user"}}]}]);
    apply(&mut mesh, limit(server.address(), json!({"descriptors": descriptors})));
    assert_eq!(connection.request(&request("GET", "/", "")).unwrap().status(), 200);
    assert_eq!(server.calls().len(), 3);
}

#[test]
fn requests_over_the_limit_get_its_status_and_the_connection_stays_open() {
    let server = RateLimiter::counting(2);
    let mut mesh = mesh();
    let app = App::echo(mesh.app_address());
    apply(&mut mesh, limit(server.address(), json!({})));
    let mut connection = peer(&mesh, PORT, "tidegate/h1").connect().unwrap();
    assert_eq!([(); 2].map(|()| connection.get("/").unwrap().status()), [200, 200]);
    let post = b"POST /c HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    let refused = connection.request(post).unwrap();
    assert_eq!((refused.status(), refused.body.as_slice()), (429, &b""[..]));
    assert_eq!(refused.value("x-envoy-ratelimited"), Some("true"));
    assert_eq!(refused.value("content-length"), Some("0"));
    assert_eq!(connection.get("/").unwrap().status(), 429);
    assert_eq!(app.requests().len(), 2);
    apply(&mut mesh, limit(server.address(), json!({"responseStatusCode": 503})));
    assert_eq!(connection.get("/").unwrap().status(), 503);
    wait_metric(&mesh, "tidegate_rate_limit_checks_total{result=\"ok\"} 2");
    wait_metric(&mesh, "tidegate_rate_limit_checks_total{result=\"over_limit\"} 3");
    wait_metric(&mesh, "tidegate_refused_total{reason=\"request_globally_rate_limited\"} 3");
    wait::until_true("the access log has flag, details and object", SOON, || {
        let log = mesh.sidecar.log();
        log.contains("\"response_flags\":\"RL\"")
            && log.contains("\"response_code_details\":\"request_rate_limited\"")
            && log
                .contains("exceeds a limit of the rate limit service (UpstreamTrafficSetting httpbin/limits)")
    });
}

/// Allows `/ok`, and refuses the rest; with fields, a body and what is left.
fn wordy(descriptors: &[String]) -> LimitOutcome {
    let header =
        |key: &str, value: &str| HeaderValue { key: key.into(), value: value.into(), raw_value: vec![] };
    let is_ok = descriptors == ["path=/ok"];
    let limit = RateLimit { requests_per_unit: 10, unit: Unit::Minute.into(), name: "per-path".into() };
    let status = DescriptorStatus {
        code: Code::Ok.into(),
        current_limit: Some(limit),
        limit_remaining: 4,
        duration_until_reset: Some(Duration { seconds: 31, nanos: 0 }),
    };
    LimitOutcome::Answer(RateLimitResponse {
        overall_code: if is_ok { Code::Ok } else { Code::OverLimit }.into(),
        statuses: vec![status],
        response_headers_to_add: vec![header("x-quota", "shop"), header("content-type", "text/html")],
        request_headers_to_add: vec![header("x-tier", "gold")],
        raw_body: b"<p>slow down</p>".to_vec(),
    })
}

#[test]
fn the_service_adds_fields_to_request_and_response_and_chooses_the_body() {
    let server = RateLimiter::start(wordy);
    let mut mesh = mesh();
    let app = App::echo(mesh.app_address());
    let descriptors = json!([{"entries": [{"requestHeader": {"name": ":path", "key": "path"}}]}]);
    let settings = json!({"descriptors": descriptors, "enableXRateLimitHeaders": true});
    apply(&mut mesh, limit(server.address(), settings));
    let mut connection = peer(&mesh, PORT, "tidegate/h1").connect().unwrap();
    let allowed = connection.request(&request("GET", "/ok", "X-Tier: forged\r\n")).unwrap();
    let quota = |answer: &tidegate_tests::http1::Message| {
        ["limit", "remaining", "reset"]
            .map(|name| answer.value(&format!("x-ratelimit-{name}")).unwrap().to_owned())
    };
    assert_eq!((allowed.status(), allowed.value("x-quota")), (200, Some("shop")));
    assert_eq!(quota(&allowed), ["10, 10;w=60;name=\"per-path\"", "4", "31"]);
    assert_eq!(app.requests()[0].values("x-tier"), ["gold"], "a forged copy is replaced");
    let refused = connection.request(&request("GET", "/no", "")).unwrap();
    assert_eq!((refused.status(), refused.body.as_slice()), (429, &b"<p>slow down</p>"[..]));
    assert_eq!(refused.values("content-type"), ["text/html"]);
    assert_eq!(quota(&refused), quota(&allowed));
    let head = connection.request(&request("HEAD", "/no", "")).unwrap();
    assert_eq!((head.status(), head.value("content-length"), head.body.len()), (429, Some("16"), 0));
    assert_eq!(app.requests().len(), 1);
}

#[test]
fn a_service_that_fails_allows_requests_or_refuses_them_as_fail_open_says() {
    let server = RateLimiter::start(|_| LimitOutcome::Fail(13));
    let address = server.address();
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let client = peer(&mesh, PORT, "tidegate/h1");
    apply(&mut mesh, limit(address, json!({})));
    assert_eq!(client.get("/"), OK);
    wait_metric(&mesh, "tidegate_rate_limit_checks_total{result=\"failure_mode_allowed\"} 1");
    apply(&mut mesh, limit(address, json!({"failOpen": false})));
    assert_eq!(client.get("/"), FAILED);
    wait_metric(&mesh, "tidegate_rate_limit_checks_total{result=\"error\"} 2");
    wait::until_true("the access log has flag and details", SOON, || {
        let log = mesh.sidecar.log();
        log.contains("\"response_flags\":\"RLSE\"") && log.contains("rate_limiter_error")
    });
    drop(server);
    assert_eq!(client.get("/"), FAILED, "the service is down");
    let _server = {
        let again = RateLimiter::at(address, |_| within_limit());
        wait::until_true("requests are allowed again", SOON, || client.get("/") == OK);
        again
    };
    wait::until_true("the log says so", SOON, || {
        let log = mesh.sidecar.log();
        log.contains("the rate limit service fails") && log.contains("the rate limit service works again")
    });
}

#[test]
fn a_service_that_is_silent_is_waited_for_as_long_as_the_timeout_says() {
    let server = RateLimiter::start(|_| LimitOutcome::Wait);
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let client = peer(&mesh, PORT, "tidegate/h1");
    apply(&mut mesh, limit(server.address(), json!({"timeout": "100ms", "failOpen": false})));
    assert_eq!(client.get("/"), FAILED);
    apply(&mut mesh, limit(server.address(), json!({"timeout": "100ms"})));
    assert_eq!(client.get("/"), OK);
    wait_metric(&mesh, "tidegate_rate_limit_checks_total{result=\"timeout\"} 2");
    // A name that DNS does not have.
    let unknown = json!({"rateLimitService": {"host": "ratelimit.invalid", "port": 1}, "failOpen": false});
    apply(&mut mesh, limit(server.address(), unknown));
    assert_eq!(client.get("/"), FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_and_grpc_clients_get_the_same_answers() {
    let server = RateLimiter::start(wordy);
    let mut mesh = mesh();
    let app = H2cApp::start(mesh.app_port(H2C_PORT));
    let descriptors = json!([{"entries": [{"requestHeader": {"name": ":path", "key": "path"}}]}]);
    apply(
        &mut mesh,
        limit(server.address(), json!({"descriptors": descriptors, "enableXRateLimitHeaders": true})),
    );
    let connection = H2Connection::open(&peer(&mesh, H2C_PORT, "tidegate/h2")).await.unwrap();
    let allowed = connection.get("/ok").await.unwrap();
    assert_eq!(allowed.head.status().as_u16(), 200);
    assert_eq!(
        (&allowed.head.headers()["x-quota"], &allowed.head.headers()["x-ratelimit-remaining"]),
        (&"shop".parse().unwrap(), &"4".parse().unwrap())
    );
    assert_eq!(app.requests()[0].head.headers()["x-tier"], "gold");
    let refused = connection.get("/no").await.unwrap();
    assert_eq!((refused.head.status().as_u16(), refused.body.as_slice()), (429, &b"<p>slow down</p>"[..]));
    let fields = refused.head.headers();
    assert_eq!(
        (&fields["x-envoy-ratelimited"], &fields["content-type"]),
        (&"true".parse().unwrap(), &"text/html".parse().unwrap())
    );
    let call = Request::post("https://httpbin.test/a.B/C").header("content-type", "application/grpc");
    let answer = connection.exchange(call.body(()).unwrap(), &[0; 5]).await.unwrap();
    let fields = answer.head.headers();
    assert_eq!((answer.head.status().as_u16(), &fields["grpc-status"]), (200, &"14".parse().unwrap()));
    assert_eq!(
        (&fields["grpc-message"], &fields["x-envoy-ratelimited"]),
        (&"<p>slow down</p>".parse().unwrap(), &"true".parse().unwrap())
    );
    assert_eq!(app.requests().len(), 1);
}

#[test]
fn each_connection_is_counted_once_whatever_it_carries() {
    let server = RateLimiter::counting(2);
    let mut mesh = mesh();
    let _apps = (App::echo(mesh.app_address()), App::tcp_echo(mesh.app_port(TCP_PORT)));
    apply(&mut mesh, connection_limit(server.address(), false));
    let echo = |connection: &mut Connection| {
        connection.write(b"ping");
        connection.read_until(b"ping").is_ok()
    };
    let bytes = peer(&mesh, TCP_PORT, "tidegate/tcp");
    let mut first = bytes.connect().unwrap();
    assert!(echo(&mut first) && echo(&mut first));
    let http = peer(&mesh, PORT, "tidegate/h1");
    let mut open = http.connect().unwrap();
    assert_eq!([(); 3].map(|()| open.get("/get").unwrap().status()), [200; 3]);
    assert_eq!(bytes.exchange(b"ping", SOON), (vec![], End::Reset));
    assert_eq!(http.get("/"), RequestOutcome::Refused(End::Reset));
    assert!(echo(&mut first));
    let call = ("shop".to_owned(), vec!["service=httpbin,kind=tcp".to_owned()]);
    assert_eq!(server.calls(), vec![call; 4]);
    wait_metric(&mesh, "tidegate_refused_total{reason=\"connection_globally_rate_limited\"} 2");
    let address = server.address();
    drop(server);
    assert_eq!(bytes.exchange(b"ping", SOON), (vec![], End::Reset), "the service is down");
    wait_metric(&mesh, "tidegate_refused_total{reason=\"rate_limit_service_failed\"} 1");
    apply(&mut mesh, connection_limit(address, true));
    assert!(echo(&mut bytes.connect().unwrap()));
}

#[test]
fn a_route_has_descriptors_of_its_own_and_local_limits_come_first() {
    let server =
        RateLimiter::start(
            |descriptors| {
                if descriptors == ["generic_key=books"] { over_limit() } else { within_limit() }
            },
        );
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let books = json!({"descriptors": [{"entries": [{"genericKey": {"value": "books"}}]}]});
    let mut rate_limit = limit(server.address(), json!({}));
    rate_limit["local"] = json!({"http": {"requests": 3, "unit": "hour"}});
    let routes = json!([{"path": "/books/.*", "rateLimit": {"global": books}}]);
    let spec = setting(json!({"rateLimit": rate_limit, "httpRoutes": routes}));
    mesh.apply("limits", &[spec, group("/books/.*")]);
    assert_eq!(status(&mesh)[0], "committed", "{:?}", status(&mesh));
    let client = peer(&mesh, PORT, "tidegate/h1");
    assert_eq!(
        [client.get("/a/..//books/1"), client.get("/x"), client.get("/books/2")],
        [LIMITED, OK, LIMITED]
    );
    let called = || server.calls().into_iter().flat_map(|(_, descriptors)| descriptors).collect::<Vec<_>>();
    assert_eq!(called(), ["generic_key=books", "generic_key=all", "generic_key=books"]);
    assert_eq!(client.answer("/x").body, b"local_rate_limited", "no token is left");
    assert_eq!(called().len(), 3, "what exceeds a local limit is not counted");
    wait::until_true("the log names the route", SOON, || {
        mesh.sidecar
            .log()
            .contains("the request for \\\"/books/.*\\\" exceeds a limit of the rate limit service")
    });
}

#[test]
fn limits_come_before_the_external_authorization_and_audit_mode_refuses_nothing() {
    let server = RateLimiter::start(wordy);
    let authorizer = Authorizer::start(|request| match request.headers.get("x-tier").map(String::as_str) {
        Some("gold") => authorizer::deny(401, &[], "log in first"),
        _ => authorizer::allow(),
    });
    let mut mesh = mesh();
    let app = App::echo(mesh.app_address());
    let mut config = objects::mesh_config(true);
    let (address, port) = (authorizer.address().ip(), authorizer.address().port());
    config["spec"]["traffic"]["inboundExternalAuthorization"] =
        json!({"enable": true, "address": address, "port": port, "timeout": "10s"});
    mesh.apply("config", &[config]);
    let descriptors = json!([{"entries": [{"requestHeader": {"name": ":path", "key": "path"}}]}]);
    let rate_limit = limit(server.address(), json!({"descriptors": descriptors}));
    apply(&mut mesh, rate_limit.clone());
    let client = peer(&mesh, PORT, "tidegate/h1");
    assert_eq!(client.get("/no"), LIMITED);
    assert_eq!(authorizer.checks().len(), 0, "a limited request is not authorized");
    let denied = client.answer("/ok");
    assert_eq!((denied.status(), denied.value("x-quota")), (401, Some("shop")));

    let mut audit = setting(json!({"rateLimit": rate_limit}));
    audit["metadata"]["annotations"] = json!({"tidegate.io/audit": "true"});
    mesh.apply("limits", &[audit]);
    let answer = client.answer("/no");
    assert_eq!((answer.status(), answer.value("x-quota")), (200, None));
    assert!(app.requests().pop().unwrap().value("x-tier").is_none());
    wait_metric(&mesh, "tidegate_audit_refusals_total{reason=\"request_globally_rate_limited\"} 1");
    wait::until_true("the access log reports it", SOON, || {
        mesh.sidecar.log().contains("audit mode; otherwise refused: the request exceeds a limit")
    });
}

#[test]
fn a_mistake_is_in_the_status_with_its_field_and_a_service_that_cannot_be_called_has_failed() {
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let client = peer(&mesh, PORT, "tidegate/h1");
    let server = "127.0.0.1:1".parse().unwrap();
    for (settings, reason, outcome) in [
        (
            json!({"rateLimitService": {"host": "a b", "port": 1}, "failOpen": false}),
            "spec.rateLimit.global.http.rateLimitService.host: ",
            FAILED,
        ),
        (json!({"timeout": "soon"}), "spec.rateLimit.global.http.timeout: ", OK),
        (
            json!({"descriptors": [{"entries": [{}]}]}),
            "spec.rateLimit.global.http.descriptors[0].entries[0]: must have exactly one of",
            OK,
        ),
        (
            json!({"rateLimitService": {"host": "limiter.httpbin.svc.cluster.local", "port": 1}}),
            "spec.rateLimit.global.http.rateLimitService.host: Service httpbin/limiter does not exist",
            OK,
        ),
    ] {
        mesh.apply("limits", &[setting(json!({"rateLimit": limit(server, settings)}))]);
        let [current, why] = status(&mesh);
        assert!(current == "error" && why.starts_with(reason), "{why}");
        assert_eq!(client.get("/"), outcome, "{reason}");
    }
}

#[test]
fn the_documentation_s_example_limits_requests_and_is_explained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/global-limits");
    let example = fs::read_to_string(folder.join("bookstore.yaml")).unwrap();
    let page = include_str!("../../docs/limits.md");
    let section = page.split("## Global limits").nth(1).unwrap();
    let shown = section.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(example.contains(shown), "{shown}");
    let command: Vec<_> =
        section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap().split_whitespace().collect();
    let arguments = command.iter().filter(|word| **word != "\\").skip(1);
    let root = folder.ancestors().nth(2).unwrap();
    let output = Command::new(daemon::ours("tidegate")).args(arguments).current_dir(root).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = section.lines().find(|line| line.starts_with("requests for ")).unwrap();
    assert!(said.contains(line), "{said}");

    // The same limits, of this mesh's Service and with the address of a server of this test.
    let server = RateLimiter::counting(1);
    let mut mesh = mesh();
    let _app = App::echo(mesh.app_address());
    let setting = example.split("---\n").find(|part| part.contains("UpstreamTrafficSetting")).unwrap();
    let (address, port) = (server.address().ip().to_string(), format!("port: {}", server.address().port()));
    let setting =
        setting.replace("ratelimit.ratelimit.svc.cluster.local", &address).replace("port: 8081", &port);
    let setting = setting
        .replace("name: bookstore", "name: limits")
        .replace("namespace: bookstore", "namespace: httpbin");
    let setting = setting.replace("bookstore.bookstore.svc", "httpbin.httpbin.svc").replace("100ms", "10s");
    mesh.apply_text("limits", &format!("{setting}---\n{}", group("/buy-a-book/.*")));
    assert_eq!(status(&mesh)[0], "committed", "{:?}", status(&mesh));
    let mut connection = peer(&mesh, PORT, "tidegate/h1").connect().unwrap();
    let mut ask = |path, fields| connection.request(&request("GET", path, fields)).unwrap().status();
    let alice = "x-user: alice\r\n";
    assert_eq!(
        [ask("/books", alice), ask("/books", alice), ask("/books", "x-user: bob\r\n")],
        [200, 429, 200]
    );
    assert_eq!([ask("/books", ""), ask("/buy-a-book/1", ""), ask("/buy-a-book/2", alice)], [200, 200, 429]);
}
