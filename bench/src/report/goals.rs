//! Tidegate's goals, and whether they were reached.

use super::Results;
use super::metrics::{MAIN_CONNECTIONS, Metric, Quantile, Transfer};
use super::table::number;
use crate::targets::Target;
use crate::topology::ProxyTopology;

/// A bound on a figure of Tidegate's, absolute or relative to other targets'.
#[derive(Debug)]
pub(super) struct Goal {
    /// Name in the table.
    name: &'static str,
    /// The figure.
    metric: Metric,
    /// Whose figure it is.
    of: Target,
    /// The targets whose figures it is divided by. Of several, the one to which the ratio is worst counts: the best one.
    /// Empty for an absolute bound.
    beside: &'static [Target],
    /// The bound that the figure must meet.
    bound: Bound,
    /// Unit of figure and bound.
    unit: &'static str,
}

/// The bound of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// Lower bound, inclusive.
    AtLeast(f64),
    /// Upper bound, inclusive.
    AtMost(f64),
}

const THROUGHPUT: Metric = Metric::Throughput { connections: MAIN_CONNECTIONS };
const CPU: Metric = Metric::CpuClosed { connections: MAIN_CONNECTIONS };
const DOWNLOAD: Metric = Metric::Megabytes(Transfer::Download);
/// The peers that speak HTTP.
const PEERS: &[Target] = &[Target::Nginx, Target::Haproxy, Target::Envoy];

/// All goals of topology "ingress", in the order of the table.
const INGRESS: [Goal; 5] = [
    goal("requests/s at 64 connections", THROUGHPUT).times(
        &[Target::Nginx],
        "× nginx's",
        Bound::AtLeast(1.4),
    ),
    goal("CPU per request at 64 connections", CPU).times(&[Target::Nginx], "× nginx's", Bound::AtMost(0.7)),
    goal("new mTLS connections/s", Metric::Handshakes).times(
        &[Target::Envoy],
        "× Envoy's",
        Bound::AtLeast(1.0),
    ),
    goal("RSS, fresh", Metric::FreshMegabytes).at_most(10.0, "MB"),
    goal("memory per idle mTLS connection", Metric::KibPerIdleConnection).at_most(12.0, "KiB"),
];

/// All goals of topology "pair", in the order of the table.
const PAIR: [Goal; 11] = [
    goal("requests/s at 64 connections", THROUGHPUT).times(
        &[Target::Nginx],
        "× nginx's",
        Bound::AtLeast(2.2),
    ),
    goal("requests/s at 64 connections", THROUGHPUT).times(
        &[Target::Envoy],
        "× Envoy's",
        Bound::AtLeast(6.0),
    ),
    goal("requests/s at 64 connections", THROUGHPUT).times(
        &[Target::TidegateTcp],
        "× its own for opaque TCP",
        Bound::AtLeast(0.9),
    ),
    goal("CPU per request at 64 connections", CPU).times(&[Target::Nginx], "× nginx's", Bound::AtMost(0.45)),
    goal("p99 at 1000/s", Metric::LatencyMicros { rate: 1000, quantile: Quantile::P99 }).times(
        PEERS,
        "× the best peer's",
        Bound::AtMost(1.0),
    ),
    goal("p99 at 3000/s", Metric::LatencyMicros { rate: 3000, quantile: Quantile::P99 }).times(
        PEERS,
        "× the best peer's",
        Bound::AtMost(1.0),
    ),
    goal("new connections/s", Metric::Handshakes).times(&[Target::Nginx], "× nginx's", Bound::AtLeast(1.0)),
    goal("100 MB download", DOWNLOAD).times(&[Target::EnvoyTcp], "× Envoy TCP's", Bound::AtLeast(1.0)),
    Goal {
        of: Target::TidegateTcp,
        ..goal("100 MB download, opaque TCP", DOWNLOAD).times(
            &[Target::EnvoyTcp],
            "× Envoy TCP's",
            Bound::AtLeast(1.0),
        )
    },
    goal("RSS of the client's side, fresh", Metric::FreshMegabytes).at_most(10.0, "MB"),
    goal("memory per idle connection of the client's side", Metric::KibPerIdleConnection)
        .at_most(12.0, "KiB"),
];

