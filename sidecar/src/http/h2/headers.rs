//! What the app gets of a client's header fields, and a client of the app's.

use std::net::IpAddr;

use http::header::{CONNECTION, COOKIE, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Uri, Version, request};

use super::request::Target;
use crate::session::ConnectionInfo;

pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Prefixes of names that only the mesh may set.
const OURS: &str = "x-tidegate-";
/// Names that begin so are spelled one way only.
const FORWARDED: &str = "x-forwarded-";

/// Takes away what only the mesh may say, and says it.
pub(super) fn prepare(headers: &mut HeaderMap, info: &ConnectionInfo) {
    let spoofed: Vec<HeaderName> = headers.keys().filter(|name| is_reserved(name.as_str())).cloned().collect();
    for name in spoofed {
        headers.remove(name);
    }
    if let Some(client) = &info.client {
        let value = format!("By={};{}", info.identity, client.forwarded);
        // Both parts are escaped where they are made; a value that still is none is not sent at all.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(CLIENT_CERTIFICATE, value);
        }
    }
    append_peer(headers, info.peer.ip());
    let scheme = if info.tls { "https" } else { "http" };
    let is_scheme = |value: &HeaderValue| matches!(value.as_bytes(), b"http" | b"https");
    if !only(headers, &FORWARDED_PROTO).is_some_and(is_scheme) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if !only(headers, &REQUEST_ID).is_some_and(is_request_id) {
        headers.insert(REQUEST_ID, new_request_id());
    }
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

/// Whether a client's field of this name may not reach the app: names of ours, and names that an app which reads
/// `_` and `.` as `-` would take for a forwarded one.
fn is_reserved(name: &str) -> bool {
    let has_prefix = |prefix: &str| {
        let plain = name.bytes().map(|byte| if matches!(byte, b'_' | b'.') { b'-' } else { byte });
        name.len() >= prefix.len() && plain.zip(prefix.bytes()).all(|(byte, expected)| byte == expected)
    };
    name == CLIENT_CERTIFICATE.as_str()
        || has_prefix(OURS)
        || (has_prefix(FORWARDED) && name.contains(['_', '.']))
}

fn append_peer(headers: &mut HeaderMap, peer: IpAddr) {
    let mut line = Vec::new();
    for value in headers.get_all(FORWARDED_FOR) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::try_from(line) {
        headers.insert(FORWARDED_FOR, value);
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

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn is_request_id(value: &HeaderValue) -> bool {
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// A version 4 UUID, RFC 9562 §5.4.
fn new_request_id() -> HeaderValue {
    let random = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{random:032x}");
    let id = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
}
