//! The request as policy, header rules and logs see it: one view for both codecs.
//!
//! It borrows from the parsed head, from which the app's request is written too: a message is never authorized by one
//! reading and forwarded by another.
//!
//! The path is exactly what the client sent. No policy looks at paths, so none is normalised. A rule on paths needs a
//! normal form first, and the app must then receive that form.

use ::http::HeaderMap;

use super::headers::{FORWARDED_FOR, REQUEST_ID};
use crate::telemetry::Record;

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

    /// Visits the name and value of each field, in order.
    pub fn for_each_field(&self, mut visit: impl FnMut(&'a [u8], &'a [u8])) {
        match self.fields {
            Fields::Lines(lines) => lines.iter().for_each(|line| visit(line.name.as_bytes(), line.value)),
            Fields::Map(map) => {
                map.iter().for_each(|(name, value)| visit(name.as_str().as_bytes(), value.as_bytes()));
            }
        }
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
    }
}
