use serde_json::{Value, json};
use tidegate_kubernetes::fake_api::FakeApi;

use super::*;
use crate::store::{NamedValues, RootStore};

const NAMESPACE: &str = "tidegate-system";

fn name(name: &str) -> SecretName {
    SecretName { namespace: "ingress".to_owned(), name: name.to_owned() }
}

fn values(text: &str) -> TlsSecret {
    TlsSecret { ca_crt: format!("ca {text}"), tls_crt: format!("crt {text}"), tls_key: format!("key {text}") }
}

async fn world() -> (FakeApi, GatewaySecrets) {
    let api = FakeApi::start().await;
    let root = RootSecret::new(api.client(), NAMESPACE, "osm");
    root.create_if_absent(NamedValues([("a".to_owned(), b"b".to_vec())].into())).await.unwrap();
    let secrets = GatewaySecrets::new(api.client(), root, "osm");
    (api, secrets)
}

fn get(api: &FakeApi, name: &str) -> Option<Value> {
    api.get("v1/secrets", "ingress", name)
}

#[tokio::test]
async fn a_secret_has_the_type_and_the_keys_that_ingress_controllers_know() {
    let (api, secrets) = world().await;
    assert_eq!(secrets.get(&name("a")).await.unwrap(), None);
    secrets.put(&name("a"), &values("1")).await.unwrap();
    let secret = get(&api, "a").unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    let keys: Vec<_> = secret["data"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["ca.crt", "tls.crt", "tls.key"]);
    assert_eq!(secret["data"]["tls.key"], "a2V5IDE=");
    assert!(secrets.get(&name("a")).await.unwrap() == Some(values("1")));
}

#[tokio::test]
async fn it_is_changed_in_place_and_keeps_what_others_have_put_on_it() {
    let (api, secrets) = world().await;
    secrets.put(&name("a"), &values("1")).await.unwrap();
    let mut secret = get(&api, "a").unwrap();
    let uid = secret["metadata"]["uid"].clone();
    secret["metadata"]["labels"]["team"] = json!("a");
    secret["metadata"]["annotations"] = json!({"note": "b"});
    api.apply("v1/secrets", secret);
    secrets.put(&name("a"), &values("2")).await.unwrap();
    let secret = get(&api, "a").unwrap();
    assert_eq!(secret["metadata"]["uid"], uid);
    assert_eq!(secret["metadata"]["labels"]["team"], "a");
    assert_eq!(secret["metadata"]["annotations"]["note"], "b");
    assert!(secrets.get(&name("a")).await.unwrap() == Some(values("2")));
    assert!(api.requests().iter().all(|request| request.verb != "delete"));
}

#[tokio::test]
async fn one_of_another_type_is_left_alone_and_named() {
    let (api, secrets) = world().await;
    let theirs =
        json!({"metadata": {"name": "a", "namespace": "ingress"}, "type": "Opaque", "data": {"x": "eA=="}});
    api.apply("v1/secrets", theirs);
    let before = get(&api, "a");
    for result in [secrets.put(&name("a"), &values("1")).await, secrets.get(&name("a")).await.map(|_| ())] {
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("is there with type \"Opaque\""), "{error}");
    }
    secrets.remove(&name("a")).await.unwrap();
    assert_eq!(get(&api, "a"), before);
}

#[tokio::test]
async fn roots_alone_have_the_type_that_nginx_inc_knows() {
    let (api, secrets) = world().await;
    secrets.put_roots(&name("roots"), "pem").await.unwrap();
    let secret = get(&api, "roots").unwrap();
    assert_eq!((&secret["type"], &secret["data"]), (&json!("nginx.org/ca"), &json!({"ca.crt": "cGVt"})));
    assert_eq!(secrets.get_roots(&name("roots")).await.unwrap().as_deref(), Some("pem"));
    assert_eq!(secrets.owned().await.unwrap(), [name("roots")]);
    let error = secrets.put(&name("roots"), &values("1")).await.unwrap_err().to_string();
    assert!(error.starts_with("is there with type \"nginx.org/ca\""), "{error}");
    secrets.remove(&name("roots")).await.unwrap();
    assert_eq!(get(&api, "roots"), None);
}

#[tokio::test]
async fn one_that_was_made_immutable_is_recreated() {
    let (api, secrets) = world().await;
    secrets.put(&name("a"), &values("1")).await.unwrap();
    let mut frozen = get(&api, "a").unwrap();
    frozen["immutable"] = json!(true);
    api.apply("v1/secrets", frozen);
    secrets.put(&name("a"), &values("2")).await.unwrap();
    assert!(secrets.get(&name("a")).await.unwrap() == Some(values("2")));
    assert_eq!(get(&api, "a").unwrap()["immutable"], Value::Null);
}

