use axum::Router;
use axum::routing::get as answer;
use serde_json::json;

use super::*;
use crate::cluster::testing::{TestCluster, control_plane_pod, meshed_pod, plain_pod};

fn workload(name: &str, connected: bool, since: &str, acked: &str) -> Value {
    json!({
        "workload": name, "identity": "x", "version": "aaaabbbbccccdddd", "error": null, "policy": null,
        "sidecar": {
            "connected": connected, "connectedSince": since, "address": "10.0.0.1:1", "program": "0.1.0",
            "instance": "i", "sentVersion": "aaaabbbbccccdddd", "ackedVersion": acked, "rejected": null,
            "trustedRoots": ["0011223344556677", "8899aabbccddeeff"], "certificateNotAfter": "2030-01-01T00:00:00Z",
        },
    })
}

async fn controller(fake: &TestCluster, name: &str, workloads: Value) {
    let route = answer(move || async move { axum::Json(workloads) });
    fake.admin(&format!("tidegate-system/{name}"), Router::new().route("/workloads", route)).await;
}

#[tokio::test]
async fn the_replica_that_a_sidecar_is_connected_to_knows_best() {
    let fake = TestCluster::start(vec![
        control_plane_pod("tidegate-controller", "c-0"),
        control_plane_pod("tidegate-controller", "c-1"),
        meshed_pod("httpbin", "a"),
        meshed_pod("httpbin", "b"),
        meshed_pod("httpbin", "c"),
        plain_pod("httpbin", "plain"),
    ])
    .await;
    let mut rejected = workload("httpbin/b", true, "2026-01-01T00:00:00Z", "0000");
    rejected["sidecar"]["rejected"] = json!({"version": "aaaabbbbccccdddd", "reason": "unknown field"});
    let old = workload("httpbin/a", false, "2026-02-01T00:00:00Z", "0000");
    controller(&fake, "c-0", json!([old, rejected])).await;
    controller(
        &fake,
        "c-1",
        json!([workload("httpbin/a", true, "2026-01-01T00:00:00Z", "aaaabbbbccccdddd")]),
    )
    .await;
    let rows = status(&fake.cluster(), None).await.unwrap();
    let mut partly = rows[0].clone();
    let reason = RejectedVersion { version: "v".to_owned(), reason: "too many".to_owned() };
    partly.rejected_resources.insert("destination/10.96.0.10:80".to_owned(), reason);
    assert_eq!(partly.policy_cell(), "in force; rejected destination/10.96.0.10:80: too many");
    assert_eq!(
        text(&rows),
        "NAMESPACE   POD   CONNECTED   POLICY                    ACKED/SENT                  CERTIFICATE ENDS       TRUSTED ROOTS               VERSION   CONTROLLER\n\
         httpbin     a     yes         in force                  aaaabbbbcccc/aaaabbbbcccc   2030-01-01T00:00:00Z   001122334455,8899aabbccdd   0.1.0     c-1\n\
         httpbin     b     yes         rejected: unknown field   0000/aaaabbbbcccc           2030-01-01T00:00:00Z   001122334455,8899aabbccdd   0.1.0     c-0\n\
         httpbin     c     no          none                      -/-                         -                      -                           0.1.0     -\n"
    );
}

#[tokio::test]
async fn a_sidecar_is_asked_through_a_port_forward() {
    let fake = TestCluster::start(vec![meshed_pod("httpbin", "a")]).await;
    let references =
        json!([{"name": "backend/Service/a/b:80"}, {"name": "routes/Service/a/b:80", "routes": []}]);
    let tls = json!({"trustBundle": ["ab"]});
    let config =
        json!({"version": "0.1.0", "tls": tls, "inbound": [], "policy": null, "references": references});
    let routes = Router::new()
        .route("/config", answer(move || async move { axum::Json(config) }))
        .route("/metrics", answer(|| async { "a_total 1\n" }));
    fake.admin("httpbin/a", routes).await;
    let ask =
        async |query| String::from_utf8(get(&fake.cluster(), "httpbin", "a", query).await.unwrap()).unwrap();
    assert_eq!(ask(ProxyQuery::Metrics).await, "a_total 1\n");
    assert_eq!(ask(ProxyQuery::Certs).await, "{\n  \"trustBundle\": [\n    \"ab\"\n  ]\n}\n");
    assert_eq!(ask(ProxyQuery::Policy).await, "null\n");
    let routes: Value = serde_json::from_str(&ask(ProxyQuery::Routes).await).unwrap();
    assert_eq!(routes, json!([{"name": "routes/Service/a/b:80", "routes": []}]));

    let error = get(&fake.cluster(), "httpbin", "a", ProxyQuery::Log).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "pod httpbin/a: /log: 404 Not Found: ");
}

#[tokio::test]
async fn a_pod_that_cannot_be_asked_says_why() {
    let mut waiting = meshed_pod("httpbin", "waiting");
    waiting["status"] = json!({"phase": "Pending"});
    let fake =
        TestCluster::start(vec![meshed_pod("httpbin", "a"), plain_pod("httpbin", "plain"), waiting]).await;
    let why = async |name| meshed_pod_error(&fake, name).await;
    assert_eq!(
        why("gone").await,
        "pod gone does not exist in namespace httpbin; give -n for another namespace"
    );
    let without = why("plain").await;
    assert!(without.starts_with("pod httpbin/plain has no sidecar; "), "{without}");
    assert_eq!(why("waiting").await, "the sidecar of pod httpbin/waiting is not running; the pod is Pending");

    let error = get(&fake.cluster(), "httpbin", "a", ProxyQuery::Ready).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "pod httpbin/a: port 15000: connection refused");
    fake.api.forbid("get pods/portforward");
    let error = get(&fake.cluster(), "httpbin", "a", ProxyQuery::Ready).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(
        said.starts_with(
            "pod httpbin/a: your user lacks permission to port-forward to it: pods/portforward is "
        ),
        "{said}"
    );
}

#[tokio::test]
async fn without_a_controller_the_way_to_one_is_shown() {
    let fake = TestCluster::start(vec![meshed_pod("httpbin", "a")]).await;
    let error = status(&fake.cluster(), None).await.unwrap_err();
    let expected = "no running pod of tidegate-controller in namespace tidegate-system for mesh osm; select another \
                    control plane with --tidegate-namespace and --mesh-name; `tidegate mesh list` shows them";
    assert_eq!(format!("{error:#}"), expected);
}

#[tokio::test]
async fn pods_are_named_in_either_form() {
    let fake = TestCluster::start(Vec::new()).await;
    let cluster = fake.cluster();
    let name = |text, namespace| pod_name(&cluster, text, namespace).map_err(|error| error.to_string());
    let pair = |namespace: &str, name: &str| Ok((namespace.to_owned(), name.to_owned()));
    assert_eq!(name("a", None), pair("default", "a"));
    assert_eq!(name("a", Some("b")), pair("b", "a"));
    assert_eq!(name("b/a", None), pair("b", "a"));
    assert_eq!(name("b/a", Some("c")), Err("POD b/a is in namespace b, but --namespace is c".to_owned()));
}

async fn meshed_pod_error(fake: &TestCluster, name: &str) -> String {
    super::meshed_pod(&fake.cluster(), "httpbin", name).await.unwrap_err().to_string()
}
