//! `tidegate-soak`: a mesh under mixed load for an hour, and what it did to memory and open files.
//!
//! - [`site`] starts the mesh of separate programs and, beside it, the whole mesh in one process;
//! - [`loads`] are the clients, each of which must get what it asks for;
//! - [`changes`] replaces policies, rotates the root and restarts daemons meanwhile;
//! - [`samples`] looks at the processes; [`report`] says what came of it.
//!
//! It fails if a request failed, memory grows, or files are left open.

// As the suites do: what goes wrong here fails the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
mod loads;
mod report;
mod samples;
mod site;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use self::loads::Loads;
use self::samples::Samples;
use self::site::Site;

/// Puts a mesh on this machine under mixed load, changes all that can change, and reports failed requests, memory and
/// open files.
#[derive(Debug, Parser)]
#[command(name = "tidegate-soak")]
struct Arguments {
    /// How long.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    time: Duration,
    /// What is left out of the judgement of memory and files, at the beginning.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Between two steps of a root's rotation.
    #[arg(long, default_value = "3m", value_parser = humantime::parse_duration)]
    rotation_step: Duration,
    /// Between two restarts of a daemon of the control plane.
    #[arg(long, default_value = "4m", value_parser = humantime::parse_duration)]
    restart: Duration,
    /// Write the report here; it is printed in any case.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    assert!(arguments.warm_up < arguments.time, "--warm-up must be shorter than --time");
    let mut site = Site::start();
    let loads = Loads::start(&site);
    let mut samples = Samples::default();
    let changes = changes::run(&mut site, &arguments, &mut samples);
    let loads = loads.stop();
    let report = report::Report::new(&arguments, &loads, &changes, &samples);
    println!("{report}");
    if let Some(file) = &arguments.report {
        std::fs::write(file, report.to_string()).unwrap();
    }
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
