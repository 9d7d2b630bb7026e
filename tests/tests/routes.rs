//! HTTPRoutes and GRPCRoutes, from a file to what the app of a client gets through two sidecars.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use http::Request;
use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::client::h2::{Answer, H2Connection};
use tidegate_tests::client::{Client, Connection, End};
use tidegate_tests::daemon::{self, Daemon};
use tidegate_tests::http1::Message;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::wait::{self, SOON};

/// The cluster IP and port of the Service that the caller's app dials.
const CART: &str = "10.96.0.10:80";
/// The pod's ports behind `cart-v2` and `calls`.
const SECOND_PORT: u16 = 14002;
const CALLS_PORT: u16 = 14004;

/// A pod that calls Service `cart`, and what routes can lead to: `cart-v1` (which is `cart`, too), `cart-v2`, `calls` for gRPC,
/// and `empty` without endpoints.
struct Shop {
    mesh: Mesh,
    caller: Daemon,
    first: App,
    second: App,
}

impl Shop {
    fn start() -> Self {
        Self::called_from("httpbin")
    }

    fn called_from(namespace: &str) -> Self {
        let ports = vec![(SECOND_PORT, "http-second"), (CALLS_PORT, "grpc-calls")];
        let mut mesh = Mesh::with(Options { ports, ..Options::default() });
        let mut caller = mesh.caller_in(namespace, CART);
        let services = [
            service("cart", 10, "http", PORT),
            service("cart-v1", 11, "http", PORT),
            service("cart-v2", 12, "http", SECOND_PORT),
            service("calls", 13, "grpc", CALLS_PORT),
            service("empty", 14, "http", PORT),
        ];
        let slice = |name: &str, port_name: &str, port| slice(name, port_name, mesh.target_port(port));
        let slices = [
            slice("cart", "http", PORT),
            slice("cart-v1", "http", PORT),
            slice("cart-v2", "http", SECOND_PORT),
            slice("calls", "grpc", CALLS_PORT),
        ];
        mesh.apply("services", &[services.as_slice(), slices.as_slice()].concat());
        let first = App::echo(mesh.app_address());
        let second = App::echo(mesh.app_port(SECOND_PORT));
        caller.start_ready();
        Self { mesh, caller, first, second }
    }

    /// Applies routes, and waits until a GET of `path` by the app has this status.
    fn route(&mut self, routes: &[Value], path: &str, status: u16) {
        self.mesh.apply("routes", routes);
        let name = format!("{path} answers {status}");
        wait::until_true(&name, SOON, || self.app().answer(path).status() == status);
        self.first.forget();
        self.second.forget();
    }

    /// The caller's app.
    fn app(&self) -> Client {
        Client::to(self.mesh.way_out())
    }

    /// Which of the two apps gets a request, with the path that it sees; the answer's status if none does.
    fn reaches(&self, request: &str) -> String {
        let answer = self.app().connect().and_then(|mut connection| connection.request(request.as_bytes()));
        let status = answer.unwrap_or_else(|end| panic!("{request}: {end:?}")).status();
        let seen = |app: &App, name: &str| {
            let requests = app.requests();
            app.forget();
            requests.first().map(|request| format!("{name} {}", request.target()))
        };
        let found = [seen(&self.first, "first"), seen(&self.second, "second")];
        match found {
            [Some(_), Some(_)] => panic!("both got {request}"),
            [Some(seen), None] | [None, Some(seen)] => seen,
            [None, None] => status.to_string(),
        }
    }

    /// The caller's access log lines.
    fn lines(&self) -> Vec<Value> {
        let log = self.caller.log();
        let lines = log.lines().filter(|line| line.contains("\"direction\":\"outbound\""));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn service(name: &str, ip: u8, port_name: &str, target: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "httpbin"},
        "spec": {
            "clusterIP": format!("10.96.0.{ip}"),
            "selector": {"app": name},
            "ports": [{"name": port_name, "port": 80, "targetPort": target}],
        },
    })
}

fn slice(name: &str, port_name: &str, endpoint: std::net::SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-1"),
            "namespace": "httpbin",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [endpoint.ip().to_string()],
            "targetRef": {"kind": "Pod", "name": "httpbin", "namespace": "httpbin"},
        }],
        "ports": [{"name": port_name, "port": endpoint.port()}],
    })
}

