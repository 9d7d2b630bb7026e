//! `tidegate egress`: what workloads reach outside the mesh, as their sidecars have recorded it.

mod hosts;
mod manifests;
mod policies;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use futures_util::{StreamExt, stream};
use tidegate_core::contract::names::EGRESS_PATH;
use tidegate_sidecar::telemetry::egress::EgressReport;

use crate::admin_client::fetch;
use crate::candidates;
use crate::cluster::client::{Cluster, ClusterOptions};
use crate::output::{OutputFormat, counted, print, print_as};

/// How many sidecars are queried at a time.
const CONCURRENT: usize = 8;

/// What leaves the mesh.
#[derive(Subcommand, Debug)]
pub(crate) enum EgressCommand {
    /// Print ServiceEntries or Egresses that allow what workloads have reached outside the mesh, and nothing else.
    ///
    /// Each sidecar records the servers that its workload has reached since it started: SNI or Host, port, bytes, times.
    /// Comments say what would be refused if `enableEgress` was false now.
    Learn(EgressLearnOptions),
}

/// Flags of `tidegate egress learn`.
#[derive(Args, Debug)]
pub(crate) struct EgressLearnOptions {
    /// Only workloads of this namespace [default: all]
    #[arg(short, long, value_name = "NAMESPACE", add = ArgValueCandidates::new(candidates::namespaces))]
    namespace: Option<String>,
    /// Only workloads that run as this service account.
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Query the sidecar at this admin address instead of those of a cluster; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    admin_address: Vec<SocketAddr>,
    /// The kind of manifests.
    #[arg(long, value_enum, default_value = "service-entry")]
    kind: LearnedKind,
    /// What to print.
    #[arg(short, long, value_enum, default_value = "manifests")]
    output: LearnOutput,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Kinds of objects that allow what was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LearnedKind {
    /// Istio's ServiceEntry, for all workloads of a namespace.
    ServiceEntry,
    /// Open Service Mesh's Egress, for the workloads of a service account.
    Egress,
}

/// What `tidegate egress learn` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LearnOutput {
    /// Manifests to apply.
    Manifests,
    /// What was reached, as a table.
    Table,
    /// What was reached, as JSON.
    Json,
    /// What was reached, as YAML.
    Yaml,
}

/// What sidecars have reported.
#[derive(Debug, Default)]
struct Collected {
    reports: Vec<EgressReport>,
    /// Why the others have not.
    missing: Vec<String>,
}

/// Runs the command.
pub(crate) async fn run(command: EgressCommand) -> anyhow::Result<ExitCode> {
    let EgressCommand::Learn(options) = command;
    let collected = options.collect().await?;
    for reason in &collected.missing {
        eprintln!("warning: {reason}; what its workload has reached is missing");
    }
    let reports = options.wanted(&collected.reports);
    for report in reports.iter().filter(|report| report.unlisted > 0) {
        eprintln!(
            "warning: {} has reached more servers than its sidecar records; {} connections or requests are missing",
            report.workload, report.unlisted
        );
    }
    let hosts = hosts::of(&reports);
    let printed = match options.output {
        LearnOutput::Manifests => {
            let manifests = match options.kind {
                LearnedKind::ServiceEntry => manifests::text(&hosts),
                LearnedKind::Egress => policies::text(&hosts),
            }?;
            print((manifests::preface(&reports, &hosts) + &manifests).as_bytes())
        }
        LearnOutput::Table => print_as(OutputFormat::Table, &hosts, |hosts| hosts::table(hosts)),
        LearnOutput::Json => print_as(OutputFormat::Json, &hosts, |_| String::new()),
        LearnOutput::Yaml => print_as(OutputFormat::Yaml, &hosts, |_| String::new()),
    }?;
    if options.output == LearnOutput::Manifests {
        let open = hosts.iter().filter(|host| host.needs_egress()).count();
        eprintln!(
            "{} queried; {} would be refused if enableEgress was false",
            counted(reports.len(), "sidecar"),
            counted(open, "server")
        );
    }
    Ok(if collected.missing.is_empty() { printed } else { ExitCode::FAILURE })
}

impl EgressLearnOptions {
    /// The reports of all sidecars that are queried.
    async fn collect(&self) -> anyhow::Result<Collected> {
        if self.admin_address.is_empty() {
            return of_cluster(&self.cluster.connect().await?, self.namespace.as_deref()).await;
        }
        let mut collected = Collected::default();
        for address in &self.admin_address {
            let report = fetch(*address, EGRESS_PATH).await;
            collected.reports.push(report.with_context(|| format!("--admin-address {address}"))?);
        }
        Ok(collected)
    }

    /// Those of the namespace and the service account that are given.
    fn wanted(&self, reports: &[EgressReport]) -> Vec<EgressReport> {
        let is_of = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let wanted = |report: &&EgressReport| {
            is_of(&self.namespace, Some(hosts::namespace(report)))
                && is_of(&self.service_account, report.service_account.as_deref())
        };
        reports.iter().filter(wanted).cloned().collect()
    }
}

/// The reports of a cluster's sidecars.
async fn of_cluster(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Collected> {
    let pods = cluster.meshed_pods(namespace).await?;
    if pods.is_empty() {
        bail!(
            "no pods with a sidecar{}; `tidegate namespace list` shows the namespaces of the mesh",
            namespace.map(|name| format!(" in namespace {name}")).unwrap_or_default()
        );
    }
    let query = |pod: &crate::cluster::sidecars::MeshedPod| {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        async move { cluster.admin_json::<EgressReport>(&namespace, &name, EGRESS_PATH).await }
    };
    let started: Vec<_> = pods.iter().filter(|pod| pod.is_started).map(query).collect();
    let mut answers = stream::iter(started).buffered(CONCURRENT);
    let mut collected = Collected::default();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(report) => collected.reports.push(report),
            Err(error) => collected.missing.push(error.to_string()),
        }
    }
    Ok(collected)
}

#[cfg(test)]
mod tests;
