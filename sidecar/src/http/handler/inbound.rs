//! Requests of clients to the app of this workload: the policy decides about each, then rate limits, and then the external
//! authorization.

use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::{
    AppProtocol, Decision, Denial, ExternalAuthorization, ExternalAuthorizationState, Grant, Reason, Terms,
};

use super::handled::{Forward, ForwardTarget, Handled, HandlerAction, PendingCheck, UpstreamProtocol};
use crate::authorizer::{Authorizer, Exceeded};
use crate::http::checks::RequestChecks;
use crate::http::external_authorization::AuthorizationCheck;
use crate::http::headers::is_grpc;
use crate::http::local_reply::{self, ReplyForm};
use crate::http::rate_limit_service::RateLimitCheck;
use crate::http::request::{NormalRequest, Request, Version};

/// The policy of a connection, and the app that gets the requests that it allows.
pub(super) struct Inbound {
    authorizer: Rc<Authorizer>,
    app: Arc<Endpoint>,
}

/// A request that may be forwarded.
struct Allowed {
    decision: Rc<Decision>,
    /// Path and query to forward instead of the request's.
    path: Option<Box<[u8]>>,
    /// The rate limit services that have to allow it, too.
    limits: Vec<RateLimitCheck>,
}

impl Inbound {
    pub(super) fn new(authorizer: Rc<Authorizer>) -> Self {
        let app = Arc::new(Endpoint::new(authorizer.info().app, Transport::Plain));
        Self { authorizer, app }
    }

    /// Decides about a request by the newest policy, and by the rate limits of what that allows. What remains may be for rate
    /// limit services and the external authorization to decide.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        let decided = self.authorize(request).and_then(|allowed| self.limit(request, allowed));
        let allowed = match decided {
            Ok(allowed) => allowed,
            Err((decision, action)) => return handled(decision, None, action),
        };
        let forward = Forward {
            target: ForwardTarget::App(self.app.clone()),
            protocol: app_version(&self.authorizer, request),
            attempts: None,
        };
        self.check(self.authorizer.external_authorization().as_ref(), request, allowed, forward)
    }

    /// What the policy allows. The error is the response to what it does not.
    fn authorize(&self, request: &Request<'_>) -> Result<Allowed, (Rc<Decision>, HandlerAction)> {
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
                Err(_) => return Err((decision, path_without_normal_form())),
            }
        }
        match &*decision {
            Decision::Deny(denial) => {
                let reply = local_reply::denied(&denial.reason);
                Err((decision, HandlerAction::Reply(reply)))
            }
            Decision::Allow(_) => Ok(Allowed { decision, path, limits: Vec::new() }),
        }
    }

    /// What exceeds no rate limit of what the policy allows. What exceeds one in audit mode is reported, unless the policy has
    /// something to report.
    fn limit(
        &self,
        request: &Request<'_>,
        mut allowed: Allowed,
    ) -> Result<Allowed, (Rc<Decision>, HandlerAction)> {
        let Some(limits) = self.authorizer.limits() else { return Ok(allowed) };
        let mut request = *request;
        request.path = allowed.path.as_deref().unwrap_or(request.path);
        let Ok(normal) = NormalRequest::new(&request, limits.needs_normal_path()) else {
            return Err((allowed.decision, path_without_normal_form()));
        };
        let exceeded = limits.take_request(&normal);
        let is_refused = exceeded.as_ref().is_some_and(|found| matches!(*found.decision, Decision::Deny(_)));
        if !is_refused {
            let (source, is_grpc) = (self.authorizer.info().peer.ip(), is_grpc_call(&request));
            let check = |limits| RateLimitCheck::new(limits, &normal, source, is_grpc);
            allowed.limits = limits.all().filter_map(check).collect();
        }
        let other_path = normal.into_other_path();
        if let Some(Exceeded { decision, limit }) = exceeded {
            if let Decision::Deny(_) = *decision {
                let reply = local_reply::rate_limited(limit.status);
                return Err((decision, HandlerAction::ReplyWith(reply, limit.headers.clone())));
            }
            if !matches!(*allowed.decision, Decision::Allow(Grant::Audit(_))) {
                allowed.decision = decision;
            }
        }
        allowed.path = other_path.or(allowed.path);
        Ok(allowed)
    }

    /// Policy and limits allow the request. Servers may have to allow it, too.
    fn check(
        &self,
        external: Option<&Arc<ExternalAuthorization>>,
        request: &Request<'_>,
        Allowed { mut decision, path, limits }: Allowed,
        forward: Forward,
    ) -> Handled {
        let sent = path.as_deref().unwrap_or(request.path);
        let authorization = match external.map(|external| (external, &external.state)) {
            None => None,
            Some((external, ExternalAuthorizationState::Active(server))) => {
                let info = self.authorizer.info();
                Some(AuthorizationCheck::new((external, server), request, sent, info))
            }
            Some((external, ExternalAuthorizationState::Invalid(why))) => {
                let reason = Reason::ExternalAuthorizationInvalid(why.clone());
                let reply = local_reply::denied(&reason);
                let denial = Denial { reason, origin: Some(external.origin.clone()) };
                if !external.is_audit {
                    return handled(Rc::new(Decision::Deny(denial)), path, HandlerAction::Reply(reply));
                }
                decision = Rc::new(Decision::Allow(Grant::Audit(denial)));
                None
            }
        };
        if authorization.is_none() && limits.is_empty() {
            return handled(decision, path, HandlerAction::Forward(forward));
        }
        let checks = RequestChecks::new(limits, authorization);
        let action = HandlerAction::Check(Box::new(PendingCheck { checks, forward, path }));
        handled(decision, None, action)
    }
}

/// Whether a refusal is a status of gRPC.
fn is_grpc_call(request: &Request<'_>) -> bool {
    ReplyForm::of(request.method, || request.field("content-type")) == ReplyForm::Grpc
}

/// What is decided about a request of a client, to which no route applies.
fn handled(decision: Rc<Decision>, path: Option<Box<[u8]>>, action: HandlerAction) -> Handled {
    Handled { decision: Some(decision), rule: None, path, action }
}

/// Where rules distinguish paths, the request's has to have a normal form.
fn path_without_normal_form() -> HandlerAction {
    HandlerAction::Reply(local_reply::bad_request("path_without_normal_form"))
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
