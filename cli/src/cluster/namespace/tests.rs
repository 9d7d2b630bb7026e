use serde_json::json;

use super::*;
use crate::cluster::testing::{TestCluster, control_plane_pod, meshed_pod, namespace, plain_pod};

fn text_of(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

#[tokio::test]
async fn adding_sets_osms_label_and_annotation_and_may_be_repeated() {
    let fake = TestCluster::start(vec![namespace("httpbin", json!({})), plain_pod("httpbin", "a")]).await;
    for _ in 0..2 {
        let said = add(&fake.cluster(), "httpbin", false).await.unwrap();
        assert_eq!(said, "Namespace [httpbin] successfully added to mesh [osm]");
        let metadata = &fake.object("Namespace", "httpbin")["metadata"];
        assert_eq!(metadata["labels"], json!({"openservicemesh.io/monitored-by": "osm"}));
        assert_eq!(metadata["annotations"], json!({"openservicemesh.io/sidecar-injection": "enabled"}));
    }
}

#[tokio::test]
async fn adding_without_sidecars_says_so_and_takes_the_other_label_away() {
    let fake = TestCluster::start(vec![namespace("edge", json!({"tidegate.io/injection": "enabled"}))]).await;
    add(&fake.cluster(), "edge", true).await.unwrap();
    let metadata = &fake.object("Namespace", "edge")["metadata"];
    assert_eq!(metadata["labels"], json!({"openservicemesh.io/monitored-by": "osm"}));
    assert_eq!(metadata["annotations"], json!({"openservicemesh.io/sidecar-injection": "disabled"}));
}

#[tokio::test]
async fn namespaces_that_cannot_be_in_the_mesh_are_refused_with_what_to_do() {
    let other_control_plane = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "tidegate-controller", "namespace": "mesh-b",
                     "labels": {"app.kubernetes.io/name": "tidegate-controller"}},
    });
    let fake = TestCluster::start(vec![
        namespace("kube-system", json!({})),
        namespace("tidegate-system", json!({})),
        namespace("mesh-b", json!({})),
        other_control_plane,
        namespace("left", json!({"openservicemesh.io/ignore": "true"})),
        namespace("theirs", json!({"openservicemesh.io/monitored-by": "mesh-b"})),
        namespace("webhooks", json!({"control-plane": "x"})),
        control_plane_pod("tidegate-controller", "c"),
    ])
    .await;
    for (name, why) in [
        ("kube-system", "it belongs to Kubernetes itself"),
        (
            "tidegate-system",
            "[tidegate-controller] is installed there: a control plane's namespace cannot be in the mesh",
        ),
        (
            "mesh-b",
            "[tidegate-controller] is installed there: a control plane's namespace cannot be in the mesh",
        ),
        (
            "left",
            "it is ignored by label openservicemesh.io/ignore; remove that label first: kubectl label namespace left openservicemesh.io/ignore-",
        ),
        (
            "theirs",
            "it belongs to mesh [mesh-b]; remove it there first: tidegate namespace remove theirs --mesh-name mesh-b",
        ),
        ("webhooks", "label control-plane excludes it from admission webhooks, so no sidecar can be added"),
        ("gone", "namespace [gone] does not exist"),
    ] {
        let error = add(&fake.cluster(), name, false).await.unwrap_err();
        assert_eq!(text_of(&error), format!("Could not add namespace [{name}] to mesh [osm]: {why}"));
    }
    assert_eq!(fake.changes(), []);
}

#[test]
fn a_namespace_whose_pod_security_refuses_interception_gets_a_hint() {
    let hint = |labels| {
        let namespace = serde_json::from_value(namespace("shop", labels)).unwrap();
        pod_security_hint(&namespace)
    };
    for level in ["restricted", "baseline"] {
        let text = hint(json!({"pod-security.kubernetes.io/enforce": level})).unwrap();
        let command =
            "kubectl label namespace shop --overwrite pod-security.kubernetes.io/enforce=privileged";
        assert!(text.contains(level) && text.ends_with(command), "{text}");
    }
    assert_eq!(hint(json!({"pod-security.kubernetes.io/enforce": "privileged"})), None);
    assert_eq!(hint(json!({"pod-security.kubernetes.io/warn": "restricted"})), None);
}

