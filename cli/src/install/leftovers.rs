//! What an uninstall leaves because it cannot be made again, and its deletion on request.

use std::fmt::Debug;

use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, ResourceExt};
use serde::de::DeserializeOwned;
use tidegate_crds::injection::{INJECTED, SIDECAR_LABEL, TRUST_BUNDLE_CONFIG_MAP};
use tidegate_crds::manifest;
use tidegate_crds::mesh_config::{MESH_CONFIG_NAME, MeshConfig};

use crate::cluster::client::Cluster;
use crate::cluster::control_plane::INSTANCE_LABEL;

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

    /// Deletes what was asked for; returns a line for each thing that is gone.
    pub(super) async fn run(self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let mut gone = Vec::new();
        let namespace = &cluster.control_plane;
        let client = || cluster.client.clone();
        if self.delete_root {
            let secrets: Api<Secret> = Api::namespaced(client(), namespace);
            delete(cluster, &secrets, ROOT_SECRET, &format!("Secret {namespace}/{ROOT_SECRET}"), &mut gone)
                .await?;
            let named = ListParams::default()
                .fields(&format!("metadata.name={TRUST_BUNDLE_CONFIG_MAP}"))
                .labels(&format!("{INSTANCE_LABEL}={}", cluster.mesh_name));
            let bundles: Vec<ConfigMap> = cluster
                .list(&Api::all(client()), named, &format!("ConfigMaps {TRUST_BUNDLE_CONFIG_MAP}"))
                .await?;
            for bundle in bundles {
                let place = bundle.namespace().unwrap_or_default();
                let what = format!("ConfigMap {place}/{TRUST_BUNDLE_CONFIG_MAP}");
                let bundles: Api<ConfigMap> = Api::namespaced(client(), &place);
                delete(cluster, &bundles, TRUST_BUNDLE_CONFIG_MAP, &what, &mut gone).await?;
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

/// How many Pods still have a sidecar.
pub(super) async fn injected_pods(cluster: &Cluster) -> anyhow::Result<usize> {
    let injected = ListParams::default().labels(&format!("{SIDECAR_LABEL}={INJECTED}"));
    let pods: Vec<Pod> =
        cluster.list(&Api::all(cluster.client.clone()), injected, "pods of all namespaces").await?;
    Ok(pods.len())
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
