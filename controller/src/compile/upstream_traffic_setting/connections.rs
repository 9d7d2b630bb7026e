//! UpstreamTrafficSettings as limits of what one client has open: to a Service's ports, or by an Egress.

use std::time::Duration;

use tidegate_core::backend::BackendLimits;
use tidegate_crds::UpstreamTrafficSetting;

use super::limits::oldest;
use crate::compile::audit::is_audit;
use crate::index::Index;
use crate::object::ObjectName;

/// The limits of clients of a Service. None in audit mode, which refuses nothing, or if its namespace is not in the mesh.
pub(crate) fn backend_limits(index: &Index, service: &ObjectName) -> BackendLimits {
    let counts = oldest(index, service);
    let object = index.upstream_traffic_settings_about(service).find(|(name, _)| Some(*name) == counts);
    match object {
        Some((_, object)) if index.outside_mesh(&service.namespace).is_none() => limits_of(object),
        _ => BackendLimits::default(),
    }
}

/// What an object limits. As with Envoy, a connection may have any number of requests if that is 0.
pub(crate) fn limits_of(object: &UpstreamTrafficSetting) -> BackendLimits {
    if is_audit(&object.metadata) {
        return BackendLimits::default();
    }
    let settings = object.spec.connection_settings.as_ref();
    let tcp = settings.and_then(|settings| settings.tcp.as_ref());
    let http = settings.and_then(|settings| settings.http.as_ref());
    let timeout = object.spec.connect_timeout().and_then(Result::ok);
    BackendLimits {
        max_connections: tcp.and_then(|tcp| tcp.max_connections),
        connect_timeout: timeout.filter(|time| *time > Duration::ZERO),
        max_requests: http.and_then(|http| http.max_requests),
        max_requests_per_connection: http
            .and_then(|http| http.max_requests_per_connection)
            .filter(|most| *most > 0),
        max_pending_requests: http.and_then(|http| http.max_pending_requests),
        max_retries: http.and_then(|http| http.max_retries),
    }
}
