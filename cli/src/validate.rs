//! `tidegate validate`: reports all errors in a folder at once.
//!
//! It reads the folder as the controller would, once, and prints the problems of the files followed by the status of
//! each policy. So what is reported here is what would be in force.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tidegate_controller::source::folder::FolderSource;
use tidegate_controller::source::{ProblemSeverity, SourceProblem};
use tidegate_controller::{Index, PolicyStatus};

use crate::output::{OutputFormat, print_as};

/// Flags of `tidegate validate`.
#[derive(Args, Debug)]
pub(crate) struct ValidateOptions {
    /// Folder of manifests.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    folder: PathBuf,
    /// The folder is complete: Services, endpoints, Pods and Secrets that are named but missing are errors, not warnings.
    #[arg(long)]
    complete: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
}

/// What is printed; JSON and YAML have both lists.
#[derive(Serialize)]
struct ValidationReport {
    problems: Vec<SourceProblem>,
    policies: Vec<PolicyStatus>,
}

/// Exits with 1 if there is an error; warnings alone do not count. A missing object that a policy names is a warning,
/// unless the folder is declared complete.
pub(crate) fn run(options: &ValidateOptions) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(options.folder.is_dir(), "--folder: {:?} is not a folder", options.folder);
    let loaded = FolderSource::new(&options.folder).load();
    let index = Index::of(loaded.changes);
    let mut policies = tidegate_controller::status::all(&index);
    if !options.complete {
        policies.iter_mut().filter(|policy| policy.is_incomplete).for_each(leave_open);
    }
    let report = ValidationReport { problems: loaded.problems, policies };
    let is_error = report.problems.iter().any(|problem| problem.severity == ProblemSeverity::Error)
        || report.policies.iter().any(|policy| policy.current_status == "error");
    print_as(options.output, &report, text)?;
    Ok(if is_error { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Folders may be partial: what a policy names may be in another folder, or be created by the cluster.
fn leave_open(policy: &mut PolicyStatus) {
    policy.current_status = "unknown";
    let missing = std::mem::take(&mut policy.reason);
    policy.reason = "it names objects that are not in this folder".to_owned();
    policy.warnings.insert(0, missing);
}

/// Compilers' lines for problems, then the table of `tidegate policy list`.
fn text(report: &ValidationReport) -> String {
    let mut text: String = report.problems.iter().map(|problem| format!("{problem}\n")).collect();
    if !text.is_empty() {
        text.push('\n');
    }
    let rows: Vec<Vec<String>> = report.policies.iter().map(crate::policy::row).collect();
    text + &crate::policy::statuses(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: policy.openservicemesh.io/v1alpha1
kind: IngressBackend
metadata: {name: web, namespace: shop}
spec:
  backends: [{name: cart, port: {number: 8080, protocol: http}}]
  sources: [{kind: Service, name: ingress, namespace: ingress}]
";
    const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, targetPort: 9090}]}
";

    fn exit(documents: &str, complete: bool) -> ExitCode {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), documents).unwrap();
        let folder = folder.path().to_owned();
        run(&ValidateOptions { folder, complete, output: OutputFormat::Json }).unwrap()
    }

    #[test]
    fn what_a_folder_does_not_hold_is_a_warning_unless_it_is_said_to_be_complete() {
        assert_eq!(exit(POLICY, false), ExitCode::SUCCESS);
        assert_eq!(exit(POLICY, true), ExitCode::FAILURE);
    }

    #[test]
    fn what_the_folder_shows_to_be_wrong_is_an_error_either_way() {
        let ranges = POLICY
            .replace("kind: Service, name: ingress, namespace: ingress", "kind: IPRange, name: 10.0.0.0/8");
        assert_eq!(exit(&format!("{ranges}{SERVICE}"), false), ExitCode::FAILURE, "the port is another one");
        assert_eq!(
            exit(&POLICY.replace("http", "grpc"), false),
            ExitCode::FAILURE,
            "the protocol is invalid"
        );
        let named = SERVICE.replace("9090", "web");
        assert_eq!(
            exit(&format!("{ranges}{named}"), false),
            ExitCode::SUCCESS,
            "Pods say which number it is"
        );
    }
}
