//! `tidegate bug-report`: collects what is needed to diagnose a problem, without secrets.
//!
//! Secrets are listed by name only, the apps' environment and arguments are left out, and every file passes through
//! [`redact`] before it is written.
//!
//! The report is a folder of text files, in an archive or on disk: `versions.yaml` and `check.txt`, `objects/`,
//! `control-plane/`, `sidecars/`, `events/`, and `missing.txt` with what could not be collected. One failed request
//! never ends the collection, because a report is wanted most when something is broken.

mod archive;
mod collect;
mod redact;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use clap::Args;
use clap_complete::ArgValueCandidates;
use serde::Serialize;

use super::client::ClusterOptions;
use crate::candidates;
use crate::output::print;

/// Flags of `tidegate bug-report`.
#[derive(Args, Debug)]
pub(crate) struct BugReportOptions {
    /// Where to write it: an archive if the name ends with .tar.gz or .tgz, otherwise a new folder [default:
    /// tidegate-bug-report-TIME.tar.gz]
    #[arg(short, long = "output", visible_alias = "out-file", value_name = "FILE")]
    output: Option<PathBuf>,
    /// Sidecars of these namespaces, separated by commas
    #[arg(short, long = "namespaces", visible_alias = "app-namespaces", value_name = "NAMESPACE", value_delimiter = ',',
          add = ArgValueCandidates::new(candidates::namespaces))]
    namespaces: Vec<String>,
    /// Sidecars of these Pods, as NAMESPACE/NAME, separated by commas
    #[arg(long = "pods", visible_alias = "app-pods", value_name = "POD", value_delimiter = ',', value_parser = parse_pod)]
    pods: Vec<(String, String)>,
    /// Every sidecar [default without --namespaces and --pods: the first 20]
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Files of a report, by their path in it, and what could not be collected.
#[derive(Debug, Default)]
pub(crate) struct BugReport {
    files: Vec<(String, String)>,
    missing: Vec<String>,
}

/// Which sidecars to include.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    namespaces: Vec<String>,
    pods: Vec<(String, String)>,
    all: bool,
}

/// Runs the command. What cannot be collected is listed in the report; it is not a failure.
pub(crate) async fn run(options: BugReportOptions) -> anyhow::Result<ExitCode> {
    let output = options.output.unwrap_or_else(default_name);
    ensure!(!output.exists(), "--output {}: already exists", output.display());
    let cluster = options.cluster.connect().await?;
    let choice = Choice { namespaces: options.namespaces, pods: options.pods, all: options.all };
    let report = collect::everything(&cluster, &choice).await;
    let (files, missing) = (report.files.len(), report.missing.len());
    archive::write(&output, report).with_context(|| format!("--output {}", output.display()))?;
    if missing > 0 {
        eprintln!("{missing} items could not be collected; missing.txt in the report lists them");
    }
    print(format!("{files} files in {}; review them before you share them\n", output.display()).as_bytes())
}

impl BugReport {
    /// Adds a file, with secrets redacted.
    fn add(&mut self, path: impl Into<String>, text: &str) {
        self.files.push((path.into(), redact::text(text)));
    }

    /// Adds a value as YAML.
    fn add_yaml(&mut self, path: impl Into<String>, value: &impl Serialize) {
        let path = path.into();
        match serde_saphyr::to_string(value) {
            Ok(text) => self.add(path, &text),
            Err(error) => self.miss(&path, &error),
        }
    }

    /// Records what could not be collected.
    fn miss(&mut self, what: &str, error: &dyn std::fmt::Display) {
        self.missing.push(redact::text(&format!("{what}: {error:#}")));
    }
}

/// A name with the time in it, without colons, which some file systems do not allow.
fn default_name() -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    format!("tidegate-bug-report-{}.tar.gz", time.replace(':', "-")).into()
}

/// The value parser of `--pods`.
fn parse_pod(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(format!("{text:?} does not have the form NAMESPACE/NAME")),
    }
}

#[cfg(test)]
mod tests;
