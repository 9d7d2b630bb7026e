//! The admin server of a process: plain HTTP on loopback.
//!
//! `GET /` names the process, `GET /live` and `GET /ready` are for probes (`/ready?wait=2s` answers once the process is
//! ready, or after that time), `GET /metrics` is for Prometheus, `GET`, `PUT` and `POST /log` read and set the log
//! filter; each daemon merges its own routes.
//!
//! Everything that shares the pod's loopback can reach it: the app and, through it, web pages and forged requests. So a
//! request must name this host by an address or `localhost` (against DNS rebinding; [`AdminServer::health`], which
//! other hosts reach anyway and which only reads, accepts DNS names), changes need PUT or POST and no `Origin`
//! (otherwise a page could post), no response allows other origins (no CORS), and the sizes and times of bodies and
//! heads are limited, as is the number of connections.

mod guard;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tidegate_core::contract::names::{LIVE_PATH, METRICS_PATH, READY_PATH, SIDECAR_METRICS_PATH};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use tonic::codegen::Service;
use tracing::{debug, info, warn};

use self::guard::Hosts;
use crate::connections::{AdmittedConnection, Connections};
use crate::drain;
use crate::listen;
use crate::logging::LogHandle;
use crate::metrics::{Format, Metrics};
use crate::readiness::Readiness;

/// Maximum bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Maximum concurrent connections.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for the health server, which any host can reach: kubelet and Prometheus send their requests at once.
const HEALTH_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection with a request in flight may continue once the process drains.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum wait of a readiness request.
const MAX_READY_WAIT: Duration = Duration::from_secs(5);
/// Pause after a failed accept, for instance when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The name of a process, such as `tidegate-sidecar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessName(pub &'static str);

/// An admin server that is not bound yet.
#[derive(Debug)]
pub struct AdminServer {
    name: ProcessName,
    router: Router,
    allow_remote: bool,
    hosts: Hosts,
    head_timeout: Duration,
}

/// A bound admin server; connections wait until it serves.
#[derive(Debug)]
pub struct BoundAdmin {
    name: ProcessName,
    router: Router,
    listener: TcpListener,
    local_addr: SocketAddr,
    head_timeout: Duration,
}

