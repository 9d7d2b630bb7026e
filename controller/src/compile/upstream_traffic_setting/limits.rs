//! UpstreamTrafficSettings as rate limits of the ports behind their Services.
//!
//! Of several for one Service the oldest counts. A limit whose path or fields are wrong, or whose path no HTTPRouteGroup has,
//! is left out; the others are in force.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tidegate_core::ObjectRef;
use tidegate_core::policy::{GlobalRateLimits, GlobalRequestLimit, RateLimits, RouteRateLimit};
use tidegate_core::route::RouteMatch;
use tidegate_core::route::filter::LocalRateLimit;
use tidegate_core::route::matching::PathMatch;
use tidegate_core::token_bucket::TokenRate;
use tidegate_crds::UpstreamTrafficSetting;
use tidegate_crds::upstream_traffic_setting::{HttpRateLimitSpec, TOO_MANY_REQUESTS, TcpRateLimitSpec};

use super::super::traffic_target::rules::match_bytes;
use super::global;
use crate::compile::audit::is_audit;
use crate::index::{Index, setting_service};
use crate::object::{ObjectName, OfKind};

/// The limits of a namespace's Services.
pub(crate) struct NamespaceLimits {
    /// By `<namespace>/<name>`.
    by_service: HashMap<Arc<str>, Arc<RateLimits>>,
}

/// The paths that routes of a namespace have, as they are written.
pub(crate) struct RoutePaths<'i>(HashSet<&'i str>);

impl NamespaceLimits {
    pub(crate) fn new(index: &Index, namespace: &str) -> Self {
        if index.outside_mesh(namespace).is_some() {
            return Self { by_service: HashMap::new() };
        }
        let paths = RoutePaths::new(index, namespace);
        let mut by_service = HashMap::new();
        for (name, object) in index.upstream_traffic_settings_in(namespace) {
            let service = setting_service(name, object);
            let service = service.filter(|service| oldest(index, service) == Some(name));
            if let (Some(service), Some(limits)) = (service, compile(name, object, &paths)) {
                by_service.insert(service.to_shared(), Arc::new(limits));
            }
        }
        Self { by_service }
    }

    /// Those of a Service, `<namespace>/<name>`.
    pub(crate) fn of(&self, service: &str) -> Option<&Arc<RateLimits>> {
        self.by_service.get(service)
    }
}

impl<'i> RoutePaths<'i> {
    pub(crate) fn new(index: &'i Index, namespace: &str) -> Self {
        let groups = index.route_groups_in(namespace);
        let matches = groups.flat_map(|(_, group)| &group.object.spec.matches);
        let path = |path: &'i Option<String>| path.as_deref().filter(|path| !path.is_empty());
        Self(matches.filter_map(|one| path(&one.path_regex)).collect())
    }

    /// Whether a route has this path. `.*` is that of every request.
    pub(crate) fn contains(&self, path: &str) -> bool {
        path == ".*" || self.0.contains(path)
    }
}

/// The UpstreamTrafficSetting that counts for a Service.
pub(crate) fn oldest<'i>(index: &'i Index, service: &ObjectName) -> Option<&'i ObjectName> {
    let about = index.upstream_traffic_settings_about(service);
    let oldest = about.min_by_key(|(name, object)| (object.metadata.creation_timestamp.clone(), *name));
    oldest.map(|(name, _)| name)
}

/// `None` without any limit.
fn compile(name: &ObjectName, object: &UpstreamTrafficSetting, paths: &RoutePaths<'_>) -> Option<RateLimits> {
    let origin = name.to_ref(UpstreamTrafficSetting::KIND);
    let local = object.spec.local();
    let limited = object.spec.limited_routes().filter(|(_, route)| paths.contains(&route.path));
    let mut routes: Vec<RouteRateLimit> = Vec::new();
    for (route, limit) in limited.filter_map(|(_, route)| Some((route, route.local()?))) {
        let is_new = routes.iter().all(|known| *known.limit.bucket != *route.path);
        if let (true, Some(requests)) = (is_new, requests_to(&route.path)) {
            routes.push(RouteRateLimit { requests, limit: request_limit(&origin, &route.path, limit) });
        }
    }
    let limits = RateLimits {
        connections: local.and_then(|local| local.tcp.as_ref()).map(connection_rate),
        requests: local.and_then(|local| local.http.as_ref()).map(|http| request_limit(&origin, "", http)),
        routes,
        global: global::compile(&object.spec, paths),
        is_audit: is_audit(&object.metadata),
        origin,
    };
    let is_local = limits.connections.is_some() || limits.of_requests().next().is_some();
    (is_local || limits.global != GlobalRateLimits::default()).then_some(limits)
}

/// The requests to a path; `None` if it is not a regular expression.
pub(super) fn requests_to(path: &str) -> Option<RouteMatch> {
    let path = PathMatch::regex(path).ok()?;
    Some(RouteMatch::new(Some(path), vec![], vec![], vec![]).without_programs())
}

/// The rate of new connections.
fn connection_rate(spec: &TcpRateLimitSpec) -> TokenRate {
    TokenRate { tokens: spec.connections, per: spec.unit.duration(), burst: spec.burst.unwrap_or_default() }
}

/// The limit of requests to a path.
fn request_limit(origin: &ObjectRef, path: &str, spec: &HttpRateLimitSpec) -> LocalRateLimit {
    LocalRateLimit {
        origin: origin.clone(),
        bucket: path.into(),
        rate: TokenRate {
            tokens: spec.requests,
            per: spec.unit.duration(),
            burst: spec.burst.unwrap_or_default(),
        },
        status: spec.response_status_code.unwrap_or(TOO_MANY_REQUESTS),
        // The limit holds without fields that cannot be sent.
        headers: spec.response_headers().unwrap_or_default().into(),
    }
}

/// Bytes of limits on the wire, about.
pub(crate) fn wire_bytes(limits: &RateLimits) -> usize {
    let origin = ref_bytes(&limits.origin);
    let paths: usize = limits.routes.iter().map(|route| match_bytes(&route.requests)).sum();
    let of_request = |limit: &LocalRateLimit| origin + limit.bucket.len() + header_bytes(limit) + 48;
    let local = limits.of_requests().map(of_request).sum::<usize>();
    origin + paths + local + global::wire_bytes(&limits.global) + 48
}

/// Bytes of memory of limits.
pub(crate) fn own_bytes(limits: &RateLimits) -> usize {
    let per_route = size_of::<RouteRateLimit>() + 256;
    let routes = limits.routes.len() + global::routes(&limits.global);
    size_of::<RateLimits>() + 2 * wire_bytes(limits) + per_route * (routes + 1)
}

/// Number of regular expressions of limits.
pub(crate) fn expressions(limits: &RateLimits) -> usize {
    let local: usize = limits.routes.iter().map(|route| route.requests.expressions()).sum();
    local + limits.global.requests.as_ref().map_or(0, GlobalRequestLimit::expressions)
}

/// What a reference takes on the wire.
fn ref_bytes(ObjectRef { kind, namespace, name }: &ObjectRef) -> usize {
    kind.len() + namespace.len() + name.len() + 8
}

/// What the response headers of a limit take on the wire.
fn header_bytes(limit: &LocalRateLimit) -> usize {
    let appended =
        limit.headers.appended().map(|(name, value)| name.as_str().len() + value.as_str().len() + 8);
    let dropped = limit.headers.dropped().iter().map(|name| name.as_str().len() + 4);
    appended.chain(dropped).sum()
}
