//! `tidegate validate`: everything that is wrong in a folder, at once.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tidegate_controller::source::folder::FolderSource;
use tidegate_controller::source::{Problem, ProblemSeverity};
use tidegate_controller::{Index, PolicyStatus};

use crate::output::{OutputFormat, print_as};

/// Flags of `tidegate validate`.
#[derive(Args, Debug)]
pub(crate) struct ValidateOptions {
    /// Folder of manifests.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    folder: PathBuf,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
}

#[derive(Serialize)]
struct Report {
    problems: Vec<Problem>,
    policies: Vec<PolicyStatus>,
}

/// Exits with 1 if there is an error; warnings alone are no failure.
pub(crate) fn run(options: &ValidateOptions) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(options.folder.is_dir(), "--folder: {:?} is not a folder", options.folder);
    let loaded = FolderSource::new(&options.folder).load();
    let index = Index::of(loaded.changes);
    let report = Report { problems: loaded.problems, policies: tidegate_controller::status::all(&index) };
    let is_error = report.problems.iter().any(|problem| problem.severity == ProblemSeverity::Error)
        || report.policies.iter().any(|policy| policy.current_status == "error");
    print_as(options.output, &report, text)?;
    Ok(if is_error { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(report: &Report) -> String {
    let mut text: String = report.problems.iter().map(|problem| format!("{problem}\n")).collect();
    if !text.is_empty() {
        text.push('\n');
    }
    let rows: Vec<Vec<String>> = report.policies.iter().map(crate::policy::row).collect();
    text + &crate::policy::statuses(&rows)
}
