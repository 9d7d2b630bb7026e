//! The load generator: one kind of load on one address, one JSON report.
//!
//! One thread, raw HTTP/1.1 over plain TCP or mTLS; HTTP/2 for large bodies, concurrent requests and gRPC. Status and length of every response are
//! checked. Only what happens inside the measured window is reported, and the CPU time of the watched processes is
//! sampled at its start and end.

mod connection;
mod http2;
mod http2_closed;
mod kinds;
mod open;
mod window;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::app::SMALL_BYTES;
use crate::tls::ClientIdentity;
pub(crate) use connection::{LoadEndpoint, LoadExchange};
pub(crate) use http2_closed::Http2Exchange;

/// Flags of `load`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadOptions {
    /// Address to connect to.
    #[arg(long)]
    address: SocketAddr,
    /// CA that the server's certificate must chain to; without it the load is plaintext.
    #[arg(long, requires_all = ["server_name", "certificate", "key"])]
    ca: Option<PathBuf>,
    /// Name that the server's certificate must hold.
    #[arg(long)]
    server_name: Option<String>,
    /// Client certificate, PEM.
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long)]
    key: Option<PathBuf>,
    /// Processes whose CPU time is reported, including their children's; memory is that of the first. May be repeated.
    #[arg(long)]
    watch_pid: Vec<u32>,
    #[command(subcommand)]
    kind: LoadKind,
}

