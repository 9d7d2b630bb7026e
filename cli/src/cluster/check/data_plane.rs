//! Checks of workloads: the trust bundle of their namespaces, their sidecars, and whether controllers know them.
//!
//! Most of them combine the Pods that the API server lists with what the controllers' replicas report about their
//! streams (`cluster/sidecars.rs`). A Pod whose sidecar has not started is left out: it may be connected in a moment.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams, ResourceExt};
use tidegate_core::contract::annotations::SIDECAR_INJECTION;
use tidegate_core::contract::names::{self, trust_bundle_config_map};
use tidegate_crds::injection::{has_sidecar_of, mesh_of, namespace_is_in_mesh};

use super::control_plane::bundle;
use super::{Check, CheckOutcome, CheckReport, enumerate, protocols};
use crate::cluster::client::Cluster;
use crate::cluster::mesh;
use crate::cluster::namespace::{self, injects};
use crate::cluster::sidecars::{Known, MeshedPod};
use crate::output::counted;

const CATEGORY: &str = "Workloads";
/// Sidecars renew long before this much is left.
const CERTIFICATE_LEFT: Duration = Duration::from_secs(60 * 60);

const MESHES: Check = Check {
    id: "meshes-there",
    category: CATEGORY,
    title: "each namespace is in an existing mesh",
    hint: "`tidegate mesh list` shows the meshes; label openservicemesh.io/monitored-by selects one; without it, \
           tidegate.io/injection selects the mesh called osm",
};
const BUNDLES: Check = Check {
    id: "trust-bundles",
    category: CATEGORY,
    title: "each namespace of the mesh has the trust bundle",
    hint: "tidegate-cert-manager writes the ConfigMap; see its log",
};
const INJECTED: Check = Check {
    id: "pods-injected",
    category: CATEGORY,
    title: "each pod in namespaces with injection has its sidecar",
    hint: "restart them: kubectl rollout restart deployment,statefulset,daemonset",
};
const MADE: Check = Check {
    id: "pods-made",
    category: CATEGORY,
    title: "the API server accepts the pods of namespaces with injection",
    hint: "the message is the API server's; `kubectl -n NAME describe replicaset` shows details",
};
/// A quota on a resource requires every container to set it.
const QUOTA_HINT: &str = "set on the mesh's containers what the quota requires: annotations \
    openservicemesh.io/sidecar-resource-limits-cpu and -limits-memory (and -requests-cpu, -requests-memory) of the \
    namespace or the pods, or MeshConfig's spec.sidecar.resources";
const WAITS: Check = Check {
    id: "waits-by-connecting",
    category: CATEGORY,
    title: "no init container waits for a server only by connecting",
    hint: "the sidecar accepts each connection before it knows whether the server is up, so such a wait ends at once: \
           wait for a response (pg_isready, curl, `tidegate-sidecar wait` in the sidecar's image), or list the port in \
           the pod's annotation openservicemesh.io/outbound-port-exclusion-list, so that it bypasses the mesh",
};
const CONNECTED: Check = Check {
    id: "sidecars-connected",
    category: CATEGORY,
    title: "each sidecar is connected to a controller",
    hint: "`tidegate proxy get ready POD` says what is missing; check the sidecar's log, and whether a network \
           policy blocks it from tidegate-controller:15128 and tidegate-cert-manager:15012",
};
const POLICIES: Check = Check {
    id: "sidecar-policies",
    category: CATEGORY,
    title: "each sidecar enforces its newest policy",
    hint: "`tidegate proxy status` shows which was rejected and why; if a sidecar is older than the controller, \
           restart its pod",
};
const CERTIFICATES: Check = Check {
    id: "sidecar-certificates",
    category: CATEGORY,
    title: "each sidecar's certificate is valid",
    hint: "see the sidecar's log, and check that tidegate-cert-manager is ready",
};
const VERSIONS: Check = Check {
    id: "sidecar-versions",
    category: CATEGORY,
    title: "sidecars have this command's version",
    hint: "restart the pods after an upgrade of the control plane",
};

