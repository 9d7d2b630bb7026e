//! A whole run: each round measures every target once, freshly started, in an order that rotates by one each time.

mod extended;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use self::extended::ExtendedOptions;
use crate::app::{self, SMALL_BYTES};
use crate::certificates::RunCertificates;
use crate::check;
use crate::load;
use crate::process::Process;
use crate::report::{self, Machine, Measures, Results, RunSettings};
use crate::targets::{Programs, Running, Target, TargetSite};
use crate::topology::ProxyTopology;

/// How much longer than expected a load may take until it counts as stalled.
const STALL: Duration = Duration::from_secs(60);

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

/// What all targets of a run share.
struct Bench<'a> {
    /// Flags of the run.
    options: &'a RunOptions,
    /// Folder of the run's temporary files.
    directory: &'a Path,
    /// Certificates of servers and clients.
    certificates: RunCertificates,
    /// The app that proxies forward to, on the load's core.
    app: std::net::SocketAddr,
    /// The same app on the proxy's core, for the open loop without a proxy.
    app_across: std::net::SocketAddr,
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

impl Bench<'_> {
    /// Measures every target once, in an order that rotates by one each round.
    async fn round(
        &self,
        targets: &[Target],
        round: usize,
        began: Instant,
    ) -> Result<BTreeMap<Target, Measures>> {
        let mut measured = BTreeMap::new();
        for position in 0..targets.len() {
            let target = targets[(round + position) % targets.len()];
            let (seconds, rounds) = (began.elapsed().as_secs_f64(), self.options.rounds);
            eprintln!("[{seconds:4.0} s] round {} of {rounds}: {target}", round + 1);
            let measures = self
                .measure(target, round)
                .await
                .with_context(|| format!("{target}, round {}", round + 1))?;
            measured.insert(target, measures);
        }
        Ok(measured)
    }

    /// Starts a target and runs every load on it.
    async fn measure(&self, target: Target, round: usize) -> Result<Measures> {
        // nginx's configuration has no place for spaces in paths, and a comma separates paths in some flags.
        let directory = self.directory.join(format!("{round}-{target}").replace(' ', "-").replace(',', ""));
        let mut running = self.start(target, &directory, false).await?;
        let fresh_kib = running.resident_kib()?;
        let refusals = check::refuses_others(&running, self.options.topology).await?;

        let RunOptions { seconds, warm_up, idle, .. } = *self.options;
        // First, before load has grown its buffers.
        let idle = self.load(&running, &directory, load::LoadKind::Idle { connections: idle }).await?;
        let mut closed = BTreeMap::new();
        for connections in self.options.connections.iter().copied() {
            let kind = load::LoadKind::Closed { connections, seconds, warm_up, body: SMALL_BYTES };
            closed.insert(connections, self.load(&running, &directory, kind).await?);
        }
        let open = self.open(target, &running, &directory).await?;
        let kind = load::LoadKind::Handshakes { connections: 16, seconds, warm_up };
        let handshakes = self.load(&running, &directory, kind).await?;
        let download = self.load(&running, &directory, load::LoadKind::Download { seconds }).await?;
        let (mut upload, mut http2_download, mut http2_upload) = (None, None, None);
        match self.options.topology {
            ProxyTopology::Pair => {
                upload = Some(self.load(&running, &directory, load::LoadKind::Upload { seconds }).await?);
            }
            ProxyTopology::Egress => {}
            // The app's large bodies are HTTP/1.1.
            ProxyTopology::Ingress if running.measured.is_empty() => {}
            ProxyTopology::Ingress => {
                let kind = load::LoadKind::Http2Download { seconds };
                http2_download = Some(self.load(&running, &directory, kind).await?);
                let kind = load::LoadKind::Http2Upload { seconds };
                http2_upload = Some(self.load(&running, &directory, kind).await?);
            }
        }
        running.ensure_running()?;
        check::spans_have_come(&running)?;
        drop(running);
        let extended = self.extended(target, &directory).await.context("extended measurements")?;
        Ok(Measures {
            refusal: refusals.nameless,
            foreign_refusal: refusals.foreign,
            fresh_kib,
            idle,
            closed,
            open,
            handshakes,
            download,
            upload,
            http2_download,
            http2_upload,
            extended,
        })
    }

    /// Starts a target in a folder of its own and waits until it serves.
    async fn start(&self, target: Target, directory: &Path, is_http2: bool) -> Result<Running> {
        std::fs::create_dir(directory)?;
        let site = TargetSite {
            topology: self.options.topology,
            directory,
            certificates: &self.certificates,
            app: self.app,
            core: self.options.proxy_core,
            load_core: self.options.load_core,
            programs: &self.options.programs,
            is_http2,
            has_access_log: target.has_access_log(),
        };
        let mut running = target.start(&site).await?;
        check::wait_until_serving(&mut running, self.options.topology).await?;
        Ok(running)
    }

    /// The latencies at each of the fixed rates.
    async fn open(
        &self,
        target: Target,
        running: &Running,
        directory: &Path,
    ) -> Result<BTreeMap<u32, load::LoadMeasurement>> {
        let RunOptions { open_seconds: seconds, warm_up, .. } = *self.options;
        // Without a proxy, latency is that of a wake-up across the cores, which the machine adds to each hop of a proxy.
        let across = (target == Target::Direct).then(|| Running::without_proxy(self.app_across));
        let running = across.as_ref().unwrap_or(running);
        let mut open = BTreeMap::new();
        for rate in self.options.rates.iter().copied() {
            let kind = load::LoadKind::Open { rate, connections: 64, seconds, warm_up };
            open.insert(rate, self.load(running, directory, kind).await?);
        }
        Ok(open)
    }

    /// Runs one load in a process of its own.
    async fn load(
        &self,
        running: &Running,
        directory: &Path,
        kind: load::LoadKind,
    ) -> Result<load::LoadMeasurement> {
        let mut arguments = vec!["load".to_owned(), "--address".to_owned(), running.address.to_string()];
        if let Some(files) = &running.tls {
            for (flag, value) in [
                ("--ca", files.ca.display().to_string()),
                ("--server-name", files.server_name.clone()),
                ("--certificate", files.allowed.certificate.display().to_string()),
                ("--key", files.allowed.key.display().to_string()),
            ] {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        for pid in &running.measured {
            arguments.extend(["--watch-pid".to_owned(), pid.to_string()]);
        }
        arguments.extend(kind.arguments());
        let (process, output) = Process::start_own("load", self.options.load_core, directory, arguments)?;
        let seconds = self.options.seconds.max(self.options.open_seconds);
        let limit = STALL + Duration::from_secs_f64(self.options.warm_up + seconds);
        // The load must still be running when its sockets are listed.
        let load = process.output(output);
        tokio::pin!(load);
        let Ok(output) = tokio::time::timeout(limit, &mut load).await else {
            // A stalled connection must not discard the figures of all others, so it counts as a failure.
            eprintln!("{kind:?} stalled. Logs: {}\nSockets: {}", running.log_tails(), sockets());
            let first_error = Some(format!("not finished after {limit:?}"));
            return Ok(load::LoadMeasurement { errors: 1, first_error, ..Default::default() });
        };
        let output = output.with_context(|| format!("{kind:?}"))?;
        serde_json::from_str(&output)
            .with_context(|| format!("{kind:?}: the load's report is invalid: {output}"))
    }
}

/// The kernel's view of recently active connections, to diagnose a stall.
fn sockets() -> String {
    match std::process::Command::new("ss").args(["-tinmo", "state", "established"]).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => format!("ss: {error}"),
    }
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
