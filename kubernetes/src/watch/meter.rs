//! Metrics of watches: they show an operator what no log line does, that events have stopped.

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tidegate_runtime::metrics::Metrics;

type Timestamp = Gauge<f64, AtomicU64>;

/// The metrics of a process' watches.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    connected: Family<WatchLabels, Gauge>,
    last_event: Family<WatchLabels, Timestamp>,
    restarts: Family<WatchLabels, Counter>,
}

/// The metrics of one kind's watch.
#[derive(Clone, Debug)]
pub struct KindMeter {
    kind: &'static str,
    connected: Gauge,
    pub(super) last_event: Timestamp,
    pub(super) restarts: Counter,
}

/// One series per kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabels {
    kind: &'static str,
}

impl WatchMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            connected: metrics.register("tidegate_watch_connected", "Whether a watch of the API server stands, 0 or 1"),
            last_event: metrics.register("tidegate_watch_last_event_timestamp_seconds", "When the API server was last heard of this kind, as seconds since 1970; a watch that is well hears \
                 something at least twice a minute"),
            restarts: metrics.register("tidegate_watch_restarts", "Watches that ended otherwise than in order"),
        }
    }

    /// The metrics of a kind, such as `Pod`.
    pub fn kind(&self, kind: &'static str) -> KindMeter {
        let label = WatchLabels { kind };
        KindMeter {
            kind,
            connected: self.connected.get_or_create(&label).clone(),
            last_event: self.last_event.get_or_create(&label).clone(),
            restarts: self.restarts.get_or_create(&label).clone(),
        }
    }
}

impl KindMeter {
    /// The kind that is measured.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The API server has sent a page, an event or a bookmark.
    pub(super) fn heard(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_event.set(now.as_secs_f64());
    }

    /// A watch has begun.
    pub(super) fn connected(&self) {
        self.heard();
        self.connected.set(1);
    }

    /// A list or a watch has failed; the objects may be out of date from now on.
    pub(super) fn disconnected(&self) {
        self.connected.set(0);
    }

    /// A watch ended before its time, or a new list was needed.
    pub(super) fn restarted(&self) {
        self.restarts.inc();
    }
}
