//! A HorizontalPodAutoscaler computes the utilisation of meshed Pods.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::SystemTime;

use serde_json::{Value, json};
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::mesh::Mesh;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::workload::Workload;

const API: &str = "/apis/metrics.k8s.io/v1beta1";
/// The file with the answers of the metrics API's server.
const ANSWERS: &str = "/answers.json";

/// `metrics.k8s.io`, registered as a metrics server does. The suites' cluster has none.
struct MetricsApi(&'static Cluster);

impl MetricsApi {
    fn register(server: &Namespace, service: &str) -> Self {
        let cluster = server.cluster();
        // On a cluster with a metrics server, this would replace it.
        cluster.own_name();
        let service = json!({"namespace": server.name(), "name": service, "port": 443});
        let api = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true, "service": service,
            },
        });
        cluster.apply(&api.to_string());
        Self(cluster)
    }
}

impl Drop for MetricsApi {
    /// Before its server is removed: while a registered API does not answer, no namespace can be deleted.
    fn drop(&mut self) {
        let _ =
            self.0.try_kubectl(["delete", "apiservice", "v1beta1.metrics.k8s.io", "--ignore-not-found"], "");
    }
}

/// The current usage of each container of a Pod.
fn usage(pod: &str, containers: &[(&str, &str)]) -> Value {
    let containers =
        containers.iter().map(|(name, cpu)| json!({"name": name, "usage": {"cpu": cpu, "memory": "8Mi"}}));
    json!({
        "metadata": {"name": pod},
        "timestamp": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        // A window that began before its Pod was ready would be ignored.
        "window": "0s",
        "containers": containers.collect::<Vec<_>>(),
    })
}

fn autoscaler(name: &str) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": 50});
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "maxReplicas": 2,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    })
}

/// The condition of an autoscaler that reports whether it can compute anything.
fn scaling_active(autoscaler: &Value) -> Option<&Value> {
    autoscaler["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == "ScalingActive")
}

/// The CPU request of a container, in thousandths of a processor.
fn requested(pod: &Value, list: &str, name: &str) -> Option<u64> {
    let container = pod["spec"][list].as_array()?.iter().find(|container| container["name"] == name)?;
    container["resources"]["requests"]["cpu"].as_str()?.strip_suffix('m')?.parse().ok()
}

#[test]
fn an_autoscaler_computes_how_much_a_meshed_deployment_uses_of_what_it_asks_for() {
    Mesh::get();
    let metrics = Namespace::new("metrics");
    let answers_flag = format!("--answers={ANSWERS}");
    let serve = ["serve", "--https=8443", answers_flag.as_str()];
    Workload::new("metrics", &serve).port("https", 443, 8443).deploy(&metrics);
    let namespace = Namespace::meshed("autoscaled");
    let asks = json!({"requests": {"cpu": "95m"}});
    Workload::http("asks").container("resources", asks).deploy(&namespace);
    // Its app has no CPU request: the complaint shows that the autoscaler looks at it.
    Workload::http("says-nothing").deploy(&namespace);
    let pods = ["asks", "says-nothing"].map(|name| namespace.pod(name));
    let of_asks = pods[0].json();
    let requests = [("containers", "app"), ("initContainers", "tidegate-sidecar")].map(|(list, name)| {
        requested(&of_asks, list, name).unwrap_or_else(|| panic!("{name} of {of_asks:#}"))
    });

    let used = [("app", "30m"), ("tidegate-sidecar", "20m")];
    let items = pods.iter().map(|pod| usage(pod.name(), &used)).collect::<Vec<_>>();
    let resource = json!({"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]});
    let answers = json!({
        API: {
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1",
            "resources": [resource],
        },
        format!("{API}/namespaces/{}/pods", namespace.name()): {
            "kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items,
        },
    });
    let write = ["/usr/local/bin/tidegate-test-app", "write", ANSWERS];
    metrics.pod("metrics").exec("app", &write, &answers.to_string()).unwrap();
    let _api = MetricsApi::register(&metrics, "metrics");
    for name in ["asks", "says-nothing"] {
        namespace.apply(&autoscaler(name).to_string());
    }

    let utilization = namespace.wait_for("it computes", &["hpa", "asks"], |autoscaler| {
        autoscaler["status"]["currentMetrics"][0]["resource"]["current"]["averageUtilization"].as_u64()
    });
    assert_eq!(utilization, 50 * 100 / requests.iter().sum::<u64>());
    let computes = namespace.get_json(&["hpa", "asks"]);
    assert_eq!(scaling_active(&computes).unwrap()["reason"], "ValidMetricFound", "{computes:#}");
    let complaint = namespace.wait_for("it complains", &["hpa", "says-nothing"], |autoscaler| {
        let condition = scaling_active(autoscaler)?;
        (condition["status"] == "False").then(|| condition["message"].as_str().unwrap_or_default().to_owned())
    });
    assert!(
        complaint.contains("missing request for cpu in container app of Pod says-nothing"),
        "{complaint}"
    );
}
