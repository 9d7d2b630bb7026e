//! Open connections when something changes: one that is no longer admitted ends within a second, one that still is
//! stays open; and a terminating sidecar lets requests in flight finish.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Client, Connection, End, RequestOutcome, Tls};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{self, backend, https, policy, principal, range};
use tidegate_tests::pki::{INGRESS_CLIENT, Leaf};
use tidegate_tests::wait::{self, SOON};

const TCP_PORT: u16 = 14002;
const GREETING_PORT: u16 = 14003;
const H2C_PORT: u16 = 14004;
/// The product's promise.
const LIMIT: Duration = Duration::from_secs(1);
const UPGRADE: &[u8] = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn mesh() -> Mesh {
    Mesh::with(Options {
        ports: vec![(TCP_PORT, "tcp-echo"), (GREETING_PORT, "tcp-server-first"), (H2C_PORT, "grpc-api")],
        ..Options::default()
    })
}

/// Admits these addresses at every port; HTTP at 14001.
fn let_in(mesh: &mut Mesh, addresses: &[std::net::IpAddr]) {
    let sources: Vec<_> = addresses.iter().map(|address| range(&format!("{address}/32"))).collect();
    let backends = [
        backend("httpbin", PORT, "http"),
        backend("httpbin", TCP_PORT, "tcp"),
        backend("httpbin", GREETING_PORT, "tcp"),
        backend("httpbin", H2C_PORT, "http"),
    ];
    mesh.apply("policy", &[policy("httpbin", &backends, &sources)]);
}

fn websocket(client: &Client) -> Connection {
    let mut connection = client.connect().unwrap();
    connection.write(UPGRADE);
    connection.read_until(b"\r\n\r\n").unwrap();
    echo(&mut connection);
    connection
}

/// Sends bytes and receives them back.
#[track_caller]
fn echo(connection: &mut Connection) {
    connection.write(b"ping");
    connection.read_until(b"ping").unwrap();
}

/// A connection that is cut off may end without `close_notify`: the client learns that something is missing.
fn has_ended(end: &End) -> bool {
    matches!(end, End::Closed | End::Truncated | End::Reset)
}

