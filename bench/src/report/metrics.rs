//! The figures of the table: how each is computed from one round, and from all rounds.

mod extended;

pub(super) use self::extended::ExtendedMetric;
use super::{Measures, Results, RunSettings};
use crate::load::LoadMeasurement;
use crate::targets::Target;
use crate::topology::ProxyTopology;

/// The closed loop that the goals refer to.
pub(super) const MAIN_CONNECTIONS: usize = 64;
/// Below this share of its core, a proxy under a closed loop was waiting for load and app.
const SATURATED: f64 = 0.9;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Metric {
    /// Requests per second of the closed loop.
    Throughput { connections: usize },
    /// CPU time per request of the closed loop.
    CpuClosed { connections: usize },
    /// Latency of the open loop, in microseconds.
    LatencyMicros { rate: u32, quantile: Quantile },
    /// CPU time per request of the open loop.
    CpuOpen { rate: u32 },
    /// New connections per second.
    Handshakes,
    /// CPU time per new connection, in milliseconds.
    CpuMillisPerHandshake,
    /// Resident memory after the first request, in MB.
    FreshMegabytes,
    /// Resident memory with all idle connections, in MB.
    IdleMegabytes,
    /// What an idle connection adds to resident memory, in KiB.
    KibPerIdleConnection,
    /// MB per second of large bodies.
    Megabytes(Transfer),
    /// CPU time per GB of large bodies, in seconds.
    CpuPerGigabyte(Transfer),
    /// A figure of an extended run.
    Extended(ExtendedMetric),
}

/// A large body.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Transfer {
    /// From the app, over HTTP/1.1.
    Download,
    /// To the app, over HTTP/1.1.
    Upload,
    /// From the app, over HTTP/2.
    Http2Download,
    /// To the app, over HTTP/2.
    Http2Upload,
}

/// A quantile of latencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Quantile {
    P50,
    P90,
    P99,
    P999,
}

impl Metric {
    /// All rows, in the table's order.
    pub(super) fn all(settings: &RunSettings) -> Vec<Self> {
        let mut rows = Vec::new();
        rows.extend(
            settings.connections.iter().map(|connections| Self::Throughput { connections: *connections }),
        );
        rows.extend(
            settings.connections.iter().map(|connections| Self::CpuClosed { connections: *connections }),
        );
        for rate in settings.rates.iter().copied() {
            for quantile in [Quantile::P50, Quantile::P90, Quantile::P99, Quantile::P999] {
                rows.push(Self::LatencyMicros { rate, quantile });
            }
            rows.push(Self::CpuOpen { rate });
        }
        rows.extend([
            Self::Handshakes,
            Self::CpuMillisPerHandshake,
            Self::FreshMegabytes,
            Self::IdleMegabytes,
            Self::KibPerIdleConnection,
        ]);
        let transfers = match settings.topology {
            ProxyTopology::Ingress => {
                &[Transfer::Download, Transfer::Http2Download, Transfer::Http2Upload][..]
            }
            ProxyTopology::Pair => &[Transfer::Download, Transfer::Upload],
            ProxyTopology::Egress => &[Transfer::Download],
        };
        for transfer in transfers.iter().copied() {
            rows.extend([Self::Megabytes(transfer), Self::CpuPerGigabyte(transfer)]);
        }
        rows.extend(ExtendedMetric::all(settings).into_iter().map(Self::Extended));
        rows
    }

    /// The row's label.
    pub(super) fn label(self, settings: &RunSettings) -> String {
        let side = match settings.topology {
            ProxyTopology::Ingress | ProxyTopology::Egress => "",
            ProxyTopology::Pair => " of the client's side",
        };
        match self {
            Self::Throughput { connections } => format!("requests/s, {}", counted(connections)),
            Self::CpuClosed { connections } => format!("CPU s per 10 k requests, {}", counted(connections)),
            Self::LatencyMicros { rate, quantile } => format!("{} µs at {rate}/s", quantile.label()),
            Self::CpuOpen { rate } => format!("CPU s per 10 k requests at {rate}/s"),
            Self::Handshakes => match settings.topology {
                ProxyTopology::Ingress => "new mTLS connections/s".to_owned(),
                ProxyTopology::Pair | ProxyTopology::Egress => "new connections/s".to_owned(),
            },
            Self::CpuMillisPerHandshake => "CPU ms per new connection".to_owned(),
            Self::FreshMegabytes => format!("RSS MB{side}, fresh"),
            Self::IdleMegabytes => format!("RSS MB{side}, {} idle connections", settings.idle),
            Self::KibPerIdleConnection => format!("KiB per idle connection{side}"),
            Self::Megabytes(transfer) => format!("100 MB {}, MB/s", transfer.label()),
            Self::CpuPerGigabyte(transfer) => format!("CPU s per GB, {}", transfer.label()),
            Self::Extended(metric) => metric.label(side),
        }
    }

    /// Digits after the point.
    pub(super) fn digits(self) -> usize {
        match self {
            Self::Throughput { .. } | Self::LatencyMicros { .. } | Self::Handshakes | Self::Megabytes(_) => 0,
            Self::FreshMegabytes | Self::IdleMegabytes | Self::KibPerIdleConnection => 1,
            Self::CpuClosed { .. } | Self::CpuOpen { .. } | Self::CpuPerGigabyte(_) => 2,
            Self::CpuMillisPerHandshake => 3,
            Self::Extended(metric) => metric.digits(),
        }
    }

