//! Generates the patch that puts a Pod into the mesh.
//!
//! The patch depends only on the Pod and the settings, and is idempotent: the API server calls the webhook again after
//! other webhooks, and users copy Pods. Parts of an earlier injection that differ from what we would generate are
//! regenerated.

use json_patch::Patch;
use tidegate_core::contract::annotations::{self, METRICS};
use tidegate_core::contract::labels::{INJECTED, SIDECAR_LABEL};
use tidegate_core::contract::{names, ports};

use crate::annotations::Annotations;
use crate::containers::{self, ContainerBuilder};
use crate::decision::{
    DecisionError, InjectionDecision, NamespaceView, NoSidecarReason, decide, decide_alone,
};
use crate::hooks::{self, HookOwner};
use crate::patch::PatchBuilder;
use crate::pod::{PodSpec, PodView};
use crate::probes::{self, AppProbe};
use crate::refusal::{self, MAX_PROBES_BYTES, PodRefusal, is_reserved_name};
use crate::settings::{MeshSettings, Settings};

/// The result for a Pod.
#[derive(Debug)]
pub(crate) enum Injection {
    /// It joins the mesh with this patch, which is empty if nothing is missing.
    Meshed(Patch),
    /// It gets no sidecar.
    Left(NoSidecarReason),
}

/// Decides whether a Pod that is about to be created in `namespace` is injected, and generates its patch.
pub(crate) fn inject(
    pod: &PodView<'_>,
    namespace: &NamespaceView,
    settings: &Settings,
    mesh: &MeshSettings,
) -> Result<Injection, PodRefusal> {
    let decision = decide(pod, namespace, &settings.mesh_name, &settings.namespace);
    patch_if(decision, pod, namespace, settings, mesh)
}

/// Like [`inject`], for a manifest of whose namespace at most the name is known: every Pod that can have a sidecar and
/// does not opt out gets one.
pub(crate) fn inject_alone(
    pod: &PodView<'_>,
    namespace: &str,
    settings: &Settings,
    mesh: &MeshSettings,
) -> Result<Injection, PodRefusal> {
    let decision = decide_alone(pod, namespace, &settings.namespace);
    let namespace = NamespaceView { name: namespace.to_owned(), ..NamespaceView::default() };
    patch_if(decision, pod, &namespace, settings, mesh)
}

/// The patch of a Pod for which the decision is to inject.
fn patch_if(
    decision: Result<InjectionDecision, DecisionError>,
    pod: &PodView<'_>,
    namespace: &NamespaceView,
    settings: &Settings,
    mesh: &MeshSettings,
) -> Result<Injection, PodRefusal> {
    match (decision?, &pod.spec) {
        (InjectionDecision::Leave(reason), _) => Ok(Injection::Left(reason)),
        (InjectionDecision::Inject, Some(spec)) => {
            patch(pod, spec, namespace, settings, mesh).map(Injection::Meshed)
        }
        // The API server refuses such a Pod itself.
        (InjectionDecision::Inject, None) => Ok(Injection::Meshed(Patch(Vec::new()))),
    }
}

/// The whole patch. First checks everything that would let the app evade the sidecar, then adds metadata, rewritten
/// probes and hooks, containers and volumes, in this order, because containers that are inserted move the indexes in
/// later paths. Resources, limits and the rule for UDP of the Pod have precedence over those of its namespace, and
/// these over the MeshConfig's; exclusions of both add up.
fn patch(
    pod: &PodView<'_>,
    spec: &PodSpec<'_>,
    namespace: &NamespaceView,
    settings: &Settings,
    mesh: &MeshSettings,
) -> Result<Patch, PodRefusal> {
    // Both are required, so that a user's own container of that name is not mistaken for ours.
    let is_injected = pod.has_sidecar() && is_labelled(pod);
    refusal::check(pod, spec, is_injected)?;
    let mut patch = PatchBuilder::default();
    set_metadata(pod, namespace, &mut patch)?;
    // Before containers are added, because the paths use the current indexes.
    let metadata = &pod.metadata;
    let owner = HookOwner {
        key: &settings.hook_key,
        namespace: &namespace.name,
        name: metadata.generate_name.as_deref().or(metadata.name.as_deref()).unwrap_or_default(),
    };
    let probes = probes::to_flag(&rewrite_probes(spec, &owner, &mut patch)?)?;
    if probes.len() > MAX_PROBES_BYTES {
        return Err(PodRefusal::ProbesTooLong { bytes: probes.len() });
    }

    let own = Annotations::new("pod", pod.metadata.annotations.as_ref());
    let owner = format!("namespace {}", namespace.name);
    let of_namespace = Annotations::new(&owner, Some(&namespace.annotations));
    let (mut interception, mut resources) = (mesh.interception.clone(), mesh.resources.clone());
    own.extend(&mut interception)?;
    of_namespace.set_resources(&mut resources)?;
    own.set_resources(&mut resources)?;
    let mut limits = of_namespace.sidecar_limits()?;
    limits.extend(own.sidecar_limits()?);
    let (of_namespace, of_pod) = (of_namespace.refuses_udp()?, own.refuses_udp()?);
    let refuses_udp = of_pod.or(of_namespace).unwrap_or(false);
    let parts = ContainerBuilder { settings, mesh, interception, resources, refuses_udp, limits, probes };
    set_containers(spec, &parts, &mut patch);
    set_volumes(spec, is_injected, settings, &mut patch);
    Ok(patch.finish())
}

