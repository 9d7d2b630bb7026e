//! A ServiceEntry, from a file to what an app reaches while `enableEgress` is off.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::json;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::mesh::Mesh;
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

const PROXY_PORT: u16 = 3128;
const CONNECT: &[u8] = b"CONNECT en.wikipedia.org:443 HTTP/1.1\r\nHost: en.wikipedia.org:443\r\n\r\n";

/// A mesh in which workloads reach no address that no object has.
fn closed_mesh() -> Mesh {
    let mut mesh = Mesh::start();
    let mut config = objects::mesh_config(true);
    config["spec"]["traffic"]["enableEgress"] = false.into();
    mesh.apply("config", &[config]);
    mesh
}

/// The entry of Istio's example "Using an External HTTPS Proxy", as users have it.
const PROXY: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: proxy
spec:
  hosts:
  - my-company-proxy.com # ignored
  addresses:
  - $PROXY_IP/32
  ports:
  - number: $PROXY_PORT
    name: tcp
    protocol: TCP
  location: MESH_EXTERNAL
  resolution: NONE
";

/// `currentStatus` and `reason` of an entry.
fn status(mesh: &Mesh, name: &str) -> [String; 2] {
    let policies = mesh.controller.admin_json("/policies");
    let all = policies.as_array().unwrap();
    let found = all.iter().find(|policy| policy["kind"] == "ServiceEntry" && policy["name"] == *name);
    let found = found.unwrap_or_else(|| panic!("no status of {name} in {policies}"));
    [&found["currentStatus"], &found["reason"]].map(|text| text.as_str().unwrap().to_owned())
}

#[test]
fn an_external_proxy_is_reached_by_its_address_with_an_entry_and_refused_with_the_reason_without() {
    let mut mesh = closed_mesh();
    let address = mesh.block().at(62, PROXY_PORT);
    let proxy_app = App::server_first(address, b"HTTP/1.1 200 Connection established\r\n\r\n");
    let mut caller = mesh.caller(&address.to_string());
    caller.start_ready();

    let mut refused = Client::to(mesh.way_out()).connect().unwrap();
    refused.write(CONNECT);
    assert!(refused.read_until(b"\r\n\r\n").is_err());
    wait::until_true("the reason is in the log", SOON, || {
        let log = caller.log();
        log.lines()
            .any(|line| line.contains("en.wikipedia.org:443") && line.contains("spec.traffic.enableEgress"))
    });

    let entry = PROXY.replace("$PROXY_IP", &address.ip().to_string());
    mesh.apply_text("entry", &entry.replace("$PROXY_PORT", &PROXY_PORT.to_string()));
    assert_eq!(status(&mesh, "proxy")[0], "committed");
    let mut connection = None;
    wait::until_true("the proxy is reached", SOON, || {
        let mut attempt = Client::to(mesh.way_out()).connect().unwrap();
        attempt.write(CONNECT);
        let is_open = attempt.read_until(b"\r\n\r\n").is_ok();
        connection = is_open.then_some(attempt);
        is_open
    });
    let mut connection = connection.unwrap();
    connection.finish();
    connection.read_to_end(SOON);
    assert!(proxy_app.received().ends_with(CONNECT), "opaque bytes, not a request of HTTP");
    wait::until_true("the access log names the entry", SOON, || {
        let log = caller.log();
        log.lines().any(|line| line.contains("\"upstream_cluster\":\"outbound|3128||default/proxy\""))
    });

    mesh.remove("entry");
    wait::until_true("without the entry it is refused again", SOON, || {
        let mut attempt = Client::to(mesh.way_out()).connect().unwrap();
        attempt.write(CONNECT);
        attempt.read_until(b"\r\n\r\n").is_err()
    });
}

#[test]
fn http_to_a_virtual_address_goes_to_the_entry_s_endpoints_and_two_entries_for_it_have_one_winner() {
    let mut mesh = closed_mesh();
    let virtual_address = mesh.block().at(61, 8080);
    let endpoint = mesh.block().at(62, 9090);
    let app = App::echo(endpoint);
    let mut caller = mesh.caller(&virtual_address.to_string());
    caller.start_ready();
    let entry = |name: &str, created: &str, endpoint: &str, port: u16| {
        json!({
            "apiVersion": "networking.istio.io/v1beta1",
            "kind": "ServiceEntry",
            "metadata": {"name": name, "namespace": "httpbin", "creationTimestamp": created},
            "spec": {
                "hosts": ["api.example.com"],
                "addresses": [virtual_address.ip().to_string()],
                "ports": [{"number": 8080, "name": "http", "protocol": "HTTP"}],
                "resolution": "STATIC",
                "endpoints": [{"address": endpoint, "ports": {"http": port}}],
            },
        })
    };
    let ip = endpoint.ip().to_string();
    mesh.apply("new", &[entry("new", "2026-01-02T00:00:00Z", &mesh.block().ip(60).to_string(), 1)]);
    mesh.apply("old", &[entry("old", "2026-01-01T00:00:00Z", &ip, 9090)]);
    let get = |mesh: &Mesh| Client::to(mesh.way_out()).get("/get");
    wait::until_true("the endpoint answers", SOON, || get(&mesh) == RequestOutcome::Status(200));
    assert!(String::from_utf8_lossy(&app.received()).contains("GET /get HTTP/1.1"));
    assert_eq!(status(&mesh, "old")[0], "committed");
    let [current, reason] = status(&mesh, "new");
    assert_eq!(current, "error");
    assert!(reason.ends_with("is ServiceEntry httpbin/old's, which takes precedence"), "{reason}");
    mesh.remove("old");
    wait::until_true("the other one serves", SOON, || get(&mesh) == RequestOutcome::Status(503));
    assert_eq!(status(&mesh, "new")[0], "committed");
}
