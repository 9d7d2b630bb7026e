//! App to app through two sidecars: the bytes on the wire, whose answers are accepted, and changes of endpoints,
//! policy, certificates and the controller.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::caller::{CLUSTER_IP, CallerMesh, service, slice};
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::load::{Load, Shape};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
/// What the caller's sidecar answers if it reaches no endpoint.
const UNREACHABLE: RequestOutcome = RequestOutcome::Status(503);
/// A relay between two sidecars that records what it carries.
fn tap(from: SocketAddr, to: SocketAddr) -> Arc<Mutex<[Vec<u8>; 2]>> {
    let listener = TcpListener::bind(from).unwrap();
    let carried: Arc<Mutex<[Vec<u8>; 2]>> = Arc::default();
    let kept = carried.clone();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            let far = TcpStream::connect(to).unwrap();
            let ends = [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)];
            for (direction, (mut reader, mut writer)) in ends.into_iter().enumerate() {
                let kept = kept.clone();
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = reader.read(&mut buffer) {
                        kept.lock().unwrap()[direction].extend_from_slice(&buffer[..count]);
                        if writer.write_all(&buffer[..count]).is_err() {
                            return;
                        }
                    }
                    let _ = writer.shutdown(Shutdown::Write);
                });
            }
        }
    });
    carried
}

/// The types of the TLS records in these bytes; fails if they are anything else.
fn records(bytes: &[u8]) -> Vec<u8> {
    let (mut types, mut rest) = (Vec::new(), bytes);
    while let [kind @ 20..=23, 3, 1..=3, high, low, more @ ..] = rest {
        types.push(*kind);
        rest = &more[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    assert!(rest.is_empty(), "no TLS record: {rest:?}");
    types
}

#[test]
fn what_an_app_sends_to_a_service_of_the_mesh_travels_as_mutual_tls() {
    let mut story = CallerMesh::start(Options::default());
    let app = App::echo(story.mesh.app_address());
    let between = story.mesh.block().at(50, PORT);
    let carried = tap(between, story.mesh.target());
    story.endpoints(&[(between, "httpbin")]);
    let answer = story.app().answer("/secret-path");
    assert_eq!(answer.status(), 200);
    assert_eq!(app.requests().len(), 1);
    assert!(String::from_utf8_lossy(&app.received()).contains("GET /secret-path"));

    let carried = carried.lock().unwrap().clone();
    for (direction, bytes) in carried.iter().enumerate() {
        let types = records(bytes);
        assert!(types.contains(&22) && types.contains(&23), "handshake and data: {direction} {types:?}");
        assert!(!bytes.windows(11).any(|window| window == b"secret-path"));
        assert!(!bytes.windows(7).any(|window| window == b"httpbin"), "identities are hidden as well");
    }

    let known = story.known();
    assert_eq!((&known["state"], &known["service"]), (&json!("mesh"), &json!("httpbin/called")));
    assert_eq!(known["endpoints"][0]["identity"], "httpbin.httpbin.cluster.local");
    wait::until_true("both sidecars have logged it", SOON, || {
        let line =
            |log: String, word: &str| log.lines().any(|l| l.contains("\"start_time\"") && l.contains(word));
        line(story.caller.log(), "\"direction\":\"outbound\"")
            && line(story.mesh.sidecar.log(), "spiffe://cluster.local/ns/httpbin/sa/caller")
    });
    let log = story.caller.log();
    let line = log.lines().find(|line| line.contains("\"direction\":\"outbound\"")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["connection_security_policy"], "mutual_tls");
    assert_eq!(line["upstream_cluster"], "outbound|80||httpbin/called");
    assert_eq!(line["upstream_host"], between.to_string());
    assert_eq!(line["downstream_local_address"], CLUSTER_IP);
}

#[test]
fn an_endpoint_that_is_another_workload_than_the_controller_says_gets_nothing() {
    let mut story = CallerMesh::start(Options::default());
    let app = App::echo(story.mesh.app_address());
    // A Pod of another account, at whose address httpbin answers.
    let impostor = objects::pod("impostor", "impostor", &story.mesh.block().ip(60).to_string(), &[]);
    story.mesh.write_objects("impostor", &impostor.to_string());
    let httpbin = story.mesh.target();
    story.endpoints(&[(httpbin, "impostor")]);
    assert_eq!(story.app().get("/get"), UNREACHABLE);
    assert!(app.received().is_empty());
    let log = story.caller.log();
    assert!(log.contains("expected impostor.httpbin.cluster.local, but the certificate is for DNS:httpbin.httpbin.cluster.local"), "{log}");
    story.endpoints(&[(httpbin, "httpbin")]);
    wait::until_true("the right workload answers", SOON, || story.app().get("/get") == OK);
}

#[test]
fn an_endpoint_that_is_gone_costs_no_request() {
    let mut story = CallerMesh::start(Options::default());
    let _app = App::echo(story.mesh.app_address());
    let (pod, gone) = (story.mesh.target(), story.mesh.block().at(61, PORT));
    assert_eq!(story.app().get("/get"), OK);
    story.endpoints(&[(gone, "httpbin"), (pod, "httpbin")]);
    story.wait_known(&[gone, pod]);
    for _ in 0..20 {
        assert_eq!(story.app().get("/get"), OK);
    }
    story.endpoints(&[(gone, "httpbin")]);
    story.wait_known(&[gone]);
    assert_eq!(story.app().get("/get"), UNREACHABLE, "no endpoint is left");
    story.endpoints(&[]);
    wait::until_true("a service without slices is passed through", SOON, || {
        story.known()["state"] == "passthrough"
    });
}

/// A slice whose endpoint is on this node, and has these fields as well.
fn on_node(mut slice: Value, node: &str, fields: Value) -> Value {
    let endpoint = &mut slice["endpoints"][0];
    endpoint["nodeName"] = json!(node);
    for (name, value) in fields.as_object().unwrap() {
        endpoint[name] = value.clone();
    }
    slice
}

fn node(zone: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": zone}},
    })
}

