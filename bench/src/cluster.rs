//! Measures Tidegate on a real Kubernetes: how soon a policy takes effect, how much memory the mesh uses, how much a
//! sidecar delays the start of a pod. The report compares with Open Service Mesh, measured by the same steps.
//!
//! - [`measure`] is the sequence: start a cluster, install Tidegate, add more and more meshed pods. Start reading here.
//! - [`site`] is the cluster with its workloads; [`node`] makes connections from the node's network.
//! - One file per measurement: [`changes`], [`connections`], [`memory`], [`creation`], [`routes`]; [`prober`] watches for
//!   the effect of a change. [`synthetic`] creates pods that
//!   no kubelet runs.
//! - [`results`] holds the measurements, [`report`] formats them.

mod changes;
mod connections;
mod creation;
mod memory;
mod node;
mod prober;
mod report;
mod results;
mod routes;
mod site;
mod synthetic;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tidegate_tests::kubernetes::Cluster;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::changes::PolicyChange;
use self::results::{ClusterResults, ClusterSettings, Population};
use self::routes::{RouteBench, RouteOptions};
use self::site::ClusterSite;
use crate::report::{Machine, default_folder};

/// Flags of `cluster`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterBenchOptions {
    /// Numbers of meshed pods to measure at, ascending.
    #[arg(long, value_delimiter = ',', default_value = "4,50,200")]
    pods: Vec<usize>,
    /// Pods that exist only in the API server, in addition to the real ones, at the end; 0 skips this.
    #[arg(long, default_value_t = 2000)]
    synthetic: usize,
    /// Changes of each policy at each number of pods, and at each number of routes.
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Open connections when their policy is deleted.
    #[arg(long, default_value_t = 20)]
    connections: usize,
    /// Pods of each kind whose creation is timed; 0 skips this.
    #[arg(long, default_value_t = 20)]
    creations: usize,
    #[command(flatten)]
    routes: RouteOptions,
    /// Name of the cluster; an existing one of this name is stopped first.
    #[arg(long, default_value = "bench")]
    name: String,
    /// Folder of Tidegate's programs. Default: this program's own.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Leave the cluster running for inspection: `tests/cluster/cluster down NAME` stops it.
    #[arg(long)]
    keep: bool,
    /// Folder for cluster.json and cluster.md.
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Also put the tables into bench/README.md.
    #[arg(long)]
    write_readme: bool,
}

/// The results so far.
struct Run {
    /// Start of the run.
    began: Instant,
    /// The cluster with its workloads.
    site: ClusterSite,
    /// The results so far.
    results: ClusterResults,
}

/// Measures, and writes the report. Ends the cluster in any case, unless it is to be kept.
pub(crate) fn main(options: ClusterBenchOptions) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "a cluster's node needs root: run this as root");
    ensure!(
        options.pods.is_sorted() && options.pods.first().is_some_and(|first| *first >= site::SMALLEST),
        "--pods {:?}: ascending numbers, at least {}",
        options.pods,
        site::SMALLEST
    );
    ensure!(
        options.routes.routes.is_sorted(),
        "--routes {:?}: ascending numbers, because routes are only added",
        options.routes.routes
    );
    let (sender, receiver) = oneshot::channel();
    let own = options.clone();
    // The harness blocks, so it runs in its own thread while this one handles signals.
    let measuring = thread::Builder::new().name("measure".to_owned()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| measure(&own)));
        // The receiver is gone if the run was interrupted.
        let _ = sender.send(outcome.unwrap_or_else(|panic| Err(anyhow!(text(&*panic)))));
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            outcome = receiver => outcome.context("the measurement ended without a result")?,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    });
    if options.keep {
        eprintln!("The cluster keeps running; stop it with tests/cluster/cluster down {}", options.name);
    } else {
        end(&options.name)?;
    }
    let results = outcome?;
    drop(measuring.join());
    report::write(&results, &options.out, options.write_readme)?;
    ensure!(
        results.failures.is_empty(),
        "not everything could be measured:\n{}",
        results.failures.join("\n")
    );
    Ok(())
}

