//! Rules for mesh peers. A policy holds each once, and its ports refer to them by their place.
//!
//! A rule has its object, the identities that it admits, and what they may send: anything, or requests of which one match
//! applies. An invalid rule carries its reason instead and admits nothing. Refused: a place that no rule has, and more than
//! [`MAX_EXPRESSIONS`] regular expressions in a policy.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::policy::{ActivePeerRule, PeerRule, PeerRuleState, PeerTraffic};
use tidegate_core::route::MAX_EXPRESSIONS;

use super::super::routes::matching::{expressions, match_from_wire, match_to_wire};
use super::super::{
    ConversionError, bad, identity_from_wire, identity_to_wire, missing, object_from_wire, object_to_wire,
};
use crate::discovery as wire;

/// The rules of a policy that is encoded.
#[derive(Default)]
pub(super) struct PeerRuleList<'p> {
    rules: Vec<&'p Arc<PeerRule>>,
    places: HashMap<*const PeerRule, u32>,
}

impl<'p> PeerRuleList<'p> {
    /// The places of these rules, which are added unless they are there.
    pub(super) fn places(&mut self, rules: &'p [Arc<PeerRule>]) -> wire::PeerRules {
        let place = |rule: &'p Arc<PeerRule>| {
            let next = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
            *self.places.entry(Arc::as_ptr(rule)).or_insert_with(|| {
                self.rules.push(rule);
                next
            })
        };
        wire::PeerRules { rules: rules.iter().map(place).collect() }
    }

    /// The rules in the order of their places.
    pub(super) fn to_wire(&self) -> Vec<wire::PeerRule> {
        self.rules.iter().map(|rule| rule_to_wire(rule)).collect()
    }
}

/// Counts the regular expressions before it compiles the first one.
pub(super) fn peer_rules_from_wire(
    rules: Vec<wire::PeerRule>,
) -> Result<Vec<Arc<PeerRule>>, ConversionError> {
    let expressions: usize = rules.iter().flat_map(matches).map(expressions).sum();
    if expressions > MAX_EXPRESSIONS {
        let problem = format!("{expressions} regular expressions, more than {MAX_EXPRESSIONS}");
        return Err(bad("peer_rules", problem));
    }
    let rule = |(i, rule)| rule_from_wire(&format!("peer_rules[{i}]"), rule).map(Arc::new);
    rules.into_iter().enumerate().map(rule).collect()
}

/// The rules at these places.
pub(super) fn referred(
    path: &str,
    places: &wire::PeerRules,
    rules: &[Arc<PeerRule>],
) -> Result<Vec<Arc<PeerRule>>, ConversionError> {
    let rule = |place: &u32| {
        let rule = usize::try_from(*place).ok().and_then(|place| rules.get(place));
        rule.cloned().ok_or_else(|| bad(path, format!("there is no rule {place}")))
    };
    places.rules.iter().map(rule).collect()
}

fn matches(rule: &wire::PeerRule) -> &[wire::RouteMatch] {
    match &rule.state {
        Some(wire::peer_rule::State::Active(wire::ActivePeerRule {
            traffic: Some(wire::active_peer_rule::Traffic::Requests(requests)),
            ..
        })) => &requests.matches,
        _ => &[],
    }
}

fn rule_to_wire(rule: &PeerRule) -> wire::PeerRule {
    let state = match &rule.state {
        PeerRuleState::Invalid(why) => wire::peer_rule::State::InvalidReason(why.to_string()),
        PeerRuleState::Active(ActivePeerRule { sources, traffic }) => {
            let traffic = match traffic {
                PeerTraffic::Any => wire::active_peer_rule::Traffic::Any(wire::AnyTraffic {}),
                PeerTraffic::Requests(matches) => {
                    let matches = matches.iter().map(|matching| match_to_wire(matching)).collect();
                    wire::active_peer_rule::Traffic::Requests(wire::RequestMatches { matches })
                }
            };
            let sources = sources.iter().map(identity_to_wire).collect();
            wire::peer_rule::State::Active(wire::ActivePeerRule { sources, traffic: Some(traffic) })
        }
    };
    wire::PeerRule { origin: Some(object_to_wire(&rule.origin)), state: Some(state) }
}

fn rule_from_wire(path: &str, rule: wire::PeerRule) -> Result<PeerRule, ConversionError> {
    let state = match rule.state.ok_or_else(|| missing(path))? {
        wire::peer_rule::State::InvalidReason(why) => PeerRuleState::Invalid(why.into()),
        wire::peer_rule::State::Active(active) => PeerRuleState::Active(active_from_wire(path, active)?),
    };
    Ok(PeerRule { origin: object_from_wire(&format!("{path}.origin"), rule.origin)?, state })
}

fn active_from_wire(path: &str, rule: wire::ActivePeerRule) -> Result<ActivePeerRule, ConversionError> {
    let source =
        |(i, source): (usize, &wire::Identity)| identity_from_wire(&format!("{path}.sources[{i}]"), source);
    let traffic = match rule.traffic.ok_or_else(|| missing(&format!("{path}.traffic")))? {
        wire::active_peer_rule::Traffic::Any(wire::AnyTraffic {}) => PeerTraffic::Any,
        wire::active_peer_rule::Traffic::Requests(requests) => {
            let matching =
                |(i, matching)| match_from_wire(&format!("{path}.matches[{i}]"), matching).map(Arc::new);
            PeerTraffic::Requests(
                requests.matches.into_iter().enumerate().map(matching).collect::<Result<_, _>>()?,
            )
        }
    };
    Ok(ActivePeerRule {
        sources: rule.sources.iter().enumerate().map(source).collect::<Result<_, _>>()?,
        traffic,
    })
}
