//! Changes of routes, and of policies among them, in the report: their table, and their goals.

use std::fmt::Write;

use super::goals::ClusterGoal;
use super::{cell, mebibytes, row};
use crate::cluster::results::{ClusterResults, RouteChangeFigures, RouteFigures};
use crate::report::{Bound, number};

/// Table of these changes; empty if none was measured.
pub(super) fn render(results: &ClusterResults) -> String {
    if results.routes.is_empty() {
        return String::new();
    }
    let mut text = "| change among routes → effect, seconds | routes (Services) | p50 / p90 / p99 / max | from the call's start: p50 / max | \
                    wrong answers |\n|---|---|---|---|---|\n"
        .to_owned();
    for measured in &results.routes {
        let load = &measured.load;
        let rate = number(load.requests as f64 / load.seconds.max(f64::MIN_POSITIVE), 0);
        let loaded = format!("under {rate} requests/s (p99 {} ms)", number(load.p99 * 1000.0, 1));
        text += &changes_row("a route, without load", measured, &measured.quiet);
        text += &changes_row(&format!("a route, {loaded}"), measured, &measured.loaded);
        for (policy, changes) in &measured.policies {
            text += &changes_row(&format!("{policy}, {loaded}"), measured, changes);
        }
        let _ = writeln!(
            text,
            "| the load's requests, meanwhile | {} | – | – | {} of {} |",
            routes(measured),
            number(load.wrong as f64, 0),
            number(load.requests as f64, 0)
        );
    }
    text += "\n| the client's sidecar | RSS, MiB | its PSS, MiB | CPU, % of a core, while a route changes elsewhere |\n\
             |---|---|---|---|\n";
    for measured in &results.routes {
        let _ = writeln!(
            text,
            "| {} routes in use | {} | {} | {} |",
            number(measured.routes as f64, 0),
            mebibytes(Some(measured.sidecar_kib)),
            mebibytes(Some(measured.sidecar_proportional_kib)),
            cell(Some(measured.cpu_of_changes_elsewhere * 100.0), 2),
        );
    }
    text
}

/// The row of some changes.
fn changes_row(name: &str, measured: &RouteFigures, changes: &RouteChangeFigures) -> String {
    let figures = &changes.from_return;
    format!(
        "| {name} | {} | {} | {} | {} of {} |\n",
        routes(measured),
        row(&[figures.p50(), figures.quantile(0.9), figures.quantile(0.99), figures.max()], 3),
        row(&[changes.from_start.p50(), changes.from_start.max()], 3),
        changes.wrong,
        changes.probes,
    )
}

/// The number of routes, and of their Services.
fn routes(measured: &RouteFigures) -> String {
    format!("{} ({})", number(measured.routes as f64, 0), number(measured.services as f64, 0))
}

/// Goals: how soon a change takes effect at each number of routes, with and without load, and that no answer is wrong;
/// what most routes cost.
pub(super) fn goals(results: &ClusterResults) -> Vec<ClusterGoal> {
    let mut goals = Vec::new();
    for measured in &results.routes {
        let slowest = |share| {
            measured.changes().filter_map(|changes| changes.from_return.quantile(share)).reduce(f64::max)
        };
        let at = format!("at {} routes, without and under load", number(measured.routes as f64, 0));
        let effect = |label: &str, bound, share| {
            let name = format!("route or policy change → effect {at}, {label}");
            goal(name, bound, "s", slowest(share))
        };
        goals.extend([effect("p50", 0.02, 0.5), effect("p99", 0.1, 0.99)]);
    }
    let Some(most) = results.routes.last() else { return goals };
    let wrong: f64 = results.routes.iter().map(RouteFigures::wrong).sum();
    goals.push(goal("wrong answers while routes and policies change".to_owned(), 0.0, "", Some(wrong)));
    let count = number(most.routes as f64, 0);
    let memory = most.sidecar_kib * 1024.0 / 1e6;
    goals.push(goal(format!("a sidecar's memory with {count} routes in use"), 40.0, "MB", Some(memory)));
    let cpu = results.routes.iter().map(|measured| measured.cpu_of_changes_elsewhere * 100.0);
    let name = "a sidecar's CPU while a route a second changes elsewhere".to_owned();
    goals.push(goal(name, 1.0, "% of a core", cpu.reduce(f64::max)));
    goals
}

/// A goal with an upper bound.
fn goal(name: String, bound: f64, unit: &'static str, measured: Option<f64>) -> ClusterGoal {
    ClusterGoal { name, bound: Bound::AtMost(bound), unit, measured, osm: None }
}

impl RouteFigures {
    /// All changes.
    fn changes(&self) -> impl Iterator<Item = &RouteChangeFigures> {
        [&self.quiet, &self.loaded].into_iter().chain(self.policies.iter().map(|(_, changes)| changes))
    }

    /// All wrong answers.
    fn wrong(&self) -> f64 {
        let of_changes: usize = self.changes().map(|changes| changes.wrong).sum();
        of_changes as f64 + self.load.wrong as f64
    }
}
