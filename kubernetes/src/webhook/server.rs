//! The webhook's server: HTTP/1.1 over TLS, one path, POST only.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_runtime::grpc::{self, Connection, ConnectionLimits, IncomingConnections};
use tidegate_runtime::identity::Credentials;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::{Blocker, Readiness};
use tidegate_runtime::{drain, listen};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::StreamExt;
use tracing::{debug, info};

use super::metrics::WebhookMetrics;
use super::review::{AdmissionRequest, Outcome, ReviewResponse, Reviewer};
use super::tls;

/// What a webhook's clients may take of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request's body. The API server itself takes 3 MiB.
    pub body_bytes: usize,
    /// Bytes of all requests' bodies at a time.
    pub all_body_bytes: usize,
    /// Connections at a time; a new one beyond is closed. One address has far fewer than all, so that no pod keeps the
    /// API server out.
    pub connections: ConnectionLimits,
    /// From the handshake to the first request's head, and from a head to the end of its body.
    pub request_timeout: Duration,
    /// Between requests. Longer than the 90 s after which the API server itself closes an idle connection, so that
    /// none is closed while it sends.
    pub idle_timeout: Duration,
    /// How long a server that ends still takes connections: others learn only by and by that its pod is going.
    pub linger: Duration,
}

/// A webhook that has its address; connections wait until it serves.
pub struct WebhookServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
}

/// Why a webhook does not start.
#[derive(Debug, thiserror::Error)]
#[error("webhook address {address}: {source}")]
pub struct StartError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

struct Shared {
    path: &'static str,
    reviewer: Arc<dyn Reviewer>,
    metrics: WebhookMetrics,
    limits: Limits,
    body_memory: Arc<Semaphore>,
}

/// Why a request gets no verdict: a status and a line for its sender.
type Refusal = (StatusCode, String);

