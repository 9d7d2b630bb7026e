//! Rate limits of mesh peers. A policy holds those of an object once, and its ports refer to them by their place.
//!
//! Workloads of many ports so carry the limits of their Services once. Routes of a limit are matched as those of
//! authorization are, by the same messages. Refused: a place that no limit has, which would otherwise leave a port without
//! one, and more than [`MAX_EXPRESSIONS`] regular expressions in a policy.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::policy::{GlobalRateLimits, RateLimits, RouteRateLimit};
use tidegate_core::route::MAX_EXPRESSIONS;

use super::super::rate::{limit_from_wire, limit_to_wire, rate_from_wire, rate_to_wire};
use super::super::routes::matching::{expressions, match_from_wire, match_to_wire};
use super::super::{ConversionError, bad, missing, object_from_wire, object_to_wire};
use super::global_rate_limits::{
    connections_from_wire, connections_to_wire, global_expressions, requests_from_wire, requests_to_wire,
};
use crate::discovery as wire;

/// The limits of a policy that is encoded.
#[derive(Default)]
pub(super) struct RateLimitList<'p> {
    limits: Vec<&'p Arc<RateLimits>>,
    places: HashMap<*const RateLimits, u32>,
}

impl<'p> RateLimitList<'p> {
    /// The places of these limits, which are added unless they are there.
    pub(super) fn places(&mut self, limits: &'p [Arc<RateLimits>]) -> Vec<u32> {
        let place = |limits: &'p Arc<RateLimits>| {
            let next = u32::try_from(self.limits.len()).unwrap_or(u32::MAX);
            *self.places.entry(Arc::as_ptr(limits)).or_insert_with(|| {
                self.limits.push(limits);
                next
            })
        };
        limits.iter().map(place).collect()
    }

    /// The limits in the order of their places.
    pub(super) fn to_wire(&self) -> Vec<wire::RateLimits> {
        self.limits.iter().map(|limits| limits_to_wire(limits)).collect()
    }
}

/// Counts the regular expressions before it compiles the first one.
pub(super) fn rate_limits_from_wire(
    limits: Vec<wire::RateLimits>,
) -> Result<Vec<Arc<RateLimits>>, ConversionError> {
    let routes = limits.iter().flat_map(|limits| &limits.routes);
    let local: usize = routes.filter_map(|route| route.requests.as_ref()).map(expressions).sum();
    let global = limits.iter().filter_map(|limits| limits.global_requests.as_ref()).map(global_expressions);
    let expressions = local + global.sum::<usize>();
    if expressions > MAX_EXPRESSIONS {
        let problem = format!("{expressions} regular expressions, more than {MAX_EXPRESSIONS}");
        return Err(bad("rate_limits", problem));
    }
    let one = |(i, limits)| limits_from_wire(&format!("rate_limits[{i}]"), limits).map(Arc::new);
    limits.into_iter().enumerate().map(one).collect()
}

/// The limits at these places.
pub(super) fn referred_limits(
    path: &str,
    places: &[u32],
    limits: &[Arc<RateLimits>],
) -> Result<Vec<Arc<RateLimits>>, ConversionError> {
    let one = |place: &u32| {
        let limits = usize::try_from(*place).ok().and_then(|place| limits.get(place));
        limits.cloned().ok_or_else(|| bad(path, format!("rate_limits has no entry {place}")))
    };
    places.iter().map(one).collect()
}

fn limits_to_wire(limits: &RateLimits) -> wire::RateLimits {
    let route = |route: &RouteRateLimit| wire::RouteRateLimit {
        requests: Some(match_to_wire(&route.requests)),
        limit: Some(limit_to_wire(&route.limit)),
    };
    wire::RateLimits {
        origin: Some(object_to_wire(&limits.origin)),
        audit: limits.is_audit,
        connections: limits.connections.map(rate_to_wire),
        requests: limits.requests.as_ref().map(limit_to_wire),
        routes: limits.routes.iter().map(route).collect(),
        global_connections: limits.global.connections.as_ref().map(connections_to_wire),
        global_requests: limits.global.requests.as_ref().map(requests_to_wire),
    }
}

fn limits_from_wire(path: &str, limits: wire::RateLimits) -> Result<RateLimits, ConversionError> {
    let route = |(i, route): (usize, wire::RouteRateLimit)| {
        let path = format!("{path}.routes[{i}]");
        let requests = route.requests.ok_or_else(|| missing(&format!("{path}.requests")))?;
        let limit = route.limit.ok_or_else(|| missing(&format!("{path}.limit")))?;
        Ok(RouteRateLimit {
            requests: match_from_wire(&path, requests)?,
            limit: limit_from_wire(&format!("{path}.limit"), limit)?,
        })
    };
    let connections = limits.connections.map(|rate| rate_from_wire(&format!("{path}.connections"), rate));
    let requests = limits.requests.map(|limit| limit_from_wire(&format!("{path}.requests"), limit));
    let global_path = format!("{path}.global_connections");
    let global_connections =
        limits.global_connections.map(|limit| connections_from_wire(&global_path, limit));
    let global_path = format!("{path}.global_requests");
    let global_requests = limits.global_requests.map(|limit| requests_from_wire(&global_path, limit));
    Ok(RateLimits {
        origin: object_from_wire(&format!("{path}.origin"), limits.origin)?,
        is_audit: limits.audit,
        connections: connections.transpose()?,
        requests: requests.transpose()?,
        routes: limits.routes.into_iter().enumerate().map(route).collect::<Result<_, _>>()?,
        global: GlobalRateLimits {
            connections: global_connections.transpose()?,
            requests: global_requests.transpose()?,
        },
    })
}
