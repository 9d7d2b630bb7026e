//! docs/egress.md as its readers run it, on a cluster without a previous installation: an app that uses a company's proxy
//! itself, one that does not, and the way from an open mesh to a closed one. Squid is a Pod, the internet is nginx on the
//! node.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::json;
use tempfile::TempDir;
use tidegate_tests::golden::repository;
use tidegate_tests::helm;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::run;
use tidegate_tests::nginx::NginxProcess;
use tidegate_tests::objects;
use tidegate_tests::pki::{Authority, Leaf};
use tidegate_tests::walkthrough::{Shell, blocks, commands, section};

const IMAGES: [&str; 5] = ["sidecar", "controller", "cert-manager", "injector", "squid"];
/// The server at the end of every name that is not the cluster's.
const INTERNET: &str = "198.51.100.7";
const NAMES: [&str; 3] = ["en.wikipedia.org", "httpbin.org", "example.com"];
const TITLE: &str = "<title>Wikipedia, the free encyclopedia</title>";

/// In the access log, of a server that no object lists.
const REFUSED: &str = "\"destination_unregistered\"";

/// How long a change may take until a command shows it.
const EFFECT: Duration = Duration::from_secs(60);

/// Results that the page promises: the page's words, how the command starts, a part of it, and a part of its output.
const PROMISES: [(&str, &str, &str, &str); 11] = [
    ("`destination_unregistered`", "kubectl logs", "grep en.wikipedia.org", REFUSED),
    ("says why it is refused", "! tidegate explain", "", "spec.traffic.enableEgress"),
    ("The page's title comes back", "kubectl exec", "grep -o '<title>", TITLE),
    ("has the connection to the proxy", "kubectl logs", "my-company-proxy.com", "en.wikipedia.org:443"),
    ("`TCP_TUNNEL/200`", "kubectl exec", "tail -n 1 ", " TCP_TUNNEL/200 "),
    ("`CONNECT en.wikipedia.org:443`", "kubectl exec", "tail -n 1 ", " CONNECT en.wikipedia.org:443 - "),
    ("Both print `200`", "kubectl exec", "http://httpbin.org/get", "200\n"),
    ("Both print `200`", "kubectl exec", "https://httpbin.org/get", "200\n"),
    ("`GET http://httpbin.org/get mesh`", "kubectl exec", "tail -n 2 ", " GET http://httpbin.org/get mesh "),
    ("`CONNECT httpbin.org:443 mesh`", "kubectl exec", "tail -n 2 ", " CONNECT httpbin.org:443 mesh "),
    ("the access log has its name", "kubectl logs", "grep example.com", REFUSED),
];

/// What a cluster has that is not cut off: a server outside it, names that lead there, and apps that trust its certificate.
struct Internet {
    _nginx: NginxProcess,
    folder: TempDir,
}

impl Internet {
    fn start(cluster: &Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nginx = serve(cluster, folder.path());
        resolve_all_names(cluster);
        load_curl(cluster, folder.path());
        Self { _nginx: nginx, folder }
    }
}

/// nginx in the node's network, with a certificate for [`NAMES`] whose root is in `root.pem` of the folder.
fn serve(cluster: &Cluster, folder: &Path) -> NginxProcess {
    let root = Authority::root("the internet");
    let leaf = root.issue(&NAMES.iter().fold(Leaf::bare(), |leaf, name| leaf.with_dns(name)));
    fs::write(folder.join("root.pem"), root.pem()).unwrap();
    fs::write(folder.join("tls.pem"), leaf.chain_pem()).unwrap();
    fs::write(folder.join("tls.key"), leaf.key_pem()).unwrap();
    let configuration = format!(
        "worker_processes 1;\npid nginx.pid;\nerror_log logs/error.log notice;\ndaemon off;\nuser root;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n  access_log off;\n  server {{\n\
         listen {INTERNET}:80;\n    listen {INTERNET}:443 ssl;\n    ssl_certificate tls.pem;\n\
         ssl_certificate_key tls.key;\n    location / {{ return 200 '{TITLE}'; }}\n  }}\n}}\n"
    );
    let address = format!("{INTERNET}/32");
    run(cluster.on_node().args(["ip", "address", "add", &address, "dev", "lo"]), "")
        .unwrap_or_else(|failure| panic!("{failure}"));
    let front = SocketAddr::new(INTERNET.parse().unwrap(), 443);
    let start = || {
        cluster.move_thread_to_node();
        NginxProcess::start(folder, front, &configuration)
    };
    thread::scope(|scope| scope.spawn(start).join().unwrap())
}

