//! What a worker tells about its traffic: a line in the access log and counts, for each request or opaque connection.

pub mod access_log;
pub mod metrics;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tidegate_core::policy::{Decision, Reason};

use self::access_log::AccessLog;
use self::metrics::{DataPlaneMetrics, Totals, WorkerMetrics};
use crate::connection_info::ConnectionInfo;

/// Why a response is not the app's own; Envoy's and Istio's letters, which log parsers know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// None: the app answered.
    #[default]
    None,
    /// `UF`: the app could not be reached.
    UpstreamConnectionFailure,
    /// `UC`: the app closed the connection before its answer was complete.
    UpstreamConnectionTermination,
    /// `UT`: the app took too long.
    UpstreamTimeout,
    /// `UPE`: the app's answer was not HTTP that can be passed on.
    UpstreamProtocolError,
    /// `UH`: there is no app to reach.
    NoHealthyUpstream,
    /// `UO`: there are too many requests for the app.
    UpstreamOverflow,
    /// `DC`: the client went away first.
    DownstreamConnectionTermination,
    /// `DPE`: the client's request was not HTTP that can be passed on.
    DownstreamProtocolError,
    /// `DT`: the client took too long (its head or its body).
    DownstreamTimeout,
    /// `RBAC`: the policy refused it.
    Refused,
    /// `NR`: the policy has nothing for the port.
    NoRoute,
    /// `OM`: the sidecar has no room for it.
    Overload,
}

/// One request, or one connection of opaque bytes, once it is over. Borrowed: nothing is copied unless it is logged.
#[derive(Default)]
pub struct Record<'a> {
    /// The connection.
    pub connection: Option<&'a ConnectionInfo>,
    /// The connection, if it is one that the app has opened.
    pub outbound: Option<OutboundRecord<'a>>,
    /// The policy's verdict.
    pub decision: Option<&'a Decision>,
    /// When its first byte came.
    pub start: Option<SystemTime>,
    /// From its first byte to the last byte of the answer.
    pub duration: Duration,
    /// From the request's last byte to the app to the first byte back.
    pub upstream_time: Option<Duration>,
    /// Method; empty for opaque bytes.
    pub method: &'a [u8],
    /// Path with query, as the app got it.
    pub path: &'a [u8],
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`; empty for opaque bytes.
    pub protocol: &'a str,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
    /// Why the answer is not the app's.
    pub flag: ResponseFlag,
    /// A stable word on how it ended, such as `via_upstream` or `rbac_access_denied`.
    pub details: &'a str,
    /// Bytes of the request's body, or from the client.
    pub received: u64,
    /// Bytes of the answer's body, or to the client.
    pub sent: u64,
    /// `host` or `:authority`.
    pub authority: &'a [u8],
    /// `user-agent`.
    pub user_agent: &'a [u8],
    /// `x-forwarded-for` as the app got it.
    pub forwarded_for: &'a [u8],
    /// `x-request-id` as the app got it.
    pub request_id: &'a [u8],
}

/// A connection that the app has opened.
#[derive(Clone, Copy, Debug)]
pub struct OutboundRecord<'a> {
    /// The app's end.
    pub peer: SocketAddr,
    /// What the app dialled.
    pub dialled: SocketAddr,
    /// `<namespace>/<name>` of the Service or Pod of the mesh, if it is one.
    pub service: Option<&'a str>,
    /// The endpoint that was chosen.
    pub endpoint: Option<SocketAddr>,
    /// Whether the endpoint is one of the mesh.
    pub is_mutual_tls: bool,
}

/// A worker's own counters and its buffer of log lines.
pub struct Telemetry {
    metrics: WorkerMetrics,
    access_log: Option<AccessLog>,
}

impl Telemetry {
    /// For one worker: its shard of the counts, and its log if there is to be one.
    pub fn new(metrics: &DataPlaneMetrics, access_log: Option<AccessLog>) -> Self {
        Self { metrics: metrics.worker(), access_log }
    }

    /// With an access log in this file, as JSON.
    #[cfg(test)]
    pub(crate) fn in_file(path: &std::path::Path) -> Self {
        use self::access_log::{AccessLogFormat, AccessLogSink, AccessLogTarget};

        let sink = AccessLogSink::open(&AccessLogTarget::File(path.to_owned())).unwrap();
        let log = AccessLog::new(AccessLogFormat::Json, sink.clone());
        Self::new(&DataPlaneMetrics::new(Some(sink)), Some(log))
    }

    /// Counts, and logs where logging is on.
    pub fn record(&self, record: &Record<'_>) {
        self.metrics.record(record);
        if let Some(log) = &self.access_log {
            log.write(record);
        }
    }

    /// Counts of connections, handshakes and bytes.
    pub fn totals(&self) -> &Totals {
        self.metrics.totals()
    }

    /// Counts that a limit was met.
    pub fn limited(&self, limit: &'static str) {
        self.metrics.limited(limit);
    }

    /// Hands the log lines there are to the writing thread; called on every tick of the worker.
    pub fn flush(&self) {
        if let Some(log) = &self.access_log {
            log.flush();
        }
    }
}

impl Default for Telemetry {
    /// Counts that nobody reads, and no log.
    fn default() -> Self {
        Self::new(&DataPlaneMetrics::new(None), None)
    }
}

impl ResponseFlag {
    /// Of a request or a connection that the policy refuses.
    pub fn of_refusal(reason: &Reason) -> Self {
        match reason {
            Reason::NoPolicy | Reason::NoSuchPort | Reason::NoIngressBackend => Self::NoRoute,
            _ => Self::Refused,
        }
    }

    /// The letters, as in Istio's `response_flags`.
    pub fn code(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamProtocolError => "UPE",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamOverflow => "UO",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::DownstreamTimeout => "DT",
            Self::Refused => "RBAC",
            Self::NoRoute => "NR",
            Self::Overload => "OM",
        }
    }
}
