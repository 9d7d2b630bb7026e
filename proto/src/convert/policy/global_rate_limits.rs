//! Global rate limits: the rate limit service, and what describes connections and requests to it.
//!
//! A service is host and port, the domain of its configuration, the time for one call, and what its failure means. An empty host
//! is one that the object has wrong, so that each call fails. Descriptors are lists: of pairs for connections, and of entries for
//! requests, each of which is a pair, the client's address, a header or a match of headers. Refused: an entry or a test of a kind
//! that is not known, a name that is neither a header nor a known pseudo-header, and a status that no error has.

use tidegate_core::policy::{
    DescribedField, DescriptorEntry, DescriptorPair, FieldCondition, FieldTest, GlobalConnectionLimit,
    GlobalRequestLimit, HeaderValueMatch, RateLimitService, RequestDescriptor, RouteDescriptors,
    ServerAddress,
};

use super::super::duration::{duration_from_wire, duration_to_wire};
use super::super::routes::matching::{expressions, match_from_wire, match_to_wire};
use super::super::routes::{inner, status};
use super::super::{ConversionError, bad, missing, port_number};
use crate::discovery as wire;
use wire::descriptor_entry::Entry;
use wire::field_condition::Test;

pub(super) fn connections_to_wire(limit: &GlobalConnectionLimit) -> wire::GlobalConnectionLimit {
    let descriptor = |pairs: &Vec<DescriptorPair>| wire::ConnectionDescriptor {
        pairs: pairs.iter().map(pair_to_wire).collect(),
    };
    wire::GlobalConnectionLimit {
        service: Some(service_to_wire(&limit.service)),
        descriptors: limit.descriptors.iter().map(descriptor).collect(),
    }
}

/// `path` is the place in the policy, as in errors.
pub(super) fn connections_from_wire(
    path: &str,
    limit: wire::GlobalConnectionLimit,
) -> Result<GlobalConnectionLimit, ConversionError> {
    let pairs = |descriptor: wire::ConnectionDescriptor| {
        descriptor.pairs.into_iter().map(pair_from_wire).collect::<Vec<_>>()
    };
    Ok(GlobalConnectionLimit {
        service: service_from_wire(path, limit.service)?,
        descriptors: limit.descriptors.into_iter().map(pairs).collect(),
    })
}

pub(super) fn requests_to_wire(limit: &GlobalRequestLimit) -> wire::GlobalRequestLimit {
    let route = |route: &RouteDescriptors| wire::RouteDescriptors {
        requests: Some(match_to_wire(&route.requests)),
        path: route.path.to_string(),
        descriptors: route.descriptors.iter().map(descriptor_to_wire).collect(),
    };
    wire::GlobalRequestLimit {
        service: Some(service_to_wire(&limit.service)),
        descriptors: limit.descriptors.iter().map(descriptor_to_wire).collect(),
        routes: limit.routes.iter().map(route).collect(),
        status: limit.status.into(),
        rate_limit_headers: limit.has_rate_limit_headers,
    }
}

/// `path` is the place in the policy, as in errors.
pub(super) fn requests_from_wire(
    path: &str,
    limit: wire::GlobalRequestLimit,
) -> Result<GlobalRequestLimit, ConversionError> {
    let route = |(i, route): (usize, wire::RouteDescriptors)| {
        let path = format!("{path}.routes[{i}]");
        let requests = route.requests.ok_or_else(|| missing(&format!("{path}.requests")))?;
        Ok(RouteDescriptors {
            requests: match_from_wire(&path, requests)?,
            path: route.path.into(),
            descriptors: descriptors_from_wire(&path, route.descriptors)?,
        })
    };
    let status_path = format!("{path}.status");
    let status = status(&status_path, limit.status)?;
    if !(400..=599).contains(&status) {
        return Err(bad(&status_path, format!("{status} is not an error")));
    }
    Ok(GlobalRequestLimit {
        service: service_from_wire(path, limit.service)?,
        descriptors: descriptors_from_wire(path, limit.descriptors)?,
        routes: limit.routes.into_iter().enumerate().map(route).collect::<Result<_, _>>()?,
        status,
        has_rate_limit_headers: limit.rate_limit_headers,
    })
}

/// Number of regular expressions in a limit.
pub(super) fn global_expressions(limit: &wire::GlobalRequestLimit) -> usize {
    let of_routes = limit.routes.iter().flat_map(|route| &route.descriptors);
    let entries = limit.descriptors.iter().chain(of_routes).flat_map(|descriptor| &descriptor.entries);
    let tests = entries.flat_map(|entry| match &entry.entry {
        Some(Entry::HeaderMatch(header)) => &header.conditions[..],
        _ => &[],
    });
    let paths = limit.routes.iter().filter_map(|route| route.requests.as_ref());
    let paths: usize = paths.map(expressions).sum();
    paths + tests.filter(|condition| matches!(condition.test, Some(Test::Regex(_)))).count()
}

fn service_to_wire(service: &RateLimitService) -> wire::RateLimitService {
    let address = service.address.as_ref();
    wire::RateLimitService {
        host: address.map(ServerAddress::host).unwrap_or_default(),
        port: address.map_or(0, ServerAddress::port).into(),
        domain: service.domain.to_string(),
        timeout: Some(duration_to_wire(service.timeout)),
        fail_open: service.fail_open,
    }
}

