//! The webhook, called over TLS the way the API server calls it.

use serde_json::{Value, json};
use tidegate_core::contract::names::DEFAULT_MESH_NAME;
use tidegate_kubernetes::fake_api::FakeApi;
use tidegate_kubernetes::watch::WatchMetrics;
use tidegate_kubernetes::webhook::testing::{AdmissionClient, WebhookCa, review};
use tidegate_runtime::tls;

use super::*;

async fn webhook() -> AdmissionClient {
    AdmissionClient::start("/validate", Arc::new(PolicyReviewer)).await
}

fn backend(port: Value, sources: Value) -> Value {
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "IngressBackend",
        "metadata": {"name": "httpbin", "namespace": "httpbin"},
        "spec": {"backends": [{"name": "httpbin", "port": port}], "sources": sources},
    })
}

fn http() -> Value {
    json!({"number": 14001, "protocol": "http"})
}

fn nginx() -> Value {
    json!([{"kind": "Service", "name": "nginx", "namespace": "ingress"}])
}

async fn create(webhook: &AdmissionClient, object: &Value) -> Value {
    webhook.ask(&review("ingressbackends", "CREATE", "httpbin", object)).await
}

#[tokio::test]
async fn a_webhook_configuration_that_is_missing_keeps_no_sidecar_from_the_controller_and_is_counted() {
    tls::install_provider();
    let (ca, api) = (WebhookCa::new(), FakeApi::start().await);
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    let dependencies = WebhookDependencies {
        client: api.client(),
        credentials: watch::channel(Some(ca.issue(1))).1,
        trust_bundle: watch::channel(ca.bundle).1,
        metrics: metrics.clone(),
        meter: WatchMetrics::new(&metrics).kind("ValidatingWebhookConfiguration"),
        readiness: readiness.clone(),
    };
    let address = "127.0.0.1:0".parse().unwrap();
    let _webhook = ValidatingWebhook::start(address, DEFAULT_MESH_NAME, dependencies).await.unwrap();
    api.wait_for(|api| api.requests().iter().any(|request| request.verb == "watch")).await;
    tokio::time::timeout(Duration::from_secs(30), readiness.ready()).await.unwrap();
    assert!(metrics.encode().contains("\ntidegate_webhook_configuration_wrong 1\n"), "{}", metrics.encode());
}

#[tokio::test]
async fn what_osm_refused_is_refused_in_its_words_with_the_field() {
    let webhook = webhook().await;
    for (object, message) in [
        (
            backend(json!({"number": 14001, "protocol": "grpc"}), nginx()),
            "Expected 'port.protocol' to be 'http' or 'https', got: grpc (spec.backends[0].port.protocol)",
        ),
        (
            backend(http(), json!([{"kind": "Pod", "name": "a"}])),
            "Invalid 'source.kind' value specified. Must be one of: Service, AuthenticatedPrincipal, IPRange \
             (spec.sources[0].kind)",
        ),
        (
            backend(http(), json!([{"kind": "IPRange", "name": "10.0.0.1"}])),
            "Invalid 'source.name' value specified for IPRange. Expected CIDR notation 'a.b.c.d/x', got '10.0.0.1' \
             (spec.sources[0].name)",
        ),
        (
            backend(http(), json!([{"kind": "Service", "name": "nginx"}])),
            "'source.namespace' not specified for source kind Service (spec.sources[0].namespace)",
        ),
    ] {
        let answer = create(&webhook, &object).await;
        assert_eq!(answer["allowed"], false);
        assert_eq!(answer["status"]["message"], message);
    }
}

#[tokio::test]
async fn what_osm_accepted_is_accepted_with_a_warning_where_it_may_surprise() {
    let webhook = webhook().await;
    let answer = create(&webhook, &backend(http(), nginx())).await;
    assert_eq!((&answer["allowed"], &answer["warnings"]), (&json!(true), &Value::Null));
    let skip = json!({"number": 14001, "protocol": "https"});
    let answer = create(&webhook, &backend(skip, nginx())).await;
    assert_eq!(answer["allowed"], true);
    let warning = answer["warnings"][0].as_str().unwrap();
    assert!(warning.contains("no AuthenticatedPrincipal is listed"), "{warning}");
}

#[tokio::test]
async fn a_mistake_that_is_stored_already_does_not_prevent_changing_or_deleting_the_object() {
    let webhook = webhook().await;
    let stored = backend(json!({"number": 14001, "protocol": "grpc"}), nginx());
    let mut labelled = stored.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    let mut request = review("ingressbackends", "UPDATE", "httpbin", &labelled);
    request["request"]["oldObject"] = stored.clone();
    let answer = webhook.ask(&request).await;
    assert_eq!(answer["allowed"], true);
    assert!(answer["warnings"][0].as_str().unwrap().contains("got: grpc"));

    request["request"]["object"]["spec"]["sources"] = json!([{"kind": "Pod", "name": "a"}]);
    assert_eq!(webhook.ask(&request).await["allowed"], false, "an added mistake is denied");
    request["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(webhook.ask(&request).await["allowed"], true, "a finalizer can be removed");
    request["request"]["operation"] = json!("DELETE");
    request["request"]["object"] = Value::Null;
    assert_eq!(webhook.ask(&request).await["allowed"], true);
}

#[tokio::test]
async fn a_mesh_config_is_checked_and_one_of_another_name_warned_about() {
    let webhook = webhook().await;
    let config = |name: &str, spec: Value| {
        json!({
            "apiVersion": "config.openservicemesh.io/v1alpha2",
            "kind": "MeshConfig",
            "metadata": {"name": name, "namespace": "tidegate-system"},
            "spec": spec,
        })
    };
    let ask =
        async |object: Value| webhook.ask(&review("meshconfigs", "CREATE", "tidegate-system", &object)).await;
    let answer = ask(config("osm-mesh-config", json!({"traffic": {"enableEgress": true}}))).await;
    assert_eq!((&answer["allowed"], &answer["warnings"]), (&json!(true), &Value::Null));
    let ranges = json!({"traffic": {"outboundIPRangeExclusionList": ["10.0.0.0/8", "10.0.0.1"]}});
    let answer = ask(config("osm-mesh-config", ranges)).await;
    assert_eq!(answer["allowed"], false);
    assert_eq!(
        answer["status"]["message"],
        "Expected CIDR notation 'a.b.c.d/x', got '10.0.0.1' (spec.traffic.outboundIPRangeExclusionList[1])"
    );
    let answer = ask(config("mine", json!({}))).await;
    assert_eq!(answer["warnings"], json!(["only osm-mesh-config is read (metadata.name)"]));
}

#[tokio::test]
async fn what_is_not_an_object_of_its_kind_is_refused_and_other_kinds_are_not_judged() {
    let webhook = webhook().await;
    let mut broken = backend(http(), nginx());
    broken["spec"] = json!([]);
    let answer = create(&webhook, &broken).await;
    assert!(answer["status"]["message"].as_str().unwrap().starts_with("the object cannot be read: "));
    broken["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let going = review("ingressbackends", "UPDATE", "httpbin", &broken);
    assert_eq!(webhook.ask(&going).await["allowed"], true, "its finalizer can be removed");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    assert_eq!(webhook.ask(&review("pods", "CREATE", "shop", &pod)).await["allowed"], true);
}
