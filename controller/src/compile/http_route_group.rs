//! Whether the matches of an HTTPRouteGroup can be used. TrafficTargets say which peers may send such requests.

use tidegate_crds::{Finding, HTTPRouteGroup, validate};

use super::status::{ACCEPTED, Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::RouteGroup;

impl Compiled for HTTPRouteGroup {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let wanted = scope.index.route_groups().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted
            .map(|(name, group)| Judged {
                name: name.clone(),
                status: status(group),
                uid: group.object.metadata.uid.clone(),
                is_incomplete: false,
            })
            .collect()
    }
}

/// The status of one group: the first expression that cannot be compiled.
fn status(group: &RouteGroup) -> ObjectStatus {
    let error = match &group.matches {
        Err(reason) => Some(reason.to_string()),
        Ok(matches) => matches.all().find_map(|one| one.as_ref().err()).map(ToString::to_string),
    };
    let word = if error.is_some() { "Invalid" } else { ACCEPTED };
    let findings = validate::http_route_group(&group.object.spec);
    let warnings = findings.iter().map(Finding::to_string).filter(|warning| error.as_ref() != Some(warning));
    ObjectStatus::new(error.clone(), warnings.collect(), &group.object.metadata).with_condition(word)
}
