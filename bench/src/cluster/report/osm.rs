//! Open Service Mesh 1.2.4 (Envoy 1.36.2), measured by the same steps: Kubernetes 1.35.4 with one node, two cores,
//! permissive mode on, optimised builds.

use crate::cluster::changes::PolicyChange;

/// Policy change → effect, seconds from the call's return; n = 20 at 4 pods, 8 at the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChangeFigures {
    /// Number of meshed pods.
    pub(super) pods: usize,
    /// Median.
    pub(super) p50: f64,
    /// Maximum.
    pub(super) max: f64,
}

/// Resident memory in MiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryFigures {
    /// Number of meshed pods.
    pub(super) pods: usize,
    /// `osm-controller`.
    pub(super) controller: f64,
    /// `osm-injector`.
    pub(super) injector: f64,
    /// Median of all sidecars.
    pub(super) envoy: f64,
    /// Smallest sidecar.
    pub(super) envoy_min: f64,
    /// Largest sidecar.
    pub(super) envoy_max: f64,
    /// Median of all sidecars, with shared pages divided among processes.
    pub(super) envoy_pss: f64,
}

/// Medians, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct CreationFigures {
    /// Duration of the API call.
    pub(super) call: f64,
    /// Time from the call's start until the pod was ready.
    pub(super) ready: f64,
}

/// A change of the source address.
const ADDRESS: [ChangeFigures; 3] = [
    ChangeFigures { pods: 4, p50: 2.04, max: 2.08 },
    ChangeFigures { pods: 52, p50: 2.58, max: 3.48 },
    ChangeFigures { pods: 192, p50: 4.86, max: 6.43 },
];
/// A change of the principal.
const PRINCIPAL: [ChangeFigures; 1] = [ChangeFigures { pods: 4, p50: 2.09, max: 2.25 }];

/// Memory at several numbers of pods.
pub(super) const MEMORY: [MemoryFigures; 3] = [
    MemoryFigures {
        pods: 4,
        controller: 76.6,
        injector: 60.8,
        envoy: 59.8,
        envoy_min: 58.9,
        envoy_max: 62.0,
        envoy_pss: 28.4,
    },
    MemoryFigures {
        pods: 52,
        controller: 106.9,
        injector: 73.6,
        envoy: 61.0,
        envoy_min: 59.3,
        envoy_max: 65.1,
        envoy_pss: 19.6,
    },
    MemoryFigures {
        pods: 192,
        controller: 172.7,
        injector: 81.2,
        envoy: 60.9,
        envoy_min: 59.5,
        envoy_max: 65.8,
        envoy_pss: 18.6,
    },
];

/// Seconds after which the last of 20 keep-alive connections had ended, at 4 pods.
pub(super) const CONNECTIONS_ENDED: f64 = 8.0;

/// The figure at the nearest number of pods; `None` if nothing was measured within a quarter of it.
pub(super) fn change(change: PolicyChange, pods: usize) -> Option<ChangeFigures> {
    let all: &[ChangeFigures] = match change {
        PolicyChange::Address => &ADDRESS,
        PolicyChange::Principal => &PRINCIPAL,
    };
    let nearest = all.iter().min_by_key(|figures| figures.pods.abs_diff(pods))?;
    (nearest.pods.abs_diff(pods) <= pods / 4).then_some(*nearest)
}

/// Creation of a pod, with or without injection and a readiness probe.
pub(super) fn creation(is_injected: bool, has_probe: bool) -> CreationFigures {
    match (is_injected, has_probe) {
        (false, false) => CreationFigures { call: 0.014, ready: 0.92 },
        (true, false) => CreationFigures { call: 0.128, ready: 2.87 },
        (false, true) => CreationFigures { call: 0.010, ready: 0.89 },
        (true, true) => CreationFigures { call: 0.150, ready: 2.91 },
    }
}
