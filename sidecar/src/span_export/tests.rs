//! Spans on their way to real collectors.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tidegate_core::policy::{Decision, Denial, Reason};
use tidegate_core::{Identity, ObjectRef, TrustDomain};
use tidegate_proto::Message;
use tidegate_proto::otlp::any_value::Value;
use tidegate_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use tidegate_proto::otlp::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse, Span, SpanKind,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::snapshot;
use crate::telemetry::metrics::DataPlaneMetrics;
use crate::telemetry::trace::{ReceivedTrace, Sampling, SpanSink, span_queue};
use crate::telemetry::{GrpcOutcome, Record, ResponseFlag, Telemetry};
use crate::test_mesh::{policy, until};

/// What a collector has received.
type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector over gRPC that rejects this many spans of each batch.
struct Collector {
    received: Received,
    rejects: i64,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.received.lock().unwrap().push(request.into_inner());
        let partial = ExportTracePartialSuccess { rejected_spans: self.rejects, ..Default::default() };
        Ok(tonic::Response::new(ExportTraceServiceResponse { partial_success: Some(partial) }))
    }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Starts one over gRPC.
async fn grpc(rejects: i64) -> (u16, Received) {
    let (listener, port) = listen().await;
    let received = Received::default();
    let service = TraceServiceServer::new(Collector { received: received.clone(), rejects });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (port, received)
}

