//! HTTP/2 conformance of the sidecar: h2spec, in front of an app that speaks HTTP/2 and of one that speaks HTTP/1.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::app::{App, echo};
use tidegate_tests::go;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, https, policy, range};

/// The pod's port whose app speaks HTTP/1.
const TLS_PORT: u16 = 14002;
/// All of h2spec except for an invalid preface in plaintext, which is an invalid HTTP/1 request there and is answered
/// as such.
const PLAINTEXT: &[&str] =
    &["generic", "hpack", "http2/3.5/1", "http2/4", "http2/5", "http2/6", "http2/7", "http2/8"];

#[test]
fn the_sidecar_conforms_to_http2_in_plaintext_and_over_tls() {
    let h2spec = go::build("h2spec", "github.com/summerwind/h2spec/cmd/h2spec");
    let mut mesh = Mesh::with(Options { ports: vec![(TLS_PORT, "http-tls")], ..Options::default() });
    let _http2 = H2cApp::unrecorded(mesh.app_address());
    let _http1 = App::unrecorded(mesh.app_port(TLS_PORT), echo);
    let backends = [backend("httpbin", PORT, "http"), https("httpbin", TLS_PORT, true, &[])];
    mesh.apply("policies", &[policy("h2spec", &backends, &[range("127.0.0.0/8")])]);

    run(&h2spec, mesh.target(), PLAINTEXT, "144 tests, 144 passed, 0 skipped, 0 failed");
    let tls = ["--tls", "--insecure"];
    run(&h2spec, mesh.target_port(TLS_PORT), &tls, "145 tests, 145 passed, 0 skipped, 0 failed");
}

#[track_caller]
fn run(h2spec: &Path, target: SocketAddr, further: &[&str], result: &str) {
    let (host, port) = (target.ip().to_string(), target.port().to_string());
    let mut command = Command::new(h2spec);
    // It expects responses with a body.
    command.args(["--host", &host, "--port", &port, "--path", "/bytes/100", "--timeout", "5"]).args(further);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(result), "h2spec {further:?}:\n{text}");
}
