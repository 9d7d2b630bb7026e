//! The status of an EgressProxy says whether its proxies work, which no app has to use for that. Requires Squid.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::mesh::{Mesh, Options};
use tidegate_tests::squid::{self, Squid};
use tidegate_tests::wait;

/// How soon a status says that a proxy fails, or works again.
const WITHIN: Duration = Duration::from_secs(60);

/// The address of a proxy in the test's own block.
fn address(mesh: &Mesh) -> SocketAddr {
    mesh.block().at(50, 3128)
}

fn apply(mesh: &mut Mesh, proxies: &[SocketAddr]) {
    let proxies: Vec<_> = proxies.iter().map(|it| json!({"address": it.ip(), "port": it.port()})).collect();
    mesh.apply(
        "proxy",
        &[json!({
            "apiVersion": "tidegate.io/v1alpha1",
            "kind": "EgressProxy",
            "metadata": {"name": "corporate", "namespace": "httpbin"},
            "spec": {
                "proxies": proxies,
                "credentials": {"secretName": "corporate-proxy"},
                "timeouts": {"connect": "1s", "response": "1s"},
            },
        })],
    );
}

fn apply_secret(mesh: &mut Mesh, password: &str) {
    mesh.apply(
        "secret",
        &[json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "corporate-proxy", "namespace": "httpbin"},
            "stringData": {"username": "mesh", "password": password},
        })],
    );
}

/// Waits until the status says so: whether the proxies work, and a text of a warning.
#[track_caller]
fn wait_for(mesh: &Mesh, is_healthy: bool, text: &str) -> Value {
    wait::until(&format!("a status with healthy={is_healthy} {text}"), WITHIN, || {
        let policies = mesh.controller.admin_json("/policies");
        let all = policies.as_array().unwrap();
        let status = all.iter().find(|policy| policy["kind"] == "EgressProxy")?;
        let is_said = status["healthy"] == is_healthy && status["warnings"].to_string().contains(text);
        is_said.then(|| status.clone())
    })
}

#[test]
fn a_proxy_that_stops_or_wants_other_credentials_is_in_the_status_within_a_minute_and_again_once_it_works() {
    let mut mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
    let folder = tempfile::tempdir().unwrap();
    let (rules, _) = squid::authenticated(folder.path(), "mesh s3cret-2\n", "http_access deny all");
    apply_secret(&mut mesh, "s3cret-1");
    let proxy = address(&mesh);
    let mut running = Squid::start(proxy, "http_access deny all", &[]);
    apply(&mut mesh, &[proxy]);
    let good = wait_for(&mesh, true, "");
    assert_eq!(good["currentStatus"], "committed", "it denies the name of the probe, and works");

    running.stop();
    let status = wait_for(&mesh, false, "Connection refused");
    assert_eq!(status["currentStatus"], "committed", "it stays in force: nothing goes past the proxy");
    running.restart(&rules);
    let words =
        "answers CONNECT with 407 Proxy Authentication Required, X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0";
    wait_for(&mesh, false, words);
    apply_secret(&mut mesh, "s3cret-2");
    wait_for(&mesh, true, "");
    apply(&mut mesh, &[proxy, SocketAddr::new(proxy.ip(), 3129)]);
    wait_for(&mesh, false, "1 of 2 proxies fail");
    let log = mesh.controller.log();
    assert!(
        log.contains("Connection refused") && !log.contains("s3cret") && !log.contains("bWVzaDp"),
        "{log}"
    );
}
