//! Records traffic: an access log line and counts for each request or opaque connection.

pub mod access_log;
pub mod egress;
pub mod metrics;
pub(crate) mod recent;
pub(crate) mod trace;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use tidegate_core::backend::{Endpoint, ProxyRequest};
use tidegate_core::policy::{Decision, Reason, Terms};
use tidegate_core::telemetry::TelemetrySettings;

use self::access_log::AccessLog;
use self::egress::{EgressRecorder, EgressUsage};
pub(crate) use self::metrics::CountedTcp;
use self::metrics::{DataPlaneMetrics, Totals, WorkerMetrics};
use self::recent::{RecentRecorder, RecentSink};
use self::trace::{RequestTrace, Sampling, SpanSink, Tracer};
use crate::connection_info::{AddressOwner, ConnectionInfo, HostServices, OutboundInfo, ServedConnection};
use crate::detect::server::SpokenProtocol;
use crate::remotes::RemoteId;

/// Why a response is not the app's own; the codes are those of Envoy and Istio, which log parsers understand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResponseFlag {
    /// The response is the app's.
    #[default]
    None,
    /// `UF`: the app could not be reached.
    UpstreamConnectionFailure,
    /// `UC`: the app closed the connection before its response was complete.
    UpstreamConnectionTermination,
    /// `UT`: the app took too long.
    UpstreamTimeout,
    /// `UPE`: the app's response was not HTTP that can be forwarded.
    UpstreamProtocolError,
    /// `UH`: no app can be reached.
    NoHealthyUpstream,
    /// `DF`: the name of the upstream could not be looked up.
    DnsFailure,
    /// `UO`: too many requests for the app.
    UpstreamOverflow,
    /// `DC`: the client closed the connection first.
    DownstreamConnectionTermination,
    /// `DPE`: the client's request was not HTTP that can be forwarded.
    DownstreamProtocolError,
    /// `DT`: the client took too long to send its head or its body.
    DownstreamTimeout,
    /// `RBAC`: refused by the policy.
    Refused,
    /// `NR`: the policy has no rule for the port, no route's rule applies to the request, or it leads to no backend.
    NoRoute,
    /// `RL`: more than a rate limit allows.
    RateLimited,
    /// `RLSE`: a rate limit service has no answer.
    RateLimitServiceError,
    /// `UAEX`: refused by the external authorization.
    ExternallyDenied,
    /// `OM`: the sidecar has reached a limit.
    Overload,
}

/// The result of a check by the external authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// The server allows the request.
    Ok,
    /// The server refuses the request.
    Denied,
    /// The check has failed.
    Error,
    /// The check has taken too long.
    Timeout,
    /// The check has failed, and its request is forwarded nevertheless. Counted besides `Error` or `Timeout`.
    FailureModeAllowed,
}

/// The result of a call of a rate limit service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimitResult {
    /// No limit is exceeded.
    Ok,
    /// A limit is exceeded.
    OverLimit,
    /// The call has failed.
    Error,
    /// The call has taken too long.
    Timeout,
    /// The call has failed, and what it was for is allowed nevertheless. Counted besides `Error` or `Timeout`.
    FailureModeAllowed,
}

