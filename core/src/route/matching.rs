//! The conditions of a rule: path, method, headers and query.

mod rpc;

use std::borrow::Cow;
use std::iter;
use std::sync::Arc;

use serde::Serialize;

pub use self::rpc::RpcMatch;
pub(super) use self::rpc::split_call;

use super::error::{Problem, RouteError};
use super::field::{FieldName, FieldValue, Method};
use super::pattern::Pattern;
use crate::path;

/// Maximum length of a path, in which a percent-encoded byte counts once, or of its pattern (Gateway API:
/// `HTTPPathMatch.value`).
const MAX_PATH: usize = 1024;
/// Maximum length of a pattern for a header (Gateway API: `HTTPHeaderMatch.value`).
const MAX_HEADER: usize = 4096;
/// Maximum length of a query parameter's name (Gateway API: `HTTPHeaderName`, which it shares).
const MAX_PARAMETER: usize = 256;

/// A request's head, as rules see it, whatever the codec.
pub trait RequestView {
    /// Method.
    fn method(&self) -> &[u8];
    /// Host and port that the request is for: `:authority`, or the `Host` field. Empty if it names none.
    fn authority(&self) -> &[u8];
    /// Path in normal form ([`crate::path::normalize`]), without the query; `*` for `OPTIONS *`.
    fn path(&self) -> &[u8];
    /// Query as it was sent, without the `?`.
    fn query(&self) -> Option<&[u8]>;
    /// The values of each line of this field, in their order. `name` is in lower case and never `host`.
    fn field<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;
}

/// One match of a rule. All of its parts must match (Gateway API: parts are AND-ed, the matches of a rule OR-ed).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    path: Option<PathMatch>,
    methods: Vec<Method>,
    headers: Vec<HeaderMatch>,
    query: Vec<QueryMatch>,
}

/// The condition on the path. Paths in rules are in normal form, as those of requests are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// This path, in this case.
    Exact(RoutePath),
    /// This path and everything below it, by whole elements: `/abc` matches `/abc`, `/abc/` and `/abc/d`, not `/abcd`.
    Prefix(RoutePath),
    /// A path that matches from its first to its last byte, without the query.
    Regex(Pattern),
    /// A gRPC call.
    Rpc(RpcMatch),
}

/// A path of a rule, in normal form. As a prefix it has no slash at its end; the prefix `/` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RoutePath(Arc<str>);

/// The condition on a header.
///
/// The name `host` means the request's authority in every version of HTTP, including its port, case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    name: FieldName,
    value: ValueMatch,
}

/// The condition on a query parameter.
///
/// Name and value are compared as sent, without percent-decoding, case-sensitive. Of a repeated parameter the first
/// counts. Envoy does the same (`QueryParamsMulti::parseQueryString`, which does not decode). Gateway API specifies
/// neither; its conformance tests send only unreserved characters. Linkerd decodes, so a rule for `red panda` matches
/// only there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    name: Arc<str>,
    value: ValueMatch,
}

/// The condition on a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ValueMatch {
    /// This value, in this case.
    Exact(Arc<str>),
    /// A value that matches from its first to its last byte.
    Regex(Pattern),
}

impl RouteMatch {
    /// Matches every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// A match of these parts. Without a path, any path matches, including `*`; without methods, any method. Of several
    /// entries for one header or one query parameter only the first counts (Gateway API: `HTTPRouteMatch`).
    pub fn new(
        path: Option<PathMatch>,
        methods: Vec<Method>,
        headers: Vec<HeaderMatch>,
        query: Vec<QueryMatch>,
    ) -> Self {
        let mut distinct_headers: Vec<HeaderMatch> = Vec::with_capacity(headers.len());
        for header in headers {
            if distinct_headers.iter().all(|known| known.name != header.name) {
                distinct_headers.push(header);
            }
        }
        let mut distinct_query: Vec<QueryMatch> = Vec::with_capacity(query.len());
        for parameter in query {
            if distinct_query.iter().all(|known| known.name != parameter.name) {
                distinct_query.push(parameter);
            }
        }
        Self { path, methods, headers: distinct_headers, query: distinct_query }
    }

    /// The condition on the path, if any.
    pub fn path(&self) -> Option<&PathMatch> {
        self.path.as_ref()
    }

    /// The methods that match. If empty, all.
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// The conditions on headers.
    pub fn headers(&self) -> &[HeaderMatch] {
        &self.headers
    }

    /// The conditions on query parameters.
    pub fn query(&self) -> &[QueryMatch] {
        &self.query
    }

    /// Whether a request matches. Allocates only to match a regular expression against a field of several lines.
    pub fn matches(&self, request: &impl RequestView) -> bool {
        self.has_method(request)
            && self.has_path(request)
            && self.headers.iter().all(|header| header.matches(request))
            && self.query.iter().all(|parameter| parameter.matches(request.query()))
    }
}

impl RouteMatch {
    /// Whether the request's path matches.
    pub(crate) fn has_path(&self, request: &impl RequestView) -> bool {
        self.path.as_ref().is_none_or(|path| path.matches(request.path()))
    }

