use serde_json::{Value, json};
use tidegate_kubernetes::fake_api::FakeApi;

use super::*;

const CONTROL_PLANE: &str = "tidegate-system";
const TRUST_BUNDLE_CONFIG_MAP: &str = "tidegate-trust-bundle";

fn namespace(api: &FakeApi, name: &str, labels: Value) {
    api.apply("v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
}

fn published(api: &FakeApi, namespace: &str) -> Option<String> {
    let map = api.get("v1/configmaps", namespace, TRUST_BUNDLE_CONFIG_MAP)?;
    Some(map["data"][TRUST_BUNDLE_KEY].as_str()?.to_owned())
}

fn forget(api: &FakeApi, namespace: &str) {
    api.delete("v1/configmaps", namespace, TRUST_BUNDLE_CONFIG_MAP);
}

fn start(api: &FakeApi, control_plane: &str, mesh: &str, wake: &Arc<Notify>) -> TrustBundleConfigMaps {
    let meters = WatchMetrics::default();
    let namespaces = Namespaces::start(api.client(), control_plane, mesh, wake, &meters);
    TrustBundleConfigMaps::start(api.client(), namespaces, mesh, wake, &meters)
}

/// A publisher that is asked for `pem` whenever it is woken, as the authority does.
async fn publisher(api: &FakeApi, pem: &'static str) -> JoinSet<()> {
    publisher_of(api, CONTROL_PLANE, "osm", pem).await
}

async fn publisher_of(api: &FakeApi, control_plane: &str, mesh: &str, pem: &'static str) -> JoinSet<()> {
    let wake = Arc::new(Notify::new());
    let publisher = start(api, control_plane, mesh, &wake);
    publisher.publish(pem).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            wake.notified().await;
            publisher.publish(pem).await.unwrap();
        }
    });
    tasks
}

#[tokio::test]
async fn the_bundle_is_in_the_control_planes_namespace_and_in_those_of_the_mesh() {
    let api = FakeApi::start().await;
    namespace(&api, CONTROL_PLANE, json!({}));
    namespace(&api, "httpbin", json!({"openservicemesh.io/monitored-by": "osm"}));
    namespace(&api, "ours", json!({"tidegate.io/injection": "enabled"}));
    namespace(&api, "other-mesh", json!({"openservicemesh.io/monitored-by": "other"}));
    namespace(&api, "plain", json!({}));
    let _publisher = publisher(&api, "pem").await;
    for (name, expected) in [
        (CONTROL_PLANE, Some("pem")),
        ("httpbin", Some("pem")),
        ("ours", Some("pem")),
        ("other-mesh", None),
        ("plain", None),
    ] {
        assert_eq!(published(&api, name).as_deref(), expected, "{name}");
    }
    let map = api.get("v1/configmaps", "httpbin", TRUST_BUNDLE_CONFIG_MAP).unwrap();
    assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/part-of"], "tidegate");
}

#[tokio::test]
async fn a_namespace_that_joins_gets_it_and_whatever_is_deleted_or_edited_is_put_back() {
    let api = FakeApi::start().await;
    namespace(&api, CONTROL_PLANE, json!({}));
    namespace(&api, "httpbin", json!({}));
    let _publisher = publisher(&api, "pem").await;
    assert_eq!(published(&api, "httpbin"), None);
    namespace(&api, "httpbin", json!({"openservicemesh.io/monitored-by": "osm"}));
    api.wait_for(|api| published(api, "httpbin").is_some()).await;
    forget(&api, "httpbin");
    api.wait_for(|api| published(api, "httpbin").is_some()).await;
    let mut map = api.get("v1/configmaps", "httpbin", TRUST_BUNDLE_CONFIG_MAP).unwrap();
    map["data"] = json!({TRUST_BUNDLE_KEY: "mine"});
    map["metadata"]["annotations"] = json!({"note": "kept"});
    api.apply("v1/configmaps", map);
    api.wait_for(|api| published(api, "httpbin").as_deref() == Some("pem")).await;
    let map = api.get("v1/configmaps", "httpbin", TRUST_BUNDLE_CONFIG_MAP).unwrap();
    assert_eq!(map["metadata"]["annotations"]["note"], "kept");
}