#[tokio::test]
async fn removing_takes_everything_away_that_adding_sets() {
    let mut member = namespace("httpbin", json!({"openservicemesh.io/monitored-by": "osm", "team": "a"}));
    member["metadata"]["annotations"] =
        json!({"openservicemesh.io/sidecar-injection": "enabled", "openservicemesh.io/metrics": "enabled"});
    let fake = TestCluster::start(vec![member, meshed_pod("httpbin", "a")]).await;
    let said = remove(&fake.cluster(), "httpbin").await.unwrap();
    assert_eq!(said, "Namespace [httpbin] successfully removed from mesh [osm]");
    let metadata = &fake.object("Namespace", "httpbin")["metadata"];
    assert_eq!(metadata["labels"], json!({"team": "a"}));
    assert_eq!(metadata["annotations"], json!({}));

    let said = remove(&fake.cluster(), "httpbin").await.unwrap();
    assert_eq!(said, "Namespace [httpbin] already does not belong to any mesh");
    assert_eq!(fake.changes().len(), 1);
}

#[tokio::test]
async fn a_namespace_of_another_mesh_is_not_removed() {
    let fake =
        TestCluster::start(vec![namespace("b", json!({"openservicemesh.io/monitored-by": "other"}))]).await;
    let error = remove(&fake.cluster(), "b").await.unwrap_err();
    let expected =
        "Could not remove namespace [b] from mesh [osm]: it belongs to mesh [other]; give --mesh-name other";
    assert_eq!(text_of(&error), expected);
}

#[tokio::test]
async fn ignoring_sets_the_label() {
    let fake = TestCluster::start(vec![namespace("a", json!({}))]).await;
    let said = ignore(&fake.cluster(), "a").await.unwrap();
    assert_eq!(said, "Successfully set namespace [a] to be ignored");
    assert_eq!(fake.object("Namespace", "a")["metadata"]["labels"]["openservicemesh.io/ignore"], "true");
}

#[tokio::test]
async fn the_list_shows_members_of_either_label() {
    let mut b = namespace("b", json!({"openservicemesh.io/monitored-by": "other"}));
    b["metadata"]["annotations"] = json!({"openservicemesh.io/sidecar-injection": "Yes"});
    let mut f = namespace("f", json!({"tidegate.io/injection": "enabled"}));
    f["metadata"]["annotations"] = json!({"openservicemesh.io/sidecar-injection": "disabled"});
    let fake = TestCluster::start(vec![
        b,
        namespace("a", json!({"tidegate.io/injection": "enabled"})),
        namespace("c", json!({"openservicemesh.io/monitored-by": "osm"})),
        namespace("d", json!({"openservicemesh.io/monitored-by": "osm", "openservicemesh.io/ignore": ""})),
        namespace("e", json!({})),
        f,
    ])
    .await;
    let all = list(&fake.cluster(), None).await.unwrap();
    assert_eq!(
        text(&all),
        "NAMESPACE   MESH    SIDECAR-INJECTION\n\
         a           osm     enabled\n\
         b           other   enabled\n\
         c           osm     disabled\n\
         f           osm     disabled\n"
    );
    let names = |list: Vec<MeshNamespace>| list.into_iter().map(|row| row.namespace).collect::<Vec<_>>();
    assert_eq!(names(list(&fake.cluster(), Some("other")).await.unwrap()), ["b"]);
    assert_eq!(names(list(&fake.cluster(), Some("osm")).await.unwrap()), ["a", "c", "f"]);
}

#[tokio::test]
async fn what_the_user_may_not_do_is_said_in_the_api_servers_words() {
    let fake = TestCluster::start(vec![namespace("a", json!({}))]).await;
    fake.api.forbid("patch namespaces");
    let error = ignore(&fake.cluster(), "a").await.unwrap_err();
    let expected = "Could not set namespace [a] to be ignored: cannot change namespace a: permission denied: \
                    namespaces is forbidden: User \"someone\" cannot patch resource \"namespaces\"";
    assert_eq!(text_of(&error), expected);
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_named() {
    let fake = TestCluster::start(Vec::new()).await;
    let mut cluster = fake.cluster();
    cluster.server = "http://127.0.0.1:1".to_owned();
    cluster.client =
        kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let error = text_of(&list(&cluster, None).await.unwrap_err());
    assert!(
        error.starts_with("cannot list namespaces: the API server http://127.0.0.1:1 is unreachable: "),
        "{error}"
    );
    assert!(error.contains("onnection refused"), "{error}");
}
