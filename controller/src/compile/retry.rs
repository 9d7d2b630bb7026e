//! Retries as what the sidecars of a service account do about failed requests, and whether they are in force.
//!
//! Of several for one service account and Service the oldest counts. A policy that cannot be read has no effect: requests are
//! sent again only as without any.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_core::{Identity, ObjectRef, ServiceRetry};
use tidegate_crds::{Finding, Retry, validate};

use super::fault::ObjectFault;
use super::status::{Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::{Index, retried_services};
use crate::object::{ObjectName, OfKind};

/// The most Services of one workload with retries.
pub(super) const MOST_SERVICES: usize = 256;
/// Why a Retry has no effect on a workload.
const TOO_MANY: &str =
    "the requests of one workload to at most 256 Services are retried; this one is beyond that";

/// How requests of a namespace's workloads are retried.
pub(super) struct NamespaceRetries {
    /// By service account, and by Service.
    by_account: HashMap<Arc<str>, BTreeMap<ObjectName, Arc<ServiceRetry>>>,
}

impl NamespaceRetries {
    /// The Retries of this namespace, the oldest first.
    pub(super) fn new(index: &Index, namespace: &str) -> Self {
        let mut by_account: HashMap<Arc<str>, BTreeMap<ObjectName, Arc<ServiceRetry>>> = HashMap::new();
        for (name, object) in in_force(index, namespace) {
            let account = object.spec.account(namespace);
            let (Some(account), Ok((policy, timeouts))) = (account, object.spec.retry_policy.parse()) else {
                continue;
            };
            let of_account = by_account.entry(account.into()).or_default();
            for service in retried_services(object) {
                let retry = || {
                    let (origin, policy) = (name.to_ref(Retry::KIND), policy.clone());
                    Arc::new(ServiceRetry { origin, service: service.to_shared(), timeouts, policy })
                };
                of_account.entry(service.clone()).or_insert_with(retry);
            }
        }
        Self { by_account }
    }

    /// The Retries of a service account's workloads. Objects beyond the limit are added to `left_out`.
    pub(super) fn of(&self, account: &str, left_out: &mut BTreeSet<ObjectRef>) -> Vec<Arc<ServiceRetry>> {
        let all = self.by_account.get(account).into_iter().flat_map(BTreeMap::values);
        left_out.extend(all.clone().skip(MOST_SERVICES).map(|retry| retry.origin.clone()));
        all.take(MOST_SERVICES).cloned().collect()
    }
}

/// How a workload's requests to a Service are retried, where no rule says so itself.
pub(crate) fn service_retry(
    index: &Index,
    client: &Identity,
    service: &ObjectName,
) -> Option<Arc<ServiceRetry>> {
    let all = NamespaceRetries::new(index, client.namespace());
    all.by_account.get(client.service_account())?.get(service).cloned()
}

/// The Retries of a namespace, the oldest first. None if it is not in the mesh.
fn in_force<'i>(index: &'i Index, namespace: &str) -> Vec<(&'i ObjectName, &'i Arc<Retry>)> {
    if index.outside_mesh(namespace).is_some() {
        return Vec::new();
    }
    let mut all: Vec<_> = index.retries_in(namespace).collect();
    all.sort_by_key(|(name, object)| (object.metadata.creation_timestamp.clone(), *name));
    all
}

impl Compiled for Retry {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let wanted = scope.index.retries().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted.map(|(name, object)| judge(scope, name, object)).collect()
    }
}

/// The status of one Retry: its fault, or which others come first.
fn judge(scope: &StatusScope<'_>, name: &ObjectName, object: &Retry) -> Judged {
    let findings = validate::retry(&name.namespace, &object.spec);
    let has_room = !scope.without_room.contains(&name.to_ref(Retry::KIND));
    let too_large = || (!has_room).then(|| ObjectFault::too_large(TOO_MANY));
    let fault = fault(scope.index, name, object, &findings).or_else(too_large);
    let is_fault = |warning: &String| fault.as_ref().is_some_and(|fault| fault.reason == *warning);
    let warnings = findings.iter().map(Finding::to_string).filter(|warning| !is_fault(warning)).collect();
    Judged {
        name: name.clone(),
        is_incomplete: fault.as_ref().is_some_and(ObjectFault::is_missing),
        status: ObjectStatus::judged(fault, warnings, &object.metadata),
        uid: object.metadata.uid.clone(),
    }
}

/// What keeps an object from being in force for all of its destinations.
fn fault(index: &Index, name: &ObjectName, object: &Retry, findings: &[Finding]) -> Option<ObjectFault> {
    if let Some(reason) = index.outside_mesh(&name.namespace) {
        return Some(ObjectFault::invalid(reason));
    }
    if let Some(finding) = findings.first() {
        return Some(ObjectFault::invalid(finding.to_string()));
    }
    let services = retried_services(object);
    if let Some(missing) = services.iter().find(|service| index.service(service).is_none()) {
        let reason = format!("spec.destinations: Service {missing} does not exist");
        return Some(ObjectFault::reference_not_found(reason));
    }
    let account = object.spec.account(&name.namespace);
    let older = in_force(index, &name.namespace).into_iter().take_while(|(other, _)| *other != name);
    let mut older = older.filter(|(_, other)| {
        other.spec.account(&name.namespace) == account && other.spec.retry_policy.parse().is_ok()
    });
    older.find_map(|(other, object)| {
        let shared = retried_services(object).into_iter().find(|service| services.contains(service))?;
        let reason = format!("spec.destinations: Retry {other} is older and has Service {shared}, too");
        Some(ObjectFault::conflicted(reason))
    })
}

#[cfg(test)]
mod tests;
