//! The webhook's reviewer.

use tidegate_kubernetes::webhook::{AdmissionRequest, AdmissionReviewer, BoxFuture, Operation, Verdict};

use crate::decision::NoSidecarReason;
use crate::inject::{Injection, inject};
use crate::pod::PodView;
use crate::refusal::{self, PodRefusal};
use crate::settings::Settings;
use crate::state::ClusterState;

/// Adds sidecars to new Pods, and checks updates and debug containers of Pods that have one.
#[derive(Clone, Debug)]
pub struct PodReviewer {
    settings: Settings,
    state: ClusterState,
}

impl PodReviewer {
    /// A reviewer with these settings.
    pub fn new(settings: Settings, state: ClusterState) -> Self {
        Self { settings, state }
    }

    /// Admits everything but Pods, and subresources other than debug containers: a webhook configuration that sends
    /// more must not stop a cluster.
    async fn verdict(&self, request: &AdmissionRequest<'_>) -> Verdict {
        let kind = request.kind();
        if !(kind.group.is_empty() && kind.kind == "Pod") {
            return Verdict::allowed();
        }
        let verdict = match (request.operation(), request.sub_resource()) {
            (Operation::Create, "") => self.created(request).await,
            (Operation::Update, "") => self.changed(request),
            (Operation::Update, "ephemeralcontainers") => debugged(request),
            _ => Ok(Verdict::allowed()),
        };
        verdict.unwrap_or_else(|refusal| Verdict::denied(refusal.to_string()))
    }

    /// A new Pod: its patch, or the reason why it gets none. The only request that may wait, for its namespace
    /// ([`ClusterState::namespace`]).
    async fn created(&self, request: &AdmissionRequest<'_>) -> Result<Verdict, PodRefusal> {
        let namespace = request.namespace();
        // The API server only sends Pods of the mesh. Admitting one without a sidecar because we do not see its
        // namespace in the mesh would be the result of our own delay.
        let is_late =
            |namespace| format!("namespace {namespace} is not known to be in the mesh yet; try again");
        let Some(known) = self.state.namespace(namespace, &self.settings.mesh_name).await else {
            return Ok(Verdict::denied(is_late(namespace)));
        };
        let mesh = self.state.mesh()?;
        // Only now, so that requests waiting for their namespace are still text, and only one Pod at a time is decoded.
        let Some(pod) = read(request)? else { return Ok(Verdict::allowed()) };
        Ok(match inject(&pod, &known, &self.settings, &mesh)? {
            Injection::Left(NoSidecarReason::NotInMesh) => Verdict::denied(is_late(namespace)),
            Injection::Meshed(patch) => Verdict::patched(patch).with_warnings(self.changes_mesh(&pod)),
            Injection::Left(reason) => Verdict::allowed().with_warnings(reason.warning().map(str::to_owned)),
        })
    }

    /// An update of a Pod that has a sidecar. Kubernetes allows a change of images; those of our containers stay, or
    /// become the injector's own.
    fn changed(&self, request: &AdmissionRequest<'_>) -> Result<Verdict, PodRefusal> {
        if let Some((old, new)) = read_old(request)?.filter(PodView::has_sidecar).zip(read(request)?) {
            refusal::check_change(&old, &new, &self.settings.image)?;
        }
        Ok(Verdict::allowed())
    }

    /// A Pod with another mesh's sidecar gets ours instead: its namespace determines its mesh.
    fn changes_mesh(&self, pod: &PodView<'_>) -> Option<String> {
        let Settings { mesh_name, namespace, .. } = &self.settings;
        let other = pod.control_plane().filter(|other| other != namespace)?;
        Some(format!(
            "the pod comes with a sidecar of the control plane in namespace {other}; it gets one of mesh {mesh_name} \
             instead, which its namespace is in"
        ))
    }
}

/// A new ephemeral container in a Pod that has a sidecar: it must not run with the rights to evade interception.
fn debugged(request: &AdmissionRequest<'_>) -> Result<Verdict, PodRefusal> {
    if let Some(pod) = read(request)?.filter(PodView::has_sidecar) {
        refusal::check_ephemeral(&pod, read_old(request)?.as_ref())?;
    }
    Ok(Verdict::allowed())
}

/// The Pod to be stored; an error names the field that cannot be read.
fn read<'a>(request: &AdmissionRequest<'a>) -> Result<Option<PodView<'a>>, PodRefusal> {
    request.object().map_err(PodRefusal::Unreadable)
}

impl AdmissionReviewer for PodReviewer {
    fn review<'a>(&'a self, request: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict> {
        Box::pin(self.verdict(request))
    }
}

/// The Pod that is stored.
fn read_old<'a>(request: &AdmissionRequest<'a>) -> Result<Option<PodView<'a>>, PodRefusal> {
    request.old_object().map_err(PodRefusal::Unreadable)
}

#[cfg(test)]
mod tests;
