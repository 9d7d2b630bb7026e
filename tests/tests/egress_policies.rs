//! Open Service Mesh's `Egress`, from a file to what the apps of a service account reach while `enableEgress` is off.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::client::RequestOutcome;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::Mesh;
use tidegate_tests::objects;
use tidegate_tests::outside::{http, is_greeted, tls_is_echoed, way_out, ways_out};
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
/// No object has the address, and no policy allows the host.
const CLOSED: RequestOutcome = RequestOutcome::Status(502);
const GREETING: &[u8] = b"ready\n";

/// An app of service account `httpbin/caller` in a mesh whose egress is off.
struct Caller {
    mesh: Mesh,
    sidecar: Daemon,
    /// TLS, HTTP, and two databases.
    servers: [SocketAddr; 4],
    _apps: [App; 4],
}

impl Caller {
    fn start() -> Self {
        let mut mesh = Mesh::start();
        let mut config = objects::mesh_config(true);
        config["spec"]["traffic"]["enableEgress"] = false.into();
        mesh.apply("config", &[config]);
        let servers =
            [(62, 443), (63, 80), (64, 5432), (65, 5432)].map(|(host, port)| mesh.block().at(host, port));
        let apps = [
            App::tcp_echo(servers[0]),
            App::echo(servers[1]),
            App::server_first(servers[2], GREETING),
            App::server_first(servers[3], GREETING),
        ];
        let ways = ways_out(&mesh, &servers);
        let mut sidecar = mesh.caller(&servers[0].to_string()).with_argument("--outbound", &ways);
        sidecar.start_ready();
        Self { mesh, sidecar, servers, _apps: apps }
    }

    fn tls(&self, name: &'static str) -> bool {
        tls_is_echoed(way_out(&self.mesh, 0), name)
    }

    fn http(&self, method: &str, host: &str) -> RequestOutcome {
        http(way_out(&self.mesh, 1), method, "/get", host)
    }

    fn database(&self, number: usize) -> bool {
        is_greeted(way_out(&self.mesh, 2 + number), GREETING)
    }

    /// `currentStatus` and `reason` of an Egress.
    fn status(&self, name: &str) -> [String; 2] {
        let found = self.mesh.status_of("Egress", name);
        [&found["currentStatus"], &found["reason"]].map(|text| text.as_str().unwrap().to_owned())
    }
}

/// A policy for a service account of namespace `httpbin`.
fn egress(name: &str, account: &str, spec: &Value) -> Value {
    let mut policy = json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "Egress",
        "metadata": {"name": name, "namespace": "httpbin"},
        "spec": {"sources": [{"kind": "ServiceAccount", "name": account, "namespace": "httpbin"}]},
    });
    policy["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    policy
}

/// What `examples/egress/httpbin.yaml` allows.
fn web() -> Value {
    json!({
        "hosts": ["httpbin.org"],
        "ports": [{"number": 80, "protocol": "http"}, {"number": 443, "protocol": "https"}],
    })
}

#[test]
fn a_policy_opens_hosts_and_ranges_to_its_service_account_and_nothing_else() {
    let mut caller = Caller::start();
    assert!(!caller.tls("httpbin.org") && !caller.database(0));
    assert_eq!(caller.http("GET", "httpbin.org"), CLOSED);
    caller.mesh.apply("web", &[egress("web", "other", &web())]);
    assert!(!caller.tls("httpbin.org"), "another service account");

    let database = json!({
        "ipAddresses": [format!("{}/32", caller.servers[2].ip())],
        "ports": [{"number": 5432, "protocol": "tcp-server-first"}],
    });
    caller.mesh.apply("web", &[egress("web", "caller", &web()), egress("database", "caller", &database)]);
    assert_eq!(caller.status("web")[0], "committed");
    wait::until_true("TLS for the host passes", SOON, || caller.tls("httpbin.org"));
    assert_eq!(caller.http("GET", "httpbin.org:80"), OK);
    assert_eq!(caller.http("GET", "HTTPBIN.ORG"), OK);
    assert!(caller.database(0));

    assert!(!caller.tls("example.org") && !caller.database(1));
    assert_eq!(caller.http("GET", "example.org"), CLOSED);
    wait::until_true("the log names the refused host and why", SOON, || {
        let log = caller.sidecar.log();
        let of = |host: &str| {
            log.lines().any(|line| line.contains(host) && line.contains("no Egress for service account"))
        };
        of("host=\"example.org\"")
    });
    let page = caller.sidecar.admin_json("/egress");
    let reached = page["reached"].as_array().unwrap();
    let allowed = |row: &&Value| row["allowedBy"] == "Egress httpbin/web";
    let hosts: Vec<_> = reached.iter().filter(allowed).map(|row| &row["protocol"]).collect();
    assert_eq!(hosts, ["tls", "http"], "{page}");

    caller.mesh.remove("web");
    wait::until_true("without the policy it is refused again", SOON, || !caller.tls("httpbin.org"));
    assert_eq!(caller.http("GET", "httpbin.org"), CLOSED);
}