/// The cluster's DNS answers for all names, as a resolver of the internet does.
fn resolve_all_names(cluster: &Cluster) {
    let config = cluster.get_json(&["configmap", "-n", "kube-system", "coredns"]);
    let none = "template ANY ANY {\n        rcode NXDOMAIN";
    let all = format!(
        "template IN A {{\n        answer \"{{{{ .Name }}}} 60 IN A {INTERNET}\"\n    }}\n    \
         template ANY ANY {{\n        rcode NOERROR"
    );
    let corefile = config["data"]["Corefile"].as_str().unwrap();
    assert!(corefile.contains(none), "{corefile}");
    let patch = json!({"data": {"Corefile": corefile.replace(none, &all)}}).to_string();
    let within = ["-n", "kube-system"];
    cluster.kubectl([&within[..], &["patch", "configmap", "coredns", "-p", &patch]].concat());
    cluster.kubectl([&within[..], &["rollout", "restart", "deployment/coredns"]].concat());
    cluster.kubectl([&within[..], &["rollout", "status", "deployment/coredns", "--timeout=120s"]].concat());
}

/// curl's image, with the root of [`serve`] among those that it trusts.
fn load_curl(cluster: &Cluster, folder: &Path) {
    let tar = folder.join("curl.tar");
    let root = format!("{}:/etc/ssl/certs/ca-certificates.crt", folder.join("root.pem").display());
    let mut command = Command::new(repository().join("tests/cluster/image"));
    command.args(["--tag", "docker.io/curlimages/curl:latest", "--entrypoint", "/usr/bin/curl", "--output"]);
    command.arg(&tar).args(["--program", "/usr/bin/curl", "--program", "/usr/bin/sleep"]);
    command.args(["--program", "/bin/sh", "--copy", &root]);
    run(&mut command, "").unwrap_or_else(|failure| panic!("{failure}"));
    cluster.load_archive(&tar);
}

/// What repeats itself until a change before it has come into effect: requests, and looks at their traces.
fn is_repeatable(command: &str) -> bool {
    let command = command.trim_start_matches("! ");
    ["kubectl exec ", "kubectl logs ", "tidegate explain ", "tidegate egress ", "tidegate check "]
        .iter()
        .any(|start| command.starts_with(start))
}

/// Runs a command, which must succeed and show what the page promises of it; returns the promises kept.
fn try_run(shell: &Shell, command: &str) -> Result<Vec<usize>, String> {
    let shown = shell.try_run(command).map_err(|failure| format!("{command}\n{failure}"))?;
    let mut kept = Vec::new();
    for (number, (_, start, part, text)) in PROMISES.iter().enumerate() {
        if command.starts_with(start) && command.contains(part) {
            if !shown.contains(text) {
                return Err(format!("{command}\nshows no {text:?}:\n{shown}"));
            }
            kept.push(number);
        }
    }
    Ok(kept)
}

/// Runs a block. Repeatable commands in a row are run until all of them succeed.
fn run_block(shell: &Shell, block: &[&str]) -> Vec<usize> {
    let all = |commands: &[&str]| -> Result<Vec<usize>, String> {
        let kept: Result<Vec<_>, _> = commands.iter().map(|command| try_run(shell, command)).collect();
        Ok(kept?.concat())
    };
    let mut kept = Vec::new();
    for commands in block.chunk_by(|one, next| is_repeatable(one) == is_repeatable(next)) {
        let start = Instant::now();
        let more = loop {
            match all(commands) {
                Ok(more) => break more,
                Err(failure) => {
                    assert!(is_repeatable(commands[0]) && start.elapsed() < EFFECT, "{failure}");
                }
            }
        };
        kept.extend(more);
    }
    kept
}

#[test]
fn the_page_on_egress_runs_as_written_and_shows_what_it_promises() {
    let page = helm::read("docs/egress.md");
    assert!(page.contains(objects::COMPANY_PROXY), "the walk-through has the manifest of Istio's example");
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for (promise, ..) in PROMISES {
        assert!(words.contains(promise), "the page no longer says {promise:?}");
    }
    let shell = Shell::start("egress", &IMAGES);
    let internet = Internet::start(shell.cluster());
    shell.export("SSL_CERT_FILE", &internet.folder.path().join("root.pem").display().to_string());
    shell.add_hosts(&format!("{INTERNET} {}", NAMES.join(" ")));
    for command in commands(section(&helm::read("docs/kubernetes.md"), "## Install")) {
        shell.run(command);
    }

    let (sidecars, on_cluster): (Vec<_>, Vec<_>) =
        blocks(&page).partition(|block| block.iter().all(|command| command.starts_with("tidegate-sidecar ")));
    assert_eq!(sidecars.len(), 1, "control_plane_proxy.rs starts one sidecar of the page: {sidecars:?}");
    let mut kept: Vec<_> = on_cluster.iter().flat_map(|block| run_block(&shell, block)).collect();
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(kept.len(), PROMISES.len(), "{kept:?} of {PROMISES:?}");
}
