//! The cluster that the Kubernetes suites run on is complete, and stopping it leaves nothing behind.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::run;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::workload::Workload;

#[test]
fn pods_reach_each_other_by_service_and_by_address_and_probes_of_all_kinds_pass() {
    let namespace = Namespace::new("plain");
    let server =
        Workload::new("server", &["serve", "--http=8080", "--tcp=9000", "--grpc=9001", "--https=8443"])
            .port("http", 80, 8080)
            .port("tcp", 9000, 9000)
            .container(
                "readinessProbe",
                json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}),
            )
            .container("livenessProbe", json!({"grpc": {"port": 9001}}))
            .container(
                "startupProbe",
                json!({"httpGet": {"scheme": "HTTPS", "path": "/healthz", "port": 8443}, "periodSeconds": 1}),
            );
    server.deploy(&namespace);
    Workload::client("client").deploy(&namespace);
    let (client, server) = (namespace.pod("client"), namespace.pod("server"));
    for host in ["server", &format!("server.{}.svc.cluster.local", namespace.name())] {
        let body = client.get_until(&format!("http://{host}/get?a=b"), 200);
        assert_eq!(body["args"]["a"], "b");
        assert_eq!(body["peer"], client.ip());
    }
    assert_eq!(client.get(&format!("http://{}:8080/status/418", server.ip())).status(), 418);
    assert_eq!(client.tcp("server:9000", "hello"), Ok("hello".to_owned()));
}

#[test]
fn a_killed_part_starts_again_and_does_its_work() {
    let cluster = Cluster::get();
    let namespace = Namespace::new("plain");
    cluster.kill_part("kube-scheduler");
    cluster.start_part("kube-scheduler");
    Workload::client("client").deploy(&namespace);
    assert!(namespace.pod("client").logs("app").is_empty());
}

fn script(arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/cluster"));
    command.args(arguments);
    command
}

fn traces(name: &str) -> Vec<String> {
    let unique = format!("tidegate-{name}");
    let folder = format!("/var/lib/tidegate-cluster/{name}");
    let mut found = Vec::new();
    if Path::new(&folder).exists() {
        found.push(folder.clone());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(&format!("{folder}/"))).map(str::to_owned));
    let groups = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path().join(&unique));
    found.extend(groups.filter(|path| path.exists()).map(|path| path.display().to_string()));
    let namespace = Path::new("/run/netns").join(&unique);
    found.extend(namespace.exists().then(|| namespace.display().to_string()));
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        found.extend(line.contains(&format!("{folder}/")).then_some(line));
    }
    found
}

#[test]
fn a_cluster_that_crashed_starts_again_and_one_that_ended_leaves_no_trace() {
    let name = "traces";
    run(&mut script(&["up", name]), "").unwrap_or_else(|failure| panic!("{failure}"));
    assert!(!traces(name).is_empty());
    // The state after an interrupted run: no API server, and a kubelet and containers without their runtime.
    for part in ["kube-apiserver", "containerd"] {
        run(&mut script(&["kill", name, part]), "").unwrap_or_else(|failure| panic!("{failure}"));
    }
    run(&mut script(&["status", name]), "").unwrap_err();
    run(&mut script(&["up", name]), "").unwrap_or_else(|failure| panic!("{failure}"));
    run(&mut script(&["status", name]), "").unwrap_or_else(|failure| panic!("{failure}"));
    run(&mut script(&["down", name]), "").unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(traces(name), Vec::<String>::new());
    // Already stopped: nothing to do.
    run(&mut script(&["down", name]), "").unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_name_that_cannot_be_used_is_refused_with_the_rule() {
    let failure = run(&mut script(&["up", "Not-A-Name"]), "").unwrap_err();
    assert!(failure.stderr.contains("cluster name \"Not-A-Name\": 1 to 12 lower-case"), "{failure}");
}
