//! Determines the mesh whose control plane a namespace holds, so that a command never changes or removes another mesh
//! than the named one.
//!
//! The mesh's name is a label of every object that the chart creates. Helm's own check would not be enough: the
//! release is named the same in every namespace, and `upgrade` with another `meshName` would rename a mesh whose
//! workloads are labelled with the old name.

use anyhow::{bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ResourceExt};
use tidegate_core::contract::labels::INSTANCE;
use tidegate_core::contract::names::{MESH_CONFIG_NAME, ROOT_SECRET};
use tidegate_crds::mesh_config::MeshConfig;

use super::{Deletions, RELEASE};
use crate::cluster::client::Cluster;
use crate::cluster::control_plane::Part;
use crate::helm::Helm;

/// Fails unless the control plane in the namespace is the named mesh's.
pub(super) async fn is_named(cluster: &Cluster) -> anyhow::Result<()> {
    let Some(installed) = controller(cluster).await? else { return nothing_there(cluster) };
    same_mesh(cluster, &installed)
}

/// Like [`is_named`], but also accepts the remains of an earlier uninstall, kept or not yet deleted.
pub(super) async fn may_be_removed(
    cluster: &Cluster,
    helm: &Helm,
    deletions: Deletions,
) -> anyhow::Result<()> {
    if let Some(installed) = controller(cluster).await? {
        return same_mesh(cluster, &installed);
    }
    let Some(left) = left(cluster).await? else { return nothing_there(cluster) };
    if !deletions.any() && !helm.has_release(RELEASE)? {
        return nothing_there(cluster);
    }
    same_mesh(cluster, &left)
}

/// The mesh of the existing controller; empty if it does not say.
async fn controller(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let (namespace, name) = (&cluster.control_plane, Part::Controller.name());
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let found = cluster.get(&api, name, &format!("Deployment {namespace}/{name}")).await?;
    Ok(found.map(|found| mesh_of(&found)))
}

/// The mesh of the remains of a control plane.
async fn left(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let namespace = &cluster.control_plane;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let root = cluster.get(&secrets, ROOT_SECRET, &format!("Secret {namespace}/{ROOT_SECRET}")).await?;
    if let Some(root) = root {
        return Ok(Some(mesh_of(&root)));
    }
    let configs: Api<MeshConfig> = Api::namespaced(cluster.client.clone(), namespace);
    // A cluster without the definition has no MeshConfig, nor has one whose MeshConfig cannot be read.
    let config = configs.get_metadata_opt(MESH_CONFIG_NAME).await;
    let config = config.map_err(|error| cluster.failed("read the MeshConfig", &error))?;
    Ok(config.map(|config| mesh_of(&config)))
}

/// The mesh's name on an object.
fn mesh_of(object: &impl ResourceExt) -> String {
    object.labels().get(INSTANCE).cloned().unwrap_or_default()
}

/// An error that names both meshes, unless they are the same.
fn same_mesh(cluster: &Cluster, installed: &str) -> anyhow::Result<()> {
    let Cluster { control_plane: namespace, mesh_name: named, .. } = cluster;
    ensure!(
        installed == named,
        "namespace {namespace} has the control plane of mesh {installed:?}, not of {named:?}; nothing was changed \
         (--mesh-name, --tidegate-namespace; `tidegate mesh list` shows the existing ones)"
    );
    Ok(())
}

/// The error for a namespace without a control plane.
fn nothing_there(cluster: &Cluster) -> anyhow::Result<()> {
    bail!(
        "namespace {} has no control plane; `tidegate mesh list` shows the namespaces that have one \
         (--tidegate-namespace)",
        cluster.control_plane
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::testing::TestCluster;

    fn labelled(kind: &str, name: &str, mesh: &str) -> Value {
        let spec = if kind == "Deployment" { json!({"selector": {}, "template": {}}) } else { json!(null) };
        json!({"kind": kind, "spec": spec, "metadata": {
            "name": name, "namespace": "tidegate-system", "labels": {"app.kubernetes.io/instance": mesh}}})
    }

    fn controller(mesh: &str) -> Value {
        labelled("Deployment", "tidegate-controller", mesh)
    }

    #[tokio::test]
    async fn only_the_named_meshs_control_plane_is_changed_or_removed() {
        let fake = TestCluster::start(vec![controller("osm")]).await;
        let (own, mut other) = (fake.cluster(), fake.cluster());
        other.mesh_name = "blue".to_owned();
        is_named(&own).await.unwrap();
        may_be_removed(&own, &Helm::stub("tidegate"), Deletions::default()).await.unwrap();
        for refused in [
            is_named(&other).await,
            may_be_removed(&other, &Helm::stub("tidegate"), Deletions::default()).await,
            may_be_removed(&other, &Helm::stub("tidegate"), Deletions::everything()).await,
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("of mesh \"osm\", not of \"blue\""), "{error}");
        }
    }

    #[tokio::test]
    async fn a_namespace_without_a_control_plane_is_an_error() {
        let fake = TestCluster::start(Vec::new()).await;
        for refused in [
            is_named(&fake.cluster()).await,
            may_be_removed(&fake.cluster(), &Helm::stub("tidegate"), Deletions::default()).await,
            may_be_removed(&fake.cluster(), &Helm::stub(""), Deletions::everything()).await,
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(error.starts_with("namespace tidegate-system has no control plane"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_an_uninstall_has_left_can_be_deleted_later_by_those_whose_it_is() {
        for object in
            [labelled("Secret", ROOT_SECRET, "osm"), labelled("MeshConfig", "osm-mesh-config", "osm")]
        {
            let fake = TestCluster::start(vec![object]).await;
            let (own, mut other) = (fake.cluster(), fake.cluster());
            other.mesh_name = "blue".to_owned();
            may_be_removed(&own, &Helm::stub(""), Deletions::everything()).await.unwrap();
            may_be_removed(&other, &Helm::stub(""), Deletions::everything()).await.unwrap_err();
            // The last uninstall was interrupted.
            may_be_removed(&own, &Helm::stub("tidegate"), Deletions::default()).await.unwrap();
            may_be_removed(&own, &Helm::stub("tidegate-crds"), Deletions::default()).await.unwrap_err();
        }
    }
}
