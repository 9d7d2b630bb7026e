//! Authorizes the requests of one connection against the current policy.

mod limits;
mod requests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::policy::{
    AppProtocol, Decision, Denial, ExternalAuthorization, MeshProtocol, Reason, Terms,
};

use crate::connection_info::ConnectionInfo;
use crate::snapshot::{Snapshot, Snapshots};

pub(crate) use self::limits::{Exceeded, LimitDecisions};
pub(crate) use self::requests::RequestDecisions;

/// Decisions of the policy about one connection, cached per policy generation.
pub struct Authorizer {
    info: Rc<ConnectionInfo>,
    snapshots: Snapshots,
    decision: RefCell<CachedDecision>,
    /// Whether any decision so far let the connection in.
    was_let_in: Cell<bool>,
    /// Set when a new policy no longer grants a request that an earlier one did: it may still be in flight.
    withdrawn: RefCell<Option<Denial>>,
}

/// A cached decision.
struct CachedDecision {
    snapshot: Arc<Snapshot>,
    decision: Rc<Decision>,
    /// Whether the decision also depends on each request's host.
    differs_by_name: bool,
    /// The decisions about requests, if rules distinguish them.
    requests: Option<Rc<RequestDecisions>>,
    /// The limits of a mesh peer, if there are any.
    limits: Option<Rc<LimitDecisions>>,
}

/// The effect of a new snapshot on an open connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Review {
    /// The connection stays open.
    Keep,
    /// The new policy would refuse the connection.
    Revoke(Denial),
}

impl CachedDecision {
    fn new(info: &ConnectionInfo, snapshot: Arc<Snapshot>) -> Self {
        let policy = snapshot.policy.as_deref();
        let decision = Rc::new(info.judge(policy));
        let differs_by_name = policy.is_some_and(|policy| policy.differs_by_name(&info.session()));
        let requests = policy.and_then(|policy| policy.request_rules(&info.session()));
        let requests = requests.map(|rules| RequestDecisions::new(rules).into());
        // Ingress clients are not limited, as in OSM.
        let limiters = snapshot.limiters.of(info.port).filter(|_| matches!(info.terms, Terms::MeshTls(_)));
        let limits = limiters.map(|limiters| LimitDecisions::new(limiters.clone()).into());
        Self { snapshot, decision, differs_by_name, requests, limits }
    }

    /// The denial, if the newer decision may refuse requests that this one or an earlier one granted.
    fn withdrawn_by(&self, newer: &Self) -> Option<Denial> {
        match (&self.requests, &newer.requests) {
            (Some(old), Some(new)) => old.pass_on(new),
            // Which requests were granted is not known.
            (None, Some(new)) if matches!(*self.decision, Decision::Allow(_)) => new.refusal(),
            _ => None,
        }
    }
}

impl Authorizer {
    /// Decides about the connection once, by the current policy.
    pub fn new(info: Rc<ConnectionInfo>, snapshots: Snapshots) -> Self {
        let decision = CachedDecision::new(&info, snapshots.current());
        let was_let_in = Cell::new(matches!(*decision.decision, Decision::Allow(_)));
        let (decision, withdrawn) = (RefCell::new(decision), RefCell::default());
        Self { info, snapshots, decision, was_let_in, withdrawn }
    }

    /// The connection.
    pub fn info(&self) -> &Rc<ConnectionInfo> {
        &self.info
    }

    /// The decision by the newest policy. Costs one atomic load unless the policy has changed.
    pub fn decide(&self) -> Rc<Decision> {
        let mut cached = self.decision.borrow_mut();
        if cached.snapshot.generation != self.snapshots.generation() {
            let newer = CachedDecision::new(&self.info, self.snapshots.current());
            if let Some(denial) = cached.withdrawn_by(&newer) {
                *self.withdrawn.borrow_mut() = Some(denial);
            }
            *cached = newer;
            if matches!(*cached.decision, Decision::Allow(_)) {
                self.was_let_in.set(true);
            }
        }
        cached.decision.clone()
    }

    /// The decision about a request for this authority. Where rules differ by name, the authority must match the server
    /// name that the connection was opened for; otherwise the request is misdirected (RFC 9110 §15.5.20).
    pub(crate) fn decide_on(&self, authority: &str) -> Rc<Decision> {
        let decision = self.decide();
        let cached = self.decision.borrow();
        if !cached.differs_by_name || !matches!(*decision, Decision::Allow(_)) {
            return decision;
        }
        let host = host_of(authority);
        if self.info.server_name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(host)) {
            return decision;
        }
        match cached.snapshot.policy.as_deref().map(|policy| policy.direct(&self.info.session(), host)) {
            Some(Err(denial)) => Rc::new(Decision::Deny(denial)),
            Some(Ok(())) | None => decision,
        }
    }

    /// The decisions about requests by the policy of the last decision, if its rules distinguish requests.
    pub(crate) fn requests(&self) -> Option<Rc<RequestDecisions>> {
        self.decision.borrow().requests.clone()
    }

    /// The rate limits of the connection and of its requests by the policy of the last decision, if there are any.
    pub(crate) fn limits(&self) -> Option<Rc<LimitDecisions>> {
        self.decision.borrow().limits.clone()
    }

    /// What also authorizes each request, by the policy of the last decision.
    pub(crate) fn external_authorization(&self) -> Option<Arc<ExternalAuthorization>> {
        self.decision.borrow().snapshot.policy.as_ref()?.external_authorization.clone()
    }

    /// The app's protocol, by the newest policy.
    pub fn app_protocol(&self) -> AppProtocol {
        self.decide();
        let cached = self.decision.borrow();
        let port = cached.snapshot.policy.as_ref().and_then(|policy| policy.ports.get(&self.info.port));
        port.map_or(AppProtocol::Http, |port| port.protocol)
    }

    /// Whether the new policy would open the connection again on terms that it meets, still lets it in if it ever did, and
    /// still grants the requests that it has granted. A connection never changes between HTTP and opaque: as a tunnel it
    /// would carry requests past the HTTP rules.
    pub fn review(&self, snapshot: &Snapshot) -> Review {
        let Some(policy) = snapshot.policy.as_deref() else {
            return Review::Revoke(Denial::new(Reason::NoPolicy));
        };
        let info = &self.info;
        match policy.open(info.port, info.peer.ip(), info.opening()) {
            Err(denial) => return Review::Revoke(denial),
            Ok(terms) if is_opaque(terms) != is_opaque(info.terms) => {
                return Review::Revoke(Denial::new(Reason::ProtocolChanged));
            }
            Ok(Terms::IngressMutualTls | Terms::MeshTls(_)) if info.client.is_none() && info.tls => {
                return Review::Revoke(Denial::new(Reason::ClientCertificateRequired));
            }
            Ok(_) => {}
        }
        match info.judge(Some(policy)) {
            // A connection that was never let in has received a 403 for each request, and continues to.
            Decision::Deny(denial) if self.was_let_in.get() => Review::Revoke(denial),
            _ => {
                self.decide();
                self.withdrawn.take().map_or(Review::Keep, Review::Revoke)
            }
        }
    }
}

/// Whether bytes are passed on without being parsed.
fn is_opaque(terms: Terms) -> bool {
    matches!(terms, Terms::Opaque | Terms::MeshTls(MeshProtocol::Tcp))
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}
