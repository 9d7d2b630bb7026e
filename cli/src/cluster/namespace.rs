//! `tidegate namespace`: which namespaces are in the mesh.
//!
//! Membership is a label and an annotation of the Namespace, those of OSM, so that manifests written for it mean the
//! same. A change takes effect on Pods only when they are created; commands that change it say how many Pods to
//! restart.

use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};
use tidegate_core::contract::annotations::{METRICS, SIDECAR_INJECTION};
use tidegate_core::contract::labels::{CONTROL_PLANE, IGNORE, INJECTION, MONITORED_BY, NAME};
use tidegate_core::contract::names::INTERCEPT;
use tidegate_crds::injection::{has_sidecar_of, mesh_of};

use super::client::{Cluster, ClusterOptions, ShowOptions};
use super::control_plane::Part;
use super::mesh;
use crate::candidates;
use crate::output::{OutputFormat, print_as, table};

/// Namespaces of Kubernetes itself, whose workloads must start before any mesh.
const OF_KUBERNETES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Namespace label: the Pod Security Standard that its Pods must meet.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// Field manager of changes, as shown in the objects' managed fields.
const FIELD_MANAGER: &str = "tidegate-cli";

/// Namespaces of the mesh.
#[derive(Subcommand, Debug)]
pub(crate) enum NamespaceCommand {
    /// Add namespaces to the mesh: Pods that start there from now on get a sidecar.
    Add(AddOptions),
    /// Remove namespaces from the mesh: Pods that start there from now on get no sidecar.
    Remove(NamesOptions),
    /// Make the mesh ignore namespaces, whatever other labels they carry.
    Ignore(NamesOptions),
    /// List the namespaces of the mesh, or of every mesh without --mesh-name.
    List(ShowOptions),
}

/// Flags of `tidegate namespace add`.
#[derive(Args, Debug)]
pub(crate) struct AddOptions {
    #[command(flatten)]
    names: NamesOptions,
    /// Add the namespaces without sidecars: their Services can be sources, and their policies apply
    #[arg(long)]
    disable_sidecar_injection: bool,
}

/// Namespaces.
#[derive(Args, Debug)]
pub(crate) struct NamesOptions {
    /// The namespaces.
    #[arg(value_name = "NAMESPACE", required = true, add = ArgValueCandidates::new(candidates::namespaces))]
    namespaces: Vec<String>,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// A namespace of a mesh.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeshNamespace {
    pub(crate) namespace: String,
    mesh: String,
    sidecar_injection: &'static str,
}

/// Runs the command. A namespace that fails is reported on standard error, and the others are still processed.
pub(crate) async fn run(command: NamespaceCommand) -> anyhow::Result<ExitCode> {
    match command {
        NamespaceCommand::List(options) => {
            let namespaces =
                list(&options.cluster.connect().await?, options.cluster.mesh_name.as_deref()).await?;
            if namespaces.is_empty() && options.output == OutputFormat::Table {
                match &options.cluster.mesh_name {
                    Some(mesh) => eprintln!("No namespaces in mesh [{mesh}]"),
                    None => eprintln!("No namespaces in any mesh"),
                }
                return Ok(ExitCode::SUCCESS);
            }
            print_as(options.output, &namespaces, |namespaces| text(namespaces))
        }
        NamespaceCommand::Add(options) => {
            let cluster = options.names.cluster.connect().await?;
            each(&options.names.namespaces, async |name| {
                add(&cluster, name, options.disable_sidecar_injection).await
            })
            .await
        }
        NamespaceCommand::Remove(options) => {
            let cluster = options.cluster.connect().await?;
            each(&options.namespaces, async |name| remove(&cluster, name).await).await
        }
        NamespaceCommand::Ignore(options) => {
            let cluster = options.cluster.connect().await?;
            each(&options.namespaces, async |name| ignore(&cluster, name).await).await
        }
    }
}

