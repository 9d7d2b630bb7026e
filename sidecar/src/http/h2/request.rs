//! A request's head, checked once: what the policy judges, the log shows and the app gets is this.

use http::header::{CONTENT_TYPE, COOKIE, HOST, HeaderMap};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, request};

use crate::http::local_reply::{self, LocalReply};

/// Whom a request is for, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `:authority`, or `host` of a request that was HTTP/1 once.
    pub(super) authority: Authority,
    /// Begins with `/`, or is `*`.
    pub(super) path: PathAndQuery,
}

impl Target {
    /// Checks a head. h2 itself has refused what RFC 9113 calls malformed, connection-specific fields among it.
    pub(super) fn check(head: &request::Parts, header_count: usize) -> Result<Self, LocalReply> {
        if head.method == Method::CONNECT {
            return Err(local_reply::method_not_allowed());
        }
        // Crumbs of one cookie field count once (RFC 9113 §8.2.3); their bytes are bounded with all others.
        let crumbs = head.headers.get_all(COOKIE).iter().count();
        if head.headers.len() - crumbs.saturating_sub(1) > header_count {
            return Err(local_reply::header_fields_too_large("http2.too_many_headers"));
        }
        let path = head.uri.path_and_query().ok_or(local_reply::bad_request("http2.invalid_path"))?;
        let is_path =
            path.as_str().starts_with('/') || (path.as_str() == "*" && head.method == Method::OPTIONS);
        if !is_path {
            return Err(local_reply::bad_request("http2.invalid_path"));
        }
        Ok(Self { authority: authority(head)?, path: path.clone() })
    }
}

/// Whether the body is gRPC's, which needs HTTP/2 all the way; gRPC-Web does not.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// The one authority of a request: a `host` beside `:authority` must say the same (RFC 9113 §8.3.1).
fn authority(head: &request::Parts) -> Result<Authority, LocalReply> {
    let invalid = Err(local_reply::bad_request("http2.invalid_authority"));
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return invalid;
    }
    let host = host.map(parse_host).transpose()?;
    let authority = match (head.uri.authority(), host) {
        (Some(authority), Some(host)) if *authority != host => return invalid,
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => host,
        (None, None) => return invalid,
    };
    // User information has no place there, and a zone means something on one machine only (RFC 9110 §4.2.4, RFC
    // 9844 §3).
    if authority.as_str().contains(['@', '%']) || authority.host().is_empty() {
        return invalid;
    }
    Ok(authority)
}

fn parse_host(value: &HeaderValue) -> Result<Authority, LocalReply> {
    Authority::try_from(value.as_bytes()).map_err(|_| local_reply::bad_request("http2.invalid_authority"))
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
        let target = Target::check(&head, 4).map_err(|reply| reply.status)?;
        Ok(format!("{} {}", target.authority, target.path))
    }

    #[test]
    fn the_authority_is_one_whichever_way_it_came() {
        assert_eq!(check("GET", "http://a.example/x?y", &[]).unwrap(), "a.example /x?y");
        assert_eq!(check("GET", "/x", &[("host", "a.example:80")]).unwrap(), "a.example:80 /x");
        assert_eq!(check("GET", "http://a.example/", &[("host", "A.example")]).unwrap(), "a.example /");
    }

    #[test]
    fn authorities_that_disagree_or_are_none_are_bad_requests() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("/x", &[]),
            ("http://a.example/", &[("host", "b.example")]),
            ("/x", &[("host", "a"), ("host", "a")]),
            ("/x", &[("host", "a b")]),
            ("/x", &[("host", "")]),
            ("/x", &[("host", "user@a.example")]),
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
    fn header_fields_are_counted() {
        let fields = [("host", "a"), ("b", "1"), ("b", "2"), ("b", "3"), ("b", "4")];
        assert!(check("GET", "/", &fields[..4]).is_ok());
        assert_eq!(check("GET", "/", &fields), Err(431));
        let crumbs =
            [("host", "a"), ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3"), ("cookie", "d=4")];
        assert!(check("GET", "/", &crumbs).is_ok());
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        let with =
            |value: &'static str| HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
        for value in ["application/grpc", "application/grpc+proto", "application/grpc; charset=x"] {
            assert!(is_grpc(&with(value)), "{value}");
        }
        for value in ["application/json", "application/grpcx", "application/grpc-web+proto", "text/plain"] {
            assert!(!is_grpc(&with(value)), "{value}");
        }
    }
}