#[test]
fn open_connections_end_when_the_policy_no_longer_admits_them_and_others_stay_open() {
    let mut mesh = mesh();
    let _apps = (
        App::echo(mesh.app_address()),
        App::tcp_echo(mesh.app_port(TCP_PORT)),
        App::server_first(mesh.app_port(GREETING_PORT), b"220 hello\r\n"),
    );
    let (good, bad) = (mesh.gateway(), mesh.stranger());
    let_in(&mut mesh, &[good, bad]);
    let open = |source| {
        let at = |port| Client::to(mesh.target_port(port)).from(source);
        let mut http = at(PORT).connect().unwrap();
        assert_eq!(http.get("/get").unwrap().status(), 200);
        let mut stream = at(PORT).connect().unwrap();
        stream.write(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.read_until(b"tick").unwrap();
        let socket = websocket(&at(PORT));
        let mut raw = at(TCP_PORT).connect().unwrap();
        echo(&mut raw);
        let mut greeted = at(GREETING_PORT).connect().unwrap();
        greeted.read_until(b"220 hello\r\n").unwrap();
        echo(&mut greeted);
        [
            ("keep-alive", http),
            ("stream", stream),
            ("websocket", socket),
            ("tcp", raw),
            ("server first", greeted),
        ]
    };
    let (mut kept, ended) = (open(good), open(bad));

    let_in(&mut mesh, &[good]);
    let start = Instant::now();
    let threads = ended.map(|(what, mut connection)| {
        thread::spawn(move || {
            let end = connection.end(SOON);
            (what, end, start.elapsed())
        })
    });
    for thread in threads {
        let (what, end, elapsed) = thread.join().unwrap();
        assert!(has_ended(&end), "{what}: {end:?}");
        assert!(elapsed < LIMIT, "{what}: {elapsed:?}");
    }
    wait::until_true("the grace of a revoked connection is over", SOON, || start.elapsed() > LIMIT);
    for (what, connection) in &mut kept {
        match *what {
            "keep-alive" => assert_eq!(connection.get("/get").unwrap().status(), 200),
            "stream" => drop(connection.read_until(b"tick").unwrap()),
            _ => echo(connection),
        }
    }
    for port in [PORT, TCP_PORT, GREETING_PORT] {
        let (bytes, end) =
            Client::to(mesh.target_port(port)).from(bad).exchange(b"GET / HTTP/1.1\r\n\r\n", SOON);
        assert_eq!((bytes, end), (Vec::new(), End::Reset), "new ones at {port}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_http_2_connection_ends_when_it_is_no_longer_admitted_and_another_stays_open() {
    let mut mesh = mesh();
    let app = H2cApp::start(mesh.app_port(H2C_PORT));
    let (good, bad) = (mesh.gateway(), mesh.stranger());
    let_in(&mut mesh, &[good, bad]);
    let client = Client::to(mesh.target_port(H2C_PORT));
    let kept = H2Connection::open(&client.clone().from(good)).await.unwrap();
    let ended = H2Connection::open(&client.from(bad)).await.unwrap();
    for connection in [&kept, &ended] {
        assert_eq!(connection.get("/a").await.unwrap().head.status(), 200);
    }
    // This one has an open stream: it sends no end.
    let request = http::Request::post("https://httpbin.test/b").body(()).unwrap();
    let (response, _send) =
        ended.requests.clone().ready().await.unwrap().send_request(request, false).unwrap();

    let_in(&mut mesh, &[good]);
    let closed = tokio::time::timeout(LIMIT, async {
        let _ = ended.closed().await;
        response.await.unwrap_err()
    });
    closed.await.expect("ends within a second");
    assert_eq!(kept.get("/c").await.unwrap().head.status(), 200);
    assert_eq!(app.requests().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_that_is_no_longer_allowed_ends_its_connections_or_gets_403() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    let rule = |name: &str| policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(name)]);
    mesh.apply("policy", &[rule(INGRESS_CLIENT)]);
    let mut http1 = mesh.tls_client().connect().unwrap();
    assert_eq!(http1.get("/get").unwrap().status(), 200);
    let mut socket = websocket(&mesh.tls_client());
    let tls = mesh.tls().protocols(&["h2"]).credentials(mesh.gateway_credentials());
    let http2 = H2Connection::open(&mesh.client().tls(tls)).await.unwrap();
    assert_eq!(http2.get("/get").await.unwrap().head.status(), 200);

    mesh.apply("policy", &[rule("somebody.else")]);
    app.forget();
    // Whichever happens first: the answer to the next request, or the end.
    match http1.get("/get") {
        Ok(answer) => assert_eq!(answer.status(), 403),
        Err(end) => assert!(has_ended(&end), "{end:?}"),
    }
    if let Ok(answer) = http2.get("/get").await {
        assert_eq!(answer.head.status(), 403);
    }
    let end = socket.end(LIMIT);
    assert!(has_ended(&end), "websocket: {end:?}");
    assert!(app.received().is_empty());
    assert_eq!(mesh.tls_client().get("/get"), RequestOutcome::Status(403));
}

#[test]
fn a_policy_that_is_removed_ends_what_it_let_in() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", PORT, "http")], &[])]);
    let mut connection = mesh.client().connect().unwrap();
    assert_eq!(connection.get("/get").unwrap().status(), 200);
    mesh.remove("policy");
    let end = connection.end(LIMIT);
    assert!(has_ended(&end), "{end:?}");
    assert_eq!(mesh.client().get("/get"), RequestOutcome::Refused(End::Reset));
}

#[test]
fn a_broken_file_changes_nothing_until_it_is_whole_again() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    let rule = policy("httpbin", &[backend("httpbin", PORT, "http")], &[]);
    mesh.apply("policy", std::slice::from_ref(&rule));
    let mut connection = mesh.client().connect().unwrap();
    assert_eq!(connection.get("/get").unwrap().status(), 200);
    mesh.write_objects("policy", &format!("{rule}\n---\nkind: [\n"));
    wait::until_true("the controller says what is wrong", SOON, || {
        let problems = mesh.controller.admin_json("/problems").to_string();
        problems.contains("policy.yaml") && problems.contains("error")
    });
    mesh.wait_acknowledged();
    assert_eq!(connection.get("/get").unwrap().status(), 200);
    mesh.apply("policy", &[]);
    let end = connection.end(LIMIT);
    assert!(has_ended(&end), "{end:?}");
}

