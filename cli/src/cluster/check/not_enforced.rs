//! Check of other meshes' policies in the mesh's namespaces that Tidegate does not enforce.
//!
//! Its warnings name the objects, up to a page of each kind. Only metadata is listed, because the content does not
//! matter.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ResourceExt};
use tidegate_crds::injection::namespace_is_in_mesh;
use tidegate_crds::manifest;
use tidegate_crds::not_enforced::effect;

use super::{Check, CheckOutcome, CheckReport, NAMED};
use crate::cluster::client::Cluster;
use crate::cluster::namespace;

const NONE: Check = Check {
    id: "policies-not-enforced",
    category: "Policies",
    title: "all policies in the mesh are of kinds that are enforced",
    hint: "such an object has no effect: replace it with its Tidegate equivalent, or delete it",
};

/// Maximum number of objects to list per kind.
const PAGE: u32 = 500;

/// Adds no finding if the cluster does not define such kinds.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    if let Some(outcome) = outcome(cluster).await.transpose() {
        report.add(&NONE, outcome);
    }
}

/// `None` if the cluster defines no such kind.
async fn outcome(cluster: &Cluster) -> anyhow::Result<Option<CheckOutcome>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let definitions = cluster.list(&definitions, ListParams::default(), "CustomResourceDefinitions").await?;
    let namespaces: BTreeSet<String> = namespace::all(cluster)
        .await?
        .iter()
        .filter(|namespace| namespace_is_in_mesh(namespace, &cluster.mesh_name))
        .map(ResourceExt::name_any)
        .chain([cluster.control_plane.clone()])
        .collect();
    let (mut kinds, mut objects) = (Vec::new(), Vec::new());
    let ours: BTreeSet<String> = manifest::all().iter().map(|(_, crd)| crd.name_any()).collect();
    for definition in definitions.into_iter().filter(|definition| !ours.contains(&definition.name_any())) {
        let spec = definition.spec;
        let Some(effect) = effect(&spec.group, &spec.names.kind) else { continue };
        let Some(version) = spec.versions.iter().find(|version| version.served) else { continue };
        let resource = ApiResource {
            api_version: format!("{}/{}", spec.group, version.name),
            group: spec.group,
            version: version.name.clone(),
            kind: spec.names.kind,
            plural: spec.names.plural,
        };
        kinds.push(format!("{} ({})", resource.kind, resource.group));
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let list = api.list_metadata(&ListParams::default().limit(PAGE)).await;
        let what = format!("list {} of all namespaces", resource.plural);
        let found = list.map_err(|error| cluster.failed(&what, &error))?;
        // In other namespaces, another mesh may enforce them.
        let ours = found
            .items
            .into_iter()
            .filter(|object| object.namespace().is_none_or(|namespace| namespaces.contains(&namespace)));
        objects.extend(ours.map(|object| {
            let namespace = object.namespace().map(|namespace| format!("{namespace}/")).unwrap_or_default();
            format!("{} {namespace}{}: {effect}", resource.kind, object.name_any())
        }));
    }
    Ok(match (objects.is_empty(), kinds.is_empty()) {
        (false, _) => Some(CheckOutcome::warning_for(&objects)),
        (true, false) => Some(CheckOutcome::ok_with(format!("the cluster defines {}", names(&kinds)))),
        (true, true) => None,
    })
}

/// The kinds, separated by commas, up to a number.
fn names(kinds: &[String]) -> String {
    let shown = kinds.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match kinds.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
