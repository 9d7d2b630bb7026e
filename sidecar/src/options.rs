//! The sidecar's command line. Each flag can also be set by an environment variable; all are validated before anything
//! starts.

mod pod;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser};
use rustls_pki_types::ServerName;
use tidegate_core::contract::{environment, flags, names, ports};
use tidegate_runtime::grpc;
use tidegate_runtime::identity::{CaOptions, parse_server_name};
use tidegate_runtime::logging::LogOptions;

pub use pod::{PodIps, PodIpsError, PodOptions};

use crate::limits::Limits;
use crate::telemetry::access_log::{AccessLogFormat, AccessLogTarget};

/// The data plane of one workload: terminates mutual TLS, enforces its inbound policy, logs and counts.
#[derive(Parser, Clone, Debug)]
#[command(name = names::SIDECAR, version)]
pub struct Options {
    /// The workload (pod) that this sidecar serves.
    #[arg(long = flags::WORKLOAD, env = "TIDEGATE_WORKLOAD", value_name = "NAMESPACE/NAME", value_parser = parse_workload)]
    pub workload: String,

    /// Address to listen on, and the app's address for its connections, such as 10.1.2.3:14001=127.0.0.1:14001.
    /// Policies refer to the app's port. May be repeated, or separated by commas. A sidecar whose app is only a client has
    /// --outbound alone.
    #[arg(
        long,
        env = "TIDEGATE_INBOUND",
        value_name = "LISTEN=APP",
        required_unless_present_any = ["transparent", "outbound"],
        conflicts_with = "transparent",
        value_delimiter = ','
    )]
    pub inbound: Vec<InboundListener>,

    /// Address that the app dials instead of a destination, and the destination, such as 127.0.0.1:9000=10.96.0.10:80.
    /// The destination is resolved in the mesh. May be repeated, or separated by commas.
    #[arg(long, env = "TIDEGATE_OUTBOUND", value_name = "LISTEN=DESTINATION", value_delimiter = ',')]
    pub outbound: Vec<OutboundListener>,

    /// A DNS server for the names of ServiceEntries, such as 10.96.0.10:53, in place of those in /etc/resolv.conf. May be repeated,
    /// or separated by commas.
    #[arg(long = "dns-server", env = "TIDEGATE_DNS_SERVER", value_name = "IP:PORT", value_delimiter = ',')]
    pub dns_servers: Vec<SocketAddr>,

    /// The controller: https://host:port.
    #[arg(long = flags::DISCOVERY_ADDRESS, env = environment::DISCOVERY_ADDRESS, value_name = "URL")]
    pub discovery_address: grpc::Address,

    /// A name that the controller's certificate must contain.
    #[arg(
        long = flags::DISCOVERY_SERVER_NAME,
        env = "TIDEGATE_DISCOVERY_SERVER_NAME",
        value_name = "NAME",
        default_value = "tidegate-controller.tidegate-system.cluster.local",
        value_parser = parse_server_name
    )]
    pub discovery_server_name: ServerName<'static>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub ca: CaOptions,

    /// Admin address: /ready, /live, /metrics, /config, /log. Loopback only.
    #[arg(
        long = flags::ADMIN_ADDRESS,
        env = environment::ADMIN_ADDRESS,
        value_name = "ADDRESS",
        default_value_t = ports::ADMIN_ADDRESS
    )]
    pub admin_address: SocketAddr,

    /// Data worker threads [default: the processors this process may use]
    #[arg(long, env = environment::WORKERS, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// Format of the access log.
    #[arg(long, env = environment::ACCESS_LOG_FORMAT, value_enum, default_value = "json")]
    pub access_log_format: AccessLogFormat,

    /// File for the access log [default: standard output]
    #[arg(long, env = environment::ACCESS_LOG_FILE, value_name = "FILE")]
    pub access_log_file: Option<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub pod: PodOptions,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub limits: LimitOptions,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogOptions,
}

/// An inbound listener, and the app's address behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundListener {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// The app's address; its port selects the policy.
    pub app: SocketAddr,
}

/// Text that is not of the form `LISTEN=APP`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form LISTEN_IP:PORT=APP_IP:PORT")]
pub struct InboundError(String);

/// An outbound listener, and the destination behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundListener {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// The destination that stands behind it.
    pub destination: SocketAddr,
}

/// Text that is not of the form `LISTEN=DESTINATION`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form LISTEN_IP:PORT=DESTINATION_IP:PORT")]
pub struct OutboundError(String);

