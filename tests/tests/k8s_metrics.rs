//! Metrics on a cluster, scraped by a real Prometheus as configured in docs/operations.md. Debian's lacks discovery by
//! the API server: the test looks the targets up and writes them into the configuration.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::golden::repository;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, DAEMONS, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::Pod;
use tidegate_tests::kubernetes::workload::Workload;
use tidegate_tests::prometheus::{check_text, percent_encoded, result, value};
use tidegate_tests::wait;

const SCRAPED: Duration = Duration::from_secs(90);
/// The lines of the example that a Prometheus without discovery cannot read.
const DISCOVERY: &str = "kubernetes_sd_configs:\n          - role: pod\n";

/// The example's Prometheus, queried through the API server.
struct ExamplePrometheus {
    namespace: Namespace,
    pod: Pod,
}

impl ExamplePrometheus {
    fn start() -> Self {
        let namespace = Namespace::named("monitoring");
        namespace.cluster().load_images(&["prometheus"]);
        let example = fs::read_to_string(repository().join("examples/kubernetes/prometheus.yaml")).unwrap();
        let configured = example.replace(DISCOVERY, &format!("static_configs: {}\n", discovered(&namespace)));
        assert_ne!(configured, example);
        namespace.cluster().apply(&configured);
        namespace.wait_rolled_out("deployment/prometheus");
        let pod = namespace.pod("prometheus");
        Self { namespace, pod }
    }

    fn query(&self, expression: &str) -> Vec<Value> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:9090/proxy/api/v1/query?query={}",
            self.namespace.name(),
            self.pod.name(),
            percent_encoded(expression)
        );
        result(&self.namespace.kubectl(&["get", "--raw", &path]))
    }
}

#[test]
fn a_prometheus_set_up_as_documented_scrapes_every_daemon_and_computes_quantiles() {
    let mesh = Mesh::get();
    let (shop, plain) = (Namespace::meshed("measured"), Namespace::new("plain"));
    shop.kubectl(&["annotate", "namespace", shop.name(), "openservicemesh.io/metrics=enabled"]);
    Workload::http("server").deploy(&shop);
    Workload::client("client").deploy(&plain);
    let (server, client) = (shop.pod("server"), plain.pod("client"));
    let source = format!(
        "{{apiVersion: policy.openservicemesh.io/v1alpha1, kind: IngressBackend, metadata: {{name: server}}, spec: \
         {{backends: [{{name: server, port: {{number: 8080, protocol: http}}}}], \
         sources: [{{kind: IPRange, name: {}/32}}]}}}}",
        client.ip()
    );
    shop.apply(&source);
    for _ in 0..5 {
        client.get_until(&format!("http://{}:8080/hostname", server.ip()), 200);
    }

    let prometheus = ExamplePrometheus::start();
    let up = |namespace: &str| prometheus.query(&format!("up{{namespace=\"{namespace}\"}} == 1"));
    let replicas: usize =
        DAEMONS.iter().map(|daemon| pods(mesh, &format!("app.kubernetes.io/name={daemon}"))).sum();
    wait::until_true("every replica of the control plane and the sidecar are scraped", SCRAPED, || {
        up(CONTROL_PLANE).len() == replicas && up(shop.name()).len() == 1
    });
    wait::until_true("the sidecar's requests are scraped", SCRAPED, || {
        let count = format!(
            "sum(tidegate_http_request_duration_seconds_count{{namespace=\"{}\"}}) >= 5",
            shop.name()
        );
        !prometheus.query(&count).is_empty()
    });
    let quantile = format!(
        "histogram_quantile(0.99, sum by (pod, le) \
         (tidegate_http_request_duration_seconds_bucket{{namespace=\"{}\"}}))",
        shop.name()
    );
    let answer = prometheus.query(&quantile);
    assert_eq!(answer[0]["metric"]["pod"], server.name());
    let quantile = value(&answer[0]);
    assert!(quantile > 0.0 && quantile <= 10.0, "{quantile}");

    let injector = injector(mesh);
    let path = format!("/api/v1/namespaces/{CONTROL_PLANE}/pods/{injector}:9091/proxy/metrics");
    check_text(&mesh.cluster().kubectl(["get", "--raw", &path]));
}

/// Every Pod of the cluster, as discovery by role `pod` returns it: a target for each, with labels that describe it.
fn discovered(namespace: &Namespace) -> Value {
    let list = namespace.cluster().get_json(&["pods", "-A"]);
    let running = list["items"].as_array().unwrap().iter().filter(|pod| pod["status"]["podIP"].is_string());
    let targets = running.map(|pod| {
        let mut labels = json!({
            "__meta_kubernetes_namespace": pod["metadata"]["namespace"],
            "__meta_kubernetes_pod_name": pod["metadata"]["name"],
            "__meta_kubernetes_pod_ip": pod["status"]["podIP"],
        });
        for (name, value) in pod["metadata"]["annotations"].as_object().into_iter().flatten() {
            let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            labels[format!("__meta_kubernetes_pod_annotation_{name}")] = value.clone();
        }
        json!({"targets": [pod["status"]["podIP"]], "labels": labels})
    });
    targets.collect()
}

fn pods(mesh: &Mesh, label: &str) -> usize {
    mesh.cluster().get_json(&["pods", "-n", CONTROL_PLANE, "-l", label])["items"].as_array().unwrap().len()
}

fn injector(mesh: &Mesh) -> String {
    let label = "app.kubernetes.io/name=tidegate-injector";
    let list = mesh.cluster().get_json(&["pods", "-n", CONTROL_PLANE, "-l", label]);
    list["items"][0]["metadata"]["name"].as_str().unwrap().to_owned()
}
