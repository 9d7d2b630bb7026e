//! What an uninstall keeps because it cannot be recreated, and its deletion on request.
//!
//! Helm deletes what it has created. What remains was written by the daemons at run time (the root, trust bundles,
//! the ingress controller's certificate), is kept by the chart's policy (MeshConfig, definitions), or was set by the
//! user (memberships). Each has a flag that deletes it, and a message that names the flag.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, ResourceExt};
use tidegate_core::contract::labels::{INSTANCE, MANAGED_BY};
use tidegate_core::contract::names::{self, MESH_CONFIG_NAME, ROOT_SECRET, trust_bundle_config_map};
use tidegate_crds::injection::has_sidecar_of;
use tidegate_crds::manifest;
use tidegate_crds::mesh_config::MeshConfig;

use super::INTERVAL;
use crate::cluster::client::Cluster;
use crate::cluster::control_plane::{Part, of_mesh};
use crate::cluster::{mesh, namespace};
use crate::patience::Patience;

/// Timeout for the deletion of a namespace.
const NAMESPACE_GOES: Duration = Duration::from_secs(300);

/// What to delete besides the control plane.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Delete what is otherwise kept")]
pub(super) struct Deletions {
    /// The root and its key, the ingress controller's certificate and its key, and the mesh's trust bundles: this
    /// invalidates all its certificates
    #[arg(long)]
    delete_root: bool,
    /// The MeshConfig
    #[arg(long)]
    delete_mesh_config: bool,
    /// The custom resource definitions, and with them every IngressBackend and MeshConfig of the cluster
    #[arg(long)]
    pub(super) delete_crds: bool,
    /// The labels and annotations that put namespaces into the mesh
    #[arg(long)]
    delete_memberships: bool,
    /// The control plane's namespace, with everything in it
    #[arg(long)]
    delete_namespace: bool,
    /// All of these
    #[arg(
        long,
        conflicts_with_all = ["delete_root", "delete_mesh_config", "delete_crds", "delete_memberships", "delete_namespace"]
    )]
    delete_all: bool,
}

/// The flag that deletes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Root,
    MeshConfig,
    Definitions,
    Memberships,
    Namespace,
}

/// Something that outlives an uninstall.
#[derive(Clone, Debug)]
pub(super) struct Leftover {
    group: Group,
    kind: LeftoverKind,
    namespace: Option<String>,
    name: String,
}

/// What is deleted, and how.
#[derive(Clone, Debug)]
enum LeftoverKind {
    /// An object.
    Object(ApiResource),
    /// A namespace's label and annotation.
    Membership,
}

impl Deletions {
    /// Expands `--delete-all`.
    pub(super) fn resolved(self) -> Self {
        if self.delete_all { Self::everything() } else { self }
    }

    /// The meaning of `--delete-all`.
    pub(super) fn everything() -> Self {
        Self {
            delete_root: true,
            delete_mesh_config: true,
            delete_crds: true,
            delete_memberships: true,
            delete_namespace: true,
            delete_all: true,
        }
    }

    /// Whether anything is to be deleted.
    pub(super) fn any(self) -> bool {
        [Group::Root, Group::MeshConfig, Group::Definitions, Group::Memberships, Group::Namespace]
            .into_iter()
            .any(|group| self.takes(group))
    }

    /// Whether the flag of a group was given.
    fn takes(self, group: Group) -> bool {
        match group {
            Group::Root => self.delete_root,
            Group::MeshConfig => self.delete_mesh_config,
            Group::Definitions => self.delete_crds,
            Group::Memberships => self.delete_memberships,
            Group::Namespace => self.delete_namespace,
        }
    }

    /// Splits the leftovers into those to delete and those to keep. Everything in a namespace that is deleted goes with
    /// it.
    pub(super) fn split(self, cluster: &Cluster, leftovers: Vec<Leftover>) -> (Vec<Leftover>, Vec<Leftover>) {
        leftovers.into_iter().partition(|leftover| {
            let is_inside = leftover.namespace.as_deref() == Some(cluster.control_plane.as_str());
            self.takes(leftover.group) || (is_inside && self.delete_namespace)
        })
    }

    /// Refuses deletions that would break another mesh of the cluster.
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
            "{}: the custom resource definitions are shared with {}, whose policies would be deleted with them; use the \
             other flags one by one",
            if self.delete_all { "--delete-all" } else { "--delete-crds" },
            others.join(" and of ")
        );
        Ok(())
    }
}

