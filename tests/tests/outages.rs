//! CA and controller go down and come back; traffic continues, and what starts meanwhile recovers without help.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, SystemTime};

use tidegate_tests::app::App;
use tidegate_tests::client::{Client, End, RequestOutcome};
use tidegate_tests::load::{Load, LongStream, Shape};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, gateway, https, policy, principal};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait::{self, SOON};

const RESET: RequestOutcome = RequestOutcome::Refused(End::Reset);
const OK: RequestOutcome = RequestOutcome::Status(200);
const PLAIN_PORT: u16 = 14002;

fn mesh(certificate_life: Duration) -> Mesh {
    let ports = vec![(PLAIN_PORT, "http-plain")];
    let mut mesh = Mesh::with(Options { ports, certificate_life, ..Options::default() });
    mesh.apply(
        "policies",
        &[
            policy("mutual", &[https("httpbin", PORT, false, &[])], &[gateway(), principal(INGRESS_CLIENT)]),
            policy("plain", &[backend("httpbin", PLAIN_PORT, "http")], &[gateway()]),
        ],
    );
    mesh
}

fn plain(mesh: &Mesh) -> Client {
    Client::to(mesh.target_port(PLAIN_PORT)).from(mesh.gateway())
}

#[test]
fn the_control_plane_is_killed_and_restarted_under_load_without_a_failed_request() {
    let mut mesh = mesh(Duration::from_secs(3600));
    let _apps = [PORT, PLAIN_PORT].map(|port| App::echo(mesh.app_port(port)));
    let tls = mesh.tls().credentials(mesh.gateway_credentials());
    let (mutual, open) = (mesh.client().tls(tls), plain(&mesh));
    let stream = LongStream::start(&mutual);
    let churning = Shape { requests_per_connection: 10, ..Shape::default() };
    let loads = [
        Load::start(Shape::default(), || 0, {
            let client = mutual.clone();
            move || client.clone()
        }),
        Load::start(churning, || 0, move || mutual.clone()),
        Load::start(churning, || 0, move || open.clone()),
    ];
    for _ in 0..2 {
        mesh.ca.kill();
        mesh.controller.kill();
        loads.iter().for_each(|load| load.wait_for(100));
        assert!(mesh.sidecar.is_ready(), "it serves on, so it stays ready");
        mesh.controller.start();
        loads.iter().for_each(|load| load.wait_for(100));
        mesh.ca.start_ready();
        mesh.controller.wait_ready();
        mesh.wait_connected();
        loads.iter().for_each(|load| load.wait_for(100));
    }
    assert!(stream.stop() > 5);
    for load in loads {
        load.stop().assert_flawless();
    }
    // The stream of policies works again.
    mesh.apply("policies", &[]);
    assert_eq!(plain(&mesh).get("/get"), RESET);
}

#[test]
fn a_sidecar_started_while_the_control_plane_is_away_refuses_everything_and_then_recovers() {
    let mut mesh = mesh(Duration::from_secs(3600));
    let _apps = [PORT, PLAIN_PORT].map(|port| App::echo(mesh.app_port(port)));
    mesh.ca.kill();
    mesh.controller.kill();
    mesh.sidecar.kill();
    mesh.sidecar.start();
    let waits_for = |mesh: &Mesh, what: &str| {
        let answer = mesh.sidecar.admin_get("/ready");
        answer.is_ok_and(|answer| answer.status() == 503 && answer.text().contains(what))
    };
    wait::until_true("the sidecar waits for a certificate", SOON, || waits_for(&mesh, "certificate"));
    let tls = mesh.tls().credentials(mesh.gateway_credentials());
    let mutual = mesh.client().tls(tls);
    for _ in 0..3 {
        assert_eq!(plain(&mesh).get("/get"), RESET);
        assert_eq!(mutual.get("/get"), RESET);
    }
    mesh.ca.start_ready();
    wait::until_true("the sidecar waits for its policy alone", 2 * SOON, || {
        waits_for(&mesh, "policy") && !waits_for(&mesh, "certificate")
    });
    assert_eq!(plain(&mesh).get("/get"), RESET);
    mesh.controller.start();
    wait::until_true("the sidecar is ready", 3 * SOON, || mesh.sidecar.is_ready());
    assert_eq!(plain(&mesh).get("/get"), OK);
    assert_eq!(mutual.get("/get"), OK);
}

#[test]
fn a_sidecar_without_a_usable_trust_bundle_serves_nothing_until_there_is_one() {
    let mut mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[policy("plain", &[backend("httpbin", PORT, "http")], &[])]);
    let file = mesh.path().join("own-bundle.pem");
    mesh.sidecar =
        mesh.another_sidecar("bundle", 40).with_argument("--ca-trust-bundle", file.to_str().unwrap());
    let client = Client::to(mesh.block().at(40, PORT)).from(mesh.gateway());
    mesh.sidecar.start();
    let foreign = tidegate_tests::pki::Authority::root("Other Root").pem();
    for (what, content) in
        [("none", None), ("empty", Some("")), ("no PEM", Some("abc")), ("foreign", Some(&*foreign))]
    {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        wait::until_true("the sidecar says what it waits for", SOON, || {
            let answer = mesh.sidecar.admin_get("/ready");
            answer.is_ok_and(|answer| answer.status() == 503 && answer.text().contains("certificate"))
        });
        assert_eq!(client.get("/get"), RESET, "{what}");
    }
    std::fs::copy(mesh.bundle(), &file).unwrap();
    wait::until_true("the sidecar is ready", 3 * SOON, || mesh.sidecar.is_ready());
    assert_eq!(client.get("/get"), OK);
}

#[test]
fn a_sidecar_whose_certificate_ran_out_while_the_ca_was_away_recovers_by_itself() {
    let mut mesh = mesh(Duration::from_secs(6));
    let _apps = [PORT, PLAIN_PORT].map(|port| App::echo(mesh.app_port(port)));
    let tls = mesh.tls().credentials(mesh.gateway_credentials());
    let mutual = mesh.client().tls(tls);
    assert_eq!(mutual.get("/get"), OK);
    let serial = |mesh: &Mesh| mesh.sidecar.admin_json("/config")["tls"]["certificate"]["serial"].clone();
    mesh.ca.kill();
    let last = serial(&mesh);
    wait::until_true("the certificate runs out", SOON, || {
        let answer = mesh.sidecar.admin_get("/ready").unwrap();
        answer.status() == 503 && answer.text().contains("certificate")
    });
    assert_eq!(serial(&mesh), last, "at {:?}", SystemTime::now());
    assert!(mesh.sidecar.exited().is_none());
    mesh.ca.start_ready();
    wait::until_true("the sidecar is ready again", 3 * SOON, || mesh.sidecar.is_ready());
    assert_ne!(serial(&mesh), last);
    wait::until_true("clients are served again", SOON, || mutual.get("/get") == OK);
}
