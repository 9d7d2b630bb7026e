//! One round of a run: each target is started and bears every load, in turn.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::RunOptions;
use crate::app::SMALL_BYTES;
use crate::certificates::RunCertificates;
use crate::check;
use crate::load::{LoadKind, LoadMeasurement};
use crate::process::Process;
use crate::report::Measures;
use crate::targets::{Running, Target, TargetSite};
use crate::topology::ProxyTopology;

/// How much longer than expected a load may take until it counts as stalled.
const STALL: Duration = Duration::from_secs(60);

/// What all targets of a run share.
pub(super) struct Bench<'a> {
    /// Flags of the run.
    pub(super) options: &'a RunOptions,
    /// Folder of the run's temporary files.
    pub(super) directory: &'a Path,
    /// Certificates of servers and clients.
    pub(super) certificates: RunCertificates,
    /// The app that proxies forward to, on the load's core.
    pub(super) app: SocketAddr,
    /// The same app on the proxy's core, for the open loop without a proxy.
    pub(super) app_across: SocketAddr,
}

impl Bench<'_> {
    /// Measures every target once, in an order that rotates by one each round.
    pub(super) async fn round(
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
        let idle = self.load(&running, &directory, LoadKind::Idle { connections: idle }).await?;
        let mut closed = BTreeMap::new();
        for connections in self.options.connections.iter().copied() {
            let kind = LoadKind::Closed { connections, seconds, warm_up, body: SMALL_BYTES };
            closed.insert(connections, self.load(&running, &directory, kind).await?);
        }
        let open = self.open(target, &running, &directory).await?;
        let kind = LoadKind::Handshakes { connections: 16, seconds, warm_up };
        let handshakes = self.load(&running, &directory, kind).await?;
        let download = self.load(&running, &directory, LoadKind::Download { seconds }).await?;
        let (mut upload, mut http2_download, mut http2_upload) = (None, None, None);
        match self.options.topology {
            ProxyTopology::Pair => {
                upload = Some(self.load(&running, &directory, LoadKind::Upload { seconds }).await?);
            }
            ProxyTopology::Egress => {}
            // The app's large bodies are HTTP/1.1.
            ProxyTopology::Ingress if running.measured.is_empty() => {}
            ProxyTopology::Ingress => {
                let kind = LoadKind::Http2Download { seconds };
                http2_download = Some(self.load(&running, &directory, kind).await?);
                let kind = LoadKind::Http2Upload { seconds };
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
    pub(super) async fn start(&self, target: Target, directory: &Path, is_http2: bool) -> Result<Running> {
        fs::create_dir(directory)?;
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
    ) -> Result<BTreeMap<u32, LoadMeasurement>> {
        let RunOptions { open_seconds: seconds, warm_up, .. } = *self.options;
        // Without a proxy, latency is that of a wake-up across the cores, which the machine adds to each hop of a proxy.
        let across = (target == Target::Direct).then(|| Running::without_proxy(self.app_across));
        let running = across.as_ref().unwrap_or(running);
        let mut open = BTreeMap::new();
        for rate in self.options.rates.iter().copied() {
            let kind = LoadKind::Open { rate, connections: 64, seconds, warm_up };
            open.insert(rate, self.load(running, directory, kind).await?);
        }
        Ok(open)
    }

    /// Runs one load in a process of its own.
    pub(super) async fn load(
        &self,
        running: &Running,
        directory: &Path,
        kind: LoadKind,
    ) -> Result<LoadMeasurement> {
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
            return Ok(LoadMeasurement { errors: 1, first_error, ..Default::default() });
        };
        let output = output.with_context(|| format!("{kind:?}"))?;
        serde_json::from_str(&output)
            .with_context(|| format!("{kind:?}: the load's report is invalid: {output}"))
    }
}

/// The kernel's view of recently active connections, to diagnose a stall.
fn sockets() -> String {
    match Command::new("ss").args(["-tinmo", "state", "established"]).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => format!("ss: {error}"),
    }
}
