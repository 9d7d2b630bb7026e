//! Takes over existing custom resource definitions, which Open Service Mesh, osm-edge or `kubectl apply` left behind.
//!
//! Helm refuses to touch objects that it has not created. Only Tidegate's own definitions are taken over, and only if
//! they belong to no other Helm release. Their objects stay. Objects stored in another version than the definition's
//! storage version are rewritten first: once the definition no longer has that version, the API server could not read
//! them, and would refuse the definition.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition,
};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams, ResourceExt};
use serde_json::json;
use tidegate_core::contract::labels::MANAGED_BY;
use tidegate_crds::{manifest, schema};
use tokio::time::Instant;

use super::CRDS_RELEASE;
use crate::cluster::client::Cluster;

/// Annotations by which Helm recognises what belongs to a release.
const RELEASE_NAME: &str = "meta.helm.sh/release-name";
/// The namespace of the release, in which Helm stores its state.
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";
/// The value of label `app.kubernetes.io/managed-by` that Helm requires beside them.
const HELM: &str = "Helm";

/// How long an API server may take until it stores objects in a new storage version.
const SWITCH: Duration = Duration::from_secs(30);
/// How often to retry the write that shows whether it does.
const INTERVAL: Duration = Duration::from_millis(200);

/// One of Tidegate's definitions as found in the cluster.
struct FoundDefinition {
    /// The definition that this version's chart installs.
    ours: CustomResourceDefinition,
    /// The definition that the cluster has.
    theirs: CustomResourceDefinition,
    owner: DefinitionOwner,
}

/// The owner of a definition.
#[derive(Debug, PartialEq)]
enum DefinitionOwner {
    /// This release.
    Ours,
    /// No Helm release.
    Unmanaged,
    /// Another release, as `<namespace>/<name>`.
    Release(String),
}

/// The result of writing an object unchanged.
#[derive(Clone, Copy, Debug)]
enum RewriteOutcome {
    /// What is stored did not change.
    Same,
    /// It is stored differently than before.
    Changed,
    /// The object no longer exists.
    Gone,
}

/// Makes this release the owner of the existing definitions; returns a line for each action taken and each object that
/// needs attention.
pub(super) async fn take_over(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut all = Vec::new();
    for (_, ours) in manifest::all() {
        let name = ours.name_any();
        let Some(theirs) = cluster.get(&api, &name, &format!("CustomResourceDefinition {name}")).await?
        else {
            continue;
        };
        let found =
            FoundDefinition { owner: DefinitionOwner::of(&theirs, &cluster.control_plane), ours, theirs };
        // Istio's stays Istio's.
        if manifest::is_istio_s(&found.theirs) {
            continue;
        }
        if let DefinitionOwner::Release(release) = &found.owner {
            bail!(refusal(&name, release, &cluster.control_plane));
        }
        all.push(found);
    }
    let mut said = Vec::new();
    // Change nothing before all definitions are known to be free.
    for found in all {
        found.take_over(cluster, &api, &mut said).await?;
    }
    Ok(said)
}

impl DefinitionOwner {
    /// The owner according to the annotations that Helm requires. With Helm's annotations and without its label, Helm
    /// would refuse the object, so it is taken over like one without an owner.
    fn of(crd: &CustomResourceDefinition, namespace: &str) -> Self {
        let annotation = |name: &str| crd.annotations().get(name).map(String::as_str).unwrap_or_default();
        let is_labelled = crd.labels().get(MANAGED_BY).is_some_and(|manager| manager == HELM);
        match (annotation(RELEASE_NAMESPACE), annotation(RELEASE_NAME)) {
            ("", "") => Self::Unmanaged,
            (place, CRDS_RELEASE) if place == namespace && is_labelled => Self::Ours,
            (place, CRDS_RELEASE) if place == namespace => Self::Unmanaged,
            (place, name) => Self::Release(format!("{place}/{name}")),
        }
    }
}