/// Everything of the mesh that Helm's uninstall leaves.
pub(super) async fn find(cluster: &Cluster) -> anyhow::Result<Vec<Leftover>> {
    let control_plane = &cluster.control_plane;
    let mut found = of_root(cluster).await?;
    // A cluster without the definition has no MeshConfig, nor has one whose MeshConfig cannot be read.
    let configs: Api<MeshConfig> = Api::namespaced(cluster.client.clone(), control_plane);
    let config = configs.get_metadata_opt(MESH_CONFIG_NAME).await;
    if config.map_err(|error| cluster.failed("read the MeshConfig", &error))?.is_some() {
        let place = Some(control_plane.clone());
        found.push(Leftover::object::<MeshConfig>(Group::MeshConfig, place, MESH_CONFIG_NAME.to_owned()));
    }
    found.extend(definitions(cluster).await?);
    for member in namespace::list(cluster, Some(&cluster.mesh_name)).await? {
        let (kind, name) = (LeftoverKind::Membership, member.namespace);
        found.push(Leftover { group: Group::Memberships, kind, namespace: None, name });
    }
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    if cluster.get(&namespaces, control_plane, &format!("namespace {control_plane}")).await?.is_some() {
        found.push(Leftover::object::<Namespace>(Group::Namespace, None, control_plane.clone()));
    }
    Ok(found)
}

/// What holds the root or was issued under it: the root's Secret, the ingress controller's Secrets in any namespace,
/// and the trust bundles of the mesh's namespaces.
async fn of_root(cluster: &Cluster) -> anyhow::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    let control_plane = &cluster.control_plane;
    let client = || cluster.client.clone();
    let secrets: Api<Secret> = Api::namespaced(client(), control_plane);
    if cluster.get(&secrets, ROOT_SECRET, &format!("Secret {control_plane}/{ROOT_SECRET}")).await?.is_some() {
        let place = Some(control_plane.clone());
        found.push(Leftover::object::<Secret>(Group::Root, place, ROOT_SECRET.to_owned()));
    }
    let of_mesh = format!("{MANAGED_BY}={},{INSTANCE}={}", names::CERT_MANAGER, cluster.mesh_name);
    let written = ListParams::default().labels(&of_mesh);
    let gateways: Vec<Secret> =
        cluster.list(&Api::all(client()), written, "Secrets of the ingress controller").await?;
    for secret in gateways.iter().filter(|secret| secret.name_any() != ROOT_SECRET) {
        found.push(Leftover::object::<Secret>(Group::Root, secret.namespace(), secret.name_any()));
    }
    let bundle = trust_bundle_config_map(&cluster.mesh_name);
    let named = ListParams::default()
        .fields(&format!("metadata.name={bundle}"))
        .labels(&format!("{INSTANCE}={}", cluster.mesh_name));
    let bundles: Vec<ConfigMap> =
        cluster.list(&Api::all(client()), named, &format!("ConfigMaps {bundle}")).await?;
    for bundle in bundles {
        found.push(Leftover::object::<ConfigMap>(Group::Root, bundle.namespace(), bundle.name_any()));
    }
    Ok(found)
}

/// Tidegate's custom resource definitions, whichever release or program has installed them; Istio's are not among them.
async fn definitions(cluster: &Cluster) -> anyhow::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for (_, crd) in manifest::all() {
        let name = crd.name_any();
        let found_crd = cluster.get(&crds, &name, &format!("CustomResourceDefinition {name}")).await?;
        if found_crd.is_some_and(|theirs| !manifest::is_istio_s(&theirs)) {
            found.push(Leftover::object::<CustomResourceDefinition>(Group::Definitions, None, name));
        }
    }
    Ok(found)
}

/// Deletes remains that are useless without the control plane and unknown to Helm: the Leases of its replicas, and
/// leftovers of earlier revisions.
pub(super) async fn delete_remains(cluster: &Cluster) -> anyhow::Result<()> {
    let control_plane = &cluster.control_plane;
    let place = || Some(control_plane.clone());
    for part in Part::ALL {
        Leftover::object::<Lease>(Group::Namespace, place(), part.name().to_owned()).delete(cluster).await?;
    }
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), control_plane);
    let of_mesh = of_mesh(&cluster.mesh_name);
    let budgets =
        cluster.list(&budgets, ListParams::default().labels(&of_mesh), "PodDisruptionBudgets").await?;
    for budget in budgets {
        let budget = Leftover::object::<PodDisruptionBudget>(Group::Namespace, place(), budget.name_any());
        budget.delete(cluster).await?;
    }
    Ok(())
}

/// How many Pods still have a sidecar of this mesh.
pub(super) async fn injected_pods(cluster: &Cluster) -> anyhow::Result<usize> {
    let all = ListParams::default();
    let pods: Vec<Pod> =
        cluster.list(&Api::all(cluster.client.clone()), all, "pods of all namespaces").await?;
    Ok(pods.iter().filter(|pod| has_sidecar_of(pod, &cluster.control_plane)).count())
}

