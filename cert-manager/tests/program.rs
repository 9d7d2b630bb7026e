//! The `tidegate-cert-manager` program, run as its users run it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate-cert-manager");

fn public_key_file(dir: &std::path::Path) -> String {
    let path = dir.join("keys.pem");
    std::fs::write(&path, rcgen::KeyPair::generate().unwrap().public_key_pem()).unwrap();
    path.display().to_string()
}

#[test]
fn it_starts_publishes_what_it_has_to_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut process = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--admin-address", "127.0.0.1:0"])
        .args(["--jwt-keys-file", &public_key_file(dir.path())])
        .args(["--store-dir", &path("ca"), "--bundle-file", &path("bundle.pem")])
        .args(["--gateway-san", "ingress.example", "--gateway-secret", "osm-system/client-cert"])
        .args(["--gateway-dir", &path("secrets")])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    // Each of these comes, in whatever order.
    let mut wanted = vec!["certificate authority listens", "ingress gateway certificate written"];
    while !wanted.is_empty() {
        let line = lines.next().expect("the program ended early");
        wanted.retain(|text| !line.contains(text));
    }
    assert!(dir.path().join("secrets/osm-system/client-cert/tls.key").exists());
    let bundle = std::fs::read_to_string(path("bundle.pem")).unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);

    let killed = Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.collect();
    assert!(process.wait().unwrap().success());
    assert!(rest.iter().any(|line| line.contains("drained")), "{rest:?}");
}

#[test]
fn processes_that_share_a_store_and_start_at_once_agree_on_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let keys = public_key_file(dir.path());
    let store = dir.path().join("ca").display().to_string();
    let bundle = |index: usize| dir.path().join(format!("bundle-{index}.pem"));
    let mut processes: Vec<_> = (0..4)
        .map(|index| {
            Command::new(PROGRAM)
                .args(["--listen", "127.0.0.1:0", "--admin-address", "127.0.0.1:0", "--jwt-keys-file", &keys])
                .args(["--store-dir", &store, "--bundle-file", &bundle(index).display().to_string()])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let started: Vec<bool> = processes
        .iter_mut()
        .map(|process| {
            let lines = BufReader::new(process.stderr.as_mut().unwrap()).lines();
            lines.map(Result::unwrap).any(|line| line.contains("certificate authority listens"))
        })
        .collect();
    for process in &mut processes {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert_eq!(started, [true; 4]);
    let bundles: Vec<_> = (0..4).map(|index| std::fs::read_to_string(bundle(index)).unwrap()).collect();
    assert!(bundles.iter().all(|bundle| *bundle == bundles[0]), "{bundles:?}");
}

#[test]
fn it_refuses_wrong_options_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .args(["--jwt-keys-file", "/absent/keys", "--rate-burst", "0"])
        .args(["--store-dir", &dir.path().display().to_string()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("--rate-burst: must be") && text.contains("--jwt-keys-file: /absent/keys"),
        "{text}"
    );
}

#[test]
fn its_help_names_every_flag_with_its_environment_variable_and_default() {
    let mut process = Command::new(PROGRAM).arg("--help").stdout(Stdio::piped()).spawn().unwrap();
    let mut help = String::new();
    process.stdout.take().unwrap().read_to_string(&mut help).unwrap();
    assert!(process.wait().unwrap().success());
    for text in ["--listen", "TIDEGATE_CA_LISTEN", "[default: 24h]", "--gateway-secret", "--ca-certificate"] {
        assert!(help.contains(text), "{text} is not in\n{help}");
    }
}
