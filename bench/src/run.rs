//! A whole run: each round measures every target once, freshly started, in an order that rotates by one each time.

mod bench;
mod extended;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use self::bench::Bench;
use self::extended::ExtendedOptions;
use crate::app;
use crate::certificates::RunCertificates;
use crate::report::{self, Machine, Results, RunSettings};
use crate::targets::{Programs, Target};
use crate::topology::ProxyTopology;

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunOptions {
    /// How client, proxies and app are connected.
    #[arg(long, default_value = "ingress")]
    topology: ProxyTopology,
    /// Targets to measure; all of the topology by default.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Target>,
    /// Number of measurements per target.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Load before each measurement.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Numbers of connections of the closed loop.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    connections: Vec<usize>,
    /// Requests a second of the open loop.
    #[arg(long, value_delimiter = ',', default_value = "1000,3000")]
    rates: Vec<u32>,
    /// Length of each open loop: in a short one, a few pauses of the machine determine the p99.
    #[arg(long, default_value_t = 8.0)]
    open_seconds: f64,
    /// Idle connections, to measure the memory of one.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Core of the proxy, or of both proxies of a pair.
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// Core of load and app.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Folder for results.json, results.md and results.svg; of the other topologies, for files with their names.
    #[arg(long, default_value_os_t = report::default_folder())]
    out: PathBuf,
    /// Also put table and chart into bench/README.md.
    #[arg(long)]
    write_readme: bool,
    #[command(flatten)]
    extended: ExtendedOptions,
    #[command(flatten)]
    programs: Programs,
}

/// Measures all targets and writes the report. Fails if a request failed.
pub(crate) fn main(options: RunOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let results = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Dropping the run stops the processes that it started.
        tokio::select! {
            results = measure(&options) => results,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    report::write(&results, &options.out, options.write_readme)?;
    let errors = results.errors();
    ensure!(errors.is_empty(), "requests failed: {}", errors.join("; "));
    Ok(())
}

/// Runs all rounds.
async fn measure(options: &RunOptions) -> Result<Results> {
    let topology = options.topology;
    let targets = targets(options);
    let all = [Target::all(topology), Target::extended(topology)].concat();
    if let Some(other) = targets.iter().find(|target| !all.contains(target)) {
        bail!("{other} is not measured in topology \"{topology}\"");
    }
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    options.extended.ensure_valid(topology)?;
    ensure_core(options.proxy_core)?;
    ensure_core(options.load_core)?;
    let mut versions = BTreeMap::new();
    for target in &targets {
        if let Some(version) = target.version(&options.programs)? {
            versions.insert(*target, version);
        }
    }

    let directory = tempfile::Builder::new().prefix("tidegate-bench-").tempdir()?;
    let certificates = RunCertificates::create(directory.path())?;
    let outside = (topology == ProxyTopology::Egress).then_some(&certificates.server);
    let (_app_process, app) = app::start("app", options.load_core, directory.path(), outside).await?;
    let (_across_process, app_across) =
        app::start("app-across", options.proxy_core, directory.path(), outside).await?;
    let bench = Bench { options, directory: directory.path(), certificates, app, app_across };

    let began = Instant::now();
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        rounds.push(bench.round(&targets, round, began).await?);
    }
    Ok(Results {
        finished: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        machine: Machine::this()?,
        versions,
        settings: RunSettings {
            topology,
            seconds: options.seconds,
            connections: options.connections.clone(),
            rates: options.rates.clone(),
            idle: options.idle,
            extended: options.extended.settings(),
        },
        rounds,
    })
}

/// The targets to measure.
fn targets(options: &RunOptions) -> Vec<Target> {
    if !options.only.is_empty() {
        return options.only.clone();
    }
    let mut targets = Target::all(options.topology).to_vec();
    if options.extended.extended {
        targets.extend_from_slice(Target::extended(options.topology));
    }
    targets
}

/// Fails if this process may not run on the core.
fn ensure_core(core: usize) -> Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    ensure!(
        core < rustix::thread::CpuSet::MAX_CPU && allowed.is_set(core),
        "this process may not run on core {core}; the benchmark needs one for the proxy and one for load and app \
         (--proxy-core, --load-core)"
    );
    Ok(())
}