/// Runs all measurements. A failure is recorded, and the remaining measurements run if they can.
fn measure(options: &ClusterBenchOptions) -> Result<ClusterResults> {
    let began = Instant::now();
    let programs = match &options.programs {
        Some(folder) => folder.canonicalize().with_context(|| format!("--programs {}", folder.display()))?,
        None => tidegate_tests::daemon::programs(),
    };
    end(&options.name)?;
    print_step(began, "a cluster with Tidegate on it");
    let site = ClusterSite::start(&options.name, &programs)?;
    let mut run = Run { began, site, results: no_results(options, &programs)? };

    for (index, pods) in options.pods.iter().copied().enumerate() {
        let population = Population { pods, synthetic: 0 };
        if run.phase(&format!("{pods} meshed pods"), |site| site.scale_to(pods)).is_none() {
            break;
        }
        run.changes(population, options.changes);
        run.connections(population, options.connections);
        run.memory(population);
        if index == 0 && options.creations > 0 {
            let measured = run.phase("creation of pods", |site| creation::measure(site, options.creations));
            run.results.creation = measured.unwrap_or_default();
        }
        if index == 0 {
            run.routes(&options.routes, options.changes);
        }
    }
    if options.synthetic > 0 {
        let pods = run.site.pods();
        let population = Population { pods, synthetic: options.synthetic };
        let heartbeat = run.phase(&format!("{} synthetic pods", options.synthetic), |site| {
            synthetic::create(site, options.synthetic)
        });
        if heartbeat.is_some() {
            run.changes(population, options.changes);
            run.memory(population);
        }
    }
    run.results.finished = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    run.results.seconds = began.elapsed().as_secs();
    Ok(run.results)
}

impl Run {
    /// Measures how soon changes of policies take effect.
    fn changes(&mut self, population: Population, count: usize) {
        for change in PolicyChange::ALL {
            let name = format!("{count} changes, {change}, {population}");
            if let Some(measured) = self.phase(&name, |site| changes::measure(site, change, count)) {
                self.results.changes.push((population, measured));
            }
        }
    }

    /// Measures how open connections end when their policy is deleted.
    fn connections(&mut self, population: Population, count: usize) {
        for change in PolicyChange::ALL {
            let name = format!("{count} open connections, {change}, {population}");
            if let Some(measured) = self.phase(&name, |site| connections::measure(site, change, count)) {
                self.results.connections.push((population, measured));
            }
        }
    }

    /// Measures changes of routes and policies at each number of routes, and restores the cluster.
    fn routes(&mut self, options: &RouteOptions, policy_changes: usize) {
        if options.is_off() {
            return;
        }
        let bench = self.phase("a client of Services with routes", |site| {
            RouteBench::start(site, options, policy_changes)
        });
        let Some(mut bench) = bench else { return };
        for count in options.routes.iter().copied().filter(|count| *count > 0) {
            let name = format!("{count} routes");
            match self.phase(&name, |site| bench.measure(site, count)) {
                Some(measured) => self.results.routes.push(measured),
                None => break,
            }
        }
        self.phase("without routes again", |site| {
            bench.end(site);
            Ok(())
        });
    }

    /// Measures the memory of all programs.
    fn memory(&mut self, population: Population) {
        let name = format!("memory, {population}");
        if let Some(measured) = self.phase(&name, |site| memory::measure(site)) {
            self.results.memory.push((population, measured));
        }
    }

    /// Runs one measurement; `None`, with an entry among the failures, if it fails.
    fn phase<T>(&mut self, name: &str, work: impl FnOnce(&mut ClusterSite) -> Result<T>) -> Option<T> {
        print_step(self.began, name);
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&mut self.site)));
        let error = match outcome {
            Ok(Ok(measured)) => return Some(measured),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => text(&*panic),
        };
        eprintln!("{name}: FAILED: {error}");
        self.results.failures.push(format!("{name}: {error}"));
        None
    }
}

/// Results with the conditions of the run and no measurements.
fn no_results(options: &ClusterBenchOptions, programs: &Path) -> Result<ClusterResults> {
    Ok(ClusterResults {
        finished: 0,
        seconds: 0,
        machine: Machine::this()?,
        settings: ClusterSettings {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            is_debug: programs.ends_with("debug"),
            changes: options.changes,
            connections: options.connections,
            creations: options.creations,
        },
        changes: Vec::new(),
        connections: Vec::new(),
        memory: Vec::new(),
        creation: Vec::new(),
        routes: Vec::new(),
        failures: Vec::new(),
    })
}

/// Stops the cluster of this name, if there is one.
fn end(name: &str) -> Result<()> {
    Cluster::end(name).map_err(|failure| anyhow!("{failure}"))
}

/// Prints a step of the run, with the time since its start.
fn print_step(began: Instant, what: &str) {
    eprintln!("[{:4.0} s] {what}", began.elapsed().as_secs_f64());
}

/// The message of a panic.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}
