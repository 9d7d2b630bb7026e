//! Traces across both sidecars.

use tidegate_core::telemetry::{TelemetrySettings, TraceCollector, TracingSettings};

use super::app::{Log, received};
use super::*;
use crate::telemetry::trace::{FinishedSpan, span_queue};
use crate::test_mesh::policy;

type Spans = tokio::sync::mpsc::Receiver<Vec<FinishedSpan>>;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Both sidecars, with traces on for this share, and the app behind them.
struct Traced {
    server: Mesh,
    client: Client,
    log: Log,
    client_spans: Spans,
    server_spans: Spans,
}

fn settings(share: u32) -> TelemetrySettings {
    let collector = TraceCollector { host: "127.0.0.1".into(), port: 4317, path: None };
    let tracing = TracingSettings { collector, sampled_per_million: share };
    TelemetrySettings { tracing: Some(tracing), ..TelemetrySettings::default() }
}

async fn traced(protocol: BackendProtocol, share: u32) -> Traced {
    let (app, log) = app::echo().await;
    let (client_sink, client_spans) = span_queue();
    let (server_sink, server_spans) = span_queue();
    let tracing = move |sink: crate::telemetry::trace::SpanSink| {
        move || Telemetry::new(&DataPlaneMetrics::default(), None).with_spans(sink.clone())
    };
    let server = Mesh::telling(app, 1, Limits::default(), Arc::new(tracing(server_sink)));
    be(&server, &server.root.workload("shop", "cart"));
    server.publish(|policy| {
        policy.telemetry = settings(share);
        if let Some(port) = policy.ports.get_mut(&(Port::Mesh as u16)) {
            port.protocol = AppProtocol::Http;
        }
    });
    let dialled = "10.96.0.10:80".parse().unwrap();
    let client = Client::telling(dialled, Limits::default(), Arc::new(tracing(client_sink)));
    client.show(&server.root, &server.root.workload("shop", "client"));
    let own = tidegate_core::policy::InboundPolicy { telemetry: settings(share), ..policy() };
    client.publisher.update(|snapshot| snapshot.policy = Some(Arc::new(own)));
    client.learn(service_of(AppProtocol::Http, protocol, &[(server.address(Port::Mesh), identity("cart"))]));
    let mut traced = Traced { server, client, log, client_spans, server_spans };
    traced.until_both_trace().await;
    traced
}

impl Traced {
    /// Sends requests until both sidecars have seen their settings.
    async fn until_both_trace(&mut self) {
        let (mut is_client, mut is_server) = (false, false);
        while !(is_client && is_server) {
            self.send("/probe", "b3: 1\r\n").await;
            let patience = Duration::from_millis(100);
            is_client |= tokio::time::timeout(patience, self.client_spans.recv()).await.is_ok();
            is_server |= tokio::time::timeout(patience, self.server_spans.recv()).await.is_ok();
        }
    }

    /// What the app has received but for [`Traced::until_both_trace`].
    fn received(&self) -> Vec<app::Received> {
        received(&self.log).into_iter().filter(|received| !received.line.contains("/probe")).collect()
    }

    async fn get(&self, lines: &str) {
        self.send("/cart?x", lines).await;
    }

