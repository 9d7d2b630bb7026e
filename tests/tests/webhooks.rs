//! The injector as its program, within the memory that the chart gives it, asked by clients that mean harm.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::thread;

use serde_json::{Value, json};
use tidegate_kubernetes::fake_api::FakeApi;
use tidegate_tests::client::{Client, Connection, Tls};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options};

/// `injector.resources.limits.memory` of the chart.
const MEMORY: u64 = 256 << 20;
/// The largest body that is taken.
const LARGEST: usize = 4 << 20;
const NAME: &str = "tidegate-injector.tidegate-system.cluster.local";

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

/// A request for a new Pod, whose text is `pod`.
fn create(pod: &str) -> String {
    let kind = r#"{"group":"","version":"v1","kind":"Pod"}"#;
    format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","kind":{kind},"operation":"CREATE","namespace":"shop","object":{pod}}}}}"#
    )
}

/// A Pod with a field of its spec, filled up with as many items as fit into the largest body.
fn full(field: &str, item: &str) -> String {
    let items = vec![item; (LARGEST - 1024) / (item.len() + 1)].join(",");
    format!(r#"{{"metadata":{{"name":"a"}},"spec":{{"containers":[{{"name":"a"}}],"{field}":[{items}]}}}}"#)
}

fn head(bytes: usize) -> String {
    format!(
        "POST /mutate HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
    )
}

fn send(connection: &mut Connection, body: &str) {
    connection.write(head(body.len()).as_bytes());
    for piece in body.as_bytes().chunks(16 * 1024) {
        connection.write(piece);
    }
}

/// What the webhook says to a new Pod.
fn ask(client: &Client, pod: &str) -> Value {
    let mut connection = client.connect().unwrap();
    let body = create(pod);
    let answer = connection.request(format!("{}{body}", head(body.len())).as_bytes()).unwrap();
    assert_eq!(answer.status(), 200);
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    answer["response"].clone()
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
