//! Certificates and roots are replaced under load, and no request fails.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use serde_json::Value;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, Connection, End, Tls};
use tidegate_tests::load::{Load, LongStream, Shape};
use tidegate_tests::mesh::{Mesh, Options, PORT, SERVER_NAME};
use tidegate_tests::nginx::{Backend, Nginx, ProxySsl};
use tidegate_tests::objects::{backend, gateway, https, policy, principal, range};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait;

const LIFE: Duration = Duration::from_secs(20);
const OPEN_PORT: u16 = 14002;
const PLAIN_PORT: u16 = 14003;

/// A mesh whose CA made its own root and whose certificates live 20 seconds, with a port of each kind.
fn short_lived() -> Mesh {
    let mut mesh = Mesh::with(Options {
        ports: vec![(OPEN_PORT, "http-open"), (PLAIN_PORT, "http-plain")],
        certificate_life: LIFE,
        gateway_life: LIFE,
        own_root: true,
        ..Options::default()
    });
    mesh.apply(
        "policies",
        &[
            policy("mutual", &[https("httpbin", PORT, false, &[])], &[gateway(), principal(INGRESS_CLIENT)]),
            policy("open", &[https("httpbin", OPEN_PORT, true, &[])], &[gateway()]),
            policy("plain", &[backend("httpbin", PLAIN_PORT, "http")], &[gateway()]),
        ],
    );
    mesh
}

/// Serial number of the sidecar's certificate.
fn serial(mesh: &Mesh) -> String {
    mesh.sidecar.admin_json("/config")["tls"]["certificate"]["serial"].as_str().unwrap().to_owned()
}

/// The sidecar's stream, as the controller sees it.
fn policy_stream(mesh: &Mesh) -> Value {
    mesh.controller.admin_json("/workloads")[0]["sidecar"].clone()
}

/// Clients like ingress controllers: they follow the Secret and keep their connections.
fn mutual_load(mesh: &Mesh) -> Load {
    let (files, target, source) = (mesh.secret_files(), mesh.target(), mesh.gateway());
    let versions = files.clone();
    Load::start(
        Shape::default(),
        move || versions.version(),
        move || {
            let tls = Tls::new(files.roots(), SERVER_NAME).credentials(files.credentials());
            Client::to(target).from(source).tls(tls)
        },
    )
}

/// Clients that keep a connection until the server announces its end, even if their Secret changes.
fn faithful_load(mesh: &Mesh) -> Load {
    let (files, target, source) = (mesh.secret_files(), mesh.target(), mesh.gateway());
    Load::start(
        Shape { pause: Duration::from_millis(1), ..Shape::default() },
        || 0,
        move || {
            let tls = Tls::new(files.roots(), SERVER_NAME).credentials(files.credentials());
            Client::to(target).from(source).tls(tls)
        },
    )
}

/// Connections that are made once and stay open.
fn lasting_load(client: Client) -> Load {
    Load::start(
        Shape { connections: 2, pause: Duration::from_millis(20), ..Shape::default() },
        || 0,
        move || client.clone(),
    )
}

fn without_certificate(mesh: &Mesh) -> Client {
    Client::to(mesh.target_port(OPEN_PORT)).from(mesh.gateway()).tls(mesh.tls())
}

fn plain(mesh: &Mesh) -> Client {
    Client::to(mesh.target_port(PLAIN_PORT)).from(mesh.gateway())
}

#[test]
fn leaves_roots_and_policies_are_replaced_under_load_without_a_failed_request() {
    let mut mesh = short_lived();
    let _apps = [PORT, OPEN_PORT, PLAIN_PORT].map(|port| App::echo(mesh.app_port(port)));
    let first_root = mesh.roots();
    let mut edits = 0;

    let first_stream = policy_stream(&mesh);
    let mutual = mutual_load(&mesh);
    let faithful = faithful_load(&mesh);
    // A connection without a client certificate outlives every certificate.
    let lasting = [lasting_load(without_certificate(&mesh)), lasting_load(plain(&mesh))];
    let streams = [LongStream::start(&without_certificate(&mesh)), LongStream::start(&plain(&mesh))];

    for step in ["trust-both", "issue-new", "steady"] {
        let before = (serial(&mesh), mesh.secret_files().version());
        wait::until_true(&format!("the CA takes step {step}"), 4 * LIFE, || {
            let answer = mesh.ca.admin_post("/rotation/next", "").unwrap();
            assert!(matches!(answer.status(), 200 | 409), "{}", answer.text());
            answer.status() == 200
        });
        assert_eq!(mesh.ca.admin_json("/rotation")["step"], step);
        // Policies are edited meanwhile; each edit is in force before the next.
        wait::until_true("sidecar and ingress controller have new certificates", 2 * LIFE, || {
            edits += 1;
            let source = range(&format!("10.{}.{}.0/24", edits / 256, edits % 256));
            mesh.apply("edited", &[policy("edited", &[backend("httpbin", PLAIN_PORT, "http")], &[source])]);
            serial(&mesh) != before.0 && mesh.secret_files().version() != before.1
        });
        mutual.wait_for(200);
    }
    assert!(edits > 30, "{edits}");
    let last_root = mesh.roots();
    assert!(last_root.len() == 1 && last_root != first_root, "the root is another one");
    wait::until_true("the sidecar trusts only the new root", wait::SOON, || {
        mesh.sidecar.admin_json("/config")["tls"]["trustBundle"].as_array().unwrap().len() == 1
    });
    mutual.wait_for(200);
    wait::until_true("the policy stream rests on the new certificate", wait::SOON, || {
        let stream = policy_stream(&mesh);
        stream["connected"] == true && stream["address"] != first_stream["address"]
    });

    for stream in streams {
        assert!(stream.stop() > 100, "the stream went on all the time");
    }
    for load in lasting {
        let report = load.stop();
        report.assert_flawless();
        assert_eq!(report.connections, 2, "long-lived connections live on");
    }
    let report = mutual.stop();
    report.assert_flawless();
    assert!(report.requests > 2000, "{report:?}");
    let report = faithful.stop();
    report.assert_flawless();
    assert!(report.connections >= 12, "each certificate has ended its connections: {report:?}");
}