#[test]
fn an_http_route_group_narrows_requests_and_audit_mode_only_logs() {
    let mut caller = Caller::start();
    let mut spec = web();
    spec["matches"] =
        json!([{"apiGroup": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup", "name": "reads"}]);
    caller.mesh.apply("web", &[egress("web", "caller", &spec)]);
    let missing = ["error".to_owned(), "HTTPRouteGroup httpbin/reads does not exist".to_owned()];
    assert_eq!(caller.status("web"), missing);
    assert_eq!(caller.http("GET", "httpbin.org"), CLOSED);
    let group = json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "HTTPRouteGroup",
        "metadata": {"name": "reads", "namespace": "httpbin"},
        "spec": {"matches": [{"name": "get", "pathRegex": "/get", "methods": ["GET"]}]},
    });
    caller.mesh.apply("reads", &[group]);
    wait::until_true("the group's requests pass", SOON, || caller.http("GET", "httpbin.org") == OK);
    assert_eq!(caller.http("DELETE", "httpbin.org"), RequestOutcome::Status(404));
    assert_eq!(caller.http("GET", "example.org"), CLOSED);

    let mut audit = egress("web", "caller", &web());
    audit["metadata"]["annotations"] = json!({"tidegate.io/audit": "true"});
    caller.mesh.apply("web", &[audit]);
    wait::until_true("audit mode lets all through", SOON, || caller.http("GET", "example.org") == OK);
    assert!(caller.tls("example.org") && caller.database(0));
    wait::until_true("the log says what would be refused", SOON, || {
        let log = caller.sidecar.log();
        log.lines().any(|line| line.contains("host=\"example.org\"") && line.contains("would be refused"))
    });
    let page = caller.sidecar.admin_get("/metrics").unwrap();
    let page = String::from_utf8_lossy(&page.body);
    let count = "tidegate_audit_refusals_total{reason=\"destination_unregistered\"} ";
    let count = page.lines().find_map(|line| line.strip_prefix(count)).unwrap_or_else(|| panic!("{page}"));
    // A request, and two connections of opaque bytes.
    assert!(count.parse::<u32>().unwrap() >= 3, "{count}");
}

#[test]
fn the_setting_of_a_policy_limits_what_one_client_has_open_to_a_host() {
    let mut caller = Caller::start();
    let mut policy = web();
    policy["matches"] = json!([{
        "apiGroup": "policy.openservicemesh.io/v1alpha1",
        "kind": "UpstreamTrafficSetting",
        "name": "limits",
    }]);
    let setting = |requests: u32, connections: u32| {
        json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1",
            "kind": "UpstreamTrafficSetting",
            "metadata": {"name": "limits", "namespace": "httpbin"},
            "spec": {"host": "httpbin.org", "connectionSettings": {
                "tcp": {"maxConnections": connections}, "http": {"maxRequests": requests},
            }},
        })
    };
    caller.mesh.apply("web", &[egress("web", "caller", &policy), setting(1, 1)]);
    assert_eq!(caller.status("web")[0], "committed");
    wait::until_true("TLS for the host passes", SOON, || caller.tls("httpbin.org"));
    assert_eq!(caller.http("GET", "httpbin.org"), OK);
    caller.mesh.apply("web", &[egress("web", "caller", &policy), setting(0, 0)]);
    wait::until_true("TLS is reset", SOON, || !caller.tls("httpbin.org"));
    assert_eq!(caller.http("GET", "httpbin.org"), RequestOutcome::Status(503));
    wait::until_true("the access log names the limits", SOON, || {
        let log = caller.sidecar.log();
        log.contains("upstream_max_connections") && log.contains("{max_requests_overflow}")
    });
}
