//! Evaluation of the rules for mesh peers: of a connection, and of each request where rules distinguish requests.
//!
//! SMI's authorization is a union: what one rule grants is granted, whatever the others say.

use std::cell::OnceCell;
use std::sync::Arc;

use super::decision::{Decision, Denial, Grant};
use super::model::{ActivePeerRule, MeshRule, PeerRule, PeerRuleState, PeerTraffic};
use super::reason::Reason;
use crate::identity::Identity;
use crate::route::path_index::PathIndex;
use crate::route::{RequestView, RouteMatch};

/// The rules that decide about the requests of one mesh peer's connection: at least one, in the order of the policy.
#[derive(Clone, Debug)]
pub struct RequestRules {
    peer: Identity,
    /// Active rules for the peer, all of which distinguish requests.
    rules: Vec<Arc<PeerRule>>,
    is_audit: bool,
    needs_normal_path: bool,
    /// Built for the first request, because many connections of a policy never have one.
    index: OnceCell<MatchIndex>,
}

/// The matches of all rules, found by the request's path.
#[derive(Clone, Debug)]
struct MatchIndex {
    /// The matches, each with the number of its rule.
    matches: Vec<(usize, Arc<RouteMatch>)>,
    paths: PathIndex,
}

/// Which of the [`RequestRules`] grants a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granting {
    /// Number of the rule.
    pub rule: usize,
    /// Number of its match in [`RequestRules::matches`].
    pub matching: usize,
}

/// The decision about a mesh peer's connection. `is_parsed`: whether its bytes are parsed as HTTP. If rules distinguish
/// its requests, the grant is that of the first of them.
pub(super) fn grant(mesh: &MeshRule, peer: &Identity, is_parsed: bool) -> Result<Grant, Denial> {
    match mesh {
        MeshRule::Deny(why) => Err(Denial::new(Reason::MeshDenied(why.clone()))),
        MeshRule::AnyPeer => Ok(Grant::AnyPeer),
        MeshRule::Rules(rules) => granted(rules, peer, is_parsed),
        MeshRule::Audit(rules) => Ok(granted(rules, peer, is_parsed).unwrap_or_else(Grant::Audit)),
    }
}

fn granted(rules: &[Arc<PeerRule>], peer: &Identity, is_parsed: bool) -> Result<Grant, Denial> {
    let mut by_request = None;
    let mut closest = Denial::new(Reason::PeerNotAllowed);
    for rule in rules {
        let reason = match rule.traffic_of(peer) {
            Ok(PeerTraffic::Any) => return Ok(rule.granted_to(peer)),
            Ok(PeerTraffic::Requests(_)) if is_parsed => {
                by_request.get_or_insert(rule);
                continue;
            }
            Ok(PeerTraffic::Requests(_)) => Reason::NotParsed,
            Err(reason) => reason,
        };
        if closest.origin.is_none() || closeness(&reason) > closeness(&closest.reason) {
            closest = Denial { reason, origin: Some(rule.origin.clone()) };
        }
    }
    by_request.map(|rule| rule.granted_to(peer)).ok_or(closest)
}

/// How close a rule for mesh peers came to a grant. A rule that is not in force might have granted it.
fn closeness(reason: &Reason) -> u8 {
    match reason {
        Reason::NotParsed => 2,
        Reason::InvalidRule(_) => 1,
        _ => 0,
    }
}

impl PeerRule {
    /// What the rule lets this peer send, or why nothing.
    fn traffic_of(&self, peer: &Identity) -> Result<&PeerTraffic, Reason> {
        match &self.state {
            PeerRuleState::Invalid(why) => Err(Reason::InvalidRule(why.clone())),
            PeerRuleState::Active(ActivePeerRule { sources, traffic }) => {
                if sources.contains(peer) {
                    Ok(traffic)
                } else {
                    Err(Reason::PeerNotAllowed)
                }
            }
        }
    }

    fn granted_to(&self, peer: &Identity) -> Grant {
        Grant::Peer(self.origin.clone(), peer.clone())
    }

    fn matches(&self) -> &[Arc<RouteMatch>] {
        match &self.state {
            PeerRuleState::Active(ActivePeerRule { traffic: PeerTraffic::Requests(matches), .. }) => matches,
            _ => &[],
        }
    }
}

