//! The sidecar's own workload, as far as it decides where its connections go.

use std::sync::Arc;

use tidegate_core::EgressMode;
use tidegate_core::backend::Locality;

use crate::remotes::Remotes;

/// The workload whose connections are balanced.
#[derive(Clone, Debug)]
pub(super) struct ClientWorkload {
    /// `<namespace>/<name>` of the pod.
    pub(super) workload: Box<str>,
    /// Where it runs; `None`: the controller has not said so.
    pub(super) locality: Option<Locality>,
    /// Names the workloads that it reaches.
    pub(super) remotes: Remotes,
    /// Where its connections to addresses that no object has go.
    pub(super) egress: EgressMode,
}

impl Default for ClientWorkload {
    /// Before the controller has said anything, the sidecar lets nothing through.
    fn default() -> Self {
        let egress =
            EgressMode::RegistryOnly(Arc::from("this workload has no policy from the controller yet"));
        Self { workload: Box::default(), locality: None, remotes: Remotes::default(), egress }
    }
}
