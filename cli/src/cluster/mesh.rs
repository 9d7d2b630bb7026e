//! `tidegate mesh`: lists the control planes of a cluster.
//!
//! A control plane is found by its controller's Deployment, by label, in any namespace: several meshes may share a
//! cluster.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Subcommand;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, ResourceExt};
use serde::Serialize;
use tidegate_core::contract::labels::{INSTANCE, NAME, VERSION};

use super::client::{Cluster, ShowOptions};
use super::control_plane::Part;
use super::namespace;
use crate::output::{OutputFormat, print_as, table};

/// Control planes.
#[derive(Subcommand, Debug)]
pub(crate) enum MeshCommand {
    /// List the control planes of the cluster.
    List(ShowOptions),
}

/// A control plane.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ControlPlane {
    pub(crate) namespace: String,
    pub(crate) mesh: String,
    /// The chart's version, or the tag of the controller's image.
    pub(crate) version: String,
    /// Ready controller replicas.
    ready: i32,
    /// Desired controller replicas.
    replicas: i32,
    /// Names, sorted; of running Pods and others.
    controller_pods: Vec<String>,
    /// Namespaces in the mesh, sorted.
    added_namespaces: Vec<String>,
}

/// Runs the command.
pub(crate) async fn run(command: MeshCommand) -> anyhow::Result<ExitCode> {
    let MeshCommand::List(options) = command;
    let meshes = list(&options.cluster.connect().await?).await?;
    if meshes.is_empty() && options.output == OutputFormat::Table {
        eprintln!("No control plane in this cluster; `tidegate install` creates one");
        return Ok(ExitCode::SUCCESS);
    }
    print_as(options.output, &meshes, |meshes| text(meshes))
}

/// Every control plane of the cluster.
pub(crate) async fn list(cluster: &Cluster) -> anyhow::Result<Vec<ControlPlane>> {
    let mut meshes = Vec::new();
    for deployment in controllers(cluster).await? {
        let namespace = deployment.namespace().unwrap_or_default();
        let mesh = name(&deployment);
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
        let pods = cluster.list(&pods, of_controllers(), &format!("pods of namespace {namespace}")).await?;
        let mut controller_pods: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
        controller_pods.sort();
        let added = namespace::list(cluster, Some(&mesh)).await?;
        let status = deployment.status.as_ref();
        meshes.push(ControlPlane {
            version: version(&deployment),
            ready: status.and_then(|status| status.ready_replicas).unwrap_or(0),
            replicas: deployment.spec.replicas.unwrap_or(1),
            controller_pods,
            added_namespaces: added.into_iter().map(|row| row.namespace).collect(),
            namespace,
            mesh,
        });
    }
    meshes.sort_by(|a, b| (&a.namespace, &a.mesh).cmp(&(&b.namespace, &b.mesh)));
    Ok(meshes)
}

/// The names of the meshes whose control planes are in the cluster.
pub(crate) async fn names(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    Ok(controllers(cluster).await?.iter().map(name).collect())
}

/// The Deployments of all controllers.
async fn controllers(cluster: &Cluster) -> anyhow::Result<Vec<Deployment>> {
    let deployments: Api<Deployment> = Api::all(cluster.client.clone());
    cluster.list(&deployments, of_controllers(), "deployments of all namespaces").await
}

/// The label that the chart puts on controllers and their Pods.
fn of_controllers() -> ListParams {
    ListParams::default().labels(&format!("{NAME}={}", Part::Controller))
}

/// The mesh's name, from the label with the Helm value `meshName`.
fn name(controller: &Deployment) -> String {
    controller.labels().get(INSTANCE).cloned().unwrap_or_default()
}

/// The version of a Deployment: the chart's, or else the tag of its image.
pub(crate) fn version(deployment: &Deployment) -> String {
    if let Some(version) = deployment.labels().get(VERSION) {
        return version.clone();
    }
    let image = deployment
        .spec
        .template
        .spec
        .as_ref()
        .and_then(|pod| pod.containers.first())
        .and_then(|container| container.image.as_deref());
    image_tag(image.unwrap_or_default()).to_owned()
}

/// The tag of an image, or `unknown`.
pub(crate) fn image_tag(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    last.split_once(':').map_or("unknown", |(_, tag)| tag)
}

fn text(meshes: &[ControlPlane]) -> String {
    let rows: Vec<Vec<String>> = meshes
        .iter()
        .map(|mesh| {
            vec![
                mesh.mesh.clone(),
                mesh.namespace.clone(),
                mesh.version.clone(),
                format!("{}/{}", mesh.ready, mesh.replicas),
                mesh.controller_pods.join(","),
                mesh.added_namespaces.join(","),
            ]
        })
        .collect();
    let heading = ["MESH NAME", "MESH NAMESPACE", "VERSION", "READY", "CONTROLLER PODS", "ADDED NAMESPACES"];
    table(&heading, &rows)
}

#[cfg(test)]
mod tests;