/// A Service with two endpoints, one inside the mesh and one outside, called by an app on node-1.
struct TwoEndpoints {
    story: CallerMesh,
    meshed: App,
    plain: App,
    inside: SocketAddr,
    outside: SocketAddr,
}

impl TwoEndpoints {
    fn start() -> Self {
        Self::with(App::echo)
    }

    /// The endpoint outside the mesh is this app.
    fn with(plain: impl FnOnce(SocketAddr) -> App) -> Self {
        let mut story = CallerMesh::start(Options::default());
        let meshed = App::echo(story.mesh.app_address());
        let (inside, outside) = (story.mesh.target(), story.mesh.block().at(63, PORT));
        let plain = plain(outside);
        let mut caller = objects::pod("caller", "caller", &story.mesh.way_out().ip().to_string(), &[]);
        caller["spec"]["nodeName"] = json!("node-1");
        story.mesh.apply("caller", &[caller]);
        Self { story, meshed, plain, inside, outside }
    }

    /// Applies the Service with more fields, and its endpoints: for each, its node and the zone that its hint names.
    fn apply(&mut self, more: Value, nodes: [&str; 2], zones: [&str; 2]) {
        let port = self.story.port;
        let mut service = service(port);
        for (name, value) in more.as_object().unwrap() {
            service["spec"][name] = value.clone();
        }
        let fields = |zone: &str| match zone {
            "" => json!({}),
            zone => json!({"hints": {"forZones": [{"name": zone}]}}),
        };
        // An endpoint without a Pod is outside the mesh.
        let mut outside = slice(1, self.outside, "", port);
        outside["endpoints"][0].as_object_mut().unwrap().remove("targetRef");
        let documents = [
            service,
            on_node(slice(0, self.inside, "httpbin", port), nodes[0], fields(zones[0])),
            on_node(outside, nodes[1], fields(zones[1])),
        ];
        self.story.mesh.apply("service", &documents);
    }

    /// Waits until the caller's sidecar, which learns of a Service when the app dials it, holds this about its topology.
    fn wait_until_known(&self, what: &str, is_known: impl Fn(&Value) -> bool) {
        wait::until_true(what, SOON, || {
            self.story.app().get("/get");
            is_known(&self.story.known()["topology"])
        });
    }

