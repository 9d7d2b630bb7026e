//! What TrafficSplits and routes of a Service make of requests and connections, from a file to the app that serves them.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, Connection, End};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::load::{Load, Shape};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::wait::{self, SOON};

/// The root's cluster IP.
const ROOT: &str = "10.96.0.20";
const TCP_PORT: u16 = 14002;

/// Service `cart` with the backends `cart-v1`, which is the mesh's Pod, and `cart-v2`, which is outside the mesh. The root's
/// own endpoint is v1's. Port 80 carries HTTP, port 81 other bytes.
struct Shop {
    mesh: Mesh,
    _caller: Daemon,
    way_out: Client,
    _apps: Vec<App>,
}

impl Shop {
    /// The caller's app dials this port of the root.
    fn start(port: u16) -> Self {
        let ports = vec![(TCP_PORT, "tcp-echo")];
        let mut mesh = Mesh::with(Options { ports, ..Options::default() });
        let v2 = [mesh.block().at(50, PORT), mesh.block().at(50, TCP_PORT)];
        let apps = vec![
            App::answering(mesh.app_address(), &answer("v1")),
            App::server_first(mesh.app_port(TCP_PORT), b"v1"),
            App::answering(v2[0], &answer("v2")),
            App::server_first(v2[1], b"v2"),
        ];
        let mut caller = mesh.caller(&format!("{ROOT}:{port}"));
        let pod = Some(json!({"kind": "Pod", "name": "httpbin", "namespace": "httpbin"}));
        let objects: Vec<_> = [
            service("cart", Some(ROOT), mesh.target(), pod.as_ref()),
            service("cart-v1", None, mesh.target(), pod.as_ref()),
            service("cart-v2", None, v2[0], None),
        ]
        .concat();
        mesh.apply("shop", &objects);
        caller.start_ready();
        let way_out = Client::to(mesh.way_out());
        Self { mesh, _caller: caller, way_out, _apps: apps }
    }

    /// Applies objects, and waits until a request or connection has one of these answers.
    fn apply(&mut self, objects: &[Value], asked: impl Fn(&Client) -> String, expected: &[&str]) {
        self.mesh.apply("policy", objects);
        wait::until_true("the caller's sidecar has the new routes", SOON, || {
            expected.contains(&&*asked(&self.way_out))
        });
    }

    /// `currentStatus` and `reason` of a TrafficSplit.
    fn status(&self, name: &str) -> [String; 2] {
        let policies = self.mesh.controller.admin_json("/policies");
        let is_it = |policy: &&Value| policy["kind"] == "TrafficSplit" && policy["name"] == *name;
        let found = policies.as_array().unwrap().iter().find(is_it).unwrap();
        [&found["currentStatus"], &found["reason"]].map(|text| text.as_str().unwrap().to_owned())
    }
}

fn answer(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A Service and its EndpointSlice, with one endpoint.
fn service(name: &str, ip: Option<&str>, endpoint: SocketAddr, pod: Option<&Value>) -> Vec<Value> {
    let ports = json!([{"name": "http", "port": 80}, {"name": "tcp", "port": 81}]);
    let mut spec = json!({"ports": ports});
    if let Some(ip) = ip {
        spec["clusterIP"] = ip.into();
    }
    let mut listed = json!({"addresses": [endpoint.ip().to_string()]});
    if let Some(pod) = pod {
        listed["targetRef"] = pod.clone();
    }
    let labels = json!({"kubernetes.io/service-name": name});
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "httpbin"}, "spec": spec}),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-1"), "namespace": "httpbin", "labels": labels},
            "addressType": "IPv4", "endpoints": [listed],
            "ports": [{"name": "http", "port": PORT}, {"name": "tcp", "port": TCP_PORT}],
        }),
    ]
}

/// A split of `cart`.
fn split(backends: &[(&str, u32)], matches: &Value) -> Value {
    let backend = |(service, weight): &(&str, u32)| json!({"service": service, "weight": weight});
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
        "metadata": {"name": "cart", "namespace": "httpbin"},
        "spec": {"service": "cart", "backends": backends.iter().map(backend).collect::<Vec<_>>(), "matches": matches},
    })
}

fn get(connection: &mut Connection, header: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: cart\r\n{header}\r\n");
    let answer = connection.request(request.as_bytes()).unwrap();
    match answer.status() {
        200 => String::from_utf8(answer.body).unwrap(),
        status => status.to_string(),
    }
}

/// What a request on a new connection gets.
fn asked(client: &Client) -> String {
    get(&mut client.connect().unwrap(), "")
}

/// What a connection of other bytes gets.
fn greeted(client: &Client) -> String {
    // A reset may come before the client has looked at its connection.
    let read = client.connect().and_then(|mut connection| connection.read(Duration::from_secs(1)));
    String::from_utf8(read.unwrap_or_default()).unwrap()
}