    /// The figure of one round; `None` if there is nothing to measure, such as the memory without a proxy.
    pub(super) fn of(self, measures: &Measures, settings: &RunSettings) -> Option<f64> {
        match self {
            Self::Throughput { connections } => rate(measures.closed.get(&connections)?),
            Self::CpuClosed { connections } => {
                cpu_per_request(measures.closed.get(&connections)?).map(|cpu| cpu * 1e4)
            }
            Self::LatencyMicros { rate, quantile } => Some(quantile.of(measures.open.get(&rate)?)),
            Self::CpuOpen { rate } => cpu_per_request(measures.open.get(&rate)?).map(|cpu| cpu * 1e4),
            Self::Handshakes => rate(&measures.handshakes),
            Self::CpuMillisPerHandshake => cpu_per_request(&measures.handshakes).map(|cpu| cpu * 1e3),
            Self::FreshMegabytes => Some(measures.fresh_kib? as f64 * 1024.0 / 1e6),
            Self::IdleMegabytes => Some(measures.idle.proxy_kib_after? as f64 * 1024.0 / 1e6),
            Self::KibPerIdleConnection => {
                let (before, after) = (measures.idle.proxy_kib_before?, measures.idle.proxy_kib_after?);
                Some((after as f64 - before as f64) / settings.idle as f64)
            }
            Self::Megabytes(transfer) => {
                let report = transfer.of(measures)?;
                positive(report.seconds).map(|seconds| report.body_bytes as f64 / 1e6 / seconds)
            }
            Self::CpuPerGigabyte(transfer) => {
                let report = transfer.of(measures)?;
                Some(report.proxy_cpu_seconds? / positive(report.body_bytes as f64 / 1e9)?)
            }
            Self::Extended(metric) => metric.of(measures.extended.as_ref()?),
        }
    }

    /// The median over all rounds.
    pub(super) fn median(self, results: &Results, target: Target) -> Option<f64> {
        let figures =
            results.rounds.iter().filter_map(|round| self.of(round.get(&target)?, &results.settings));
        median(figures.collect())
    }

    /// The median of the ratios of two targets, each taken within one round.
    pub(super) fn ratio(self, results: &Results, target: Target, to: Target) -> Option<f64> {
        let ratios = results.rounds.iter().filter_map(|round| {
            let figure = self.of(round.get(&target)?, &results.settings)?;
            let other = positive(self.of(round.get(&to)?, &results.settings)?)?;
            Some(figure / other)
        });
        median(ratios.collect())
    }

    /// The share of its core that the proxy used at the median, under loads that demand as much as it can give.
    fn core_share(self, results: &Results, target: Target) -> Option<f64> {
        let shares = results.rounds.iter().filter_map(|round| {
            let measures = round.get(&target)?;
            let report = match self {
                Self::Throughput { connections } => measures.closed.get(&connections)?,
                Self::Handshakes => &measures.handshakes,
                Self::Megabytes(transfer) => transfer.of(measures)?,
                Self::Extended(ExtendedMetric::Throughput(load)) => load.of(measures.extended.as_ref()?)?,
                _ => return None,
            };
            Some(report.proxy_cpu_seconds? / positive(report.seconds)?)
        });
        median(shares.collect())
    }

    /// Whether load and app, rather than the proxy, set the limit, so that the proxy could do more.
    pub(super) fn bound_by_load(self, results: &Results, target: Target) -> bool {
        self.core_share(results, target).is_some_and(|share| share < SATURATED)
    }
}

impl Transfer {
    /// Name in labels.
    fn label(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Http2Download => "download over HTTP/2",
            Self::Http2Upload => "upload over HTTP/2",
        }
    }

    /// The results of this transfer; `None` if the target was not measured with it.
    fn of(self, measures: &Measures) -> Option<&LoadMeasurement> {
        match self {
            Self::Download => Some(&measures.download),
            Self::Upload => measures.upload.as_ref(),
            Self::Http2Download => measures.http2_download.as_ref(),
            Self::Http2Upload => measures.http2_upload.as_ref(),
        }
    }
}

impl Quantile {
    /// Name in labels.
    fn label(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
        }
    }

    /// The quantile in microseconds.
    fn of(self, report: &LoadMeasurement) -> f64 {
        match self {
            Self::P50 => report.latency.p50,
            Self::P90 => report.latency.p90,
            Self::P99 => report.latency.p99,
            Self::P999 => report.latency.p999,
        }
    }
}

/// The median; the mean of the middle two if their number is even, `None` without figures.
pub(super) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = *figures.get(middle)?;
    if figures.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(figures[middle - 1], upper)) }
}

/// Responses per second.
fn rate(report: &LoadMeasurement) -> Option<f64> {
    Some(report.requests as f64 / positive(report.seconds)?)
}

/// The proxy's CPU time per response, in seconds.
fn cpu_per_request(report: &LoadMeasurement) -> Option<f64> {
    Some(report.proxy_cpu_seconds? / positive(report.requests as f64)?)
}

/// A divisor; `None` unless positive.
fn positive(figure: f64) -> Option<f64> {
    (figure > 0.0).then_some(figure)
}

/// The number of connections in words.
fn counted(connections: usize) -> String {
    format!("{connections} connection{}", if connections == 1 { "" } else { "s" })
}