#[tokio::test]
async fn one_that_osm_has_written_is_taken_over_in_place() {
    let (api, secrets) = world().await;
    let data = json!({"ca.crt": "YQ==", "tls.crt": "Yg==", "tls.key": "Yw=="});
    let theirs =
        json!({"metadata": {"name": "a", "namespace": "ingress"}, "type": "kubernetes.io/tls", "data": data});
    api.apply("v1/secrets", theirs);
    let uid = get(&api, "a").unwrap()["metadata"]["uid"].clone();
    assert_eq!(secrets.get(&name("a")).await.unwrap(), None, "it is not yet ours");
    secrets.put(&name("a"), &values("1")).await.unwrap();
    assert_eq!(get(&api, "a").unwrap()["metadata"]["uid"], uid);
    assert!(secrets.get(&name("a")).await.unwrap() == Some(values("1")));
}

#[tokio::test]
async fn what_was_written_is_remembered_over_a_restart_and_only_ours_is_deleted() {
    let (api, secrets) = world().await;
    for secret in ["a", "b", "c"] {
        secrets.put(&name(secret), &values("1")).await.unwrap();
    }
    let mut kept = get(&api, "b").unwrap();
    kept["metadata"]["labels"] = json!({});
    api.apply("v1/secrets", kept);
    api.delete("v1/secrets", "ingress", "c");

    let root = RootSecret::new(api.client(), NAMESPACE, "osm");
    let restarted = GatewaySecrets::new(api.client(), root.clone(), "osm");
    assert_eq!(restarted.owned().await.unwrap(), [name("a"), name("b"), name("c")]);
    for secret in restarted.owned().await.unwrap() {
        restarted.remove(&secret).await.unwrap();
    }
    assert!(get(&api, "a").is_none());
    assert!(get(&api, "b").is_some(), "its label was taken off: it belongs to another author now");
    assert!(restarted.owned().await.unwrap().is_empty());
    assert_eq!(root.annotation(GATEWAY_SECRETS).await.unwrap(), None);
    assert_eq!(root.load().await.unwrap().unwrap().entries.0.len(), 1, "the root itself is untouched");
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_what_the_api_server_says() {
    let (api, secrets) = world().await;
    api.answer(|request, _| {
        let is_absent = request.namespace == "ingress" && request.verb == "create";
        is_absent.then(|| FakeApi::refusal(404, "namespaces \"ingress\" not found"))
    });
    let error = secrets.put(&name("a"), &values("1")).await.unwrap_err().to_string();
    assert_eq!(error, "namespaces \"ingress\" not found");
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_with_the_setting_that_grants_it() {
    let (api, secrets) = world().await;
    api.answer(|request, _| {
        (request.namespace == "ingress").then(|| FakeApi::refusal(403, "secrets \"a\" is forbidden"))
    });
    let error = secrets.get(&name("a")).await.unwrap_err().to_string();
    let expected = "secrets \"a\" is forbidden; add the namespace to the chart's value certManager.gatewaySecretNamespaces";
    assert_eq!(error, expected);
}

#[tokio::test]
async fn the_secret_of_another_mesh_is_left_alone_and_named() {
    let (api, secrets) = world().await;
    secrets.put(&name("a"), &values("1")).await.unwrap();
    let root = RootSecret::new(api.client(), "blue-system", "blue");
    root.create_if_absent(NamedValues([("a".to_owned(), b"b".to_vec())].into())).await.unwrap();
    let blue = GatewaySecrets::new(api.client(), root, "blue");
    let error = blue.put(&name("a"), &values("2")).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "is there and belongs to mesh \"osm\", not to \"blue\"; it is left alone: name another Secret or delete this one"
    );
    blue.remove(&name("a")).await.unwrap();
    assert!(secrets.get(&name("a")).await.unwrap() == Some(values("1")));
}

#[tokio::test]
async fn one_whose_namespace_is_gone_and_with_it_the_right_to_look_is_forgotten() {
    let (api, secrets) = world().await;
    api.apply("v1/namespaces", json!({"metadata": {"name": "ingress"}}));
    secrets.put(&name("a"), &values("1")).await.unwrap();
    api.answer(|request, _| {
        (request.namespace == "ingress").then(|| FakeApi::refusal(403, "secrets \"a\" is forbidden"))
    });
    secrets.remove(&name("a")).await.unwrap_err();
    assert_eq!(secrets.owned().await.unwrap(), [name("a")], "the namespace is there: a right is missing");
    api.delete("v1/namespaces", "", "ingress");
    secrets.remove(&name("a")).await.unwrap();
    assert!(secrets.owned().await.unwrap().is_empty());
}
