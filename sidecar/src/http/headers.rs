//! Header rules, for both codecs.
//!
//! Clients must not be able to forge what the app attributes to the mesh:
//! 1. `x-forwarded-client-cert` and `x-tidegate-*` are always dropped, and so is every look-alike of these and of
//!    `x-forwarded-*`: a name with another character, neither letter nor digit, in place of `-`. App servers and CGI
//!    (RFC 3875 §4.1.18) treat all of them as the same header.
//! 2. `x-forwarded-client-cert` is set if and only if the connection has a verified client certificate:
//!    `By=<our identity>;` and the certificate's element ([`crate::connection_info::VerifiedCertificate::forwarded`]).
//! 3. `x-forwarded-for`: the peer's address is appended to the client's values, in one line.
//! 4. `x-forwarded-proto` is the protocol of the first client, which an ingress controller knows better than we do:
//!    `http`, `https`, `ws` or `wss`, in any case, converted to lower case. Of a list, in one line or several, the
//!    first item counts. Otherwise it is the connection's own scheme; a mesh peer's is `http`, because the TLS between
//!    sidecars is not the client's. `x-forwarded-host` and `-port` are forwarded.
//! 5. `x-request-id` is kept if it is a single value of 1 to 128 visible ASCII characters; otherwise it becomes a
//!    random UUID (version 4).
//! 6. Hop-by-hop fields (RFC 9110 §7.6.1) are removed: `connection`, `keep-alive`, `proxy-connection`,
//!    `transfer-encoding`, `upgrade`, `te` except `trailers`, and fields that `connection` names, unless the message or
//!    the mesh depends on them ([`is_protected`]). The client's `connection` field is never forwarded, so it cannot
//!    make the next hop remove our fields either.
//! 7. If requests are traced, `traceparent` and B3's fields name the sidecar's span in place of the sender's
//!    ([`crate::telemetry::trace`]); otherwise they are forwarded unchanged.
//!
//! Rules 1 to 4 are for clients of the app. For the app's own requests to others only rules 5 to 7 apply: what they say
//! of the app is for the receiver's sidecar to judge. All other fields are forwarded unchanged and in order.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use tidegate_core::route::filter::HeaderEdits;

use crate::connection_info::{ConnectionInfo, ServedConnection};
use crate::telemetry::trace::RequestTrace;

/// Header with the client's certificate.
pub(super) const FORWARDED_CLIENT_CERT: &str = "x-forwarded-client-cert";
/// Header with the addresses that the request came through.
pub(super) const FORWARDED_FOR: &str = "x-forwarded-for";
/// Header with the scheme that the first client used.
pub(super) const FORWARDED_PROTO: &str = "x-forwarded-proto";
/// Header with the request's ID.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// A field that a header rule or a codec treats specially.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Forwarded unchanged, unless `connection` names it.
    Other,
    /// Dropped from every client: rule 1.
    Forbidden,
    /// `connection`.
    Connection,
    /// `keep-alive` or `proxy-connection`.
    HopByHop,
    /// `te`.
    Te,
    /// `transfer-encoding`.
    TransferEncoding,
    /// `content-length`.
    ContentLength,
    /// `upgrade`.
    Upgrade,
    /// `host`.
    Host,
    /// `expect`.
    Expect,
    /// `user-agent`.
    UserAgent,
    /// `x-forwarded-for`.
    ForwardedFor,
    /// `x-forwarded-proto`.
    ForwardedProto,
    /// `x-request-id`.
    RequestId,
}

/// The ID of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestId<'a> {
    /// The client's.
    Kept(&'a [u8]),
    /// A new UUID.
    New([u8; 36]),
}

/// Classifies a field name, in any case.
pub(super) fn classify(name: &[u8]) -> Field {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match name.len() {
        2 if is("te") => Field::Te,
        4 if is("host") => Field::Host,
        6 if is("expect") => Field::Expect,
        7 if is("upgrade") => Field::Upgrade,
        10 if is("connection") => Field::Connection,
        10 if is("keep-alive") => Field::HopByHop,
        10 if is("user-agent") => Field::UserAgent,
        12 if is(REQUEST_ID) => Field::RequestId,
        14 if is("content-length") => Field::ContentLength,
        15 if is(FORWARDED_FOR) => Field::ForwardedFor,
        16 if is("proxy-connection") => Field::HopByHop,
        17 if is("transfer-encoding") => Field::TransferEncoding,
        17 if is(FORWARDED_PROTO) => Field::ForwardedProto,
        _ if is_forbidden(name) => Field::Forbidden,
        _ => Field::Other,
    }
}

