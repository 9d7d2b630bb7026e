//! The conditions of a rule.
//!
//! A match is a path condition and lists of methods, headers and query parameters, of which all must hold; whatever
//! is absent or empty matches everything. A condition on a value is exact or a regular expression, anchored at both
//! ends. Regular expressions travel as text and are compiled on decoding, within the bounds of
//! `core/src/route/pattern.rs`.

use tidegate_core::route::matching::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, RpcMatch, ValueMatch};
use tidegate_core::route::{Method, RouteError};

use super::super::{ConversionError, missing};
use super::inner;
use crate::discovery as wire;

/// Number of regular expressions in a match.
pub(in crate::convert) fn expressions(matching: &wire::RouteMatch) -> usize {
    let is_regex = |value: &Option<wire::ValueMatch>| {
        let kind = value.as_ref().and_then(|value| value.kind.as_ref());
        usize::from(matches!(kind, Some(wire::value_match::Kind::Regex(_))))
    };
    let path = match matching.path.as_ref().and_then(|path| path.kind.as_ref()) {
        Some(wire::path_match::Kind::Regex(_)) => 1,
        Some(wire::path_match::Kind::Rpc(rpc)) => is_regex(&rpc.service) + is_regex(&rpc.method),
        Some(wire::path_match::Kind::Exact(_) | wire::path_match::Kind::Prefix(_)) | None => 0,
    };
    let headers: usize = matching.headers.iter().map(|header| is_regex(&header.value)).sum();
    path + headers + matching.query.iter().map(|parameter| is_regex(&parameter.value)).sum::<usize>()
}

pub(in crate::convert) fn match_to_wire(matching: &RouteMatch) -> wire::RouteMatch {
    let header = |header: &HeaderMatch| wire::HeaderMatch {
        name: header.name().to_string(),
        value: Some(value_to_wire(header.value())),
    };
    let parameter = |parameter: &QueryMatch| wire::QueryMatch {
        name: parameter.name().to_owned(),
        value: Some(value_to_wire(parameter.value())),
    };
    wire::RouteMatch {
        path: matching.path().map(path_to_wire),
        methods: matching.methods().iter().map(|method| method.as_str().to_owned()).collect(),
        headers: matching.headers().iter().map(header).collect(),
        query: matching.query().iter().map(parameter).collect(),
    }
}

/// `path` is the match's place in its rule, such as `routes[0].rules[1].matches[0]`.
pub(in crate::convert) fn match_from_wire(
    path: &str,
    matching: wire::RouteMatch,
) -> Result<RouteMatch, ConversionError> {
    let header = |(i, header): (usize, wire::HeaderMatch)| {
        let (path, name) = (format!("{path}.headers[{i}]"), &header.name);
        value_from_wire(&path, header.value, &|value| HeaderMatch::exact(name, value), &|pattern| {
            HeaderMatch::regex(name, pattern)
        })
    };
    let parameter = |(i, parameter): (usize, wire::QueryMatch)| {
        let (path, name) = (format!("{path}.query[{i}]"), &parameter.name);
        value_from_wire(&path, parameter.value, &|value| QueryMatch::exact(name, value), &|pattern| {
            QueryMatch::regex(name, pattern)
        })
    };
    let method = |method: &String| Method::parse(method).map_err(|error| inner(path, &error));
    Ok(RouteMatch::new(
        matching.path.map(|matching| path_from_wire(path, matching)).transpose()?,
        matching.methods.iter().map(method).collect::<Result<_, _>>()?,
        matching.headers.into_iter().enumerate().map(header).collect::<Result<_, _>>()?,
        matching.query.into_iter().enumerate().map(parameter).collect::<Result<_, _>>()?,
    ))
}

fn path_to_wire(path: &PathMatch) -> wire::PathMatch {
    let kind = match path {
        PathMatch::Exact(path) => wire::path_match::Kind::Exact(path.as_str().to_owned()),
        // The model keeps prefixes without the slash at their end.
        PathMatch::Prefix(path) if path.as_str().is_empty() => wire::path_match::Kind::Prefix("/".to_owned()),
        PathMatch::Prefix(path) => wire::path_match::Kind::Prefix(path.as_str().to_owned()),
        PathMatch::Regex(pattern) => wire::path_match::Kind::Regex(pattern.as_str().to_owned()),
        PathMatch::Rpc(rpc) => wire::path_match::Kind::Rpc(wire::RpcMatch {
            service: rpc.service().map(value_to_wire),
            method: rpc.method().map(value_to_wire),
        }),
    };
    wire::PathMatch { kind: Some(kind) }
}

/// Paths are brought into normal form again, so that what is compared is in the same form as a request's path.
fn path_from_wire(path: &str, matching: wire::PathMatch) -> Result<PathMatch, ConversionError> {
    let decoded = match matching.kind.ok_or_else(|| missing(&format!("{path}.path")))? {
        wire::path_match::Kind::Exact(text) => PathMatch::exact(&text),
        wire::path_match::Kind::Prefix(text) => PathMatch::prefix(&text),
        wire::path_match::Kind::Regex(pattern) => PathMatch::regex(&pattern),
        wire::path_match::Kind::Rpc(rpc) => return rpc_from_wire(&format!("{path}.path.rpc"), rpc),
    };
    decoded.map_err(|error| inner(path, &error))
}

/// At least one of service and method, each exact or a regular expression. Neither would match every request, which
/// is spelled by an absent path.
fn rpc_from_wire(path: &str, rpc: wire::RpcMatch) -> Result<PathMatch, ConversionError> {
    let part = |field: &str, value: Option<wire::ValueMatch>| {
        let path = format!("{path}.{field}");
        let decode = |value| value_from_wire(&path, Some(value), &RpcMatch::exact, &RpcMatch::regex);
        value.map(decode).transpose()
    };
    let (service, method) = (part("service", rpc.service)?, part("method", rpc.method)?);
    RpcMatch::path(service, method).ok_or_else(|| missing(path))
}

fn value_to_wire(value: &ValueMatch) -> wire::ValueMatch {
    let kind = match value {
        ValueMatch::Exact(text) => wire::value_match::Kind::Exact(text.to_string()),
        ValueMatch::Regex(pattern) => wire::value_match::Kind::Regex(pattern.as_str().to_owned()),
    };
    wire::ValueMatch { kind: Some(kind) }
}

/// A condition on a value, by the model's two ways to make it.
fn value_from_wire<T>(
    path: &str,
    value: Option<wire::ValueMatch>,
    exact: &dyn Fn(&str) -> Result<T, RouteError>,
    regex: &dyn Fn(&str) -> Result<T, RouteError>,
) -> Result<T, ConversionError> {
    let decoded = match value.and_then(|value| value.kind).ok_or_else(|| missing(&format!("{path}.value")))? {
        wire::value_match::Kind::Exact(text) => exact(&text),
        wire::value_match::Kind::Regex(pattern) => regex(&pattern),
    };
    decoded.map_err(|error| inner(path, &error))
}
