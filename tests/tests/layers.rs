//! Who may know whom, as cargo sees it.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::env;
use std::process::Command;

/// Every crate that a package is built from.
fn tree(package: &str) -> BTreeSet<String> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            package,
            "-e",
            "normal,build",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names: BTreeSet<_> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split(' ').next().map(str::to_owned))
        .collect();
    assert!(names.contains(package), "{names:?}");
    names
}

#[test]
fn the_sidecar_is_free_of_kubernetes_types() {
    let names = tree("tidegate-sidecar");
    let kubernetes: Vec<_> =
        names.iter().filter(|name| name.starts_with("kube") || name.starts_with("k8s-")).collect();
    assert!(kubernetes.is_empty(), "{kubernetes:?}");
    assert!(names.contains("tidegate-core") && names.contains("rustls"), "{names:?}");
}

#[test]
fn daemons_never_import_each_other() {
    let daemons = ["tidegate-sidecar", "tidegate-controller", "tidegate-cert-manager", "tidegate-injector"];
    for daemon in daemons {
        let names = tree(daemon);
        for other in daemons.iter().chain(&["tidegate"]).filter(|other| **other != daemon) {
            assert!(!names.contains(*other), "{daemon} is built from {other}");
        }
    }
}

#[test]
fn the_ground_floor_is_pure_and_one_crypto_library_serves_all() {
    let core = tree("tidegate-core");
    for name in ["tokio", "kube", "tonic", "rustls", "hyper"] {
        assert!(!core.contains(name), "tidegate-core is built from {name}");
    }
    let all = tree("tidegate");
    for name in ["ring", "openssl", "native-tls", "serde_yaml"] {
        assert!(!all.contains(name), "{name}");
    }
}