#[test]
fn ninety_to_ten_is_exact_over_a_thousand_requests_on_several_connections() {
    let mut shop = Shop::start(80);
    shop.apply(&[split(&[("cart-v1", 90), ("cart-v2", 10)], &Value::Null)], asked, &["v2"]);
    let mut connections: Vec<_> = (0..4).map(|_| shop.way_out.connect().unwrap()).collect();
    let answers: Vec<_> = (0..1000).map(|i| get(&mut connections[i % 4], "")).collect();
    let of = |wanted: &str| answers.iter().filter(|answer| *answer == wanted).count();
    assert_eq!((of("v1"), of("v2")), (900, 100));
    for ten in answers.chunks(10) {
        assert_eq!(ten.iter().filter(|answer| *answer == "v2").count(), 1, "{ten:?}");
    }
    assert_eq!(shop.status("cart")[0], "committed");
}

#[test]
fn requests_that_a_group_matches_are_split_and_others_go_to_the_root() {
    let mut shop = Shop::start(80);
    let group = json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
        "metadata": {"name": "testers", "namespace": "httpbin"},
        "spec": {"matches": [{"name": "testers", "headers": [{"x-tester": "yes|maybe"}]}]},
    });
    let matches = json!([{"kind": "HTTPRouteGroup", "name": "testers"}]);
    let objects = [split(&[("cart-v2", 1)], &matches), group];
    let tester = |client: &Client| get(&mut client.connect().unwrap(), "X-Tester: yes\r\n");
    shop.apply(&objects, tester, &["v2"]);
    let mut connection = shop.way_out.connect().unwrap();
    for (header, expected) in
        [("x-tester: maybe\r\n", "v2"), ("", "v1"), ("x-tester: yes\r\n", "v2"), ("x-tester: no\r\n", "v1")]
    {
        assert_eq!(get(&mut connection, header), expected, "{header}");
    }
    // A change of the group alone.
    let mut changed = objects.clone();
    changed[1]["spec"]["matches"][0]["headers"][0]["x-tester"] = "no".into();
    shop.apply(&changed, tester, &["v1"]);
    assert_eq!(get(&mut connection, "x-tester: no\r\n"), "v2");
}

#[test]
fn other_bytes_are_split_by_connection() {
    let mut shop = Shop::start(81);
    assert_eq!(greeted(&shop.way_out), "v1");
    shop.apply(&[split(&[("cart-v1", 3), ("cart-v2", 1)], &Value::Null)], greeted, &["v2"]);
    let answers: Vec<_> = (0..100).map(|_| greeted(&shop.way_out)).collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "v2").count(), 25, "{answers:?}");
    // A connection that is open stays where it is.
    let mut open = shop.way_out.connect().unwrap();
    let first = open.read(SOON).unwrap();
    shop.apply(&[split(&[("cart-v1", 0), ("missing", 1)], &Value::Null)], greeted, &[""]);
    open.write(b"ping");
    assert_eq!(open.read_until(b"ping").unwrap(), b"ping", "{first:?}");
}

#[test]
fn weights_change_under_load_without_a_failed_request() {
    let mut shop = Shop::start(80);
    shop.apply(&[split(&[("cart-v1", 1), ("cart-v2", 0)], &Value::Null)], asked, &["v1"]);
    let client = shop.mesh.way_out();
    let shape = Shape { pause: Duration::from_millis(2), ..Shape::default() };
    let load = Load::start(shape, || 0, move || Client::to(client));
    for round in 0..10 {
        let (weights, expected) = if round % 2 == 0 { ([0, 1], "v2") } else { ([1, 0], "v1") };
        let backends = [("cart-v1", weights[0]), ("cart-v2", weights[1])];
        shop.apply(&[split(&backends, &Value::Null)], asked, &[expected]);
    }
    shop.mesh.apply("policy", &[]);
    load.wait_for(20);
    load.stop().assert_flawless();
}

#[test]
fn a_backend_that_does_not_exist_answers_its_share_with_500_until_it_does() {
    let mut shop = Shop::start(80);
    shop.apply(&[split(&[("cart-v1", 1), ("cart-v3", 1)], &Value::Null)], asked, &["500"]);
    let mut connection = shop.way_out.connect().unwrap();
    let answers: Vec<_> = (0..100).map(|_| get(&mut connection, "")).collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "500").count(), 50, "{answers:?}");
    assert_eq!(shop.status("cart"), ["error", "Service httpbin/cart-v3 does not exist"]);
    let v2 = shop.mesh.block().at(50, PORT);
    shop.mesh.apply("v3", &service("cart-v3", None, v2, None));
    wait::until_true("its share goes to v3", SOON, || {
        let answers: Vec<_> = (0..4).map(|_| asked(&shop.way_out)).collect();
        answers.iter().filter(|answer| *answer == "v2").count() == 2
    });
    assert_eq!(shop.status("cart")[0], "committed");
}