    /// How many of 10 requests each endpoint gets.
    fn shares(&self) -> [usize; 2] {
        self.meshed.forget();
        self.plain.forget();
        for _ in 0..10 {
            assert_eq!(self.story.app().get("/get"), OK);
        }
        [self.meshed.requests().len(), self.plain.requests().len()]
    }
}

#[test]
fn an_internal_traffic_policy_local_leaves_a_caller_the_endpoints_of_its_node() {
    let mut mesh = TwoEndpoints::start();
    let (inside, outside) = (mesh.inside, mesh.outside);
    let local = || json!({"internalTrafficPolicy": "Local"});
    mesh.apply(local(), ["node-2", "node-1"], ["", ""]);
    mesh.wait_until_known("the one on the other node is not used", |known| {
        known[0]["unused"] == json!([inside])
    });
    assert_eq!(mesh.shares(), [0, 10]);
    mesh.apply(local(), ["node-1", "node-2"], ["", ""]);
    mesh.wait_until_known("now the other one is", |known| known[0]["unused"] == json!([outside]));
    assert_eq!(mesh.shares(), [10, 0]);
    mesh.apply(local(), ["node-2", "node-2"], ["", ""]);
    mesh.wait_until_known("neither is on the caller's node", |known| {
        known[0]["unused"] == json!([inside, outside])
    });
    assert_eq!(mesh.story.app().get("/get"), UNREACHABLE);
    wait::until_true("the access log says why", SOON, || {
        mesh.story.caller.log().contains("no_local_endpoint")
    });
}

#[test]
fn hints_prefer_the_endpoints_of_the_caller_s_zone() {
    let mut mesh = TwoEndpoints::start();
    let (inside, outside) = (mesh.inside, mesh.outside);
    mesh.story.mesh.apply("node", &[node("a")]);
    mesh.apply(json!({}), ["node-2", "node-2"], ["a", "b"]);
    mesh.wait_until_known("that of the caller's zone is preferred", |known| {
        known[0]["fallback"] == json!([outside])
    });
    assert_eq!(mesh.shares(), [10, 0]);
    mesh.story.mesh.apply("node", &[node("b")]);
    mesh.wait_until_known("the caller's node has another zone", |known| {
        known[0]["fallback"] == json!([inside])
    });
    assert_eq!(mesh.shares(), [0, 10]);
    mesh.apply(json!({}), ["node-2", "node-2"], ["", ""]);
    mesh.wait_until_known("all are used", |known| *known == json!([]));
    wait::until_true("by power of two choices", SOON, || mesh.shares().iter().all(|share| *share > 0));
}

#[test]
fn an_endpoint_that_fails_is_left_out_for_seconds_and_gets_its_share_again_once_it_is_well() {
    let is_well = Arc::new(AtomicBool::new(false));
    let recovers = is_well.clone();
    let mut mesh = TwoEndpoints::with(|address| {
        App::start(address, move |conversation| {
            while conversation.request()?.is_some() {
                let status =
                    if recovers.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" };
                conversation.write(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())?;
            }
            Ok(())
        })
    });
    mesh.apply(json!({}), ["node-2", "node-2"], ["", ""]);
    let mut failures = 0;
    wait::until_true("the endpoint is ejected", SOON, || {
        failures += usize::from(mesh.story.app().get("/get") != OK);
        failures == 5
    });
    let since = Instant::now();
    assert_eq!(mesh.shares(), [10, 0]);
    // It is out for five seconds at least.
    wait::until_true("it is tried again", SOON, || mesh.story.app().get("/get") != OK);
    assert!(since.elapsed() > Duration::from_secs(4), "{:?}", since.elapsed());
    is_well.store(true, Ordering::Relaxed);
    wait::until_true("it is well again and gets its share", 2 * SOON, || {
        mesh.shares().iter().all(|share| *share > 0)
    });
}

