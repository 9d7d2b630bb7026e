//! Faults observed in Open Service Mesh; each test shows that Tidegate does not have one of them.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use tidegate_tests::app::App;
use tidegate_tests::client::{Client, End, RequestOutcome, TlsVersion};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{self, backend, gateway, https, policy, principal, range};
use tidegate_tests::pki::{INGRESS_CLIENT, Leaf};
use tidegate_tests::wait::{self, SOON};

const RESET: RequestOutcome = RequestOutcome::Refused(End::Reset);
const OK: RequestOutcome = RequestOutcome::Status(200);
const FORBIDDEN: RequestOutcome = RequestOutcome::Status(403);

const OTHER_PORT: u16 = 14002;

fn two_ports() -> Mesh {
    Mesh::with(Options { ports: vec![(OTHER_PORT, "http-other")], ..Options::default() })
}

#[test]
fn a_rule_of_one_port_grants_nothing_at_another_port_of_the_pod() {
    let mut mesh = two_ports();
    let (first, second) = (App::echo(mesh.app_address()), App::echo(mesh.app_port(OTHER_PORT)));
    mesh.apply("open", &[policy("open", &[backend("httpbin", PORT, "http")], &[])]);
    let guarded = https("httpbin", OTHER_PORT, false, &[]);
    mesh.apply("guarded", &[policy("guarded", &[guarded], &[principal("somebody.else")])]);
    for version in TlsVersion::ALL {
        let tls = mesh.tls().version(version).credentials(mesh.gateway_credentials());
        let client = Client::to(mesh.target_port(OTHER_PORT)).from(mesh.gateway()).tls(tls);
        assert_eq!(client.get("/get"), FORBIDDEN, "{version:?}");
    }
    assert_eq!(Client::to(mesh.target_port(OTHER_PORT)).get("/get"), RESET, "plaintext at the guarded port");
    assert!(first.received().is_empty() && second.received().is_empty());
    assert_eq!(mesh.client().get("/get"), OK, "the open port stays open");
    assert!(second.received().is_empty());
}

#[test]
fn the_gateway_s_certificate_does_not_open_the_way_of_mesh_peers() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    let gateway = Arc::new(mesh.gateway_credentials());
    let stranger = Arc::new(mesh.sign(&Leaf::dns("a.b.cluster.local")));
    let https_rule = policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(INGRESS_CLIENT)]);
    for (what, objects, is_permissive) in [
        ("without a policy", vec![], true),
        ("with one", vec![https_rule.clone()], true),
        ("without permissive mode", vec![https_rule], false),
    ] {
        mesh.apply("policy", &objects);
        mesh.apply("config", &[objects::mesh_config(is_permissive)]);
        for protocol in ["tidegate/h1", "tidegate/tcp", "tidegate/h2"] {
            for name in ["httpbin.httpbin.svc.cluster.local", "httpbin.httpbin.cluster.local"] {
                let tls = mesh.tls().server_name(name).protocols(&[protocol]);
                for credentials in [&gateway, &stranger] {
                    let client = mesh.client().tls(tls.clone().credentials(credentials.clone()));
                    let (bytes, _) = match client.connect() {
                        Ok(mut connection) => {
                            connection.write(b"GET /get HTTP/1.1\r\nhost: httpbin.httpbin:14001\r\n\r\n");
                            connection.read_to_end(Duration::from_millis(300))
                        }
                        Err(end) => (Vec::new(), end),
                    };
                    let answer = String::from_utf8_lossy(&bytes).into_owned();
                    assert!(!answer.contains(" 200 "), "{what}, {protocol}, {name}: {answer}");
                }
                let end = mesh.client().tls(tls.clone()).get("/get");
                let expected = if what == "without permissive mode" { End::Reset } else { End::Alert(116) };
                assert_eq!(end, RequestOutcome::Refused(expected), "{what}, {protocol}: no certificate");
            }
        }
        assert!(app.received().is_empty(), "{what}");
    }
}

#[test]
fn mesh_peers_are_workloads_and_permissive_mode_decides_about_them() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    let peer = Arc::new(mesh.sign(&Leaf::workload("shop", "cart")));
    let client = |mesh: &Mesh, version| {
        let tls = mesh.tls().version(version).protocols(&["tidegate/h1"]).credentials(peer.clone());
        mesh.client().from(mesh.stranger()).tls(tls)
    };
    assert_eq!(client(&mesh, TlsVersion::Tls13).get("/get"), OK);
    let between_sidecars = client(&mesh, TlsVersion::Tls12).get("/get");
    assert!(
        matches!(between_sidecars, RequestOutcome::Refused(End::Alert(_))),
        "TLS 1.2 between sidecars: {between_sidecars:?}"
    );
    app.forget();

    mesh.apply("config", &[objects::mesh_config(false)]);
    assert_eq!(client(&mesh, TlsVersion::Tls13).get("/get"), RESET, "permissive mode is off");
    let tls = mesh.tls().credentials(peer.clone());
    assert_eq!(
        mesh.client().tls(tls).get("/get"),
        RESET,
        "a workload's certificate is not a rule of the port"
    );
    assert!(app.received().is_empty());
}

