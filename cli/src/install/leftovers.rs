//! What an uninstall leaves because it cannot be made again, and its deletion on request.

use std::fmt::Debug;

use anyhow::ensure;
use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, ResourceExt};
use serde::de::DeserializeOwned;
use tidegate_crds::injection::{has_sidecar_of, trust_bundle_config_map};
use tidegate_crds::manifest;
use tidegate_crds::mesh_config::{MESH_CONFIG_NAME, MeshConfig};

use crate::cluster::client::Cluster;
use crate::cluster::control_plane::INSTANCE_LABEL;
use crate::cluster::mesh;

/// The Secret that holds the mesh's root and its key.
pub(super) const ROOT_SECRET: &str = "tidegate-ca-bundle";

/// What goes besides the control plane.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Deletes what stays otherwise")]
pub(super) struct Deletions {
    /// The root and its key, and the trust bundles of the mesh: its certificates are void
    #[arg(long)]
    delete_root: bool,
    /// The MeshConfig
    #[arg(long)]
    delete_mesh_config: bool,
    /// The custom resource definitions, and with them every IngressBackend and MeshConfig of the cluster
    #[arg(long)]
    pub(super) delete_crds: bool,
    /// The control plane's namespace, with all that is in it
    #[arg(long)]
    delete_namespace: bool,
    /// All of these
    #[arg(long, conflicts_with_all = ["delete_root", "delete_mesh_config", "delete_crds", "delete_namespace"])]
    delete_all: bool,
}

impl Deletions {
    /// With `--delete-all` spelled out.
    pub(super) fn resolved(self) -> Self {
        if self.delete_all { Self::everything() } else { self }
    }

    /// What `--delete-all` means.
    pub(super) fn everything() -> Self {
        Self {
            delete_root: true,
            delete_mesh_config: true,
            delete_crds: true,
            delete_namespace: true,
            delete_all: true,
        }
    }

    /// Whether anything is to go.
    pub(super) fn any(self) -> bool {
        let Self { delete_root, delete_mesh_config, delete_crds, delete_namespace, delete_all } = self;
        delete_root || delete_mesh_config || delete_crds || delete_namespace || delete_all
    }

    /// Refuses what another mesh of the cluster could not live with.
    pub(super) async fn check(self, cluster: &Cluster) -> anyhow::Result<()> {
        if !self.delete_crds {
            return Ok(());
        }
        let meshes = mesh::list(cluster).await?;
        let others = meshes.iter().filter(|mesh| mesh.namespace != cluster.control_plane);
        let others: Vec<_> =
            others.map(|other| format!("mesh {} in namespace {}", other.mesh, other.namespace)).collect();
        ensure!(
            others.is_empty(),
            "{}: the custom resource definitions are also those of {}, whose policies would go with them; name one by \
             one what else is to go",
            if self.delete_all { "--delete-all" } else { "--delete-crds" },
            others.join(" and of ")
        );
        Ok(())
    }

    /// Deletes what was asked for; returns a line for each thing that is gone.
    pub(super) async fn run(self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let mut gone = Vec::new();
        let namespace = &cluster.control_plane;
        let client = || cluster.client.clone();
        if self.delete_root {
            let secrets: Api<Secret> = Api::namespaced(client(), namespace);
            delete(cluster, &secrets, ROOT_SECRET, &format!("Secret {namespace}/{ROOT_SECRET}"), &mut gone)
                .await?;
            let name = trust_bundle_config_map(&cluster.mesh_name);
            let named = ListParams::default()
                .fields(&format!("metadata.name={name}"))
                .labels(&format!("{INSTANCE_LABEL}={}", cluster.mesh_name));
            let bundles: Vec<ConfigMap> =
                cluster.list(&Api::all(client()), named, &format!("ConfigMaps {name}")).await?;
            for bundle in bundles {
                let place = bundle.namespace().unwrap_or_default();
                let what = format!("ConfigMap {place}/{name}");
                let bundles: Api<ConfigMap> = Api::namespaced(client(), &place);
                delete(cluster, &bundles, &name, &what, &mut gone).await?;
            }
        }
        if self.delete_mesh_config {
            let configs: Api<MeshConfig> = Api::namespaced(client(), namespace);
            let what = format!("MeshConfig {namespace}/{MESH_CONFIG_NAME}");
            delete(cluster, &configs, MESH_CONFIG_NAME, &what, &mut gone).await?;
        }
        if self.delete_crds {
            let crds: Api<CustomResourceDefinition> = Api::all(client());
            for (_, crd) in manifest::all() {
                let name = crd.name_any();
                delete(cluster, &crds, &name, &format!("CustomResourceDefinition {name}"), &mut gone).await?;
            }
        }
        if self.delete_namespace {
            let namespaces: Api<Namespace> = Api::all(client());
            delete(cluster, &namespaces, namespace, &format!("Namespace {namespace}"), &mut gone).await?;
        }
        Ok(gone)
    }
}

/// How many Pods still have a sidecar of this mesh.
pub(super) async fn injected_pods(cluster: &Cluster) -> anyhow::Result<usize> {
    let all = ListParams::default();
    let pods: Vec<Pod> =
        cluster.list(&Api::all(cluster.client.clone()), all, "pods of all namespaces").await?;
    Ok(pods.iter().filter(|pod| has_sidecar_of(pod, &cluster.control_plane)).count())
}

/// Deletes an object; one that is not there is as good as deleted.
async fn delete<K>(
    cluster: &Cluster,
    api: &Api<K>,
    name: &str,
    what: &str,
    gone: &mut Vec<String>,
) -> anyhow::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {
            gone.push(what.to_owned());
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(cluster.failed(&format!("delete {what}"), &error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::testing::{FakeCluster, meshed_pod};

    fn controller(namespace: &str, mesh: &str) -> serde_json::Value {
        let labels =
            json!({"app.kubernetes.io/name": "tidegate-controller", "app.kubernetes.io/instance": mesh});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "tidegate-controller", "namespace": namespace, "labels": labels},
            "spec": {"selector": {}, "template": {}},
        })
    }

    #[tokio::test]
    async fn the_definitions_are_not_deleted_while_another_mesh_has_policies_in_them() {
        let fake =
            FakeCluster::start(vec![controller("tidegate-system", "osm"), controller("blue-system", "blue")])
                .await;
        let all = Deletions { delete_all: true, ..Deletions::default() };
        let error = all.resolved().check(&fake.cluster()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "--delete-all: the custom resource definitions are also those of mesh blue in namespace blue-system, whose \
             policies would go with them; name one by one what else is to go"
        );
        let others = Deletions { delete_root: true, delete_namespace: true, ..Deletions::default() };
        others.check(&fake.cluster()).await.unwrap();
        fake.delete("Deployment", "blue-system", "tidegate-controller");
        all.resolved().check(&fake.cluster()).await.unwrap();
    }

    #[tokio::test]
    async fn pods_of_another_mesh_are_not_counted_as_left() {
        let listens_to = |control_plane: &str| {
            let mut pod = meshed_pod("shop", control_plane);
            let flag = format!("--discovery-server-name=tidegate-controller.{control_plane}.cluster.local");
            pod["spec"]["initContainers"][0]["args"] = json!([flag]);
            pod
        };
        let fake = FakeCluster::start(vec![listens_to("tidegate-system"), listens_to("blue-system")]).await;
        assert_eq!(injected_pods(&fake.cluster()).await.unwrap(), 1);
    }
}
