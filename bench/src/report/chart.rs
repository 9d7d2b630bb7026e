//! The chart: one panel of bars for each main row of the table.

use super::Results;
use super::metrics::{MAIN_CONNECTIONS, Metric, Quantile};
use super::table::number;
use crate::targets::Target;

/// Width of a panel in pixels.
const PANEL_WIDTH: usize = 400;
const BAR_HEIGHT: usize = 18;
const BAR_STEP: usize = 26;
const TITLE_HEIGHT: usize = 30;
const LABEL_WIDTH: usize = 84;
const FIGURE_WIDTH: usize = 70;
const MARGIN: usize = 16;
const COLUMNS: usize = 2;

/// The chart as SVG.
pub(super) fn render(results: &Results) -> String {
    let panels = panels(results);
    let panel_height = TITLE_HEIGHT + results.targets().len() * BAR_STEP + MARGIN;
    let width = COLUMNS * PANEL_WIDTH + MARGIN;
    let height = panels.len().div_ceil(COLUMNS) * panel_height + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (index, metric) in panels.into_iter().enumerate() {
        let x = (index % COLUMNS) * PANEL_WIDTH + MARGIN;
        let y = (index / COLUMNS) * panel_height + MARGIN;
        svg += &panel(results, metric, x, y);
    }
    svg + "</svg>\n"
}

/// The rows of the table that have a panel, if they were measured.
fn panels(results: &Results) -> Vec<Metric> {
    let mut panels = vec![
        Metric::Throughput { connections: MAIN_CONNECTIONS },
        Metric::CpuClosed { connections: MAIN_CONNECTIONS },
    ];
    if let Some(rate) = results.settings.rates.first().copied() {
        panels.push(Metric::LatencyMicros { rate, quantile: Quantile::P50 });
        panels.push(Metric::LatencyMicros { rate, quantile: Quantile::P99 });
    }
    panels.extend([
        Metric::Handshakes,
        Metric::CpuMillisPerHandshake,
        Metric::FreshMegabytes,
        Metric::KibPerIdleConnection,
    ]);
    let targets = results.targets();
    panels.retain(|metric| targets.iter().any(|target| metric.median(results, *target).is_some()));
    panels
}

/// One panel: a title, and a bar for each target.
fn panel(results: &Results, metric: Metric, x: usize, y: usize) -> String {
    let figures: Vec<(Target, f64)> = results
        .targets()
        .into_iter()
        .filter_map(|target| Some((target, metric.median(results, target)?)))
        .collect();
    let largest = figures.iter().map(|(_, figure)| *figure).fold(f64::MIN_POSITIVE, f64::max);
    let room = (PANEL_WIDTH - LABEL_WIDTH - FIGURE_WIDTH - MARGIN) as f64;
    let mut svg = format!(
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}</text>\n",
        y + TITLE_HEIGHT / 2,
        metric.label(&results.settings)
    );
    for (row, (target, figure)) in figures.into_iter().enumerate() {
        let top = y + TITLE_HEIGHT + row * BAR_STEP;
        let baseline = top + BAR_HEIGHT - 5;
        let bar = x + LABEL_WIDTH;
        let length = (figure.max(0.0) / largest * room).max(1.0);
        svg += &format!("<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{target}</text>\n", bar - 6);
        svg += &format!(
            "<rect x=\"{bar}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{}\"/>\n",
            colour(target)
        );
        svg += &format!(
            "<text x=\"{:.1}\" y=\"{baseline}\">{}</text>\n",
            bar as f64 + length + 6.0,
            number(figure, metric.digits())
        );
    }
    svg
}

/// Colour of a target's bars.
fn colour(target: Target) -> &'static str {
    match target {
        Target::Direct => "#bbbbbb",
        Target::Tidegate => "#1b7f8c",
        Target::TidegateTcp => "#7fb8bf",
        Target::TidegateLog => "#2f8c98",
        Target::TidegateTraces => "#4aa0aa",
        Target::Tidegate100Rules => "#3f97a3",
        Target::Tidegate1000Rules => "#5ca8b2",
        Target::Tidegate3Entries => "#3f97a3",
        Target::Tidegate1000Entries => "#5ca8b2",
        Target::Tidegate10000Entries => "#7fb8bf",
        Target::Tidegate1000Hosts => "#9cc9cf",
        Target::Tidegate10000Hosts => "#b9d9dd",
        Target::Nginx => "#7a9e5f",
        Target::NginxLog => "#9ab885",
        Target::Haproxy => "#8c7fb0",
        Target::Envoy => "#c9905a",
        Target::EnvoyLog => "#d5a97f",
        Target::EnvoyTcp => "#e2c3a3",
    }
}
