//! Tidegate's goals, and whether they were reached.

use super::Results;
use super::metrics::{MAIN_CONNECTIONS, Metric};
use super::table::number;
use crate::targets::Target;

/// A bound on a figure of Tidegate's, absolute or relative to another target's.
#[derive(Debug)]
pub(super) struct Goal {
    /// Name in the table.
    name: &'static str,
    /// The figure.
    metric: Metric,
    /// The target whose figure it is divided by; `None` for an absolute bound.
    beside: Option<Target>,
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

/// All goals, in the order of the table.
const GOALS: [Goal; 5] = [
    Goal {
        name: "requests/s at 64 connections",
        metric: Metric::Throughput { connections: MAIN_CONNECTIONS },
        beside: Some(Target::Nginx),
        bound: Bound::AtLeast(1.4),
        unit: "× nginx's",
    },
    Goal {
        name: "CPU per request at 64 connections",
        metric: Metric::CpuClosed { connections: MAIN_CONNECTIONS },
        beside: Some(Target::Nginx),
        bound: Bound::AtMost(0.7),
        unit: "× nginx's",
    },
    Goal {
        name: "new mTLS connections/s",
        metric: Metric::Handshakes,
        beside: Some(Target::Envoy),
        bound: Bound::AtLeast(1.0),
        unit: "× Envoy's",
    },
    Goal {
        name: "RSS, fresh",
        metric: Metric::FreshMegabytes,
        beside: None,
        bound: Bound::AtMost(10.0),
        unit: "MB",
    },
    Goal {
        name: "memory per idle mTLS connection",
        metric: Metric::KibPerIdleConnection,
        beside: None,
        bound: Bound::AtMost(12.0),
        unit: "KiB",
    },
];

/// Table of goals.
pub(super) fn render(results: &Results) -> String {
    let mut text = "| goal | bound | measured | |\n|---|---|---:|---|\n".to_owned();
    for goal in &GOALS {
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
    /// Tidegate's figure, or its ratio to the other target's.
    fn measured(&self, results: &Results) -> Option<f64> {
        match self.beside {
            None => self.metric.median(results, Target::Tidegate),
            Some(other) => self.metric.ratio(results, Target::Tidegate, other),
        }
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
