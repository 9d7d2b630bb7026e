//! Decides what happens to a request. The only place that does, for both codecs and both directions.
//!
//! A codec parses a head, presents it as a [`Request`], and carries out the [`HandlerAction`]. Codecs depend on neither
//! policy nor addresses: whether a request is allowed, where it goes and over which HTTP version is decided here.
//! Deciding copies nothing of the head and allocates nothing, unless rules distinguish paths and the client sent one that is
//! not in normal form.

use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::Response;
use tidegate_core::backend::{BackendProtocol, Endpoint, Transport};
use tidegate_core::policy::{AppProtocol, Decision, Terms};

use super::headers::is_grpc;
use super::local_reply::{self, LocalReply};
use super::request::{NormalRequest, Request, Version};
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
    /// The policy; requests that it allows go to the app.
    Authorize { authorizer: Rc<Authorizer>, app: Arc<Endpoint> },
    /// Requests go to one of the destination's endpoints. Boxed, so that clients' connections are small.
    Balance(Box<Balance>),
}

struct Balance {
    destination: LiveDestination,
    refusals: Rc<RefusalLog>,
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
        let app = Arc::new(Endpoint::new(authorizer.info().app, Transport::Plain));
        let connection = ServedConnection::Inbound(authorizer.info().clone());
        Self { connection, rule: Rule::Authorize { authorizer, app } }
    }

    /// Handles the requests of one of the app's own connections.
    pub(crate) fn outbound(
        info: OutboundInfo,
        destination: LiveDestination,
        refusals: Rc<RefusalLog>,
    ) -> Self {
        let connection = ServedConnection::Outbound(Rc::new(info));
        Self { connection, rule: Rule::Balance(Box::new(Balance { destination, refusals })) }
    }

    /// The connection.
    pub fn connection(&self) -> &ServedConnection {
        &self.connection
    }

    /// Decides about a request by the newest policy, or by the newest endpoints.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        match &self.rule {
            Rule::Authorize { authorizer, app } => authorize(authorizer, app, request),
            Rule::Balance(balance) => {
                let destination = balance.destination.current();
                let choice = EndpointChoice::first(&destination);
                let action = match (choice, destination.block_reason()) {
                    (Some(choice), _) => HandlerAction::Forward(Forward {
                        protocol: endpoint_version(choice.protocol, request),
                        target: ForwardTarget::Chosen(Box::new(choice)),
                    }),
                    (None, Some(reason)) => {
                        balance.refusals.blocked(self.connection.dialled(), reason);
                        HandlerAction::Reply(local_reply::blocked(destination.no_endpoint_details()))
                    }
                    (None, None) => {
                        HandlerAction::Reply(local_reply::no_endpoint(destination.no_endpoint_details()))
                    }
                };
                Handled { decision: None, path: None, action }
            }
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
        let (Rule::Balance(balance), ForwardTarget::Chosen(choice)) = (&self.rule, &mut forward.target)
        else {
            return false;
        };
        let (dialled, endpoint) = (self.connection.dialled(), choice.endpoint.address);
        let service = choice.service().map(|name| &**name);
        balance.refusals.unreachable(dialled, service, endpoint, error);
        choice.turn()
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

/// Decides about a request to the app by the policy of its connection.
fn authorize(authorizer: &Authorizer, app: &Arc<Endpoint>, request: &Request<'_>) -> Handled {
    let authority = std::str::from_utf8(request.authority).unwrap_or_default();
    let mut decision = authorizer.decide_on(authority);
    let mut path = None;
    if let (Decision::Allow(_), Some(requests)) = (&*decision, authorizer.requests()) {
        let is_audit = requests.rules().is_audit();
        match NormalRequest::new(request, requests.rules().needs_normal_path()) {
            Ok(normal) => {
                decision = requests.decide(&normal);
                // In audit mode requests are forwarded as they were sent.
                path = normal.into_other_path().filter(|_| !is_audit);
            }
            Err(_) if is_audit => decision = requests.refuse_any(),
            Err(_) => {
                let reply = local_reply::bad_request("path_without_normal_form");
                let action = HandlerAction::Reply(reply);
                return Handled { decision: Some(decision), path: None, action };
            }
        }
    }
    let action = match &*decision {
        Decision::Deny(denial) => HandlerAction::Reply(local_reply::denied(&denial.reason)),
        Decision::Allow(_) => HandlerAction::Forward(Forward {
            target: ForwardTarget::App(app.clone()),
            protocol: app_version(authorizer, request),
        }),
    };
    Handled { decision: Some(decision), path, action }
}

/// The version towards the app. As in OSM: where its port declares no protocol, the client's decides, and gRPC over
/// HTTP/2 stays HTTP/2. ALPN reflects only an ingress controller's capability; a client that uses HTTP/2 with prior
/// knowledge, itself or through its own sidecar, expects it of the app.
fn app_version(authorizer: &Authorizer, request: &Request<'_>) -> UpstreamProtocol {
    let info = authorizer.info();
    let is_chosen = || !info.tls || matches!(info.terms, Terms::MeshTls(_));
    let is_http2 = || {
        request.version == Version::Http2
            && (is_chosen() || is_grpc(request.field("content-type").unwrap_or_default()))
    };
    if authorizer.app_protocol() == AppProtocol::H2c || is_http2() {
        UpstreamProtocol::Http2
    } else {
        UpstreamProtocol::Http1
    }
}

/// The version towards an endpoint: the client's, unless the endpoint speaks only one.
fn endpoint_version(protocol: BackendProtocol, request: &Request<'_>) -> UpstreamProtocol {
    match protocol {
        BackendProtocol::Http1 => UpstreamProtocol::Http1,
        BackendProtocol::Http2 => UpstreamProtocol::Http2,
        BackendProtocol::Http | BackendProtocol::Tcp if request.version == Version::Http2 => {
            UpstreamProtocol::Http2
        }
        BackendProtocol::Http | BackendProtocol::Tcp => UpstreamProtocol::Http1,
    }
}

#[cfg(test)]
mod tests;