    /// Whether the request's method matches.
    pub(crate) fn has_method(&self, request: &impl RequestView) -> bool {
        let is_method = |method: &Method| method.as_str().as_bytes() == request.method();
        self.methods.is_empty() || self.methods.iter().any(is_method)
    }

    /// Whether it distinguishes paths, and so needs them in normal form.
    pub(crate) fn needs_normal_path(&self) -> bool {
        self.path.as_ref().is_some_and(PathMatch::needs_normal_path)
    }

    /// Whether every request matches.
    pub fn is_any(&self) -> bool {
        let is_any_path = |path: &PathMatch| match path {
            PathMatch::Prefix(prefix) => prefix.as_str().is_empty(),
            PathMatch::Regex(pattern) => pattern.as_str() == ".*",
            PathMatch::Exact(_) | PathMatch::Rpc(_) => false,
        };
        self.path.as_ref().is_none_or(is_any_path)
            && self.methods.is_empty()
            && self.headers.is_empty()
            && self.query.is_empty()
    }

    /// Number of its regular expressions, each of which a sidecar compiles.
    pub fn expressions(&self) -> usize {
        let path = self.path.as_ref().map_or(0, |path| match path {
            PathMatch::Regex(_) => 1,
            PathMatch::Rpc(rpc) => rpc.expressions(),
            PathMatch::Exact(_) | PathMatch::Prefix(_) => 0,
        });
        let headers = self.headers.iter().filter(|header| header.value.is_regex()).count();
        path + headers + self.query.iter().filter(|parameter| parameter.value.is_regex()).count()
    }

    /// The same match without compiled programs, to be kept where no requests are matched. Matching with it compiles each
    /// expression again.
    #[must_use]
    pub fn without_programs(self) -> Self {
        let Self { path, methods, headers, query } = self;
        let path = path.map(|path| match path {
            PathMatch::Regex(pattern) => PathMatch::Regex(pattern.without_program()),
            PathMatch::Rpc(rpc) => PathMatch::Rpc(rpc.without_programs()),
            PathMatch::Exact(_) | PathMatch::Prefix(_) => path,
        });
        let header = |header: HeaderMatch| HeaderMatch { value: header.value.without_program(), ..header };
        let parameter =
            |parameter: QueryMatch| QueryMatch { value: parameter.value.without_program(), ..parameter };
        Self {
            path,
            methods,
            headers: headers.into_iter().map(header).collect(),
            query: query.into_iter().map(parameter).collect(),
        }
    }
}

impl PathMatch {
    /// Parses a path that must be met exactly.
    pub fn exact(text: &str) -> Result<Self, RouteError> {
        RoutePath::parse(text, "path.value").map(Self::Exact)
    }

    /// Parses a prefix; a slash at its end does not count.
    pub fn prefix(text: &str) -> Result<Self, RouteError> {
        RoutePath::parse(text, "path.value").map(|path| Self::Prefix(path.as_prefix()))
    }

    /// Compiles a regular expression for the normal form of paths, which is ASCII.
    pub fn regex(text: &str) -> Result<Self, RouteError> {
        let error = |problem| RouteError::new("path.value", text, problem);
        if let Some(character) = text.chars().find(|character| !character.is_ascii()) {
            return Err(error(Problem::NotAscii(character)));
        }
        Pattern::parse(text, MAX_PATH).map(Self::Regex).map_err(error)
    }

    /// Whether a path in normal form matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == path,
            Self::Prefix(prefix) => {
                path.strip_prefix(prefix.as_bytes()).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
                    && !path.is_empty()
            }
            Self::Regex(pattern) => pattern.matches(path),
            Self::Rpc(rpc) => rpc.matches(path),
        }
    }

    /// What every path that matches begins with.
    pub(super) fn beginning(&self) -> Arc<str> {
        match self {
            Self::Exact(path) | Self::Prefix(path) => path.shared(),
            Self::Regex(pattern) => pattern.beginning(),
            Self::Rpc(_) => Arc::default(),
        }
    }

    /// Whether it distinguishes paths, and so needs them in normal form. The prefix `/` does not.
    pub(super) fn needs_normal_path(&self) -> bool {
        !matches!(self, Self::Prefix(prefix) if prefix.as_str().is_empty())
    }
}

impl RoutePath {
    /// Parses a path and normalizes its percent-encoding. `//` and dot segments are refused, as by Gateway API's schema:
    /// their author's intention is unknown.
    pub(super) fn parse(text: &str, field: &str) -> Result<Self, RouteError> {
        let error = |problem| RouteError::new(field, text, problem);
        if text.len() > 3 * MAX_PATH {
            return Err(error(Problem::TooLong(MAX_PATH)));
        }
        if !text.starts_with('/') {
            return Err(error(Problem::NoSlash));
        }
        if text.contains(['?', '#']) {
            return Err(error(Problem::NotAPath));
        }
        let encoded = path::encode(text.as_bytes()).map_err(|problem| error(problem.into()))?;
        let normal = path::normalize(text.as_bytes()).map_err(|problem| error(problem.into()))?;
        let is_normal = encoded == normal && !text.contains('\\');
        let normal = String::from_utf8_lossy(&normal);
        // The same for a path as its author wrote it and in normal form, so that a normal form can be parsed again.
        if normal.len() - 2 * normal.matches('%').count() > MAX_PATH {
            return Err(error(Problem::TooLong(MAX_PATH)));
        }
        if is_normal { Ok(Self(normal.into())) } else { Err(error(Problem::NotNormal(normal.into()))) }
    }

