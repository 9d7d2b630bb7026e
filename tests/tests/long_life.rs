//! Problems that show only over time: thousands of short connections, an app that closes connections, a process that
//! was frozen.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use tidegate_tests::app::{self, App};
use tidegate_tests::client::{Client, Connection, RequestOutcome};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, gateway, https, policy, principal};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const TLS_PORT: u16 = 14002;

fn mesh(certificate_life: Duration) -> Mesh {
    let ports = vec![(TLS_PORT, "http-tls")];
    let mut mesh = Mesh::with(Options { ports, certificate_life, ..Options::default() });
    mesh.apply(
        "policies",
        &[
            policy("plain", &[backend("httpbin", PORT, "http")], &[gateway()]),
            policy(
                "mutual",
                &[https("httpbin", TLS_PORT, false, &[])],
                &[gateway(), principal(INGRESS_CLIENT)],
            ),
        ],
    );
    mesh
}

fn mutual(mesh: &Mesh) -> Client {
    let tls = mesh.tls().credentials(mesh.gateway_credentials());
    Client::to(mesh.target_port(TLS_PORT)).from(mesh.gateway()).tls(tls)
}

/// Connections that end in every way: by the client, by the sidecar, in the middle of a head, in the middle of an
/// answer.
fn churn(plain: &Client, mutual: &Client, count: usize) {
    for i in 0..count {
        let mut connection = plain.connect().unwrap();
        match i % 4 {
            0 => assert_eq!(connection.get("/get").unwrap().status(), 200),
            1 => {
                connection.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                assert!(connection.read_to_end(SOON).0.starts_with(b"HTTP/1.1 200 "));
            }
            2 => connection.write(b"GET / HTTP/1.1\r\nHo"),
            _ => connection.write(b"GET /bytes/100000 HTTP/1.1\r\nHost: a\r\n\r\n"),
        }
        if i % 16 == 0 {
            assert_eq!(mutual.get("/get"), OK);
        }
    }
}

#[test]
fn thousands_of_short_connections_leave_neither_files_nor_memory_behind() {
    let mesh = mesh(Duration::from_secs(24 * 3600));
    let _apps = [PORT, TLS_PORT].map(|port| App::echo(mesh.app_port(port)));
    let (plain, mutual) = (mesh.client(), mutual(&mesh));
    let four_times = |count: usize| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| churn(&plain, &mutual, count));
            }
        });
    };
    let files = mesh.sidecar.open_files().len();
    let settle = || {
        wait::until_true("all connections have ended, those to the app, too", SOON, || {
            let metrics = mesh.sidecar.admin_get("/metrics").unwrap().text();
            // Some are opened on first use, for the admin page among others.
            metrics.lines().any(|line| line == "tidegate_tcp_connections_open 0")
                && mesh.sidecar.open_files().len() < files + 10
        });
        mesh.sidecar.resident_bytes()
    };
    four_times(500);
    let before = settle();
    four_times(1500);
    let grown = settle().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes");
}

#[test]
fn an_app_that_hangs_up_after_a_second_costs_no_request() {
    const KEPT: Duration = Duration::from_secs(1);
    let mesh = mesh(Duration::from_secs(24 * 3600));
    let _app = App::start(mesh.app_address(), |conversation| {
        conversation.hang_up_after(KEPT);
        app::echo(conversation)
    });
    let client = mesh.client();
    let end = Instant::now() + Duration::from_secs(10);
    thread::scope(|scope| {
        for number in 0..40 {
            let client = &client;
            scope.spawn(move || {
                let mut connection: Connection = client.connect().unwrap();
                // Pauses around the app's second, and around the sidecar's own limit below it.
                for pause in (0..).map(|i| 700 + (i * 53 + number * 17) % 350) {
                    if Instant::now() > end {
                        break;
                    }
                    assert_eq!(connection.get("/get").unwrap().status(), 200);
                    thread::park_timeout(Duration::from_millis(pause));
                }
            });
        }
    });
}

#[test]
fn a_sidecar_that_was_frozen_past_its_certificates_end_renews_it_as_soon_as_it_runs_again() {
    let life = Duration::from_secs(8);
    let mesh = mesh(life);
    let _apps = [PORT, TLS_PORT].map(|port| App::echo(mesh.app_port(port)));
    let mutual = mutual(&mesh);
    assert_eq!(mutual.get("/get"), OK);
    let serial = || mesh.sidecar.admin_json("/config")["tls"]["certificate"]["serial"].clone();
    let before = serial();
    let ends = SystemTime::now() + life;
    mesh.sidecar.signal(Signal::STOP);
    wait::until_true("the certificate ends", SOON, || SystemTime::now() > ends);
    mesh.sidecar.signal(Signal::CONT);
    wait::until_true("the certificate is another one", Duration::from_secs(3), || serial() != before);
    wait::until_true("the sidecar is ready", Duration::from_secs(3), || mesh.sidecar.is_ready());
    assert_eq!(mutual.get("/get"), OK);
    mesh.wait_connected();
}
