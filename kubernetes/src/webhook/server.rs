//! The webhook's server: HTTP/1.1 over TLS, one path, POST only.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::grpc::{self, AcceptedConnection, ConnectionLimits, IncomingConnections};
use tidegate_runtime::logging::{LogRate, LogThrottle};
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::{Blocker, Readiness};
use tidegate_runtime::{drain, listen};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tracing::{debug, info};

use super::answer::{NextDeadline, VerdictBody};
use super::bodies::{BodyGrant, BodyMemory};
use super::metrics::WebhookMetrics;
use super::review::{AdmissionRequest, AdmissionReviewer, ReviewOutcome, ReviewResponse, cut};
use super::tls;

/// What a connection buffers of a request before it is read. A head of the API server's has some hundred bytes.
const BUFFER_BYTES: usize = 8 * 1024;
/// What the kernel is asked to buffer for a connection, of which it takes the double: it counts as the process's memory,
/// and without a bound it grows to megabytes for a client that sends or does not read.
const KERNEL_RECEIVE_BYTES: usize = 16 * 1024;
/// The same of answers.
const KERNEL_SEND_BYTES: usize = 32 * 1024;

/// Bodies up to this size are reviewed on the thread that read them, which takes less than a millisecond. Larger ones would
/// delay all other requests by up to 50 ms, so they are reviewed on threads of their own.
const SMALL_BODY: usize = 64 * 1024;
/// Larger bodies that are reviewed at a time.
const LARGE_AT_ONCE: usize = 2;

/// Lines about admissions. API servers ask from few addresses, and each may have a burst of Pods; a Pod that asks in their
/// place writes no more than one of them.
const LINES: LogRate = LogRate { window: Duration::from_secs(10), per_source: 200, all: 400, sources: 1000 };

/// What a webhook's clients may take of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebhookLimits {
    /// Bytes of one request's body. The API server itself takes 3 MiB.
    pub body_bytes: usize,
    /// Bytes of all requests' bodies and answers at a time. One address may hold as much as it leaves free; what does not
    /// fit waits.
    pub(crate) all_body_bytes: usize,
    /// Connections at a time; a new one beyond is closed. One address has far fewer than all, so that no pod keeps the
    /// API server out.
    pub connections: ConnectionLimits,
    /// From the handshake to the first request's head, from a head to the end of its body, the wait for memory included,
    /// and for an answer to be read.
    pub request_timeout: Duration,
    /// Between requests. Longer than the 90 s after which the API server itself closes an idle connection, so that
    /// none is closed while it sends.
    pub idle_timeout: Duration,
    /// How long a server that ends still accepts connections, because others notice only gradually that its Pod is ending.
    pub linger: Duration,
}

/// A webhook that has its address; connections wait until it serves.
pub struct WebhookServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<SharedServer>,
}

/// Why a webhook does not start.
#[derive(Debug, thiserror::Error)]
#[error("webhook address {address}: {source}")]
pub struct WebhookStartError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

/// What all connections of a server use.
struct SharedServer {
    path: &'static str,
    reviewer: Arc<dyn AdmissionReviewer>,
    metrics: WebhookMetrics,
    limits: WebhookLimits,
    memory: BodyMemory,
    /// For bodies larger than [`SMALL_BODY`].
    large: Arc<Semaphore>,
    lines: LogThrottle<IpAddr>,
}

/// Why a request gets no verdict.
#[derive(Debug, thiserror::Error)]
enum NoVerdict {
    /// It is not an admission request.
    #[error("{1}")]
    Invalid(StatusCode, String),
    /// Other requests, those of its own address first of all, hold the memory that it needs.
    #[error("requests of {address} hold too much memory: {bytes} bytes more were not free in time")]
    NoMemory { address: IpAddr, bytes: usize },
    /// Other large requests are being reviewed.
    #[error("too many large requests: one of {0} bytes was not reviewed in time")]
    NoThread(usize),
}