/// Whether a client's field of this name is dropped whatever its value: rule 1.
pub(super) fn is_forbidden(name: &[u8]) -> bool {
    if !matches!(name.first(), Some(b'x' | b'X')) {
        return false;
    }
    let starts_with = |prefix: &str| {
        name.len() >= prefix.len()
            && name.iter().zip(prefix.bytes()).all(|(byte, expected)| match byte {
                byte if byte.is_ascii_alphanumeric() => byte.to_ascii_lowercase() == expected,
                _ => expected == b'-',
            })
    };
    if starts_with("x-tidegate-") {
        return true;
    }
    let is_look_alike = || name.iter().any(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
    starts_with("x-forwarded")
        && (is_look_alike() || name.eq_ignore_ascii_case(FORWARDED_CLIENT_CERT.as_bytes()))
}

/// Whether `connection` must not remove this field, because codec, mesh or the message's meaning depend on it.
pub(super) fn is_protected(name: &[u8]) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    classify(name) != Field::Other
        || name.get(..12).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"x-forwarded-"))
        || is("content-type")
        || is("content-encoding")
        || is("trailer")
        || is("forwarded")
}

/// Whether a body of this `content-type` is sent as events happen, and so may be silent for long: an event stream, or
/// any form of gRPC.
pub(super) fn is_stream(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next().unwrap_or_default();
    let starts_with =
        |prefix: &[u8]| essence.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    essence.eq_ignore_ascii_case(b"text/event-stream") || starts_with(b"application/grpc")
}

/// Whether a body of this `content-type` is gRPC, which needs HTTP/2 end to end. gRPC-Web does not.
pub(super) fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether a comma-separated list contains this token, in any case.
pub(super) fn has_token(list: &[u8], token: &str) -> bool {
    tokens(list).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}

/// The items of a comma-separated list without surrounding whitespace; empty ones are skipped.
pub(super) fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

/// The value of `x-forwarded-proto`: rule 4.
pub(super) fn forwarded_proto<'a>(sent: impl Iterator<Item = &'a [u8]>, is_https: bool) -> &'static str {
    let first = sent.flat_map(tokens).next().unwrap_or_default();
    let known = ["https", "http", "wss", "ws"].into_iter();
    let kept = known.into_iter().find(|scheme| first.eq_ignore_ascii_case(scheme.as_bytes()));
    kept.unwrap_or(if is_https { "https" } else { "http" })
}

/// The request's ID: rule 5.
pub(super) fn request_id<'a>(mut sent: impl Iterator<Item = &'a [u8]>) -> RequestId<'a> {
    match (sent.next(), sent.next()) {
        (Some(id), None) if matches!(id.len(), 1..=128) && id.iter().all(u8::is_ascii_graphic) => {
            RequestId::Kept(id)
        }
        _ => RequestId::New(uuid()),
    }
}

/// Writes an address for a header; IPv4-mapped IPv6 addresses are written as IPv4.
pub(super) fn write_address(out: &mut impl Write, address: IpAddr) {
    // Only a full buffer can fail, and the caller's has room for any address.
    let _ = match address.to_canonical() {
        IpAddr::V4(address) => write_ipv4(out, address),
        IpAddr::V6(address) => write!(out, "{address}"),
    };
}

/// What `Display` writes, without its 1,000 instructions: each request has an address.
fn write_ipv4(out: &mut impl Write, address: Ipv4Addr) -> io::Result<()> {
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            out.write_all(b".")?;
        }
        out.write_all(itoa::Buffer::new().format(octet).as_bytes())?;
    }
    Ok(())
}

