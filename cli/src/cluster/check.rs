//! `tidegate check`: checks the cluster, the control plane and the workloads.
//!
//! Each check has an id that is stable between versions, and a hint that says what to do. [`before`] holds the checks
//! before an installation, [`control_plane`] and [`webhooks`] those after it, [`data_plane`], [`protocols`] and [`policies`]
//! those of workloads, [`grpc_servers`] those of the servers that sidecars call, [`not_enforced`] those of other meshes'
//! policies.
//!
//! Checks run in an order in which a failure that explains the others comes first, and those that depend on it are
//! left out. Only requests that read are sent, apart from access reviews, which the API server does not store.

mod before;
mod control_plane;
mod data_plane;
mod egress;
mod gateway_routes;
mod grpc_servers;
mod not_enforced;
mod objects;
mod policies;
mod protocols;
mod traffic_targets;
mod webhooks;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

pub(crate) use self::control_plane::{bundle as trust_bundle, gateway_secret, mesh_config};
use super::client::{Cluster, ClusterOptions};
use crate::helm::HelmOptions;
use crate::output::{OutputFormat, counted, print_as, printable};

/// How often to retry while waiting.
const INTERVAL: Duration = Duration::from_secs(2);
/// Number of objects that a message names.
const NAMED: usize = 5;