/// The facts about a finished request or opaque connection. Borrowed: nothing is copied unless it is logged.
#[derive(Default)]
pub struct Record<'a> {
    /// The connection.
    pub connection: Option<&'a ConnectionInfo>,
    /// The connection, if the app opened it.
    pub outbound: Option<OutboundRecord<'a>>,
    /// The policy's decision.
    pub decision: Option<&'a Decision>,
    /// The rule of a route that applied: `<kind>/<namespace>/<name>/<rule>`.
    pub route: Option<&'a str>,
    /// When its first byte arrived.
    pub start: Option<SystemTime>,
    /// Time from its first byte to the last byte of the response.
    pub duration: Duration,
    /// Time from the last byte of the request to the app until the first byte of the response.
    pub upstream_time: Option<Duration>,
    /// Method; empty for opaque bytes.
    pub method: &'a [u8],
    /// Path and query, as the app received them.
    pub path: &'a [u8],
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`; empty for opaque bytes.
    pub protocol: &'a str,
    /// Status of the response; 0 if there was none.
    pub status: u16,
    /// The outcome, if the request is a gRPC call.
    pub grpc: Option<GrpcOutcome>,
    /// Why the response is not the app's.
    pub flag: ResponseFlag,
    /// A stable identifier of the outcome, such as `via_upstream` or `rbac_access_denied`.
    pub details: &'a str,
    /// Why the last endpoint that was tried could not be reached; empty if one was. Bounded and escaped when it is written.
    pub transport_failure: &'a str,
    /// Bytes of the request's body; for opaque connections, bytes from the client.
    pub received: u64,
    /// Bytes of the response's body; for opaque connections, bytes to the client.
    pub sent: u64,
    /// `host` or `:authority`.
    pub authority: &'a [u8],
    /// `user-agent`.
    pub user_agent: &'a [u8],
    /// `x-forwarded-for` as the app received it.
    pub forwarded_for: &'a [u8],
    /// `x-request-id` as the app received it.
    pub request_id: &'a [u8],
    /// The request's span, if requests are traced.
    pub(crate) trace: Option<&'a RequestTrace>,
}

/// A connection that the app opened.
#[derive(Clone, Copy, Debug)]
pub struct OutboundRecord<'a> {
    /// The app's address.
    pub peer: SocketAddr,
    /// The address that the app dialled.
    pub dialled: SocketAddr,
    /// `<namespace>/<name>` of the Service or Pod, or the host of the ServiceEntry that the destination is.
    pub service: Option<&'a str>,
    /// The same for each host, where hosts tell requests apart.
    pub hosts: Option<&'a HostServices>,
    /// The destination in metrics for a request that reached no endpoint.
    pub destination: RemoteId,
    /// The endpoint that was chosen, and tried last.
    pub endpoint: Option<DialledEndpoint>,
    /// The sidecar's end of the connection to it, of opaque bytes.
    pub local: Option<SocketAddr>,
    /// Who has the address.
    pub owner: &'a AddressOwner,
    /// What the app speaks, as far as the first bytes of opaque ones were looked at.
    pub spoken: SpokenProtocol,
    /// The host that the first bytes of opaque ones name, likewise.
    pub server_name: Option<&'a str>,
}

/// An endpoint that a connection or request went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialledEndpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it is in the mesh.
    pub is_mutual_tls: bool,
    /// Whether it is a forward proxy that takes requests in absolute form, and may answer them itself.
    pub is_http_proxy: bool,
    /// The workload there.
    pub remote: RemoteId,
}

/// How a connection is secured, in Istio's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ConnectionSecurity {
    /// TLS, and both sides have shown a certificate.
    MutualTls,
    /// TLS without a client certificate.
    Tls,
    /// Plaintext, or bytes that are passed on unchanged.
    None,
    /// The connection was not opened.
    #[default]
    Unknown,
}

/// The outcome of a gRPC call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GrpcOutcome {
    /// The call ended without a status.
    Unfinished,
    /// `grpc-status`.
    Status(u8),
}

/// A worker's counters and access log.
pub struct Telemetry {
    metrics: WorkerMetrics,
    egress: EgressRecorder,
    access_log: Option<AccessLog>,
    tracer: Tracer,
    recent: RecentRecorder,
}

impl DialledEndpoint {
    /// An endpoint, and the workload there.
    pub(crate) fn new(endpoint: &Endpoint, remote: RemoteId) -> Self {
        let is_mutual_tls = !endpoint.transport.identities().is_empty();
        let via = endpoint.via.as_ref();
        let is_http_proxy = via.is_some_and(|proxy| proxy.request == ProxyRequest::AbsoluteForm);
        Self { address: endpoint.address, is_mutual_tls, is_http_proxy, remote }
    }
}

impl ConnectionSecurity {
    /// As Istio's `connection_security_policy` spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Tls => "tls",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }

    /// Of a connection of the app's to this endpoint.
    pub(crate) fn outbound(endpoint: Option<&DialledEndpoint>) -> Self {
        if endpoint.is_some_and(|endpoint| endpoint.is_mutual_tls) { Self::MutualTls } else { Self::None }
    }

    /// Of a client's connection on these terms.
    pub(crate) fn inbound(terms: Terms) -> Self {
        match terms {
            Terms::MeshTls(_) | Terms::IngressMutualTls => Self::MutualTls,
            Terms::IngressTls => Self::Tls,
            Terms::IngressPlaintext | Terms::BadRequest | Terms::Opaque => Self::None,
        }
    }
}

impl GrpcOutcome {
    /// The outcome in these fields: the head of a response without a body, or trailers.
    pub(crate) fn of(fields: &HeaderMap) -> Self {
        let status = fields.get("grpc-status").and_then(|status| status.to_str().ok());
        status.and_then(|status| status.parse().ok()).map_or(Self::Unfinished, Self::Status)
    }
}

impl<'a> Record<'a> {
    /// The record of a request on this connection, before anything is known about it. `endpoint`: where the app's own
    /// request went.
    pub(crate) fn of(connection: &'a ServedConnection, endpoint: Option<DialledEndpoint>) -> Self {
        match connection {
            ServedConnection::Inbound(info) => Self { connection: Some(info), ..Self::default() },
            ServedConnection::Outbound(info) => {
                let service = info.service.as_deref();
                let OutboundInfo { peer, dialled, destination, .. } = **info;
                let outbound = OutboundRecord {
                    peer,
                    dialled,
                    service,
                    hosts: Some(&info.hosts),
                    destination,
                    endpoint,
                    local: None,
                    owner: &info.owner,
                    spoken: SpokenProtocol::Http,
                    server_name: None,
                };
                Self { outbound: Some(outbound), ..Self::default() }
            }
        }
    }

    /// How the connection was secured.
    fn security(&self) -> ConnectionSecurity {
        match (&self.outbound, self.connection) {
            (Some(outbound), _) => ConnectionSecurity::outbound(outbound.endpoint.as_ref()),
            (None, Some(connection)) => ConnectionSecurity::inbound(connection.terms),
            (None, None) => ConnectionSecurity::Unknown,
        }
    }

    /// The workload at the other end.
    fn remote(&self) -> RemoteId {
        match (&self.outbound, self.connection) {
            (Some(OutboundRecord { endpoint: Some(endpoint), .. }), _) => endpoint.remote,
            (Some(outbound), _) => outbound.destination,
            (None, Some(connection)) => connection.remote,
            (None, None) => RemoteId::UNKNOWN,
        }
    }
}

impl Telemetry {
    /// Telemetry of one worker; `access_log` if enabled.
    pub fn new(metrics: &DataPlaneMetrics, access_log: Option<AccessLog>) -> Self {
        Self {
            metrics: metrics.worker(),
            egress: EgressUsage::default().worker(),
            access_log,
            tracer: Tracer::new(None),
            recent: RecentRecorder::new(None),
        }
    }

    /// The same with its share of this record of what leaves the mesh.
    pub(crate) fn with_egress(self, usage: &EgressUsage) -> Self {
        Self { egress: usage.worker(), ..self }
    }

    /// The same with traces, whose spans go to this exporter.
    pub(crate) fn with_spans(self, sink: SpanSink) -> Self {
        Self { tracer: Tracer::new(Some(sink)), ..self }
    }

    /// The same with records of recent requests.
    pub(crate) fn with_recent(self, sink: RecentSink) -> Self {
        Self { recent: RecentRecorder::new(Some(sink)), ..self }
    }

    /// Applies the policy's tracing settings; `None` while the sidecar has no policy.
    pub(crate) fn trace_by(&self, settings: Option<&TelemetrySettings>) {
        let tracing = settings.and_then(|settings| settings.tracing.as_ref());
        self.tracer.sample(tracing.map(|tracing| Sampling::of(f64::from(tracing.sampled_per_million) / 1e6)));
    }

    /// How requests are traced; `None`: not at all.
    #[inline]
    pub(crate) fn sampling(&self) -> Option<Sampling> {
        self.tracer.sampling()
    }

    /// Telemetry with a JSON access log in this file.
    #[cfg(test)]
    pub(crate) fn in_file(path: &std::path::Path) -> Self {
        use self::access_log::{AccessLogFormat, AccessLogSink, AccessLogTarget};

        let sink = AccessLogSink::open(&AccessLogTarget::File(path.to_owned())).unwrap();
        let log = AccessLog::new(AccessLogFormat::Json, sink.clone());
        Self::new(&DataPlaneMetrics::new(Some(sink)), Some(log))
    }

    /// What an access log has so far. Its last line may be there in part only.
    #[cfg(test)]
    pub(crate) fn records_in(path: &std::path::Path) -> Vec<serde_json::Value> {
        let log = std::fs::read_to_string(path).unwrap_or_default();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Counts a record, and logs it if the access log is enabled.
    pub fn record(&self, record: &Record<'_>) {
        self.metrics.record(record);
        self.egress.count(record);
        if let Some(trace) = record.trace {
            self.tracer.record(trace, record);
        }
        if let Some(log) = &self.access_log {
            log.write(record);
        }
        self.recent.record(record);
    }

    /// Counts of connections, handshakes and bytes.
    pub(crate) fn totals(&self) -> &Totals {
        self.metrics.totals()
    }

    /// Counts a connection of opaque bytes for as long as what is returned lives.
    pub(crate) fn tcp(
        &self,
        is_outbound: bool,
        remote: RemoteId,
        security: ConnectionSecurity,
    ) -> CountedTcp {
        self.metrics.tcp(is_outbound, remote, security)
    }

    /// Counts that a limit was reached.
    pub fn limited(&self, limit: &'static str) {
        self.metrics.limited(limit);
    }

    /// Counts a connection or request that a forward proxy did not take further.
    pub(crate) fn forward_proxy_failed(&self, reason: &'static str) {
        self.metrics.forward_proxy_failed(reason);
    }

    /// Counts a connection or request that would be refused if its policy were not in audit mode.
    pub(crate) fn would_refuse(&self, reason: &'static str) {
        self.metrics.would_refuse(reason);
    }

    /// Counts the result of a check by the external authorization.
    pub fn checked(&self, result: CheckResult) {
        self.metrics.checked(result);
    }

    /// Counts the result of a call of a rate limit service.
    pub fn rate_limit_checked(&self, result: RateLimitResult) {
        self.metrics.rate_limit_checked(result);
    }

    /// Passes buffered log lines to the writing thread, spans to the exporter, and records of requests to the control thread;
    /// called on every tick of the worker.
    pub fn flush(&self) {
        self.tracer.flush();
        self.recent.flush();
        if let Some(log) = &self.access_log {
            log.flush();
        }
    }
}

impl Default for Telemetry {
    /// Counts that are never read, and no access log.
    fn default() -> Self {
        Self::new(&DataPlaneMetrics::new(None), None)
    }
}

impl CheckResult {
    /// The label's value.
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Denied => "denied",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::FailureModeAllowed => "failure_mode_allowed",
        }
    }
}

impl RateLimitResult {
    /// The label's value.
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::OverLimit => "over_limit",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::FailureModeAllowed => "failure_mode_allowed",
        }
    }
}

impl ResponseFlag {
    /// The flag for a request or connection that the policy refuses.
    pub(crate) fn of_refusal(reason: &Reason) -> Self {
        match reason {
            Reason::NoPolicy | Reason::NoSuchPort | Reason::NoIngressBackend => Self::NoRoute,
            Reason::ConnectionRateLimited
            | Reason::RequestRateLimited(_)
            | Reason::ConnectionGloballyLimited
            | Reason::RequestGloballyLimited(_) => Self::RateLimited,
            Reason::RateLimitServiceFailed => Self::RateLimitServiceError,
            Reason::ExternalAuthorizationInvalid(_)
            | Reason::ExternalAuthorizationFailed
            | Reason::ExternalAuthorizationBodyTooLarge
            | Reason::ExternallyDenied => Self::ExternallyDenied,
            _ => Self::Refused,
        }
    }

    /// The code, as in Istio's `response_flags`.
    pub fn code(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamProtocolError => "UPE",
            Self::NoHealthyUpstream => "UH",
            Self::DnsFailure => "DF",
            Self::UpstreamOverflow => "UO",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::DownstreamTimeout => "DT",
            Self::Refused => "RBAC",
            Self::NoRoute => "NR",
            Self::RateLimited => "RL",
            Self::RateLimitServiceError => "RLSE",
            Self::ExternallyDenied => "UAEX",
            Self::Overload => "OM",
        }
    }
}
