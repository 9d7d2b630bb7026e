//! What the server gets of a request: the same that the app would get of it.
//!
//! The rules for a client's header fields apply first ([`headers`]), so that the server can rely on `x-forwarded-*` as the app
//! can. As from Envoy, the map of headers also has the pseudo-header fields of HTTP/2.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::header::{CONTENT_LENGTH, COOKIE, HeaderMap, TRANSFER_ENCODING};
use ::http::{HeaderName, HeaderValue};
use tidegate_core::San;
use tidegate_proto::external_authorization::attribute_context::{
    HttpRequest, Peer, Request as RequestAttributes, TlsSession,
};
use tidegate_proto::external_authorization::{
    Address, AttributeContext, CheckRequest, SocketAddress, Timestamp,
};

use crate::connection_info::{ConnectionInfo, ServedConnection};
use crate::grpc::text;
use crate::http::headers::{self, REQUEST_ID, has_token, is_protected};
use crate::http::request::{Request, Version};

/// The attributes of one request.
pub(super) struct Attributes {
    pub(super) message: CheckRequest,
    /// The request's ID, if it came without a valid one.
    pub(super) new_id: Option<Box<str>>,
}

/// The attributes of a request. `path`: with query, as the app gets it.
pub(super) fn of(request: &Request<'_>, path: &[u8], connection: &Rc<ConnectionInfo>) -> Attributes {
    let has_body = request.field(CONTENT_LENGTH.as_str()).is_none_or(|length| length != b"0");
    let has_length = request.field(CONTENT_LENGTH.as_str()).is_some();
    let is_open_ended = request.field(TRANSFER_ENCODING.as_str()).is_some()
        || (request.version == Version::Http2 && has_body && !has_length);
    let fields = fields(request, connection);
    let id = text(fields.get(REQUEST_ID).map_or(b"", HeaderValue::as_bytes));
    let is_kept = request.field(REQUEST_ID) == Some(id.as_bytes());
    let scheme = if connection.is_https() { "https" } else { "http" };
    let pseudo = [(":method", request.method), (":path", path), (":authority", request.authority)];
    let pseudo = pseudo.into_iter().chain([(":scheme", scheme.as_bytes())]);
    let mut map: HashMap<String, String> =
        pseudo.map(|(name, value)| (name.to_owned(), text(value))).collect();
    for name in fields.keys() {
        map.insert(name.as_str().to_owned(), joined(&fields, name));
    }
    let length = fields.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let http = HttpRequest {
        id: id.clone(),
        method: text(request.method),
        headers: map,
        path: text(path),
        host: text(request.authority),
        scheme: scheme.to_owned(),
        size: length.unwrap_or(if is_open_ended { -1 } else { 0 }),
        protocol: request.version.as_str().to_owned(),
        body: String::new(),
        raw_body: Vec::new(),
    };
    let session = connection.server_name.as_deref().map(|name| TlsSession { sni: name.to_owned() });
    let attributes = AttributeContext {
        source: Some(Peer {
            address: Some(address(connection.peer)),
            principal: client_principal(connection).unwrap_or_default(),
        }),
        destination: Some(Peer {
            address: Some(address(connection.local)),
            principal: connection.identity.to_string(),
        }),
        request: Some(RequestAttributes { time: Some(now()), http: Some(http) }),
        tls_session: session,
    };
    Attributes {
        message: CheckRequest { attributes: Some(attributes) },
        new_id: (!is_kept).then(|| id.into()),
    }
}

/// The request's fields as the app would get them.
fn fields(request: &Request<'_>, connection: &Rc<ConnectionInfo>) -> HeaderMap {
    let mut options = Vec::new();
    request.for_each_field(|name, value| {
        if name.eq_ignore_ascii_case(b"connection") {
            options.push(value);
        }
    });
    let mut fields = HeaderMap::new();
    request.for_each_field(|name, value| {
        let is_hop_by_hop = || {
            let token = std::str::from_utf8(name).unwrap_or_default();
            !is_protected(name) && options.iter().any(|list| has_token(list, token))
        };
        if let (Ok(field), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            && !is_hop_by_hop()
        {
            fields.append(field, value);
        }
    });
    headers::apply(&mut fields, &ServedConnection::Inbound(connection.clone()), None);
    fields
}

/// All values of a field as one.
fn joined(fields: &HeaderMap, name: &HeaderName) -> String {
    let values = fields.get_all(name).iter().map(|value| text(value.as_bytes()));
    values.collect::<Vec<_>>().join(if *name == COOKIE { "; " } else { "," })
}

/// A URI in the client's certificate, else a DNS name.
fn client_principal(connection: &ConnectionInfo) -> Option<String> {
    let sans = &connection.client.as_ref()?.leaf.sans;
    let uri = sans.iter().find_map(|san| match san {
        San::Uri(uri) => Some(uri.to_string()),
        _ => None,
    });
    uri.or_else(|| {
        sans.iter().find_map(|san| match san {
            San::Dns(name) => Some(name.as_str().to_owned()),
            _ => None,
        })
    })
}

fn address(address: SocketAddr) -> Address {
    let (address, port_value) = (address.ip().to_canonical().to_string(), address.port().into());
    Address { socket_address: Some(SocketAddress { address, port_value }) }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or_default(),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}