#[test]
fn two_services_in_front_of_one_port_are_both_in_force_and_their_status_is_true() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply("second", &[objects::service("httpbin2", "httpbin", &[(PORT, "http")])]);
    let here = range(&format!("{}/32", mesh.gateway()));
    let there = range(&format!("{}/32", mesh.stranger()));
    let rule = |service: &str, source| policy(service, &[backend(service, PORT, "http")], &[source]);
    mesh.apply("first", &[rule("httpbin", here.clone())]);
    mesh.apply("policy", &[rule("httpbin2", there)]);
    for name in ["httpbin", "httpbin2"] {
        assert_eq!(mesh.status(name).0, "committed", "{name}");
    }
    assert_eq!(mesh.client().get("/get"), OK);
    assert_eq!(mesh.client().from(mesh.stranger()).get("/get"), OK);
    mesh.apply("policy", &[rule("httpbin2", here)]);
    assert_eq!(mesh.client().from(mesh.stranger()).get("/get"), RESET, "the change is applied");
    assert_eq!(mesh.status("httpbin2").0, "committed");
    let workloads = mesh.controller.admin_json("/workloads");
    assert_eq!(workloads[0]["sidecar"]["rejected"], serde_json::Value::Null);
}

#[test]
fn a_gateway_s_new_address_is_admitted_at_once_and_its_old_one_is_not() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", PORT, "http")], &[gateway()])]);
    assert_eq!(mesh.client().get("/get"), OK);
    // The gateway restarts at another address, whatever its namespace's labels.
    mesh.apply("endpoints", &[objects::gateway_endpoints(&[mesh.stranger().to_string()])]);
    assert_eq!(mesh.client().from(mesh.stranger()).get("/get"), OK);
    assert_eq!(mesh.client().get("/get"), RESET);
    assert_eq!(mesh.status("httpbin").0, "committed");

    mesh.apply("endpoints", &[objects::gateway_endpoints(&[])]);
    assert_eq!(mesh.client().from(mesh.stranger()).get("/get"), RESET);
    let expected = "endpoints not found for service ingress-nginx/ingress-nginx-controller";
    assert_eq!(mesh.status("httpbin"), ("error".to_owned(), expected.to_owned()));

    mesh.apply("endpoints", &[objects::gateway_endpoints(&[mesh.gateway().to_string()])]);
    assert_eq!(mesh.client().get("/get"), OK);
    assert_eq!(mesh.status("httpbin").0, "committed");
}

#[test]
fn a_policy_that_opens_nothing_says_so_in_its_status() {
    let mut mesh = Mesh::start();
    let rules = [
        (
            "other-service",
            backend("absent", PORT, "http"),
            "no port of service httpbin/absent has targetPort 14001",
        ),
        (
            "other-port",
            backend("httpbin", 80, "http"),
            "no port of service httpbin/httpbin has targetPort 80",
        ),
    ];
    for (name, backend, expected) in rules {
        mesh.apply("policy", &[policy(name, &[backend], &[gateway()])]);
        let (status, reason) = mesh.status(name);
        assert_eq!(status, "error", "{name}");
        assert!(reason.starts_with(expected), "{reason}");
    }
}

#[test]
fn a_sidecar_is_ready_only_when_it_serves_and_serves_as_soon_as_it_is_ready() {
    let mut mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", PORT, "http")], &[gateway()])]);
    mesh.controller.kill();
    mesh.sidecar.start();
    wait::until_true("the sidecar has its certificate and waits for its policy", SOON, || {
        let answer = mesh.sidecar.admin_get("/ready");
        answer.is_ok_and(|answer| {
            answer.status() == 503 && answer.text().trim_end().ends_with("waiting for: policy")
        })
    });
    assert_eq!(mesh.client().get("/get"), RESET);
    mesh.controller.start();
    mesh.sidecar.wait_ready();
    assert_eq!(mesh.client().get("/get"), OK);
}

#[test]
fn a_sidecar_needs_no_inotify_instance() {
    let mesh = Mesh::start();
    let files = mesh.sidecar.open_files();
    assert!(files.iter().any(|file| file.contains("socket")), "{files:?}");
    assert!(!files.iter().any(|file| file.contains("inotify")), "{files:?}");
}
