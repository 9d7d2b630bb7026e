//! What the policy decides about a connection or a request, and why.

use std::fmt;

use super::reason::Reason;
use crate::identity::Identity;
use crate::object_ref::ObjectRef;
use crate::principal::Principal;

/// The decision, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allow(Grant),
    /// Refused.
    Deny(Denial),
}

/// The rule that allows a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Permissive mode allows every workload of the mesh.
    AnyPeer,
    /// The origin of a rule for mesh peers, and the peer. If the rule distinguishes HTTP requests, it may refuse some.
    Peer(ObjectRef, Identity),
    /// The rules of the port are in audit mode, so that this refusal is not enforced.
    Audit(Denial),
    /// The origin of an ingress rule, and the rule's principal that is in the client's certificate.
    Ingress(ObjectRef, Option<Principal>),
}

/// Why a connection or request is refused, and the origin of the rule that came closest to allowing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Why it is refused.
    pub reason: Reason,
    /// The object whose rule came closest to a grant. `None` if no object's rule caused the denial.
    pub origin: Option<ObjectRef>,
}

impl Denial {
    /// A denial that no object's rule caused.
    pub fn new(reason: Reason) -> Self {
        Self { reason, origin: None }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reason, &self.origin) {
            (Reason::InvalidRule(why), Some(origin)) => {
                write!(f, "the {} is not in force: {why} ({origin})", origin.kind)
            }
            (reason, Some(origin)) => write!(f, "{reason} ({origin})"),
            (reason, None) => reason.fmt(f),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyPeer => f.write_str("permissive mode lets every workload of the mesh in"),
            Self::Peer(origin, peer) => write!(f, "{origin}, mesh peer {peer}"),
            Self::Audit(denial) => write!(f, "audit mode; otherwise refused: {denial}"),
            Self::Ingress(origin, None) => origin.fmt(f),
            Self::Ingress(origin, Some(principal)) => write!(f, "{origin}, principal {principal}"),
        }
    }
}
