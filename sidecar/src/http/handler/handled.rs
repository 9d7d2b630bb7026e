//! What is decided about a request.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::backend::{Endpoint, ProxyRequest};
use tidegate_core::forward_proxy::ProxySettings;
use tidegate_core::policy::Decision;
use tidegate_core::route::filter::HeaderEdits;

use super::attempts::Attempts;
use crate::destinations::{AppliedRule, EndpointChoice, PendingHost};
use crate::http::checks::RequestChecks;
use crate::http::local_reply::LocalReply;
use crate::remotes::RemoteId;
use crate::telemetry::DialledEndpoint;

/// The outcome for one request.
pub(in crate::http) struct Handled {
    /// The policy's decision, for the access log; `None` for the app's own requests.
    pub(in crate::http) decision: Option<Rc<Decision>>,
    /// The rule of a route that applies; `None` without routes.
    pub(in crate::http) rule: Option<AppliedRule>,
    /// Path and query to send instead of the request's: the normal form by which rules matched it.
    pub(in crate::http) path: Option<Box<[u8]>>,
    pub(in crate::http) action: HandlerAction,
}

/// What a codec does with a request.
pub(in crate::http) enum HandlerAction {
    /// Send this response.
    Reply(LocalReply),
    /// Send this response, with these header fields.
    ReplyWith(LocalReply, Arc<HeaderEdits>),
    /// Forward the request, and return the response.
    Forward(Forward),
    /// Wait for the verdict of the users' servers, which decide. Boxed: rare and large.
    Check(Box<PendingCheck>),
    /// Wait until the host's destination is known ([`Handler::find`](super::Handler::find)), and have the request decided about
    /// again.
    Await(Box<PendingHost>),
}

/// A request that goes on if checks allow it.
pub(in crate::http) struct PendingCheck {
    pub(in crate::http) checks: RequestChecks,
    /// Where it goes then.
    pub(in crate::http) forward: Forward,
    /// See [`Handled::path`].
    pub(in crate::http) path: Option<Box<[u8]>>,
}

/// Where a request is forwarded to. To be held until its response is over: it counts as the endpoint's until then.
pub(in crate::http) struct Forward {
    pub(super) target: ForwardTarget,
    pub(in crate::http) protocol: UpstreamProtocol,
    /// What the rule allows beyond one attempt without limit.
    pub(in crate::http) attempts: Option<Box<Attempts>>,
}

pub(super) enum ForwardTarget {
    App(Arc<Endpoint>),
    /// Boxed, so that streams of clients are small.
    Chosen(Box<EndpointChoice>),
}

/// The HTTP version that an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

impl Handled {
    /// A response to a request that no policy and no rule has decided about.
    pub(super) fn reply(reply: LocalReply) -> Self {
        HandlerAction::Reply(reply).into()
    }
}

impl From<HandlerAction> for Handled {
    /// Neither a policy nor a rule has decided.
    fn from(action: HandlerAction) -> Self {
        Self { decision: None, rule: None, path: None, action }
    }
}

impl Forward {
    /// The upstream.
    pub(in crate::http) fn endpoint(&self) -> &Arc<Endpoint> {
        match &self.target {
            ForwardTarget::App(endpoint) => endpoint,
            ForwardTarget::Chosen(choice) => &choice.endpoint,
        }
    }

    /// The forward proxy that takes requests in absolute form.
    pub(in crate::http) fn proxy_of_requests(&self) -> Option<&ProxySettings> {
        let proxy = self.endpoint().via.as_ref()?;
        (proxy.request == ProxyRequest::AbsoluteForm).then_some(&*proxy.settings)
    }

    /// The upstream, for records.
    pub(in crate::http) fn dialled(&self) -> DialledEndpoint {
        match &self.target {
            ForwardTarget::App(endpoint) => DialledEndpoint::new(endpoint, RemoteId::UNKNOWN),
            ForwardTarget::Chosen(choice) => choice.dialled(),
        }
    }

    /// The name of what the endpoint belongs to, if it was chosen.
    pub(super) fn service(&self) -> Option<&Arc<str>> {
        match &self.target {
            ForwardTarget::App(_) => None,
            ForwardTarget::Chosen(choice) => choice.service(),
        }
    }

    /// The endpoint has responded with this status, so long after it had the request.
    pub(in crate::http) fn responded(&self, status: u16, after: Option<Duration>) {
        if let ForwardTarget::Chosen(choice) = &self.target {
            choice.responded(status, after);
        }
    }

    /// Another attempt goes to another endpoint, if there is one. The one before was reached.
    pub(in crate::http) fn change_endpoint(&mut self) {
        if let ForwardTarget::Chosen(choice) = &mut self.target {
            choice.change();
        }
    }

    /// The endpoint was reached, and has not responded.
    pub(in crate::http) fn failed(&self) {
        if let ForwardTarget::Chosen(choice) = &self.target {
            choice.failed();
        }
    }

    /// The endpoint was reached, and has vanished since.
    pub(in crate::http) fn vanished(&self) {
        if let ForwardTarget::Chosen(choice) = &self.target {
            choice.vanished();
        }
    }
}
