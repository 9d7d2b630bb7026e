//! The webhook's answer to the API server.

use k8s_openapi::api::core::v1::Pod;
use tidegate_crds::injection::{control_plane_of, has_sidecar_container};
use tidegate_kubernetes::webhook::{AdmissionRequest, BoxFuture, Operation, Reviewer, Verdict};

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
            (Operation::Update, "ephemeralcontainers") if has_sidecar_container(&pod) => {
                refusal::check_ephemeral(&pod).map(|()| Verdict::allowed())
            }
            _ => Ok(Verdict::allowed()),
        };
        verdict.unwrap_or_else(|refusal| Verdict::denied(refusal.to_string()))
    }

    async fn created(&self, pod: &Pod, namespace: &str) -> Result<Verdict, Refusal> {
        let Some(namespace) = self.state.namespace(namespace, &self.settings.mesh_name).await else {
            return Ok(Verdict::denied(format!(
                "namespace {namespace} is not known to the injector yet; try again"
            )));
        };
        let mesh = self.state.mesh()?;
        Ok(match inject(pod, &namespace, &self.settings, &mesh)? {
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
