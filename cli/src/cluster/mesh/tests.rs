use serde_json::{Value, json};

use super::*;
use crate::cluster::testing::{TestCluster, control_plane_pod, namespace};

fn controller(image: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "tidegate-controller", "namespace": "tidegate-system", "labels": labels},
        "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"containers": [{"name": "c", "image": image}]}}},
        "status": {"readyReplicas": 1},
    })
}

#[tokio::test]
async fn control_planes_are_listed_with_their_namespaces() {
    let labels =
        json!({"app.kubernetes.io/name": "tidegate-controller", "app.kubernetes.io/instance": "osm"});
    let fake = TestCluster::start(vec![
        controller("registry.example:5000/tidegate/controller:0.1.0", labels),
        control_plane_pod("tidegate-controller", "tidegate-controller-b"),
        control_plane_pod("tidegate-controller", "tidegate-controller-a"),
        control_plane_pod("tidegate-injector", "tidegate-injector-a"),
        namespace("httpbin", json!({"openservicemesh.io/monitored-by": "osm"})),
    ])
    .await;
    assert_eq!(
        text(&list(&fake.cluster()).await.unwrap()),
        "MESH NAME   MESH NAMESPACE    VERSION   READY   CONTROLLER PODS                               ADDED NAMESPACES\n\
         osm         tidegate-system   0.1.0     1/2     tidegate-controller-a,tidegate-controller-b   httpbin\n"
    );
}

#[test]
fn the_chart_s_version_counts_before_the_image_s_tag() {
    let parse = |value| serde_json::from_value::<Deployment>(value).unwrap();
    assert_eq!(version(&parse(controller("x:1", json!({"app.kubernetes.io/version": "0.2.0"})))), "0.2.0");
    assert_eq!(version(&parse(controller("x:1", json!({})))), "1");
    assert_eq!(image_tag("localhost:5000/x"), "unknown");
    assert_eq!(image_tag("x:1@sha256:abc"), "1");
}
