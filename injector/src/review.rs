//! The webhook's answer to the API server.

use k8s_openapi::api::core::v1::Pod;
use tidegate_crds::injection::{control_plane_of, has_sidecar};
use tidegate_kubernetes::webhook::{AdmissionRequest, BoxFuture, Operation, Reviewer, Verdict};

use crate::decision::Reason;
use crate::inject::{Injection, inject};
use crate::refusal::{self, Refusal};
use crate::settings::Settings;
use crate::state::State;

/// Adds sidecars to Pods that are created, and looks at debug containers of those that have one.
#[derive(Clone, Debug)]
pub struct PodReviewer {
    settings: Settings,
    state: State,
}

impl PodReviewer {
    /// A reviewer by these settings.
    pub fn new(settings: Settings, state: State) -> Self {
        Self { settings, state }
    }

    async fn verdict(&self, request: &AdmissionRequest<'_>) -> Verdict {
        let kind = request.kind();
        if !(kind.group.is_empty() && kind.kind == "Pod") {
            return Verdict::allowed();
        }
        let pod: Pod = match request.object() {
            Ok(Some(pod)) => pod,
            Ok(None) => return Verdict::allowed(),
            Err(error) => return Verdict::denied(format!("the pod cannot be read: {error}")),
        };
        let verdict = match (request.operation(), request.sub_resource()) {
            (Operation::Create, "") => self.created(&pod, request.namespace()).await,
            (Operation::Update, "ephemeralcontainers") if has_sidecar(&pod) => {
                refusal::check_ephemeral(&pod).map(|()| Verdict::allowed())
            }
            _ => Ok(Verdict::allowed()),
        };
        verdict.unwrap_or_else(|refusal| Verdict::denied(refusal.to_string()))
    }

    async fn created(&self, pod: &Pod, namespace: &str) -> Result<Verdict, Refusal> {
        // The API server asks about Pods of the mesh alone: whoever is to be let through without a sidecar because
        // their namespace is none of it would be there by our own delay.
        let is_late =
            |namespace| format!("namespace {namespace} is not known to be in the mesh yet; try again");
        let Some(known) = self.state.namespace(namespace, &self.settings.mesh_name).await else {
            return Ok(Verdict::denied(is_late(namespace)));
        };
        let mesh = self.state.mesh()?;
        Ok(match inject(pod, &known, &self.settings, &mesh)? {
            Injection::Left(Reason::NotInMesh) => Verdict::denied(is_late(namespace)),
            Injection::Meshed(patch) => Verdict::patched(patch).with_warnings(self.changes_mesh(pod)),
            Injection::Left(reason) => Verdict::allowed().with_warnings(reason.warning().map(str::to_owned)),
        })
    }
}

impl PodReviewer {
    /// A Pod that brings another mesh's sidecar gets ours in its place: the namespace says which mesh it is in.
    fn changes_mesh(&self, pod: &Pod) -> Option<String> {
        let Settings { mesh_name, namespace, .. } = &self.settings;
        let other = control_plane_of(pod).filter(|other| other != namespace)?;
        Some(format!(
            "the pod comes with a sidecar of the control plane in namespace {other}; it gets one of mesh {mesh_name} \
             instead, which its namespace is in"
        ))
    }
}

impl Reviewer for PodReviewer {
    fn review<'a>(&'a self, request: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict> {
        Box::pin(self.verdict(request))
    }
}

#[cfg(test)]
mod tests;
