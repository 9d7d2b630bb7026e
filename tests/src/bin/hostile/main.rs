//! `tidegate-hostile`: every known attack in turn against a mesh, and beside each what a healthy client saw and what it
//! cost.
//!
//! - [`site`] starts the mesh; [`victim`] is the healthy client, [`cost`] watches the daemon that is attacked;
//! - [`attacks`] lists the attacks; [`http1`], [`http2`] and [`control_plane`] carry them out, on [`frames`] where a
//!   client library would not;
//! - [`report`] holds each against its bounds.
//!
//! It fails if a daemon ends, the healthy client loses a request, or an attack costs more than its bounds.

// As the suites do: what goes wrong here fails the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;
mod control_plane;
mod cost;
mod frames;
mod http1;
mod http2;
mod report;
mod site;
mod victim;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::cost::Cost;
use self::report::{Finding, Report};
use self::site::Site;
use self::victim::Victim;

/// Attacks a mesh on this machine, one way after the other, and reports what a healthy client saw meanwhile and what each
/// attack cost for each byte of it.
#[derive(Debug, Parser)]
#[command(name = "tidegate-hostile")]
struct Arguments {
    /// How long each attack lasts.
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Only attacks whose names contain this text.
    #[arg(long)]
    only: Option<String>,
    /// Write the report here; it is printed in any case.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // An attacker has many connections.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let site = Site::start();
    let mut report = Report::default();
    for attack in attacks::all() {
        if arguments.only.as_ref().is_some_and(|only| !attack.name.contains(only.as_str())) {
            continue;
        }
        eprintln!("{}", attack.name);
        let victim = Victim::start(&site);
        victim.wait(arguments.time / 4);
        let cost = Cost::begin(site.daemon(attack.target));
        let attacked = Instant::now();
        let sent = (attack.run)(&site, arguments.time);
        let ended = Instant::now();
        let cost = cost.end();
        let seen = victim.stop();
        let (before, during) = (seen.until(attacked), seen.between(attacked, ended));
        report.0.push(Finding { attack: attack.name, before, during, cost, sent });
        site.recover(attack.target);
    }
    println!("{report}");
    if let Some(file) = &arguments.report {
        std::fs::write(file, report.to_string()).unwrap();
    }
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
