//! Which series of remote workloads the metrics page shows: at most [`MOST_SERIES`], whatever happens.
//!
//! A series is a line of the page. Those that come first are shown; what comes later is counted in series of
//! [`RemoteId::OTHER`], of which there are few and which always have room.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::remotes::RemoteId;
use crate::telemetry::{ConnectionSecurity, GrpcOutcome, ResponseFlag};

/// The most series of a sidecar, with those of [`RemoteId::OTHER`].
pub(super) const MOST_SERIES: usize = 600;

/// Upper bounds of durations in milliseconds: Istio's.
pub(super) const MILLISECONDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// Upper bounds of the bytes of bodies.
pub(super) const BODY_BYTES: [f64; 4] = [1e3, 1e4, 1e5, 1e6];

/// Lines of the three histograms: for each its bounds, the infinite one, the sum and the count.
const HISTOGRAM_LINES: usize = MILLISECONDS.len() + 3 + 2 * (BODY_BYTES.len() + 3);
/// Lines of opaque connections: opened, closed, sent, received.
const TCP_LINES: usize = 4;
/// Room for [`RemoteId::OTHER`] in both directions: six classes of responses, histograms, connections.
const OTHER_LINES: usize = 2 * (6 + HISTOGRAM_LINES + TCP_LINES);
/// The most histograms of named workloads: two thirds of the room, so that counters of more workloads have some.
const MOST_HISTOGRAMS: usize = (MOST_SERIES - OTHER_LINES) * 2 / 3 / HISTOGRAM_LINES;
/// The most lines of other series of named workloads.
const MOST_COUNTERS: usize = MOST_SERIES - OTHER_LINES - MOST_HISTOGRAMS * HISTOGRAM_LINES;

/// What carries requests, in Istio's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum RequestProtocol {
    Http,
    Grpc,
    /// Of [`RemoteId::OTHER`].
    Other,
}

/// How requests came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestKind {
    pub(super) protocol: RequestProtocol,
    pub(super) security: ConnectionSecurity,
}

/// Requests that are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestLabels {
    pub(super) kind: RequestKind,
    pub(super) code: ResponseCode,
    pub(super) flag: ResponseFlag,
    pub(super) grpc: Option<GrpcOutcome>,
}

/// A status, or all of a hundred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ResponseCode {
    /// 0: there was no response.
    Exact(u16),
    /// `5` for `5xx`.
    Class(u16),
}

/// The workload at the other end, and which end that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RemoteKey {
    pub(super) is_outbound: bool,
    pub(super) remote: RemoteId,
}

/// Labels of a series beside the workload, or of several that are shown together.
pub(super) trait SeriesLabels: Copy + PartialEq {
    /// The series with these labels.
    fn series(self) -> Series;

    /// The labels of the series of [`RemoteId::OTHER`] that counts what these would.
    fn folded(self) -> Self;
}

/// What is shown, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Series {
    /// One counter.
    Requests(RequestLabels),
    /// [`HISTOGRAM_LINES`].
    Histograms(RequestKind),
    /// [`TCP_LINES`].
    Tcp(ConnectionSecurity),
}

/// The series that are shown, of all workers.
#[derive(Default)]
pub(super) struct ShownSeries(Mutex<ShownTable>);

#[derive(Default)]
struct ShownTable {
    shown: HashSet<(RemoteKey, Series)>,
    histograms: usize,
    counters: usize,
}

impl ShownSeries {
    /// Whether a series is shown: there is room, or it was shown before.
    pub(super) fn admit(&self, remote: RemoteKey, series: Series) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.shown.contains(&(remote, series)) {
            return true;
        }
        let (taken, lines, most) = match series {
            Series::Requests(_) => (&mut table.counters, 1, MOST_COUNTERS),
            Series::Tcp(_) => (&mut table.counters, TCP_LINES, MOST_COUNTERS),
            Series::Histograms(_) => (&mut table.histograms, 1, MOST_HISTOGRAMS),
        };
        if *taken + lines > most {
            return false;
        }
        *taken += lines;
        table.shown.insert((remote, series))
    }
}

impl SeriesLabels for RequestLabels {
    fn series(self) -> Series {
        Series::Requests(self)
    }

    fn folded(self) -> Self {
        let code = match self.code {
            ResponseCode::Exact(code) => ResponseCode::Class(code / 100),
            ResponseCode::Class(_) => self.code,
        };
        Self { kind: self.kind.folded(), code, flag: ResponseFlag::None, grpc: None }
    }
}

impl SeriesLabels for RequestKind {
    fn series(self) -> Series {
        Series::Histograms(self)
    }

    fn folded(self) -> Self {
        Self { protocol: RequestProtocol::Other, security: ConnectionSecurity::Unknown }
    }
}

impl SeriesLabels for ConnectionSecurity {
    fn series(self) -> Series {
        Series::Tcp(self)
    }

    fn folded(self) -> Self {
        Self::Unknown
    }
}

impl RemoteKey {
    /// The workloads of this direction that are not told apart.
    pub(super) fn other(self) -> Self {
        Self { remote: RemoteId::OTHER, ..self }
    }
}
