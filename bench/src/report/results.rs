//! The results of a run.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::load::LoadMeasurement;
use crate::targets::Target;
use crate::topology::ProxyTopology;

/// The rounds of a run, and the conditions under which they were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Seconds since 1970.
    pub(crate) finished: u64,
    /// Processor and kernel.
    pub(crate) machine: Machine,
    /// Versions of the targets' programs.
    pub(crate) versions: BTreeMap<Target, String>,
    /// Settings of the run.
    pub(crate) settings: RunSettings,
    /// Results by round and target.
    pub(crate) rounds: Vec<BTreeMap<Target, Measures>>,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Number of processors and their model.
    pub(crate) processor: String,
    /// Version of the kernel.
    pub(crate) kernel: String,
}

/// The settings of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunSettings {
    /// How client, proxies and app were connected.
    #[serde(default)]
    pub(crate) topology: ProxyTopology,
    /// Length of each measurement.
    pub(crate) seconds: f64,
    /// Numbers of connections of the closed loop.
    pub(crate) connections: Vec<usize>,
    /// Requests per second of the open loop.
    pub(crate) rates: Vec<u32>,
    /// Number of idle connections.
    pub(crate) idle: usize,
    /// What an extended run measured in addition; `None` of another run.
    #[serde(default)]
    pub(crate) extended: Option<ExtendedSettings>,
}

/// Settings of an extended run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExtendedSettings {
    /// Sizes of responses, in bytes.
    pub(crate) bodies: Vec<u64>,
    /// Numbers of idle connections.
    pub(crate) idle: Vec<usize>,
}

/// One target in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measures {
    /// How a client without a certificate was refused; `None` without TLS.
    pub(crate) refusal: Option<String>,
    /// How a client of the same CA with another name was refused; `None` without TLS.
    #[serde(default)]
    pub(crate) foreign_refusal: Option<String>,
    /// Resident memory after the first request, of a pair the client's side's.
    pub(crate) fresh_kib: Option<u64>,
    /// Idle connections.
    pub(crate) idle: LoadMeasurement,
    /// By number of connections.
    pub(crate) closed: BTreeMap<usize, LoadMeasurement>,
    /// By requests a second.
    pub(crate) open: BTreeMap<u32, LoadMeasurement>,
    /// New connections.
    pub(crate) handshakes: LoadMeasurement,
    /// Large downloads over HTTP/1.1.
    pub(crate) download: LoadMeasurement,
    /// Large uploads over HTTP/1.1; only of a pair.
    #[serde(default)]
    pub(crate) upload: Option<LoadMeasurement>,
    /// `None` if the target does not use HTTP/2.
    #[serde(default)]
    pub(crate) http2_download: Option<LoadMeasurement>,
    /// `None` if the target does not use HTTP/2.
    #[serde(default)]
    pub(crate) http2_upload: Option<LoadMeasurement>,
    /// `None` unless the run was extended, and of variants of other targets.
    #[serde(default)]
    pub(crate) extended: Option<ExtendedMeasures>,
}

/// One target in one round of an extended run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExtendedMeasures {
    /// Resident memory before the idle connections, of a pair the client's side's.
    pub(crate) fresh_kib: Option<u64>,
    /// By number of idle connections.
    pub(crate) idle: BTreeMap<usize, LoadMeasurement>,
    /// Closed loops of 64 connections, by bytes of the responses' bodies.
    pub(crate) bodies: BTreeMap<u64, LoadMeasurement>,
    /// 64 requests at a time over HTTP/2; `None` if the target does not carry it.
    pub(crate) http2: Option<LoadMeasurement>,
    /// 64 gRPC calls at a time; `None` if the target does not carry them.
    pub(crate) grpc: Option<LoadMeasurement>,
}

impl Results {
    /// The targets, in the order of the columns.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.rounds.first().map(|round| round.keys().copied().collect()).unwrap_or_default()
    }

    /// One line for each load in which a request failed.
    pub(crate) fn errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        for (number, round) in self.rounds.iter().enumerate() {
            for (target, measures) in round {
                for (load, report) in measures.loads() {
                    if report.errors > 0 {
                        let first = report.first_error.as_deref().unwrap_or("unknown");
                        errors.push(format!(
                            "{target}, round {}, {load}: {} ({first})",
                            number + 1,
                            report.errors
                        ));
                    }
                }
            }
        }
        errors
    }
}

impl Measures {
    /// Each load with its name in errors.
    fn loads(&self) -> Vec<(String, &LoadMeasurement)> {
        let mut loads = vec![
            ("idle".to_owned(), &self.idle),
            ("handshakes".to_owned(), &self.handshakes),
            ("download".to_owned(), &self.download),
        ];
        let others = [
            ("upload", &self.upload),
            ("http2 download", &self.http2_download),
            ("http2 upload", &self.http2_upload),
        ];
        loads.extend(
            others.into_iter().filter_map(|(load, report)| Some((load.to_owned(), report.as_ref()?))),
        );
        loads.extend(self.closed.iter().map(|(number, report)| (format!("{number} connections"), report)));
        loads.extend(self.open.iter().map(|(rate, report)| (format!("{rate}/s"), report)));
        loads.extend(self.extended.iter().flat_map(ExtendedMeasures::loads));
        loads
    }
}

impl ExtendedMeasures {
    /// Each load with its name in errors.
    fn loads(&self) -> Vec<(String, &LoadMeasurement)> {
        let idle = self.idle.iter().map(|(number, report)| (format!("{number} idle"), report));
        let bodies = self.bodies.iter().map(|(bytes, report)| (format!("bodies of {bytes} B"), report));
        let others = [("HTTP/2", &self.http2), ("gRPC", &self.grpc)];
        let others =
            others.into_iter().filter_map(|(load, report)| Some((load.to_owned(), report.as_ref()?)));
        idle.chain(bodies).chain(others).collect()
    }
}

impl Machine {
    /// This machine.
    pub(crate) fn this() -> Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo")?;
        let models: Vec<&str> = processors
            .lines()
            .filter_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map(|(_, model)| model.trim())
            .collect();
        let processor =
            format!("{} × {}", models.len(), models.first().unwrap_or(&"processor of unknown make"));
        let kernel = format!("Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
        Ok(Self { processor, kernel })
    }
}
