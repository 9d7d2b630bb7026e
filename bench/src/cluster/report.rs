//! Formats the results of a cluster run: tables with Open Service Mesh's figures, and goals reached or not.

mod goals;
mod osm;
mod routes;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::changes::PolicyChange;
use super::results::{ClusterResults, Creation, Figures, Population};
use crate::report::{number, write_section};

/// Writes cluster.json and cluster.md to `folder`, and the tables to standard output.
pub(super) fn write(results: &ClusterResults, folder: &Path, write_readme: bool) -> Result<()> {
    fs::create_dir_all(folder)?;
    let markdown = render(results);
    fs::write(folder.join("cluster.json"), serde_json::to_string_pretty(results)?)?;
    fs::write(folder.join("cluster.md"), &markdown)?;
    println!("{markdown}");
    if write_readme {
        write_section("cluster", &markdown)?;
    }
    Ok(())
}

/// The whole report in Markdown.
fn render(results: &ClusterResults) -> String {
    let parts = [
        header(results),
        goals::render(results),
        changes(results),
        connections(results),
        memory(results),
        creation(results),
        routes::render(results),
    ];
    let mut text = parts.join("\n");
    for failure in &results.failures {
        // A failure's text may have several lines.
        let _ = write!(text, "\n**Not measured:** {}\n", failure.replace('\n', " "));
    }
    text
}

/// The machine, the version and the length of the run.
fn header(results: &ClusterResults) -> String {
    let settings = &results.settings;
    let mut text = format!(
        "{}, {}. Tidegate {}, in {} s.\n",
        results.machine.processor, results.machine.kernel, settings.version, results.seconds
    );
    if settings.is_debug {
        text += "\n**These programs were built without optimisation**: they are slower and larger than what users run.\n";
    }
    text
}

/// Table of changes of policies.
fn changes(results: &ClusterResults) -> String {
    let mut text = "| policy change → effect, seconds | meshed pods | p50 / p90 / max (min) | from the call's start: p50 / max | \
                    afterwards old / neither | OSM (pods): p50 / max |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for (population, measured) in &results.changes {
        let osm = osm::change(measured.change, population.pods);
        let _ = writeln!(
            text,
            "| {} | {population} | {} ({}) | {} | {} / {} of {} | {} |",
            measured.change,
            row(
                &[measured.from_return.p50(), measured.from_return.quantile(0.9), measured.from_return.max()],
                3
            ),
            cell(measured.from_return.min(), 3),
            row(&[measured.from_start.p50(), measured.from_start.max()], 3),
            measured.stale,
            measured.odd,
            measured.probes,
            osm.map_or("–".to_owned(), |osm| format!("({}) {:.2} / {:.2}", osm.pods, osm.p50, osm.max)),
        );
    }
    text
}

/// Table of open connections whose policy was deleted.
fn connections(results: &ClusterResults) -> String {
    let mut text =
        "| open connections, policy deleted | meshed pods | ended after, s: p50 / max | still open | \
                    answers 200 after 1 s | OSM |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for (population, measured) in &results.connections {
        let osm = match measured.change {
            PolicyChange::Address => format!("{:.1}", osm::CONNECTIONS_ENDED),
            PolicyChange::Principal => "–".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} {} | {population} | {} | {} | {} | {osm} |",
            measured.ended.0.len(),
            match measured.change {
                PolicyChange::Address => "http",
                PolicyChange::Principal => "https",
            },
            row(&[measured.ended.p50(), measured.ended.max()], 2),
            measured.still_open,
            measured.late_answers,
        );
    }
    text
}

/// Table of memory, with Open Service Mesh's rows.
fn memory(results: &ClusterResults) -> String {
    let mut text =
        "| RSS, MiB | controller | cert-manager | injector | sidecar p50 (min–max) | its PSS p50 |\n\
                    |---|---|---|---|---|---|\n"
            .to_owned();
    for (population, measured) in &results.memory {
        let _ = writeln!(
            text,
            "| {population} meshed pods | {} | {} | {} | {} ({}–{}) | {} |",
            mebibytes(Some(measured.controller)),
            mebibytes(Some(measured.cert_manager)),
            mebibytes(Some(measured.injector)),
            mebibytes(measured.sidecars.p50()),
            mebibytes(measured.sidecars.min()),
            mebibytes(measured.sidecars.max()),
            mebibytes(measured.sidecars_proportional.p50()),
        );
    }
    for osm in osm::MEMORY {
        let _ = writeln!(
            text,
            "| OSM, {} | {:.1} | – | {:.1} | {:.1} ({:.1}–{:.1}) | {:.1} |",
            osm.pods, osm.controller, osm.injector, osm.envoy, osm.envoy_min, osm.envoy_max, osm.envoy_pss,
        );
    }
    text
}

/// Table of the creation of pods.
fn creation(results: &ClusterResults) -> String {
    let mut text =
        "| creation of a pod, seconds | create call: p50 / p90 / max | create → Ready: p50 / p90 / max | \
                    OSM: call p50, Ready p50 |\n|---|---|---|---|\n"
            .to_owned();
    for measured in &results.creation {
        let triple = |figures: &Figures| row(&[figures.p50(), figures.quantile(0.9), figures.max()], 3);
        let osm = osm::creation(measured.is_injected, measured.has_probe);
        let _ = writeln!(
            text,
            "| {}{} | {} | {} | {:.3}, {:.2} |",
            if measured.is_injected { "injected" } else { "not injected" },
            if measured.has_probe { ", http readiness probe" } else { "" },
            triple(&measured.call),
            triple(&measured.ready),
            osm.call,
            osm.ready,
        );
    }
    text
}

/// What injection adds to the median, without or with a readiness probe, whichever is larger; `None` unless all kinds
/// were measured.
fn added(creation: &[Creation], of: impl Fn(&Creation) -> &Figures) -> Option<f64> {
    let median = |is_injected: bool, has_probe: bool| {
        let mut all = creation.iter();
        of(all.find(|one| one.is_injected == is_injected && one.has_probe == has_probe)?).p50()
    };
    let differences = [false, true].map(|probe| Some(median(true, probe)? - median(false, probe)?));
    let [plain, probed] = differences;
    Some(plain?.max(probed?))
}

/// The measurements at this number of pods.
fn at<T>(measured: &[(Population, T)], population: Population) -> impl Iterator<Item = &T> {
    measured.iter().filter(move |(at, _)| *at == population).map(|(_, measured)| measured)
}

/// Figures separated by slashes.
fn row(figures: &[Option<f64>], digits: usize) -> String {
    figures.iter().map(|figure| cell(*figure, digits)).collect::<Vec<_>>().join(" / ")
}

/// A figure in KiB, shown in MiB.
fn mebibytes(kib: Option<f64>) -> String {
    cell(kib.map(|kib| kib / 1024.0), 1)
}

/// A figure, or a dash if it was not measured.
fn cell(figure: Option<f64>, digits: usize) -> String {
    figure.map_or("–".to_owned(), |figure| number(figure, digits))
}
