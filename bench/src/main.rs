//! `tidegate-bench`: measures Tidegate against nginx, HAProxy and Envoy on one machine.
//!
//! ProxyTopology "ingress": mTLS client → proxy that admits one client name → plaintext HTTP/1.1 app. ProxyTopology "pair":
//! plaintext client → proxy → mTLS → proxy that admits the first one's name → app. ProxyTopology "egress": TLS client → proxy
//! → `CONNECT` → app. One program plays every other part, each in its own process so that it can be pinned to a core:
//!
//! - [`run`] starts app, proxies and load, in interleaved rounds, and reports. Start reading here.
//! - [`load`] is the load generator, [`app`] the app behind the proxies.
//! - [`targets`] configures and starts each proxy; [`check`] verifies that it enforces its policy before it is
//!   measured.
//! - [`cluster`] measures on a real Kubernetes: policies taking effect, memory, pod startup.
//! - [`report`] turns the rounds into medians, a table, goals and a chart.

mod app;
mod certificates;
mod check;
mod cluster;
mod histogram;
mod http;
mod load;
mod process;
mod report;
mod run;
mod targets;
mod template;
mod tls;
mod topology;

use clap::{Parser, Subcommand};

/// Measures Tidegate against nginx, HAProxy and Envoy.
#[derive(Debug, Parser)]
#[command(name = "tidegate-bench", version)]
struct BenchArguments {
    #[command(subcommand)]
    command: BenchCommand,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure all proxies in interleaved rounds and write JSON, a Markdown table and a chart.
    Run(run::RunOptions),
    /// Measure Tidegate on a dedicated Kubernetes, and compare with Open Service Mesh.
    Cluster(cluster::ClusterBenchOptions),
    /// Serve the app behind the proxies: 1 KB for any path, 100 MB for /100m.
    App(app::AppOptions),
    /// Run one kind of load against one address and print the results as JSON.
    Load(load::LoadOptions),
    /// Render table and chart again from the JSON of an earlier run.
    Report(report::ReportOptions),
    /// Execute another program on a given core, and stop it when the caller ends.
    #[command(hide = true)]
    Pinned(process::PinnedOptions),
}

fn main() -> anyhow::Result<()> {
    match BenchArguments::parse().command {
        BenchCommand::Run(options) => run::main(options),
        BenchCommand::Cluster(options) => cluster::main(options),
        BenchCommand::App(options) => app::main(options),
        BenchCommand::Load(options) => load::main(options),
        BenchCommand::Report(options) => report::main(options),
        BenchCommand::Pinned(options) => process::become_pinned(options),
    }
}
