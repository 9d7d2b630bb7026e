//! Rolling restarts of both sides of calls between workloads, under load.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use tidegate_tests::kubernetes::mesh::Mesh;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::{APP, Pod};
use tidegate_tests::kubernetes::workload::Workload;

/// Follows the logs of an app's Pods until they end; the last line of each is the report of its load.
fn reports_at_the_end(namespace: &Namespace, app: &str) -> Vec<JoinHandle<Value>> {
    let cluster = namespace.cluster();
    let follow = |pod: &Pod| {
        let arguments = ["logs", "-f", "-n", namespace.name(), pod.name(), "-c", APP].map(str::to_owned);
        thread::spawn(move || {
            let log = cluster.kubectl(arguments);
            serde_json::from_str(log.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{log}"))
        })
    };
    namespace.pods(app).iter().map(follow).collect()
}

#[test]
fn rolling_restarts_of_clients_and_servers_at_500_requests_a_second_lose_none() {
    Mesh::get();
    let namespace = Namespace::meshed("both");
    Workload::new("server", &["serve", "--http=8080", "--drain=3"])
        .port("http", 80, 8080)
        .ready_over_http(8080)
        .replicas(2)
        .container("lifecycle", json!({"preStop": {"sleep": {"seconds": 5}}}))
        .pod("terminationGracePeriodSeconds", json!(30))
        .deploy(&namespace);
    // Two Pods with 11 connections, each of which sends a request every 42 ms or so. They start with their first instruction,
    // and finish what they have sent after the signal to end.
    let load = ["load", "http://server/get", "--connections=11", "--pause=40"];
    Workload::new("clients", &load).replicas(2).deploy(&namespace);
    let mut reports = Vec::new();
    for _ in 0..3 {
        let ended = reports_at_the_end(&namespace, "clients");
        assert_eq!(ended.len(), 2);
        namespace.kubectl(&["rollout", "restart", "deployment/server", "deployment/clients"]);
        namespace.wait_rolled_out("deployment/server");
        namespace.wait_rolled_out("deployment/clients");
        reports.extend(ended.into_iter().map(|report| report.join().unwrap()));
    }
    reports.extend(namespace.pods("clients").iter().map(|pod| pod.get("http://127.0.0.1:8090/report").ok()));
    assert_eq!(reports.len(), 8);
    for report in reports {
        assert!(report["failures"] == 0 && report["requests"].as_u64() > Some(0), "{report:#}");
    }
}
