//! What each request of a connection is asked: whether the policy lets it in.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::policy::{AppProtocol, Decision, Denial, MeshProtocol, Reason, Terms};

use crate::connection_info::ConnectionInfo;
use crate::snapshot::{Snapshot, Snapshots};

/// Asks the policy about the connection, and remembers the answer for as long as the policy stands.
pub struct Authorizer {
    info: Rc<ConnectionInfo>,
    snapshots: Snapshots,
    verdict: RefCell<Verdict>,
    /// Whether any verdict was to let it in.
    was_let_in: Cell<bool>,
}

struct Verdict {
    snapshot: Arc<Snapshot>,
    decision: Rc<Decision>,
    /// Whether each request's host counts, too.
    differs_by_name: bool,
}

/// What a new snapshot means to a connection that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Review {
    /// It lives on.
    Keep,
    /// It would not be let in any more.
    Revoke(Denial),
}

impl Verdict {
    fn new(info: &ConnectionInfo, snapshot: Arc<Snapshot>) -> Self {
        let policy = snapshot.policy.as_deref();
        let decision = Rc::new(info.judge(policy));
        let differs_by_name = policy.is_some_and(|policy| policy.differs_by_name(&info.session()));
        Self { snapshot, decision, differs_by_name }
    }
}

impl Authorizer {
    /// For a connection, with its first verdict.
    pub fn new(info: Rc<ConnectionInfo>, snapshots: Snapshots) -> Self {
        let verdict = Verdict::new(&info, snapshots.current());
        let was_let_in = Cell::new(matches!(*verdict.decision, Decision::Allow(_)));
        Self { info, snapshots, verdict: RefCell::new(verdict), was_let_in }
    }

    /// The connection.
    pub fn info(&self) -> &Rc<ConnectionInfo> {
        &self.info
    }

    /// The verdict by the newest policy. Costs one atomic load unless the policy has changed.
    pub fn decide(&self) -> Rc<Decision> {
        let mut verdict = self.verdict.borrow_mut();
        if verdict.snapshot.generation != self.snapshots.generation() {
            *verdict = Verdict::new(&self.info, self.snapshots.current());
            if matches!(*verdict.decision, Decision::Allow(_)) {
                self.was_let_in.set(true);
            }
        }
        verdict.decision.clone()
    }

    /// The verdict on a request for this authority, which must fit the server name that the connection was opened for
    /// where rules differ by it.
    pub fn decide_on(&self, authority: &str) -> Rc<Decision> {
        let decision = self.decide();
        let verdict = self.verdict.borrow();
        if !verdict.differs_by_name || !matches!(*decision, Decision::Allow(_)) {
            return decision;
        }
        let host = host_of(authority);
        if self.info.server_name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(host)) {
            return decision;
        }
        match verdict.snapshot.policy.as_deref().map(|policy| policy.direct(&self.info.session(), host)) {
            Some(Err(denial)) => Rc::new(Decision::Deny(denial)),
            Some(Ok(())) | None => decision,
        }
    }

    /// What the app speaks, by the newest policy.
    pub fn app_protocol(&self) -> AppProtocol {
        self.decide();
        let verdict = self.verdict.borrow();
        let port = verdict.snapshot.policy.as_ref().and_then(|policy| policy.ports.get(&self.info.port));
        port.map_or(AppProtocol::Http, |port| port.protocol)
    }

    /// Whether the connection would be opened again, on terms that it meets, and let in if it ever was. What is read as
    /// HTTP and what is passed on unseen never change places: a tunnel would carry what HTTP is judged by.
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
            // One that was never let in has got a 403 for each request, and still may.
            Decision::Deny(denial) if self.was_let_in.get() => Review::Revoke(denial),
            _ => Review::Keep,
        }
    }
}

/// Whether bytes are passed on unseen on these terms.
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