impl WebhookServer {
    /// Listens on `address`; port 0 takes a free one. `path` is the one that answers, such as `/mutate`.
    pub async fn bind(
        address: SocketAddr,
        path: &'static str,
        reviewer: Arc<dyn AdmissionReviewer>,
        metrics: &Metrics,
        limits: WebhookLimits,
    ) -> Result<Self, WebhookStartError> {
        let error = |source| WebhookStartError { address, source };
        let listener = listen::bind(address).await.map_err(error)?;
        // Connections have what their listener has.
        let socket = SockRef::from(&listener);
        socket.set_recv_buffer_size(KERNEL_RECEIVE_BYTES).map_err(error)?;
        socket.set_send_buffer_size(KERNEL_SEND_BYTES).map_err(error)?;
        let local_addr = listener.local_addr().map_err(error)?;
        let shared = SharedServer {
            path,
            reviewer,
            metrics: WebhookMetrics::register(metrics),
            limits,
            memory: BodyMemory::new(limits.all_body_bytes),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            lines: LogThrottle::new(LINES),
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

impl Default for WebhookLimits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            all_body_bytes: 48 << 20,
            // An API server answers 600 requests at a time by default, and calls the webhook about each on a
            // connection of its own. What one address can make all of its connections hold in the process and in the
            // kernel fits, with all bodies, into the memory that the chart gives.
            connections: ConnectionLimits { all: 1536, per_address: 640 },
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            linger: Duration::from_secs(5),
        }
    }
}

/// Accepts until `linger` after the start of the drain, then waits for the requests in flight, at most one request
/// timeout.
async fn accept(mut incoming: IncomingConnections, shared: &Arc<SharedServer>, mut drain: drain::Watch) {
    let (ending, ended) = drain::channel();
    let mut lingering = std::pin::pin!(async {
        drain.started().await;
        tokio::time::sleep(shared.limits.linger).await;
    });
    let mut summary = tokio::time::interval(shared.lines.window());
    loop {
        let connection = tokio::select! {
            () = &mut lingering => break,
            _ = summary.tick() => {
                shared.summarize();
                continue;
            }
            connection = incoming.next() => connection,
        };
        let Some(Ok(connection)) = connection else { continue };
        tokio::spawn(serve_connection(connection, shared.clone(), ended.clone()));
    }
    drop(incoming);
    drop(ended);
    ending.drain(shared.limits.request_timeout).await;
}

/// Serves one connection, request after request. Its one deadline moves with each phase of a request; hyper's own
/// timeout for heads only covers the time between requests.
async fn serve_connection(
    connection: AcceptedConnection,
    shared: Arc<SharedServer>,
    mut ending: drain::Watch,
) {
    let address = connection.peer().address;
    let timeout = shared.limits.request_timeout;
    let deadline = Arc::new(watch::Sender::new(Instant::now() + timeout));
    let late = overdue(deadline.subscribe());
    let after = NextDeadline { deadline, idle_timeout: shared.limits.idle_timeout };
    let service = hyper::service::service_fn({
        let shared = shared.clone();
        move |request| {
            // For the body, and as long again for the answer to be read.
            after.deadline.send_replace(Instant::now() + 2 * timeout);
            let (shared, after) = (shared.clone(), after.clone());
            async move { Ok::<_, Infallible>(answer(&shared, address.ip(), request, after).await) }
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(shared.limits.idle_timeout)
        .max_buf_size(BUFFER_BYTES)
        .half_close(false);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(connection), service));
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = late => return debug!(%address, "connection closed: no request came, or its answer was not read, in time"),
        () = ending.started() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        debug!(%address, %error, "webhook connection ended");
    }
}

/// Returns once the deadline has passed.
async fn overdue(mut deadline: watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}

/// The response to a request: a verdict, or an error that closes the connection, because the rest of the body is
/// unread.
async fn answer(
    shared: &Arc<SharedServer>,
    address: IpAddr,
    request: Request<Incoming>,
    after: NextDeadline,
) -> Response<VerdictBody> {
    match review(shared, address, request).await {
        Ok((body, memory)) => {
            let mut response = Response::new(VerdictBody::new(body, Some(memory), after));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            let reason = error.to_string();
            let reason = cut(&reason);
            let status = match error {
                NoVerdict::Invalid(status, _) => {
                    shared.metrics.invalid();
                    status
                }
                NoVerdict::NoMemory { .. } | NoVerdict::NoThread(_) => {
                    shared.metrics.busy();
                    StatusCode::SERVICE_UNAVAILABLE
                }
            };
            debug!(%status, reason, "no admission verdict");
            let mut response =
                Response::new(VerdictBody::new(format!("{reason}\n").into_bytes(), None, after));
            *response.status_mut() = status;
            // What is left of the body is not read.
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            response
        }
    }
}