#[tokio::test]
async fn a_namespace_that_has_left_keeps_a_fresh_bundle_until_it_is_deleted() {
    let api = FakeApi::start().await;
    namespace(&api, CONTROL_PLANE, json!({}));
    namespace(&api, "httpbin", json!({"openservicemesh.io/monitored-by": "osm"}));
    let before = publisher(&api, "old").await;
    drop(before);
    namespace(&api, "httpbin", json!({}));
    let _publisher = publisher(&api, "new").await;
    assert_eq!(published(&api, "httpbin").as_deref(), Some("new"));
    forget(&api, "httpbin");
    // The other one comes back; by then the publisher has seen both.
    forget(&api, CONTROL_PLANE);
    api.wait_for(|api| published(api, CONTROL_PLANE).is_some()).await;
    assert_eq!(published(&api, "httpbin"), None);
}

#[tokio::test]
async fn a_config_map_of_the_same_name_outside_the_mesh_is_left_alone() {
    let api = FakeApi::start().await;
    namespace(&api, CONTROL_PLANE, json!({}));
    namespace(&api, "plain", json!({}));
    let metadata = json!({"name": TRUST_BUNDLE_CONFIG_MAP, "namespace": "plain",
        "labels": {"app.kubernetes.io/managed-by": "tidegate-cert-manager", "app.kubernetes.io/instance": "other"}});
    api.apply("v1/configmaps", json!({"metadata": metadata, "data": {TRUST_BUNDLE_KEY: "theirs"}}));
    let _publisher = publisher(&api, "pem").await;
    assert_eq!(published(&api, "plain").as_deref(), Some("theirs"));
}

#[tokio::test]
async fn a_namespace_that_goes_does_not_delay_others_and_one_that_refuses_is_named() {
    let api = FakeApi::start().await;
    for name in [CONTROL_PLANE, "a", "b"] {
        namespace(&api, name, json!({"openservicemesh.io/monitored-by": "osm"}));
    }
    let going = json!({"name": "going", "labels": {"openservicemesh.io/monitored-by": "osm"},
        "deletionTimestamp": "2026-01-01T00:00:00Z"});
    api.apply("v1/namespaces", json!({"metadata": going}));
    api.answer(|request, _| match (request.verb, request.namespace.as_str()) {
        ("patch", "a") => Some(FakeApi::refusal(
            403,
            "unable to create new content in namespace a because it is being terminated",
        )),
        ("patch", "b") => Some(FakeApi::refusal(403, "configmaps is forbidden")),
        _ => None,
    });
    let publisher = start(&api, CONTROL_PLANE, "osm", &Arc::default());
    let error = publisher.publish("pem").await.unwrap_err().to_string();
    assert_eq!(error, "namespace b: configmaps is forbidden");
    assert!(published(&api, CONTROL_PLANE).is_some());
    assert!(api.requests().iter().all(|request| request.namespace != "going"));
}

fn immutable(api: &FakeApi, namespace: &str, finalizers: &[&str]) {
    let metadata = json!({"name": TRUST_BUNDLE_CONFIG_MAP, "namespace": namespace, "uid": "u", "finalizers": finalizers});
    let map = json!({"metadata": metadata, "data": {TRUST_BUNDLE_KEY: "theirs"}, "immutable": true});
    api.apply("v1/configmaps", map);
}

