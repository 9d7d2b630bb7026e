//! Gateway API's routes of Services: the status of a route, for each of its parents that is a Service.
//!
//! What clients get is in `attach`, what a rule means in `rule`. Both are also what the status is made from, so that
//! `Accepted` is said of what sidecars do and of nothing else.

mod attach;
mod fault;
mod filter;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_crds::gateway_api::{GatewayRoute, ParentRef, RouteProtocol};

use super::route_features::{Feature, Features};
use super::status::parents::{ParentCondition, ParentStatus};
use super::status::{Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::{Index, RouteObject, parent_of};
use crate::object::{ObjectName, OfKind};

pub(super) use attach::{deciding, has_routes, routes};

use attach::{NamespaceRoutes, ports};
use fault::{BACKEND_NOT_FOUND, RouteFault, UNSUPPORTED_VALUE};

/// The most faults that a message lists.
const MOST_LISTED: usize = 4;
/// The message of a route that is accepted.
const IN_FORCE: &str = "the route is in force";

/// The statuses of routes, with what several of them, or several parents of one, share.
struct RouteStatuses<'i> {
    index: &'i Index,
    features: Features,
    groups: BTreeMap<(ObjectName, Arc<str>), NamespaceRoutes<'i>>,
}

impl<P: RouteProtocol> Compiled for GatewayRoute<P>
where
    Self: OfKind,
{
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let mut statuses = RouteStatuses::new(scope.index, Features::EXECUTED);
        let wanted = scope.routes().filter(|object| object.kind == Self::KIND && is_ours(scope, object));
        wanted.map(|object| statuses.judged(object)).collect()
    }

    fn is_affected(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.concerns_route(name)
    }

    fn is_wanted(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.concerns_route(name)
    }
}

/// Whether this mesh reports on a route: it has a Service as a parent, or a report of ours is left that has to go.
fn is_ours(scope: &StatusScope<'_>, object: &RouteObject<'_>) -> bool {
    let namespace = &object.name.namespace;
    let is_member = scope.index.outside_mesh(namespace).is_none();
    let has_parent = is_member && object.spec.services().next().is_some();
    (has_parent || object.is_reported) && !scope.index.is_of_another_mesh(namespace)
}

impl<'i> RouteStatuses<'i> {
    /// All routes of the cluster that have a Service as parent.
    fn new(index: &'i Index, features: Features) -> Self {
        Self { index, features, groups: BTreeMap::new() }
    }

    /// The status of one route, for each of its parents.
    fn judged(&mut self, object: RouteObject<'i>) -> Judged {
        let parents = self.parents(object);
        let wrong = || parents.iter().flat_map(|parent| &parent.conditions).filter(|found| !found.is_well());
        let nothing = parents.is_empty().then(|| "no parent is a Service of this mesh".to_owned());
        let error = wrong().next().map(|found| format!("{}: {}", found.reason, found.message)).or(nothing);
        let is_missing =
            |found: &ParentCondition| matches!(found.reason, "NoMatchingParent" | BACKEND_NOT_FOUND);
        let is_incomplete = wrong().next().is_some() && wrong().all(is_missing);
        Judged {
            name: object.name.clone(),
            status: ObjectStatus::new(error, Vec::new(), object.metadata).with_parents(parents),
            uid: object.metadata.uid.clone(),
            is_incomplete,
        }
    }

    /// An entry for each parent that is a Service; none outside the mesh.
    fn parents(&mut self, object: RouteObject<'i>) -> Vec<ParentStatus> {
        if self.index.outside_mesh(&object.name.namespace).is_some() {
            return Vec::new();
        }
        let unresolved = listed(rule::unresolved(self.index, &object).iter());
        let mut faults = None;
        let entry = |parent: &ParentRef| {
            let conditions = match self.refusal(&object, parent) {
                Some(refusal) => vec![condition("Accepted", IN_FORCE, Some(refusal))],
                None => {
                    let compile = || rule::compile(self.index, object, self.features).faults;
                    rules_in_force(faults.get_or_insert_with(compile), object.spec.rules.len())
                }
            };
            let resolved = condition("ResolvedRefs", "all references are resolved", unresolved.clone());
            let conditions = conditions.into_iter().chain([resolved]).collect();
            ParentStatus { parent_ref: parent.clone(), conditions }
        };
        object.spec.services().map(entry).collect()
    }

    /// Why a parent does not accept a route, whatever its rules.
    fn refusal(&mut self, object: &RouteObject<'i>, parent: &ParentRef) -> Option<RouteFault> {
        let numbers = match ports(self.index, object, parent) {
            Ok(numbers) => numbers,
            Err(fault) => return Some(fault),
        };
        if !self.features.has(Feature::Routing) {
            let message = "this version does not route requests within the mesh: the route has no effect";
            return Some(RouteFault::new(UNSUPPORTED_VALUE, message));
        }
        let (index, namespace) = (self.index, &object.name.namespace);
        let service = parent_of(object.name, parent);
        let key = (service.clone(), namespace.clone());
        let group = self.groups.entry(key).or_insert_with(|| NamespaceRoutes::of(index, &service, namespace));
        numbers.into_iter().find_map(|port| group.refusal(object, port))
    }
}

/// `Accepted`, and `PartiallyInvalid` if some rules are not in force, but not all.
fn rules_in_force(faults: &[RouteFault], rules: usize) -> Vec<ParentCondition> {
    let fault = listed(faults.iter());
    if faults.len() == rules {
        return vec![condition("Accepted", IN_FORCE, fault)];
    }
    // Gateway API prescribes how the message begins.
    let partly = fault.map(|fault| ParentCondition {
        kind: "PartiallyInvalid",
        holds: true,
        reason: UNSUPPORTED_VALUE,
        message: format!("Dropped Rule {}", fault.message),
    });
    [condition("Accepted", IN_FORCE, None)].into_iter().chain(partly).collect()
}

/// A condition that holds unless there is a fault. Its reason is its type then.
fn condition(kind: &'static str, well: &str, fault: Option<RouteFault>) -> ParentCondition {
    match fault {
        None => ParentCondition { kind, holds: true, reason: kind, message: well.to_owned() },
        Some(RouteFault { reason, message }) => ParentCondition { kind, holds: false, reason, message },
    }
}

/// Several faults as one, with the reason of the first.
fn listed<'f>(faults: impl Iterator<Item = &'f RouteFault> + Clone) -> Option<RouteFault> {
    let first = faults.clone().next()?;
    let messages: Vec<_> = faults.clone().take(MOST_LISTED).map(|fault| fault.message.as_str()).collect();
    let rest = faults.count() - messages.len();
    let rest = if rest > 0 { format!("; and {rest} more") } else { String::new() };
    Some(RouteFault { reason: first.reason, message: format!("{}{rest}", messages.join("; ")) })
}
