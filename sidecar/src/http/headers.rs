//! The header rules, of both codecs, in one place.
//!
//! What a client sends is not believed where the app would take it for the mesh's word:
//! 1. `x-forwarded-client-cert` and `x-tidegate-*` are always dropped. So is every look-alike of these and of
//!    `x-forwarded-*`: a name with any other character that is no letter or digit in the place of `-`. App servers and
//!    CGI (RFC 3875 §4.1.18) read all of them as the same header.
//! 2. `x-forwarded-client-cert` is set if and only if the connection has a verified client certificate:
//!    `By=<our identity>;` and the certificate's own part ([`crate::connection_info::VerifiedCertificate::forwarded`]).
//! 3. `x-forwarded-for`: the peer's address is appended to what the client sent, in one line.
//! 4. `x-forwarded-proto` says what the first client spoke, which an ingress controller knows better than we: `http`,
//!    `https`, `ws` or `wss`, in any case and then in lower case. Of a list, in one line or in several, the first item
//!    counts. Without one of those it is the connection's own scheme. `x-forwarded-host` and `-port` pass.
//! 5. `x-request-id` is kept if it is exactly one value of 1 to 128 visible ASCII characters, else it is a random
//!    UUID (version 4).
//! 6. Hop-by-hop fields (RFC 9110 §7.6.1) end here: `connection`, `keep-alive`, `proxy-connection`,
//!    `transfer-encoding`, `upgrade`, `te` but for `trailers`, and what `connection` names, unless that is a field
//!    the message or the mesh rests on ([`is_protected`]). The client's `connection` never reaches the next hop, so
//!    it cannot name our fields there either.
//!
//! Everything else passes as it is, in its order.

use std::io::Write;
use std::net::IpAddr;

use ::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::connection_info::ConnectionInfo;

/// The header with the client's certificate.
pub const FORWARDED_CLIENT_CERT: &str = "x-forwarded-client-cert";
/// The header with the addresses that the request came by.
pub const FORWARDED_FOR: &str = "x-forwarded-for";
/// The header with the scheme that the first client spoke.
pub const FORWARDED_PROTO: &str = "x-forwarded-proto";
/// The header with the request's id.
pub const REQUEST_ID: &str = "x-request-id";

/// A field that a rule of ours or of the codec's speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Passed on as it is, unless `connection` names it.
    Other,
    /// Never believed of a client: rule 1.
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

/// The id of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestId<'a> {
    /// As the client sent it.
    Kept(&'a [u8]),
    /// A UUID of ours.
    New([u8; 36]),
}

/// Which field a name is, in any case.
pub fn classify(name: &[u8]) -> Field {
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

/// Whether a client's field of this name is dropped whatever it says: rule 1.
pub fn is_forbidden(name: &[u8]) -> bool {
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

/// Whether `connection` may not remove this field: its own codec, the mesh or the message's meaning rests on it.
pub fn is_protected(name: &[u8]) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    classify(name) != Field::Other
        || name.get(..12).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"x-forwarded-"))
        || is("content-type")
        || is("content-encoding")
        || is("trailer")
        || is("forwarded")
}

/// Whether a body of this `content-type` is sent as things happen, and so may be silent for long: an event stream, or
/// gRPC in any of its forms.
pub fn is_stream(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next().unwrap_or_default();
    let starts_with =
        |prefix: &[u8]| essence.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    essence.eq_ignore_ascii_case(b"text/event-stream") || starts_with(b"application/grpc")
}

/// Whether a body of this `content-type` is gRPC's, which needs HTTP/2 all the way; gRPC-Web does not.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether a comma-separated list holds this token, in any case.
pub fn has_token(list: &[u8], token: &str) -> bool {
    tokens(list).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}

/// The items of a comma-separated list, without the blanks around them; empty ones are left out.
pub fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

/// The value of `x-forwarded-proto`: rule 4.
pub fn forwarded_proto<'a>(sent: impl Iterator<Item = &'a [u8]>, tls: bool) -> &'static str {
    let first = sent.flat_map(tokens).next().unwrap_or_default();
    let known = ["https", "http", "wss", "ws"].into_iter();
    let kept = known.into_iter().find(|scheme| first.eq_ignore_ascii_case(scheme.as_bytes()));
    kept.unwrap_or(if tls { "https" } else { "http" })
}

/// The request's id: rule 5.
pub fn request_id<'a>(mut sent: impl Iterator<Item = &'a [u8]>) -> RequestId<'a> {
    match (sent.next(), sent.next()) {
        (Some(id), None) if matches!(id.len(), 1..=128) && id.iter().all(u8::is_ascii_graphic) => {
            RequestId::Kept(id)
        }
        _ => RequestId::New(uuid()),
    }
}

/// The text of an address in a header; an IPv4 address stays one when a socket shows it as IPv6.
pub fn write_address(out: &mut impl Write, address: IpAddr) {
    // Only a full buffer fails, and the caller's has room for every address.
    let _ = write!(out, "{}", address.to_canonical());
}

/// Applies the rules to the fields of an HTTP/2 request. The codec has already refused hop-by-hop fields.
pub fn apply(fields: &mut HeaderMap, info: &ConnectionInfo) {
    let dropped: Vec<HeaderName> = fields
        .keys()
        .filter(|name| {
            let field = classify(name.as_str().as_bytes());
            matches!(
                field,
                Field::Forbidden
                    | Field::Connection
                    | Field::HopByHop
                    | Field::TransferEncoding
                    | Field::Upgrade
                    | Field::Host
            )
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

    let values = |name: &'static str| fields.get_all(name).iter().map(HeaderValue::as_bytes);
    let proto = HeaderValue::from_static(forwarded_proto(values(FORWARDED_PROTO), info.tls));
    let id = match request_id(values(REQUEST_ID)) {
        RequestId::Kept(id) => HeaderValue::from_bytes(id),
        RequestId::New(id) => HeaderValue::from_bytes(&id),
    };
    let mut addresses: Vec<u8> = values(FORWARDED_FOR).collect::<Vec<_>>().join(&b", "[..]);
    if !addresses.is_empty() {
        addresses.extend_from_slice(b", ");
    }
    write_address(&mut addresses, info.peer.ip());

    fields.insert(HeaderName::from_static(FORWARDED_PROTO), proto);
    if let Ok(addresses) = HeaderValue::from_bytes(&addresses) {
        fields.insert(HeaderName::from_static(FORWARDED_FOR), addresses);
    }
    if let Ok(id) = id {
        fields.insert(HeaderName::from_static(REQUEST_ID), id);
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
    let places = (0..36).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    let digits = random.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]);
    for (place, digit) in places.zip(digits) {
        text[place] = HEX[usize::from(digit)];
    }
    text
}

#[cfg(test)]
mod tests;