/// Runs an action for each name; one that fails does not keep the others from being tried.
async fn each(
    names: &[String],
    action: impl AsyncFn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match action(name).await {
            Ok(done) => {
                crate::output::print(format!("{done}\n").as_bytes())?;
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Adds a namespace to the mesh. Returns a message; an error says why it cannot be added.
pub(crate) async fn add(cluster: &Cluster, name: &str, without_sidecars: bool) -> anyhow::Result<String> {
    let mesh = &cluster.mesh_name;
    let added = async {
        let namespace = read(cluster, name).await?;
        refuse_control_plane(cluster, &namespace).await?;
        ensure!(
            !namespace.labels().contains_key(IGNORE),
            "it is ignored by label {IGNORE}; remove that label first: kubectl label namespace {name} {IGNORE}-"
        );
        if let Some(other) = mesh_of(Some(namespace.labels())).filter(|other| other != mesh) {
            bail!(
                "it belongs to mesh [{other}]; remove it there first: tidegate namespace remove {name} --mesh-name {other}"
            );
        }
        let injection = if without_sidecars { "disabled" } else { "enabled" };
        let mut labels = json!({ MONITORED_BY: mesh });
        if without_sidecars && namespace.labels().contains_key(INJECTION) {
            // Otherwise that label alone would keep adding sidecars.
            labels[INJECTION] = Value::Null;
        }
        let patch = json!({"metadata": {"labels": labels, "annotations": {SIDECAR_INJECTION: injection}}});
        change(cluster, name, &patch).await?;
        if !without_sidecars {
            if let Some(hint) = pod_security_hint(&namespace) {
                eprintln!("warning: {hint}");
            }
            hint_at_restart(cluster, name, false).await;
        }
        if !mesh::names(cluster).await?.contains(mesh) {
            eprintln!(
                "warning: mesh [{mesh}] does not exist in the cluster, so Pods of the namespace get no sidecar yet; `tidegate mesh \
                 list` shows the existing meshes, `tidegate install` creates one"
            );
        }
        Ok(format!("Namespace [{name}] successfully added to mesh [{mesh}]"))
    };
    added.await.with_context(|| format!("Could not add namespace [{name}] to mesh [{mesh}]"))
}

/// Removes a namespace from the mesh.
pub(crate) async fn remove(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let mesh = &cluster.mesh_name;
    let removed = async {
        let namespace = read(cluster, name).await?;
        let labels = namespace.labels();
        let named = || labels.get(MONITORED_BY).map(String::as_str);
        if let Some(other) = mesh_of(Some(labels)).or_else(named).filter(|other| other != mesh) {
            bail!("it belongs to mesh [{other}]; give --mesh-name {other}");
        }
        if !labels.contains_key(MONITORED_BY) && !labels.contains_key(INJECTION) {
            return Ok(format!("Namespace [{name}] already does not belong to any mesh"));
        }
        leave(cluster, name).await?;
        hint_at_restart(cluster, name, true).await;
        Ok(format!("Namespace [{name}] successfully removed from mesh [{mesh}]"))
    };
    removed.await.with_context(|| format!("Could not remove namespace [{name}] from mesh [{mesh}]"))
}

/// Removes the label and annotation that put a namespace into a mesh.
pub(crate) async fn leave(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let patch = json!({"metadata": {
        "labels": {MONITORED_BY: null, INJECTION: null},
        "annotations": {SIDECAR_INJECTION: null, METRICS: null},
    }});
    change(cluster, name, &patch).await
}

/// Makes the mesh ignore a namespace.
pub(crate) async fn ignore(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let ignored = async {
        read(cluster, name).await?;
        change(cluster, name, &json!({"metadata": {"labels": {IGNORE: "true"}}})).await?;
        Ok(format!("Successfully set namespace [{name}] to be ignored"))
    };
    let ignored: anyhow::Result<String> = ignored.await;
    ignored.with_context(|| format!("Could not set namespace [{name}] to be ignored"))
}

/// The namespaces of one mesh, or of every mesh.
pub(crate) async fn list(cluster: &Cluster, mesh: Option<&str>) -> anyhow::Result<Vec<MeshNamespace>> {
    let mut found: Vec<MeshNamespace> =
        all(cluster).await?.iter().filter_map(|namespace| member(namespace, mesh)).collect();
    found.sort_by(|a, b| a.namespace.cmp(&b.namespace));
    Ok(found)
}

/// Every namespace of the cluster.
pub(crate) async fn all(cluster: &Cluster) -> anyhow::Result<Vec<Namespace>> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    cluster.list(&api, ListParams::default(), "namespaces").await
}

/// Whether Pods of a namespace of the mesh get a sidecar by default. The annotation overrides the label, as in the
/// injector.
pub(crate) fn injects(namespace: &Namespace) -> bool {
    let by_label = namespace.labels().get(INJECTION).is_some_and(|value| value == "enabled");
    let wish = namespace.annotations().get(SIDECAR_INJECTION).map(|wish| wish.to_ascii_lowercase());
    wish.map_or(by_label, |wish| matches!(wish.as_str(), "enabled" | "yes" | "true"))
}

/// The row of a namespace, if it is in a mesh, and in the given one.
fn member(namespace: &Namespace, mesh: Option<&str>) -> Option<MeshNamespace> {
    let name = mesh_of(Some(namespace.labels()))?;
    mesh.is_none_or(|mesh| mesh == name).then(|| MeshNamespace {
        namespace: namespace.name_any(),
        mesh: name.to_owned(),
        sidecar_injection: if injects(namespace) { "enabled" } else { "disabled" },
    })
}

fn text(namespaces: &[MeshNamespace]) -> String {
    let rows: Vec<Vec<String>> = namespaces
        .iter()
        .map(|row| vec![row.namespace.clone(), row.mesh.clone(), row.sidecar_injection.to_owned()])
        .collect();
    table(&["NAMESPACE", "MESH", "SIDECAR-INJECTION"], &rows)
}

/// A namespace; a missing one is an error.
async fn read(cluster: &Cluster, name: &str) -> anyhow::Result<Namespace> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = cluster.get(&api, name, &format!("namespace {name}")).await?;
    namespace.with_context(|| format!("namespace [{name}] does not exist"))
}

/// A merge patch, so that labels and annotations of others stay as they are.
async fn change(cluster: &Cluster, name: &str, patch: &Value) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let patched = api.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Merge(patch)).await;
    patched.map_err(|error| cluster.failed(&format!("change namespace {name}"), &error))?;
    Ok(())
}