/// Flags of `tidegate check`.
#[derive(Args, Debug)]
pub(crate) struct CheckOptions {
    /// Check whether the cluster is ready for an installation
    #[arg(long, conflicts_with = "proxy")]
    pre: bool,
    /// Check only workloads and policies
    #[arg(long)]
    proxy: bool,
    /// Retry until nothing fails, for at most this long
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
    #[command(flatten)]
    helm: HelmOptions,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// The result of all checks.
#[derive(Debug, Serialize)]
struct CheckReport {
    status: CheckSeverity,
    checks: Vec<CheckFinding>,
    #[serde(skip)]
    control_plane: String,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct CheckFinding {
    /// Never changes.
    id: &'static str,
    category: &'static str,
    /// What should be true.
    title: &'static str,
    status: CheckSeverity,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Ordered: the report has the worst of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckSeverity {
    Ok,
    /// Works, but is probably unintended.
    Warning,
    Failed,
}

/// How a check ended.
#[derive(Debug, PartialEq)]
struct CheckOutcome {
    severity: CheckSeverity,
    message: Option<String>,
    /// Replaces the check's own hint.
    hint: Option<String>,
}

/// A check: what should be true, and what to do if it is not. In the hint, `{control-plane}` stands for the control
/// plane's namespace.
#[derive(Clone, Copy, Debug)]
struct Check {
    id: &'static str,
    category: &'static str,
    title: &'static str,
    hint: &'static str,
}

/// Exits with 1 if a check failed; warnings alone do not count.
pub(crate) async fn run(options: CheckOptions) -> anyhow::Result<ExitCode> {
    let cluster = options.cluster.connect().await?;
    let deadline = Instant::now() + options.wait;
    let report = loop {
        let mut report = CheckReport::of(&cluster, options.pre, options.proxy).await;
        if options.pre {
            before::helm(&options.helm, &mut report);
        }
        if report.status < CheckSeverity::Failed || Instant::now() >= deadline {
            break report;
        }
        let failed = report.checks.iter().filter(|finding| finding.status == CheckSeverity::Failed).count();
        eprintln!("waiting: {} failed", counted(failed, "check"));
        tokio::time::sleep_until(deadline.min(Instant::now() + INTERVAL)).await;
    };
    print_as(options.output, &report, |report| text(report, has_colour()))?;
    Ok(if report.status == CheckSeverity::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The result of all checks after an installation, as a table.
pub(crate) async fn as_text(cluster: &Cluster) -> String {
    text(&CheckReport::of(cluster, false, false).await, false)
}

impl CheckReport {
    /// Runs the checks: with `pre` those before an installation, with `proxy` without those of the control plane.
    async fn of(cluster: &Cluster, pre: bool, proxy: bool) -> Self {
        let mut report = Self {
            status: CheckSeverity::Ok,
            checks: Vec::new(),
            control_plane: cluster.control_plane.clone(),
        };
        before::api(cluster, &mut report).await;
        // If the API server is unreachable, every other check would fail for the same reason.
        if report.status == CheckSeverity::Failed && !report.is_reachable() {
            return report;
        }
        if pre {
            before::installation(cluster, &mut report).await;
            return report;
        }
        // Without a control plane, every other check would fail for the same reason.
        if !control_plane::is_there(cluster, &mut report).await {
            return report;
        }
        if !proxy {
            control_plane::check(cluster, &mut report).await;
            webhooks::check(cluster, &mut report).await;
        }
        data_plane::check(cluster, &mut report).await;
        policies::check(cluster, &mut report).await;
        traffic_targets::check(cluster, &mut report).await;
        gateway_routes::check(cluster, &mut report).await;
        grpc_servers::check(cluster, &mut report).await;
        egress::check(cluster, &mut report).await;
        not_enforced::check(cluster, &mut report).await;
        report
    }

    /// Adds a check's outcome; an error is a failure.
    fn add(&mut self, check: &Check, outcome: anyhow::Result<CheckOutcome>) {
        let outcome = outcome.unwrap_or_else(|error| CheckOutcome::failed(format!("{error:#}")));
        self.status = self.status.max(outcome.severity);
        self.checks.push(CheckFinding {
            id: check.id,
            category: check.category,
            title: check.title,
            status: outcome.severity,
            message: outcome.message,
            hint: (outcome.severity > CheckSeverity::Ok).then(|| match outcome.hint {
                Some(hint) => hint,
                None => check.hint.replace("{control-plane}", &self.control_plane),
            }),
        });
    }

    /// Whether the API server answered; true as well before that was checked.
    fn is_reachable(&self) -> bool {
        let reached = self.checks.iter().find(|finding| finding.id == before::REACHABLE.id);
        reached.is_none_or(|finding| finding.status == CheckSeverity::Ok)
    }
}

impl CheckOutcome {
    /// Passed, without a message.
    fn ok() -> Self {
        Self { severity: CheckSeverity::Ok, message: None, hint: None }
    }

    /// Passed, with a fact worth showing, such as a version.
    fn ok_with(message: impl Into<String>) -> Self {
        Self { severity: CheckSeverity::Ok, message: Some(message.into()), hint: None }
    }

    /// Not passed, but the mesh works.
    fn warning(message: impl Into<String>) -> Self {
        Self { severity: CheckSeverity::Warning, message: Some(message.into()), hint: None }
    }

    /// Not passed; the command exits with 1.
    fn failed(message: impl Into<String>) -> Self {
        Self { severity: CheckSeverity::Failed, message: Some(message.into()), hint: None }
    }

    /// Sets a hint for this outcome.
    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Failed if there are names, otherwise passed.
    fn failed_for(names: &[String]) -> Self {
        if names.is_empty() { Self::ok() } else { Self::failed(enumerate(names)) }
    }

    /// A warning if there are names, otherwise passed.
    fn warning_for(names: &[String]) -> Self {
        if names.is_empty() { Self::ok() } else { Self::warning(enumerate(names)) }
    }
}

/// The first names, and the number of the others.
fn enumerate(names: &[String]) -> String {
    let mut text = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = names.len().checked_sub(NAMED) {
        text += &format!("; and {more} more");
    }
    text
}

/// Whole days until a time; `None` if it has passed.
fn days_until(time: SystemTime) -> Option<u64> {
    time.duration_since(SystemTime::now()).ok().map(|left| left.as_secs() / (24 * 60 * 60))
}

/// Whether standard output is a terminal that shows colours (`NO_COLOR`, https://no-color.org; `TERM=dumb`).
fn has_colour() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// The report as text: a heading for each category, a line for each check, and the hint below a check that did not
/// pass.
fn text(report: &CheckReport, colour: bool) -> String {
    let symbol = |severity: CheckSeverity| match (severity, colour) {
        (CheckSeverity::Ok, false) => "✓",
        (CheckSeverity::Warning, false) => "‼",
        (CheckSeverity::Failed, false) => "×",
        (CheckSeverity::Ok, true) => "\u{1b}[32m✓\u{1b}[0m",
        (CheckSeverity::Warning, true) => "\u{1b}[33m‼\u{1b}[0m",
        (CheckSeverity::Failed, true) => "\u{1b}[31m×\u{1b}[0m",
    };
    let mut text = String::new();
    let mut category = "";
    for finding in &report.checks {
        if finding.category != category {
            category = finding.category;
            let gap = if text.is_empty() { "" } else { "\n" };
            text += &format!("{gap}{category}\n{}\n", "-".repeat(category.chars().count()));
        }
        text += &format!("{} {}", symbol(finding.status), finding.title);
        match (finding.message.as_deref().map(printable), finding.hint.as_deref()) {
            (Some(message), None) => text += &format!(": {message}\n"),
            (message, Some(hint)) => {
                let message = message.unwrap_or_else(|| "no".to_owned());
                text += &format!("\n    {}: {message}\n    hint: {hint}\n", finding.id);
            }
            (None, None) => text.push('\n'),
        }
    }
    let summary = match report.status {
        CheckSeverity::Ok => "all checks passed",
        CheckSeverity::Warning => "all checks passed, some with warnings",
        CheckSeverity::Failed => "some checks failed",
    };
    text + &format!("\n{} {summary}\n", symbol(report.status))
}

#[cfg(test)]
mod tests;
