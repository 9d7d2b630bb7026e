use serde_json::json;

use super::*;
use crate::cluster::testing::{TestCluster, ingress_backend};

#[tokio::test]
async fn pairs_that_open_the_same_port_of_a_service_are_named() {
    let fake = TestCluster::start(vec![
        ingress_backend("httpbin", "b", &["httpbin", "other"], 14001, json!([])),
        ingress_backend("httpbin", "a", &["httpbin"], 14001, json!([])),
        ingress_backend("httpbin", "another-port", &["httpbin"], 14002, json!([])),
        ingress_backend("elsewhere", "c", &["httpbin"], 14001, json!([])),
    ])
    .await;
    let policies = ingress_backends(&fake.cluster(), &[]).await.unwrap();
    let found = conflicts(&policies.readable);
    assert_eq!(
        text(&found, &[]),
        "[+] IngressBackend httpbin/a conflicts with httpbin/b:\n\
         Backend httpbin (port 14001) specified in a and b conflicts\n"
    );
    let elsewhere = ["elsewhere".to_owned()];
    let policies = ingress_backends(&fake.cluster(), &elsewhere).await.unwrap();
    let said = text(&conflicts(&policies.readable), &elsewhere);
    assert_eq!(said, "No conflicts among IngressBackends of namespaces [elsewhere]\n");
}

#[tokio::test]
async fn a_cluster_without_the_definitions_differs_from_one_without_policies() {
    let fake = TestCluster::start(Vec::new()).await;
    fake.api.serve_resource("policy.openservicemesh.io/v1alpha1/ingressbackends", false);
    let error = ingress_backends(&fake.cluster(), &[]).await.unwrap_err();
    let expected = "cannot list IngressBackends of all namespaces: the cluster does not define them; `tidegate check` \
                    says which custom resource definitions are missing";
    assert_eq!(format!("{error:#}"), expected);
}
