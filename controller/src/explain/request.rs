//! A request, decided about as a sidecar would.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use tidegate_core::path::{self, PathError};
use tidegate_core::policy::{Decision, RateLimits, RequestRules};
use tidegate_core::route::filter::{Filter, LocalRateLimit, Rewrite};
use tidegate_core::route::{RequestView, Selected, WeightedBackend};

/// A request over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// Its method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names, in lower case, and values of header fields; `host` is the authority.
    pub headers: Vec<(String, String)>,
}

impl HttpRequest {
    /// A header field written as `<name>: <value>`.
    pub fn header(text: &str) -> Option<(String, String)> {
        let (name, value) = text.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    }

    /// The rate limit of the request. The error is that sidecars answer it with 400.
    pub(crate) fn limit<'l>(&self, limits: &'l RateLimits) -> Result<Option<&'l LocalRateLimit>, PathError> {
        let place = limits.select(&self.normal(limits.needs_normal_path())?);
        Ok(place.and_then(|place| limits.of_requests().nth(place)))
    }

    /// What a rate limit service gets of the request, or nothing if none is called. The error is that sidecars answer the request
    /// with 400.
    pub(crate) fn global(&self, limits: &RateLimits, source: IpAddr) -> Result<Option<String>, PathError> {
        let Some(limit) = &limits.global.requests else { return Ok(None) };
        let request = self.normal(limits.needs_normal_path())?;
        let (path, descriptors) = limit.select(&request);
        let described = descriptors.iter().filter_map(|descriptor| descriptor.describe(&request, source));
        let pair = |(key, value): (&str, Cow<'_, [u8]>)| format!("{key}={}", String::from_utf8_lossy(&value));
        let described = described.map(|pairs| pairs.into_iter().map(pair).collect::<Vec<_>>().join(","));
        let described: Vec<_> = described.collect();
        let of = path.map(|path| format!(" for {path:?}")).unwrap_or_default();
        let called = || format!("{of}: {}; it gets {}", limit.service, described.join(" and "));
        Ok((!described.is_empty()).then(called))
    }

    /// The decision about the request. The error is that sidecars answer it with 400.
    pub(crate) fn decide(&self, rules: &RequestRules) -> Result<Decision, PathError> {
        Ok(match rules.select(&self.normal(rules.needs_normal_path())?) {
            Ok(granting) => rules.allowed(granting.rule),
            Err(closest) => rules.refused(closest),
        })
    }

    /// The request as rules see it. The error is that sidecars answer it with 400.
    pub(crate) fn normal(&self, needs_normal_path: bool) -> Result<ExplainedRequest<'_>, PathError> {
        let target = self.path.as_bytes();
        let target = if needs_normal_path && target != b"*" {
            path::normalize(target)?
        } else {
            Cow::Borrowed(target)
        };
        Ok(ExplainedRequest { request: self, target })
    }
}

impl Default for HttpRequest {
    fn default() -> Self {
        Self { method: "GET".to_owned(), path: "/".to_owned(), headers: Vec::new() }
    }
}

impl fmt::Display for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// A request with its path in normal form.
pub(crate) struct ExplainedRequest<'r> {
    request: &'r HttpRequest,
    target: Cow<'r, [u8]>,
}

impl ExplainedRequest<'_> {
    /// The request that a share of a rule gets: with the edits of the rule and of the share, and in normal form.
    pub(super) fn forwarded(&self, found: &Selected<'_>, share: &WeightedBackend) -> HttpRequest {
        let (edits, _) = found.rule.header_edits(Some(share));
        let rewrites = || found.rule.filters.iter().chain(&share.filters).filter_map(rewrite);
        let mut path = Cow::Borrowed(self.path());
        for edit in rewrites().filter_map(Rewrite::path) {
            path = Cow::Owned(edit.apply(&path, found.matching).into_owned());
        }
        let query = self.query().map(|query| format!("?{}", String::from_utf8_lossy(query)));
        let host = rewrites().filter_map(Rewrite::hostname).next_back();
        let kept = |(name, _): &&(String, String)| {
            !edits.drops(name.as_bytes()) && (host.is_none() || name != "host")
        };
        let appended =
            edits.appended().map(|(name, value)| (name.as_str().to_owned(), value.as_str().to_owned()));
        let host = host.map(|host| ("host".to_owned(), host.to_owned()));
        HttpRequest {
            method: self.request.method.clone(),
            path: format!("{}{}", String::from_utf8_lossy(&path), query.unwrap_or_default()),
            headers: self.request.headers.iter().filter(kept).cloned().chain(host).chain(appended).collect(),
        }
    }
}

/// The rewrite that a filter is.
fn rewrite(filter: &Filter) -> Option<&Rewrite> {
    match filter {
        Filter::Rewrite(rewrite) => Some(rewrite),
        _ => None,
    }
}

impl RequestView for ExplainedRequest<'_> {
    fn method(&self) -> &[u8] {
        self.request.method.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.field("host").next().unwrap_or_default()
    }

    fn path(&self) -> &[u8] {
        path::split_query(&self.target).0
    }

    fn query(&self) -> Option<&[u8]> {
        path::split_query(&self.target).1
    }

    fn field<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.request.headers.iter().filter(move |(known, _)| known == name);
        fields.map(|(_, value)| value.as_bytes())
    }
}
