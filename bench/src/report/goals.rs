//! Tidegate's goals, and whether they were reached.

use super::Results;
use super::metrics::{MAIN_CONNECTIONS, Metric};
use super::table::number;
use crate::targets::Target;

/// A bound on a figure of Tidegate's, absolute or relative to another target's.
#[derive(Debug)]
pub(super) struct Goal {
    name: &'static str,
    metric: Metric,
    beside: Option<Target>,
    bound: Bound,
    unit: &'static str,
}

/// The bound of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

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
        Some(figure) if bound.holds(figure) => (number(figure, 2), "reached"),
        Some(figure) => (number(figure, 2), "**not reached**"),
    }
}

impl Goal {
    fn measured(&self, results: &Results) -> Option<f64> {
        match self.beside {
            None => self.metric.median(results, Target::Tidegate),
            Some(other) => self.metric.ratio(results, Target::Tidegate, other),
        }
    }
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bound) => figure >= bound,
            Self::AtMost(bound) => figure <= bound,
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}
