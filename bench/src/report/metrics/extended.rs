//! The figures of an extended run.

use super::{cpu_per_request, rate};
use crate::load::LoadMeasurement;
use crate::report::table::number;
use crate::report::{ExtendedMeasures, RunSettings};
use crate::topology::ProxyTopology;

/// One row of an extended run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::report) enum ExtendedMetric {
    /// Requests per second.
    Throughput(ExtendedLoad),
    /// CPU time of 10,000 requests, in seconds.
    Cpu(ExtendedLoad),
    /// Resident memory with this number of idle connections, in MB.
    IdleMegabytes(usize),
    /// What each of this number of idle connections adds to resident memory, in KiB.
    KibPerIdleConnection(usize),
}

/// 64 requests at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::report) enum ExtendedLoad {
    /// Over HTTP/1.1, with responses of this number of bytes.
    Body(u64),
    /// Over HTTP/2.
    Http2,
    /// gRPC calls.
    Grpc,
}

impl ExtendedMetric {
    /// All rows, in the table's order; none unless the run was extended.
    pub(super) fn all(settings: &RunSettings) -> Vec<Self> {
        let Some(extended) = &settings.extended else { return Vec::new() };
        let mut loads: Vec<_> = extended.bodies.iter().copied().map(ExtendedLoad::Body).collect();
        loads.push(ExtendedLoad::Http2);
        if settings.topology == ProxyTopology::Pair {
            loads.push(ExtendedLoad::Grpc);
        }
        let mut rows: Vec<_> = loads.iter().copied().map(Self::Throughput).collect();
        rows.extend(loads.into_iter().map(Self::Cpu));
        rows.extend(extended.idle.iter().copied().map(Self::IdleMegabytes));
        rows.extend(extended.idle.iter().copied().map(Self::KibPerIdleConnection));
        rows
    }

    /// The row's label; `side`: whose memory it is.
    pub(super) fn label(self, side: &str) -> String {
        match self {
            Self::Throughput(load) => format!("requests/s, {}", load.label()),
            Self::Cpu(load) => format!("CPU s per 10 k requests, {}", load.label()),
            Self::IdleMegabytes(connections) => format!("RSS MB{side}, {connections} idle connections"),
            Self::KibPerIdleConnection(connections) => {
                format!("KiB per idle connection{side}, {connections} of them")
            }
        }
    }

    /// Digits after the point.
    pub(super) fn digits(self) -> usize {
        match self {
            Self::Throughput(_) => 0,
            Self::IdleMegabytes(_) | Self::KibPerIdleConnection(_) => 1,
            Self::Cpu(_) => 2,
        }
    }

    /// The figure of one round; `None` if the target was not measured with it.
    pub(super) fn of(self, measures: &ExtendedMeasures) -> Option<f64> {
        let idle_kib = |connections| measures.idle.get(&connections)?.proxy_kib_after;
        match self {
            Self::Throughput(load) => rate(load.of(measures)?),
            Self::Cpu(load) => cpu_per_request(load.of(measures)?).map(|cpu| cpu * 1e4),
            Self::IdleMegabytes(connections) => Some(idle_kib(connections)? as f64 * 1024.0 / 1e6),
            Self::KibPerIdleConnection(connections) => {
                let added = idle_kib(connections)? as f64 - measures.fresh_kib? as f64;
                Some(added / connections as f64)
            }
        }
    }
}

impl ExtendedLoad {
    /// The results of this load; `None` if the target was not measured with it.
    pub(super) fn of(self, measures: &ExtendedMeasures) -> Option<&LoadMeasurement> {
        match self {
            Self::Body(bytes) => measures.bodies.get(&bytes),
            Self::Http2 => measures.http2.as_ref(),
            Self::Grpc => measures.grpc.as_ref(),
        }
    }

    /// Name in labels.
    fn label(self) -> String {
        match self {
            Self::Body(bytes) => format!("bodies of {} B", number(bytes as f64, 0)),
            Self::Http2 => "64 streams of HTTP/2".to_owned(),
            Self::Grpc => "64 gRPC calls at a time".to_owned(),
        }
    }
}
