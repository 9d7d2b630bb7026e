//! Whether an UpstreamTrafficSetting is in force. What it limits at the server is in `limits`, at clients in `connections`, and what
//! a rate limit service limits in `global`.

pub(super) mod connections;
mod global;
pub(super) mod limits;

use tidegate_crds::{Finding, UpstreamTrafficSetting, validate};

use self::limits::{RoutePaths, oldest};
use super::audit::{is_audit, misspelled};
use super::fault::ObjectFault;
use super::status::{Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::{Index, setting_service};
use crate::object::{Kind, ObjectName, OfKind};

/// Why limits are not enforced at a workload that has no room for them.
const TOO_LARGE: &str = "all rules and limits of one workload may take 512 KiB and 1024 regular expressions; this one is beyond that";

impl Compiled for UpstreamTrafficSetting {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let wanted = scope.index.upstream_traffic_settings().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted.map(|(name, object)| judge(scope, name, object)).collect()
    }
}

/// The status of one setting: its fault, or what it has no effect on.
fn judge(scope: &StatusScope<'_>, name: &ObjectName, object: &UpstreamTrafficSetting) -> Judged {
    let findings = validate::upstream_traffic_setting(&name.namespace, &object.spec);
    let has_room = !scope.without_room.contains(&name.to_ref(UpstreamTrafficSetting::KIND));
    let too_large = || (!has_room).then(|| ObjectFault::too_large(TOO_LARGE));
    let fault = fault(scope.index, name, object, &findings).or_else(too_large);
    let is_fault = |warning: &String| fault.as_ref().is_some_and(|fault| fault.reason == *warning);
    let warnings = findings.iter().map(Finding::to_string).filter(|warning| !is_fault(warning));
    let warnings = warnings.chain(audit_effect(object)).collect();
    Judged {
        name: name.clone(),
        is_incomplete: fault.as_ref().is_some_and(ObjectFault::is_missing),
        status: ObjectStatus::judged(fault, warnings, &object.metadata),
        uid: object.metadata.uid.clone(),
    }
}

/// What keeps all limits of an object, or one of them, from being in force.
fn fault(
    index: &Index,
    name: &ObjectName,
    object: &UpstreamTrafficSetting,
    findings: &[Finding],
) -> Option<ObjectFault> {
    if let Some(reason) = index.outside_mesh(&name.namespace) {
        return Some(ObjectFault::invalid(reason));
    }
    let is_of_egress = index.is_of_egress(Kind::UpstreamTrafficSetting, name);
    // An Egress has the setting limit other hosts.
    let is_fault = |finding: &&Finding| finding.path != "spec.host" || !is_of_egress;
    if let Some(finding) = findings.iter().find(is_fault) {
        return Some(ObjectFault::invalid(finding.to_string()));
    }
    let service = setting_service(name, object)?;
    if index.service(&service).is_none() {
        let reason = format!("spec.host: Service {service} does not exist");
        return Some(ObjectFault::reference_not_found(reason));
    }
    if let Some(older) = oldest(index, &service).filter(|older| *older != name) {
        let reason = format!("spec.host: UpstreamTrafficSetting {older} is older and has the same host");
        return Some(ObjectFault::conflicted(reason));
    }
    let paths = RoutePaths::new(index, &name.namespace);
    let unknown = object.spec.limited_routes().find(|(_, route)| !paths.contains(&route.path));
    let unknown = unknown.map(|(i, route)| {
        format!(
            "spec.httpRoutes[{i}].path: no HTTPRouteGroup of the namespace has a match with pathRegex '{}', so this limit has \
             no effect",
            route.path
        )
    });
    let missing = unknown.or_else(|| global::missing_service(index, &object.spec));
    missing.map(ObjectFault::reference_not_found)
}

/// What the audit annotation means; `None` without it.
fn audit_effect(object: &UpstreamTrafficSetting) -> Option<String> {
    if !is_audit(&object.metadata) {
        return misspelled(&object.metadata);
    }
    let effect = "audit mode: what exceeds the rate limits is counted and logged, not refused";
    Some(match &object.spec.connection_settings {
        Some(_) => format!("{effect}; connectionSettings have no effect"),
        None => effect.to_owned(),
    })
}

#[cfg(test)]
mod tests;