/// Takes all steps of a rotation, each as soon as the sidecar has the roots of the previous one.
fn rotate(mesh: &Mesh, query: &str) {
    for step in ["trust-both", "issue-new", "steady"] {
        let answer = mesh.ca.admin_post(&format!("/rotation/next?force=true{query}"), "").unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let rotation = mesh.ca.admin_json("/rotation");
        assert_eq!(rotation["step"], step);
        let roots = rotation["trusted_roots"].as_array().unwrap();
        let roots: Value = roots.iter().map(|root| root["fingerprint"].clone()).collect();
        wait::until_true("the sidecar has the roots", wait::SOON, || {
            mesh.sidecar.admin_json("/config")["tls"]["trustBundle"] == roots
        });
    }
}

/// A connection with the ingress controller's newest certificate, over which a request was answered.
fn connected(mesh: &Mesh) -> Connection {
    wait::until("sidecar and ingress controller have new certificates", wait::SOON, || {
        let files = mesh.secret_files();
        let tls = Tls::new(files.roots(), SERVER_NAME).credentials(files.credentials());
        let mut connection = mesh.client().tls(tls).connect().ok()?;
        connection.get("/get").is_ok_and(|answer| answer.status() == 200).then_some(connection)
    })
}

#[test]
fn what_is_open_outlives_a_root_that_is_retired_and_ends_with_one_that_is_revoked() {
    let mut mesh = Mesh::with(Options { own_root: true, ..Options::default() });
    let _app = App::echo(mesh.app_address());
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(INGRESS_CLIENT)])],
    );
    let mut open = vec![connected(&mesh)];
    for _ in 0..2 {
        rotate(&mesh, "");
        open.push(connected(&mesh));
        for connection in &mut open {
            assert_eq!(connection.get("/get").unwrap().status(), 200);
        }
    }
    assert_eq!(mesh.ca.admin_json("/rotation")["retired_roots"].as_array().unwrap().len(), 2);
    rotate(&mesh, "&revoke=true");
    for connection in &mut open {
        assert_eq!(connection.end(Duration::from_secs(10)), End::Closed);
    }
    connected(&mesh);
}

#[test]
fn a_real_nginx_that_reloads_with_its_secret_loses_no_request_either() {
    let mesh = short_lived();
    let _app = App::echo(mesh.app_address());
    let backend = Backend { target: mesh.target(), tls: Some(ProxySsl::new(mesh.secret(), SERVER_NAME)) };
    let mut nginx = Nginx::start(mesh.path(), mesh.front(), mesh.gateway(), &backend);
    assert_eq!(nginx.get("/get").status(), 200);
    let front = Client::to(nginx.address());
    // nginx ends its clients' idle connections when it reloads, so each request has its own here.
    let shape = Shape { requests_per_connection: 1, ..Shape::default() };
    let load = Load::start(shape, || 0, move || front.clone());
    for _ in 0..2 {
        let version = mesh.secret_files().version();
        wait::until_true("the Secret changes", LIFE, || mesh.secret_files().version() != version);
        nginx.reload(&backend);
        load.wait_for(100);
    }
    load.stop().assert_flawless();
}

#[test]
fn a_resumed_session_never_outlives_its_certificate_because_none_is_resumed() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(INGRESS_CLIENT)])],
    );
    for version in tidegate_tests::client::TlsVersion::ALL {
        let tls = mesh.tls().version(version).credentials(mesh.gateway_credentials()).resuming();
        for _ in 0..3 {
            let mut connection = mesh.client().tls(tls.clone()).connect().unwrap();
            assert_eq!(connection.get("/get").unwrap().status(), 200);
            let kind = connection.tls().unwrap().handshake_kind();
            assert_eq!(kind, Some(rustls::HandshakeKind::Full), "{version:?}");
        }
    }
}

#[test]
fn a_connection_ends_with_the_client_certificate_that_opened_it() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(INGRESS_CLIENT)])],
    );
    let leaf = tidegate_tests::pki::Leaf::dns(INGRESS_CLIENT).for_another(Duration::from_secs(4));
    let tls = mesh.tls().credentials(mesh.sign(&leaf));
    let mut connection = mesh.client().tls(tls).connect().unwrap();
    assert_eq!(connection.get("/get").unwrap().status(), 200);
    let end = connection.end(Duration::from_secs(10));
    assert_eq!(end, End::Closed);
}
