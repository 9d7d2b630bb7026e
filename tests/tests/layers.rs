//! Allowed dependencies: between crates according to cargo, and between the modules of each crate according to its
//! source.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use tidegate_tests::modules::{self, Modules};

/// The workspace.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// All crates that a package depends on.
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
        .current_dir(ROOT)
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

/// The root file of each program and library of the workspace, with its crate's folder.
fn roots() -> Vec<(String, PathBuf)> {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let members: Vec<_> = members.split(']').next().unwrap().split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"core") && members.contains(&"injector"), "{members:?}");
    let mut roots = Vec::new();
    for member in members {
        let source = Path::new(ROOT).join(member).join("src");
        let programs =
            fs::read_dir(source.join("bin")).into_iter().flatten().map(|entry| entry.unwrap().path());
        let files = [source.join("lib.rs"), source.join("main.rs")].into_iter();
        let files = files.chain(programs.map(|program| program.join("main.rs")));
        roots.extend(files.filter(|file| file.exists()).map(|file| (member.to_owned(), file)));
    }
    roots
}

#[test]
fn the_modules_of_a_crate_form_no_circles() {
    let mut circles = Vec::new();
    for (member, root) in roots() {
        circles.extend(Modules::of(&root).circles().iter().map(|circle| format!("{member}: {circle}")));
    }
    assert!(circles.is_empty(), "modules that depend on each other:\n{}", circles.join("\n"));
}

/// In code that is not for tests only, of all programs and libraries.
#[test]
fn a_name_stands_for_one_type() {
    let mut files = BTreeMap::<String, BTreeSet<PathBuf>>::new();
    for (_, root) in roots().iter().filter(|(member, _)| member != "tests") {
        for (name, file) in modules::types(root) {
            files.entry(name).or_default().insert(file);
        }
    }
    assert!(files.contains_key("InboundPolicy"), "{files:?}");
    let twice = files.iter().filter(|(_, files)| files.len() > 1);
    let twice: Vec<_> = twice.map(|(name, files)| format!("{name}: {files:?}")).collect();
    assert!(twice.is_empty(), "names that two types have:\n{}", twice.join("\n"));
}
