//! The status of a TCPRoute. TrafficTargets say which peers may use its ports.

use tidegate_crds::TCPRoute;

use super::status::{ACCEPTED, Compiled, Judged, ObjectStatus, StatusScope};

impl Compiled for TCPRoute {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let wanted = scope.index.tcp_routes().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted
            .map(|(name, object)| Judged {
                name: name.clone(),
                status: ObjectStatus::new(None, Vec::new(), &object.metadata).with_condition(ACCEPTED),
                uid: object.metadata.uid.clone(),
                is_incomplete: false,
            })
            .collect()
    }
}
