use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use serde_json::{Value, json};
use tidegate_kubernetes::fake_api::FakeApi;
use tidegate_kubernetes::watch::WatchMetrics;

use super::*;

const AUDIENCE: &str = "tidegate-ca";

fn token_of(claims: &Value) -> String {
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", encode("{\"alg\":\"RS256\"}"), encode(&claims.to_string()), encode("signature"))
}

fn token() -> String {
    token_of(&json!({"aud": [AUDIENCE], "exp": 4_000_000_000_u64}))
}

fn accepted() -> Value {
    json!({
        "authenticated": true,
        "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:httpbin:with.dots",
            "extra": {POD_NAME: ["httpbin-1"], POD_UID: ["8f0c"]},
        },
    })
}

/// An API server that answers each review with this status.
async fn api_server(status: Value) -> FakeApi {
    let api = FakeApi::start().await;
    api.answer(move |request, review| {
        assert_eq!((request.verb, request.resource.as_str()), ("create", "tokenreviews"));
        assert_eq!(review["spec"]["audiences"], json!([AUDIENCE]));
        let mut review = review.clone();
        review["status"] = status.clone();
        Some((201, review))
    });
    api
}

fn namespace(api: &FakeApi, name: &str, labels: Value) {
    api.apply("v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
}

/// A reviewer that knows namespace httpbin, which is in the mesh.
async fn reviewer(api: &FakeApi) -> TokenReviewer {
    namespace(api, "httpbin", json!({"openservicemesh.io/monitored-by": "osm"}));
    let (wake, meters) = (Arc::default(), WatchMetrics::default());
    let namespaces = Namespaces::start(api.client(), "tidegate-system", "osm", &wake, &meters);
    api.wait_for(|_| namespaces.find("httpbin").is_some()).await;
    TokenReviewer::new(api.client(), AUDIENCE.to_owned(), TrustDomain::default(), namespaces)
}

fn reviews(api: &FakeApi) -> usize {
    api.requests().iter().filter(|request| request.resource == "tokenreviews").count()
}

async fn judged(status: Value) -> Result<Caller, AuthError> {
    let api = api_server(status).await;
    reviewer(&api).await.authenticate(&token(), None).await
}

#[tokio::test]
async fn an_accepted_token_is_its_service_account_and_pod() {
    let caller = judged(accepted()).await.unwrap();
    assert_eq!(caller.identity.spiffe_uri(), "spiffe://cluster.local/ns/httpbin/sa/with.dots");
    assert_eq!(caller.pod, Some(PodReference { name: "httpbin-1".to_owned(), uid: "8f0c".to_owned() }));
}

#[tokio::test]
async fn whatever_the_answer_lacks_refuses_the_token() {
    let with = |path: &str, value: Value| {
        let mut status = accepted();
        *status.pointer_mut(path).unwrap() = value;
        status
    };
    let extra = |value: Value| with("/user/extra", value);
    let username = |name: &str| with("/user/username", json!(name));
    let table = [
        (json!({"authenticated": false, "error": "token expired"}), "rejected"),
        (json!({}), "rejected"),
        (with("/audiences", json!(null)), "audience"),
        (with("/audiences", json!([])), "audience"),
        (with("/audiences", json!(["https://kubernetes.default.svc"])), "audience"),
        (username("alice"), "identity"),
        (username("system:node:a"), "identity"),
        (username("system:serviceaccount:a"), "identity"),
        (username("system:serviceaccount:a:b:c"), "identity"),
        (username("system:serviceaccount:A:b"), "identity"),
        (username("system:serviceaccount::b"), "identity"),
        (username("system:serviceaccount:a.b:c"), "identity"),
        (username(" system:serviceaccount:a:b"), "identity"),
        (extra(json!(null)), "not-bound"),
        (extra(json!({POD_NAME: ["a"]})), "not-bound"),
        (extra(json!({POD_UID: ["a"]})), "not-bound"),
        (extra(json!({POD_NAME: ["a"], POD_UID: [""]})), "not-bound"),
        (extra(json!({POD_NAME: ["a", "b"], POD_UID: ["c"]})), "not-bound"),
    ];
    for (status, kind) in table {
        let error = judged(status.clone()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
    }
}

#[tokio::test]
async fn a_missing_token_or_one_for_another_audience_never_reaches_the_api_server() {
    let api = api_server(accepted()).await;
    let reviewer = reviewer(&api).await;
    let table = [
        (token_of(&json!({"aud": ["https://kubernetes.default.svc"], "exp": 1})), "audience"),
        (token_of(&json!({"aud": "other", "exp": 1})), "audience"),
        (token_of(&json!({"exp": 1})), "audience"),
        (token_of(&json!({"aud": [AUDIENCE]})), "malformed-token"),
        (token_of(&json!([])), "malformed-token"),
        ("opaque".to_owned(), "malformed-token"),
        ("a.b.c.d".to_owned(), "malformed-token"),
        ("a.%%%.c".to_owned(), "malformed-token"),
        (format!("{}{}", token(), "x".repeat(20_000)), "malformed-token"),
    ];
    for (token, kind) in table {
        assert_eq!(reviewer.authenticate(&token, None).await.unwrap_err().kind(), kind, "{token}");
    }
    assert_eq!(reviews(&api), 0);
    let single = token_of(&json!({"aud": AUDIENCE, "exp": 4_000_000_000_u64}));
    reviewer.authenticate(&single, None).await.unwrap();
}

#[tokio::test]
async fn each_request_is_reviewed_so_that_a_pod_that_is_gone_gets_nothing() {
    let api = FakeApi::start().await;
    let is_there = Arc::new(AtomicBool::new(true));
    let seen = is_there.clone();
    api.answer(move |_, review| {
        let mut review = review.clone();
        let gone = json!({"authenticated": false, "error": "pod httpbin-1 not found"});
        review["status"] = if seen.load(Ordering::SeqCst) { accepted() } else { gone };
        Some((201, review))
    });
    let reviewer = reviewer(&api).await;
    reviewer.authenticate(&token(), None).await.unwrap();
    is_there.store(false, Ordering::SeqCst);
    let error = reviewer.authenticate(&token(), None).await.unwrap_err();
    assert_eq!(error.to_string(), "the API server does not accept the token: pod httpbin-1 not found");
}

#[tokio::test]
async fn an_api_server_that_is_away_or_refuses_us_is_worth_another_try() {
    let api = FakeApi::start().await;
    let reviewer = reviewer(&api).await;
    for code in [401, 403, 500] {
        api.answer(move |_, _| Some(FakeApi::refusal(code, "no")));
        let error = reviewer.authenticate(&token(), None).await.unwrap_err();
        assert_eq!(error, AuthError::Unavailable("no".to_owned()), "{code}");
    }
    api.stop();
    let error = reviewer.authenticate(&token(), None).await.unwrap_err();
    assert_eq!(error.kind(), "unavailable", "{error}");
}

#[tokio::test]
async fn a_reason_never_holds_the_token_nor_more_than_one_line() {
    let reason = format!("bad token {}\nforged line {}", token(), "x".repeat(500));
    let error = judged(json!({"authenticated": false, "error": reason})).await.unwrap_err().to_string();
    assert!(!error.contains(&token()) && !error.contains('\n') && error.len() < 300, "{error}");
}

#[tokio::test]
async fn a_host_that_floods_us_does_not_keep_the_api_server_busy() {
    let api = api_server(json!({"authenticated": false})).await;
    let reviewer = reviewer(&api).await;
    let peer = |host: u8| Some(SocketAddr::from(([10, 0, 0, host], 1000)));
    // All that it may ask for in the next hour.
    let later = Instant::now() + Duration::from_secs(3600);
    while reviewer.limiter.take(&IpAddr::from([10, 0, 0, 1]), later).is_ok() {}
    assert_eq!(reviewer.authenticate(&token(), peer(1)).await.unwrap_err().kind(), "unavailable");
    assert_eq!(reviews(&api), 0);
    assert_eq!(reviewer.authenticate(&token(), peer(2)).await.unwrap_err().kind(), "rejected");
}

#[tokio::test]
async fn only_namespaces_of_the_mesh_and_the_control_planes_own_get_certificates() {
    let api = FakeApi::start().await;
    api.answer(|_, review| {
        let mut review = review.clone();
        // The stand-in takes the signature for the namespace.
        let signature = review["spec"]["token"].as_str()?.rsplit('.').next()?.to_owned();
        review["status"] = accepted();
        review["status"]["user"]["username"] = format!("system:serviceaccount:{signature}:app").into();
        Some((201, review))
    });
    let reviewer = reviewer(&api).await;
    let claims = token().rsplit_once('.').unwrap().0.to_owned();
    let ask = async |namespace: &str| {
        let caller = reviewer.authenticate(&format!("{claims}.{namespace}"), None).await;
        caller.map(|caller| caller.identity.namespace().to_owned()).map_err(|error| error.kind())
    };
    assert_eq!(ask("httpbin").await, Ok("httpbin".to_owned()));
    assert_eq!(ask("tidegate-system").await, Ok("tidegate-system".to_owned()));
    // It may be that only we do not know it yet.
    assert_eq!(ask("new").await, Err("unavailable"));

    namespace(&api, "new", json!({"tidegate.io/injection": "enabled"}));
    namespace(&api, "other", json!({"openservicemesh.io/monitored-by": "other"}));
    namespace(&api, "plain", json!({}));
    api.wait_for(|_| reviewer.namespaces.find("plain").is_some()).await;
    assert_eq!(ask("new").await, Ok("new".to_owned()));
    assert_eq!(ask("other").await, Err("not-in-mesh"));
    assert_eq!(ask("plain").await, Err("not-in-mesh"));

    // What runs in a namespace that is being deleted runs on for a while.
    let going = json!({"metadata": {"name": "new", "labels": {"tidegate.io/injection": "enabled"},
        "deletionTimestamp": "2030-01-01T00:00:00Z"}});
    api.apply("v1/namespaces", going);
    let is_going = |name: &str| reviewer.namespaces.find(name).is_some_and(|found| found.is_going);
    api.wait_for(|_| is_going("new")).await;
    assert_eq!(ask("new").await, Ok("new".to_owned()));

    namespace(&api, "httpbin", json!({}));
    api.wait_for(|_| reviewer.namespaces.find("httpbin").is_some_and(|found| !found.is_ours)).await;
    assert_eq!(ask("httpbin").await, Err("not-in-mesh"), "one that has left");
}
