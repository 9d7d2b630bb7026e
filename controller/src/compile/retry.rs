//! Retries as what the sidecars of a service account do about failed requests, and whether they are in force.
//!
//! Of several for one service account and Service the oldest counts. A policy that cannot be read has no effect: requests are
//! sent again only as without any.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_core::{Identity, ObjectRef, ServiceRetry};
use tidegate_crds::{Finding, Retry, validate};

use super::status::{ACCEPTED, Compiled, Judged, ObjectStatus, StatusScope};
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
    let (word, error) = match fault(scope.index, name, object, &findings) {
        Some((word, reason)) => (word, Some(reason)),
        None if !has_room => ("TooLarge", Some(TOO_MANY.to_owned())),
        None => (ACCEPTED, None),
    };
    let warnings = findings.iter().map(Finding::to_string).filter(|warning| error.as_ref() != Some(warning));
    Judged {
        name: name.clone(),
        status: ObjectStatus::new(error.clone(), warnings.collect(), &object.metadata).with_condition(word),
        uid: object.metadata.uid.clone(),
        is_incomplete: word == "ReferenceNotFound",
    }
}

/// What keeps an object from being in force for all of its destinations, in a word and in a sentence.
fn fault(
    index: &Index,
    name: &ObjectName,
    object: &Retry,
    findings: &[Finding],
) -> Option<(&'static str, String)> {
    if let Some(reason) = index.outside_mesh(&name.namespace) {
        return Some(("Invalid", reason));
    }
    if let Some(finding) = findings.first() {
        return Some(("Invalid", finding.to_string()));
    }
    let services = retried_services(object);
    if let Some(missing) = services.iter().find(|service| index.service(service).is_none()) {
        return Some(("ReferenceNotFound", format!("spec.destinations: Service {missing} does not exist")));
    }
    let account = object.spec.account(&name.namespace);
    let older = in_force(index, &name.namespace).into_iter().take_while(|(other, _)| *other != name);
    let mut older = older.filter(|(_, other)| {
        other.spec.account(&name.namespace) == account && other.spec.retry_policy.parse().is_ok()
    });
    older.find_map(|(other, object)| {
        let shared = retried_services(object).into_iter().find(|service| services.contains(service))?;
        let reason = format!("spec.destinations: Retry {other} is older and has Service {shared}, too");
        Some(("Conflicted", reason))
    })
}

#[cfg(test)]
mod tests;
