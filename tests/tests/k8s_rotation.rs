//! `tidegate certificate rotate` on a real cluster, under load, in a separate mesh.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidegate_tests::daemon::ours;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::{CommandFailure, run};
use tidegate_tests::kubernetes::load::PodLoad;
use tidegate_tests::kubernetes::mesh::{VALUES, install_crds};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::workload::Workload;

/// The mesh, and its control plane's namespace.
const MESH: &str = "rotation";
const SECRET: &str = "rotated-gateway";

/// A separate mesh; removed when dropped.
struct ShortLived {
    cluster: &'static Cluster,
    home: Namespace,
}

impl ShortLived {
    fn install() -> Self {
        let cluster = Cluster::get();
        cluster.load_images(&["sidecar", "controller", "cert-manager", "injector"]);
        install_crds(cluster);
        let mesh = Self { cluster, home: Namespace::named(MESH) };
        // Long enough that certificates are renewed only for the new root, short enough that `check` reports their end.
        let arguments = "[--default-lifetime=30m, --max-lifetime=30m, --bundle-propagation=1s]";
        let mut values = tempfile::NamedTempFile::new().unwrap();
        writeln!(values, "{VALUES}meshName: {MESH}\ncertManager: {{extraArgs: {arguments}}}").unwrap();
        let values = values.path().to_str().unwrap();
        mesh.tidegate(&["install", "--apply", "--skip-crds", "--wait", "--values", values]).unwrap();
        mesh
    }

    /// `tidegate` for this mesh.
    fn tidegate(&self, words: &[&str]) -> Result<String, CommandFailure> {
        let mut command = self.cluster.command(ours("tidegate"));
        command.env("TIDEGATE_NAMESPACE", MESH).env("TIDEGATE_MESH_NAME", MESH).args(words);
        run(&mut command, "")
    }

    fn rotate(&self, more: &[&str]) -> Result<String, CommandFailure> {
        self.tidegate(&[&["certificate", "rotate", "--yes"], more].concat())
    }

    /// Takes the first step, and asserts that the second one waits for this Pod.
    fn assert_stays_at_the_first_step(&self, pod: &str) {
        assert!(self.rotate(&["--step"]).unwrap().contains("Step taken: trust-both"));
        let refused = self.rotate(&["--step", "--timeout=5s"]).unwrap_err();
        assert_eq!(refused.code, Some(1), "{refused}");
        for part in ["the rotation stays at step trust-both", pod, "Nothing is broken meanwhile"] {
            assert!(refused.stderr.contains(part), "{refused}");
        }
        assert_eq!(self.status()["step"], "trust-both");
    }

    /// Asserts that the gateway's Secret has only one root, which verifies its certificate.
    fn assert_gateway_has_one_root(&self) {
        let (roots, leaf) =
            (self.gateway("ca.crt", |pem| certificates(pem) == 1), self.gateway("tls.crt", |_| true));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(roots.as_bytes()).unwrap();
        run(Command::new("openssl").args(["verify", "-CAfile"]).arg(file.path()), &leaf).unwrap();
    }

