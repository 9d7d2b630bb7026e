//! One stream: a request is checked, judged, passed on, and its answer passed back.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tidegate_core::policy::{AppProtocol, Decision};

use super::account::Account;
use super::answer::Answer;
use super::headers;
use super::pulse::Pulse;
use super::request::{Target, is_grpc};
use super::upstream::{UpstreamBody, UpstreamError, Violation};
use crate::http::Env;
use crate::http::local_reply::{self, LocalReply};
use crate::session::{ConnectionInfo, Gate};
use crate::telemetry::ResponseFlag;

/// The streams of one connection.
pub(super) struct Exchanges {
    gate: Rc<Gate>,
    env: Rc<Env>,
    pulse: Rc<Pulse>,
}

impl Exchanges {
    pub(super) fn new(gate: Rc<Gate>, env: Rc<Env>, pulse: Rc<Pulse>) -> Self {
        Self { gate, env, pulse }
    }

    /// What the streams share with all others of the worker.
    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// The connection that they are on.
    pub(super) fn connection(&self) -> &ConnectionInfo {
        self.gate.info()
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        let info = self.gate.info();
        let mut account = Account::open(&self.env, info, &self.pulse, &request);
        let (mut head, body) = request.into_parts();
        let is_head = head.method == Method::HEAD;

        let target = match Target::check(&head, self.env.limits.header_count) {
            Ok(target) => target,
            Err(reply) => return local(reply, account, is_head),
        };
        let authority = target.authority.as_ref().map_or("", |authority| authority.as_str());
        let decision = self.gate.decide_on(authority);
        account.decided(decision.clone());
        if let Decision::Deny(denial) = &*decision {
            return local(local_reply::denied(&denial.reason), account, is_head);
        }

        headers::prepare(&mut head.headers, info);
        account.forwarded(&head.headers);
        let body = account.upload(body);
        let upstreams = &self.env.h2;
        let connect = self.env.limits.connect;
        let response = if self.wants_http2(&head) {
            let request = headers::into_http2(head, target, body);
            upstreams.send(info.app, request, connect).await
        } else {
            let request = headers::into_http1(head, target, body);
            upstreams.send_http1(info.app, request, connect).await
        };
        match response {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                local(UpstreamError::Protocol(Violation::Switch).reply(), account, is_head)
            }
            Ok(response) => pass_back(response, account),
            Err(error) => local(error.reply(), account, is_head),
        }
    }

    /// As OSM does: what the client speaks decides where the app's port says nothing, and gRPC is HTTP/2 always. A
    /// client that negotiated HTTP/2 by ALPN does so for itself; one that just speaks it knows the app.
    fn wants_http2(&self, head: &http::request::Parts) -> bool {
        self.gate.app_protocol() == AppProtocol::H2c || !self.gate.info().tls || is_grpc(&head.headers)
    }
}

/// An answer of ours; hyper adds the date.
fn local(reply: LocalReply, mut account: Account, is_head: bool) -> Response<Answer> {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    account.answered(status, reply.flag, reply.details);
    let body = if is_head { Bytes::new() } else { Bytes::from_static(reply.body.as_bytes()) };
    let mut response = Response::new(Answer::local(body, account));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn pass_back(response: Response<UpstreamBody>, mut account: Account) -> Response<Answer> {
    account.answered(response.status(), ResponseFlag::None, "via_upstream");
    let (mut head, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut head.headers);
    headers::keep_one_length(&mut head.headers);
    head.version = Version::HTTP_2;
    head.extensions.clear();
    Response::from_parts(head, Answer::app(body, account))
}