#[tokio::test]
async fn one_that_was_made_immutable_is_recreated() {
    let api = FakeApi::start().await;
    namespace(&api, CONTROL_PLANE, json!({}));
    namespace(&api, "shop", json!({"tidegate.io/injection": "enabled"}));
    immutable(&api, "shop", &[]);
    let _publisher = publisher(&api, "pem").await;
    assert_eq!(published(&api, "shop").as_deref(), Some("pem"));
    // Ours, too, before the next change would fail.
    let mut map = api.get("v1/configmaps", "shop", TRUST_BUNDLE_CONFIG_MAP).unwrap();
    map["immutable"] = json!(true);
    api.apply("v1/configmaps", map);
    api.wait_for(|api| {
        let map = api.get("v1/configmaps", "shop", TRUST_BUNDLE_CONFIG_MAP);
        map.is_some_and(|map| map["immutable"].is_null() && map["data"][TRUST_BUNDLE_KEY] == "pem")
    })
    .await;
}

#[tokio::test]
async fn one_that_is_immutable_and_cannot_go_is_named_and_the_others_are_written() {
    let api = FakeApi::start().await;
    for name in [CONTROL_PLANE, "mart", "shop"] {
        namespace(&api, name, json!({"tidegate.io/injection": "enabled"}));
    }
    immutable(&api, "shop", &["example.com/stays"]);
    let publisher = start(&api, CONTROL_PLANE, "osm", &Arc::default());
    let expected = UnpublishedNamespace {
        namespace: "shop".to_owned(),
        reason: "ConfigMap tidegate-trust-bundle is immutable, and its finalizers keep it from being deleted"
            .to_owned(),
    };
    for pem in ["one", "two"] {
        let named = async {
            // Until its own watch has told.
            while !matches!(publisher.publish(pem).await, Err(StoreError::Unreached(all)) if all == [expected.clone()])
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, named).await.expect("it is named");
        assert_eq!(published(&api, "mart").as_deref(), Some(pem));
    }
}

#[tokio::test]
async fn nothing_is_written_again_that_is_right() {
    let api = FakeApi::start().await;
    namespace(&api, CONTROL_PLANE, json!({}));
    let publisher = start(&api, CONTROL_PLANE, "osm", &Arc::default());
    publisher.publish("pem").await.unwrap();
    let writes = |api: &FakeApi| api.requests().iter().filter(|request| request.verb == "patch").count();
    // Until its own watch has told.
    while publisher.missing("pem").await.is_none_or(|missing| !missing.is_empty()) {
        tokio::task::yield_now().await;
    }
    let before = writes(&api);
    publisher.publish("pem").await.unwrap();
    assert_eq!(writes(&api), before);
}

#[tokio::test]
async fn a_namespace_that_goes_to_another_mesh_has_the_bundles_of_both() {
    const BLUE_CONFIG_MAP: &str = "tidegate-trust-bundle-blue";
    let api = FakeApi::start().await;
    namespace(&api, CONTROL_PLANE, json!({}));
    namespace(&api, "blue-system", json!({}));
    namespace(&api, "shop", json!({"openservicemesh.io/monitored-by": "osm"}));
    let _osm = publisher(&api, "pem of osm").await;
    let _blue = publisher_of(&api, "blue-system", "blue", "pem of blue").await;
    let of_blue = |namespace: &str| {
        Some(api.get("v1/configmaps", namespace, BLUE_CONFIG_MAP)?["data"][TRUST_BUNDLE_KEY].clone())
    };
    assert_eq!(published(&api, "shop").as_deref(), Some("pem of osm"));
    assert_eq!(of_blue("shop"), None);
    assert_eq!((published(&api, "blue-system"), of_blue(CONTROL_PLANE)), (None, None));

    namespace(&api, "shop", json!({"openservicemesh.io/monitored-by": "blue"}));
    api.wait_for(|_| of_blue("shop").is_some_and(|pem| pem == "pem of blue")).await;
    // Pods of before run on, and still read what they mount.
    let mut map = api.get("v1/configmaps", "shop", TRUST_BUNDLE_CONFIG_MAP).unwrap();
    assert_eq!(published(&api, "shop").as_deref(), Some("pem of osm"));
    map["data"][TRUST_BUNDLE_KEY] = json!("edited");
    api.apply("v1/configmaps", map);
    api.wait_for(|api| published(api, "shop").as_deref() == Some("pem of osm")).await;
}
