//! The injector and an API server that goes away and comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use serde_json::{Value, json};
use tidegate_injector::settings::Settings;
use tidegate_injector::{ClusterState, PodReviewer};
use tidegate_kubernetes::fake_api::{FakeApi, Rights};
use tidegate_kubernetes::watch::WatchMetrics;
use tidegate_kubernetes::webhook::CaBundleKeeper;
use tidegate_kubernetes::webhook::testing::{AdmissionClient, review};
use tokio::sync::watch;

const NAMESPACES: &str = "v1/namespaces";
const CONFIGS: &str = "config.openservicemesh.io/v1alpha2/meshconfigs";
const WEBHOOKS: &str = "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const WEBHOOK: &str = "tidegate-injector";

/// Everything that the injector's process runs, with an API server of the test's.
struct Injector {
    api: FakeApi,
    client: AdmissionClient,
    ca_bundle: Value,
    _bundle: watch::Sender<Arc<tidegate_runtime::trust_bundle::TrustBundle>>,
}

fn meshed(api: &FakeApi, name: &str) {
    api.apply(
        NAMESPACES,
        json!({"metadata": {"name": name, "labels": {"tidegate.io/injection": "enabled"}}}),
    );
}

fn configuration(api: &FakeApi, ca_bundle: &Value) {
    let client_config = json!({"service": {"name": "i", "namespace": "n"}, "caBundle": ca_bundle});
    let webhook = json!({"name": "a.tidegate.io", "clientConfig": client_config,
        "admissionReviewVersions": ["v1"], "sideEffects": "None"});
    api.apply(WEBHOOKS, json!({"metadata": {"name": WEBHOOK}, "webhooks": [webhook]}));
}

fn mesh_config(api: &FakeApi, spec: Value) {
    api.apply(
        CONFIGS,
        json!({
            "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
            "metadata": {"name": "osm-mesh-config", "namespace": "tidegate-system"}, "spec": spec,
        }),
    );
}

impl Injector {
    async fn start() -> Self {
        Self::with_mesh_config(json!({"sidecar": {"logLevel": "error"}})).await
    }

    async fn with_mesh_config(spec: Value) -> Self {
        let api = FakeApi::start().await;
        meshed(&api, "shop");
        mesh_config(&api, spec);
        configuration(&api, &Value::Null);
        let (writer, state) = ClusterState::new();
        let settings = Settings::of_mesh("tidegate-system", "cluster.local", "tidegate/sidecar:1");
        let client = AdmissionClient::start("/mutate", Arc::new(PodReviewer::new(settings, state))).await;
        let watches = WatchMetrics::new(&client.metrics);
        tokio::spawn(writer.follow(api.client(), "tidegate-system", &watches, &client.readiness));
        let (sender, bundle) = watch::channel(client.ca.bundle.clone());
        let keeper = CaBundleKeeper::<MutatingWebhookConfiguration>::new(
            api.client(),
            WEBHOOK,
            bundle,
            &client.metrics,
            watches.kind("MutatingWebhookConfiguration"),
            Some(client.readiness.clone()),
        );
        tokio::spawn(keeper.run());
        let ca_bundle = json!(ByteString(client.ca.bundle.to_pem().into_bytes()));
        let injector = Self { api, client, ca_bundle, _bundle: sender };
        tokio::time::timeout(Duration::from_secs(30), injector.client.readiness.ready()).await.unwrap();
        injector
    }

    /// The log filter of the sidecar that a new Pod gets; nothing if it gets none.
    async fn sidecar_of_a_pod_in(&self, namespace: &str) -> Option<String> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "app-"},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        });
        let answer = self.client.ask(&review("pods", "CREATE", namespace, &pod)).await;
        let patch: ByteString = serde_json::from_value(answer["patch"].clone()).ok()?;
        let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
        let containers = pod["spec"]["initContainers"].as_array().unwrap();
        let sidecar = containers.iter().find(|container| container["name"] == "tidegate-sidecar").unwrap();
        Some(sidecar.to_string())
    }

    fn ca_bundle(&self) -> Value {
        self.api.get(WEBHOOKS, "", WEBHOOK).unwrap()["webhooks"][0]["clientConfig"]["caBundle"].clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_are_added_while_the_api_server_is_away_and_what_changed_meanwhile_is_caught_up_with() {
    let injector = Injector::start().await;
    assert_eq!(injector.ca_bundle(), injector.ca_bundle);
    let before = injector.sidecar_of_a_pod_in("shop").await.unwrap();

    injector.api.stop();
    assert_eq!(injector.sidecar_of_a_pod_in("shop").await.as_ref(), Some(&before));
    assert!(injector.client.readiness.is_ready(), "it can do its work");

    // All that an API server may come back with; past events it has forgotten.
    meshed(&injector.api, "new");
    mesh_config(&injector.api, json!({"sidecar": {"logLevel": "debug"}}));
    configuration(&injector.api, &json!(ByteString(b"garbage".to_vec())));
    injector.api.compact();
    injector.api.restart().await;

    injector.api.wait_for(|_| injector.ca_bundle() == injector.ca_bundle).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let after = loop {
        // A namespace that the watch has not told of yet is waited for.
        match injector.sidecar_of_a_pod_in("new").await {
            Some(sidecar) if sidecar != before => break sidecar,
            _ => assert!(tokio::time::Instant::now() < deadline, "the watches do not heal"),
        }
    };
    assert!(after.contains("debug"), "{after}");
    assert!(injector.client.readiness.is_ready());
    let (rights, requests) = (Rights::of_chart("tidegate-injector"), injector.api.requests());
    let beyond = rights.beyond(&requests);
    assert!(beyond.is_empty(), "the role does not grant {beyond:#?}");
    let needless = rights.needless(&requests);
    assert!(needless.is_empty(), "the role grants what nothing asks for: {needless:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_config_that_cannot_be_read_refuses_pods_with_its_field_and_keeps_no_injector_from_starting() {
    let injector = Injector::with_mesh_config(json!({"sidecar": {"logLevel": ["debug"]}})).await;
    assert!(injector.client.readiness.is_ready());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "app-"},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    let request = review("pods", "CREATE", "shop", &pod);
    let answer = injector.client.ask(&request).await;
    let expected = "MeshConfig: spec.sidecar.logLevel: must be of type string, got array: [\"debug\"]";
    assert_eq!((&answer["allowed"], &answer["status"]["message"]), (&json!(false), &json!(expected)));

    mesh_config(&injector.api, json!({"sidecar": {"logLevel": "debug"}}));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while injector.client.ask(&request).await["allowed"] != true {
        assert!(tokio::time::Instant::now() < deadline, "it is mended");
    }
}
