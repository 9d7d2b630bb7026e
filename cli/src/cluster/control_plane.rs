//! Finds the control plane's Pods.

use std::fmt;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, ResourceExt};
use serde::de::DeserializeOwned;
use tidegate_core::contract::labels::{INSTANCE, NAME, PART_OF, TIDEGATE};
use tidegate_core::contract::names;

use super::client::Cluster;

/// A selector of everything that belongs to the mesh of this name.
pub(crate) fn of_mesh(mesh_name: &str) -> String {
    format!("{PART_OF}={TIDEGATE},{INSTANCE}={mesh_name}")
}

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Controller,
    CertManager,
    Injector,
}

/// A part of the control plane has no running Pod.
#[derive(Debug, thiserror::Error)]
#[error(
    "no running pod of {part} in namespace {namespace} for mesh {mesh_name}; select another control plane with \
     --tidegate-namespace and --mesh-name; `tidegate mesh list` shows them"
)]
pub(crate) struct NoRunningPod {
    part: Part,
    namespace: String,
    mesh_name: String,
}

impl Part {
    /// All programs.
    pub(crate) const ALL: [Self; 3] = [Self::Controller, Self::CertManager, Self::Injector];

    /// The name of its Deployment, ServiceAccount, Service and container.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Controller => names::CONTROLLER,
            Self::CertManager => names::CERT_MANAGER,
            Self::Injector => names::INJECTOR,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Cluster {
    /// The running Pods of a part.
    pub(crate) async fn running(&self, part: Part) -> anyhow::Result<Vec<Pod>> {
        let selector = format!("{NAME}={part},{INSTANCE}={}", self.mesh_name);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.control_plane);
        let what = format!("pods of {part} in namespace {}", self.control_plane);
        let mut pods = self.list(&api, ListParams::default().labels(&selector), &what).await?;
        pods.retain(is_running);
        Ok(pods)
    }

    /// The running Pods of a part; an error if there are none.
    pub(crate) async fn needed(&self, part: Part) -> anyhow::Result<Vec<Pod>> {
        let pods = self.running(part).await?;
        if pods.is_empty() {
            let (namespace, mesh_name) = (self.control_plane.clone(), self.mesh_name.clone());
            return Err(NoRunningPod { part, namespace, mesh_name }.into());
        }
        Ok(pods)
    }

    /// The answer of the first Pod of a part that answers.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, part: Part, path: &str) -> anyhow::Result<T> {
        self.first_answer(part, path).await.map(|(_, answer)| answer)
    }

    /// The first Pod of a part that answers, by name, and its answer.
    pub(crate) async fn first_answer<T: DeserializeOwned>(
        &self,
        part: Part,
        path: &str,
    ) -> anyhow::Result<(String, T)> {
        let mut last = None;
        for pod in self.needed(part).await? {
            let name = pod.name_any();
            match self.admin_json(&self.control_plane, &name, path).await {
                Ok(answer) => return Ok((name, answer)),
                // If one replica rejects a request, all would.
                Err(error) if error.is_answer() => return Err(error.into()),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) => Err(error.into()),
            None => anyhow::bail!("no pod of {part} answers"),
        }
    }

    /// The answers of all Pods of a part, by the Pod's name.
    pub(crate) async fn ask_all<T: DeserializeOwned>(
        &self,
        part: Part,
        path: &str,
    ) -> anyhow::Result<Vec<(String, Result<T, super::admin::PodAdminError>)>> {
        let pods = self.needed(part).await?;
        let answers = pods.iter().map(|pod| async move {
            let name = pod.name_any();
            let answer = self.admin_json(&self.control_plane, &name, path).await;
            (name, answer)
        });
        Ok(join_all(answers).await)
    }
}

/// Whether a Pod runs and is not being deleted.
pub(crate) fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}
