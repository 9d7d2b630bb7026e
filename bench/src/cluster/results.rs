//! The results of a cluster run.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::changes::PolicyChange;
use crate::report::Machine;

/// The figures, and the conditions under which they were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterResults {
    /// Seconds since 1970.
    pub(crate) finished: u64,
    /// How long the run took.
    pub(crate) seconds: u64,
    /// Processor and kernel.
    pub(crate) machine: Machine,
    /// Settings of the run.
    pub(crate) settings: ClusterSettings,
    /// Changes of policies, by the pods that existed.
    pub(crate) changes: Vec<(Population, PolicyChangeFigures)>,
    /// Open connections whose policy was deleted, by the pods that existed.
    pub(crate) connections: Vec<(Population, ConnectionEnds)>,
    /// Memory of all programs, by the pods that existed.
    pub(crate) memory: Vec<(Population, MeshMemory)>,
    /// Creation of pods of each kind.
    pub(crate) creation: Vec<Creation>,
    /// Changes of routes, by the number of routes that the client uses.
    #[serde(default)]
    pub(crate) routes: Vec<RouteFigures>,
    /// Measurements that failed, and why.
    pub(crate) failures: Vec<String>,
}

/// Settings of the run, and the measured programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterSettings {
    /// Version of Tidegate.
    pub(crate) version: String,
    /// Whether the programs were built without optimisation: such programs are slower and larger than those that users
    /// run.
    pub(crate) is_debug: bool,
    /// Number of changes of each kind.
    pub(crate) changes: usize,
    /// Number of open connections.
    pub(crate) connections: usize,
    /// Number of created pods of each kind.
    pub(crate) creations: usize,
}

/// The pods that exist during a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Population {
    /// Pods that run, with a sidecar each.
    pub(crate) pods: usize,
    /// Pods of the mesh that exist only in the API server.
    pub(crate) synthetic: usize,
}

/// Changes of one policy, back and forth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PolicyChangeFigures {
    /// Which policy was changed.
    pub(crate) change: PolicyChange,
    /// Seconds from the API call's return until a new connection showed the new behaviour.
    pub(crate) from_return: Figures,
    /// The same, from the call's start.
    pub(crate) from_start: Figures,
    /// New connections that were checked right after the changes.
    pub(crate) probes: usize,
    /// How many of them showed the old behaviour again.
    pub(crate) stale: usize,
    /// How many showed neither: no answer within two seconds, or an unexpected one.
    pub(crate) odd: usize,
}

/// Open connections when their policy was deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionEnds {
    /// Which policy was deleted.
    pub(crate) change: PolicyChange,
    /// Seconds from the API call's return until each had ended; one that has not counts with the time it was watched.
    pub(crate) ended: Figures,
    /// Connections that were still open at the end of the watch.
    pub(crate) still_open: usize,
    /// Responses with status 200 more than a second after the call's return.
    pub(crate) late_answers: usize,
}

/// Memory of all processes of a kind, in KiB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeshMemory {
    /// The controller.
    pub(crate) controller: f64,
    /// The cert-manager.
    pub(crate) cert_manager: f64,
    /// The injector.
    pub(crate) injector: f64,
    /// Resident memory of each sidecar.
    pub(crate) sidecars: Figures,
    /// The same, with shared pages divided among the processes that share them.
    pub(crate) sidecars_proportional: Figures,
}

/// Pods of one kind, created one after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Creation {
    /// Whether the pods got a sidecar.
    pub(crate) is_injected: bool,
    /// Whether the pods had a readiness probe over HTTP.
    pub(crate) has_probe: bool,
    /// Seconds that the API call took.
    pub(crate) call: Figures,
    /// Seconds from its start until the pod was ready.
    pub(crate) ready: Figures,
}

/// Changes of a route that one client uses among many, and what they cost its sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouteFigures {
    /// Number of HTTPRoutes that the client uses.
    pub(crate) routes: usize,
    /// Number of Services that are their parents.
    pub(crate) services: usize,
    /// Without other requests.
    pub(crate) quiet: RouteChangeFigures,
    /// While the client makes requests by other routes.
    pub(crate) loaded: RouteChangeFigures,
    /// Changes of policies meanwhile.
    pub(crate) policies: Vec<(PolicyChange, RouteChangeFigures)>,
    /// These requests.
    pub(crate) load: RouteLoadFigures,
    /// Resident memory of the client's sidecar, in KiB.
    pub(crate) sidecar_kib: f64,
    /// The same, with shared pages divided among the processes that share them.
    pub(crate) sidecar_proportional_kib: f64,
    /// Share of a core that the client's sidecar uses while a route that it does not use changes every second.
    pub(crate) cpu_of_changes_elsewhere: f64,
}

/// Changes of one route, or of one policy, back and forth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouteChangeFigures {
    /// Seconds from the API call's return until a request, or a new connection, showed the change.
    pub(crate) from_return: Figures,
    /// The same, from the call's start.
    pub(crate) from_start: Figures,
    /// Requests, or connections, that were checked right after the changes.
    pub(crate) probes: usize,
    /// Those that showed the state before again, and those that showed neither.
    pub(crate) wrong: usize,
}

/// Requests by routes that do not change, while another one changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouteLoadFigures {
    /// Number of requests.
    pub(crate) requests: u64,
    /// How many were not answered by the route's backend.
    pub(crate) wrong: u64,
    /// How long they went on.
    pub(crate) seconds: f64,
    /// The 99th percentile of their latencies, in seconds.
    pub(crate) p99: f64,
}

/// Figures of one kind, in order of measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Figures(pub(crate) Vec<f64>);

impl Figures {
    /// The smallest figure that this share of all figures does not exceed; `None` without figures.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    }

    /// The median.
    pub(crate) fn p50(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// The greatest.
    pub(crate) fn max(&self) -> Option<f64> {
        self.quantile(1.0)
    }

    /// The smallest.
    pub(crate) fn min(&self) -> Option<f64> {
        self.quantile(0.0)
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}

impl fmt::Display for Population {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.synthetic {
            0 => write!(formatter, "{}", self.pods),
            synthetic => write!(formatter, "{} and {synthetic} synthetic", self.pods),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_figure_that_was_measured() {
        let figures: Figures = (1..=20).rev().map(f64::from).collect();
        assert_eq!(figures.min(), Some(1.0));
        assert_eq!(figures.p50(), Some(10.0));
        assert_eq!(figures.quantile(0.9), Some(18.0));
        assert_eq!(figures.quantile(0.99), Some(20.0));
        assert_eq!(figures.max(), Some(20.0));
        assert_eq!(Figures::default().p50(), None);
        assert_eq!(Figures(vec![3.0]).quantile(0.9), Some(3.0));
    }
}
