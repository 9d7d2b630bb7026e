//! One stream's request and response: the request is validated, authorized and forwarded, and its response returned.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, request};

use super::answer::AnswerBody;
use super::deadlines::Deadlines;
use super::headers;
use super::progress::Progress;
use super::repetition;
use super::request::StreamTarget;
use super::request_log::RequestLog;
use super::upload::ClientBody;
use crate::connection_info::ServedConnection;
use crate::destinations::{AppliedRule, PendingHost};
use crate::flow::outbox::Outbox;
use crate::http::HttpContext;
use crate::http::clock::DateClock;
use crate::http::handler::{
    Attempts, Forward, Handled, Handler, HandlerAction, SentRequest, UpstreamProtocol,
};
use crate::http::headers::{self as rules, is_grpc, is_stream};
use crate::http::local_reply::{self, LocalReply, ReplyForm};
use crate::http::verdict::Edits;
use crate::lifeline::{Cause, Ended, Wait};
use crate::telemetry::ResponseFlag;
use crate::upstream::{UpstreamBody, UpstreamError, Violation};

/// State shared by the streams of one connection.
pub(super) struct Exchanges {
    handler: Handler,
    env: Rc<HttpContext>,
    deadlines: Rc<Deadlines>,
    /// For responses; shared by all streams, so that one slow client holds a bounded number of bytes.
    outbox: Outbox,
}

/// Waits for the response to a request.
pub(super) type Answering = Pin<Box<dyn Future<Output = Response<AnswerBody>>>>;

/// A request that has been read, and what records it.
pub(super) struct StreamRequest {
    pub(super) head: request::Parts,
    pub(super) target: StreamTarget,
    pub(super) body: ClientBody,
    pub(super) log: Box<RequestLog>,
    pub(super) form: ReplyForm,
    pub(super) progress: Rc<Progress>,
}

impl Exchanges {
    pub(super) fn new(handler: Handler, env: Rc<HttpContext>, deadlines: Rc<Deadlines>) -> Self {
        Self { handler, env, deadlines, outbox: Outbox::new() }
    }

    /// Bounds the response data that waits to be written to the client.
    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// State shared with all streams of the worker.
    pub(super) fn env(&self) -> &HttpContext {
        &self.env
    }

    /// The client's connection.
    pub(super) fn connection(&self) -> &ServedConnection {
        self.handler.connection()
    }

    /// Formats the `date` of responses.
    pub(super) fn clock(&self) -> &DateClock {
        &self.env.clock
    }

    /// Starts tracking a new stream; its deadlines apply from now on.
    pub(super) fn begin<B>(&self, request: &Request<B>) -> Rc<Progress> {
        let line = self.env.streams.add();
        let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        Rc::new(Progress::new(line, self.env.limits.clone(), is_grpc(kind)))
    }

    /// Handles one request: authorizes it, and forwards it or replies.
    pub(super) fn answer(self: &Rc<Self>, request: Request<RecvStream>, progress: Rc<Progress>) -> Answering {
        let connection = self.handler.connection();
        let log = RequestLog::open(&self.env, connection, &self.deadlines, progress.clone(), &request);
        let log = Box::new(log);
        let (head, body) = request.into_parts();
        let content_type = || head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let form = ReplyForm::of(head.method.as_str().as_bytes(), content_type);
        let body = ClientBody::new(body, &head.headers, self.deadlines.windows(), progress.clone());

        let target = match StreamTarget::check(&head, self.env.limits.header_count) {
            Ok(_) if repetition::is_excessive(&head.headers) => {
                self.env.telemetry.limited("header_repetition");
                let reply = local_reply::header_fields_too_large("http2.repeated_headers");
                return at_once(local(reply, log, form));
            }
            Ok(target) => target,
            Err(reply) => return at_once(local(reply, log, form)),
        };
        self.decide(StreamRequest { head, target, body, log, form, progress })
    }

    /// Has a request decided about, and forwards it or replies.
    fn decide(self: &Rc<Self>, mut request: StreamRequest) -> Answering {
        let StreamRequest { head, target, log, form, .. } = &mut request;
        let (view, form) = (target.request(head), *form);
        let Handled { decision, rule, path, action } = self.handler.handle(&view);
        log.decided(decision, rule, view.trace(&self.env.telemetry));
        match action {
            HandlerAction::Reply(reply) => {
                let StreamRequest { head, mut log, .. } = request;
                log.log_fields(&head.headers);
                at_once(local(reply, log, form))
            }
            HandlerAction::ReplyWith(reply, edits) => {
                let StreamRequest { head, mut log, .. } = request;
                log.log_fields(&head.headers);
                let mut response = local(reply, log, form);
                rules::edit(response.headers_mut(), &edits);
                at_once(response)
            }
            HandlerAction::Forward(forward) => self.forward(request, forward, path, None),
            HandlerAction::Check(check) => Box::pin(self.clone().check(*check, request)),
            HandlerAction::Await(host) => Box::pin(self.clone().find(*host, request)),
        }
    }

    /// Waits until it is known where a request goes.
    async fn find(self: Rc<Self>, host: PendingHost, request: StreamRequest) -> Response<AnswerBody> {
        match request.progress.line().guard(self.handler.find(host)).await {
            Ok(()) => self.decide(request).await,
            Err(Ended(cause)) => {
                let StreamRequest { log, form, progress, .. } = request;
                let reply = timeout(cause, &progress);
                progress.ran_out(self.env.streams.add());
                local(reply, log, form)
            }
        }
    }