impl FoundDefinition {
    /// Takes over one definition: first its ownership and versions, then its objects, and last
    /// `status.storedVersions`, because a version that is still listed there cannot be removed. Each step may be
    /// repeated after an interruption.
    async fn take_over(
        self,
        cluster: &Cluster,
        api: &Api<CustomResourceDefinition>,
        said: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let name = self.ours.name_any();
        let dropped = self.dropped_stored_versions();
        if self.owner == DefinitionOwner::Ours && dropped.is_empty() {
            return Ok(());
        }
        let changed = self.prepared(&cluster.control_plane, !dropped.is_empty());
        api.replace(&name, &PostParams::default(), &changed)
            .await
            .map_err(|error| cluster.failed(&format!("take over CustomResourceDefinition {name}"), &error))?;
        let objects = self.objects(cluster).await?;
        if !dropped.is_empty() {
            self.rewrite_all(cluster, &objects).await?;
            let status = json!({"status": {"storedVersions": [self.storage_version()]}});
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.map_err(
                |error| {
                    cluster.failed(&format!("write the status of CustomResourceDefinition {name}"), &error)
                },
            )?;
        }
        said.push(self.sentence(objects.len(), &dropped));
        said.extend(objects.iter().flat_map(|object| self.unreadable(object)));
        Ok(())
    }

    /// Versions that objects may be stored in and that our definition does not store.
    fn dropped_stored_versions(&self) -> Vec<String> {
        let ours = self.storage_version();
        self.stored_versions().filter(|stored| *stored != ours).cloned().collect()
    }

    /// The version that our definition stores.
    fn storage_version(&self) -> &str {
        let stored = self.ours.spec.versions.iter().find(|version| version.storage);
        stored.map(|version| version.name.as_str()).unwrap_or_default()
    }

    /// Versions that objects may be stored in.
    fn stored_versions(&self) -> impl Iterator<Item = &String> {
        self.theirs.status.iter().flat_map(|status| status.stored_versions.iter().flatten())
    }

    /// The versions that our definition has.
    fn version_names(&self) -> BTreeSet<String> {
        self.ours.spec.versions.iter().map(|version| version.name.clone()).collect()
    }

    /// The existing definition, owned by this release. Conversion webhooks are removed: the program that served them is
    /// gone, and without it no object could be read. With `stores_ours` new objects are stored in our version, and the
    /// existing versions remain known.
    fn prepared(&self, namespace: &str, stores_ours: bool) -> CustomResourceDefinition {
        let mut crd = self.theirs.clone();
        crd.labels_mut().insert(MANAGED_BY.to_owned(), HELM.to_owned());
        crd.annotations_mut().insert(RELEASE_NAME.to_owned(), CRDS_RELEASE.to_owned());
        crd.annotations_mut().insert(RELEASE_NAMESPACE.to_owned(), namespace.to_owned());
        crd.spec.conversion = Some(CustomResourceConversion {
            strategy: "None".to_owned(),
            ..CustomResourceConversion::default()
        });
        if stores_ours {
            let ours = self.version_names();
            let mut versions = self.ours.spec.versions.clone();
            let others = crd.spec.versions.into_iter().filter(|version| !ours.contains(&version.name));
            versions.extend(others.map(|mut version| {
                version.storage = false;
                version
            }));
            crd.spec.versions = versions;
        }
        crd
    }

    /// Whether objects are already stored in our version, without a change of the definition.
    fn stores_ours_already(&self) -> bool {
        let ours = self.storage_version();
        self.theirs.spec.versions.iter().any(|version| version.storage && version.name == ours)
    }

    /// Every object, in our version.
    async fn objects(&self, cluster: &Cluster) -> anyhow::Result<Vec<DynamicObject>> {
        let what = format!("{}s of all namespaces", self.ours.spec.names.kind);
        let api = Api::all_with(cluster.client.clone(), &self.resource());
        let ours = self.storage_version();
        let was_served =
            self.theirs.spec.versions.iter().any(|version| version.served && version.name == ours);
        let deadline = Instant::now() + SWITCH;
        loop {
            match cluster.list(&api, ListParams::default(), &what).await {
                // The API server needs a moment to serve a new version.
                Err(_) if !was_served && Instant::now() < deadline => tokio::time::sleep(INTERVAL).await,
                result => return result,
            }
        }
    }

    /// The kind in our version, for requests without a type.
    fn resource(&self) -> ApiResource {
        let version = self.storage_version().to_owned();
        ApiResource {
            group: self.ours.spec.group.clone(),
            api_version: format!("{}/{version}", self.ours.spec.group),
            version,
            kind: self.ours.spec.names.kind.clone(),
            plural: self.ours.spec.names.plural.clone(),
        }
    }