impl Leftover {
    /// An object; `namespace` is `None` for a cluster-scoped one.
    fn object<K: Resource<DynamicType = ()>>(group: Group, namespace: Option<String>, name: String) -> Self {
        Self { group, kind: LeftoverKind::Object(ApiResource::erase::<K>(&())), namespace, name }
    }

    /// The flag that deletes it.
    pub(super) fn flag(&self) -> &'static str {
        match self.group {
            Group::Root => "--delete-root",
            Group::MeshConfig => "--delete-mesh-config",
            Group::Definitions => "--delete-crds",
            Group::Memberships => "--delete-memberships",
            Group::Namespace => "--delete-namespace",
        }
    }

    /// Deletes it, and waits until a namespace is gone: anything installed into a terminating namespace would be lost.
    /// A missing object counts as deleted.
    pub(super) async fn delete(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let LeftoverKind::Object(resource) = &self.kind else {
            return namespace::leave(cluster, &self.name).await;
        };
        let client = cluster.client.clone();
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        };
        match api.delete(&self.name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(cluster.failed(&format!("delete {self}"), &error)),
        }
        if resource.kind == Namespace::kind(&()) {
            wait_until_gone(cluster, &self.name).await?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.kind, &self.namespace) {
            (LeftoverKind::Membership, _) => write!(f, "membership of namespace {}", self.name),
            (LeftoverKind::Object(resource), Some(namespace)) => {
                write!(f, "{} {namespace}/{}", resource.kind, self.name)
            }
            (LeftoverKind::Object(resource), None) => write!(f, "{} {}", resource.kind, self.name),
        }
    }
}

