//! Decides what happens to a request. The only place that does, for both codecs and both directions.
//!
//! A codec parses a head, presents it as a [`Request`], and carries out the [`HandlerAction`]. Codecs depend on neither
//! policy nor addresses: whether a request is allowed, where it goes and over which HTTP version is decided here.
//! Deciding copies nothing of the head and allocates nothing, unless rules distinguish paths and the client sent one that is
//! not in normal form.

mod inbound;
mod outbound;

use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::Response;
use tidegate_core::backend::Endpoint;
use tidegate_core::policy::Decision;

use self::inbound::Inbound;
use self::outbound::Outbound;
use super::local_reply::LocalReply;
use super::request::Request;
use crate::authorizer::Authorizer;
use crate::connection_info::{OutboundInfo, ServedConnection};
use crate::destinations::{EndpointChoice, LiveDestination};
use crate::refusal_log::RefusalLog;
use crate::upstream::{SendFailure, Sending, UpstreamBody, UpstreamError, Upstreams};

/// Decides about the requests of one connection.
pub struct Handler {
    connection: ServedConnection,
    rule: Rule,
}

/// What decides.
enum Rule {
    Inbound(Inbound),
    /// Boxed, so that clients' connections are small.
    Outbound(Box<Outbound>),
}

/// The outcome for one request.
pub(super) struct Handled {
    /// The policy's decision, for the access log; `None` for the app's own requests.
    pub(super) decision: Option<Rc<Decision>>,
    /// Path and query to send instead of the request's: the normal form by which rules matched it.
    pub(super) path: Option<Box<[u8]>>,
    pub(super) action: HandlerAction,
}

/// What a codec does with a request.
pub(super) enum HandlerAction {
    /// Send this response.
    Reply(LocalReply),
    /// Forward the request, and return the response.
    Forward(Forward),
}

/// Where a request is forwarded to. To be held until its response is over: it counts as the endpoint's until then.
pub(super) struct Forward {
    target: ForwardTarget,
    pub(super) protocol: UpstreamProtocol,
}

enum ForwardTarget {
    App(Arc<Endpoint>),
    /// Boxed, so that streams of clients are small.
    Chosen(Box<EndpointChoice>),
}

/// The HTTP version that an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

impl Handler {
    /// Handles the requests of this authorizer's connection.
    pub fn inbound(authorizer: Rc<Authorizer>) -> Self {
        let connection = ServedConnection::Inbound(authorizer.info().clone());
        Self { connection, rule: Rule::Inbound(Inbound::new(authorizer)) }
    }

    /// Handles the requests of one of the app's own connections.
    pub(crate) fn outbound(
        info: OutboundInfo,
        destination: LiveDestination,
        refusals: Rc<RefusalLog>,
    ) -> Self {
        let connection = ServedConnection::Outbound(Rc::new(info));
        let outbound = Outbound::new(connection.dialled(), destination, refusals);
        Self { connection, rule: Rule::Outbound(Box::new(outbound)) }
    }

    /// The connection.
    pub fn connection(&self) -> &ServedConnection {
        &self.connection
    }

    /// Decides about a request by the newest policy, or by the newest endpoints.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        match &self.rule {
            Rule::Inbound(inbound) => inbound.handle(request),
            Rule::Outbound(outbound) => outbound.handle(request),
        }
    }

    /// Waits for the response to a request that was sent to its endpoint. If that could not be reached, the request is
    /// sent to the next one.
    pub(super) async fn response(
        &self,
        upstreams: &Upstreams,
        forward: &mut Forward,
        mut sending: Sending,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        loop {
            let SendFailure { error, unsent } = match sending.await {
                Ok(response) => {
                    forward.responded(response.status().as_u16(), None);
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            let Some(unsent) = unsent else {
                if !matches!(error, UpstreamError::Overflow(_)) {
                    forward.failed();
                }
                return Err(error);
            };
            if !self.turn(forward, &error) {
                return Err(error);
            }
            let is_http2 = forward.protocol == UpstreamProtocol::Http2;
            sending = upstreams.resend(&self.connection, forward.endpoint(), is_http2, unsent)?;
        }
    }

    /// The endpoint of a request could not be reached: turns to the next one; `false` if there is none.
    pub(super) fn turn(&self, forward: &mut Forward, error: &dyn Display) -> bool {
        match (&self.rule, &mut forward.target) {
            (Rule::Outbound(outbound), ForwardTarget::Chosen(choice)) => outbound.turn(choice, error),
            _ => false,
        }
    }
}

impl Forward {
    /// The upstream.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        match &self.target {
            ForwardTarget::App(endpoint) => endpoint,
            ForwardTarget::Chosen(choice) => &choice.endpoint,
        }
    }

    /// The endpoint has responded with this status, so long after it had the request.
    pub(super) fn responded(&self, status: u16, after: Option<Duration>) {
        if let ForwardTarget::Chosen(choice) = &self.target {
            choice.responded(status, after);
        }
    }

    /// The endpoint was reached, and has not responded.
    pub(super) fn failed(&self) {
        if let ForwardTarget::Chosen(choice) = &self.target {
            choice.failed();
        }
    }
}