/// Edits the fields of a message of HTTP/2 as the rule of a route says, before any of the rules above.
pub(super) fn edit(fields: &mut HeaderMap, edits: &HeaderEdits) {
    for name in edits.dropped() {
        fields.remove(name.as_str());
    }
    for (name, value) in edits.appended() {
        // Names and values were checked to be what HTTP allows.
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()))
        {
            fields.append(name, value);
        }
    }
}

/// Applies the rules to the fields of an HTTP/2 request. The codec has already refused hop-by-hop fields.
pub(super) fn apply(fields: &mut HeaderMap, connection: &ServedConnection, trace: Option<&RequestTrace>) {
    if let Some(trace) = trace {
        set_trace(fields, trace);
    }
    drop_hop_by_hop(fields, matches!(connection, ServedConnection::Inbound(_)));
    let id = match request_id(fields.get_all(REQUEST_ID).iter().map(HeaderValue::as_bytes)) {
        RequestId::Kept(id) => HeaderValue::from_bytes(id),
        RequestId::New(id) => HeaderValue::from_bytes(&id),
    };
    if let ServedConnection::Inbound(info) = connection {
        set_forwarded(fields, info);
    }
    if let Ok(id) = id {
        fields.insert(HeaderName::from_static(REQUEST_ID), id);
    }
}

/// Rule 6, and with `drops_forbidden` rule 1.
fn drop_hop_by_hop(fields: &mut HeaderMap, drops_forbidden: bool) {
    let dropped: Vec<HeaderName> = fields
        .keys()
        .filter(|name| match classify(name.as_str().as_bytes()) {
            Field::Forbidden => drops_forbidden,
            Field::Connection | Field::HopByHop | Field::TransferEncoding | Field::Upgrade | Field::Host => {
                true
            }
            _ => false,
        })
        .cloned()
        .collect();
    for name in dropped {
        fields.remove(name);
    }
    if fields.contains_key(header::TE) {
        let keeps = fields.get_all(header::TE).iter().any(|value| has_token(value.as_bytes(), "trailers"));
        if keeps {
            fields.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            fields.remove(header::TE);
        }
    }
}

/// Rule 7.
#[cold]
fn set_trace(fields: &mut HeaderMap, trace: &RequestTrace) {
    let replaced: Vec<HeaderName> =
        fields.keys().filter(|name| trace.replaces(name.as_str().as_bytes())).cloned().collect();
    for name in replaced {
        fields.remove(name);
    }
    trace.for_each_field(|name, value| {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            fields.insert(HeaderName::from_static(name), value);
        }
    });
}

/// Rules 2 to 4.
fn set_forwarded(fields: &mut HeaderMap, info: &ConnectionInfo) {
    let values = |name: &'static str| fields.get_all(name).iter().map(HeaderValue::as_bytes);
    let proto = HeaderValue::from_static(forwarded_proto(values(FORWARDED_PROTO), info.is_https()));
    let mut addresses = Vec::new();
    for sent in values(FORWARDED_FOR).filter(|sent| !sent.is_empty()) {
        addresses.extend_from_slice(sent);
        addresses.extend_from_slice(b", ");
    }
    write_address(&mut addresses, info.peer.ip());

    fields.insert(HeaderName::from_static(FORWARDED_PROTO), proto);
    if let Ok(addresses) = HeaderValue::from_bytes(&addresses) {
        fields.insert(HeaderName::from_static(FORWARDED_FOR), addresses);
    }
    if let Some(client) = &info.client {
        let value = format!("By={};{}", info.identity, client.forwarded);
        if let Ok(value) = HeaderValue::try_from(value) {
            fields.insert(HeaderName::from_static(FORWARDED_CLIENT_CERT), value);
        }
    }
}

/// A random UUID, version 4 (RFC 9562 §5.4).
fn uuid() -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut random: [u8; 16] = rand::random();
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (at, byte) in random.into_iter().enumerate() {
        place += usize::from(matches!(at, 4 | 6 | 8 | 10));
        text[place] = HEX[usize::from(byte >> 4)];
        text[place + 1] = HEX[usize::from(byte & 0x0f)];
        place += 2;
    }
    text
}

#[cfg(test)]
mod tests;