    fn status(&self) -> Value {
        let text = self.tidegate(&["certificate", "status", "-o", "json"]).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// A part of the ingress controller's Secret, once it is as wanted.
    #[track_caller]
    fn gateway(&self, key: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        self.home.wait_for("the gateway's Secret", &["secret", SECRET], |secret| {
            let bytes = BASE64_STANDARD.decode(secret["data"][key].as_str()?).unwrap();
            Some(String::from_utf8(bytes).unwrap()).filter(|pem| is_wanted(pem))
        })
    }

    /// Has the certificate authority write the ingress controller's Secret.
    fn configure_gateway(&self) {
        let ingress = json!({"spec": {"certificate": {"ingressGateway": {
            "secret": {"name": SECRET, "namespace": MESH},
            "subjectAltNames": ["ingress.rotation.cluster.local"],
            "validityDuration": "20m",
        }}}});
        let patch = ["patch", "meshconfig", "osm-mesh-config", "--type=merge", "-p", &ingress.to_string()];
        self.home.kubectl(&patch);
    }

    /// Certificates that end within the hour are mentioned, but are not a failure.
    #[track_caller]
    fn assert_short_lives_are_a_warning(&self, namespace: &str) {
        let report = self.tidegate(&["check", "--proxy", "--wait", "60s", "-o", "json"]).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let found =
            report["checks"].as_array().unwrap().iter().find(|check| check["id"] == "sidecar-certificates");
        let found = found.unwrap_or_else(|| panic!("{report:#}"));
        assert_eq!(found["status"], "warning", "{report:#}");
        assert!(found["message"].as_str().unwrap().contains(namespace), "{report:#}");
    }
}

impl Drop for ShortLived {
    fn drop(&mut self) {
        // Its namespace is deleted separately; this deletes what is cluster-wide.
        let _ = self.tidegate(&["uninstall"]);
    }
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// Admits every client to the server.
fn open_policy() -> Value {
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "IngressBackend",
        "metadata": {"name": "open"},
        "spec": {
            "backends": [{"name": "server", "port": {"number": 8080, "protocol": "http"}}],
            "sources": [{"kind": "IPRange", "name": "0.0.0.0/0"}],
        },
    })
}

#[test]
fn the_root_is_replaced_under_load_and_not_before_every_sidecar_is_ready_for_it() {
    let mesh = ShortLived::install();
    mesh.configure_gateway();
    let (shop, outside) = (Namespace::new("rotated"), Namespace::new("outside"));
    mesh.tidegate(&["namespace", "add", shop.name()]).unwrap();
    Workload::http("server").apply(&shop);
    Workload::client("paused").apply(&shop);
    Workload::client("client").apply(&outside);
    shop.apply(&open_policy().to_string());
    let url = format!("http://server.{}/get", shop.name());
    outside.pod("client").get_until(&url, 200);
    shop.pod("paused").get_until(&url, 200);
    // Between sidecars: a connection for each request, some short-lived, some permanent. From outside: permanent.
    let meshed = PodLoad::start(&shop, "meshed", &url, &[]);
    let fresh = PodLoad::start(&shop, "fresh", &url, &["--requests-per-connection=1"]);
    let kept = PodLoad::start(&shop, "kept", &url, &["--requests-per-connection=20"]);
    let lasting = PodLoad::start(&outside, "lasting", &url, &[]);

    let before = mesh.status();
    assert_eq!((&before["step"], &before["left_behind"]), (&json!("steady"), &json!([])), "{before:#}");
    assert_eq!(certificates(&mesh.gateway("ca.crt", |_| true)), 1);

    // A stopped sidecar prevents the second step.
    let paused = shop.pod("paused");
    let sidecar = paused.pause_sidecar();
    mesh.assert_stays_at_the_first_step(&format!("{}/{}", shop.name(), paused.name()));
    // Clients that use the Secret trust both roots by now.
    mesh.gateway("ca.crt", |pem| certificates(pem) == 2);

    drop(sidecar);
    let said = mesh.rotate(&["--timeout=5m"]).unwrap();
    let after = mesh.status();
    assert!(said.contains(after["issuing_root"].as_str().unwrap()), "{said}: {after:#}");
    assert_eq!(after["step"], "steady");
    assert_ne!(after["issuing_root"], before["issuing_root"]);
    assert_eq!(after["trusted_roots"].as_array().unwrap().len(), 1, "{after:#}");

    mesh.assert_gateway_has_one_root();
    for load in [&fresh, &kept, &meshed, &lasting] {
        load.wait_for(20);
        load.assert_flawless();
    }
    let report = lasting.report();
    assert_eq!(report["connections"], 4, "connections without a client certificate stay open: {report:#}");
    let report = meshed.report();
    assert_eq!(report["connections"], 4, "connections authenticated by the old root stay open: {report:#}");
    paused.get_until(&url, 200);

    mesh.assert_short_lives_are_a_warning(shop.name());
}
