//! The injector's program within its memory limit from the chart, under attack by clients.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use tidegate_kubernetes::fake_api::{FakeApi, memory_limit};
use tidegate_tests::client::{Client, Tls};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options};
use tidegate_tests::wait::{self, SOON};
use tidegate_tests::webhook::{self, LARGEST, NAME, ask, ask_on, create, head, send};

struct LimitedInjector {
    mesh: Mesh,
    injector: Daemon,
    api: FakeApi,
    _runtime: tokio::runtime::Runtime,
}

impl LimitedInjector {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let api = runtime.block_on(FakeApi::start());
        let labels = json!({"tidegate.io/injection": "enabled"});
        api.apply("v1/namespaces", json!({"metadata": {"name": "shop", "labels": labels}}));
        let client = json!({"service": {"name": "tidegate-injector", "namespace": "tidegate-system"}});
        let webhook = json!({
            "name": "a.tidegate.io", "clientConfig": client, "admissionReviewVersions": ["v1"], "sideEffects": "None",
        });
        let configuration = json!({"metadata": {"name": "tidegate-injector"}, "webhooks": [webhook]});
        api.apply("admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", configuration);
        let mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
        let kubeconfig = mesh.path().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        let mut injector = mesh.injector(&kubeconfig);
        injector.start_ready();
        injector.limit_memory(memory_limit("injector"));
        Self { mesh, injector, api, _runtime: runtime }
    }

    /// A client at its own address.
    fn client(&self, host: u8) -> Client {
        let tls = Tls::new(self.mesh.roots(), NAME);
        Client::to(self.mesh.webhook_address()).from(self.mesh.block().ip(host)).tls(tls)
    }
}

/// A Pod with a field of its spec, filled with as many items as fit into the largest body.
fn full(field: &str, item: &str) -> String {
    webhook::full(field, item, LARGEST)
}

#[test]
fn whatever_the_injector_is_sent_it_lives_within_its_memory_and_answers_others() {
    let mut cluster = LimitedInjector::start();
    let healthy = cluster.client(50);
    let pod = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"a"}]}}"#;
    assert_eq!(ask(&healthy, pod)["patchType"], "JSONPatch");
    let attacker = cluster.client(51);
    // Incomplete bodies.
    let unfinished: Vec<_> = (0..40)
        .map(|_| {
            let mut connection = attacker.connect().unwrap();
            connection.write(head(LARGEST).as_bytes());
            connection
        })
        .collect();
    let bodies = [
        full("volumes", "{}"),
        full("initContainers", "{}"),
        full("tolerations", "{}"),
        full("ephemeralContainers", r#"{"name":"a","livenessProbe":{"httpGet":{"port":1}}}"#),
    ];
    thread::scope(|scope| {
        for (number, body) in (0u8..).zip(&bodies) {
            let others = [cluster.client(60 + 2 * number), cluster.client(61 + 2 * number)];
            for other in others {
                scope.spawn(move || {
                    let mut connection = other.connect().unwrap();
                    send(&mut connection, &create(body));
                    // An answer or an end: only what other clients see matters.
                    let _ = connection.response(tidegate_tests::http1::MessageKind::Response);
                });
            }
        }
        for _ in 0..20 {
            assert_eq!(ask(&healthy, pod)["patchType"], "JSONPatch");
        }
    });
    drop(unfinished);
    assert_eq!(ask(&healthy, pod)["patchType"], "JSONPatch");
    assert_eq!(cluster.injector.exited(), None);
    let resident = cluster.injector.resident_bytes();
    assert!(resident < memory_limit("injector") / 2, "{resident} bytes");
}

#[test]
fn namespaces_that_are_filled_up_hold_little_memory_and_new_ones_are_known_at_once() {
    let cluster = LimitedInjector::start();
    let healthy = cluster.client(50);
    let pod = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"a"}]}}"#;
    assert_eq!(ask(&healthy, pod)["patchType"], "JSONPatch");
    let fresh = cluster.injector.resident_bytes();
    let many = |name: &str| (0..5_000).map(|i| (format!("{name}{i:04}"), json!("x"))).collect::<Value>();
    // All names look like ours.
    let mut labels = many("tidegate.io/l");
    labels["tidegate.io/injection"] = "enabled".into();
    let mut annotations = many("openservicemesh.io/sidecar-resource-limits-");
    annotations["tidegate.io/sidecar-limits"] = "x".repeat(150_000).into();
    for number in 0..30 {
        let name = format!("tenant-{number}");
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        cluster.api.apply("v1/namespaces", json!({ "metadata": metadata }));
    }
    // The last namespace has been read, and the error names its invalid annotation.
    let in_tenant = create(pod).replace(r#""namespace":"shop""#, r#""namespace":"tenant-29""#);
    let named = "annotation openservicemesh.io/sidecar-resource-limits-0000 of the namespace tenant-29: ";
    wait::until_true("the newest namespace is known", 3 * SOON, || {
        let mut connection = healthy.connect().unwrap();
        let answer = connection.request(format!("{}{in_tenant}", head(in_tenant.len())).as_bytes()).unwrap();
        String::from_utf8(answer.body).unwrap().contains(named)
    });
    assert_eq!(ask(&healthy, pod)["patchType"], "JSONPatch");
    let grown = cluster.injector.resident_bytes().saturating_sub(fresh);
    assert!(grown < 12 << 20, "{grown} bytes for 30 namespaces of half a megabyte");
}

#[test]
fn a_client_that_asks_without_end_fills_no_log() {
    let cluster = LimitedInjector::start();
    let (healthy, attacker) = (cluster.client(50), cluster.client(51));
    let pod = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"a"}]}}"#;
    let lines = || cluster.injector.log().matches("admission with changes").count();
    let source = attacker.source.unwrap().to_string();
    let mut connection = attacker.connect().unwrap();
    let (start, mut asked) = (Instant::now(), 0);
    wait::until_true("what is left out is counted", 3 * SOON, || {
        for _ in 0..100 {
            assert_eq!(ask_on(&mut connection, pod).unwrap()["patchType"], "JSONPatch");
        }
        asked += 100;
        let is_count = |line: &str| line.contains("more admissions were denied or changed");
        cluster.injector.log().lines().any(|line| is_count(line) && line.contains(&source))
    });
    // A window of ten seconds has 200 of them; one was in progress at the start.
    let windows = usize::try_from(start.elapsed().as_secs() / 10 + 2).unwrap();
    let before = lines();
    assert!(before >= 200 && before < asked && before <= 200 * windows, "{before} lines of {asked}");
    ask(&healthy, pod);
    wait::until_true("the other client's line", SOON, || lines() > before);
}