/// Whether it has the label that injection sets. A client can set it too, so it never proves anything alone.
fn is_labelled(pod: &PodView<'_>) -> bool {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(SIDECAR_LABEL));
    label.is_some_and(|label| label == INJECTED)
}

/// The label by which sidecars are found, and Prometheus' annotations where `openservicemesh.io/metrics` is enabled on
/// the Pod or, without a word there, on its namespace.
fn set_metadata(
    pod: &PodView<'_>,
    namespace: &NamespaceView,
    patch: &mut PatchBuilder,
) -> Result<(), PodRefusal> {
    let (labels, annotations) = (pod.metadata.labels.as_ref(), pod.metadata.annotations.as_ref());
    patch.set_entries(&["metadata", "labels"], labels, &[(SIDECAR_LABEL, INJECTED)]);
    let owner = format!("namespace {}", namespace.name);
    let of_namespace = Annotations::new(&owner, Some(&namespace.annotations)).switch(METRICS)?;
    let of_pod = Annotations::new("pod", annotations).switch(METRICS)?;
    if of_pod.or(of_namespace) == Some(true) {
        let port = ports::HEALTH.to_string();
        let entries = [
            (annotations::PROMETHEUS_SCRAPE, "true"),
            (annotations::PROMETHEUS_PORT, &port),
            (annotations::PROMETHEUS_PATH, names::SIDECAR_METRICS_PATH),
        ];
        patch.set_entries(&["metadata", "annotations"], annotations, &entries);
    }
    Ok(())
}

/// Points every probe and hook at the sidecar, and collects what the sidecar must request from the app.
fn rewrite_probes(
    spec: &PodSpec<'_>,
    owner: &HookOwner<'_>,
    patch: &mut PatchBuilder,
) -> Result<Vec<AppProbe>, PodRefusal> {
    let sidecar =
        spec.init_containers.iter().flatten().find(|container| container.fields.name == names::SIDECAR);
    let before = sidecar.and_then(containers::probes_flag);
    let before = before.map_or(Ok(Vec::new()), |flag| probes::from_flag(&flag))?;
    let mut all = Vec::new();
    let lists =
        [("initContainers", spec.init_containers.as_deref()), ("containers", Some(&spec.containers[..]))];
    for (list, containers) in lists {
        for (index, container) in containers.into_iter().flatten().enumerate() {
            let container = &container.fields;
            if !is_reserved_name(&container.name) {
                let path = ["spec", list, &index.to_string()];
                probes::rewrite(container, &path, &before, patch, &mut all)?;
                hooks::rewrite(container, &path, owner, &before, patch, &mut all)?;
            }
        }
    }
    Ok(all)
}

/// Puts our containers first, so that the app's init containers also run inside the mesh.
fn set_containers(spec: &PodSpec<'_>, parts: &ContainerBuilder<'_>, patch: &mut PatchBuilder) {
    const PATH: [&str; 2] = ["spec", "initContainers"];
    let made = [parts.sidecar(), parts.intercept()];
    let Some(there) = &spec.init_containers else { return patch.add(&PATH, made.into()) };
    let is_first = |(index, container): (usize, &_)| {
        there.get(index).is_some_and(|there| containers::is_made(there, container, &parts.resources))
    };
    let ours = there.iter().filter(|container| is_reserved_name(&container.fields.name)).count();
    if ours == made.len() && made.iter().enumerate().all(is_first) {
        return;
    }
    for (index, container) in there.iter().enumerate().rev() {
        if is_reserved_name(&container.fields.name) {
            patch.remove(&[&PATH[..], &[&index.to_string()]].concat());
        }
    }
    for (index, container) in made.into_iter().enumerate() {
        patch.add(&[&PATH[..], &[&index.to_string()]].concat(), container);
    }
}

/// Adds our volumes. Those of an earlier injection are replaced if they differ; a volume of the user with one of our
/// names was refused before.
fn set_volumes(spec: &PodSpec<'_>, is_injected: bool, settings: &Settings, patch: &mut PatchBuilder) {
    const PATH: [&str; 2] = ["spec", "volumes"];
    let mut missing = Vec::new();
    let ours = spec.volumes.as_ref().map(|volumes| &volumes.0[..]).unwrap_or_default();
    for made in containers::volumes(&settings.mesh_name) {
        let there = ours.iter().find(|(_, name, _)| made["name"] == *name);
        match there.filter(|_| is_injected) {
            None => missing.push(made),
            Some((index, _, volume)) => {
                if !containers::is_volume_made(volume, &made) {
                    patch.replace(&[&PATH[..], &[&index.to_string()]].concat(), made);
                }
            }
        }
    }
    patch.append(&PATH, spec.volumes.is_some(), missing);
}

#[cfg(test)]
mod tests;