/// A route whose parent is Service `cart`.
fn route(kind: &str, name: &str, rules: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "cart", "namespace": "httpbin"}],
            "rules": rules,
        },
    })
}

fn http(rules: Value) -> Value {
    route("HTTPRoute", "httpbin/cart", rules)
}

fn to(name: &str, weight: u32) -> Value {
    json!({"name": name, "namespace": "httpbin", "port": 80, "weight": weight})
}

fn get(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: cart\r\n{headers}\r\n")
}

/// The statuses of `count` requests on one connection.
fn statuses(connection: &mut Connection, count: usize) -> Vec<u16> {
    let status = |answer: Result<Message, End>| answer.map_or(0, |answer| answer.status());
    (0..count).map(|_| status(connection.get("/"))).collect()
}

#[test]
fn the_most_specific_rule_gets_a_request_and_what_none_matches_is_not_found() {
    let mut shop = Shop::start();
    assert_eq!(shop.reaches(&get("/any", "")), "first /any", "without routes");
    let rules = json!([
        {"matches": [{"path": {"value": "/a"}}], "backendRefs": [to("cart-v1", 1)]},
        {"matches": [{"path": {"type": "Exact", "value": "/a/b"}}], "backendRefs": [to("cart-v2", 1)]},
        {"matches": [{"path": {"value": "/a"}, "method": "PUT"}], "backendRefs": [to("cart-v2", 1)]},
        {
            "matches": [{"path": {"value": "/a"}, "headers": [{"name": "X-Version", "value": "2"}]}],
            "backendRefs": [to("cart-v2", 1)],
        },
        {
            "matches": [{"path": {"value": "/a"}, "queryParams": [{"name": "v", "value": "2"}]}],
            "backendRefs": [to("cart-v2", 1)],
        },
        {"name": "nowhere", "matches": [{"path": {"value": "/nowhere"}}]},
    ]);
    shop.route(&[http(rules)], "/other", 404);
    for (request, expected) in [
        (get("/a/c?x", ""), "first /a/c?x"),
        (get("/a/b", ""), "second /a/b"),
        (get("/ab", ""), "404"),
        (get("/a", "x-version: 2\r\n"), "second /a"),
        (get("/a", "x-version: 3\r\n"), "first /a"),
        (get("/a?v=2", ""), "second /a?v=2"),
        (get("/a?v=2", "").replace("GET", "PUT"), "second /a?v=2"),
        (get("/nowhere", ""), "500"),
        // The path that was matched is the path that is sent.
        (get("/x/..//a/%62?q=%62", ""), "second /a/b?q=%62"),
        (get("/a/..;/b", ""), "400"),
    ] {
        assert_eq!(shop.reaches(&request), expected, "{request}");
    }
    let answer = shop.app().answer("/other");
    assert_eq!(answer.body, b"no route matches");
    assert!(!answer.closes());
    wait::until_true("the log names the rule", SOON, || {
        let lines = shop.lines();
        let names = |path: &str, name: Value| {
            let line = lines.iter().find(|line| line["path"] == *path);
            line.is_some_and(|line| line["route_name"] == name)
        };
        names("/a/b", json!("HTTPRoute/httpbin/cart/1"))
            && names("/nowhere", json!("HTTPRoute/httpbin/cart/nowhere"))
            && names("/other", Value::Null)
    });
    let policies = shop.mesh.controller.admin_json("/policies");
    let status = policies.as_array().unwrap().iter().find(|policy| policy["kind"] == "HTTPRoute").unwrap();
    assert_eq!(status["currentStatus"], "committed", "{status}");
    // Without routes, paths are the app's business again.
    shop.route(&[], "/other", 200);
    assert_eq!(shop.reaches(&get("/x/..//a", "")), "first /x/..//a");
}

