//! Converts heads to the HTTP version of the next hop. Which client fields are trusted is decided in [`rules`].

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Request, Uri, Version, request};
use tidegate_core::route::filter::HeaderEdits;

use super::request::StreamTarget;
use crate::connection_info::ServedConnection;
use crate::http::headers as rules;
use crate::telemetry::trace::RequestTrace;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Applies the edits of the route's rule and the rules for fields that a client sends, joins a split cookie, and merges repeated
/// lengths.
pub(super) fn prepare(
    headers: &mut HeaderMap,
    edits: Option<&HeaderEdits>,
    connection: &ServedConnection,
    trace: Option<&RequestTrace>,
) {
    if let Some(edits) = edits {
        rules::edit(headers, edits);
    }
    rules::apply(headers, connection, trace);
    join_cookie(headers);
    keep_one_length(headers);
}

/// Repeated lengths, which were checked to be equal, are forwarded as one (RFC 9110 §8.6).
pub(super) fn keep_one_length(headers: &mut HeaderMap) {
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(length) = headers.get(CONTENT_LENGTH).cloned()
    {
        headers.insert(CONTENT_LENGTH, length);
    }
}

/// The request for an app that speaks HTTP/2.
pub(super) fn into_http2<B>(head: request::Parts, target: StreamTarget, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.headers_mut() = head.headers;
    set_http2_target(&mut request, target.authority, target.path);
    request
}

/// Sets what a request over HTTP/2 is for. One for no host has an empty `host`, as in HTTP/1, and no `:authority` (RFC 9113
/// §8.3.1): h2 treats it as converted from HTTP/1, and a sidecar refuses it without either.
pub(in crate::http) fn set_http2_target<B>(
    request: &mut Request<B>,
    authority: Option<Authority>,
    path: PathAndQuery,
) {
    request.headers_mut().remove(HOST);
    let Some(authority) = authority else {
        request.headers_mut().insert(HOST, HeaderValue::from_static(""));
        *request.uri_mut() = Uri::from(path);
        *request.version_mut() = Version::HTTP_11;
        return;
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query = Some(path);
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
}

/// The request for an app that speaks HTTP/1.1.
pub(super) fn into_http1<B: http_body::Body>(
    head: request::Parts,
    target: StreamTarget,
    body: B,
) -> Request<B> {
    // hyper assumes that a GET of unknown length has no body, and would drop its bytes.
    let is_unframed = matches!(head.method, Method::GET | Method::HEAD)
        && !body.is_end_stream()
        && !head.headers.contains_key(CONTENT_LENGTH);
    let mut request = Request::new(body);
    *request.uri_mut() = Uri::from(target.path);
    *request.method_mut() = head.method;
    *request.headers_mut() = head.headers;
    // A parsed authority is always a valid header value.
    let authority = target.authority.as_ref().map_or("", Authority::as_str);
    if let Ok(host) = HeaderValue::try_from(authority) {
        request.headers_mut().insert(HOST, host);
    }
    if is_unframed {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    request
}

/// Removes the fields that are hop-by-hop in HTTP/1.1 (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
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

/// HTTP/2 may split a cookie into several fields; apps expect one (RFC 9113 §8.2.3).
fn join_cookie(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // An empty last one would leave a space at the end, which no value may have (RFC 9113 §8.2.1).
    if let Ok(cookie) = HeaderValue::from_bytes(crumbs.join(b"; ".as_slice()).trim_ascii_end()) {
        headers.insert(COOKIE, cookie);
    }
}