/// Checks of namespaces come first; those of sidecars are left out if no Pod has one, or if no controller answers.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    let mut namespaces = match namespace::all(cluster).await {
        Ok(all) => all,
        Err(error) => return report.add(&BUNDLES, Err(error)),
    };
    report.add(&MESHES, meshes(cluster, &namespaces).await);
    namespaces.retain(|namespace| namespace_is_in_mesh(namespace, &cluster.mesh_name));
    report.add(&BUNDLES, bundles(cluster, &namespaces).await);
    report.add(&INJECTED, injected(cluster, &namespaces).await);
    report.add(&MADE, made(cluster, &namespaces).await);
    report.add(&protocols::KNOWN, protocols::known(cluster, &namespaces).await);
    let pods = match cluster.meshed_pods(None).await {
        Ok(pods) => pods,
        Err(error) => return report.add(&CONNECTED, Err(error)),
    };
    if pods.is_empty() {
        return;
    }
    let known = match cluster.known_sidecars().await {
        Ok(known) => known,
        Err(error) => return report.add(&CONNECTED, Err(error)),
    };
    report.add(&WAITS, Ok(waits(&pods)));
    report.add(&CONNECTED, Ok(connected(&pods, &known)));
    report.add(&POLICIES, Ok(policies(&pods, &known)));
    report.add(&CERTIFICATES, Ok(certificates(&pods, &known)));
    report.add(&VERSIONS, Ok(versions(&pods, &known)));
}

/// A namespace whose mesh does not exist gets no sidecars; nothing else reports that.
async fn meshes(cluster: &Cluster, namespaces: &[Namespace]) -> anyhow::Result<CheckOutcome> {
    let staying = namespaces.iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
    let named = staying.filter_map(|namespace| {
        let mesh = mesh_of(Some(namespace.labels())).filter(|mesh| *mesh != cluster.mesh_name)?;
        Some((namespace.name_any(), mesh))
    });
    let others: Vec<_> = named.collect();
    if others.is_empty() {
        return Ok(CheckOutcome::ok());
    }
    let there = mesh::names(cluster).await?;
    let lost = others.iter().filter(|(_, mesh)| !there.contains(*mesh));
    let lost: Vec<_> = lost.map(|(name, mesh)| format!("{name} names mesh {mesh:?}")).collect();
    Ok(CheckOutcome::warning_for(&lost))
}

/// Whether each namespace has the control plane's roots, in any order.
async fn bundles(cluster: &Cluster, namespaces: &[Namespace]) -> anyhow::Result<CheckOutcome> {
    let Some(expected) = bundle(cluster, &cluster.control_plane).await? else {
        let namespace = &cluster.control_plane;
        let name = trust_bundle_config_map(&cluster.mesh_name);
        return Ok(CheckOutcome::failed(format!("ConfigMap {name} does not exist in namespace {namespace}")));
    };
    let mut expected = expected.fingerprints();
    expected.sort();
    let mut wrong = Vec::new();
    for namespace in namespaces {
        let name = namespace.name_any();
        match bundle(cluster, &name).await {
            Ok(None) => wrong.push(format!("namespace {name} has no trust bundle")),
            Ok(Some(bundle)) => {
                let mut roots = bundle.fingerprints();
                roots.sort();
                if roots != expected {
                    wrong.push(format!("the trust bundle of namespace {name} holds other roots"));
                }
            }
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    Ok(CheckOutcome::failed_for(&wrong))
}

/// Pods that were created before their namespace was added, or before the webhook worked; the hint lists the
/// namespaces to restart.
async fn injected(cluster: &Cluster, namespaces: &[Namespace]) -> anyhow::Result<CheckOutcome> {
    let (mut without, mut restarts) = (Vec::new(), Vec::new());
    for namespace in namespaces.iter().filter(|namespace| injects(namespace)) {
        let name = namespace.name_any();
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &name);
        let pods = cluster.list(&api, ListParams::default(), &format!("pods of namespace {name}")).await?;
        let before = without.len();
        without.extend(
            pods.iter()
                .filter(|pod| lacks_sidecar(pod, &cluster.control_plane))
                .map(|pod| format!("{name}/{}", pod.name_any())),
        );
        if without.len() > before {
            restarts.push(format!("kubectl rollout restart deployment,statefulset,daemonset -n {name}"));
        }
    }
    Ok(CheckOutcome::warning_for(&without).hint(format!("restart them: {}", enumerate(&restarts))))
}

/// Pods that the API server refuses, according to the status of their ReplicaSets.
async fn made(cluster: &Cluster, namespaces: &[Namespace]) -> anyhow::Result<CheckOutcome> {
    let mut refused = Vec::new();
    for namespace in namespaces.iter().filter(|namespace| injects(namespace)) {
        let name = namespace.name_any();
        let api: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), &name);
        let what = format!("replica sets of namespace {name}");
        for set in cluster.list(&api, ListParams::default(), &what).await? {
            let conditions = set.status.as_ref().and_then(|status| status.conditions.as_ref());
            let failure = conditions.into_iter().flatten().find(|condition| {
                condition.type_.as_deref() == Some("ReplicaFailure")
                    && condition.status.as_deref() == Some("True")
            });
            if let Some(failure) = failure {
                let message = failure.message.as_deref().unwrap_or("the API server refuses its pods");
                refused.push(format!("{name}/{}: {message}", set.name_any()));
            }
        }
    }
    let of_quota = refused.iter().any(|refused| {
        refused.contains("quota")
            && [names::SIDECAR, names::INTERCEPT].iter().any(|name| refused.contains(name))
    });
    let outcome = CheckOutcome::failed_for(&refused);
    Ok(if of_quota { outcome.hint(QUOTA_HINT) } else { outcome })
}

