//! `tidegate-bench`: Tidegate measured beside nginx, HAProxy and Envoy on one machine.
//!
//! Topology "ingress": mTLS client → proxy that admits one client name → plaintext HTTP/1.1 app. One program plays
//! every part, each in a process of its own so that it can be pinned to a core:
//!
//! - [`run`] starts app, proxies and load, in interleaved rounds, and reports. Start reading here.
//! - [`load`] is the load generator, [`app`] the app behind the proxies.
//! - [`targets`] knows how each proxy is configured and started; [`check`] proves that it does its job before it is measured.
//! - [`cluster`] measures what only a real Kubernetes shows: policies taking effect, memory, the start of pods.
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

/// Measures Tidegate beside nginx, HAProxy and Envoy.
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
    /// Measure Tidegate on a Kubernetes of its own, beside the figures of Open Service Mesh.
    Cluster(cluster::Options),
    /// Serve the app behind the proxies: 1 KB for any path, 100 MB for /100m.
    App(app::Options),
    /// Put one kind of load on one address and print what was measured, as JSON.
    Load(load::Options),
    /// Render table and chart once more from the JSON of an earlier run.
    Report(report::Options),
    /// Become another program on a given core, ended when the caller ends.
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