    /// Sends a request with these header lines, and closes.
    async fn send(&self, path: &str, lines: &str) {
        let mut io = self.client.dial().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: cart\r\n{lines}connection: close\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

/// The next span, but for those of [`Traced::until_both_trace`].
async fn next(spans: &mut Spans) -> FinishedSpan {
    loop {
        let block = tokio::time::timeout(PATIENCE, spans.recv()).await.unwrap().unwrap();
        let found = block.into_iter().find(|span| &*span.path != b"/probe");
        if let Some(found) = found {
            return found;
        }
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    tidegate_core::hex(bytes.as_ref())
}

#[tokio::test]
async fn the_server_s_span_is_the_child_of_the_client_s_and_the_app_s_context_is_the_server_s() {
    for protocol in [BackendProtocol::Http1, BackendProtocol::Http2] {
        let mut traced = traced(protocol, 0).await;
        traced.get(&format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=b\r\n")).await;
        let client = next(&mut traced.client_spans).await;
        let server = next(&mut traced.server_spans).await;
        assert!(client.is_outbound && !server.is_outbound);
        assert_eq!(
            (hex(client.trace.trace_id()), hex(server.trace.trace_id())),
            (TRACE.into(), TRACE.into())
        );
        assert_eq!(hex(client.trace.parent_id().unwrap()), PARENT);
        assert_eq!(server.trace.parent_id(), Some(client.trace.span_id()));
        let app = traced.received().remove(0);
        let span = hex(server.trace.span_id());
        assert_eq!(app.header("traceparent"), format!("00-{TRACE}-{span}-01"));
        assert_eq!((app.header("tracestate"), app.header("b3")), ("a=b", ""));
        assert_eq!((client.status, server.status), (200, 200));
        assert_eq!((&*client.path, &*server.path), (&b"/cart"[..], &b"/cart"[..]));
        assert!(!client.request_id.is_empty());
        assert_eq!(client.request_id, server.request_id);
        drop(traced.server);
    }
}

#[tokio::test]
async fn b3_reaches_the_app_as_it_came_with_the_span_of_its_sidecar() {
    let mut traced = traced(BackendProtocol::Http1, 0).await;
    traced.get(&format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {PARENT}\r\nX-B3-Sampled: 1\r\n")).await;
    let server = next(&mut traced.server_spans).await;
    let app = traced.received().remove(0);
    assert_eq!(app.header("x-b3-traceid"), TRACE);
    assert_eq!(app.header("x-b3-spanid"), hex(server.trace.span_id()));
    assert_eq!(app.header("x-b3-parentspanid"), hex(server.trace.parent_id().unwrap()));
    assert_eq!(app.header("x-b3-sampled"), "1");
}

#[tokio::test]
async fn a_trace_that_is_not_recorded_has_a_context_and_no_spans() {
    let mut traced = traced(BackendProtocol::Http1, 0).await;
    traced.get("").await;
    traced.get("b3: 1\r\n").await;
    // Only the second one was recorded.
    let server = next(&mut traced.server_spans).await;
    let app = traced.received();
    assert!(app[0].header("traceparent").ends_with("-02"), "{}", app[0].header("traceparent"));
    assert!(app[1].header("traceparent").contains(&hex(server.trace.span_id())));
    drop(traced.client);
    assert_eq!(next(&mut traced.client_spans).await.trace.trace_id(), server.trace.trace_id());
}

#[tokio::test]
async fn without_traces_the_fields_pass_as_they_are() {
    let (app, log) = app::echo().await;
    let server = server_before(app);
    server.publish(|policy| {
        if let Some(port) = policy.ports.get_mut(&(Port::Mesh as u16)) {
            port.protocol = AppProtocol::Http;
        }
    });
    let client = Client::of(&server.root);
    let endpoint = (server.address(Port::Mesh), identity("cart"));
    client.learn(service_of(AppProtocol::Http, BackendProtocol::Http1, &[endpoint]));
    let mut io = client.dial().await;
    let request = "GET / HTTP/1.1\r\nhost: cart\r\ntraceparent: x\r\ntracestate: y\r\nb3: z\r\nconnection: close\r\n\r\n";
    io.write_all(request.as_bytes()).await.unwrap();
    io.read_to_end(&mut Vec::new()).await.unwrap();
    let app = received(&log).remove(0);
    assert_eq!(["traceparent", "tracestate", "b3"].map(|name| app.header(name)), ["x", "y", "z"]);
}

#[tokio::test]
async fn requests_do_not_wait_for_spans_that_no_exporter_takes() {
    let traced = traced(BackendProtocol::Http1, 1_000_000).await;
    let mut io = traced.client.dial().await;
    let request = b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n";
    for _ in 0..5000 {
        io.write_all(request).await.unwrap();
        let head = app::read_head(&mut io).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    }
}
