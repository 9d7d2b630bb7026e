//! `tidegate-bench`: measures Tidegate against nginx, HAProxy and Envoy on one machine.
//!
//! Topology "ingress": mTLS client → proxy that admits one client name → plaintext HTTP/1.1 app. One program plays
//! every part, each in its own process so that it can be pinned to a core:
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

use clap::{Parser, Subcommand};

/// Measures Tidegate against nginx, HAProxy and Envoy.
#[derive(Debug, Parser)]
#[command(name = "tidegate-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure all proxies in interleaved rounds and write JSON, a Markdown table and a chart.
    Run(run::Options),
    /// Measure Tidegate on a dedicated Kubernetes, and compare with Open Service Mesh.
    Cluster(cluster::Options),
    /// Serve the app behind the proxies: 1 KB for any path, 100 MB for /100m.
    App(app::Options),
    /// Run one kind of load against one address and print the results as JSON.
    Load(load::Options),
    /// Render table and chart again from the JSON of an earlier run.
    Report(report::Options),
    /// Execute another program on a given core, and stop it when the caller ends.
    #[command(hide = true)]
    Pinned(process::PinnedOptions),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Run(options) => run::main(options),
        Command::Cluster(options) => cluster::main(options),
        Command::App(options) => app::main(options),
        Command::Load(options) => load::main(options),
        Command::Report(options) => report::main(options),
        Command::Pinned(options) => process::become_pinned(options),
    }
}
