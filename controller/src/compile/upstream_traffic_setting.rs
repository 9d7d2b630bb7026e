//! Whether an UpstreamTrafficSetting is in force. What it limits at the server is in `limits`, at clients in `connections`, and what
//! a rate limit service limits in `global`.

pub(super) mod connections;
mod global;
pub(super) mod limits;

use tidegate_crds::{Finding, UpstreamTrafficSetting, validate};

use self::limits::{RoutePaths, oldest};
use super::audit::{is_audit, misspelled};
use super::status::{ACCEPTED, Compiled, Judged, ObjectStatus, StatusScope};
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
    let fault = fault(scope.index, name, object, &findings);
    let has_room = !scope.without_room.contains(&name.to_ref(UpstreamTrafficSetting::KIND));
    let is_incomplete = matches!(fault, Some(("ReferenceNotFound", _)));
    let (error, word) = match fault {
        Some((word, reason)) => (Some(reason), word),
        None if !has_room => (Some(TOO_LARGE.to_owned()), "TooLarge"),
        None => (None, ACCEPTED),
    };
    let warnings = findings.iter().map(Finding::to_string).filter(|warning| error.as_ref() != Some(warning));
    let warnings = warnings.chain(audit_effect(object)).collect();
    Judged {
        name: name.clone(),
        status: ObjectStatus::new(error, warnings, &object.metadata).with_condition(word),
        uid: object.metadata.uid.clone(),
        is_incomplete,
    }
}

/// What keeps all limits of an object, or one of them, from being in force, in a word and in a sentence.
fn fault(
    index: &Index,
    name: &ObjectName,
    object: &UpstreamTrafficSetting,
    findings: &[Finding],
) -> Option<(&'static str, String)> {
    if let Some(reason) = index.outside_mesh(&name.namespace) {
        return Some(("Invalid", reason));
    }
    let is_of_egress = index.is_of_egress(Kind::UpstreamTrafficSetting, name);
    // An Egress has the setting limit other hosts.
    let is_fault = |finding: &&Finding| finding.path != "spec.host" || !is_of_egress;
    if let Some(finding) = findings.iter().find(is_fault) {
        return Some(("Invalid", finding.to_string()));
    }
    let service = setting_service(name, object)?;
    if index.service(&service).is_none() {
        return Some(("ReferenceNotFound", format!("spec.host: Service {service} does not exist")));
    }
    if let Some(older) = oldest(index, &service).filter(|older| *older != name) {
        let reason = format!("spec.host: UpstreamTrafficSetting {older} is older and has the same host");
        return Some(("Conflicted", reason));
    }
    let paths = RoutePaths::new(index, &name.namespace);
    let unknown = object.spec.limited_routes().find(|(_, route)| !paths.contains(&route.path));
    let unknown = unknown.map(|(i, route)| {
        let reason = format!(
            "spec.httpRoutes[{i}].path: no HTTPRouteGroup of the namespace has a match with pathRegex '{}', so this limit has \
             no effect",
            route.path
        );
        ("ReferenceNotFound", reason)
    });
    unknown
        .or_else(|| global::missing_service(index, &object.spec).map(|reason| ("ReferenceNotFound", reason)))
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
