//! The request as policy, header rules and logs see it: one view for both codecs.
//!
//! It borrows from the parsed head, from which the app's request is written too: a message is never authorized by one
//! reading and forwarded by another.
//!
//! The path is exactly what the client sent. Where rules distinguish paths, they see its normal form ([`NormalRequest`]),
//! and the app receives that form.

use std::borrow::Cow;

use ::http::HeaderMap;
use tidegate_core::path::{self, PathError};
use tidegate_core::route::RequestView;

use super::headers::{FORWARDED_FOR, REQUEST_ID};
use crate::telemetry::trace::{ReceivedTrace, RequestTrace, Sampling};
use crate::telemetry::{Record, Telemetry};

/// A supported HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// A request's head.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Method token.
    pub method: &'a [u8],
    /// Host and port that the request is for; empty if an HTTP/1.0 client sent none.
    pub authority: &'a [u8],
    /// Path and query as the client sent them; `*` for `OPTIONS *`.
    pub path: &'a [u8],
    /// Version that the client speaks.
    pub version: Version,
    fields: Fields<'a>,
}

/// A request as rules see it.
pub(super) struct NormalRequest<'r, 'a> {
    request: &'r Request<'a>,
    /// Path and query; the path is in normal form if that was needed.
    target: Cow<'a, [u8]>,
}

/// Header fields of either codec.
#[derive(Clone, Copy)]
enum Fields<'a> {
    Lines(&'a [httparse::Header<'a>]),
    Map(&'a HeaderMap),
}

impl<'a> Request<'a> {
    /// The view of an HTTP/1 head.
    pub(crate) fn from_lines(
        method: &'a [u8],
        authority: &'a [u8],
        path: &'a [u8],
        version: Version,
        lines: &'a [httparse::Header<'a>],
    ) -> Self {
        Self { method, authority, path, version, fields: Fields::Lines(lines) }
    }

    /// The view of an HTTP/2 head.
    pub(crate) fn from_map(
        method: &'a [u8],
        authority: &'a [u8],
        path: &'a [u8],
        fields: &'a HeaderMap,
    ) -> Self {
        Self { method, authority, path, version: Version::Http2, fields: Fields::Map(fields) }
    }

    /// The first value of this field, if present. `name` must be in lower case.
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        match self.fields {
            Fields::Lines(lines) => {
                lines.iter().find(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value)
            }
            Fields::Map(map) => map.get(name).map(::http::HeaderValue::as_bytes),
        }
    }

    /// The request's part of its access log record.
    pub(super) fn record(&self) -> Record<'a> {
        Record {
            method: self.method,
            path: self.path,
            protocol: self.version.as_str(),
            authority: self.authority,
            user_agent: self.field("user-agent").unwrap_or_default(),
            forwarded_for: self.field(FORWARDED_FOR).unwrap_or_default(),
            request_id: self.field(REQUEST_ID).unwrap_or_default(),
            ..Record::default()
        }
    }

    /// The request's span, if requests are traced.
    #[inline]
    pub(super) fn trace(&self, telemetry: &Telemetry) -> Option<Box<RequestTrace>> {
        telemetry.sampling().map(|sampling| self.begin_trace(sampling))
    }

    #[cold]
    fn begin_trace(&self, sampling: Sampling) -> Box<RequestTrace> {
        let mut received = ReceivedTrace::default();
        self.for_each_field(|name, value| received.see(name, value));
        Box::new(received.begin(sampling))
    }

    /// Visits the name and value of each field, in order.
    pub(crate) fn for_each_field(&self, mut visit: impl FnMut(&'a [u8], &'a [u8])) {
        match self.fields {
            Fields::Lines(lines) => lines.iter().for_each(|line| visit(line.name.as_bytes(), line.value)),
            Fields::Map(map) => {
                map.iter().for_each(|(name, value)| visit(name.as_str().as_bytes(), value.as_bytes()));
            }
        }
    }
}

impl<'r, 'a> NormalRequest<'r, 'a> {
    /// The view for rules that need the path in normal form, or do not. The error means 400.
    pub(super) fn new(request: &'r Request<'a>, needs_normal_path: bool) -> Result<Self, PathError> {
        let target = if needs_normal_path && request.path != b"*" {
            path::normalize(request.path)?
        } else {
            Cow::Borrowed(request.path)
        };
        Ok(Self { request, target })
    }

    /// Path and query in normal form, if the client sent another form.
    pub(super) fn into_other_path(self) -> Option<Box<[u8]>> {
        match self.target {
            Cow::Borrowed(_) => None,
            Cow::Owned(target) => Some(target.into()),
        }
    }
}

impl RequestView for NormalRequest<'_, '_> {
    fn method(&self) -> &[u8] {
        self.request.method
    }

    fn authority(&self) -> &[u8] {
        self.request.authority
    }

    fn path(&self) -> &[u8] {
        path::split_query(&self.target).0
    }

    fn query(&self) -> Option<&[u8]> {
        path::split_query(&self.target).1
    }

    fn field<'f>(&'f self, name: &'f str) -> impl Iterator<Item = &'f [u8]> {
        let (lines, map) = match self.request.fields {
            Fields::Lines(lines) => (lines, None),
            Fields::Map(map) => (&[][..], Some(map)),
        };
        let lines =
            lines.iter().filter(move |line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value);
        let values = map.into_iter().flat_map(move |map| map.get_all(name).iter());
        lines.chain(values.map(::http::HeaderValue::as_bytes))
    }
}

impl Version {
    /// The version as logs spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_codecs_show_the_same_view() {
        let lines = [
            httparse::Header { name: "Host", value: b"a.example" },
            httparse::Header { name: "User-Agent", value: b"curl" },
        ];
        let h1 = Request::from_lines(b"GET", b"a.example", b"/x?y", Version::Http11, &lines);
        let fields =
            HeaderMap::from_iter([(::http::header::USER_AGENT, ::http::HeaderValue::from_static("curl"))]);
        let h2 = Request::from_map(b"GET", b"a.example", b"/x?y", &fields);
        assert_eq!((h1.method, h1.authority, h1.path), (h2.method, h2.authority, h2.path));
        assert_eq!(h1.field("user-agent"), h2.field("user-agent"));
        let mut count = 0;
        h1.for_each_field(|_, _| count += 1);
        assert_eq!(count, 2);
        for request in [&h1, &h2] {
            let view = NormalRequest::new(request, true).unwrap();
            assert_eq!((view.path(), view.query()), (&b"/x"[..], Some(&b"y"[..])));
            assert_eq!(view.field("user-agent").collect::<Vec<_>>(), [b"curl"]);
            assert!(view.field("accept").next().is_none() && view.into_other_path().is_none());
        }
    }

    #[test]
    fn a_path_is_normalized_only_where_rules_need_it() {
        let request = |path| Request::from_lines(b"GET", b"a", path, Version::Http11, &[]);
        let other = |path, needs| {
            let request = request(path);
            NormalRequest::new(&request, needs).map(NormalRequest::into_other_path)
        };
        assert_eq!(other(b"/a/%2e%2e//b?c", true).unwrap().as_deref(), Some(&b"/b?c"[..]));
        assert_eq!(other(b"/a/%2e%2e//b?c", false), Ok(None));
        assert_eq!(other(b"*", true), Ok(None));
        assert!(other(b"/a/..;/b", true).is_err());
    }
}
