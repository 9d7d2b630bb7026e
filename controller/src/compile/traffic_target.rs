//! Whether a TrafficTarget is in force. What it grants is in `rules`.

pub(super) mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_crds::{Finding, TrafficTarget, validate};

use self::rules::{beyond_bound, fault};
use super::audit::{is_audit, misspelled};
use super::fault::ObjectFault;
use super::status::{Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::Index;
use crate::object::{ObjectName, OfKind};

/// Why a rule grants nothing at a workload that has no room for it.
pub(crate) const TOO_LARGE: &str = "all rules of one workload may take 512 KiB and 1024 regular expressions, and one service \
                                    account may have 1024 TrafficTargets; this one is beyond that: list fewer sources or \
                                    matches, or write fewer targets";

impl Compiled for TrafficTarget {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let index = scope.index;
        let mut beyond: BTreeMap<&str, BTreeSet<&ObjectName>> = BTreeMap::new();
        let wanted = index.traffic_targets().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted
            .map(|(name, object)| {
                let beyond =
                    beyond.entry(&name.namespace).or_insert_with(|| beyond_bound(index, &name.namespace));
                let has_room =
                    !beyond.contains(name) && !scope.without_room.contains(&name.to_ref(Self::KIND));
                let too_large = || (!has_room).then(|| ObjectFault::too_large(TOO_LARGE));
                let fault = fault(index, name, object).or_else(too_large);
                Judged {
                    name: name.clone(),
                    is_incomplete: fault.as_ref().is_some_and(ObjectFault::is_missing),
                    status: status(index, name, object, fault),
                    uid: object.metadata.uid.clone(),
                }
            })
            .collect()
    }
}

/// The status of one TrafficTarget: its fault, or a warning.
fn status(
    index: &Index,
    name: &ObjectName,
    object: &TrafficTarget,
    fault: Option<ObjectFault>,
) -> ObjectStatus {
    let findings = validate::traffic_target(&name.namespace, &object.spec);
    let warnings = findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string);
    let is_fault = |warning: &String| fault.as_ref().is_some_and(|fault| fault.reason == *warning);
    let warnings = warnings.filter(|warning| !is_fault(warning)).chain(effect(index, name, object)).collect();
    ObjectStatus::judged(fault, warnings, &object.metadata)
}

/// What keeps a target that is in force from having its usual effect.
fn effect(index: &Index, name: &ObjectName, object: &TrafficTarget) -> Vec<String> {
    let mut effects = Vec::new();
    let is_permissive = index.mesh_config_spec().is_some_and(|config| config.is_permissive());
    match (is_audit(&object.metadata), is_permissive) {
        (true, true) => effects.push(
            "audit mode: what would be refused without permissive mode is counted and logged".to_owned(),
        ),
        (false, true) => effects.push(
            "permissive mode is on: every workload of the mesh is admitted, and this has no effect"
                .to_owned(),
        ),
        (true, false) => {
            effects.push("audit mode: what would be refused is counted and logged".to_owned());
            let is_enforced = |(other, target): &(&ObjectName, &Arc<TrafficTarget>)| {
                *other != name
                    && !is_audit(&target.metadata)
                    && target.spec.destination.name == object.spec.destination.name
            };
            let others = index.traffic_targets_in(&name.namespace).filter(is_enforced);
            let others = validate::listed(others.map(|(other, _)| other.to_string()));
            if !others.is_empty() {
                effects.push(format!(
                    "this has no effect at ports where other targets of the same destination are enforced: {others}"
                ));
            }
        }
        (false, false) => {}
    }
    effects.extend(misspelled(&object.metadata));
    effects
}

#[cfg(test)]
mod tests;
