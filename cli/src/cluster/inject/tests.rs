use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::cluster::testing::FakeCluster;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: InjectOptions,
}

fn options(words: &[&str]) -> InjectOptions {
    Line::parse_from(["inject", "-f", "-"].iter().chain(words)).options
}

fn injector(arguments: &[&str]) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "tidegate-injector", "namespace": "tidegate-system"},
        "spec": {"selector": {}, "template": {"spec": {"containers": [
            {"name": "tidegate-injector", "image": "x", "args": arguments},
        ]}}},
    })
}

#[test]
fn offline_the_defaults_hold() {
    let settings = options(&["--offline"]).settings(Told::default());
    assert_eq!(settings.image, IMAGE);
    assert_eq!(settings.discovery_server_name, "tidegate-controller.tidegate-system.cluster.local");
    let settings =
        options(&["--offline", "--osm-namespace", "mesh", "--mesh-name", "m"]).settings(Told::default());
    assert_eq!(settings.ca_address, "https://tidegate-cert-manager.mesh.svc:15012");
    assert_eq!(settings.mesh_name, "m");
}

#[tokio::test]
async fn the_injectors_own_flags_count_and_the_command_lines_before_them() {
    let arguments =
        ["--sidecar-image=registry/sidecar:7", "--sidecar-image-pull-policy=Never", "--trust-domain=td"];
    let config = json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "tidegate-system"},
        "spec": {"sidecar": {"enablePrivilegedInitContainer": true}},
    });
    let fake = FakeCluster::start(vec![injector(&arguments), config]).await;
    let (told, mesh) = from_cluster(&fake.cluster()).await.unwrap();
    assert!(mesh.privileged_interception);
    let settings = options(&["--sidecar-image", "mine:1"]).settings(told);
    assert_eq!((settings.image.as_str(), settings.image_pull_policy.as_str()), ("mine:1", "Never"));
    assert_eq!(settings.discovery_server_name, "tidegate-controller.tidegate-system.td");
}

#[tokio::test]
async fn without_an_injector_the_way_out_is_shown() {
    let fake = FakeCluster::start(Vec::new()).await;
    let error = from_cluster(&fake.cluster()).await.unwrap_err();
    let expected = "there is no Deployment tidegate-system/tidegate-injector; --offline asks no cluster";
    assert_eq!(error.to_string(), expected);
}