#[test]
fn a_terminating_sidecar_lets_what_is_in_flight_finish() {
    let mut mesh = mesh();
    let app = App::echo(mesh.app_address());
    let gateway = mesh.gateway();
    let_in(&mut mesh, &[gateway]);
    let mut idle = mesh.client().connect().unwrap();
    assert_eq!(idle.get("/get").unwrap().status(), 200);
    let mut late = mesh.client().connect().unwrap();
    assert_eq!(late.get("/get").unwrap().status(), 200);
    let mut busy = mesh.client().connect().unwrap();
    busy.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    app.wait_for_requests(3);

    mesh.sidecar.signal(Signal::TERM);
    wait::until_true("no new connection is taken", SOON, || mesh.client().connect().is_err());
    let last = late.get("/get").unwrap();
    assert_eq!(last.status(), 200, "a client that has not heard of it loses nothing");
    assert!(last.closes(), "{:?}", last.fields);
    assert_eq!(late.end(SOON), End::Closed);
    assert_eq!(idle.end(SOON), End::Closed, "an idle connection ends soon");
    assert!(mesh.sidecar.exited().is_none(), "a request is in flight");
    app.release();
    let answer = busy.response(tidegate_tests::http1::MessageKind::Response).unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.closes(), "{:?}", answer.fields);
    let status = wait::until("the sidecar ends", SOON, || mesh.sidecar.exited());
    assert!(status.success(), "{status}");
}

#[test]
fn a_terminating_sidecar_lets_its_app_call_out_until_the_last_request_to_it_is_answered() {
    let mut story = CallerMesh::start(Options::default());
    let _called = App::echo(story.mesh.app_address());
    let app = App::echo(story.mesh.app_port(PORT + 1000));
    story.mesh.apply("calling", &[objects::service("calling", "caller", &[(PORT + 1000, "http")])]);
    let credentials = Arc::new(story.mesh.sign(&Leaf::workload("httpbin", "httpbin")));
    let tls = Tls::new(story.mesh.roots(), "caller.httpbin.cluster.local").protocols(&["tidegate/h1"]);
    let address = std::net::SocketAddr::new(story.mesh.way_out().ip(), PORT);
    let client = Client::to(address).from(story.mesh.stranger()).tls(tls.credentials(credentials));
    let mut busy = client.connect().unwrap();
    busy.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    app.wait_for_requests(1);

    story.caller.signal(Signal::TERM);
    wait::until_true("no new connection to the app is taken", SOON, || client.connect().is_err());
    // What the app does for the request that it has, also on new connections.
    for _ in 0..3 {
        assert_eq!(story.app().get("/get"), RequestOutcome::Status(200));
    }
    assert!(story.caller.exited().is_none(), "a request is in flight");
    app.release();
    let answer = busy.response(tidegate_tests::http1::MessageKind::Response).unwrap();
    assert_eq!(answer.status(), 200);
    let status = wait::until("the sidecar ends", SOON, || story.caller.exited());
    assert!(status.success(), "{status}");
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let mut mesh = Mesh::with(Options {
        sidecar_arguments: ["--drain-timeout", "1s"].map(str::to_owned).to_vec(),
        ..Options::default()
    });
    let app = App::echo(mesh.app_address());
    let gateway = mesh.gateway();
    let_in(&mut mesh, &[gateway]);
    let mut busy = mesh.client().connect().unwrap();
    busy.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    app.wait_for_requests(1);
    let start = Instant::now();
    mesh.sidecar.signal(Signal::TERM);
    wait::until("the sidecar ends", SOON, || mesh.sidecar.exited());
    let elapsed = start.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&elapsed), "{elapsed:?}");
    assert!(has_ended(&busy.end(SOON)));
}
