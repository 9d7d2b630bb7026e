//! `tidegate-hostile`: runs every known attack against a mesh, and reports what a healthy client saw meanwhile and what
//! the attack cost.
//!
//! - [`site`] starts the mesh, [`share`] assigns processors; [`api`] is the API server of its injector;
//! - [`healthy`] are the healthy clients, one for each target, [`victim`] is the one that is watched, and the innocuous
//!   load of its baseline; [`cost`] measures the attacked daemon;
//! - [`attacks`] lists the attacks; [`http1`], [`http2`], [`control_plane`], [`discovery`] and [`webhooks`] implement
//!   them with [`sent`], and with [`frames`] and [`grpc`] where a client library would refuse;
//! - [`report`] compares each with its bounds.
//!
//! It fails if a daemon ends, the healthy client loses a request, or an attack costs more than its bounds.

// As in the suites: a panic fails the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod attacks;
mod control_plane;
mod cost;
mod discovery;
mod frames;
mod grpc;
mod healthy;
mod http1;
mod http2;
mod report;
mod sent;
mod share;
mod site;
mod victim;
mod webhooks;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::attacks::Attack;
use self::cost::Cost;
use self::report::{AttackFinding, HostileReport};
use self::share::ProcessorShares;
use self::site::HostileSite;
use self::victim::Victim;

/// Runs attacks against a mesh on this machine, one after another, and reports what a healthy client saw meanwhile and
/// what each attack cost per byte sent.
#[derive(Debug, Parser)]
#[command(name = "tidegate-hostile", after_help = report::JUDGEMENT)]
struct Arguments {
    /// How long each attack lasts; the innocuous load that it is compared with takes half as long in addition.
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Only attacks whose names contain this text.
    #[arg(long)]
    only: Option<String>,
    /// Also write the report to this file.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // An attacker has many connections.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let shares = ProcessorShares::take();
    let site = HostileSite::start(shares);
    let mut report = HostileReport::default();
    for attack in attacks::all() {
        if arguments.only.as_ref().is_none_or(|only| attack.name.contains(only.as_str())) {
            eprintln!("{}", attack.name);
            report.0.push(result(&site, &attack, arguments.time));
        }
    }
    println!("{report}");
    if let Some(file) = &arguments.report {
        std::fs::write(file, report.to_string()).unwrap();
    }
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What counts of an attack. A pause of the machine makes a result late, too; so a late one is repeated twice, and the run
/// with the median percentile counts.
fn result(site: &HostileSite, attack: &Attack, time: Duration) -> AttackFinding {
    let first = run(site, attack, time);
    if !first.is_late() {
        return first;
    }
    let mut runs = [first, run(site, attack, time), run(site, attack, time)];
    runs.sort_by_key(|finding| finding.during.p99);
    let [_, median, _] = runs;
    median
}

/// One attack, and the innocuous load that keeps the daemon as busy.
fn run(site: &HostileSite, attack: &Attack, time: Duration) -> AttackFinding {
    let daemon = site.daemon(attack.target);
    let log = daemon.log_bytes();
    let victim = Victim::start(site, attack);
    victim::wait(time / 4);
    let idle_log = daemon.log_bytes() - log;
    let cost = Cost::begin(daemon, site.shares);
    let attacked = Instant::now();
    let sent = site.shares.as_attacker(|| (attack.run)(site, time));
    let ended = Instant::now();
    let cost = cost.end();
    let seen = victim.stop();
    site.recover(attack.target);

    let share = cost.processor.as_secs_f64() / ended.duration_since(attacked).as_secs_f64();
    let victim = Victim::start(site, attack);
    let begun = Instant::now();
    victim::keep_busy(site, attack, share, time / 2);
    let busy = victim.stop().between(begun, Instant::now());
    site.recover(attack.target);
    let (idle, during) = (seen.until(attacked), seen.between(attacked, ended));
    AttackFinding { attack: attack.name, idle, idle_log, busy, during, cost, sent }
}