    /// Writes each object unchanged: the API server then stores it in the current storage version.
    async fn rewrite_all(&self, cluster: &Cluster, objects: &[DynamicObject]) -> anyhow::Result<()> {
        // If none was ever stored in our version, writing each of them must change it.
        let must_change = !self.stored_versions().any(|version| version == self.storage_version());
        let deadline = Instant::now() + SWITCH;
        let mut has_switched = self.stores_ours_already();
        for object in objects {
            let api = Api::namespaced_with(
                cluster.client.clone(),
                &object.namespace().unwrap_or_default(),
                &self.resource(),
            );
            // The API server needs a moment to apply the definition. A write that changes nothing means that it has not
            // yet done so, or that there was nothing to do.
            loop {
                match rewrite(cluster, &api, object, &self.title(object)).await? {
                    RewriteOutcome::Gone => break,
                    RewriteOutcome::Changed => {
                        has_switched = true;
                        break;
                    }
                    RewriteOutcome::Same if has_switched && !must_change => break,
                    RewriteOutcome::Same if Instant::now() < deadline => tokio::time::sleep(INTERVAL).await,
                    RewriteOutcome::Same if must_change => {
                        bail!(
                            "{} is still stored in a version that is being removed; try again",
                            self.title(object)
                        );
                    }
                    RewriteOutcome::Same => has_switched = true,
                }
            }
        }
        Ok(())
    }

    /// `<kind> <namespace>/<name>`, for messages.
    fn title(&self, object: &DynamicObject) -> String {
        let namespace = object.namespace().unwrap_or_default();
        format!("{} {namespace}/{}", self.ours.spec.names.kind, object.name_any())
    }

    /// What was done, for the user: whose objects stay, which version is stored, and which versions manifests must no
    /// longer use.
    fn sentence(&self, objects: usize, dropped: &[String]) -> String {
        let mut text = match self.owner {
            DefinitionOwner::Ours => format!("Kept: CustomResourceDefinition {}", self.ours.name_any()),
            _ => format!("Taken over: CustomResourceDefinition {}", self.ours.name_any()),
        };
        text += &match objects {
            0 => ", which has no objects".to_owned(),
            1 => ", whose 1 object stays".to_owned(),
            count => format!(", whose {count} objects stay"),
        };
        let ours = self.version_names();
        let gone: Vec<&str> = self
            .theirs
            .spec
            .versions
            .iter()
            .filter(|version| version.served)
            .map(|version| version.name.as_str())
            .filter(|name| !ours.contains(*name))
            .collect();
        if !dropped.is_empty() {
            let stored = self.storage_version();
            text += &format!("; stored as {stored} now, no longer as {}", dropped.join(", "));
        }
        if !gone.is_empty() {
            let ours = ours.iter().map(String::as_str).collect::<Vec<_>>().join(" or ");
            text +=
                &format!("; change manifests to {ours}: the cluster no longer serves {}", gone.join(", "));
        }
        text
    }

    /// An object that our definition would have rejected. It stays stored, and what it should grant is denied.
    fn unreadable(&self, object: &DynamicObject) -> Option<String> {
        let value = serde_json::to_value(object).ok()?;
        let finding = schema::check(&self.ours, &value).into_iter().find(tidegate_crds::Finding::is_error)?;
        Some(format!("{}: {finding}; it grants nothing until this is corrected", self.title(object)))
    }
}

/// Writes the object unchanged.
async fn rewrite(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    object: &DynamicObject,
    title: &str,
) -> anyhow::Result<RewriteOutcome> {
    loop {
        let Some(now) = cluster.get(api, &object.name_any(), title).await? else {
            return Ok(RewriteOutcome::Gone);
        };
        match api.replace(&object.name_any(), &PostParams::default(), &now).await {
            Ok(written) if written.resource_version() == now.resource_version() => {
                return Ok(RewriteOutcome::Same);
            }
            Ok(_) => return Ok(RewriteOutcome::Changed),
            // A concurrent write: it is stored in the right version already, or is rewritten in the next round.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(RewriteOutcome::Gone),
            Err(error) => {
                return Err(cluster.failed(&format!("rewrite {title}"), &error))
                    .context("correct or delete it, then try again; nothing is lost");
            }
        }
    }
}

/// The error for a definition of another release, with the commands that would move it.
fn refusal(name: &str, release: &str, namespace: &str) -> anyhow::Error {
    anyhow!(
        "CustomResourceDefinition {name} belongs to Helm release {release}: --skip-crds leaves it there. To move it to \
         release {namespace}/{CRDS_RELEASE}:\n  kubectl label --overwrite crd {name} {MANAGED_BY}={HELM}\n  \
         kubectl annotate --overwrite crd {name} {RELEASE_NAME}={CRDS_RELEASE} {RELEASE_NAMESPACE}={namespace}"
    )
}

#[cfg(test)]
mod tests;