#[test]
fn a_split_is_exact_from_the_first_request_on_and_no_share_falls_to_others() {
    let mut shop = Shop::start();
    shop.route(&[http(json!([]))], "/", 404);
    shop.route(&[http(json!([{"backendRefs": [to("cart-v1", 90), to("cart-v2", 10)]}]))], "/", 200);
    for _ in 0..5 {
        let mut connection = shop.app().connect().unwrap();
        assert_eq!(statuses(&mut connection, 200), [200; 200]);
    }
    assert_eq!((shop.first.requests().len(), shop.second.requests().len()), (900, 100));

    let shares = json!([to("cart-v1", 2), to("missing", 1), to("empty", 1), to("cart-v2", 0)]);
    shop.route(&[http(json!([{"backendRefs": shares}]))], "/", 503);
    let mut found = statuses(&mut shop.app().connect().unwrap(), 40);
    found.sort_unstable();
    assert_eq!(found, [[200; 20].as_slice(), &[500; 10], &[503; 10]].concat());
    assert!(shop.second.requests().is_empty(), "a backend of weight 0 gets nothing");
    let nothing = json!([{"backendRefs": [to("cart-v1", 0)]}]);
    shop.route(&[http(nothing)], "/", 500);
}

#[test]
fn clients_of_a_namespace_with_routes_of_its_own_get_those_in_place_of_the_service_s() {
    let to_only =
        |name| json!([{"matches": [{"path": {"value": format!("/{name}")}}], "backendRefs": [to(name, 1)]}]);
    let producer = http(to_only("cart-v1"));
    let consumer = route("HTTPRoute", "shop/own", to_only("cart-v2"));
    let mut shop = Shop::called_from("shop");
    shop.route(std::slice::from_ref(&producer), "/cart-v1", 200);
    shop.route(&[producer.clone(), consumer.clone()], "/cart-v1", 404);
    assert_eq!(shop.reaches(&get("/cart-v2", "")), "second /cart-v2");
    drop(shop);
    let mut shop = Shop::start();
    shop.route(&[producer, consumer], "/cart-v2", 404);
    assert_eq!(shop.reaches(&get("/cart-v1", "")), "first /cart-v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_grpc_go_by_service_and_method_and_others_are_unimplemented() {
    let mut shop = Shop::start();
    let calls = H2cApp::start(shop.mesh.app_port(CALLS_PORT));
    let rules = json!([
        {"matches": [{"method": {"service": "a.Books", "method": "List"}}], "backendRefs": [to("calls", 1)]},
        {"matches": [{"method": {"service": "a.Books", "method": "Add"}}], "backendRefs": [to("missing", 1)]},
        {"matches": [{"method": {"service": "a.Empty"}}], "backendRefs": [to("empty", 1)]},
    ]);
    shop.route(&[route("GRPCRoute", "httpbin/calls", rules)], "/", 404);
    let connection = H2Connection::open(&shop.app()).await.unwrap();
    let call = async |method: &str| -> Answer {
        let request =
            Request::post(format!("http://cart{method}")).header("content-type", "application/grpc");
        connection.exchange(request.body(()).unwrap(), b"").await.unwrap()
    };
    let done = call("/a.Books/List").await;
    assert_eq!(done.trailers.unwrap()["grpc-status"], "0");
    assert_eq!(calls.requests().len(), 1);
    for (method, status, message) in [
        ("/a.Books/Delete", "12", "no route matches"),
        ("/a.Books/Add", "14", "Service Unavailable"),
        ("/a.Empty/Any", "14", "no healthy upstream"),
    ] {
        let Answer { head, body, trailers } = call(method).await;
        assert_eq!((head.status().as_u16(), body.len(), trailers), (200, 0, None), "{method}");
        let header = |name: &str| head.headers().get(name).map_or("", |value| value.to_str().unwrap());
        assert_eq!(header("content-type"), "application/grpc");
        assert_eq!((header("grpc-status"), header("grpc-message")), (status, message), "{method}");
    }
    // What is not gRPC gets the status of HTTP.
    assert_eq!(connection.get("/a.Books/Delete").await.unwrap().head.status().as_u16(), 404);
}

#[test]
fn a_mirror_gets_copies_of_requests_with_their_bodies_and_its_answers_are_ignored() {
    let mut shop = Shop::start();
    let mirror = |more: Value| {
        let mut mirror = json!({"backendRef": to("cart-v2", 1)});
        mirror["backendRef"].as_object_mut().unwrap().remove("weight");
        mirror.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"type": "RequestMirror", "requestMirror": mirror})
    };
    let rules = json!([
        {"matches": [{"path": {"value": "/all"}}], "filters": [mirror(json!({}))], "backendRefs": [to("cart-v1", 1)]},
        {
            "matches": [{"path": {"value": "/tenth"}}],
            "filters": [mirror(json!({"percent": 10}))],
            "backendRefs": [to("cart-v1", 1)],
        },
    ]);
    shop.route(&[http(rules)], "/other", 404);
    let policies = shop.mesh.controller.admin_json("/policies");
    let status = policies.as_array().unwrap().iter().find(|policy| policy["kind"] == "HTTPRoute").unwrap();
    assert_eq!(status["currentStatus"], "committed", "{status}");
    let copies = |shop: &Shop, count| {
        wait::until_true("the copies arrive", SOON, || shop.second.requests().len() >= count);
        shop.second.requests()
    };
    let mut connection = shop.app().connect().unwrap();
    let post = b"POST /all HTTP/1.1\r\nhost: cart\r\ncontent-length: 4\r\n\r\nbody";
    assert_eq!(connection.request(post).unwrap().status(), 200);
    let copy = &copies(&shop, 1)[0];
    assert_eq!(
        (copy.target(), copy.body.as_slice(), copy.value("host")),
        ("/all", &b"body"[..], Some("cart"))
    );
    assert_eq!(shop.first.requests().len(), 1);
    shop.second.forget();
    for _ in 0..100 {
        assert_eq!(connection.get("/tenth").unwrap().status(), 200);
    }
    assert_eq!(copies(&shop, 10).len(), 10);
}

