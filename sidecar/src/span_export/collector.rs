//! One collector, and what it answers.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper_util::rt::TokioIo;
use tidegate_core::telemetry::TraceCollector;
use tidegate_proto::Message;
use tidegate_proto::otlp::trace_service_client::TraceServiceClient;
use tidegate_proto::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::net::TcpStream;
use tokio::time::timeout;
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
    Http(TraceCollector),
    /// The address cannot be used.
    Invalid(String),
}

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
    /// Connects when a batch is sent.
    pub(super) fn new(collector: &TraceCollector) -> Self {
        if collector.path.is_some() {
            return Self::Http(collector.clone());
        }
        match Endpoint::from_shared(format!("http://{collector}")) {
            Ok(endpoint) => {
                let channel = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect_lazy();
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
            Self::Http(collector) => timeout(TIMEOUT, post(collector, &request)).await,
            Self::Invalid(error) => return Err(ExportError::Address(error.clone())),
        };
        let response = response.map_err(|_| ExportError::Timeout)??;
        let rejected = response.partial_success.map(|partial| partial.rejected_spans).unwrap_or_default();
        Ok(u64::try_from(rejected).unwrap_or_default())
    }
}

/// Sends a batch as protobuf over HTTP/1.1, on a connection of its own.
async fn post(
    collector: &TraceCollector,
    request: &ExportTraceServiceRequest,
) -> Result<ExportTraceServiceResponse, ExportError> {
    let stream = TcpStream::connect((&*collector.host, collector.port)).await.map_err(connection)?;
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(connection)?;
    let request = Request::post(collector.path.as_deref().unwrap_or("/"))
        .header(HOST, collector.to_string())
        .header(CONTENT_TYPE, "application/x-protobuf")
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
