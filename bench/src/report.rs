//! Formats the rounds of a run: JSON, a Markdown table, goals reached or not, an SVG chart.

mod chart;
mod goals;
mod metrics;
mod readme;
mod results;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use goals::{Bound, verdict};
pub(crate) use results::{ExtendedMeasures, ExtendedSettings, Machine, Measures, Results, RunSettings};
pub(crate) use table::number;

/// Flags of `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReportOptions {
    /// results.json or pair.json of an earlier run.
    #[arg(default_value_os_t = default_folder().join("results.json"))]
    results: PathBuf,
    /// Also put table and chart into bench/README.md.
    #[arg(long)]
    write_readme: bool,
}

/// Formats the results of an earlier run again.
pub(crate) fn main(options: ReportOptions) -> Result<()> {
    let json = fs::read_to_string(&options.results)
        .with_context(|| format!("cannot read {}", options.results.display()))?;
    let results: Results = serde_json::from_str(&json).context("not the JSON of a run")?;
    let folder = options.results.parent().unwrap_or(Path::new("."));
    write(&results, folder, options.write_readme)
}

/// Writes JSON, Markdown and chart to `folder`, named after the topology, and the table to standard output.
pub(crate) fn write(results: &Results, folder: &Path, write_readme: bool) -> Result<()> {
    fs::create_dir_all(folder)?;
    let name = results.settings.topology.report_name();
    let markdown = table::render(results) + "\n" + &goals::render(results);
    let svg = chart::render(results);
    fs::write(folder.join(format!("{name}.json")), serde_json::to_string_pretty(results)?)?;
    fs::write(folder.join(format!("{name}.md")), &markdown)?;
    fs::write(folder.join(format!("{name}.svg")), &svg)?;
    println!("{markdown}");
    if write_readme {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{name}.svg"));
        fs::write(&chart, &svg).with_context(|| format!("cannot write {}", chart.display()))?;
        let section = format!("{}\n\n![Chart of the table's main rows]({name}.svg)", markdown.trim());
        write_section(name, &section)?;
    }
    Ok(())
}

/// Replaces the text between the two markers of this name in bench/README.md.
pub(crate) fn write_section(name: &str, text: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(&path, readme::with_section(&readme, name, text)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// bench/out, which git ignores.
pub(crate) fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("out")
}

#[cfg(test)]
mod tests;
