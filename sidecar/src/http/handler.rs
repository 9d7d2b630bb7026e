//! Decides what happens to a request. The only place that does, for both codecs.
//!
//! A codec parses a head, presents it as a [`Request`], and carries out the [`HandlerAction`]. Codecs depend on neither
//! policy nor addresses: whether a request is allowed, where it goes and over which HTTP version is decided here.
//! Deciding copies nothing of the head and allocates nothing.

use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::{AppProtocol, Decision};

use super::headers::is_grpc;
use super::local_reply::{self, LocalReply};
use super::request::{Request, Version};
use crate::authorizer::Authorizer;
use crate::connection_info::ConnectionInfo;

/// Decides about the requests of one connection.
pub struct Handler {
    authorizer: Rc<Authorizer>,
    /// Where the app listens.
    app: Arc<Endpoint>,
}

/// The outcome for one request.
#[derive(Debug)]
pub(super) struct Handled {
    /// The policy's decision, for the access log.
    pub(super) decision: Rc<Decision>,
    pub(super) action: HandlerAction,
}

/// What a codec does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HandlerAction {
    /// Send this response.
    Reply(LocalReply),
    /// Forward the request, and return the response.
    Forward(Forward),
}

/// Where a request is forwarded to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    /// The upstream.
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) protocol: UpstreamProtocol,
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
    pub fn new(authorizer: Rc<Authorizer>) -> Self {
        let app = Arc::new(Endpoint::new(authorizer.info().app, Transport::Plain));
        Self { authorizer, app }
    }

    /// The connection.
    pub fn info(&self) -> &Rc<ConnectionInfo> {
        self.authorizer.info()
    }

    /// Decides about a request by the newest policy.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        let authority = std::str::from_utf8(request.authority).unwrap_or_default();
        let decision = self.authorizer.decide_on(authority);
        let action = match &*decision {
            Decision::Deny(denial) => HandlerAction::Reply(local_reply::denied(&denial.reason)),
            Decision::Allow(_) => HandlerAction::Forward(Forward {
                endpoint: self.app.clone(),
                protocol: self.protocol(request),
            }),
        };
        Handled { decision, action }
    }

    /// As in OSM: where the app's port declares no protocol, the client's decides, and gRPC over HTTP/2 stays HTTP/2.
    /// ALPN reflects only the client's capability; a client that uses HTTP/2 with prior knowledge expects it of the
    /// app.
    fn protocol(&self, request: &Request<'_>) -> UpstreamProtocol {
        let is_http2 = || {
            request.version == Version::Http2
                && (!self.info().tls || is_grpc(request.field("content-type").unwrap_or_default()))
        };
        if self.authorizer.app_protocol() == AppProtocol::H2c || is_http2() {
            UpstreamProtocol::Http2
        } else {
            UpstreamProtocol::Http1
        }
    }
}

#[cfg(test)]
mod tests;