#[test]
fn session_affinity_keeps_a_client_at_one_endpoint() {
    let mut mesh = TwoEndpoints::start();
    mesh.apply(json!({"sessionAffinity": "ClientIP"}), ["node-2", "node-2"], ["", ""]);
    wait::until_true("one for as long as it is there", SOON, || mesh.shares().contains(&10));
    let kept = mesh.shares();
    assert!(kept.contains(&10));
    assert!((0..5).all(|_| mesh.shares() == kept));
}

#[test]
fn without_permissive_mode_a_peer_is_refused_on_open_connections_too() {
    let mut story = CallerMesh::start(Options::default());
    let app = App::echo(story.mesh.app_address());
    let mut open = story.app().connect().unwrap();
    assert_eq!(open.get("/get").unwrap().status(), 200);
    story.mesh.apply("config", &[objects::mesh_config(false)]);
    wait::until_true("requests on the open connection are refused", Duration::from_secs(2), || {
        open.get("/get").unwrap().status() == 503
    });
    app.forget();
    assert_eq!(story.app().get("/get"), UNREACHABLE);
    assert!(app.received().is_empty());
    wait::until_true("the server's sidecar says why", SOON, || {
        story.mesh.sidecar.log().contains("permissive mode is off")
    });
    story.mesh.apply("config", &[objects::mesh_config(true)]);
    wait::until_true("permissive mode lets peers in again", SOON, || story.app().get("/get") == OK);
}

#[test]
fn what_is_outside_the_mesh_is_passed_through() {
    let mut mesh = Mesh::start();
    let outside = mesh.block().at(62, 8080);
    let app = App::server_first(outside, b"220 hello\r\n");
    let mut caller = mesh.caller(&outside.to_string());
    caller.start_ready();
    let mut connection = Client::to(mesh.way_out()).connect().unwrap();
    assert_eq!(connection.read_until(b"\r\n").unwrap(), b"220 hello\r\n");
    connection.write(b"ehlo");
    connection.finish();
    connection.read_to_end(SOON);
    assert_eq!(app.received(), b"ehlo");
}

#[test]
fn the_controller_is_killed_and_restarted_under_load_between_apps_without_a_failed_request() {
    let mut story = CallerMesh::start(Options::default());
    let _app = App::echo(story.mesh.app_address());
    let churning = Shape { requests_per_connection: 5, ..Shape::default() };
    let load = Load::start(churning, || 0, {
        let client = story.app();
        move || client.clone()
    });
    for _ in 0..2 {
        story.mesh.controller.kill();
        load.wait_for(200);
        story.mesh.controller.start();
        story.mesh.controller.wait_ready();
        story.mesh.wait_connected();
        load.wait_for(200);
    }
    load.stop().assert_flawless();
    // The destinations are updated again.
    let gone = story.mesh.block().at(61, PORT);
    story.endpoints(&[(gone, "httpbin")]);
    story.wait_known(&[gone]);
}

#[test]
fn a_tcp_stream_between_apps_outlives_its_certificates_and_their_root_and_ends_when_that_is_revoked() {
    let life = Duration::from_secs(8);
    let options = Options { certificate_life: life, own_root: true, ..Options::default() };
    let story = CallerMesh::calling("tcp", options);
    let _app = App::tcp_echo(story.mesh.app_address());
    let mut stream = story.app().connect().unwrap();
    let mut echo = move || {
        stream.write(b"tick");
        stream.read_until(b"tick").map(drop)
    };
    echo().unwrap();
    let not_after = |sidecar: &Daemon| {
        let text = sidecar.admin_json("/config")["tls"]["certificate"]["notAfter"].clone();
        humantime::parse_rfc3339(text.as_str().unwrap()).unwrap()
    };
    let first = not_after(&story.caller).max(not_after(&story.mesh.sidecar));
    let mut count = 0;
    wait::until_true("two lives of the first certificates are over", 4 * life, || {
        count += 1;
        echo().unwrap_or_else(|end| panic!("after {count} pieces: {end:?}"));
        SystemTime::now() > first + life
    });
    let roots = |sidecar: &Daemon| sidecar.admin_json("/config")["tls"]["trustBundle"].clone();
    let first_roots = roots(&story.caller);
    let mut rotate = |last: &str| {
        for (step, path) in
            [("trust-both", "/rotation/next"), ("issue-new", "/rotation/next"), ("steady", last)]
        {
            wait::until_true(&format!("the CA takes step {step}"), 4 * life, || {
                echo().unwrap_or_else(|end| panic!("before {step}: {end:?}"));
                story.mesh.ca.admin_post(path, "").unwrap().status() == 200
            });
        }
    };
    rotate("/rotation/next");
    wait::until_true("both sidecars trust only the new root", SOON, || {
        [&story.caller, &story.mesh.sidecar].iter().all(|sidecar| {
            let roots = roots(sidecar);
            roots.as_array().unwrap().len() == 1 && roots != first_roots
        })
    });
    // The stream was authenticated by a certificate of the first root, which is retired by now.
    rotate("/rotation/next?revoke=true");
    wait::until_true("the stream ends", SOON, || echo().is_err());
    let mut next = story.app().connect().unwrap();
    next.write(b"tick");
    next.read_until(b"tick").unwrap();
}

