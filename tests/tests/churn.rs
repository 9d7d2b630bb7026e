//! Between two workloads all that can change does so at once, and no request fails: restarts of both sides, certificates,
//! roots, policies, routes, endpoints.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::load::{Load, Shape};
use tidegate_tests::mesh::{Options, PORT};
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

/// Seconds; another number may be given in this variable.
const LASTS: u64 = 40;
const LASTS_VARIABLE: &str = "TIDEGATE_CHURN_SECONDS";
/// About 500 requests a second.
const SHAPE: Shape = Shape { connections: 8, pause: Duration::from_millis(15), requests_per_connection: 100 };
const SECOND_HOST: u8 = 12;

/// A Service with two endpoints, each behind a sidecar of its own.
struct Changing {
    mesh: CallerMesh,
    second: Daemon,
    addresses: [SocketAddr; 2],
    rotation_steps: u32,
}

impl Changing {
    fn start() -> Self {
        let options =
            Options { certificate_life: Duration::from_secs(20), own_root: true, ..Options::default() };
        let mut mesh = CallerMesh::start(options);
        let mut second = mesh.mesh.another_sidecar("second", SECOND_HOST);
        second.start_ready();
        let addresses = [mesh.mesh.target(), mesh.mesh.block().at(SECOND_HOST, PORT)];
        mesh.mesh.apply("policy", &policy(0));
        mesh.endpoints(&addresses.map(|address| (address, "httpbin")));
        Self { mesh, second, addresses, rotation_steps: 0 }
    }

    fn load(&self) -> Load {
        let app = self.mesh.app();
        Load::start(SHAPE, || 0, move || app.clone())
    }

    /// Replaces an endpoint as a rolling update does: it leaves the Service, drains, and comes back.
    fn replace_endpoint(&mut self, index: usize) {
        self.mesh.endpoints(&[(self.addresses[1 - index], "httpbin")]);
        let sidecar = if index == 0 { &mut self.mesh.mesh.sidecar } else { &mut self.second };
        restart(sidecar);
        self.mesh.endpoints(&self.addresses.map(|address| (address, "httpbin")));
    }

    fn change(&mut self, second: u64) {
        self.mesh.mesh.apply("policy", &policy(second));
        self.mesh.mesh.apply("routes", &routes(second));
        // Refused until every sidecar has what the step before has issued.
        let answer = self.mesh.mesh.ca.admin_post("/rotation/next", "").unwrap();
        self.rotation_steps += u32::from(answer.status() == 200);
        if second % 5 == 2 {
            let index = usize::from(second % 10 == 2);
            self.replace_endpoint(index);
        }
    }
}

fn restart(sidecar: &mut Daemon) {
    sidecar.signal(Signal::TERM);
    wait::until("the sidecar drains and ends", SOON, || sidecar.exited());
    sidecar.kill();
    sidecar.start_ready();
}

/// What allows the caller its requests in this second: permissive mode, a rule for all requests, or one for some.
fn policy(second: u64) -> Vec<Value> {
    let regex = format!("/get|/never-{second}");
    let reference = match second % 3 {
        0 => json!({"kind": "HTTPRouteGroup", "name": "requests"}),
        _ => json!({"kind": "HTTPRouteGroup", "name": "requests", "matches": ["get"]}),
    };
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": "httpbin"});
    vec![
        objects::mesh_config(second.is_multiple_of(4)),
        json!({
            "apiVersion": "specs.smi-spec.io/v1alpha4",
            "kind": "HTTPRouteGroup",
            "metadata": {"name": "requests", "namespace": "httpbin"},
            "spec": {"matches": [{"name": "get", "pathRegex": regex, "methods": ["GET"]}]},
        }),
        json!({
            "apiVersion": "access.smi-spec.io/v1alpha3",
            "kind": "TrafficTarget",
            "metadata": {"name": "requests", "namespace": "httpbin"},
            "spec": {
                "destination": account("httpbin"),
                "rules": [reference],
                "sources": [account("caller")],
            },
        }),
    ]
}

/// The routes of the Service in this second: none, a rule for all requests, or one with another before it.
fn routes(second: u64) -> Vec<Value> {
    let backends = json!([{"name": "called", "port": 80, "weight": second}]);
    let other = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": format!("/never-{second}")}}],
        "backendRefs": backends,
    });
    let all = json!({"backendRefs": backends});
    let rules = match second % 3 {
        0 => return Vec::new(),
        1 => vec![all],
        _ => vec![other, all],
    };
    vec![json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "called", "namespace": "httpbin"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "called"}], "rules": rules},
    })]
}

#[test]
fn restarts_certificates_roots_policies_routes_and_endpoints_that_change_at_once_cost_no_request() {
    let lasts = std::env::var(LASTS_VARIABLE).map_or(LASTS, |text| text.parse().unwrap());
    let mut changing = Changing::start();
    let _app = App::unrecorded(changing.mesh.mesh.app_address(), tidegate_tests::app::echo);
    let mut requests = 0;
    let mut load = changing.load();
    let begun = Instant::now();
    for second in 1.. {
        if begun.elapsed() > Duration::from_secs(lasts) {
            break;
        }
        changing.change(second);
        load.wait_for(400);
        if second.is_multiple_of(15) {
            // An app is replaced together with its sidecar.
            let report = load.stop();
            report.assert_flawless();
            requests += report.requests;
            restart(&mut changing.mesh.caller);
            load = changing.load();
        }
    }
    let report = load.stop();
    report.assert_flawless();
    requests += report.requests;
    println!("{requests} requests, {} steps of rotations", changing.rotation_steps);
    assert!(changing.rotation_steps > 0);
}