/// Flags for the limits of the data plane.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitOptions {
    /// Timeout for the first bytes of a connection.
    #[arg(long, env = "TIDEGATE_DETECT_TIMEOUT", value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub detect_timeout: Duration,
    /// Timeout for the first bytes of a connection that the app opens to a port without a declared protocol; after that
    /// they are not looked at. Servers that speak first are reached so much later.
    #[arg(long, env = "TIDEGATE_OUTBOUND_DETECT_TIMEOUT", value_name = "DURATION", default_value = "200ms", value_parser = duration)]
    pub outbound_detect_timeout: Duration,
    /// Timeout for a TLS handshake.
    #[arg(long, env = "TIDEGATE_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub handshake_timeout: Duration,
    /// Timeout for a request's head, from its first byte to its last.
    #[arg(long, env = "TIDEGATE_HEADERS_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub headers_timeout: Duration,
    /// Timeout between two requests of a connection; longer than the ingress controller's own keep-alive time.
    #[arg(long, env = "TIDEGATE_IDLE_TIMEOUT", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub idle_timeout: Duration,
    /// Timeout without progress in a body.
    #[arg(long, env = "TIDEGATE_BODY_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub body_timeout: Duration,
    /// Timeout without a byte of a gRPC call or an event stream (text/event-stream).
    #[arg(long, env = "TIDEGATE_STREAM_IDLE_TIMEOUT", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub stream_idle_timeout: Duration,
    /// Timeout without a byte of a response whose client has half-closed, as clients do that leave.
    #[arg(long, env = "TIDEGATE_HALF_CLOSE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub half_close_timeout: Duration,
    /// Timeout for the TCP handshake with the app.
    #[arg(long, env = "TIDEGATE_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// How long an idle connection to the app is kept; shorter than the app's own keep-alive time.
    #[arg(long, env = "TIDEGATE_UPSTREAM_IDLE_TIMEOUT", value_name = "DURATION", default_value = "750ms", value_parser = duration)]
    pub upstream_idle_timeout: Duration,
    /// How long requests in flight may take once the policy no longer allows them.
    #[arg(long, env = "TIDEGATE_REVOCATION_GRACE", value_name = "DURATION", default_value = "500ms", value_parser = duration)]
    pub revocation_grace: Duration,
    /// How long requests in flight may take once the sidecar shuts down; shorter than the pod's grace period.
    #[arg(long, env = environment::DRAIN_TIMEOUT, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// How long an idle HTTP/1 connection accepts another request once the sidecar shuts down; its response tells the
    /// client that it is the last.
    #[arg(long, env = "TIDEGATE_DRAIN_IDLE_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub drain_idle_timeout: Duration,
    /// Maximum bytes of a request's or response's head.
    #[arg(long, env = "TIDEGATE_MAX_HEAD_BYTES", value_name = "BYTES", default_value_t = 65536)]
    pub max_head_bytes: usize,
    /// Maximum header fields in a head.
    #[arg(long, env = "TIDEGATE_MAX_HEADERS", value_name = "COUNT", default_value_t = 128)]
    pub max_headers: usize,
    /// Maximum concurrent connections of clients, and as many of the app's own. If a client exceeds it, the source with
    /// the most connections makes room. An incomplete head, handshake or TLS record counts as one more connection for
    /// each 4 KiB beyond the first.
    #[arg(long, env = "TIDEGATE_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 16384)]
    pub max_connections: usize,
    /// Maximum idle HTTP/1.1 connections to apps and other workloads, per worker, and as many again for clients of HTTP/2;
    /// one app or endpoint has at most half of them.
    #[arg(long, env = "TIDEGATE_MAX_UPSTREAM_IDLE", value_name = "COUNT", default_value_t = 512)]
    pub max_upstream_idle: usize,
    /// Maximum concurrent requests on one HTTP/2 connection.
    #[arg(long, env = "TIDEGATE_MAX_STREAMS", value_name = "COUNT", default_value_t = 128)]
    pub max_streams: u32,
    /// Maximum concurrent requests of HTTP/2 clients, or to HTTP/2 apps, per worker; one client has at most three
    /// quarters of them.
    #[arg(long, env = "TIDEGATE_MAX_UPSTREAM_REQUESTS", value_name = "COUNT", default_value_t = 4096)]
    pub max_upstream_requests: usize,
    /// Maximum HTTP/2 connections to one app, per worker.
    #[arg(long, env = "TIDEGATE_MAX_UPSTREAM_CONNECTIONS", value_name = "COUNT", default_value_t = 128)]
    pub max_upstream_connections: usize,
    /// How long an HTTP/2 connection to an app gets new requests, give or take a tenth. It closes after its last one.
    #[arg(long, env = "TIDEGATE_UPSTREAM_MAX_AGE", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub upstream_max_age: Duration,
    /// How long a request waits while an HTTP/2 app accepts no more of them.
    #[arg(long, env = "TIDEGATE_UPSTREAM_QUEUE_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub upstream_queue_timeout: Duration,
}