fn service_from_wire(
    path: &str,
    service: Option<wire::RateLimitService>,
) -> Result<RateLimitService, ConversionError> {
    let path = format!("{path}.service");
    let service = service.ok_or_else(|| missing(&path))?;
    let address = match service.host.as_str() {
        "" => None,
        host => {
            let port = port_number(&format!("{path}.port"), service.port)?;
            let address = ServerAddress::parse(host, port);
            Some(address.map_err(|error| bad(&format!("{path}.host"), error))?)
        }
    };
    Ok(RateLimitService {
        address,
        domain: service.domain.into(),
        timeout: duration_from_wire(&format!("{path}.timeout"), service.timeout)?,
        fail_open: service.fail_open,
    })
}

fn pair_to_wire(pair: &DescriptorPair) -> wire::DescriptorPair {
    wire::DescriptorPair { key: pair.key.to_string(), value: pair.value.to_string() }
}

fn pair_from_wire(pair: wire::DescriptorPair) -> DescriptorPair {
    DescriptorPair { key: pair.key.into(), value: pair.value.into() }
}

fn descriptor_to_wire(descriptor: &RequestDescriptor) -> wire::RequestDescriptor {
    let entry = |entry: &DescriptorEntry| match entry {
        DescriptorEntry::Generic(pair) => Entry::Generic(pair_to_wire(pair)),
        DescriptorEntry::RemoteAddress => Entry::RemoteAddress(wire::RemoteAddress {}),
        DescriptorEntry::Header { field, key } => {
            Entry::Header(wire::DescribedHeader { name: field.as_str().to_owned(), key: key.to_string() })
        }
        DescriptorEntry::HeaderMatch(header) => Entry::HeaderMatch(wire::HeaderValueMatch {
            pair: Some(pair_to_wire(&header.pair)),
            conditions: header.conditions.iter().map(condition_to_wire).collect(),
            expect_match: header.is_expected,
        }),
    };
    let entries = descriptor.entries.iter().map(entry);
    let entries = entries.map(|entry| wire::DescriptorEntry { entry: Some(entry) });
    wire::RequestDescriptor { entries: entries.collect() }
}

fn descriptors_from_wire(
    path: &str,
    descriptors: Vec<wire::RequestDescriptor>,
) -> Result<Vec<RequestDescriptor>, ConversionError> {
    let one = |(i, descriptor): (usize, wire::RequestDescriptor)| {
        let path = format!("{path}.descriptors[{i}]");
        let entries = descriptor.entries.into_iter().enumerate();
        let entries = entries.map(|(i, entry)| entry_from_wire(&format!("{path}.entries[{i}]"), entry));
        Ok(RequestDescriptor { entries: entries.collect::<Result<_, _>>()? })
    };
    descriptors.into_iter().enumerate().map(one).collect()
}

fn entry_from_wire(path: &str, entry: wire::DescriptorEntry) -> Result<DescriptorEntry, ConversionError> {
    Ok(match entry.entry.ok_or_else(|| missing(path))? {
        Entry::Generic(pair) => DescriptorEntry::Generic(pair_from_wire(pair)),
        Entry::RemoteAddress(_) => DescriptorEntry::RemoteAddress,
        Entry::Header(header) => {
            DescriptorEntry::Header { field: field_from_wire(path, &header.name)?, key: header.key.into() }
        }
        Entry::HeaderMatch(header) => {
            let conditions = header.conditions.into_iter().enumerate();
            let conditions = conditions
                .map(|(i, condition)| condition_from_wire(&format!("{path}.conditions[{i}]"), condition));
            let pair = header.pair.ok_or_else(|| missing(&format!("{path}.pair")))?;
            DescriptorEntry::HeaderMatch(HeaderValueMatch {
                pair: pair_from_wire(pair),
                conditions: conditions.collect::<Result<_, _>>()?,
                is_expected: header.expect_match,
            })
        }
    })
}

fn field_from_wire(path: &str, name: &str) -> Result<DescribedField, ConversionError> {
    DescribedField::parse(name).map_err(|error| inner(path, &error))
}

fn condition_to_wire(condition: &FieldCondition) -> wire::FieldCondition {
    let test = match &condition.test {
        FieldTest::Exact(text) => Test::Exact(text.to_string()),
        FieldTest::Prefix(text) => Test::Prefix(text.to_string()),
        FieldTest::Suffix(text) => Test::Suffix(text.to_string()),
        FieldTest::Contains(text) => Test::Contains(text.to_string()),
        FieldTest::Regex(pattern) => Test::Regex(pattern.as_str().to_owned()),
        FieldTest::Present(is_present) => Test::Present(*is_present),
    };
    wire::FieldCondition { name: condition.field.as_str().to_owned(), test: Some(test) }
}

fn condition_from_wire(
    path: &str,
    condition: wire::FieldCondition,
) -> Result<FieldCondition, ConversionError> {
    let test = match condition.test.ok_or_else(|| missing(&format!("{path}.test")))? {
        Test::Exact(text) => FieldTest::Exact(text.into()),
        Test::Prefix(text) => FieldTest::Prefix(text.into()),
        Test::Suffix(text) => FieldTest::Suffix(text.into()),
        Test::Contains(text) => FieldTest::Contains(text.into()),
        Test::Regex(text) => FieldTest::regex(&text).map_err(|error| inner(path, &error))?,
        Test::Present(is_present) => FieldTest::Present(is_present),
    };
    Ok(FieldCondition { field: field_from_wire(path, &condition.name)?, test })
}

#[cfg(test)]
mod tests;