    /// The same path as a prefix.
    pub(super) fn as_prefix(&self) -> Self {
        Self(self.0.strip_suffix('/').unwrap_or(&self.0).into())
    }

    /// The path, without a slash at its end if it is a prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, shared.
    pub(super) fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl HeaderMatch {
    /// A header with exactly this value.
    pub fn exact(name: &str, value: &str) -> Result<Self, RouteError> {
        let value = FieldValue::parse(value)?;
        Ok(Self { name: FieldName::parse(name)?, value: ValueMatch::Exact(value.as_str().into()) })
    }

    /// A header whose value matches a regular expression in full.
    pub fn regex(name: &str, pattern: &str) -> Result<Self, RouteError> {
        Ok(Self { name: FieldName::parse(name)?, value: ValueMatch::regex(pattern, MAX_HEADER)? })
    }

    /// The header's name.
    pub fn name(&self) -> &FieldName {
        &self.name
    }

    /// The condition on its value.
    pub fn value(&self) -> &ValueMatch {
        &self.value
    }

    fn matches(&self, request: &impl RequestView) -> bool {
        match self.name.as_str() {
            "host" => {
                let authority = request.authority();
                self.value.matches_lines(iter::once(authority).filter(|text| !text.is_empty()), b",")
            }
            // HTTP/2 sends a cookie in several fields (RFC 9113 §8.2.3).
            "cookie" => self.value.matches_lines(request.field("cookie"), b"; "),
            name => self.value.matches_lines(request.field(name), b","),
        }
    }
}

impl QueryMatch {
    /// A query parameter with exactly this value.
    pub fn exact(name: &str, value: &str) -> Result<Self, RouteError> {
        if value.len() > MAX_PATH {
            return Err(RouteError::new("value", value, Problem::TooLong(MAX_PATH)));
        }
        Ok(Self { name: Self::parse_name(name)?, value: ValueMatch::Exact(value.into()) })
    }

    /// A query parameter whose value matches a regular expression in full.
    pub fn regex(name: &str, pattern: &str) -> Result<Self, RouteError> {
        Ok(Self { name: Self::parse_name(name)?, value: ValueMatch::regex(pattern, MAX_PATH)? })
    }

    /// The parameter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The condition on its value.
    pub fn value(&self) -> &ValueMatch {
        &self.value
    }

    fn parse_name(name: &str) -> Result<Arc<str>, RouteError> {
        match name.len() {
            0 => Err(RouteError::new("name", name, Problem::Empty)),
            1..=MAX_PARAMETER => Ok(name.into()),
            _ => Err(RouteError::new("name", name, Problem::TooLong(MAX_PARAMETER))),
        }
    }

    fn matches(&self, query: Option<&[u8]>) -> bool {
        let parameters = query.unwrap_or_default().split(|byte| *byte == b'&');
        let mut values = parameters.filter_map(|parameter| {
            let rest = parameter.strip_prefix(self.name.as_bytes())?;
            if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"=") }
        });
        values.next().is_some_and(|value| self.value.matches(value))
    }
}

impl ValueMatch {
    fn is_regex(&self) -> bool {
        matches!(self, Self::Regex(_))
    }

    fn without_program(self) -> Self {
        match self {
            Self::Regex(pattern) => Self::Regex(pattern.without_program()),
            Self::Exact(_) => self,
        }
    }

    fn regex(pattern: &str, max_len: usize) -> Result<Self, RouteError> {
        Pattern::parse(pattern, max_len)
            .map(Self::Regex)
            .map_err(|problem| RouteError::new("value", pattern, problem))
    }

    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Regex(pattern) => pattern.matches(value),
        }
    }

    /// Whether the joined lines of a field match. Together they are one value (RFC 9110 §5.3): a rule for `a` does not
    /// match if `a` and `b` were sent. Envoy also joins them by a comma without a space.
    fn matches_lines<'a>(&self, mut lines: impl Iterator<Item = &'a [u8]>, separator: &[u8]) -> bool {
        let Some(first) = lines.next() else { return false };
        match self {
            Self::Exact(exact) => {
                let Some(mut rest) = exact.as_bytes().strip_prefix(first) else { return false };
                for line in lines {
                    let after = rest.strip_prefix(separator).and_then(|rest| rest.strip_prefix(line));
                    let Some(after) = after else { return false };
                    rest = after;
                }
                rest.is_empty()
            }
            Self::Regex(pattern) => {
                let mut value = Cow::Borrowed(first);
                for line in lines {
                    let value = value.to_mut();
                    value.extend_from_slice(separator);
                    value.extend_from_slice(line);
                }
                pattern.matches(&value)
            }
        }
    }
}

#[cfg(test)]
mod tests;