impl Options {
    /// Destination of the access log.
    pub(crate) fn access_log_target(&self) -> AccessLogTarget {
        self.access_log_file.clone().map_or(AccessLogTarget::Stdout, AccessLogTarget::File)
    }
}

impl Default for LimitOptions {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            detect_timeout: limits.detect,
            outbound_detect_timeout: limits.outbound_detect,
            handshake_timeout: limits.handshake,
            headers_timeout: limits.headers,
            idle_timeout: limits.idle,
            body_timeout: limits.body,
            stream_idle_timeout: limits.stream_idle,
            half_close_timeout: limits.half_close,
            connect_timeout: limits.connect,
            upstream_idle_timeout: limits.upstream_idle,
            revocation_grace: limits.revocation,
            drain_timeout: limits.drain,
            drain_idle_timeout: limits.drain_idle,
            max_head_bytes: limits.head_bytes,
            max_headers: limits.header_count,
            max_connections: limits.connections,
            max_upstream_idle: limits.upstream_idle_connections,
            max_streams: limits.streams,
            max_upstream_requests: limits.upstream_requests,
            max_upstream_connections: limits.upstream_connections,
            upstream_max_age: limits.upstream_max_age,
            upstream_queue_timeout: limits.upstream_queue,
        }
    }
}

impl From<&LimitOptions> for Limits {
    fn from(options: &LimitOptions) -> Self {
        Self {
            detect: options.detect_timeout,
            outbound_detect: options.outbound_detect_timeout,
            handshake: options.handshake_timeout,
            headers: options.headers_timeout,
            idle: options.idle_timeout,
            body: options.body_timeout,
            stream_idle: options.stream_idle_timeout,
            half_close: options.half_close_timeout,
            connect: options.connect_timeout,
            upstream_idle: options.upstream_idle_timeout,
            revocation: options.revocation_grace,
            drain: options.drain_timeout,
            drain_idle: options.drain_idle_timeout,
            head_bytes: options.max_head_bytes,
            header_count: options.max_headers,
            connections: options.max_connections,
            upstream_idle_connections: options.max_upstream_idle,
            streams: options.max_streams,
            upstream_requests: options.max_upstream_requests,
            upstream_connections: options.max_upstream_connections,
            upstream_max_age: options.upstream_max_age,
            upstream_queue: options.upstream_queue_timeout,
        }
    }
}

impl FromStr for InboundListener {
    type Err = InboundError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (listen, app) = address_pair(text).ok_or_else(|| InboundError(text.to_owned()))?;
        Ok(Self { listen, app })
    }
}

impl FromStr for OutboundListener {
    type Err = OutboundError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (listen, destination) = address_pair(text).ok_or_else(|| OutboundError(text.to_owned()))?;
        Ok(Self { listen, destination })
    }
}

/// Two addresses separated by `=`; the second one has a port.
fn address_pair(text: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (first, second) = text.split_once('=')?;
    let pair: (SocketAddr, SocketAddr) = (first.trim().parse().ok()?, second.trim().parse().ok()?);
    (pair.1.port() != 0).then_some(pair)
}

/// A duration such as `30s` or `5m`.
fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

fn parse_workload(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is not of the form NAMESPACE/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [&str; 9] = [
        "tidegate-sidecar",
        "--workload",
        "httpbin/httpbin-0",
        "--inbound",
        "127.0.7.1:14001=127.0.0.1:14001",
        "--discovery-address",
        "https://localhost:15128",
        "--ca-address",
        "https://localhost:15012",
    ];

    #[test]
    fn the_defaults_of_the_flags_are_the_defaults_of_the_limits() {
        let options = Options::parse_from(NEEDED);
        assert_eq!(Limits::from(&options.limits), Limits::default());
    }

    #[test]
    fn a_bad_value_names_the_flag_and_the_value() {
        for (flag, value) in [
            ("--inbound", "127.0.0.1"),
            ("--inbound", "127.0.0.1:1=127.0.0.1:0"),
            ("--outbound", "127.0.0.1:1"),
            ("--workload", "httpbin"),
            ("--discovery-address", "http://localhost"),
            ("--detect-timeout", "soon"),
            ("--workers", "0"),
            ("--inbound-port", "0"),
            ("--outbound-port", "0"),
            ("--pod-ips", "10.1.2"),
            ("--health-address", "15010"),
            ("--probes", "{}"),
        ] {
            let pairs = NEEDED[1..].chunks(2).filter(|pair| pair[0] != flag).flatten().copied();
            let arguments = NEEDED[..1].iter().copied().chain(pairs).chain([flag, value]);
            let error = Options::try_parse_from(arguments).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