/// The kind of load.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum LoadKind {
    /// One request at a time on each of the keep-alive connections.
    Closed {
        /// Number of connections.
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Length of the window.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Time before the window.
        #[arg(long, default_value_t = 0.5)]
        warm_up: f64,
        /// Bytes of each response's body.
        #[arg(long, default_value_t = SMALL_BYTES)]
        body: u64,
    },
    /// One request at a time on each stream of some HTTP/2 connections.
    Http2Closed {
        /// What is exchanged on each stream.
        #[arg(long, default_value = "get")]
        exchange: Http2Exchange,
        /// Number of connections.
        #[arg(long, default_value_t = 4)]
        connections: usize,
        /// Number of streams of each connection.
        #[arg(long, default_value_t = 16)]
        streams: usize,
        /// Length of the window.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Time before the window.
        #[arg(long, default_value_t = 0.5)]
        warm_up: f64,
    },
    /// Requests at a fixed rate; each latency counts from when the request was due.
    Open {
        /// Requests a second.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// Number of connections, which share the requests.
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Length of the window.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Time before the window.
        #[arg(long, default_value_t = 0.5)]
        warm_up: f64,
    },
    /// A new connection, with a full handshake, for each request.
    Handshakes {
        /// Number of concurrent connections.
        #[arg(long, default_value_t = 16)]
        connections: usize,
        /// Length of the window.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Time before the window.
        #[arg(long, default_value_t = 0.5)]
        warm_up: f64,
    },
    /// Connections that make one request and then stay idle.
    Idle {
        /// Number of connections.
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
    /// One connection that downloads 100 MB again and again.
    Download {
        /// Minimum length of the window, which ends with a transfer.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// One connection that uploads 100 MB again and again.
    Upload {
        /// Minimum length of the window, which ends with a transfer.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// One HTTP/2 connection that downloads 100 MB again and again.
    Http2Download {
        /// Minimum length of the window, which ends with a transfer.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// One HTTP/2 connection that uploads 100 MB again and again.
    Http2Upload {
        /// Minimum length of the window, which ends with a transfer.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
}

/// The results of one load. Latencies are in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LoadMeasurement {
    /// Responses that were as expected.
    pub(crate) requests: u64,
    /// Requests that failed, in the warm-up too.
    pub(crate) errors: u64,
    /// The first failure.
    pub(crate) first_error: Option<String>,
    /// Length of the window in which `requests` were answered.
    pub(crate) seconds: f64,
    /// Bytes of all responses' bodies, or of requests' bodies for an upload.
    pub(crate) body_bytes: u64,
    /// Time from request, or from when it was due, to response.
    pub(crate) latency: Latency,
    /// CPU time of the watched processes in the window.
    pub(crate) proxy_cpu_seconds: Option<f64>,
    /// CPU time of the load itself in the window.
    pub(crate) load_cpu_seconds: f64,
    /// Resident memory of the first watched process, before the first connection and at the window's end.
    pub(crate) proxy_kib_before: Option<u64>,
    /// The same at the window's end.
    pub(crate) proxy_kib_after: Option<u64>,
}

/// Microseconds at each quantile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Median.
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// The slowest response.
    pub(crate) max: f64,
}

/// Runs one load and prints its report.
pub(crate) fn main(options: LoadOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(options))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Runs the load that the flags describe.
async fn run(options: LoadOptions) -> Result<LoadMeasurement> {
    let identity =
        options.certificate.zip(options.key).map(|(certificate, key)| ClientIdentity { certificate, key });
    let endpoint = match (options.ca, options.server_name) {
        (Some(ca), Some(name)) => {
            LoadEndpoint::tls(options.address, &ca, &name, identity.as_ref(), options.kind.protocols())?
        }
        _ => LoadEndpoint::plain(options.address),
    };
    let watched = &options.watch_pid;
    match options.kind {
        LoadKind::Closed { connections, seconds, warm_up, body } => {
            kinds::closed(endpoint, watched, connections, warm_up, seconds, body).await
        }
        LoadKind::Http2Closed { exchange, connections, streams, seconds, warm_up } => {
            let streams = http2_closed::ConcurrentStreams { exchange, connections, streams };
            http2_closed::closed(endpoint, watched, streams, warm_up, seconds).await
        }
        LoadKind::Open { rate, connections, seconds, warm_up } => {
            open::open(endpoint, watched, rate, connections, warm_up, seconds).await
        }
        LoadKind::Handshakes { connections, seconds, warm_up } => {
            kinds::handshakes(endpoint, watched, connections, warm_up, seconds).await
        }
        LoadKind::Idle { connections } => kinds::idle(endpoint, watched, connections).await,
        LoadKind::Download { seconds } => {
            kinds::transfer(endpoint, watched, seconds, LoadExchange::download()).await
        }
        LoadKind::Upload { seconds } => {
            kinds::transfer(endpoint, watched, seconds, LoadExchange::upload()).await
        }
        LoadKind::Http2Download { seconds } => {
            http2::transfer(endpoint, watched, seconds, http2::TransferDirection::Down).await
        }
        LoadKind::Http2Upload { seconds } => {
            http2::transfer(endpoint, watched, seconds, http2::TransferDirection::Up).await
        }
    }
}

impl LoadKind {
    /// The protocols that a client of this kind offers by ALPN.
    fn protocols(&self) -> &'static [&'static [u8]] {
        match self {
            Self::Http2Closed { .. } | Self::Http2Download { .. } | Self::Http2Upload { .. } => &[b"h2"],
            _ => &[],
        }
    }

    /// The command-line arguments of `load` for this kind.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let words = |name: &str, flags: &[(&str, String)]| {
            let mut words = vec![name.to_owned()];
            words.extend(flags.iter().flat_map(|(flag, value)| [format!("--{flag}"), value.clone()]));
            words
        };
        match self {
            Self::Closed { connections, seconds, warm_up, body } => words(
                "closed",
                &[
                    ("connections", connections.to_string()),
                    ("seconds", seconds.to_string()),
                    ("warm-up", warm_up.to_string()),
                    ("body", body.to_string()),
                ],
            ),
            Self::Http2Closed { exchange, connections, streams, seconds, warm_up } => words(
                "http2-closed",
                &[
                    ("exchange", exchange.to_string()),
                    ("connections", connections.to_string()),
                    ("streams", streams.to_string()),
                    ("seconds", seconds.to_string()),
                    ("warm-up", warm_up.to_string()),
                ],
            ),
            Self::Open { rate, connections, seconds, warm_up } => words(
                "open",
                &[
                    ("rate", rate.to_string()),
                    ("connections", connections.to_string()),
                    ("seconds", seconds.to_string()),
                    ("warm-up", warm_up.to_string()),
                ],
            ),
            Self::Handshakes { connections, seconds, warm_up } => words(
                "handshakes",
                &[
                    ("connections", connections.to_string()),
                    ("seconds", seconds.to_string()),
                    ("warm-up", warm_up.to_string()),
                ],
            ),
            Self::Idle { connections } => words("idle", &[("connections", connections.to_string())]),
            Self::Download { seconds } => words("download", &[("seconds", seconds.to_string())]),
            Self::Upload { seconds } => words("upload", &[("seconds", seconds.to_string())]),
            Self::Http2Download { seconds } => words("http2-download", &[("seconds", seconds.to_string())]),
            Self::Http2Upload { seconds } => words("http2-upload", &[("seconds", seconds.to_string())]),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
