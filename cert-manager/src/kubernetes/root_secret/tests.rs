use serde_json::json;
use tidegate_kubernetes::fake_api::FakeApi;

use super::*;

const NAMESPACE: &str = "tidegate-system";

fn entries(value: &str) -> NamedValues {
    NamedValues([("issuer.key".to_owned(), value.as_bytes().to_vec())].into())
}

fn store(api: &FakeApi) -> RootSecret {
    RootSecret::new(api.client(), NAMESPACE, "osm")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creators_at_once_one_wins_and_all_agree() {
    let api = FakeApi::start().await;
    let mut set = tokio::task::JoinSet::new();
    for i in 0..16 {
        let store = store(&api);
        set.spawn(async move { store.create_if_absent(entries(&i.to_string())).await.unwrap() });
    }
    let answers = set.join_all().await;
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let secret = api.get("v1/secrets", NAMESPACE, ROOT_SECRET).unwrap();
    assert_eq!(secret["type"], "Opaque");
    assert_eq!(secret["metadata"]["labels"]["app.kubernetes.io/part-of"], "tidegate");
}

#[tokio::test]
async fn an_update_of_what_has_changed_meanwhile_is_refused() {
    let api = FakeApi::start().await;
    let store = store(&api);
    assert_eq!(store.load().await.unwrap(), None);
    assert!(matches!(store.update("1", entries("0")).await, Err(StoreError::Conflict)));
    let first = store.create_if_absent(entries("1")).await.unwrap();
    let second = store.update(&first.revision, entries("2")).await.unwrap();
    assert!(matches!(store.update(&first.revision, entries("3")).await, Err(StoreError::Conflict)));
    assert_eq!(store.load().await.unwrap(), Some(second));
}

#[tokio::test]
async fn a_secret_that_an_operator_has_prepared_is_filled_and_keeps_its_labels() {
    let api = FakeApi::start().await;
    let metadata = json!({"name": ROOT_SECRET, "namespace": NAMESPACE, "labels": {"team": "a"},
        "annotations": {"note": "b"}});
    api.apply("v1/secrets", json!({"metadata": metadata, "type": "Opaque"}));
    let store = store(&api);
    assert_eq!(store.load().await.unwrap(), None);
    let first = store.create_if_absent(entries("1")).await.unwrap();
    store.update(&first.revision, entries("2")).await.unwrap();
    let secret = api.get("v1/secrets", NAMESPACE, ROOT_SECRET).unwrap();
    assert_eq!(secret["metadata"]["labels"]["team"], "a");
    assert_eq!(secret["metadata"]["annotations"]["note"], "b");
    assert_eq!(store.load().await.unwrap().unwrap().entries, entries("2"));
}

#[tokio::test]
async fn an_api_server_that_refuses_is_quoted_and_one_that_is_away_is_named() {
    let api = FakeApi::start().await;
    let store = store(&api);
    api.refuse_writes(403, 1);
    let error = store.create_if_absent(entries("1")).await.unwrap_err().to_string();
    assert_eq!(error, "writes are refused");
    api.stop();
    let error = store.load().await.unwrap_err().to_string();
    assert!(error.starts_with("the API server cannot be reached: "), "{error}");
}

#[tokio::test]
async fn an_annotation_is_changed_although_another_client_writes_in_between() {
    let api = FakeApi::start().await;
    let store = store(&api);
    store.create_if_absent(entries("1")).await.unwrap();
    api.refuse_writes(409, 2);
    store.annotate("a", |_| Some("1".to_owned())).await.unwrap();
    assert_eq!(store.annotation("a").await.unwrap().as_deref(), Some("1"));
    store.annotate("a", |before| before.map(|before| format!("{before},2"))).await.unwrap();
    assert_eq!(store.annotation("a").await.unwrap().as_deref(), Some("1,2"));
    store.annotate("a", |_| None).await.unwrap();
    assert_eq!(store.annotation("a").await.unwrap(), None);
    assert_eq!(store.load().await.unwrap().unwrap().entries, entries("1"));
}