/// All goals of topology "egress", in the order of the table.
const EGRESS: [Goal; 9] = [
    goal("CPU per new connection", Metric::CpuMillisPerHandshake).beside_envoy(),
    goal("CPU per request at 64 connections", CPU).beside_envoy(),
    goal("CPU per GB, download", Metric::CpuPerGigabyte(Transfer::Download)).beside_envoy(),
    goal("RSS, fresh", Metric::FreshMegabytes).beside_envoy(),
    goal("memory per idle connection", Metric::KibPerIdleConnection).beside_envoy(),
    beside_few(
        "CPU per new connection, 1,000 entries",
        Metric::CpuMillisPerHandshake,
        Target::Tidegate1000Entries,
    ),
    beside_few(
        "CPU per new connection, 10,000 entries",
        Metric::CpuMillisPerHandshake,
        Target::Tidegate10000Entries,
    ),
    beside_few("RSS with three of 1,000 entries in use", Metric::FreshMegabytes, Target::Tidegate1000Entries),
    beside_few(
        "RSS with three of 10,000 entries in use",
        Metric::FreshMegabytes,
        Target::Tidegate10000Entries,
    ),
];

/// A goal for many ServiceEntries: the cost of three, but for what measurements differ by.
const fn beside_few(name: &'static str, metric: Metric, of: Target) -> Goal {
    Goal { of, ..goal(name, metric) }.times(&[Target::Tidegate3Entries], "× that of 3", Bound::AtMost(1.1))
}

/// A goal of Tidegate's for HTTP, still without its bound.
const fn goal(name: &'static str, metric: Metric) -> Goal {
    Goal { name, metric, of: Target::Tidegate, beside: &[], bound: Bound::AtLeast(0.0), unit: "" }
}

/// Table of goals.
pub(super) fn render(results: &Results) -> String {
    let mut text = "| goal | bound | measured | |\n|---|---|---:|---|\n".to_owned();
    let goals = match results.settings.topology {
        ProxyTopology::Ingress => &INGRESS[..],
        ProxyTopology::Pair => &PAIR,
        ProxyTopology::Egress => &EGRESS,
    };
    for goal in goals {
        let measured = goal.measured(results);
        let (figure, verdict) = verdict(measured, goal.bound);
        text += &format!("| {} | {} {} | {figure} | {verdict} |\n", goal.name, goal.bound.text(), goal.unit);
    }
    text
}

/// A figure as the tables of goals show it, and whether it is within its bound.
pub(crate) fn verdict(measured: Option<f64>, bound: Bound) -> (String, &'static str) {
    match measured {
        None => ("–".to_owned(), "not measured"),
        Some(figure) if bound.is_met_by(figure) => (number(figure, 2), "reached"),
        Some(figure) => (number(figure, 2), "**not reached**"),
    }
}

impl Goal {
    /// Relative to other targets.
    const fn times(self, beside: &'static [Target], unit: &'static str, bound: Bound) -> Self {
        Self { beside, unit, bound, ..self }
    }

    /// At most what Envoy needs.
    const fn beside_envoy(self) -> Self {
        self.times(&[Target::Envoy], "× Envoy's", Bound::AtMost(1.0))
    }

    /// An absolute upper bound.
    const fn at_most(self, bound: f64, unit: &'static str) -> Self {
        Self { unit, bound: Bound::AtMost(bound), ..self }
    }

    /// Tidegate's figure, or its ratio to the best of the other targets'.
    fn measured(&self, results: &Results) -> Option<f64> {
        if self.beside.is_empty() {
            return self.metric.median(results, self.of);
        }
        let ratios = self.beside.iter().filter_map(|other| self.metric.ratio(results, self.of, *other));
        ratios.reduce(match self.bound {
            Bound::AtLeast(_) => f64::min,
            Bound::AtMost(_) => f64::max,
        })
    }
}

impl Bound {
    /// Whether a figure is within the bound.
    fn is_met_by(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bound) => figure >= bound,
            Self::AtMost(bound) => figure <= bound,
        }
    }

    /// The bound in the table.
    pub(crate) fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}
