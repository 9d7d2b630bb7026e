//! Tidegate's goals on a cluster, and whether they were reached.

use std::fmt::Write;

use super::{added, at, osm};
use crate::cluster::results::{ClusterResults, Figures, Population};
use crate::report::{Bound, verdict};

/// A bound on one figure.
struct Goal {
    name: String,
    bound: Bound,
    unit: &'static str,
    measured: Option<f64>,
    osm: Option<f64>,
}

pub(super) fn render(results: &ClusterResults) -> String {
    let mut text = "| goal | bound | measured | | OSM |\n|---|---|---:|---|---:|\n".to_owned();
    for Goal { name, bound, unit, measured, osm } in goals(results) {
        let (figure, verdict) = verdict(measured, bound);
        let osm = osm.map_or("–".to_owned(), |osm| format!("{osm}"));
        let _ = writeln!(text, "| {name} | {} {unit} | {figure} | {verdict} | {osm} |", bound.text());
    }
    text
}

fn goals(results: &ClusterResults) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut populations: Vec<Population> = Vec::new();
    for population in results.memory.iter().map(|(at, _)| at).chain(results.changes.iter().map(|(at, _)| at))
    {
        if !populations.contains(population) {
            populations.push(*population);
        }
    }
    populations.sort_by_key(|population| (population.synthetic, population.pods));
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
        for (share, label, bound) in [(0.5, "p50", 0.1), (0.99, "p99", 0.5)] {
            goals.push(Goal {
                name: format!("policy change → effect at {population} pods, {label}"),
                bound: Bound::AtMost(bound),
                unit: "s",
                measured: slowest(share),
                osm: osm.map(|osm| if share > 0.9 { osm.max } else { osm.p50 }),
            });
        }
    }
    let ended = results.connections.iter().filter_map(|(_, measured)| measured.ended.max()).reduce(f64::max);
    goals.push(Goal {
        name: "open connections after their policy is deleted, the last".to_owned(),
        bound: Bound::AtMost(1.0),
        unit: "s",
        measured: ended,
        osm: Some(osm::CONNECTIONS_ENDED),
    });
    let real = results.memory.iter().rfind(|(population, _)| population.synthetic == 0);
    let largest = real.map(|(population, _)| population.pods);
    goals.push(Goal {
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
    });
    goals.push(Goal {
        name: "a sidecar's memory, p50".to_owned(),
        bound: Bound::AtMost(10.0),
        unit: "MiB",
        measured: real.and_then(|(_, memory)| memory.sidecars.p50()).map(|kib| kib / 1024.0),
        osm: Some(60.0),
    });
    let milliseconds = |of: fn(&_) -> &Figures| added(&results.creation, of).map(|seconds| seconds * 1000.0);
    goals.push(Goal {
        name: "injection adds to the create call, difference of medians".to_owned(),
        bound: Bound::AtMost(10.0),
        unit: "ms",
        measured: milliseconds(|creation| &creation.call),
        osm: Some(114.0),
    });
    goals.push(Goal {
        name: "injection adds to Ready, difference of medians".to_owned(),
        bound: Bound::AtMost(1.0),
        unit: "s",
        measured: added(&results.creation, |creation| &creation.ready),
        osm: Some(2.0),
    });
    goals
}