/// The answer, and the memory that it holds until it is sent.
async fn review(
    shared: &Arc<SharedServer>,
    address: IpAddr,
    request: Request<Incoming>,
) -> Result<(Vec<u8>, BodyGrant), NoVerdict> {
    check_head(shared, &request)?;
    let deadline = Instant::now() + shared.limits.request_timeout;
    let bytes = announced_bytes(shared, request.body())?;
    let memory = tokio::time::timeout_at(deadline, shared.memory.take(address, bytes));
    let mut memory = memory.await.map_err(|_| NoVerdict::NoMemory { address, bytes })?;
    let body = read_body(shared, request.into_body());
    let body = tokio::time::timeout_at(deadline, body).await.map_err(|_| {
        NoVerdict::Invalid(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned())
    })??;
    let answer = if body.len() <= SMALL_BODY {
        judge(shared, address, body).await?
    } else {
        let permit = tokio::time::timeout_at(deadline, shared.large.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| NoVerdict::NoThread(body.len()))?.map_err(failed)?;
        let (shared, runtime) = (shared.clone(), Handle::current());
        let judged = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            runtime.block_on(judge(&shared, address, body))
        });
        judged.await.map_err(failed)??
    };
    memory.resize(answer.len());
    Ok((answer, memory))
}

/// The answer to a body.
async fn judge(shared: &SharedServer, address: IpAddr, body: Vec<u8>) -> Result<Vec<u8>, NoVerdict> {
    let start = Instant::now();
    let request = AdmissionRequest::parse(&body).map_err(|error| invalid(error.to_string()))?;
    let verdict = shared.reviewer.review(&request).await;
    shared.log(address, &request, &verdict.outcome);
    let answer = ReviewResponse::new(request.uid(), &verdict)
        .and_then(|response| serde_json::to_vec(&response))
        .map_err(failed)?;
    shared.metrics.answered(&verdict.outcome, start.elapsed());
    Ok(answer)
}

/// Refuses, before a byte of the body is read, what is not an admission request by its path, method and type.
fn check_head(shared: &SharedServer, request: &Request<Incoming>) -> Result<(), NoVerdict> {
    if request.uri().path() != shared.path {
        return Err(NoVerdict::Invalid(StatusCode::NOT_FOUND, format!("there is only {}", shared.path)));
    }
    if request.method() != Method::POST {
        let reason = "only POST is answered".to_owned();
        return Err(NoVerdict::Invalid(StatusCode::METHOD_NOT_ALLOWED, reason));
    }
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let reason = "content-type must be application/json".to_owned();
        return Err(NoVerdict::Invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    Ok(())
}

/// How long a body will be: what its head says, as the API server's always does, or else the most that there may be.
fn announced_bytes(shared: &SharedServer, body: &Incoming) -> Result<usize, NoVerdict> {
    let most = shared.limits.body_bytes;
    let Some(exact) = body.size_hint().exact() else { return Ok(most) };
    match usize::try_from(exact) {
        Ok(bytes) if bytes <= most => Ok(bytes),
        _ => Err(too_large(most)),
    }
}

/// Reads a body that is as long as was announced.
async fn read_body(shared: &SharedServer, mut body: Incoming) -> Result<Vec<u8>, NoVerdict> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| invalid(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > shared.limits.body_bytes {
            return Err(too_large(shared.limits.body_bytes));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn invalid(reason: String) -> NoVerdict {
    NoVerdict::Invalid(StatusCode::BAD_REQUEST, reason)
}

/// An error of our own, for which the API server applies the webhook's `failurePolicy`.
fn failed(error: impl Error) -> NoVerdict {
    NoVerdict::Invalid(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn too_large(most: usize) -> NoVerdict {
    NoVerdict::Invalid(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {most} bytes"))
}

impl SharedServer {
    /// Says how a request was answered, unless its address has had its lines.
    fn log(&self, address: IpAddr, request: &AdmissionRequest<'_>, outcome: &ReviewOutcome) {
        let (kind, namespace, name) = (request.kind().kind.as_str(), request.namespace(), request.name());
        let operation = request.operation();
        if matches!(outcome, ReviewOutcome::Allowed) {
            debug!(kind, namespace, name, ?operation, "admission as it is");
            return;
        }
        if !self.lines.admits(&address, std::time::Instant::now()) {
            return;
        }
        match outcome {
            ReviewOutcome::Denied(reason) => {
                info!(kind, namespace, name, ?operation, reason = cut(reason), "admission denied");
            }
            _ => info!(kind, namespace, name, ?operation, "admission with changes"),
        }
    }

    /// Says how many lines were left out.
    fn summarize(&self) {
        if let Some(suppressed) = self.lines.take_suppressed() {
            info!(by_source = %suppressed, "more admissions were denied or changed");
        }
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
