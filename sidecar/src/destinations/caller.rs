//! The sidecar's own workload, as far as it decides which endpoints its connections go to.

use tidegate_core::backend::Locality;

use crate::remotes::Remotes;

/// The workload whose connections are balanced.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// `<namespace>/<name>` of the pod.
    pub(super) workload: Box<str>,
    /// Where it runs; `None`: the controller has not said so.
    pub(super) locality: Option<Locality>,
    /// Names the workloads that it reaches.
    pub(super) remotes: Remotes,
}
