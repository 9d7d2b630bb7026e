//! Spans in OpenTelemetry's form, with the attributes of its semantic conventions for HTTP and gRPC.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use tidegate_proto::otlp::any_value::Value;
use tidegate_proto::otlp::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span, SpanKind, Status, StatusCode,
};

use crate::remotes::Remotes;
use crate::telemetry::trace::FinishedSpan;
use crate::telemetry::{GrpcOutcome, ResponseFlag};

/// Methods that are named; all others are `_OTHER`.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// gRPC statuses that are a server's fault.
const SERVER_FAULTS: [u8; 6] = [2, 4, 12, 13, 14, 15];
/// A span's parent is in another process.
const REMOTE_PARENT: u32 = 0x300;

/// A batch of spans of one pod, `<namespace>/<name>`.
pub(super) fn export_request(
    batch: &[FinishedSpan],
    pod: &str,
    remotes: &Remotes,
) -> ExportTraceServiceRequest {
    let (namespace, pod) = pod.split_once('/').unwrap_or_default();
    let own = remotes.own();
    let mut attributes = Attributes::default();
    attributes.text("service.name", own.name.as_deref().unwrap_or(pod));
    attributes.text("service.namespace", namespace);
    attributes.text("service.instance.id", pod);
    attributes.text("k8s.namespace.name", namespace);
    attributes.text("k8s.pod.name", pod);
    let scope =
        InstrumentationScope { name: "tidegate".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let spans = batch.iter().map(|span| otlp_span(span, remotes)).collect();
    let resource = Some(Resource { attributes: attributes.0 });
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
}

fn otlp_span(span: &FinishedSpan, remotes: &Remotes) -> Span {
    let start = span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let is_error = is_error(span);
    let code = if is_error { StatusCode::Error } else { StatusCode::Unset };
    let kind = if span.is_outbound { SpanKind::Client } else { SpanKind::Server };
    Span {
        trace_id: span.trace.trace_id().into(),
        span_id: span.trace.span_id().into(),
        parent_span_id: span.trace.parent_id().map(Into::into).unwrap_or_default(),
        name: name(span),
        kind: kind.into(),
        start_time_unix_nano: nanos(start),
        end_time_unix_nano: nanos(start + span.duration),
        attributes: attributes(span, is_error, remotes),
        status: Some(Status { message: String::new(), code: code.into() }),
        flags: u32::from(span.trace.flags()) | REMOTE_PARENT,
    }
}

/// The method, or that of a gRPC call: few different names, whatever clients send.
fn name(span: &FinishedSpan) -> String {
    match (span.grpc, known_method(&span.method)) {
        (Some(_), _) => rpc_method(span).into_owned(),
        (None, Some(method)) => method.to_owned(),
        (None, None) => "HTTP".to_owned(),
    }
}

fn known_method(method: &[u8]) -> Option<&'static str> {
    METHODS.into_iter().find(|known| known.as_bytes() == method)
}

/// `<package>.<service>/<method>`
fn rpc_method(span: &FinishedSpan) -> Cow<'_, str> {
    String::from_utf8_lossy(span.path.strip_prefix(b"/").unwrap_or(&span.path))
}

/// A server's span fails by its own fault, a client's by any.
fn is_error(span: &FinishedSpan) -> bool {
    let by_grpc = match span.grpc {
        Some(GrpcOutcome::Status(0)) | None => false,
        Some(GrpcOutcome::Status(status)) => span.is_outbound || SERVER_FAULTS.contains(&status),
        Some(GrpcOutcome::Unfinished) => true,
    };
    by_grpc || span.status == 0 || span.status >= if span.is_outbound { 400 } else { 500 }
}

fn attributes(span: &FinishedSpan, is_error: bool, remotes: &Remotes) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    match known_method(&span.method) {
        Some(method) => all.text("http.request.method", method),
        None => {
            all.text("http.request.method", "_OTHER");
            all.bytes("http.request.method_original", &span.method);
        }
    }
    all.bytes("url.path", &span.path);
    all.text("url.scheme", "http");
    all.authority(&String::from_utf8_lossy(&span.authority));
    if let Some(version) = span.protocol.strip_prefix("HTTP/") {
        all.text("network.protocol.version", version);
    }
    if let Some(peer) = span.peer {
        all.text("network.peer.address", &peer.ip().to_canonical().to_string());
        all.number("network.peer.port", peer.port().into());
    }
    if !span.is_outbound {
        let first = span.forwarded_for.split(|byte| *byte == b',').next().unwrap_or_default();
        all.bytes("client.address", first.trim_ascii());
        all.bytes("user_agent.original", &span.user_agent);
    }
    if span.status > 0 {
        all.number("http.response.status_code", span.status.into());
    }
    if let Some(outcome) = span.grpc {
        all.text("rpc.system.name", "grpc");
        all.text("rpc.method", &rpc_method(span));
        if let GrpcOutcome::Status(status) = outcome {
            all.number("rpc.response.status_code", status.into());
        }
    }
    if is_error {
        match span.grpc {
            Some(GrpcOutcome::Status(status)) if status > 0 => all.text("error.type", &status.to_string()),
            _ if span.status > 0 => all.text("error.type", &span.status.to_string()),
            _ => all.text("error.type", span.flag.code()),
        }
    }
    all.of_mesh(span, remotes);
    all.0
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) });
    }

    /// Nothing, if the text is empty.
    fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.add(key, Value::StringValue(text.to_owned()));
        }
    }

    fn bytes(&mut self, key: &str, bytes: &[u8]) {
        self.text(key, &String::from_utf8_lossy(bytes));
    }

    fn number(&mut self, key: &str, number: i64) {
        self.add(key, Value::IntValue(number));
    }

    /// Host and port.
    fn authority(&mut self, authority: &str) {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().ok()),
            _ => (authority, None),
        };
        self.text("server.address", host.trim_matches(['[', ']']));
        if let Some(port) = port {
            self.number("server.port", port.into());
        }
    }

    /// What the mesh says of the request.
    fn of_mesh(&mut self, span: &FinishedSpan, remotes: &Remotes) {
        let remote = remotes.labels(span.remote);
        if span.is_outbound {
            let service = remote.service.as_deref().and_then(|service| service.split_once('/'));
            self.text("service.peer.name", service.map(|(_, name)| name).unwrap_or_default());
            self.text("service.peer.namespace", service.map(|(namespace, _)| namespace).unwrap_or_default());
        }
        self.text("tidegate.peer.principal", remote.workload.principal.as_deref().unwrap_or_default());
        self.text("http.route", span.route.as_deref().unwrap_or_default());
        if let Some(rule) = &span.rule {
            self.text("tidegate.rule", &format!("{}/{}/{}", rule.kind, rule.namespace, rule.name));
        }
        self.bytes("tidegate.request_id", &span.request_id);
        if span.flag != ResponseFlag::None {
            self.text("tidegate.response_flags", span.flag.code());
            self.text("tidegate.response_code_details", &span.details);
        }
    }
}
