//! Validates a request's head once; policy, logs and the app all use the result.

use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, request};

use crate::http::local_reply::{self, LocalReply};
use crate::http::request::Request;
use crate::http::target::{is_host, is_path};

/// Authority and path of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamTarget {
    /// `:authority`, or `host` of a request converted from HTTP/1; `None` if empty.
    pub(super) authority: Option<Authority>,
    /// Begins with `/`, or is `*`.
    pub(super) path: PathAndQuery,
}

impl StreamTarget {
    /// Validates a head. h2 has already refused what RFC 9113 calls malformed, including connection-specific fields.
    ///
    /// # Errors
    ///
    /// The response to send instead.
    pub(super) fn check(head: &request::Parts, header_count: usize) -> Result<Self, LocalReply> {
        if head.method == Method::CONNECT {
            return Err(local_reply::method_not_allowed());
        }
        // The parts of a split cookie count as one field (RFC 9113 §8.2.3); their bytes count with all others.
        let crumbs = head.headers.get_all(COOKIE).iter().count();
        if head.headers.len() - crumbs.saturating_sub(1) > header_count {
            return Err(local_reply::header_fields_too_large("http2.too_many_headers"));
        }
        let path = head.uri.path_and_query().ok_or(local_reply::bad_request("http2.invalid_path"))?;
        let is_asterisk = path.as_str() == "*" && head.method == Method::OPTIONS;
        if !is_asterisk && !is_path(path.as_str().as_bytes()) {
            return Err(local_reply::bad_request("http2.invalid_path"));
        }
        // h2 has checked that it is a number, but accepts an empty value as zero.
        if head.headers.get_all(CONTENT_LENGTH).iter().any(HeaderValue::is_empty) {
            return Err(local_reply::bad_request("http2.invalid_content_length"));
        }
        Ok(Self { authority: authority(head)?, path: path.clone() })
    }

    /// The request in the form in which it is authorized.
    pub(super) fn request<'h>(&'h self, head: &'h request::Parts) -> Request<'h> {
        let authority = self.authority.as_ref().map_or("", Authority::as_str);
        Request::from_map(
            head.method.as_str().as_bytes(),
            authority.as_bytes(),
            self.path.as_str().as_bytes(),
            &head.headers,
        )
    }
}

/// The single authority of a request: a `host` beside `:authority` must be equal (RFC 9113 §8.3.1). `None` for a target
/// without one, for which HTTP/1 requires an empty `host`; it is required here, too.
fn authority(head: &request::Parts) -> Result<Option<Authority>, LocalReply> {
    let invalid = local_reply::bad_request("http2.invalid_authority");
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(invalid);
    }
    match (head.uri.authority(), host) {
        (Some(authority), host) => {
            let text = authority.as_str().as_bytes();
            let is_same = host.is_none_or(|host| host.eq_ignore_ascii_case(text));
            if is_same && is_host(text) { Ok(Some(authority.clone())) } else { Err(invalid) }
        }
        (None, Some(b"")) => Ok(None),
        (None, Some(host)) if is_host(host) => Authority::try_from(host).map(Some).map_err(|_| invalid),
        (None, _) => Err(invalid),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn check(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<String, u16> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        let target = StreamTarget::check(&head, 4).map_err(|reply| reply.status)?;
        Ok(format!("{} {}", target.authority.as_ref().map_or("-", Authority::as_str), target.path))
    }

    #[test]
    fn the_authority_is_one_whichever_way_it_came() {
        assert_eq!(check("GET", "http://a.example/x?y", &[]).unwrap(), "a.example /x?y");
        assert_eq!(check("GET", "/x", &[("host", "a.example:80")]).unwrap(), "a.example:80 /x");
        assert_eq!(check("GET", "http://a.example/", &[("host", "A.example")]).unwrap(), "a.example /");
        assert_eq!(check("GET", "http://a.example:/", &[]).unwrap(), "a.example: /");
        assert_eq!(check("GET", "/x", &[("host", "a.example:")]).unwrap(), "a.example: /x");
        assert_eq!(check("GET", "/x", &[("host", "")]).unwrap(), "- /x");
    }

    #[test]
    fn conflicting_and_invalid_authorities_are_bad_requests() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("/x", &[]),
            ("http://a.example/", &[("host", "b.example")]),
            ("/x", &[("host", "a"), ("host", "a")]),
            ("/x", &[("host", "a b")]),
            ("http://a.example/", &[("host", "")]),
            ("/x", &[("host", "user@a.example")]),
            ("/x", &[("host", "a.example:x")]),
            ("/x", &[("host", "a.example:99999")]),
            ("http://a.example:x/", &[]),
            ("http://a.example:99999/", &[]),
            ("http://user@a.example/", &[]),
            ("/x", &[("host", "[fe80::1%eth0]")]),
            ("/x", &[("host", "[fe80::1%25eth0]:80")]),
        ];
        for (uri, headers) in cases {
            assert_eq!(check("GET", uri, headers), Err(400), "{uri} {headers:?}");
        }
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        assert_eq!(check("GET", "*", &[("host", "a")]), Err(400));
        assert_eq!(check("OPTIONS", "*", &[("host", "a")]).unwrap(), "a *");
        assert_eq!(check("CONNECT", "a.example:443", &[]), Err(405));
    }

    #[test]
    fn an_empty_content_length_is_refused() {
        assert_eq!(check("POST", "/", &[("host", "a"), ("content-length", "")]), Err(400));
        assert!(check("POST", "/", &[("host", "a"), ("content-length", "5")]).is_ok());
    }

    #[test]
    fn header_fields_are_counted() {
        let fields = [("host", "a"), ("b", "1"), ("b", "2"), ("b", "3"), ("b", "4")];
        assert!(check("GET", "/", &fields[..4]).is_ok());
        assert_eq!(check("GET", "/", &fields), Err(431));
        let crumbs =
            [("host", "a"), ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3"), ("cookie", "d=4")];
        assert!(check("GET", "/", &crumbs).is_ok());
    }
}
