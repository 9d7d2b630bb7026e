//! The limits that a rate limit service counts. What is wrong with one is in `tidegate_crds`, where it is read.

use tidegate_core::policy::{
    DescriptorEntry, DescriptorPair, FieldTest, GlobalRateLimits, RateLimitService, RequestDescriptor,
    RouteDescriptors, ServerAddress,
};
use tidegate_crds::UpstreamTrafficSettingSpec;
use tidegate_crds::upstream_traffic_setting::read_descriptors;

use super::super::traffic_target::rules::match_bytes;
use super::limits::{RoutePaths, requests_to};
use crate::index::{Index, service_named};

/// The limits of an object. A path that no route has is left out.
pub(super) fn compile(spec: &UpstreamTrafficSettingSpec, paths: &RoutePaths<'_>) -> GlobalRateLimits {
    let Some(global) = spec.global() else { return GlobalRateLimits::default() };
    // The object's status has them.
    let mut problems = |_, _| {};
    let connections = global.tcp.as_ref().map(|tcp| tcp.read("", &mut problems));
    let mut requests = global.http.as_ref().map(|http| http.read("", &mut problems));
    if let Some(limit) = &mut requests {
        let limited = spec.limited_routes().filter(|(_, route)| paths.contains(&route.path));
        for (route, described) in limited.filter_map(|(_, route)| Some((route, route.global()?))) {
            let is_new = limit.routes.iter().all(|known| *known.path != *route.path);
            if let (true, Some(requests)) = (is_new, requests_to(&route.path)) {
                let descriptors = read_descriptors(&described.descriptors, "", &mut problems);
                limit.routes.push(RouteDescriptors {
                    requests,
                    path: route.path.as_str().into(),
                    descriptors,
                });
            }
        }
    }
    GlobalRateLimits { connections, requests }
}

/// Why a service cannot be found: it is to be a Service that does not exist.
pub(super) fn missing_service(index: &Index, spec: &UpstreamTrafficSettingSpec) -> Option<String> {
    let global = spec.global()?;
    let tcp = global.tcp.as_ref().map(|tcp| ("tcp", &tcp.rate_limit_service));
    let http = global.http.as_ref().map(|http| ("http", &http.rate_limit_service));
    tcp.into_iter().chain(http).find_map(|(kind, service)| {
        let name = service_named(&service.host)?;
        index.service(&name).is_none().then(|| {
            format!("spec.rateLimit.global.{kind}.rateLimitService.host: Service {name} does not exist")
        })
    })
}

/// Bytes on the wire, about.
pub(super) fn wire_bytes(limits: &GlobalRateLimits) -> usize {
    let connections = limits.connections.as_ref().map_or(0, |limit| {
        let pairs = limit.descriptors.iter().flatten().map(pair_bytes);
        service_bytes(&limit.service) + 4 * limit.descriptors.len() + pairs.sum::<usize>()
    });
    let requests = limits.requests.as_ref().map_or(0, |limit| {
        let routes = limit.routes.iter().map(|route| {
            match_bytes(&route.requests) + route.path.len() + descriptors_bytes(&route.descriptors) + 12
        });
        service_bytes(&limit.service) + descriptors_bytes(&limit.descriptors) + routes.sum::<usize>()
    });
    connections + requests
}

/// Number of routes.
pub(super) fn routes(limits: &GlobalRateLimits) -> usize {
    limits.requests.as_ref().map_or(0, |limit| limit.routes.len())
}

fn service_bytes(service: &RateLimitService) -> usize {
    let host = service.address.as_ref().map(ServerAddress::host).unwrap_or_default();
    host.len() + service.domain.len() + 40
}

fn pair_bytes(pair: &DescriptorPair) -> usize {
    pair.key.len() + pair.value.len() + 8
}

fn descriptors_bytes(descriptors: &[RequestDescriptor]) -> usize {
    let entry = |entry: &DescriptorEntry| match entry {
        DescriptorEntry::Generic(pair) => pair_bytes(pair),
        DescriptorEntry::RemoteAddress => 4,
        DescriptorEntry::Header { field, key } => field.as_str().len() + key.len() + 8,
        DescriptorEntry::HeaderMatch(header) => {
            let conditions = header
                .conditions
                .iter()
                .map(|condition| condition.field.as_str().len() + test_bytes(&condition.test) + 12);
            pair_bytes(&header.pair) + conditions.sum::<usize>() + 8
        }
    };
    let entries = descriptors.iter().flat_map(|descriptor| &descriptor.entries).map(entry);
    4 * descriptors.len() + entries.map(|bytes| bytes + 4).sum::<usize>()
}

fn test_bytes(test: &FieldTest) -> usize {
    match test {
        FieldTest::Exact(text)
        | FieldTest::Prefix(text)
        | FieldTest::Suffix(text)
        | FieldTest::Contains(text) => text.len(),
        FieldTest::Regex(pattern) => pattern.as_str().len(),
        FieldTest::Present(_) => 1,
    }
}
