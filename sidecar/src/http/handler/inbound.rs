//! Requests of clients to the app of this workload: the policy decides about each.

use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::{AppProtocol, Decision, Terms};

use super::handled::{Forward, ForwardTarget, Handled, HandlerAction, UpstreamProtocol};
use crate::authorizer::Authorizer;
use crate::http::headers::is_grpc;
use crate::http::local_reply;
use crate::http::request::{NormalRequest, Request, Version};

/// The policy of a connection, and the app that gets the requests that it allows.
pub(super) struct Inbound {
    authorizer: Rc<Authorizer>,
    app: Arc<Endpoint>,
}

impl Inbound {
    pub(super) fn new(authorizer: Rc<Authorizer>) -> Self {
        let app = Arc::new(Endpoint::new(authorizer.info().app, Transport::Plain));
        Self { authorizer, app }
    }

    /// Decides about a request by the newest policy.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        let authorizer = &self.authorizer;
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
                    return Handled { decision: Some(decision), ..Handled::reply(reply) };
                }
            }
        }
        let action = match &*decision {
            Decision::Deny(denial) => HandlerAction::Reply(local_reply::denied(&denial.reason)),
            Decision::Allow(_) => HandlerAction::Forward(Forward {
                target: ForwardTarget::App(self.app.clone()),
                protocol: app_version(authorizer, request),
            }),
        };
        Handled { decision: Some(decision), rule: None, path, action }
    }
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

#[cfg(test)]
mod tests;