#[test]
fn certificates_are_renewed_under_load_between_apps_without_a_failed_request() {
    let story =
        CallerMesh::start(Options { certificate_life: Duration::from_secs(20), ..Options::default() });
    let _app = App::echo(story.mesh.app_address());
    let churning = Shape { requests_per_connection: 5, ..Shape::default() };
    let load = Load::start(churning, || 0, {
        let client = story.app();
        move || client.clone()
    });
    let serial = |sidecar: &Daemon| sidecar.admin_json("/config")["tls"]["certificate"]["serial"].clone();
    for _ in 0..2 {
        let before = [serial(&story.caller), serial(&story.mesh.sidecar)];
        wait::until_true("both sidecars have new certificates", 3 * SOON, || {
            before[0] != serial(&story.caller) && before[1] != serial(&story.mesh.sidecar)
        });
        load.wait_for(200);
    }
    load.stop().assert_flawless();
    // The controller has received the report.
    wait::until_true("the report is of the newest certificate", SOON, || {
        let workloads = story.mesh.controller.admin_json("/workloads");
        let workloads = workloads.as_array().unwrap().clone();
        let caller =
            workloads.iter().find(|workload| workload["workload"] == "httpbin/caller").unwrap().clone();
        let tls = story.caller.admin_json("/config")["tls"].clone();
        caller["sidecar"]["certificateNotAfter"] == tls["certificate"]["notAfter"]
            && caller["sidecar"]["trustedRoots"] == tls["trustBundle"]
    });
}

#[test]
fn a_wait_in_the_mesh_ends_once_the_server_answers_and_not_when_a_connection_succeeds() {
    let story = CallerMesh::start(Options::default());
    let way_out = story.mesh.way_out();
    let start = |name: &str, url: String, time: &str| {
        let arguments = ["wait", "--for", &url, "--timeout", time].map(str::to_owned).to_vec();
        let mut program = Daemon::new("tidegate-sidecar", name, story.mesh.path(), arguments, None);
        program.start();
        program
    };
    // A wait that only connects, without a server.
    assert!(TcpStream::connect(way_out).is_ok());
    let mut late = start("late", format!("tcp://{way_out}"), "100ms");
    let status = wait::until("the time is over", SOON, || late.exited());
    assert!(status.code() == Some(1), "{status}");
    let expected = format!("tcp://{way_out} has not answered within 100ms: the connection was reset");
    assert!(late.log().contains(&expected), "{}", late.log());

    let mut waiting = [
        (start("tcp", format!("tcp://{way_out}"), "5m"), "the connection was reset: no server is there"),
        (start("http", format!("http://{way_out}/get"), "5m"), "status 503"),
    ];
    for (program, reason) in &mut waiting {
        wait::until_true("it says what it waits for", SOON, || program.log().contains(*reason));
        assert_eq!(program.exited(), None);
    }
    let _app = App::echo(story.mesh.app_address());
    for (program, _) in &mut waiting {
        let status = wait::until("the server answers", SOON, || program.exited());
        assert!(status.success(), "{}", program.log());
    }
}