/// Starts one over HTTP whose first answers are these.
async fn http(statuses: &'static [u16]) -> (u16, Received) {
    let (listener, port) = listen().await;
    let received = Received::default();
    let (log, count) = (received.clone(), AtomicUsize::new(0));
    let count = Arc::new(count);
    let answer = move |headers: HeaderMap, body: Bytes| async move {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let status = statuses.get(count.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(200);
        if status == 200 {
            log.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
        }
        StatusCode::from_u16(status).unwrap()
    };
    let app = axum::Router::new().route("/v1/traces", post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (port, received)
}

/// The exporter of a pod that traces everything, running.
struct Exporting {
    sink: SpanSink,
    telemetry: Telemetry,
    _publisher: snapshot::Publisher,
}

fn export_to(port: u16, path: Option<&str>) -> Exporting {
    let (publisher, snapshots) = snapshot::channel();
    let collector = TraceCollector { host: "127.0.0.1".into(), port, path: path.map(Into::into) };
    let mut policy = policy();
    policy.telemetry.workload = Some("httpbin".into());
    policy.telemetry.tracing = Some(TracingSettings { collector, sampled_per_million: 1_000_000 });
    policy.identity = Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap();
    let (sink, spans) = span_queue();
    let remotes = Remotes::default();
    remotes.identify(&policy);
    let telemetry = Telemetry::new(&DataPlaneMetrics::default(), None).with_spans(sink.clone());
    publisher.update(|snapshot| snapshot.policy = Some(Arc::new(policy)));
    let exporter =
        SpanExporter::new(spans, sink.counts().clone(), snapshots, remotes, "httpbin/httpbin-1".into());
    tokio::spawn(exporter.run());
    Exporting { sink, telemetry, _publisher: publisher }
}

impl Exporting {
    /// Ends a request of a trace that begins with it.
    fn end(&self, record: Record<'_>) {
        let trace = ReceivedTrace::default().begin(Sampling::of(1.0));
        self.telemetry.record(&Record { trace: Some(&trace), ..record });
        self.telemetry.flush();
    }

    fn counts(&self) -> (u64, u64) {
        let counts = self.sink.counts();
        (counts.exported.load(Ordering::Relaxed), counts.dropped.load(Ordering::Relaxed))
    }
}

fn get<'a>() -> Record<'a> {
    Record {
        start: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        duration: Duration::from_millis(7),
        method: b"GET",
        path: b"/cart?token=secret",
        protocol: "HTTP/1.1",
        status: 200,
        authority: b"cart.shop:8080",
        user_agent: b"curl/8",
        forwarded_for: b"192.0.2.1, 10.0.0.1",
        request_id: b"id-1",
        ..Record::default()
    }
}

fn spans(received: &Received) -> Vec<Span> {
    let requests = received.lock().unwrap();
    let scopes =
        requests.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
    scopes.flat_map(|scope| scope.spans.clone()).collect()
}

fn text(span: &Span, key: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    match attribute.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

#[tokio::test]
async fn a_collector_over_grpc_gets_the_span_of_a_request() {
    let (port, received) = grpc(0).await;
    let exporting = export_to(port, None);
    exporting.end(get());
    until(|| exporting.counts() == (1, 0)).await;
    let span = spans(&received).remove(0);
    assert_eq!((span.name.as_str(), span.kind()), ("GET", SpanKind::Server));
    assert_eq!((span.trace_id.len(), span.span_id.len(), span.parent_span_id.len()), (16, 8, 0));
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 7_000_000);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/cart"),
        ("url.query", ""),
        ("server.address", "cart.shop"),
        ("server.port", "8080"),
        ("client.address", "192.0.2.1"),
        ("network.protocol.version", "1.1"),
        ("http.response.status_code", "200"),
        ("user_agent.original", "curl/8"),
        ("tidegate.request_id", "id-1"),
        ("http.route", ""),
        ("tidegate.rule", ""),
        ("error.type", ""),
    ] {
        assert_eq!(text(&span, key), value, "{key}");
    }
    assert_eq!(span.status.unwrap().code, 0);
    let resource = received.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap();
    let names = ["service.name", "service.namespace", "k8s.pod.name"];
    let of_resource = Span { attributes: resource.attributes, ..Span::default() };
    assert_eq!(names.map(|name| text(&of_resource, name)), ["httpbin", "httpbin", "httpbin-1"]);
}

#[tokio::test]
async fn errors_and_grpc_calls_say_so() {
    let (port, received) = grpc(0).await;
    let exporting = export_to(port, None);
    let flag = ResponseFlag::UpstreamConnectionFailure;
    exporting.end(Record { status: 503, flag, details: "connect", ..get() });
    exporting.end(Record { method: b"BREW", status: 404, ..get() });
    let grpc = Some(GrpcOutcome::Status(13));
    exporting.end(Record { path: b"/shop.Cart/Add", grpc, protocol: "HTTP/2", ..get() });
    until(|| exporting.counts().0 == 3).await;
    let [failed, unknown, call] = spans(&received).try_into().unwrap();
    assert_eq!((failed.status.clone().unwrap().code, text(&failed, "error.type").as_str()), (2, "503"));
    assert_eq!(text(&failed, "tidegate.response_flags"), "UF");
    assert_eq!((unknown.name.as_str(), unknown.status.clone().unwrap().code), ("HTTP", 0));
    assert_eq!(text(&unknown, "http.request.method_original"), "BREW");
    assert_eq!((call.name.as_str(), call.status.clone().unwrap().code), ("shop.Cart/Add", 2));
    assert_eq!(text(&call, "rpc.response.status_code"), "13");
}

#[tokio::test]
async fn a_span_names_the_route_and_the_object_that_decided() {
    let (port, received) = grpc(0).await;
    let exporting = export_to(port, None);
    exporting.end(Record { route: Some("HTTPRoute/shop/cart/0"), ..get() });
    let origin = Some(ObjectRef::new("TrafficTarget", "shop", "readers"));
    let refused = Decision::Deny(Denial { reason: Reason::RequestNotAllowed, origin });
    exporting.end(Record { status: 403, decision: Some(&refused), ..get() });
    until(|| exporting.counts().0 == 2).await;
    let [routed, refused] = spans(&received).try_into().unwrap();
    assert_eq!(text(&routed, "http.route"), "HTTPRoute/shop/cart/0");
    assert_eq!(text(&refused, "tidegate.rule"), "TrafficTarget/shop/readers");
}

#[tokio::test]
async fn a_collector_over_http_gets_the_same_and_a_batch_that_it_cannot_take_now_again() {
    let (port, received) = http(&[503]).await;
    let exporting = export_to(port, Some("/v1/traces"));
    exporting.end(get());
    until(|| exporting.counts() == (1, 0)).await;
    assert_eq!(text(&spans(&received)[0], "url.path"), "/cart");
}

#[tokio::test]
async fn what_a_collector_rejects_is_counted_and_not_sent_again() {
    let (port, received) = grpc(1).await;
    let exporting = export_to(port, None);
    exporting.end(get());
    until(|| exporting.counts() == (0, 1)).await;
    assert_eq!(received.lock().unwrap().len(), 1);
    let (port, received) = http(&[400]).await;
    let exporting = export_to(port, Some("/v1/traces"));
    exporting.end(get());
    until(|| exporting.counts() == (0, 1)).await;
    assert!(received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn spans_beyond_the_queue_are_counted_and_nothing_waits() {
    let exporting = {
        // Accepts connections, and never answers.
        let (listener, port) = listen().await;
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((io, _)) = listener.accept().await {
                open.push(io);
            }
        });
        export_to(port, None)
    };
    for _ in 0..10_000 {
        exporting.end(get());
    }
    let (exported, dropped) = exporting.counts();
    assert_eq!(exported, 0);
    assert!(dropped > 9_000, "{dropped}");
}
