//! Rate limits of what mesh peers send to a port (OSM: `UpstreamTrafficSetting`): those that each sidecar counts for itself, and
//! [`GlobalRateLimits`].
//!
//! They apply to what the rules of the port allow: what these refuse takes no token. What exceeds a local limit is not
//! counted by the global ones.

use serde::Serialize;

use super::decision::{Decision, Denial, Grant};
use super::global_rate_limits::{GlobalRateLimits, GlobalRequestLimit};
use super::reason::Reason;
use crate::object_ref::ObjectRef;
use crate::route::filter::LocalRateLimit;
use crate::route::{RequestView, RouteMatch};
use crate::token_bucket::TokenRate;

/// The limits that one object sets. Each port that they apply to has buckets of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimits {
    /// The object.
    pub origin: ObjectRef,
    /// Whether what exceeds a limit is reported only.
    pub is_audit: bool,
    /// Of connections.
    pub connections: Option<TokenRate>,
    /// Of requests, without those that one of `routes` matches.
    pub requests: Option<LocalRateLimit>,
    /// Of some requests: the first that matches a request applies to it.
    pub routes: Vec<RouteRateLimit>,
    /// Those that a rate limit service counts for all sidecars together.
    pub global: GlobalRateLimits,
}

/// The limit of the requests that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRateLimit {
    /// Which requests.
    pub requests: RouteMatch,
    /// Their limit.
    pub limit: LocalRateLimit,
}

impl RateLimits {
    /// The limits of requests: those of `routes` in their order, then that of all others.
    pub fn of_requests(&self) -> impl Iterator<Item = &LocalRateLimit> {
        self.routes.iter().map(|route| &route.limit).chain(&self.requests)
    }

    /// The place among [`RateLimits::of_requests`] of the limit that applies to a request. The request has its path in normal
    /// form if [`RateLimits::needs_normal_path`].
    pub fn select(&self, request: &impl RequestView) -> Option<usize> {
        let route = self.routes.iter().position(|route| route.requests.matches(request));
        route.or_else(|| self.requests.is_some().then_some(self.routes.len()))
    }

    /// Whether paths are distinguished.
    pub fn needs_normal_path(&self) -> bool {
        let is_limited =
            |route: &RouteRateLimit| route.requests.needs_normal_path() && !route.requests.is_any();
        self.routes.iter().any(is_limited)
            || self.global.requests.as_ref().is_some_and(GlobalRequestLimit::needs_normal_path)
    }

    /// The decision about a request that exceeds the limit at this place.
    pub fn request_exceeds(&self, place: usize) -> Decision {
        let limit = self.of_requests().nth(place);
        let path = limit.map(|limit| limit.bucket.clone()).unwrap_or_default();
        self.exceeded(Reason::RequestRateLimited(path))
    }

    /// The decision about a connection that exceeds the limit.
    pub fn connection_exceeds(&self) -> Decision {
        self.exceeded(Reason::ConnectionRateLimited)
    }

    /// The decision about what these limits refuse for this reason.
    pub fn exceeded(&self, reason: Reason) -> Decision {
        let denial = Denial { reason, origin: Some(self.origin.clone()) };
        if self.is_audit { Decision::Allow(Grant::Audit(denial)) } else { Decision::Deny(denial) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::route::filter::HeaderEdits;
    use crate::route::matching::PathMatch;
    use crate::route::test_request::TestRequest;

    fn limit(bucket: &str) -> LocalRateLimit {
        LocalRateLimit {
            origin: ObjectRef::new("UpstreamTrafficSetting", "shop", "cart"),
            bucket: bucket.into(),
            rate: TokenRate { tokens: 1, per: Duration::from_secs(1), burst: 0 },
            status: 429,
            headers: Arc::new(HeaderEdits::default()),
        }
    }

    fn limits(paths: &[&str], requests: Option<LocalRateLimit>) -> RateLimits {
        let route = |path: &&str| RouteRateLimit {
            requests: RouteMatch::new(Some(PathMatch::regex(path).unwrap()), vec![], vec![], vec![]),
            limit: limit(path),
        };
        let routes = paths.iter().map(route).collect();
        let origin = ObjectRef::new("UpstreamTrafficSetting", "shop", "cart");
        let global = GlobalRateLimits::default();
        RateLimits { origin, is_audit: false, connections: None, requests, routes, global }
    }

    #[test]
    fn the_first_route_that_matches_has_the_limit_of_a_request_and_the_service_the_others() {
        let selected = |limits: &RateLimits, path| {
            let place = limits.select(&TestRequest::new("GET", "a", path))?;
            limits.of_requests().nth(place).map(|limit| limit.bucket.to_string())
        };
        let both = limits(&["/a", "/a|/b"], Some(limit("")));
        assert_eq!(selected(&both, "/a").as_deref(), Some("/a"));
        assert_eq!(selected(&both, "/b").as_deref(), Some("/a|/b"));
        assert_eq!(selected(&both, "/a/c").as_deref(), Some(""));
        assert_eq!(selected(&limits(&["/a"], None), "/b"), None);
        assert_eq!(selected(&limits(&[".*"], Some(limit(""))), "/b").as_deref(), Some(".*"));
    }

    #[test]
    fn paths_are_needed_in_normal_form_only_where_they_are_distinguished() {
        assert!(limits(&[".*", "/a"], None).needs_normal_path());
        assert!(!limits(&[".*"], Some(limit(""))).needs_normal_path());
        assert!(!limits(&[], Some(limit(""))).needs_normal_path());
    }

    #[test]
    fn what_exceeds_a_limit_is_refused_in_the_name_of_its_object_and_reported_in_audit_mode() {
        let enforced = limits(&["/a"], Some(limit("")));
        let text = |decision| match decision {
            Decision::Deny(denial) => (denial.reason.code(), denial.to_string()),
            Decision::Allow(grant) => ("allow", grant.to_string()),
        };
        let origin = "UpstreamTrafficSetting shop/cart";
        assert_eq!(
            text(enforced.request_exceeds(0)),
            ("request_rate_limited", format!("the rate limit of requests for \"/a\" is exceeded ({origin})"))
        );
        assert_eq!(
            text(enforced.request_exceeds(1)),
            ("request_rate_limited", format!("the rate limit of requests is exceeded ({origin})"))
        );
        assert_eq!(
            text(enforced.connection_exceeds()),
            ("connection_rate_limited", format!("the rate limit of connections is exceeded ({origin})"))
        );
        let audit = RateLimits { is_audit: true, ..enforced };
        let refused =
            format!("audit mode; otherwise refused: the rate limit of connections is exceeded ({origin})");
        assert_eq!(text(audit.connection_exceeds()), ("allow", refused));
    }
}