impl RequestRules {
    /// The rules for this peer's requests. `None` if the decision about the connection holds for all of them: a rule
    /// grants them all, or none is about them.
    pub(super) fn new(mesh: &MeshRule, peer: Identity) -> Option<Self> {
        let (all, is_audit) = match mesh {
            MeshRule::Rules(rules) => (rules, false),
            MeshRule::Audit(rules) => (rules, true),
            MeshRule::Deny(_) | MeshRule::AnyPeer => return None,
        };
        let mut rules = Vec::new();
        for rule in all {
            match rule.traffic_of(&peer) {
                Ok(PeerTraffic::Any) => return None,
                Ok(PeerTraffic::Requests(_)) => rules.push(rule.clone()),
                Err(_) => {}
            }
        }
        let needs_normal_path =
            rules.iter().flat_map(|rule| rule.matches()).any(|one| one.needs_normal_path());
        (!rules.is_empty()).then(|| Self { peer, rules, is_audit, needs_normal_path, index: OnceCell::new() })
    }

    /// The rule that grants a request, or the number of the rule that came closest. `request` has its path in normal form
    /// if [`RequestRules::needs_normal_path`].
    pub fn select(&self, request: &impl RequestView) -> Result<Granting, usize> {
        let index = self.index.get_or_init(|| MatchIndex::new(self.matches()));
        match index.first(request, |one| one.matches(request)) {
            Some((matching, rule)) => Ok(Granting { rule, matching }),
            None => Err(index.closest(request)),
        }
    }

    /// The decision about requests that the rule of this number grants.
    pub fn allowed(&self, rule: usize) -> Decision {
        match self.rules.get(rule) {
            Some(rule) => Decision::Allow(rule.granted_to(&self.peer)),
            None => self.refused(rule),
        }
    }

    /// The decision about requests that no rule grants, and to which the rule of this number came closest.
    pub fn refused(&self, rule: usize) -> Decision {
        let origin = self.rules.get(rule).map(|rule| rule.origin.clone());
        let denial = Denial { reason: Reason::RequestNotAllowed, origin };
        if self.is_audit { Decision::Allow(Grant::Audit(denial)) } else { Decision::Deny(denial) }
    }

    /// Number of the rules.
    pub fn count(&self) -> usize {
        self.rules.len()
    }

    /// The matches of all rules, each with the number of its rule.
    pub fn matches(&self) -> impl Iterator<Item = (usize, &Arc<RouteMatch>)> {
        let rules = self.rules.iter().enumerate();
        rules.flat_map(|(rule, value)| value.matches().iter().map(move |one| (rule, one)))
    }

    /// Whether refusals are reported only.
    pub fn is_audit(&self) -> bool {
        self.is_audit
    }

    /// Whether paths are distinguished: requests are then matched, and unless in audit mode forwarded, with their path in
    /// normal form ([`crate::path::normalize`]).
    pub fn needs_normal_path(&self) -> bool {
        self.needs_normal_path
    }
}

impl MatchIndex {
    fn new<'m>(matches: impl Iterator<Item = (usize, &'m Arc<RouteMatch>)>) -> Self {
        let matches: Vec<_> = matches.map(|(rule, one)| (rule, one.clone())).collect();
        let paths = PathIndex::new(matches.iter().map(|(_, one)| one.path()));
        Self { matches, paths }
    }

    /// The first match for which `is_met` holds, of those that the request's path may meet: its number, and its rule's.
    fn first(
        &self,
        request: &impl RequestView,
        is_met: impl Fn(&RouteMatch) -> bool,
    ) -> Option<(usize, usize)> {
        let is_met = |number: usize| self.matches.get(number).is_some_and(|(_, one)| is_met(one));
        let number = self.paths.first(request.path(), is_met)?;
        self.matches.get(number).map(|(rule, _)| (number, *rule))
    }

    /// The rule that a request comes closest to, if none grants it: the path counts most, then the method.
    fn closest(&self, request: &impl RequestView) -> usize {
        let by_path = || self.first(request, |one| one.has_path(request)).map(|(_, rule)| rule);
        let by_method =
            || self.matches.iter().find(|(_, one)| one.has_method(request)).map(|(rule, _)| *rule);
        self.first(request, |one| one.has_method(request) && one.has_path(request))
            .map(|(_, rule)| rule)
            .or_else(by_path)
            .or_else(by_method)
            .unwrap_or_default()
    }
}
