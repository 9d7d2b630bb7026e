//! Many sidecars on one node.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tidegate_tests::kubernetes::mesh::Mesh;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::{Pod, PodOutcome};
use tidegate_tests::kubernetes::workload::Workload;

const PODS: u32 = 60;
const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";

/// Limits each user's inotify instances to the kernel's default, as on a node without tuning. Restored when dropped.
struct Untuned {
    before: String,
}

impl Untuned {
    fn machine() -> Self {
        let before = fs::read_to_string(LIMIT).unwrap();
        if before.trim().parse::<u32>().unwrap() > 128 {
            fs::write(LIMIT, "128").unwrap();
        }
        Self { before }
    }
}

impl Drop for Untuned {
    fn drop(&mut self) {
        let _ = fs::write(LIMIT, &self.before);
    }
}

/// The processes of the sidecars of a namespace's pods with this prefix.
fn sidecars(namespace: &str, prefix: &str) -> Vec<PathBuf> {
    let workload = format!("\0--workload={namespace}/{prefix}");
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let runs = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&workload)
    };
    processes.filter(runs).collect()
}

fn open_files(process: &Path) -> Vec<String> {
    let entries = fs::read_dir(process.join("fd")).unwrap().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
}

/// The sidecar's state for the addresses that its app has dialled.
fn destinations(pod: &Pod) -> Vec<Value> {
    pod.get("http://127.0.0.1:15000/config").ok()["destinations"].as_array().unwrap().clone()
}

#[test]
fn sixty_sidecars_on_one_node_are_ready_and_reached_over_mutual_tls_and_none_has_an_inotify_instance() {
    Mesh::get().cluster().own_name();
    let _untuned = Untuned::machine();
    let namespace = Namespace::meshed("many");
    Workload::client("client").deploy(&namespace);
    let many = Workload::new("many", &["serve", "--http=8080"]).port("http", 80, 8080).replicas(PODS);
    many.apply(&namespace);
    namespace.kubectl(&["rollout", "status", "deployment/many", "--timeout=300s"]);
    let (client, pods) = (namespace.pod("client"), namespace.pods("many"));
    assert_eq!(pods.len(), PODS as usize);

    let addresses: Vec<_> = pods.iter().map(|pod| format!("{}:8080", pod.ip())).collect();
    let urls: Vec<_> = addresses.iter().map(|address| format!("http://{address}/hostname")).collect();
    let arguments: Vec<_> =
        ["get", "--until", "200"].into_iter().chain(urls.iter().map(String::as_str)).collect();
    for (answer, pod) in client.ask_all(&arguments).iter().zip(&pods) {
        assert_eq!(PodOutcome::of(answer).ok()["hostname"], pod.name());
    }
    let known = destinations(&client);
    for address in &addresses {
        let destination = known.iter().find(|known| known["address"] == **address).unwrap();
        assert_eq!(destination["state"], "mesh", "{destination}");
        let identity = format!("many.{}.cluster.local", namespace.name());
        assert_eq!(destination["endpoints"][0]["identity"], identity, "{destination}");
    }

    let sidecars = sidecars(namespace.name(), "many-");
    assert_eq!(sidecars.len(), PODS as usize);
    for sidecar in &sidecars {
        let files = open_files(sidecar);
        assert!(files.iter().any(|file| file.contains("socket")), "{files:?}");
        assert!(!files.iter().any(|file| file.contains("inotify")), "{files:?}");
    }
}
