//! The `tidegate-cert-manager` program, run as its users run it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::json;
use tidegate_kubernetes::fake_api::FakeApi;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelet_hears_that_it_lives_while_the_api_server_is_away_and_that_it_is_ready_once_it_issues() {
    let dir = tempfile::tempdir().unwrap();
    let api = FakeApi::start().await;
    api.apply("v1/namespaces", json!({"metadata": {"name": "tidegate-system"}}));
    api.stop();
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
    let mut process = Command::new(PROGRAM)
        .args(["--kubernetes", "--pod-name", "a", "--namespace", "tidegate-system"])
        .args(["--kubeconfig", &kubeconfig.display().to_string()])
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin-address",
            "127.0.0.1:0",
            "--health-address",
            "127.0.0.1:0",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    let up = lines.find(|line| line.contains("admin server is up")).unwrap();
    let port: u16 =
        up.rsplit_once("127.0.0.1:").unwrap().1.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    assert!(lines.any(|line| line.contains("waiting for the API server")));
    assert_eq!((status_of(port, "/live"), status_of(port, "/ready")), (200, 503));

    api.restart().await;
    assert!(lines.any(|line| line.contains("certificate authority listens")));
    while status_of(port, "/ready") != 200 {}
    let killed = Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap();
    assert!(killed.success());
    // Read to the end, so that what it says there finds a reader.
    lines.for_each(drop);
    assert!(process.wait().unwrap().success());
}

/// The status of a page.
fn status_of(port: u16, path: &str) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
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
