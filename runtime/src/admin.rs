//! The window into a running process: plain HTTP on loopback.
//!
//! `GET /` names the process, `GET /live` and `GET /ready` are for probes (`/ready?wait=2s` answers once the process is
//! ready, or after that time), `GET /metrics` is for Prometheus,
//! `GET`, `PUT` and `POST /log` read and set the log filter; each daemon merges its own routes.
//!
//! Whatever shares the pod's loopback can reach it, the app and, through it, web pages and request forgers too. So a
//! request must name this host by an address or `localhost` (else DNS rebinding; [`AdminServer::health`], which others
//! reach anyway and which only reads, may be called by DNS names), changes need PUT or POST and no
//! `Origin` (else a page could post), nothing answers to other origins (no CORS), bodies and heads are limited in size
//! and time, and so is the number of connections.

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
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use tonic::codegen::Service;
use tracing::{debug, info, warn};

use self::guard::Hosts;
use crate::connections::{Connection, Connections};
use crate::drain;
use crate::listen;
use crate::logging::LogHandle;
use crate::metrics::{Format, Metrics};
use crate::readiness::Readiness;

/// The most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The most connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where everybody can come to: kubelet and Prometheus send theirs at once.
const HEALTH_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection that has a request in flight may go on once the process drains.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a question whether the process is ready waits until it is.
const MAX_READY_WAIT: Duration = Duration::from_secs(5);
/// The pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a process calls itself, such as `tidegate-sidecar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessName(pub &'static str);

/// An admin server that has no address yet.
#[derive(Debug)]
pub struct AdminServer {
    name: ProcessName,
    router: Router,
    allow_remote: bool,
    hosts: Hosts,
    head_timeout: Duration,
}

/// An admin server that has its address; connections wait until it serves.
#[derive(Debug)]
pub struct BoundAdmin {
    name: ProcessName,
    router: Router,
    listener: TcpListener,
    local_addr: SocketAddr,
    head_timeout: Duration,
}

/// Why the admin server does not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is reachable from other hosts, and that was not asked for.
    #[error("admin address {0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// The address cannot be listened on.
    #[error("admin address {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

#[derive(Clone)]
struct Shared {
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
            .route("/live", get(live))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics_page))
            .route("/log", get(log_filter).put(set_log_filter).post(set_log_filter))
            .with_state(Shared { name, metrics, readiness, log });
        Self { name, router, allow_remote: false, hosts: Hosts::Addresses, head_timeout: HEAD_TIMEOUT }
    }

    /// A server for kubelet's probes and for Prometheus: it only reads, so other hosts may reach it, by any name.
    pub fn health(name: ProcessName, metrics: Metrics, readiness: Readiness, log: LogHandle) -> Self {
        let router = Router::new()
            .route("/live", get(live))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics_page))
            .route("/stats/prometheus", get(metrics_page))
            .with_state(Shared { name, metrics, readiness, log });
        Self { name, router, allow_remote: true, hosts: Hosts::Names, head_timeout: HEALTH_HEAD_TIMEOUT }
    }

    /// Adds a daemon's own routes. They pass the same checks.
    #[must_use]
    pub fn merge(mut self, routes: Router) -> Self {
        self.router = self.router.merge(routes);
        self
    }

    /// Permits an address that other hosts can reach, for ports that kubelet or Prometheus come to.
    #[must_use]
    pub fn allow_remote(mut self) -> Self {
        self.allow_remote = true;
        self
    }

    /// Listens on `address`; port 0 takes a free one.
    pub async fn bind(self, address: SocketAddr) -> Result<BoundAdmin, AdminError> {
        if !self.allow_remote && !address.ip().is_loopback() {
            return Err(AdminError::NotLoopback(address));
        }
        let bind = |source| AdminError::Bind { address, source };
        let listener = listen::bind(address).await.map_err(bind)?;
        let local_addr = listener.local_addr().map_err(bind)?;
        let guard = middleware::from_fn_with_state(self.hosts, guard::check);
        let router = self.router.layer(DefaultBodyLimit::max(MAX_BODY_BYTES)).layer(guard);
        Ok(BoundAdmin { name: self.name, router, listener, local_addr, head_timeout: self.head_timeout })
    }
}

impl BoundAdmin {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until the drain starts, then ends idle connections at once and busy ones after their answer, within
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
                    let server = Server { router: router.clone(), head_timeout };
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

/// What serves one connection.
struct Server {
    router: Router,
    head_timeout: Duration,
}

impl Server {
    async fn serve(self, stream: TcpStream, connection: Connection, mut drain: drain::Watch) {
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

async fn index(State(shared): State<Shared>) -> String {
    format!("{}\n", shared.name.0)
}

async fn live() -> &'static str {
    "live\n"
}

/// What a question whether the process is ready may add.
#[derive(Deserialize)]
struct ReadyQuery {
    /// How long to wait until it is.
    wait: Option<String>,
}

async fn ready(State(shared): State<Shared>, Query(query): Query<ReadyQuery>) -> Response {
    if let Some(text) = query.wait {
        let Ok(wait) = humantime::parse_duration(&text) else {
            return (StatusCode::BAD_REQUEST, "wait: expected a duration such as 2s\n").into_response();
        };
        // Late or in time: what follows is what holds then.
        let _ = tokio::time::timeout(wait.min(MAX_READY_WAIT), shared.readiness.ready()).await;
    }
    let blockers = shared.readiness.blocked_by();
    if blockers.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, waiting for: {}\n", blockers.join(", ")))
        .into_response()
}

async fn metrics_page(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let format = Format::accepted(&headers);
    ([(header::CONTENT_TYPE, format.content_type())], shared.metrics.encode_as(format)).into_response()
}

async fn log_filter(State(shared): State<Shared>) -> String {
    format!("{}\n", shared.log.get())
}

async fn set_log_filter(State(shared): State<Shared>, text: String) -> Response {
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
