//! UpstreamTrafficSetting on a cluster: from `kubectl apply` to what a client's requests and connections get.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::Pod;
use tidegate_tests::kubernetes::workload::Workload;
use tidegate_tests::wait::{self, SOON};

const URL: &str = "http://server/get";
const ECHO: &str = "server:9000";

/// A namespace of the mesh with a server and a client, in permissive mode.
struct Shop {
    namespace: Namespace,
    client: Pod,
}

impl Shop {
    fn start() -> Self {
        Mesh::get();
        let namespace = Namespace::meshed("limits");
        Workload::new("server", &["serve", "--http=8080", "--tcp=9000"])
            .port("http", 80, 8080)
            .port("tcp-echo", 9000, 9000)
            .ready_over_http(8080)
            .deploy(&namespace);
        Workload::client("client").deploy(&namespace);
        let client = namespace.pod("client");
        client.get_until(URL, 200);
        Self { namespace, client }
    }

    /// Applies a setting of the server, and waits for its status.
    fn limit(&self, spec: &Value, status: &str, reason: &str) {
        let mut spec = spec.clone();
        spec["host"] = format!("server.{}.svc.cluster.local", self.namespace.name()).into();
        let setting = json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1",
            "kind": "UpstreamTrafficSetting",
            "metadata": {"name": "limits"},
            "spec": spec,
        });
        self.namespace.apply(&setting.to_string());
        self.namespace.wait_for(status, &["upstreamtrafficsetting", "limits"], |object| {
            let accepted =
                object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Accepted")?;
            let is_current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            (is_current && object["status"]["currentStatus"] == *status && accepted["reason"] == *reason)
                .then_some(())
        });
    }

    /// The statuses of requests, one after the other.
    fn statuses(&self, url: &str, count: usize) -> Vec<u64> {
        let urls: Vec<_> = ["get"].into_iter().chain(std::iter::repeat_n(url, count)).collect();
        self.client
            .ask_all(&urls)
            .iter()
            .map(|answer| answer["status"].as_u64().unwrap_or_default())
            .collect()
    }
}

/// So many an hour and no burst: what is spent does not come back during a test.
fn an_hour(what: &str, count: u32) -> Value {
    json!({what: count, "unit": "hour"})
}

#[test]
fn requests_over_a_limit_are_refused_from_apply_to_delete() {
    let shop = Shop::start();
    let mut http = an_hour("requests", 3);
    http["responseStatusCode"] = 503.into();
    shop.limit(&json!({"rateLimit": {"local": {"http": http}}}), "committed", "Accepted");
    // The sidecar of the server has the limit soon after the status says so; requests until then spend nothing.
    shop.client.get_until(URL, 503);
    assert_eq!(shop.statuses(URL, 3), [503; 3]);

    // A changed limit fills its bucket.
    http["requests"] = 1000.into();
    shop.limit(&json!({"rateLimit": {"local": {"http": http}}}), "committed", "Accepted");
    shop.client.get_until(URL, 200);

    // A route has a limit of its own, in place of the Service's.
    let route = json!({"path": "/hostname", "rateLimit": {"local": an_hour("requests", 1)}});
    let spec = json!({"rateLimit": {"local": {"http": http}}, "httpRoutes": [route]});
    shop.limit(&spec, "error", "ReferenceNotFound");
    let group = json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "HTTPRouteGroup",
        "metadata": {"name": "names"},
        "spec": {"matches": [{"name": "names", "pathRegex": "/hostname"}]},
    });
    shop.namespace.apply(&group.to_string());
    shop.limit(&spec, "committed", "Accepted");
    shop.client.get_until("http://server/hostname", 429);
    assert_eq!(shop.statuses(URL, 3), [200; 3]);

    shop.namespace.kubectl(&["delete", "upstreamtrafficsetting", "limits"]);
    shop.client.get_until("http://server/hostname", 200);
}

#[test]
fn connections_over_a_limit_are_reset_and_explain_names_it() {
    let shop = Shop::start();
    shop.limit(&json!({"rateLimit": {"local": {"tcp": an_hour("connections", 2)}}}), "committed", "Accepted");
    wait::until_true("connections are refused", SOON, || shop.client.tcp(ECHO, "ping").is_err());
    assert!(shop.client.tcp(ECHO, "ping").is_err());

    let name = shop.namespace.name();
    let (backend, client) = (format!("{name}/server"), format!("{name}/{}", shop.client.name()));
    let explain = ["explain", &backend, "--from", &client, "--port", "80", "-o", "json"];
    let arguments = explain.into_iter().chain(["--tidegate-namespace", CONTROL_PLANE]);
    let answer: Value = serde_json::from_str(&shop.namespace.cluster().tidegate(arguments)).unwrap();
    let there = &answer["backends"][0]["farSide"][0];
    assert_eq!(there["decision"], "allow", "{answer:#}");
    let limits = there["limits"].to_string();
    assert!(limits.contains("connections: 2 per hour"), "{answer:#}");

    shop.namespace.kubectl(&["delete", "upstreamtrafficsetting", "limits"]);
    wait::until_true("connections are admitted again", SOON, || {
        shop.client.tcp(ECHO, "ping") == Ok("ping".to_owned())
    });
}
