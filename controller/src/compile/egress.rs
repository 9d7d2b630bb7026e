//! Whether an Egress is in force. What it allows is in `rules`.

pub(crate) mod rules;

use tidegate_crds::{Egress, Finding, validate};

use self::rules::fault;
use super::audit::{is_audit, misspelled};
use super::fault::ObjectFault;
use super::status::{Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::Index;
use crate::object::OfKind;

/// Why a policy has no effect at a workload that has no room for it.
const TOO_LARGE: &str = "all rules of one workload may take 512 KiB and 1024 regular expressions; this one is beyond that: list fewer \
                         hosts, or write fewer policies";

impl Compiled for Egress {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let wanted = scope.index.egresses().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted
            .map(|(name, object)| {
                let has_room = !scope.without_room.contains(&name.to_ref(Self::KIND));
                let too_large = || (!has_room).then(|| ObjectFault::too_large(TOO_LARGE));
                let fault = fault(scope.index, name, object).or_else(too_large);
                Judged {
                    name: name.clone(),
                    is_incomplete: fault.as_ref().is_some_and(ObjectFault::is_missing),
                    status: status(scope.index, object, fault),
                    uid: object.metadata.uid.clone(),
                }
            })
            .collect()
    }
}

/// The status of one policy: its fault, or what it has no effect on.
fn status(index: &Index, object: &Egress, fault: Option<ObjectFault>) -> ObjectStatus {
    let findings = validate::egress(&object.spec);
    let warnings = findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string);
    let warnings = warnings.chain(effect(index, object)).collect();
    ObjectStatus::judged(fault, warnings, &object.metadata)
}

/// What keeps a policy that is in force from having its usual effect.
fn effect(index: &Index, object: &Egress) -> Vec<String> {
    let mut effects = Vec::new();
    if index.mesh_config_spec().is_none_or(|config| config.is_egress_enabled()) {
        effects.push(
            "spec.traffic.enableEgress is not false: every server is reachable, and this has no effect"
                .to_owned(),
        );
    } else if is_audit(&object.metadata) {
        effects.push(
            "audit mode: what would be refused is logged, unless another policy for the service account is enforced; then this has \
             no effect"
                .to_owned(),
        );
    }
    effects.extend(misspelled(&object.metadata));
    effects
}

#[cfg(test)]
mod tests;