/// Why the admin server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AdminServerError {
    /// The address is reachable from other hosts, which was not allowed.
    #[error("admin address {0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// Listening on the address failed.
    #[error("admin address {address}: {source}")]
    Bind {
        /// The requested address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

#[derive(Clone)]
struct AdminState {
    name: ProcessName,
    metrics: Metrics,
    readiness: Readiness,
    log: LogHandle,
}

impl AdminServer {
    /// A server with the routes that every process has.
    pub fn new(name: ProcessName, metrics: Metrics, readiness: Readiness, log: LogHandle) -> Self {
        let router = Router::new()
            .route("/", get(index))
            .route(LIVE_PATH, get(live))
            .route(READY_PATH, get(ready))
            .route(METRICS_PATH, get(metrics_page))
            .route("/log", get(log_filter).put(set_log_filter).post(set_log_filter))
            .with_state(AdminState { name, metrics, readiness, log });
        Self { name, router, allow_remote: false, hosts: Hosts::Addresses, head_timeout: HEAD_TIMEOUT }
    }

    /// A server for kubelet's probes and for Prometheus: it only reads, so other hosts may reach it, by any name.
    pub fn health(name: ProcessName, metrics: Metrics, readiness: Readiness, log: LogHandle) -> Self {
        let router = Router::new()
            .route(LIVE_PATH, get(live))
            .route(READY_PATH, get(ready))
            .route(METRICS_PATH, get(metrics_page))
            .route(SIDECAR_METRICS_PATH, get(metrics_page))
            .with_state(AdminState { name, metrics, readiness, log });
        Self { name, router, allow_remote: true, hosts: Hosts::Names, head_timeout: HEALTH_HEAD_TIMEOUT }
    }

    /// Adds a daemon's own routes. They pass the same checks.
    #[must_use]
    pub fn merge(mut self, routes: Router) -> Self {
        self.router = self.router.merge(routes);
        self
    }

    /// Listens on `address`; port 0 selects a free one.
    pub async fn bind(self, address: SocketAddr) -> Result<BoundAdmin, AdminServerError> {
        if !self.allow_remote && !address.ip().is_loopback() {
            return Err(AdminServerError::NotLoopback(address));
        }
        let bind = |source| AdminServerError::Bind { address, source };
        let listener = listen::bind(address).await.map_err(bind)?;
        let local_addr = listener.local_addr().map_err(bind)?;
        let guard = middleware::from_fn_with_state(self.hosts, guard::check);
        let router = self.router.layer(DefaultBodyLimit::max(MAX_BODY_BYTES)).layer(guard);
        Ok(BoundAdmin { name: self.name, router, listener, local_addr, head_timeout: self.head_timeout })
    }
}

impl BoundAdmin {
    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until the drain starts, then closes idle connections at once and busy ones after their response, within
    /// five seconds.
    pub async fn serve(self, mut drain: drain::Watch) {
        let Self { name, router, listener, local_addr, head_timeout } = self;
        info!(process = name.0, address = %local_addr, "admin server is up");
        let connections = Connections::new(MAX_CONNECTIONS);
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = drain.started() => break,
                accepted = connections.accept(&listener) => accepted,
            };
            match accepted {
                Ok((stream, connection)) => {
                    let server = AdminConnection { router: router.clone(), head_timeout };
                    tasks.spawn(server.serve(stream, connection, drain.clone()));
                }
                Err(error) => {
                    warn!(%error, "admin server could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// State for serving one connection.
struct AdminConnection {
    router: Router,
    head_timeout: Duration,
}

impl AdminConnection {
    async fn serve(self, stream: TcpStream, connection: AdmittedConnection, mut drain: drain::Watch) {
        let Self { router, head_timeout } = self;
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
            let (mut router, busy) = (router.clone(), connection.busy());
            async move {
                let response: Result<Response, Infallible> = router.call(request.map(Body::new)).await;
                drop(busy);
                response
            }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(MAX_HEAD_BYTES);
        let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
        let result = tokio::select! {
            result = serving.as_mut() => result,
            () = connection.pushed_out() => return,
            () = drain.started() => {
                serving.as_mut().graceful_shutdown();
                match tokio::time::timeout(DRAIN_TIMEOUT, serving).await {
                    Ok(result) => result,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = result {
            debug!(%error, "admin connection ended");
        }
    }
}

async fn index(State(shared): State<AdminState>) -> String {
    format!("{}\n", shared.name.0)
}

async fn live() -> &'static str {
    "live\n"
}

/// Query parameters of a readiness request.
#[derive(Deserialize)]
struct ReadyQuery {
    /// How long to wait for readiness.
    wait: Option<String>,
}

async fn ready(State(shared): State<AdminState>, Query(query): Query<ReadyQuery>) -> Response {
    if let Some(text) = query.wait {
        let Ok(wait) = humantime::parse_duration(&text) else {
            return (StatusCode::BAD_REQUEST, "wait: expected a duration such as 2s\n").into_response();
        };
        // Whether or not the wait timed out, the state now counts.
        let _ = tokio::time::timeout(wait.min(MAX_READY_WAIT), shared.readiness.ready()).await;
    }
    let blockers = shared.readiness.blocked_by();
    if blockers.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, waiting for: {}\n", blockers.join(", ")))
        .into_response()
}

async fn metrics_page(State(shared): State<AdminState>, headers: HeaderMap) -> Response {
    let format = Format::accepted(&headers);
    ([(header::CONTENT_TYPE, format.content_type())], shared.metrics.encode_as(format)).into_response()
}

async fn log_filter(State(shared): State<AdminState>) -> String {
    format!("{}\n", shared.log.get())
}

async fn set_log_filter(State(shared): State<AdminState>, text: String) -> Response {
    match shared.log.set(&text) {
        Ok(()) => {
            info!(filter = shared.log.get(), "log filter changed");
            format!("{}\n", shared.log.get()).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests;
