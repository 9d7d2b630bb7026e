//! The injector as its program, within the memory that the chart gives it, asked by clients that mean harm.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::thread;

use serde_json::json;
use tidegate_kubernetes::fake_api::FakeApi;
use tidegate_tests::client::{Client, Tls};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options};
use tidegate_tests::webhook::{self, LARGEST, NAME, ask, create, head, send};

/// `injector.resources.limits.memory` of the chart.
const MEMORY: u64 = 256 << 20;

struct Cluster {
    mesh: Mesh,
    injector: Daemon,
    _api: FakeApi,
    _runtime: tokio::runtime::Runtime,
}

impl Cluster {
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
        injector.limit_memory(MEMORY);
        Self { mesh, injector, _api: api, _runtime: runtime }
    }

    /// A client at an address of its own.
    fn client(&self, host: u8) -> Client {
        let tls = Tls::new(self.mesh.roots(), NAME);
        Client::to(self.mesh.webhook_address()).from(self.mesh.block().ip(host)).tls(tls)
    }
}

/// A Pod with a field of its spec, filled up with as many items as fit into the largest body.
fn full(field: &str, item: &str) -> String {
    webhook::full(field, item, LARGEST)
}

#[test]
fn whatever_the_injector_is_sent_it_lives_within_its_memory_and_answers_others() {
    let mut cluster = Cluster::start();
    let healthy = cluster.client(50);
    let pod = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"a"}]}}"#;
    assert_eq!(ask(&healthy, pod)["patchType"], "JSONPatch");
    let attacker = cluster.client(51);
    // Bodies that never end.
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
                    // An answer, or an end: what matters is what the others see.
                    let _ = connection.response(tidegate_tests::http1::Kind::Response);
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
    assert!(resident < MEMORY / 2, "{resident} bytes");
}