/// Waits until a namespace no longer exists. After [`NAMESPACE_GOES`] the error has the conditions of its status,
/// which say what holds it, such as a finalizer.
async fn wait_until_gone(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let mut patience = Patience::new(NAMESPACE_GOES, INTERVAL);
    loop {
        let namespace = match cluster.get(&api, name, &format!("namespace {name}")).await {
            Ok(None) => return Ok(()),
            Ok(Some(namespace)) => namespace,
            Err(error) => {
                patience.bear(error).await?;
                continue;
            }
        };
        if patience.is_over() {
            let conditions = namespace.status.and_then(|status| status.conditions).unwrap_or_default();
            let causes = conditions.iter().filter(|condition| condition.status == "True");
            let causes: Vec<_> = causes.filter_map(|condition| condition.message.as_deref()).collect();
            bail!(
                "namespace {name} still exists after {}: {}",
                humantime::format_duration(NAMESPACE_GOES),
                causes.join("; ")
            );
        }
        patience.say(name, format_args!("namespace {name} is still being deleted"));
        patience.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tidegate_kubernetes::fake_api::FakeApi;

    use super::*;
    use crate::cluster::testing::{TestCluster, meshed_pod, namespace};

    fn controller(namespace: &str, mesh: &str) -> Value {
        let labels =
            json!({"app.kubernetes.io/name": "tidegate-controller", "app.kubernetes.io/instance": mesh});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "tidegate-controller", "namespace": namespace, "labels": labels},
            "spec": {"selector": {}, "template": {}},
        })
    }

    /// An object of the mesh `osm` that the cert-manager has written.
    fn written(kind: &str, namespace: &str, name: &str, mesh: &str) -> Value {
        let labels = json!({
            "app.kubernetes.io/managed-by": "tidegate-cert-manager", "app.kubernetes.io/instance": mesh,
            "app.kubernetes.io/part-of": "tidegate",
        });
        let version = match kind {
            "PodDisruptionBudget" => "policy/v1",
            "Lease" => "coordination.k8s.io/v1",
            "MeshConfig" => "config.openservicemesh.io/v1alpha2",
            _ => "v1",
        };
        json!({"apiVersion": version, "kind": kind,
               "metadata": {"name": name, "namespace": namespace, "labels": labels}})
    }

    fn an_installation() -> Vec<Value> {
        let mut member = namespace("shop", json!({"openservicemesh.io/monitored-by": "osm"}));
        member["metadata"]["annotations"] = json!({"openservicemesh.io/sidecar-injection": "enabled"});
        vec![
            written("Secret", "tidegate-system", ROOT_SECRET, "osm"),
            written("Secret", "ingress", "gateway", "osm"),
            written("Secret", "ingress", "others", "blue"),
            written("ConfigMap", "tidegate-system", "tidegate-trust-bundle", "osm"),
            written("ConfigMap", "shop", "tidegate-trust-bundle", "osm"),
            written("MeshConfig", "tidegate-system", MESH_CONFIG_NAME, "osm"),
            written("PodDisruptionBudget", "tidegate-system", "tidegate-injector", "osm"),
            written("Lease", "tidegate-system", "tidegate-controller", "osm"),
            namespace("tidegate-system", json!({})),
            member,
        ]
    }

    fn names(leftovers: &[Leftover]) -> Vec<String> {
        leftovers.iter().map(|leftover| format!("{leftover} {}", leftover.flag())).collect()
    }

    #[tokio::test]
    async fn what_stays_is_listed_with_the_flag_that_deletes_it() {
        let fake = TestCluster::start(an_installation()).await;
        let found = find(&fake.cluster()).await.unwrap();
        let (gone, kept) = Deletions::default().split(&fake.cluster(), found);
        assert!(gone.is_empty());
        assert_eq!(
            names(&kept),
            [
                "Secret tidegate-system/tidegate-ca-bundle --delete-root",
                "Secret ingress/gateway --delete-root",
                "ConfigMap shop/tidegate-trust-bundle --delete-root",
                "ConfigMap tidegate-system/tidegate-trust-bundle --delete-root",
                "MeshConfig tidegate-system/osm-mesh-config --delete-mesh-config",
                "membership of namespace shop --delete-memberships",
                "Namespace tidegate-system --delete-namespace",
            ]
        );
    }

    #[tokio::test]
    async fn delete_all_leaves_no_key_label_or_budget_and_nothing_of_another_mesh_goes() {
        let fake = TestCluster::start(an_installation()).await;
        let cluster = fake.cluster();
        let (gone, kept) = Deletions::everything().split(&cluster, find(&cluster).await.unwrap());
        assert!(kept.is_empty(), "{kept:?}");
        delete_remains(&cluster).await.unwrap();
        for leftover in &gone {
            leftover.delete(&cluster).await.unwrap();
        }
        assert!(find(&cluster).await.unwrap().is_empty());
        assert_eq!(fake.object("PodDisruptionBudget", "tidegate-injector"), Value::Null);
        assert_eq!(fake.object("Lease", "tidegate-controller"), Value::Null);
        let member = fake.object("Namespace", "shop");
        assert_eq!(member["metadata"]["labels"], json!({}), "{member}");
        assert_eq!(member["metadata"]["annotations"], json!({}), "{member}");
        assert!(fake.api.get("v1/secrets", "ingress", "others").is_some());
        assert!(fake.api.get("v1/secrets", "ingress", "gateway").is_none());
    }

    #[tokio::test]
    async fn a_namespace_that_goes_is_waited_for_though_the_api_server_is_away_for_a_moment() {
        let mut going = namespace("tidegate-system", json!({}));
        going["metadata"]["finalizers"] = json!(["kubernetes"]);
        let fake = TestCluster::start(vec![going]).await;
        let mut looks = 0;
        fake.api.answer(move |request, _| {
            if request.verb != "get" || request.resource != "namespaces" {
                return None;
            }
            looks += 1;
            (looks == 1)
                .then(|| FakeApi::refusal(503, "the server is currently unable to handle the request"))
        });
        let cluster = fake.cluster();
        let all = find(&cluster).await.unwrap();
        let leftover = all.into_iter().find(|leftover| leftover.flag() == "--delete-namespace").unwrap();
        let goes = async {
            let looks = |api: &FakeApi| api.requests().iter().filter(|request| request.verb == "get").count();
            fake.api.wait_for(|api| looks(api) >= 2).await;
            fake.delete("Namespace", "", "tidegate-system");
        };
        let (deleted, ()) = tokio::join!(leftover.delete(&cluster), goes);
        deleted.unwrap();
    }

    #[tokio::test]
    async fn what_is_in_a_namespace_that_goes_is_not_said_to_stay() {
        let fake = TestCluster::start(an_installation()).await;
        let only = Deletions { delete_namespace: true, ..Deletions::default() };
        let (gone, kept) = only.split(&fake.cluster(), find(&fake.cluster()).await.unwrap());
        assert_eq!(gone.len(), 4, "{gone:?}");
        assert!(kept.iter().all(|leftover| leftover.namespace.as_deref() != Some("tidegate-system")));
    }

    #[tokio::test]
    async fn the_definitions_are_not_deleted_while_another_mesh_has_policies_in_them() {
        let fake =
            TestCluster::start(vec![controller("tidegate-system", "osm"), controller("blue-system", "blue")])
                .await;
        let all = Deletions { delete_all: true, ..Deletions::default() };
        let error = all.resolved().check(&fake.cluster()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "--delete-all: the custom resource definitions are shared with mesh blue in namespace blue-system, whose \
             policies would be deleted with them; use the other flags one by one"
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
        let fake = TestCluster::start(vec![listens_to("tidegate-system"), listens_to("blue-system")]).await;
        assert_eq!(injected_pods(&fake.cluster()).await.unwrap(), 1);
    }
}
