//! `tidegate policy`: policy statuses from the controller.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tidegate_controller::PolicyStatus;

use crate::admin_target::AdminTarget;
use crate::output::{OutputFormat, print_as, table};

/// Heading of the table of statuses.
const HEADING: [&str; 6] = ["NAMESPACE", "KIND", "NAME", "STATUS", "REASON", "FILE"];

/// A status as it comes from a running controller.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedPolicy {
    kind: String,
    namespace: String,
    name: String,
    current_status: String,
    reason: String,
    /// Likely mistakes, which do not keep the policy from being in force.
    warnings: Vec<String>,
    /// Where it was read, such as `app.yaml:12`; only for a folder.
    file: Option<String>,
}

/// Prints the status of every policy.
pub(crate) async fn list(target: &AdminTarget, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let policies: Vec<ListedPolicy> = target.ask("/policies").await?;
    print_as(output, &policies, |policies| {
        let rows: Vec<Vec<String>> = policies
            .iter()
            .map(|policy| {
                cells(
                    [&policy.namespace, &policy.kind, &policy.name, &policy.current_status, &policy.reason],
                    &policy.warnings,
                    policy.file.as_deref(),
                )
            })
            .collect();
        statuses(&rows)
    })
}

/// The table of statuses. Objects of a cluster come from no file, so their table has no column for it.
pub(crate) fn statuses(rows: &[Vec<String>]) -> String {
    let has_files = rows.iter().any(|row| row.last().is_some_and(|file| !file.is_empty()));
    let columns = HEADING.len() - usize::from(!has_files);
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().take(columns).cloned().collect()).collect();
    table(&HEADING[..columns], &rows)
}

/// A row of the table of statuses.
pub(crate) fn row(policy: &PolicyStatus) -> Vec<String> {
    let fields = [&policy.namespace, policy.kind, &policy.name, policy.current_status, &policy.reason];
    cells(fields, &policy.warnings, policy.file.as_deref())
}

/// The cells of a row: the five fields, the warnings appended to the last of them, and the file.
fn cells<S: AsRef<str>>(fields: [S; 5], warnings: &[String], file: Option<&str>) -> Vec<String> {
    let mut row: Vec<String> = fields.iter().map(|field| field.as_ref().to_owned()).collect();
    if let Some(reason) = row.last_mut() {
        for warning in warnings {
            *reason += &format!("; warning: {warning}");
        }
    }
    row.push(file.unwrap_or_default().to_owned());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_of_files_is_there_where_objects_come_from_files() {
        let row = |file| cells(["shop", "IngressBackend", "a", "committed", "fine"], &[], file);
        assert_eq!(
            statuses(&[row(None)]),
            "NAMESPACE   KIND             NAME   STATUS      REASON\nshop        IngressBackend   a      committed   fine\n"
        );
        assert!(statuses(&[row(None), row(Some("a.yaml:1"))]).contains("REASON   FILE\n"));
    }
}