/// Refuses namespaces whose Pods must start without the mesh: those of Kubernetes and of any control plane.
async fn refuse_control_plane(cluster: &Cluster, namespace: &Namespace) -> anyhow::Result<()> {
    let name = namespace.name_any();
    ensure!(!OF_KUBERNETES.contains(&name.as_str()), "it belongs to Kubernetes itself");
    let has_controller = async {
        let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &name);
        let selector = format!("{NAME}={}", Part::Controller);
        let found = cluster.list(&api, ListParams::default().labels(&selector), "deployments").await?;
        anyhow::Ok(!found.is_empty())
    };
    ensure!(
        name != cluster.control_plane && !has_controller.await?,
        "[{}] is installed there: a control plane's namespace cannot be in the mesh",
        Part::Controller
    );
    ensure!(
        !namespace.labels().contains_key(CONTROL_PLANE),
        "label {CONTROL_PLANE} excludes it from admission webhooks, so no sidecar can be added"
    );
    Ok(())
}

/// What to do if Pod Security refuses the interception step, and with it every Pod with a sidecar.
fn pod_security_hint(namespace: &Namespace) -> Option<String> {
    let level = namespace.labels().get(POD_SECURITY)?;
    (level != "privileged").then(|| {
        format!(
            "label {POD_SECURITY}={level} refuses container {INTERCEPT}, which needs NET_ADMIN and NET_RAW, so \
             no pod with a sidecar can be created; kubectl label namespace {} --overwrite {POD_SECURITY}=privileged",
            namespace.name_any()
        )
    })
}

/// Reports Pods to restart: they get or lose a sidecar only when they are created.
async fn hint_at_restart(cluster: &Cluster, name: &str, with_sidecar: bool) {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), name);
    let Ok(pods) = cluster.list(&api, ListParams::default(), "pods").await else { return };
    let stale = pods.iter().filter(|pod| has_sidecar_of(pod, &cluster.control_plane) == with_sidecar).count();
    if stale > 0 {
        let (state, when) = if with_sidecar {
            (
                "still has a sidecar",
                " within half a certificate's lifetime: the CA stops renewing their certificates",
            )
        } else {
            ("has no sidecar yet", "")
        };
        eprintln!(
            "{stale} of its pods {state}; restart them{when}: \
             kubectl rollout restart deployment,statefulset,daemonset -n {name}"
        );
    }
}

#[cfg(test)]
mod tests;