/// Whether a Pod would get a sidecar of the mesh if it were created now, and has none or another mesh's.
fn lacks_sidecar(pod: &Pod, control_plane: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_over = matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some();
    let is_on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let wish = pod.annotations().get(SIDECAR_INJECTION).map(|wish| wish.to_ascii_lowercase());
    let has_opted_out = matches!(wish.as_deref(), Some("disabled" | "no" | "false"));
    !has_sidecar_of(pod, control_plane) && !is_over && !is_on_host && !has_opted_out
}

/// Init containers that would wait without effect (`cluster/waits.rs`).
fn waits(pods: &[MeshedPod]) -> CheckOutcome {
    let mut found = Vec::new();
    for pod in pods {
        found.extend(pod.waits.iter().map(|container| format!("{}: {container}", pod.key())));
    }
    CheckOutcome::warning_for(&found)
}

/// A sidecar that is not connected, with the controller's reason if it has one. Replicas that did not answer are
/// listed too, because the sidecar may be connected to one of them.
fn connected(pods: &[MeshedPod], known: &Known) -> CheckOutcome {
    let mut missing: Vec<String> = started(pods)
        .filter(|pod| known.connected(pod).is_none())
        .map(|pod| match known.workloads.get(&pod.key()) {
            Some((workload, _)) => match &workload.error {
                Some(error) => format!("{}: {error}", pod.key()),
                None => format!("{} is not connected", pod.key()),
            },
            None => format!("{} is not known to any controller", pod.key()),
        })
        .collect();
    if !missing.is_empty() {
        missing.extend(known.silent.iter().cloned());
        return CheckOutcome::failed_for(&missing);
    }
    CheckOutcome::ok_with(counted(started(pods).count(), "sidecar"))
}

/// Sidecars that rejected the newest version; a rejected version before it no longer matters.
fn policies(pods: &[MeshedPod], known: &Known) -> CheckOutcome {
    let rejected: Vec<String> = started(pods)
        .filter_map(|pod| {
            let (workload, _) = known.workloads.get(&pod.key())?;
            let rejected = known.connected(pod)?.rejected.as_ref()?;
            let is_newest = workload.version.as_ref() == Some(&rejected.version);
            is_newest.then(|| format!("{}: {}", pod.key(), rejected.reason))
        })
        .collect();
    CheckOutcome::failed_for(&rejected)
}

/// Certificates that have expired fail; those with less than [`CERTIFICATE_LEFT`] warn, because their renewal has
/// failed for hours.
fn certificates(pods: &[MeshedPod], known: &Known) -> CheckOutcome {
    let (mut over, mut late) = (Vec::new(), Vec::new());
    for pod in started(pods) {
        let Some(text) = known.connected(pod).and_then(|stream| stream.certificate_not_after.as_ref()) else {
            continue;
        };
        let Ok(end) = humantime::parse_rfc3339_weak(text) else { continue };
        match end.duration_since(SystemTime::now()) {
            Err(_) => over.push(format!("{}: expired at {text}", pod.key())),
            Ok(left) if left < CERTIFICATE_LEFT => late.push(format!("{}: expires at {text}", pod.key())),
            Ok(_) => {}
        }
    }
    if over.is_empty() { CheckOutcome::warning_for(&late) } else { CheckOutcome::failed_for(&over) }
}

/// Sidecars of another version than this program's; they work, but may reject resources of a newer controller.
fn versions(pods: &[MeshedPod], known: &Known) -> CheckOutcome {
    let others: Vec<String> = started(pods)
        .filter_map(|pod| {
            let version = pod.version(known.connected(pod));
            (version != env!("CARGO_PKG_VERSION")).then(|| format!("{} has {version}", pod.key()))
        })
        .collect();
    CheckOutcome::warning_for(&others)
}

/// Pods whose sidecar is running.
fn started(pods: &[MeshedPod]) -> impl Iterator<Item = &MeshedPod> {
    pods.iter().filter(|pod| pod.is_started)
}
