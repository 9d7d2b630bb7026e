//! The command line: the whole mesh in one process, the demo, and the commands that query a mesh.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, End, RequestOutcome};
use tidegate_tests::daemon;
use tidegate_tests::mesh::{PORT, example};
use tidegate_tests::pki;
use tidegate_tests::standalone::StandaloneProcess;
use tidegate_tests::wait::{self, SOON};

const RESET: RequestOutcome = RequestOutcome::Refused(End::Reset);
const OK: RequestOutcome = RequestOutcome::Status(200);
const FORBIDDEN: RequestOutcome = RequestOutcome::Status(403);

fn tidegate(arguments: &[&str]) -> Output {
    Command::new(daemon::ours("tidegate")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn the_demo_comes_to_a_green_end() {
    let output = tidegate(&["demo"]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for part in ["200", "403", "RBAC: access denied", "5 answers were as expected"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn standalone_walks_through_the_example() {
    let mesh = StandaloneProcess::start();
    let _app = App::echo(mesh.app_address());
    // The admin address is the controller's; a sidecar starts when the controller has reported its Pod.
    mesh.wait_for(&mesh.plain(), &RESET);
    mesh.apply_example("1-http");
    mesh.wait_for(&mesh.plain(), &OK);
    assert_eq!(mesh.plain().from(mesh.block().ip(99)).get("/get"), RESET);
    mesh.apply_example("2-https");
    mesh.wait_for(&mesh.mutual(), &OK);
    assert_eq!(mesh.plain().get("/get"), RESET);
    mesh.apply_example("3-https-untrusted");
    mesh.wait_for(&mesh.mutual(), &FORBIDDEN);
    mesh.apply_example("4-https-skip");
    mesh.wait_for(&mesh.mutual(), &OK);
    fs::remove_file(mesh.manifest("policy.yaml")).unwrap();
    mesh.wait_for(&mesh.mutual(), &RESET);
}

#[test]
fn the_gateway_s_secret_follows_the_mesh_config() {
    let mesh = StandaloneProcess::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply_example("2-https");
    mesh.wait_for(&mesh.mutual(), &OK);
    let folder = mesh.secret().0;
    let version = mesh.secret().version();

    let (ours, other) = (pki::INGRESS_CLIENT, "other.ns.cluster.local");
    mesh.change("meshconfig.yaml", |text| text.replace(ours, other));
    wait::until_true("the Secret is another one", SOON, || mesh.secret().version() != version);
    mesh.wait_for(&mesh.mutual(), &FORBIDDEN);

    mesh.change("meshconfig.yaml", |text| text.replace(other, ours));
    wait::until_true("the old name is back", SOON, || mesh.mutual().get("/get") == OK);

    // If deleted, it is written again.
    fs::remove_dir_all(&folder).unwrap();
    wait::until_true("the Secret is put back", SOON, || folder.join("tls.crt").exists());

    mesh.change("meshconfig.yaml", |text| text.split("    ingressGateway:").next().unwrap().to_owned());
    wait::until_true("the Secret goes with its field", SOON, || !folder.join("tls.crt").exists());
}

#[test]
fn pods_come_and_go() {
    let mesh = StandaloneProcess::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply_example("1-http");
    mesh.wait_for(&mesh.plain(), &OK);
    let second = mesh.block().ip(11).to_string();
    let pod = fs::read_to_string(mesh.manifest("httpbin.yaml")).unwrap();
    let pod = pod.rsplit("---").next().unwrap().replace(&mesh.block().ip(10).to_string(), &second);
    fs::write(
        mesh.manifest("second.yaml"),
        pod.replace("  name: httpbin\n  namespace", "  name: second\n  namespace"),
    )
    .unwrap();
    let client = Client::to((mesh.block().ip(11), PORT).into()).from(mesh.block().ip(30));
    mesh.wait_for(&client, &OK);
    fs::remove_file(mesh.manifest("second.yaml")).unwrap();
    wait::until_true("its sidecar is gone", SOON, || client.connect().is_err());
    assert_eq!(mesh.plain().get("/get"), OK);
}

#[test]
fn an_interrupt_drains_and_the_next_start_has_the_same_root() {
    let mut mesh = StandaloneProcess::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply_example("1-http");
    mesh.wait_for(&mesh.plain(), &OK);
    let root = mesh.root();
    mesh.process.signal(Signal::INT);
    let status = wait::until("it ends", SOON, || mesh.process.exited());
    assert!(status.success(), "{status}");
    assert!(mesh.plain().connect().is_err());
    mesh.process.kill();
    mesh.process.start_ready();
    mesh.wait_for(&mesh.plain(), &OK);
    assert_eq!(mesh.root(), root);
}

#[test]
fn explain_and_policy_list_say_what_a_running_mesh_does() {
    let mesh = StandaloneProcess::start();
    mesh.apply_example("2-https");
    let admin = mesh.process.admin_address().to_string();
    let (source, stranger) = (mesh.block().ip(30).to_string(), mesh.block().ip(99).to_string());
    wait::until_true("the policy is listed", SOON, || {
        text(&tidegate(&["policy", "list", "--admin-address", &admin])).contains("IngressBackend")
    });
    let ask = |more: &[&str]| {
        let arguments =
            [&["explain", "httpbin/httpbin", "--port", "14001", "--admin-address", &admin], more].concat();
        let output = tidegate(&arguments);
        (output.status.code().unwrap(), text(&output))
    };
    let (code, answer) = ask(&["--source", &source, "--principal", pki::INGRESS_CLIENT]);
    assert_eq!(code, 0, "{answer}");
    assert!(answer.contains("allow") && answer.contains("httpbin/httpbin"), "{answer}");
    for (arguments, reason) in [
        (&["--source", &source[..], "--principal", "x.y"][..], "principal"),
        (&["--source", &stranger, "--principal", pki::INGRESS_CLIENT], "source"),
        (&["--source", &source, "--speaks", "plaintext"], "TLS"),
        (&["--source", &source, "--speaks", "tls"], "certificate"),
    ] {
        let (code, answer) = ask(arguments);
        assert_eq!(code, 1, "{answer}");
        assert!(answer.contains("deny") && answer.contains(reason), "{reason} in {answer}");
    }
    // Offline, from the folder, the answer is the same.
    let folder = mesh.manifests();
    let offline =
        ["explain", "httpbin/httpbin", "-f", folder.to_str().unwrap(), "--source", &source, "-o", "json"];
    let output = tidegate(&[&offline[..], &["--principal", pki::INGRESS_CLIENT]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["decision"], "allow");
}

#[test]
fn validate_reports_every_error_at_once_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = example("mesh").display().to_string();
    let output = tidegate(&["validate", "-f", &mesh]);
    assert!(output.status.success(), "{}", text(&output));

    let good = fs::read_to_string(example("policies/2-https.yaml")).unwrap();
    fs::write(folder.path().join("a.yaml"), good.replace("protocol: https", "protocol: grpc")).unwrap();
    fs::write(folder.path().join("b.yaml"), "kind: [\n").unwrap();
    let output = tidegate(&["validate", "-f", folder.path().to_str().unwrap()]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let expected = "Expected 'port.protocol' to be 'http' or 'https', got: grpc";
    assert!(text.contains(expected) || text.contains("grpc"), "{text}");
    let line = good.lines().position(|line| line.contains("protocol:")).unwrap() + 1;
    assert!(text.contains(&format!("a.yaml:{line}")), "a.yaml:{line} in {text}");
    assert!(text.contains("b.yaml:"), "{text}");
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tidegate(&["completions", shell]);
        assert!(output.status.success() && text(&output).contains("COMPLETE"), "{shell}: {}", text(&output));
    }
    // The request of the completion scripts.
    let mut command = Command::new(daemon::ours("tidegate"));
    let output = command.env("COMPLETE", "fish").args(["--", "tidegate", "standa"]).output().unwrap();
    assert!(text(&output).contains("standalone"), "{}", text(&output));
}

#[test]
fn a_mesh_keeps_working_over_many_lives_of_its_tokens_and_certificates() {
    // A token is rewritten every second, a certificate renewed within five.
    let mut mesh = StandaloneProcess::with(&[("--token-lifetime", "4s"), ("--certificate-lifetime", "8s")]);
    let _app = App::echo(mesh.app_address());
    mesh.apply_example("1-http");
    mesh.wait_for(&mesh.plain(), &OK);
    let token = mesh.path().join("state/tokens/httpbin/httpbin");
    let read_token = || fs::read_to_string(&token).unwrap();
    let expiry = |mesh: &StandaloneProcess| {
        let workloads = mesh.process.admin_json("/workloads");
        let of_httpbin =
            workloads.as_array().unwrap().iter().find(|one| one["workload"] == "httpbin/httpbin");
        of_httpbin.unwrap()["sidecar"]["certificateNotAfter"].as_str().map(str::to_owned)
    };
    let mut seen = (read_token(), expiry(&mesh));
    for renewal in 1..=4 {
        wait::until_true(&format!("renewal {renewal} of token and certificate"), SOON, || {
            read_token() != seen.0 && expiry(&mesh) != seen.1
        });
        seen = (read_token(), expiry(&mesh));
    }
    // Everything works as at the start.
    fs::remove_file(mesh.manifest("policy.yaml")).unwrap();
    mesh.wait_for(&mesh.plain(), &RESET);
    mesh.apply_example("1-http");
    mesh.wait_for(&mesh.plain(), &OK);
    mesh.process.signal(Signal::TERM);
    let status = wait::until("it ends", SOON, || mesh.process.exited());
    assert!(status.success(), "{status}");
}

#[test]
fn a_copied_state_folder_is_the_same_mesh_and_one_that_has_lost_its_root_does_not_start() {
    let mut mesh = StandaloneProcess::start();
    let root = mesh.root();
    mesh.process.kill();
    // All links are replaced by copies.
    let copy = "cp -rL state copy && rm -r state && mv copy state";
    let copied = Command::new("sh").args(["-c", copy]).current_dir(mesh.path()).status();
    assert!(copied.unwrap().success());
    mesh.process.start_ready();
    assert_eq!(mesh.root(), root);
    mesh.process.kill();
    fs::remove_dir_all(mesh.path().join("state/ca")).unwrap();
    mesh.process.start();
    let status = wait::until("it ends", SOON, || mesh.process.exited());
    assert!(!status.success(), "{status}");
    let log = mesh.process.log();
    for part in [
        "state/ca holds no certificate authority",
        "state/trust-bundle.pem holds the trust bundle",
        "--new-root",
    ] {
        assert!(log.contains(part), "{part} in {log}");
    }
    assert!(!mesh.path().join("state/ca").exists());
}