    /// Forwards a request. `edits`: what a server that was called for it changes of the response.
    pub(super) fn forward(
        self: &Rc<Self>,
        request: StreamRequest,
        forward: Forward,
        path: Option<Box<[u8]>>,
        edits: Option<Box<Edits>>,
    ) -> Answering {
        let StreamRequest { mut head, mut target, body, mut log, form, progress } = request;
        let connection = self.handler.connection();
        if let Some(path) = path {
            let Ok(path) = PathAndQuery::try_from(&*path) else {
                return at_once(local(local_reply::bad_request("http2.invalid_path"), log, form));
            };
            log.forwarded_path(path.clone());
            target.path = path;
        }

        if let Some(hostname) = log.rule().and_then(AppliedRule::hostname) {
            target.authority = Authority::try_from(hostname).ok();
        }
        let rule_edits = log.rule().and_then(AppliedRule::request_edits);
        headers::prepare(&mut head.headers, rule_edits, connection, log.trace());
        log.log_fields(&head.headers);
        let mut forward = forward;
        let attempts = forward.attempts.take();
        let request = match forward.protocol {
            UpstreamProtocol::Http1 => headers::into_http1(head, target, body),
            UpstreamProtocol::Http2 => headers::into_http2(head, target, body),
        };
        match self.handler.send(&self.env, &forward, attempts.as_deref(), request, progress.clone()) {
            Ok(sent) => {
                Box::pin(self.clone().pass_back(sent, (forward, attempts, edits), log, form, progress))
            }
            Err(error) => {
                log.forwarded(forward);
                at_once(self.failed(error, log, form))
            }
        }
    }

    /// Waits for the app's response.
    async fn pass_back(
        self: Rc<Self>,
        sent: SentRequest<ClientBody>,
        (forward, mut attempts, edits): (Forward, Option<Box<Attempts>>, Option<Box<Edits>>),
        mut log: Box<RequestLog>,
        form: ReplyForm,
        progress: Rc<Progress>,
    ) -> Response<AnswerBody> {
        let forward = log.forwarded(forward);
        let response = self.handler.response(&self.env, forward, attempts.as_deref_mut(), sent);
        let response = progress.line().guard(response).await;
        match response {
            Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let error = UpstreamError::Protocol(Violation::Switch);
                local(local_reply::upstream_failed(&error), log, form)
            }
            Ok(Ok(mut response)) => {
                if let Some(edits) = &edits {
                    rules::edit(response.headers_mut(), &edits.response);
                }
                let kind = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
                progress.answered(is_stream(kind));
                let flag = attempts.as_ref().map_or(ResponseFlag::None, |attempts| attempts.flag());
                progress.limit(attempts.and_then(|attempts| attempts.deadline()));
                of_app(response, flag, log)
            }
            Ok(Err(error)) => self.failed(error, log, form),
            Err(Ended(cause)) => {
                let reply = timeout(cause, &progress);
                progress.ran_out(self.env.streams.add());
                local(reply, log, form)
            }
        }
    }

    /// The response to a request that could not be forwarded.
    fn failed(
        &self,
        error: UpstreamError,
        mut log: Box<RequestLog>,
        form: ReplyForm,
    ) -> Response<AnswerBody> {
        log.failed(&error);
        if let Some(limit) = error.limit() {
            self.env.telemetry.limited(limit);
        }
        local(local_reply::upstream_failed(&error), log, form)
    }
}

/// The response to a stream whose deadline passed before the app responded.
pub(super) fn timeout(cause: Cause, progress: &Progress) -> LocalReply {
    match cause {
        Cause::Deadline(Wait::Body) if progress.is_client_due() => {
            local_reply::request_timeout("request_body_timeout")
        }
        _ => local_reply::stream_timeout(),
    }
}

fn at_once(response: Response<AnswerBody>) -> Answering {
    Box::pin(std::future::ready(response))
}

/// A locally generated response, with the changes of the route's rule that applies.
pub(super) fn local(reply: LocalReply, mut log: Box<RequestLog>, form: ReplyForm) -> Response<AnswerBody> {
    let status = StatusCode::from_u16(reply.status_in(form)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    log.answered(status, reply.flag, reply.details);
    log.progress().upload_dropped();
    let mut headers = HeaderMap::new();
    if form == ReplyForm::Grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(reply.grpc_status()));
        if let Ok(message) = HeaderValue::try_from(reply.grpc_message()) {
            headers.insert("grpc-message", message);
        }
    } else {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    if let Some(rule) = log.rule() {
        if let Some(Ok(location)) = rule.location().map(HeaderValue::try_from) {
            headers.insert(LOCATION, location);
        }
        rules::edit(&mut headers, rule.response_edits());
    }
    let body = Bytes::from_static(reply.body_in(form).as_bytes());
    let mut response = Response::new(AnswerBody::local(body, log));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The app's response.
fn of_app(
    response: Response<UpstreamBody>,
    flag: ResponseFlag,
    mut log: Box<RequestLog>,
) -> Response<AnswerBody> {
    log.answered(response.status(), flag, "via_upstream");
    let (mut head, body) = response.into_parts();
    log.ended_with(&head.headers);
    headers::strip_hop_by_hop(&mut head.headers);
    headers::keep_one_length(&mut head.headers);
    if let Some(rule) = log.rule() {
        rules::edit(&mut head.headers, rule.response_edits());
    }
    head.version = Version::HTTP_2;
    head.extensions.clear();
    Response::from_parts(head, AnswerBody::app(body, log))
}
