//! Objects that checks look at: those of the mesh's namespaces.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ResourceExt};
use tidegate_crds::injection::namespace_is_in_mesh;

use crate::cluster::client::Cluster;
use crate::cluster::namespace;

/// The namespaces of the mesh.
pub(super) async fn members(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let namespaces = namespace::all(cluster).await?;
    let is_member = |namespace: &&_| namespace_is_in_mesh(namespace, &cluster.mesh_name);
    Ok(namespaces.iter().filter(is_member).map(ResourceExt::name_any).collect())
}

/// The objects of a kind in these namespaces.
pub(super) async fn of_kind(
    cluster: &Cluster,
    kind: &ApiResource,
    namespaces: &BTreeSet<String>,
) -> anyhow::Result<Vec<DynamicObject>> {
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), kind);
    let what = format!("{} of all namespaces", kind.plural);
    let objects = cluster.list(&api, ListParams::default(), &what).await?;
    let is_there = |object: &DynamicObject| object.namespace().is_some_and(|name| namespaces.contains(&name));
    Ok(objects.into_iter().filter(is_there).collect())
}

/// Whether the cluster serves a kind in its version.
pub(super) async fn is_served(cluster: &Cluster, kind: &ApiResource) -> anyhow::Result<bool> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let name = format!("{}.{}", kind.plural, kind.group);
    let what = format!("CustomResourceDefinition {name}");
    let definition = cluster.get(&definitions, &name, &what).await?;
    Ok(definition.is_some_and(|definition| {
        definition.spec.versions.iter().any(|version| version.name == kind.version && version.served)
    }))
}

/// An object's namespace and name.
pub(super) fn full_name(object: &DynamicObject) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
