//! The Markdown table: a row per figure, a column per target, medians over the rounds.

use super::Results;
use super::metrics::Metric;

/// Marks figures that are limited by the load.
const BOUND_BY_LOAD: &str = "‡";

/// The table in Markdown.
pub(super) fn render(results: &Results) -> String {
    let targets = results.targets();
    let mut versions: Vec<_> = results.versions.values().cloned().collect();
    // One program may stand for two targets, side by side.
    versions.dedup();
    let mut text = format!(
        "{}, {}, {} round{} of {} s. {}.\n\n",
        results.machine.processor,
        results.machine.kernel,
        results.rounds.len(),
        if results.rounds.len() == 1 { "" } else { "s" },
        results.settings.seconds,
        versions.join(", "),
    );
    text += "| |";
    for target in &targets {
        text += &format!(" {target} |");
    }
    text += "\n|---|";
    text += &"---:|".repeat(targets.len());
    text += "\n";
    let mut marked = false;
    for metric in Metric::all(&results.settings) {
        text += &format!("| {} |", metric.label(&results.settings));
        for target in targets.iter().copied() {
            let figure = metric.median(results, target);
            text += &format!(" {}", figure.map_or("–".to_owned(), |figure| number(figure, metric.digits())));
            if metric.bound_by_load(results, target) {
                marked = true;
                text += &format!(" {BOUND_BY_LOAD}");
            }
            text += " |";
        }
        text += "\n";
    }
    if marked {
        text += &format!(
            "\n{BOUND_BY_LOAD} the proxy used less than 90 % of its core: client, app or the number of connections \
             set this limit.\n"
        );
    }
    for error in results.errors() {
        text += &format!("\n**Failed requests:** {error}\n");
    }
    text
}

/// With thousands separators: 12,345.6.
pub(crate) fn number(figure: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", figure.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if figure < 0.0 { "−" } else { "" };
    format!("{sign}{grouped}{fraction}")
}
