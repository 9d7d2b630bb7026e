//! `tidegate-soak`: a mesh under mixed load for an hour, and the effect on memory and open files.
//!
//! - [`site`] defines what can be done to a running mesh; [`local`] is a mesh of separate programs and, beside it, the
//!   whole mesh in one process; [`cluster`] is a mesh on a Kubernetes;
//! - [`loads`] are the clients, each of which must get the right answers;
//! - [`changes`] replaces policies, rotates the root and restarts daemons meanwhile;
//! - [`samples`] measures the processes; [`report`] presents the results.
//!
//! It fails if a request fails, memory grows, or files are left open.

// As in the suites: a panic fails the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
mod client_factory;
mod cluster;
mod loads;
mod local;
mod report;
mod samples;
mod site;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use self::cluster::OnCluster;
use self::local::Local;
use self::report::SoakReport;
use self::samples::Samples;
use self::site::SoakSite;

/// Puts a mesh under mixed load, changes all that can change, and reports failed requests, memory and open files.
///
/// Without --cluster the mesh runs on this machine's loopback: CA, controller and a sidecar as programs, and beside
/// them a mesh in one process. With it, the mesh runs on the project's own Kubernetes (tests/cluster): two apps of two
/// Pods each, with clients outside the mesh and in one of its Pods; the control plane's Deployments and one of the apps
/// are restarted. Both can run at the same time.
#[derive(Debug, Parser)]
#[command(name = "tidegate-soak")]
struct Arguments {
    /// Use the project's own Kubernetes of this name; started if it is not running, and left running.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// How long.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    time: Duration,
    /// The beginning, which is excluded when memory and files are judged.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Between two steps of a root's rotation.
    #[arg(long, default_value = "3m", value_parser = humantime::parse_duration)]
    rotation_step: Duration,
    /// Between two restarts, each of the next program in turn.
    #[arg(long, default_value = "4m", value_parser = humantime::parse_duration)]
    restart: Duration,
    /// Also write the report to this file.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    assert!(arguments.warm_up < arguments.time, "--warm-up must be shorter than --time");
    let mut site: Box<dyn SoakSite> = match &arguments.cluster {
        Some(name) => Box::new(OnCluster::start(name)),
        None => Box::new(Local::start()),
    };
    let loads = site.start_loads();
    let mut samples = Samples::default();
    let edits = changes::run(&mut *site, &arguments, &mut samples);
    let loads = loads.stop();
    let done = site.finish();
    let report = SoakReport::new(
        &arguments,
        changes::ChangeCounts { edits, done, restarted: site.restarted() },
        &loads,
        &samples,
    );
    println!("{report}");
    if let Some(file) = &arguments.report {
        std::fs::write(file, report.to_string()).unwrap();
    }
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
