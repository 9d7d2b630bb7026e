//! The access log record of one request over HTTP/2, written however the request ends.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use tidegate_core::policy::Decision;

use super::deadlines::{Deadlines, InFlight};
use super::progress::Progress;
use crate::connection_info::ServedConnection;
use crate::destinations::AppliedRule;
use crate::http::HttpContext;
use crate::http::handler::Forward;
use crate::http::headers::{FORWARDED_FOR, REQUEST_ID, is_grpc};
use crate::telemetry::trace::RequestTrace;
use crate::telemetry::{GrpcOutcome, Record, ResponseFlag};
use crate::upstream::UpstreamError;

/// Collects the facts about one request and writes its record when dropped.
pub(super) struct RequestLog {
    env: Rc<HttpContext>,
    connection: ServedConnection,
    /// Where it went. Held: the endpoint is busy with it until the response is over.
    forward: Option<Forward>,
    deadlines: Rc<Deadlines>,
    decision: Option<Rc<Decision>>,
    rule: Option<AppliedRule>,
    trace: Option<Box<RequestTrace>>,
    start: SystemTime,
    began: Instant,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    progress: Rc<Progress>,
    upstream_time: Option<Duration>,
    status: u16,
    grpc: Option<GrpcOutcome>,
    flag: ResponseFlag,
    details: &'static str,
    transport_failure: Option<Box<str>>,
    sent: u64,
    is_complete: bool,
    _in_flight: InFlight,
}

impl RequestLog {
    /// Opens the record of a request whose head was received.
    pub(super) fn open<B>(
        env: &Rc<HttpContext>,
        connection: &ServedConnection,
        deadlines: &Rc<Deadlines>,
        progress: Rc<Progress>,
        request: &Request<B>,
    ) -> Self {
        let headers = request.headers();
        Self {
            env: env.clone(),
            connection: connection.clone(),
            forward: None,
            deadlines: deadlines.clone(),
            decision: None,
            rule: None,
            trace: None,
            start: SystemTime::now(),
            began: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: headers.get(http::header::HOST).cloned(),
            user_agent: headers.get(USER_AGENT).cloned(),
            forwarded_for: None,
            request_id: None,
            progress,
            upstream_time: None,
            status: 0,
            grpc: is_grpc(bytes_of(headers.get(CONTENT_TYPE))).then_some(GrpcOutcome::Unfinished),
            flag: ResponseFlag::None,
            details: "",
            transport_failure: None,
            sent: 0,
            is_complete: false,
            _in_flight: deadlines.begin(),
        }
    }

    /// Records the policy's decision about a request, and the rule of a route that applies.
    pub(super) fn decided(
        &mut self,
        decision: Option<Rc<Decision>>,
        rule: Option<AppliedRule>,
        trace: Option<Box<RequestTrace>>,
    ) {
        (self.decision, self.rule, self.trace) = (decision, rule, trace);
    }

    /// The rule of a route that applies.
    pub(super) fn rule(&self) -> Option<&AppliedRule> {
        self.rule.as_ref()
    }

    /// Records that a server has decided otherwise than the policy.
    pub(super) fn redecided(&mut self, decision: Rc<Decision>) {
        self.decision = Some(decision);
    }

    /// The request's span, if requests are traced.
    pub(super) fn trace(&self) -> Option<&RequestTrace> {
        self.trace.as_deref()
    }

    /// Records where the request goes.
    pub(super) fn forwarded(&mut self, forward: Forward) -> &mut Forward {
        self.forward.insert(forward)
    }

    /// Records the path and query that the app receives, if they are not the request's.
    pub(super) fn forwarded_path(&mut self, path: PathAndQuery) {
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        parts.path_and_query = Some(path);
        self.uri = Uri::from_parts(parts).unwrap_or_default();
    }

    /// Records the header fields to log: those sent to the app, or those of a request that is not forwarded.
    pub(super) fn log_fields(&mut self, headers: &HeaderMap) {
        self.forwarded_for = headers.get(FORWARDED_FOR).cloned();
        self.request_id = headers.get(REQUEST_ID).cloned();
    }

    /// Records the response: the app's, or a local one with its flag.
    pub(super) fn answered(&mut self, status: StatusCode, flag: ResponseFlag, details: &'static str) {
        self.status = status.as_u16();
        self.flag = flag;
        self.details = details;
        self.upstream_time = self.progress.upload_ended().map(|ended| ended.elapsed());
    }

    /// Records the connection error if no endpoint could be reached.
    pub(super) fn failed(&mut self, error: &UpstreamError) {
        self.transport_failure = error.transport_failure().map(Into::into);
    }

    /// Records the outcome of a gRPC call, if the request is one and these fields have it: a response's head or its
    /// trailers.
    pub(super) fn ended_with(&mut self, fields: &HeaderMap) {
        if self.grpc == Some(GrpcOutcome::Unfinished) {
            self.grpc = Some(GrpcOutcome::of(fields));
        }
    }

    /// Progress of the two bodies.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Records a piece of the response's body that goes to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.deadlines.answered_data(bytes);
    }

    /// Records that the response is complete.
    pub(super) fn complete(&mut self) {
        if !self.is_complete {
            self.is_complete = true;
            self.deadlines.answered();
        }
    }

    /// Records that the response was cut off.
    pub(super) fn broke_off(&mut self, flag: ResponseFlag, details: &'static str) {
        self.is_complete = true;
        self.flag = flag;
        self.details = details;
    }

    /// The record as far as known.
    pub(super) fn record(&self) -> Record<'_> {
        let is_cut_off = !self.is_complete;
        let hostname = self.rule.as_ref().and_then(AppliedRule::hostname);
        let authority = hostname.or(self.uri.authority().map(Authority::as_str)).map(str::as_bytes);
        let endpoint = self.forward.as_ref().map(Forward::dialled);
        Record {
            decision: self.decision.as_deref(),
            route: self.rule.as_ref().map(AppliedRule::label),
            trace: self.trace.as_deref(),
            start: Some(self.start),
            duration: self.began.elapsed(),
            upstream_time: self.upstream_time,
            method: self.method.as_str().as_bytes(),
            path: self.uri.path_and_query().map_or(b"", |path| path.as_str().as_bytes()),
            protocol: "HTTP/2",
            status: self.status,
            grpc: self.grpc,
            flag: if is_cut_off { ResponseFlag::DownstreamConnectionTermination } else { self.flag },
            details: if is_cut_off { "downstream_remote_disconnect" } else { self.details },
            transport_failure: self.transport_failure.as_deref().unwrap_or_default(),
            received: self.progress.received(),
            sent: self.sent,
            authority: authority.unwrap_or(bytes_of(self.host.as_ref())),
            user_agent: bytes_of(self.user_agent.as_ref()),
            forwarded_for: bytes_of(self.forwarded_for.as_ref()),
            request_id: bytes_of(self.request_id.as_ref()),
            ..Record::of(&self.connection, endpoint)
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.env.telemetry.record(&self.record());
    }
}

fn bytes_of(value: Option<&HeaderValue>) -> &[u8] {
    value.map_or(b"", HeaderValue::as_bytes)
}