#[test]
fn bytes_that_are_not_requests_go_where_the_rule_for_every_request_leads() {
    let mut shop = Shop::start();
    let hello = b"\x16\x03\x01\x00\x05hello";
    let dial = |shop: &Shop| shop.app().exchange(hello, SOON);
    shop.route(
        &[http(json!([{"matches": [{"path": {"value": "/a"}}], "backendRefs": [to("cart-v2", 1)]}]))],
        "/",
        404,
    );
    assert_eq!(dial(&shop), (Vec::new(), End::Reset));
    shop.route(&[http(json!([{"backendRefs": [to("cart-v2", 1)]}]))], "/", 200);
    let _ = dial(&shop);
    assert_eq!(shop.second.received(), hello);
}

#[test]
fn the_example_of_the_documents_is_in_force() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = std::fs::read_to_string(root.join("docs/gateway-api.md")).unwrap();
    let (_, rest) = document.split_once("```yaml\n").unwrap();
    let example = rest.split_once("```").unwrap().0.replace("namespace: shop", "namespace: httpbin");
    let mut shop = Shop::start();
    shop.route(&[http(json!([]))], "/", 404);
    shop.mesh.apply_text("routes", &example);
    wait::until_true("the example is in force", SOON, || shop.app().answer("/").status() == 200);
    shop.first.forget();
    shop.second.forget();
    assert_eq!(statuses(&mut shop.app().connect().unwrap(), 100), [200; 100]);
    assert_eq!((shop.first.requests().len(), shop.second.requests().len()), (90, 10));
}

#[test]
fn a_recent_request_is_explained_by_its_id_from_both_sidecars() {
    let mut shop = Shop::start();
    shop.route(&[http(json!([{"name": "carts", "backendRefs": [to("cart-v2", 1)]}]))], "/", 200);
    assert_eq!(shop.reaches(&get("/7", "x-request-id: found\r\n")), "second /7");
    let explained = |sidecar: &Daemon, id: &str| {
        let admin = sidecar.admin_address().to_string();
        let arguments = ["explain", "httpbin/any", "--request-id", id, "--admin-address", &admin];
        Command::new(daemon::ours("tidegate")).args(arguments).output().unwrap()
    };
    let said = |sidecar: &Daemon, id: &str| {
        wait::until("the request is recorded", SOON, || {
            let output = explained(sidecar, id);
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        })
    };
    let outbound = said(&shop.caller, "found");
    let endpoint = shop.mesh.target_port(SECOND_PORT).to_string();
    for part in
        ["GET cart /7 HTTP/1.1", "HTTPRoute/httpbin/cart/carts", "httpbin/cart-v2", &endpoint, "outbound"]
    {
        assert!(outbound.contains(part), "{part} in {outbound}");
    }
    let inbound = said(&shop.mesh.sidecar, "found");
    assert!(inbound.contains("permissive mode lets every workload of the mesh in"), "{inbound}");
    assert!(!explained(&shop.caller, "unknown").status.success());
}
