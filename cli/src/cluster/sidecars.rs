//! The mesh's sidecars: Pods with a sidecar, joined with what the controllers' replicas know about them.
//!
//! Every replica of the controller knows all workloads, but only the streams that are connected to it. So all are
//! queried, and for each workload the one with a live stream counts, or else the one that had the last.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, ListParams, ResourceExt};
use serde::{Deserialize, Serialize};
use tidegate_core::contract::names;
use tidegate_crds::injection::{has_sidecar, has_sidecar_of, sidecar_container};

use super::client::Cluster;
use super::control_plane::Part;
use super::mesh::image_tag;
use super::waits;

/// A workload, as `GET /workloads` of a controller shows it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReportedWorkload {
    /// `<namespace>/<pod>`.
    workload: String,
    /// The newest version of its policy.
    pub(crate) version: Option<String>,
    /// Why it has no policy.
    pub(crate) error: Option<String>,
    /// The latest stream for it, open or not; `None` before the first one at this replica.
    pub(crate) sidecar: Option<ReportedStream>,
}

/// A sidecar's stream.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReportedStream {
    pub(crate) connected: bool,
    /// When the stream began, RFC 3339 in UTC with milliseconds.
    connected_since: String,
    /// Its version.
    program: String,
    /// The policy's version that it was last sent, and below the one that it has applied.
    pub(crate) sent_version: Option<String>,
    pub(crate) acked_version: Option<String>,
    pub(crate) rejected: Option<RejectedVersion>,
    /// What it rejected besides the policy, by name.
    #[serde(default)]
    pub(crate) rejected_resources: BTreeMap<String, RejectedVersion>,
    /// SHA-256 of the roots that it trusts, once it has reported them.
    pub(crate) trusted_roots: Option<Vec<String>>,
    /// When its certificate expires, RFC 3339.
    pub(crate) certificate_not_after: Option<String>,
    /// The roots among those under which its certificate is valid; `None` for an older sidecar.
    #[serde(default)]
    pub(crate) certificate_roots: Option<Vec<String>>,
}

/// A version that a sidecar rejected.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub(crate) struct RejectedVersion {
    pub(crate) version: String,
    pub(crate) reason: String,
}

/// A Pod with a sidecar.
#[derive(Debug)]
pub(crate) struct MeshedPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Whether its sidecar is running; before that, no controller can know it.
    pub(crate) is_started: bool,
    /// Its init containers that wait for a server only by connecting.
    pub(crate) waits: Vec<String>,
    /// The sidecar's image, with its tag.
    image: String,
}

/// What the controllers know.
#[derive(Debug)]
pub(crate) struct Known {
    /// By `<namespace>/<pod>`: the data of the replica that the sidecar is connected to, and that replica's Pod. For a
    /// disconnected sidecar, the replica that saw it last.
    pub(crate) workloads: BTreeMap<String, (ReportedWorkload, String)>,
    /// Replicas that did not answer, and why.
    pub(crate) silent: Vec<String>,
}

impl MeshedPod {
    /// `<namespace>/<name>`.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The sidecar's version: as reported on its stream, or else its image's tag.
    pub(crate) fn version<'a>(&'a self, stream: Option<&'a ReportedStream>) -> &'a str {
        stream.map_or_else(|| image_tag(&self.image), |stream| &stream.program)
    }

    /// `None` without a sidecar, or if the Pod has finished.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let is_over =
            matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some();
        (has_sidecar(pod) && !is_over).then(|| Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            is_started: phase == Some("Running") || sidecar_runs(pod),
            image: image(pod),
            waits: waits::by_connecting(pod),
        })
    }
}

impl Cluster {
    /// The unfinished Pods with a sidecar of this mesh, of one namespace or of all.
    pub(crate) async fn meshed_pods(&self, namespace: Option<&str>) -> anyhow::Result<Vec<MeshedPod>> {
        let (api, what): (Api<Pod>, _) = match namespace {
            Some(name) => (Api::namespaced(self.client.clone(), name), format!("pods of namespace {name}")),
            None => (Api::all(self.client.clone()), "pods of all namespaces".to_owned()),
        };
        // All Pods, without a label selector: labels may change while a Pod runs.
        let pods = self.list(&api, ListParams::default(), &what).await?;
        let ours = pods.iter().filter(|pod| has_sidecar_of(pod, &self.control_plane));
        let mut pods: Vec<MeshedPod> = ours.filter_map(MeshedPod::of).collect();
        pods.sort_by_key(MeshedPod::key);
        Ok(pods)
    }

    /// Queries every controller replica, by port-forward.
    pub(crate) async fn known_sidecars(&self) -> anyhow::Result<Known> {
        let mut known = Known { workloads: BTreeMap::new(), silent: Vec::new() };
        for (controller, answer) in
            self.ask_all::<Vec<ReportedWorkload>>(Part::Controller, "/workloads").await?
        {
            match answer {
                Ok(workloads) => known.add(&controller, workloads),
                Err(error) => known.silent.push(error.to_string()),
            }
        }
        Ok(known)
    }
}

impl Known {
    /// Merges what one replica reports.
    fn add(&mut self, controller: &str, workloads: Vec<ReportedWorkload>) {
        for workload in workloads {
            let newer = match self.workloads.get(&workload.workload) {
                Some((other, _)) => workload.freshness() > other.freshness(),
                None => true,
            };
            if newer {
                self.workloads.insert(workload.workload.clone(), (workload, controller.to_owned()));
            }
        }
    }

    /// The stream of a Pod's sidecar, if it is connected now.
    pub(crate) fn connected(&self, pod: &MeshedPod) -> Option<&ReportedStream> {
        let (workload, _) = self.workloads.get(&pod.key())?;
        workload.sidecar.as_ref().filter(|stream| stream.connected)
    }
}

impl ReportedWorkload {
    /// Sort key of replicas' data about one workload: a live stream first, then the latest. RFC 3339 in UTC sorts as
    /// text.
    fn freshness(&self) -> Option<(bool, &str)> {
        self.sidecar.as_ref().map(|stream| (stream.connected, stream.connected_since.as_str()))
    }
}

/// Whether the native sidecar's container is running, which it is before the Pod's phase is `Running`.
fn sidecar_runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
    let runs = |status: &ContainerStatus| {
        status.name == names::SIDECAR && status.state.as_ref().is_some_and(|state| state.running.is_some())
    };
    statuses.is_some_and(|statuses| statuses.iter().any(runs))
}

/// The sidecar's image, whose tag is the version of a sidecar that has not connected.
fn image(pod: &Pod) -> String {
    sidecar_container(pod).and_then(|container| container.image.clone()).unwrap_or_default()
}
