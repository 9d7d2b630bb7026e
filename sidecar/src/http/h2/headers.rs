//! A head in the form that the next hop's HTTP wants. What is believed of it is decided in [`rules`].

use http::header::{CONNECTION, COOKIE, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Uri, Version, request};

use super::request::Target;
use crate::http::headers as rules;
use crate::session::ConnectionInfo;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Applies the rules for what is believed of a client, and makes a cookie that was cut in crumbs whole again.
pub(super) fn prepare(headers: &mut HeaderMap, info: &ConnectionInfo) {
    rules::apply(headers, info);
    join_cookie(headers);
}

/// The request as an app that speaks HTTP/2 gets it.
pub(super) fn into_http2<B>(head: request::Parts, target: Target, body: B) -> Request<B> {
    let mut request = Request::new(body);
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(target.authority);
    uri.path_and_query = Some(target.path);
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = head.method;
    *request.headers_mut() = head.headers;
    request.headers_mut().remove(HOST);
    request
}

/// The request as an app that speaks HTTP/1.1 gets it.
pub(super) fn into_http1<B: http_body::Body>(head: request::Parts, target: Target, body: B) -> Request<B> {
    // hyper takes a GET of unknown length for one without a body; then its bytes would be lost.
    let is_unframed = matches!(head.method, Method::GET | Method::HEAD)
        && !body.is_end_stream()
        && !head.headers.contains_key(http::header::CONTENT_LENGTH);
    let mut request = Request::new(body);
    *request.uri_mut() = Uri::from(target.path);
    *request.method_mut() = head.method;
    *request.headers_mut() = head.headers;
    // What was parsed as an authority is a header value too.
    if let Ok(host) = HeaderValue::try_from(target.authority.as_str()) {
        request.headers_mut().insert(HOST, host);
    }
    if is_unframed {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    request
}

/// Takes away what is between us and an app that speaks HTTP/1.1 only (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// HTTP/2 may cut a cookie in crumbs; every app understands it whole (RFC 9113 §8.2.3).
fn join_cookie(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookie) = HeaderValue::try_from(crumbs.join(b"; ".as_slice())) {
        headers.insert(COOKIE, cookie);
    }
}