impl WebhookServer {
    /// Listens on `address`; port 0 takes a free one. `path` is the one that answers, such as `/mutate`.
    pub async fn bind(
        address: SocketAddr,
        path: &'static str,
        reviewer: Arc<dyn Reviewer>,
        metrics: &Metrics,
        limits: Limits,
    ) -> Result<Self, StartError> {
        let error = |source| StartError { address, source };
        let listener = listen::bind(address).await.map_err(error)?;
        let local_addr = listener.local_addr().map_err(error)?;
        let shared = Shared {
            path,
            reviewer,
            metrics: WebhookMetrics::register(metrics),
            limits,
            body_memory: Arc::new(Semaphore::new(limits.all_body_bytes.min(Semaphore::MAX_PERMITS))),
        };
        Ok(Self { listener, local_addr, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves once there is a certificate, until the drain starts; then lingers, lets requests in flight finish and
    /// ends. Readiness is blocked from this call on while there is no certificate that is valid.
    pub fn serve(
        self,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        readiness: Readiness,
        drain: drain::Watch,
    ) -> impl Future<Output = ()> + Send + 'static {
        let blocker = readiness.block("certificate");
        self.serve_blocked(credentials, readiness, blocker, drain)
    }

    async fn serve_blocked(
        self,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        readiness: Readiness,
        blocker: Blocker,
        mut drain: drain::Watch,
    ) {
        let Self { listener, local_addr, shared } = self;
        let certificate = follow_certificate(credentials.clone(), readiness, blocker);
        let serving = async {
            let configs = tokio::select! {
                () = drain.started() => return,
                configs = tls::configs(credentials) => configs,
            };
            let Some(configs) = configs else { return };
            info!(address = %local_addr, path = shared.path, "webhook is up");
            let incoming = grpc::server_stream(
                listener,
                configs,
                shared.limits.connections,
                shared.limits.request_timeout,
            );
            accept(incoming, &shared, drain).await;
        };
        tokio::select! {
            () = serving => {}
            () = certificate => {}
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            all_body_bytes: 64 << 20,
            // An API server answers 600 requests at a time unless it is told otherwise, and asks about each on a
            // connection of its own. All of them together, idle, fit into the memory that the chart gives.
            connections: ConnectionLimits { all: 4096, per_address: 768 },
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            linger: Duration::from_secs(5),
        }
    }
}

async fn accept(mut incoming: IncomingConnections, shared: &Arc<Shared>, mut drain: drain::Watch) {
    let (ending, ended) = drain::channel();
    let mut lingering = std::pin::pin!(async {
        drain.started().await;
        tokio::time::sleep(shared.limits.linger).await;
    });
    loop {
        let connection = tokio::select! {
            () = &mut lingering => break,
            connection = incoming.next() => connection,
        };
        let Some(Ok(connection)) = connection else { continue };
        tokio::spawn(serve_connection(connection, shared.clone(), ended.clone()));
    }
    drop(incoming);
    drop(ended);
    ending.drain(shared.limits.request_timeout).await;
}

async fn serve_connection(connection: Connection, shared: Arc<Shared>, mut ending: drain::Watch) {
    let address = connection.peer().address;
    let asked = Arc::new(AtomicBool::new(false));
    let service = hyper::service::service_fn({
        let (shared, asked) = (shared.clone(), asked.clone());
        move |request| {
            asked.store(true, Ordering::Relaxed);
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(answer(&shared, request).await) }
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(shared.limits.idle_timeout)
        .max_buf_size(32 * 1024)
        .half_close(false);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(connection), service));
    let mut first = std::pin::pin!(async {
        tokio::time::sleep(shared.limits.request_timeout).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    });
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = first.as_mut() => return debug!(%address, "connection closed: no request came"),
        () = ending.started() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        debug!(%address, %error, "webhook connection ended");
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match review(shared, request).await {
        Ok(body) => {
            let mut response = Response::new(Full::new(body.into()));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
        Err((status, reason)) => {
            debug!(%status, reason, "no admission request");
            shared.metrics.invalid();
            let mut response = Response::new(Full::new(format!("{reason}\n").into()));
            *response.status_mut() = status;
            // What is left of the body is not read.
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            response
        }
    }
}

async fn review(shared: &Shared, request: Request<Incoming>) -> Result<Vec<u8>, Refusal> {
    check_head(shared, &request)?;
    let body = read_body(shared, request.into_body());
    let (body, memory) = tokio::time::timeout(shared.limits.request_timeout, body)
        .await
        .map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned()))??;
    let start = Instant::now();
    let request =
        AdmissionRequest::parse(&body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let verdict = shared.reviewer.review(&request).await;
    log(&request, &verdict.outcome);
    let answer = ReviewResponse::new(request.uid(), &verdict)
        .and_then(|response| serde_json::to_vec(&response))
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    drop(memory);
    shared.metrics.answered(&verdict.outcome, start.elapsed());
    Ok(answer)
}

fn check_head(shared: &Shared, request: &Request<Incoming>) -> Result<(), Refusal> {
    if request.uri().path() != shared.path {
        return Err((StatusCode::NOT_FOUND, format!("there is only {}", shared.path)));
    }
    if request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only POST is answered".to_owned()));
    }
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let reason = "content-type must be application/json".to_owned();
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    Ok(())
}

/// Reads a body piece by piece and takes the memory for each piece from what all bodies share.
async fn read_body(
    shared: &Shared,
    mut body: Incoming,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Refusal> {
    let mut bytes = Vec::new();
    let mut memory: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if data.is_empty() {
            continue;
        }
        if bytes.len() + data.len() > shared.limits.body_bytes {
            let reason = format!("the body is larger than {} bytes", shared.limits.body_bytes);
            return Err((StatusCode::PAYLOAD_TOO_LARGE, reason));
        }
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let piece = shared
            .body_memory
            .clone()
            .try_acquire_many_owned(size)
            .map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time".to_owned()))?;
        match &mut memory {
            Some(memory) => memory.merge(piece),
            None => memory = Some(piece),
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, memory))
}

fn log(request: &AdmissionRequest<'_>, outcome: &Outcome) {
    let (kind, namespace, name) = (request.kind().kind.as_str(), request.namespace(), request.name());
    let operation = request.operation();
    match outcome {
        Outcome::Denied(reason) => info!(kind, namespace, name, ?operation, reason, "admission denied"),
        Outcome::Patched(_) => info!(kind, namespace, name, ?operation, "admission with changes"),
        Outcome::Allowed => debug!(kind, namespace, name, ?operation, "admission as it is"),
    }
}

/// Blocks readiness while there is no certificate, or one that has expired. Never returns.
async fn follow_certificate(
    mut credentials: watch::Receiver<Option<Arc<Credentials>>>,
    readiness: Readiness,
    blocker: Blocker,
) {
    let mut blocker = Some(blocker);
    loop {
        let valid = match &*credentials.borrow_and_update() {
            Some(current) => !current.is_expired(SystemTime::now()),
            None => false,
        };
        if valid {
            blocker = None;
        } else if blocker.is_none() {
            blocker = Some(readiness.block("certificate"));
        }
        // Woken at expiry as well: see `KeptCredentials`.
        if credentials.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