#[test]
fn a_backend_s_own_split_is_not_followed_and_the_root_may_be_a_backend() {
    let mut shop = Shop::start(80);
    let of_root = split(&[("cart-v2", 1)], &Value::Null);
    let mut of_backend = split(&[("cart-v1", 1)], &Value::Null);
    of_backend["metadata"]["name"] = "cart-v2".into();
    of_backend["spec"]["service"] = "cart-v2".into();
    shop.apply(&[of_root, of_backend.clone()], asked, &["v2"]);
    assert_eq!(asked(&shop.way_out), "v2");
    let both = split(&[("cart", 1), ("cart-v2", 1)], &Value::Null);
    shop.apply(&[both, of_backend], asked, &["v1"]);
    let mut connection = shop.way_out.connect().unwrap();
    let answers: Vec<_> = (0..20).map(|_| get(&mut connection, "")).collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "v2").count(), 10, "{answers:?}");
}

#[test]
fn routes_of_the_service_take_precedence_over_a_split() {
    let mut shop = Shop::start(80);
    let split = split(&[("cart-v1", 1)], &Value::Null);
    shop.apply(std::slice::from_ref(&split), asked, &["v1"]);
    let parent = json!({"group": "", "kind": "Service", "name": "cart", "port": 80});
    let rule = json!({"backendRefs": [{"name": "cart-v2", "port": 80}]});
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "cart", "namespace": "httpbin"}, "spec": {"parentRefs": [parent], "rules": [rule]},
    });
    shop.apply(&[split.clone(), route], asked, &["v2"]);
    assert_eq!(shop.status("cart")[0], "committed", "port 81 is split");
    shop.apply(&[split], asked, &["v1"]);
}

/// A TLSRoute or TCPRoute of port 81 of `cart`; `more` are further fields of its spec.
fn connection_route(kind: &str, name: &str, backends: &Value, more: &Value) -> Value {
    let parent = json!({"group": "", "kind": "Service", "name": "cart", "port": 81});
    let mut spec = json!({"parentRefs": [parent], "rules": [{"backendRefs": backends}]});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "httpbin"}, "spec": spec,
    })
}

/// A ClientHello that asks for this server (RFC 8446 §4.1.2, RFC 6066 §3).
fn client_hello(server: &str) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let name = sized(&[&[0][..], &sized(server.as_bytes())].concat());
    let extensions = sized(&[&[0, 0][..], &sized(&name)].concat());
    let hello = [&[3, 3][..], &[7; 32], &[0], &sized(&[0x13, 1]), &[1, 0], &extensions].concat();
    let message = [&[1, 0][..], &sized(&hello)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}

#[test]
fn a_tcp_route_shares_connections_by_weight() {
    let mut shop = Shop::start(81);
    let backends = json!([
        {"name": "cart-v1", "port": 81, "weight": 3},
        {"name": "cart-v2", "port": 81, "weight": 1},
    ]);
    shop.apply(&[connection_route("TCPRoute", "cart", &backends, &json!({}))], greeted, &["v2"]);
    let answers: Vec<_> = (0..100).map(|_| greeted(&shop.way_out)).collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "v2").count(), 25, "{answers:?}");
    let gone = json!([{"name": "gone", "port": 81}]);
    shop.apply(&[connection_route("TCPRoute", "cart", &gone, &json!({}))], greeted, &[""]);
}

#[test]
fn the_server_s_name_chooses_among_tls_routes_however_its_bytes_arrive() {
    let mut shop = Shop::start(81);
    let route = |name: &str, hostname: &str, backend: &str| {
        let backends = json!([{"name": backend, "port": 81}]);
        connection_route("TLSRoute", name, &backends, &json!({"hostnames": [hostname]}))
    };
    let hello = |client: &Client, server: &str| {
        let mut connection = client.connect().unwrap();
        for part in client_hello(server).chunks(20) {
            connection.write(part);
        }
        // The greeting, and perhaps what the app sends back of the rest.
        let mut read = connection.read(Duration::from_secs(1)).unwrap_or_default();
        read.truncate(2);
        String::from_utf8(read).unwrap()
    };
    let routes = [route("one", "db.example", "cart-v1"), route("all", "*.example", "cart-v2")];
    shop.apply(&routes, |client| hello(client, "other.example"), &["v2"]);
    assert_eq!(hello(&shop.way_out, "db.example"), "v1");
    assert_eq!(hello(&shop.way_out, "a.b.example"), "v2");
    assert_eq!(hello(&shop.way_out, "db.example.org"), "", "a name of no route");
    let (read, end) = shop.way_out.exchange(b"not TLS", SOON);
    assert_eq!((read, end), (Vec::new(), End::Reset), "no name at all");
}
