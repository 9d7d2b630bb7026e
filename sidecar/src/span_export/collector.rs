//! One collector, and what it answers.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, PROXY_AUTHORIZATION, RETRY_AFTER};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper_util::rt::TokioIo;
use tidegate_core::telemetry::TraceCollector;
use tidegate_proto::Message;
use tidegate_proto::otlp::trace_service_client::TraceServiceClient;
use tidegate_proto::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tidegate_runtime::forward_proxy::{HttpProxy, Proxied, ProxyEnvironment, ProxyVariableError};
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response};

/// How long a collector may take for a batch: OpenTelemetry's default.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait that a collector may ask for.
const MOST_WAIT: Duration = Duration::from_secs(30);
/// The most bytes of a response that are read.
const MOST_RESPONSE: usize = 64 * 1024;

/// A client of one collector.
pub(super) enum CollectorClient {
    Grpc(TraceServiceClient<Channel>),
    Http(TraceCollector, ProxyEnvironment),
    /// The address cannot be used.
    Invalid(String),
}

/// Connects to one collector.
#[derive(Clone)]
struct CollectorConnector(Arc<(TraceCollector, ProxyEnvironment)>);

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    #[error("{}: {}", .0.code(), .0.message())]
    Grpc(#[from] tonic::Status),
    #[error("HTTP {0}")]
    Http(StatusCode, Option<Duration>),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("{0}")]
    Connection(Box<dyn std::error::Error + Send + Sync>),
    #[error("the address cannot be used: {0}")]
    Address(String),
}

impl CollectorClient {
    /// Connects when a batch is sent, through the environment's proxy if there is one on the way.
    pub(super) fn new(
        collector: &TraceCollector,
        proxies: &Result<ProxyEnvironment, ProxyVariableError>,
    ) -> Self {
        let proxies = match proxies {
            Ok(proxies) => proxies.clone(),
            Err(error) => return Self::Invalid(error.to_string()),
        };
        if collector.path.is_some() {
            return Self::Http(collector.clone(), proxies);
        }
        match Endpoint::from_shared(format!("http://{collector}")) {
            Ok(endpoint) => {
                let connector = CollectorConnector(Arc::new((collector.clone(), proxies)));
                let channel = endpoint.timeout(TIMEOUT).connect_with_connector_lazy(connector);
                Self::Grpc(TraceServiceClient::new(channel))
            }
            Err(error) => Self::Invalid(error.to_string()),
        }
    }

    /// Sends a batch. Returns how many of its spans were rejected, which is final.
    pub(super) async fn send(&mut self, request: ExportTraceServiceRequest) -> Result<u64, ExportError> {
        let response = match self {
            Self::Grpc(client) => {
                let response = timeout(TIMEOUT, client.export(request)).await;
                response.map(|response| response.map(Response::into_inner).map_err(ExportError::from))
            }
            Self::Http(collector, proxies) => timeout(TIMEOUT, post(collector, proxies, &request)).await,
            Self::Invalid(error) => return Err(ExportError::Address(error.clone())),
        };
        let response = response.map_err(|_| ExportError::Timeout)??;
        let rejected = response.partial_success.map(|partial| partial.rejected_spans).unwrap_or_default();
        Ok(u64::try_from(rejected).unwrap_or_default())
    }
}

impl Service<Uri> for CollectorConnector {
    type Response = TokioIo<Proxied>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move {
            let (collector, proxies) = &*target;
            let connected = timeout(TIMEOUT, proxies.connect(&collector.host, collector.port)).await;
            connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(TokioIo::new)
        })
    }
}

/// Sends a batch as protobuf over HTTP/1.1, on a connection of its own.
async fn post(
    collector: &TraceCollector,
    proxies: &ProxyEnvironment,
    request: &ExportTraceServiceRequest,
) -> Result<ExportTraceServiceResponse, ExportError> {
    let connected = proxies.connect_http(&collector.host, collector.port).await;
    let (stream, proxy) = connected.map_err(connection)?;
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(connection)?;
    let path = collector.path.as_deref().unwrap_or("/");
    let target = if proxy.is_some() { format!("http://{collector}{path}") } else { path.to_owned() };
    let mut head = Request::post(target)
        .header(HOST, collector.to_string())
        .header(CONTENT_TYPE, "application/x-protobuf");
    if let Some(credentials) = proxy.and_then(HttpProxy::credentials) {
        head = head.header(PROXY_AUTHORIZATION, credentials.authorization());
    }
    let request = head
        .body(Full::new(Bytes::from(request.encode_to_vec())))
        .map_err(|error| ExportError::Address(error.to_string()))?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(connection)?;
        if !response.status().is_success() {
            return Err(ExportError::Http(response.status(), retry_after(response.headers())));
        }
        let body = Limited::new(response.into_body(), MOST_RESPONSE).collect().await;
        Ok(body.map(Collected::to_bytes).unwrap_or_default())
    };
    // Ends with the exchange: the sender is dropped then.
    let (body, _) = tokio::join!(exchange, driver);
    // A collector may answer without a body, or in JSON; it has taken the spans.
    Ok(ExportTraceServiceResponse::decode(body?).unwrap_or_default())
}

impl ExportError {
    /// Whether the same batch may be taken later (OTLP 1.x).
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Grpc(status) => matches!(
                status.code(),
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
            ),
            Self::Http(status, _) => matches!(status.as_u16(), 429 | 502..=504),
            Self::Timeout | Self::Connection(_) => true,
            Self::Address(_) => false,
        }
    }

    /// How long the collector wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if let Self::Http(_, wait) = self { wait.map(|wait| wait.min(MOST_WAIT)) } else { None }
    }
}

fn connection(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ExportError {
    ExportError::Connection(error.into())
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
