//! Global rate limits of what mesh peers send to a port: a rate limit service that users run counts for all sidecars together,
//! by Envoy's protocol `envoy.service.ratelimit.v3` (OSM: `UpstreamTrafficSetting`).
//!
//! A connection or request is described to the service by descriptors, each a list of keys and values. Which limits they are
//! subject to is the service's configuration. [`descriptor`] has what requests are described by.

mod descriptor;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use self::descriptor::{
    DescribedField, DescriptorEntry, DescriptorPair, FieldCondition, FieldTest, HeaderValueMatch,
};
use super::external_authorization::ServerAddress;
use crate::route::{RequestView, RouteMatch};

/// The global limits that one object sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GlobalRateLimits {
    /// Of connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<GlobalConnectionLimit>,
    /// Of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<GlobalRequestLimit>,
}

/// A rate limit service, and what its failure means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitService {
    /// Where it is. `None`: the object has no valid address, so that each call fails.
    pub address: Option<ServerAddress>,
    /// The service's configuration that applies.
    pub domain: Arc<str>,
    /// Time for one call.
    pub timeout: Duration,
    /// Whether what it has no answer for is allowed.
    pub fail_open: bool,
}

/// A limit of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GlobalConnectionLimit {
    /// The service.
    pub service: RateLimitService,
    /// What it gets: the same for each connection.
    pub descriptors: Vec<Vec<DescriptorPair>>,
}

/// A limit of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GlobalRequestLimit {
    /// The service.
    pub service: RateLimitService,
    /// What describes the requests that none of `routes` matches.
    pub descriptors: Vec<RequestDescriptor>,
    /// What describes some requests: the first that matches a request applies to it.
    pub routes: Vec<RouteDescriptors>,
    /// Status of the response above the limit, 400 to 599.
    pub status: u16,
    /// Whether responses have `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset`.
    pub has_rate_limit_headers: bool,
}

/// What describes the requests that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteDescriptors {
    /// Which requests.
    pub requests: RouteMatch,
    /// What refusals call them: the path of the route.
    pub path: Arc<str>,
    /// Their descriptors.
    pub descriptors: Vec<RequestDescriptor>,
}

/// A descriptor of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RequestDescriptor {
    /// Its parts. A request that lacks one of them is not described.
    pub entries: Vec<DescriptorEntry>,
}

/// Keys and values of a descriptor for one request.
pub type DescribedRequest<'d> = Vec<(&'d str, Cow<'d, [u8]>)>;

impl GlobalRequestLimit {
    /// The path and the descriptors that apply to a request. It has its path in normal form if
    /// [`GlobalRequestLimit::needs_normal_path`].
    pub fn select(&self, request: &impl RequestView) -> (Option<&Arc<str>>, &[RequestDescriptor]) {
        match self.routes.iter().find(|route| route.requests.matches(request)) {
            Some(route) => (Some(&route.path), &route.descriptors),
            None => (None, &self.descriptors),
        }
    }

    /// Whether paths are distinguished.
    pub fn needs_normal_path(&self) -> bool {
        self.routes.iter().any(|route| route.requests.needs_normal_path() && !route.requests.is_any())
    }

    /// Number of regular expressions, each of which a sidecar compiles.
    pub fn expressions(&self) -> usize {
        let paths = self.routes.iter().map(|route| route.requests.expressions());
        let of_routes = self.routes.iter().flat_map(|route| &route.descriptors);
        let descriptors = self.descriptors.iter().chain(of_routes);
        let entries =
            descriptors.flat_map(|descriptor| &descriptor.entries).map(DescriptorEntry::expressions);
        paths.sum::<usize>() + entries.sum::<usize>()
    }
}

impl RequestDescriptor {
    /// Keys and values for a request from this address; `None` if the request lacks an entry.
    pub fn describe<'d>(
        &'d self,
        request: &'d impl RequestView,
        source: IpAddr,
    ) -> Option<DescribedRequest<'d>> {
        self.entries.iter().map(|entry| entry.of(request, source)).collect()
    }
}

impl fmt::Display for RateLimitService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failure = if self.fail_open { "allows" } else { "refuses" };
        match &self.address {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("a service without a valid address")?,
        }
        write!(f, " decides within {:?}, domain {:?}; its failure {failure}", self.timeout, &*self.domain)
    }
}

impl fmt::Display for GlobalConnectionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; it gets ", self.service)?;
        for (i, pairs) in self.descriptors.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { " and " })?;
            for (i, DescriptorPair { key, value }) in pairs.iter().enumerate() {
                write!(f, "{}{key}={value}", if i == 0 { "" } else { "," })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
