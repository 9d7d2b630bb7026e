//! Tidegate's goals on a cluster, and whether they were reached.

use std::fmt::Write;

use super::{added, at, osm, routes};
use crate::cluster::results::{ClusterResults, Population};
use crate::report::{Bound, verdict};

/// A bound on one figure.
pub(super) struct ClusterGoal {
    /// What is measured.
    pub(super) name: String,
    /// The bound that the figure must meet.
    pub(super) bound: Bound,
    /// Unit of figure and bound.
    pub(super) unit: &'static str,
    /// The figure; `None` if it was not measured.
    pub(super) measured: Option<f64>,
    /// Open Service Mesh's figure, if it was measured.
    pub(super) osm: Option<f64>,
}

/// Table of goals.
pub(super) fn render(results: &ClusterResults) -> String {
    let mut text = "| goal | bound | measured | | OSM |\n|---|---|---:|---|---:|\n".to_owned();
    for ClusterGoal { name, bound, unit, measured, osm } in goals(results) {
        let (figure, verdict) = verdict(measured, bound);
        let osm = osm.map_or("–".to_owned(), |osm| format!("{osm}"));
        let bound = format!("{} {unit}", bound.text());
        let _ = writeln!(text, "| {name} | {} | {figure} | {verdict} | {osm} |", bound.trim_end());
    }
    text
}

/// All goals, in the order of the table.
fn goals(results: &ClusterResults) -> Vec<ClusterGoal> {
    let mut goals = changes(results);
    let ended = results.connections.iter().filter_map(|(_, measured)| measured.ended.max()).reduce(f64::max);
    goals.push(ClusterGoal {
        name: "open connections after their policy is deleted, the last".to_owned(),
        bound: Bound::AtMost(1.0),
        unit: "s",
        measured: ended,
        osm: Some(osm::CONNECTIONS_ENDED),
    });
    goals.extend(memory(results));
    goals.extend(creation(results));
    goals.extend(routes::goals(results));
    goals
}

/// Policy changes, for each number of pods.
fn changes(results: &ClusterResults) -> Vec<ClusterGoal> {
    let mut populations: Vec<Population> = Vec::new();
    for population in results.memory.iter().map(|(at, _)| at).chain(results.changes.iter().map(|(at, _)| at))
    {
        if !populations.contains(population) {
            populations.push(*population);
        }
    }
    populations.sort_by_key(|population| (population.synthetic, population.pods));
    let mut goals = Vec::new();
    for population in populations.iter().copied() {
        // The slower of the two kinds of change counts.
        let slowest = |share: f64| {
            let all =
                at(&results.changes, population).filter_map(|measured| measured.from_return.quantile(share));
            all.reduce(f64::max)
        };
        let osm = results.changes.iter().find(|(at, _)| *at == population);
        let osm = osm.and_then(|(_, measured)| osm::change(measured.change, population.pods));
        let osm = osm.filter(|_| population.synthetic == 0);
        for (share, label, bound) in [(0.5, "p50", 0.02), (0.99, "p99", 0.1)] {
            goals.push(ClusterGoal {
                name: format!("policy change → effect at {population} pods, {label}"),
                bound: Bound::AtMost(bound),
                unit: "s",
                measured: slowest(share),
                osm: osm.map(|osm| if share > 0.9 { osm.max } else { osm.p50 }),
            });
        }
    }
    goals
}

/// Memory at the largest number of real pods.
fn memory(results: &ClusterResults) -> [ClusterGoal; 2] {
    let real = results.memory.iter().rfind(|(population, _)| population.synthetic == 0);
    let largest = real.map(|(population, _)| population.pods);
    let controller = ClusterGoal {
        name: match largest {
            Some(pods) => format!("controller's memory at {pods} pods"),
            None => "controller's memory".to_owned(),
        },
        bound: Bound::AtMost(60.0),
        unit: "MiB",
        measured: real.map(|(_, memory)| memory.controller / 1024.0),
        osm: largest.and_then(|pods| {
            let figures = osm::MEMORY.iter().find(|figures| figures.pods.abs_diff(pods) <= pods / 4)?;
            Some(figures.controller)
        }),
    };
    let sidecar = ClusterGoal {
        name: "a sidecar's memory, p50".to_owned(),
        bound: Bound::AtMost(10.0),
        unit: "MiB",
        measured: real.and_then(|(_, memory)| memory.sidecars.p50()).map(|kib| kib / 1024.0),
        osm: Some(60.0),
    };
    [controller, sidecar]
}

/// What injection adds to the creation of a pod.
fn creation(results: &ClusterResults) -> [ClusterGoal; 2] {
    let call = ClusterGoal {
        name: "injection adds to the create call, difference of medians".to_owned(),
        bound: Bound::AtMost(10.0),
        unit: "ms",
        measured: added(&results.creation, |creation| &creation.call).map(|seconds| seconds * 1000.0),
        osm: Some(114.0),
    };
    let ready = ClusterGoal {
        name: "injection adds to Ready, difference of medians".to_owned(),
        bound: Bound::AtMost(1.0),
        unit: "s",
        measured: added(&results.creation, |creation| &creation.ready),
        osm: Some(2.0),
    };
    [call, ready]
}
