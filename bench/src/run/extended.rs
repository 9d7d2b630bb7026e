//! The measurements of an extended run: bodies of several sizes, few and many idle connections, HTTP/2, gRPC. Each set
//! has a freshly started target, so that none inherits memory from another.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};

use super::bench::Bench;
use crate::check;
use crate::http::MOST_SIZED;
use crate::load::{Http2Exchange, LoadKind, LoadMeasurement};
use crate::report::{ExtendedMeasures, ExtendedSettings};
use crate::targets::{Running, Target};
use crate::topology::ProxyTopology;

/// Connections of the closed loop with bodies.
const CONNECTIONS: usize = 64;
/// HTTP/2 connections, and streams of each: as many requests at a time.
const HTTP2_CONNECTIONS: usize = 4;
const STREAMS: usize = CONNECTIONS / HTTP2_CONNECTIONS;

/// Flags of an extended run.
#[derive(Debug, clap::Args)]
pub(super) struct ExtendedOptions {
    /// Also measure bodies of several sizes, few and many idle connections, HTTP/2 and gRPC; and proxies with an access
    /// log, and with traces.
    #[arg(long)]
    pub(super) extended: bool,
    /// Sizes of responses in an extended run, in bytes.
    #[arg(long, value_delimiter = ',', default_value = "0,10000,100000,1000000")]
    bodies: Vec<u64>,
    /// Numbers of idle connections in an extended run, ascending.
    #[arg(long, value_delimiter = ',', default_value = "500,5000")]
    idle_counts: Vec<usize>,
}

impl ExtendedOptions {
    /// As recorded; `None` without `--extended`.
    pub(super) fn settings(&self) -> Option<ExtendedSettings> {
        self.extended
            .then(|| ExtendedSettings { bodies: self.bodies.clone(), idle: self.idle_counts.clone() })
    }

    /// Fails on flags that cannot be measured.
    pub(super) fn ensure_valid(&self, topology: ProxyTopology) -> Result<()> {
        ensure!(
            !self.extended || topology != ProxyTopology::Egress,
            "--extended has nothing to measure in topology \"{topology}\""
        );
        ensure!(
            self.idle_counts.is_sorted(),
            "--idle-counts {:?}: ascending numbers, because a proxy may keep the memory of more connections",
            self.idle_counts
        );
        let largest = self.bodies.iter().max().copied().unwrap_or_default();
        ensure!(largest <= MOST_SIZED, "--bodies: at most {MOST_SIZED} bytes, not {largest}");
        Ok(())
    }
}

impl Bench<'_> {
    /// The measurements of an extended run; `None` for another run and for a variant of another target.
    pub(super) async fn extended(
        &self,
        target: Target,
        directory: &Path,
    ) -> Result<Option<ExtendedMeasures>> {
        let options = &self.options.extended;
        if !options.extended || target.is_variant() {
            return Ok(None);
        }
        let directory = directory.join("extended");
        let mut running = self.start(target, &directory, false).await?;
        let fresh_kib = running.resident_kib()?;
        let mut idle = BTreeMap::new();
        for connections in options.idle_counts.iter().copied() {
            let kind = LoadKind::Idle { connections };
            idle.insert(connections, self.load(&running, &directory, kind).await?);
        }
        let mut bodies = BTreeMap::new();
        let (seconds, warm_up) = (self.options.seconds, self.options.warm_up);
        for body in options.bodies.iter().copied() {
            let kind = LoadKind::Closed { connections: CONNECTIONS, seconds, warm_up, body };
            bodies.insert(body, self.load(&running, &directory, kind).await?);
        }
        let (mut http2, mut grpc) = (None, None);
        match self.options.topology {
            // The client's HTTP/2 ends at the proxy.
            ProxyTopology::Ingress if target != Target::Direct => {
                http2 = Some(self.http2(&running, &directory, Http2Exchange::Get).await?);
            }
            ProxyTopology::Ingress | ProxyTopology::Egress => {}
            ProxyTopology::Pair if target.carries_http2() => {
                running.ensure_running()?;
                drop(running);
                let directory = directory.join("http2");
                running = self.start(target, &directory, true).await?;
                check::refuses_others(&running, self.options.topology).await?;
                http2 = Some(self.http2(&running, &directory, Http2Exchange::Get).await?);
                grpc = Some(self.http2(&running, &directory, Http2Exchange::Grpc).await?);
            }
            ProxyTopology::Pair => {}
        }
        running.ensure_running()?;
        Ok(Some(ExtendedMeasures { fresh_kib, idle, bodies, http2, grpc }))
    }

    /// Many exchanges over HTTP/2.
    async fn http2(
        &self,
        running: &Running,
        directory: &Path,
        exchange: Http2Exchange,
    ) -> Result<LoadMeasurement> {
        let (seconds, warm_up) = (self.options.seconds, self.options.warm_up);
        let (connections, streams) = (HTTP2_CONNECTIONS, STREAMS);
        let kind = LoadKind::Http2Closed { exchange, connections, streams, seconds, warm_up };
        self.load(running, directory, kind).await
    }
}
