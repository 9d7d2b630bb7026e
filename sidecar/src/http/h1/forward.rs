//! What goes to the next hop: the request as the app gets it, the answer as the client gets it.

use std::net::{IpAddr, SocketAddr};

use ::http::header::CONTENT_TYPE;
use tidegate_core::forward_proxy::{ForwardedHeaders, ProxySettings};
use tidegate_core::route::filter::HeaderEdits;
use tidegate_core::route::host_of;

use super::head::{Framing, HeadFields, RequestHead, ResponseHead, upgrade_protocols};
use crate::connection_info::{ConnectionInfo, OutboundInfo, ServedConnection};
use crate::destinations::AppliedRule;
use crate::http::buffer::{Buffer, Buffers};
use crate::http::headers::{
    self, FORWARDED_CLIENT_CERT, FORWARDED_FOR, FORWARDED_PROTO, Field, REQUEST_ID, RequestId,
};
use crate::http::local_reply::{LocalReply, ReplyForm};
use crate::http::request::Version;
use crate::http::verdict::RefusalResponse;
use crate::telemetry::trace::RequestTrace;

/// Where in the head that the app got the access log finds its words.
#[derive(Clone, Copy, Default)]
pub(super) struct Notes {
    pub(super) method: Span,
    pub(super) path: Span,
    pub(super) authority: Span,
    pub(super) user_agent: Span,
    pub(super) forwarded_for: Span,
    pub(super) request_id: Span,
    /// The protocols that the app may switch to, as a list.
    pub(super) upgrade: Span,
}

/// Bytes from here, so many.
#[derive(Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
}

/// What an answer says of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It goes on, as HTTP/1.1 does unasked.
    Implied,
    /// It stays open, which an HTTP/1.0 client must read in a header.
    KeepAlive,
    /// It ends with this answer.
    Close,
}

impl Notes {
    /// A buffer with the noted words, made from that of a head that was written; what followed the head is dropped.
    pub(super) fn keep(&self, written: &mut Buffer, buffers: &Buffers) -> Buffer {
        let spans = [self.method, self.path, self.authority, self.user_agent];
        let spans = spans.into_iter().chain([self.forwarded_for, self.request_id, self.upgrade]);
        let end = spans.map(|span| span.start + span.length).max().unwrap_or_default() as usize;
        let mut kept = std::mem::take(written);
        buffers.shrink_past(&mut kept, end);
        kept
    }
}

/// Room for what [`write_request`] adds to a head, but for what a client's certificate is long.
const ADDED: usize = 512;

/// About how many bytes [`write_request`] adds to a head.
pub(super) fn added(connection: &ServedConnection) -> usize {
    let ServedConnection::Inbound(info) = connection else { return ADDED };
    ADDED + info.client.as_ref().map_or(0, |client| client.forwarded.len() + info.identity.len())
}

/// Writes the head of a request as HTTP/1.1, with the changes of the route's rule that applies, by the rules of [`headers`].
/// `out` must be empty.
pub(super) fn write_request(
    head: &RequestHead<'_>,
    (connection, proxy): (&ServedConnection, Option<&ProxySettings>),
    (rule, trace): (Option<&AppliedRule>, Option<&RequestTrace>),
    out: &mut Buffer,
) -> Notes {
    let is_outbound = matches!(connection, ServedConnection::Outbound(_));
    let edits = rule.and_then(AppliedRule::request_edits);
    let authority = rule.and_then(AppliedRule::hostname).map_or(head.request.authority, str::as_bytes);
    let mut notes = Notes { method: put(out, head.request.method), ..Notes::default() };
    out.push(b" ");
    if proxy.is_some() {
        put_absolute(authority, connection.dialled(), out);
    }
    // Of a server as a whole, absolute form has no path (RFC 9112 §3.2.4).
    let is_of_server = proxy.is_some() && head.request.path == b"*";
    notes.path = put(out, if is_of_server { b"" } else { head.request.path });
    out.push(b" HTTP/1.1\r\n");
    let passed = PassedHead { head, authority, edits, trace, is_outbound, proxy };
    let PassedFields { has_host, te_trailers } = put_request_fields(&passed, out, &mut notes);
    if !has_host {
        notes.authority = put_host(authority, connection, out);
    }
    put_appended(edits, out, &mut notes);
    if head.framing == Framing::Chunked {
        out.push(b"transfer-encoding: chunked\r\n");
    }
    if head.upgrade {
        notes.upgrade = put_upgrade_request(head, out);
    }
    match (head.upgrade, te_trailers) {
        (true, true) => out.push(b"te: trailers\r\n"),
        (false, true) => out.push(b"te: trailers\r\nconnection: te\r\n"),
        (_, false) => {}
    }
    match (connection, proxy) {
        (ServedConnection::Inbound(info), _) => put_forwarded(head, info, out, &mut notes),
        (ServedConnection::Outbound(info), Some(proxy)) => put_for_proxy(head, proxy, info, out, &mut notes),
        (ServedConnection::Outbound(_), None) => {}
    }
    if let Some(trace) = trace {
        trace.for_each_field(|name, value| {
            put_name(out, name.as_bytes());
            out.push(value);
            out.push(b"\r\n");
        });
    }
    put_name(out, REQUEST_ID.as_bytes());
    let kept = head.fields.values(Field::RequestId).filter(|_| !drops(edits, REQUEST_ID.as_bytes()));
    let appended = edits.into_iter().flat_map(HeaderEdits::appended);
    let appended = appended.filter(|(name, _)| name.as_str() == REQUEST_ID);
    let ids = kept.chain(appended.map(|(_, value)| value.as_str().as_bytes()));
    notes.request_id = match headers::request_id(ids) {
        RequestId::Kept(id) => put(out, id),
        RequestId::New(id) => put(out, &id),
    };
    out.push(b"\r\n\r\n");
    notes
}

/// What [`put_request_fields`] has seen of fields that are written behind the client's.
struct PassedFields {
    has_host: bool,
    /// The client takes trailers.
    te_trailers: bool,
}

/// A request's head and what changes in it.
struct PassedHead<'h> {
    head: &'h RequestHead<'h>,
    /// The host that it is for.
    authority: &'h [u8],
    edits: Option<&'h HeaderEdits>,
    trace: Option<&'h RequestTrace>,
    is_outbound: bool,
    /// The forward proxy that gets the request in absolute form.
    proxy: Option<&'h ProxySettings>,
}

/// Writes the client's fields that are passed on, each in its place.
#[inline]
fn put_request_fields(passed: &PassedHead<'_>, out: &mut Buffer, notes: &mut Notes) -> PassedFields {
    let PassedHead { head, authority, edits, trace, is_outbound, proxy } = *passed;
    let mut written = PassedFields { has_host: false, te_trailers: false };
    let mut has_length = false;
    for (field, name, value) in head.fields.iter() {
        if drops(edits, name) || proxy.is_some_and(|proxy| drops_for_proxy(proxy, name)) {
            continue;
        }
        match field {
            Field::Host => {
                put_name(out, name);
                notes.authority = put(out, authority);
                written.has_host = true;
            }
            Field::ContentLength => {
                if !has_length && let Framing::Length(length) = head.framing {
                    put_name(out, name);
                    put_number(out, length);
                    out.push(b"\r\n");
                }
                has_length = true;
                continue;
            }
            Field::UserAgent => {
                put_name(out, name);
                notes.user_agent = put(out, value);
            }
            Field::Forbidden | Field::ForwardedProto if is_outbound => {
                put_name(out, name);
                out.push(value);
            }
            Field::ForwardedFor if is_outbound => {
                put_name(out, name);
                notes.forwarded_for = put(out, value);
            }
            // An HTTP/1.0 client does not know interim answers, and we speak 1.1 to the app.
            Field::Expect if head.request.version == Version::Http10 => continue,
            Field::Te => {
                written.te_trailers |= headers::has_token(value, "trailers");
                continue;
            }
            Field::Forbidden
            | Field::Connection
            | Field::HopByHop
            | Field::TransferEncoding
            | Field::Upgrade
            | Field::ForwardedFor
            | Field::ForwardedProto
            | Field::RequestId => continue,
            Field::Other if head.fields.is_named(name) => continue,
            Field::Other if trace.is_some_and(|trace| trace.replaces(name)) => continue,
            Field::Other | Field::Expect => {
                put_name(out, name);
                out.push(value);
            }
        }
        out.push(b"\r\n");
    }
    written
}

/// Writes `host` for a request that came without: the target's authority, or the address that the client dialled.
fn put_host(authority: &[u8], connection: &ServedConnection, out: &mut Buffer) -> Span {
    out.push(b"host: ");
    let authority = if authority.is_empty() {
        let start = out.len();
        // A buffer takes all that is written.
        let _ = std::io::Write::write_fmt(out, format_args!("{}", connection.dialled()));
        span(start, out)
    } else {
        put(out, authority)
    };
    out.push(b"\r\n");
    authority
}

/// Writes scheme and authority of a request for a forward proxy: the host, with the port that was dialled.
fn put_absolute(authority: &[u8], dialled: SocketAddr, out: &mut Buffer) {
    out.push(b"http://");
    let host = host_of(authority);
    // A buffer takes all that is written.
    let _ = match (host, dialled.port()) {
        ("", _) => std::io::Write::write_fmt(out, format_args!("{dialled}")),
        (host, 80) if host.contains(':') => std::io::Write::write_fmt(out, format_args!("[{host}]")),
        (host, port) if host.contains(':') => std::io::Write::write_fmt(out, format_args!("[{host}]:{port}")),
        (host, 80) => std::io::Write::write_all(out, host.as_bytes()),
        (host, port) => std::io::Write::write_fmt(out, format_args!("{host}:{port}")),
    };
}

/// Whether a forward proxy does not get the app's field: credentials for proxies are hop by hop (RFC 9110 §11.7.2).
fn drops_for_proxy(proxy: &ProxySettings, name: &[u8]) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    if is("proxy-authorization") {
        return true;
    }
    match proxy.forwarded_headers {
        ForwardedHeaders::Transparent => false,
        ForwardedHeaders::Append => is(FORWARDED_FOR),
        ForwardedHeaders::Delete => {
            is("forwarded")
                || is("via")
                || is("x-real-ip")
                || name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"))
        }
    }
}

/// Writes what a forward proxy gets beside the app's fields.
fn put_for_proxy(
    head: &RequestHead<'_>,
    proxy: &ProxySettings,
    info: &OutboundInfo,
    out: &mut Buffer,
    notes: &mut Notes,
) {
    if proxy.forwarded_headers == ForwardedHeaders::Append {
        notes.forwarded_for = put_forwarded_for(head, info.peer.ip(), out);
    }
    if let Some(credentials) = &proxy.credentials {
        put_field(out, b"proxy-authorization", credentials.authorization().as_bytes());
    }
}

/// Whether a rule drops the lines of this name.
fn drops(edits: Option<&HeaderEdits>, name: &[u8]) -> bool {
    edits.is_some_and(|edits| edits.drops(name))
}

/// Writes the lines that a rule appends to a request, but for its ID, of which there is one.
fn put_appended(edits: Option<&HeaderEdits>, out: &mut Buffer, notes: &mut Notes) {
    for (name, value) in edits.into_iter().flat_map(HeaderEdits::appended) {
        let (name, value) = (name.as_str().as_bytes(), value.as_str().as_bytes());
        let field = headers::classify(name);
        if field == Field::RequestId {
            continue;
        }
        put_name(out, name);
        let value = put(out, value);
        match field {
            Field::UserAgent => notes.user_agent = value,
            Field::ForwardedFor => notes.forwarded_for = value,
            _ => {}
        }
        out.push(b"\r\n");
    }
}

/// Writes the lines that a rule appends to a response.
fn put_appended_fields(edits: Option<&HeaderEdits>, out: &mut Buffer) {
    for (name, value) in edits.into_iter().flat_map(HeaderEdits::appended) {
        put_field(out, name.as_str().as_bytes(), value.as_str().as_bytes());
    }
}

/// Asks the app to switch to one of the client's protocols; returns where their list is.
fn put_upgrade_request(head: &RequestHead<'_>, out: &mut Buffer) -> Span {
    out.push(b"connection: upgrade\r\nupgrade: ");
    let start = out.len();
    put_upgrade(out, head.fields);
    let protocols = span(start, out);
    out.push(b"\r\n");
    protocols
}

/// Writes the head of the app's last answer with a rule's changes. `form`: whether its body is chunked for the client, and whether
/// the connection goes on.
pub(super) fn write_response(
    head: &ResponseHead<'_>,
    version: Version,
    (chunked, persistence): (bool, Persistence),
    edits: Option<&HeaderEdits>,
    out: &mut Buffer,
) {
    let has_length = head.status != 204;
    put_status(head, out);
    put_fields(head, has_length && !chunked, edits, out);
    put_appended_fields(edits, out);
    let names_coding = head.is_chunked && version == Version::Http11 && !matches!(head.status, 204 | 304);
    if chunked || (names_coding && head.framing == Framing::Length(0)) {
        out.push(b"transfer-encoding: chunked\r\n");
    }
    put_persistence(persistence, out);
    out.push(b"\r\n");
}

/// Writes the head of an answer that came over HTTP/2. `chunked`: how its body is framed for the client.
pub(super) fn write_http2_response(
    head: &::http::Response<()>,
    chunked: bool,
    persistence: Persistence,
    out: &mut Buffer,
) {
    put_http2_head(head, head.status().as_u16() != 204, out);
    if chunked {
        out.push(b"transfer-encoding: chunked\r\n");
    }
    put_persistence(persistence, out);
    out.push(b"\r\n");
}

/// Writes the head of an interim answer that came over HTTP/2, for clients of HTTP/1.1.
pub(super) fn write_http2_interim(head: &::http::Response<()>, out: &mut Buffer) {
    put_http2_head(head, false, out);
    out.push(b"\r\n");
}

/// Writes the status and the fields of an answer that came over HTTP/2. `with_length`: also its `content-length`.
fn put_http2_head(head: &::http::Response<()>, with_length: bool, out: &mut Buffer) {
    let status = head.status();
    out.push(b"HTTP/1.1 ");
    out.push(status.as_str().as_bytes());
    out.push(b" ");
    out.push(status.canonical_reason().unwrap_or_default().as_bytes());
    out.push(b"\r\n");
    let mut has_length = !with_length;
    for (name, value) in head.headers() {
        let field = headers::classify(name.as_str().as_bytes());
        let ends_here = match field {
            Field::Connection | Field::HopByHop | Field::TransferEncoding | Field::Upgrade => true,
            // h2 has checked that several are the same.
            Field::ContentLength => std::mem::replace(&mut has_length, true),
            _ => false,
        };
        if !ends_here {
            put_name(out, name.as_str().as_bytes());
            out.push(value.as_bytes());
            out.push(b"\r\n");
        }
    }
}

/// Writes the head of an interim answer, for clients of HTTP/1.1.
pub(super) fn write_interim(head: &ResponseHead<'_>, out: &mut Buffer) {
    put_status(head, out);
    put_fields(head, false, None, out);
    out.push(b"\r\n");
}

/// Writes the head of `101 Switching Protocols` with a rule's changes.
pub(super) fn write_switch(head: &ResponseHead<'_>, edits: Option<&HeaderEdits>, out: &mut Buffer) {
    put_status(head, out);
    put_fields(head, false, edits, out);
    put_appended_fields(edits, out);
    out.push(b"connection: upgrade\r\nupgrade: ");
    put_upgrade(out, head.fields);
    out.push(b"\r\n\r\n");
}

/// Writes an answer of our own with changes of its fields and a location, in the order of fields that its readers know.
pub(super) fn write_local(
    reply: &LocalReply,
    form: ReplyForm,
    persistence: Persistence,
    (edits, location): (Option<&HeaderEdits>, Option<&[u8]>),
    date: &[u8],
    out: &mut Buffer,
) {
    put_local_fields(reply, form, edits, date, out);
    if let Some(location) = location {
        put_field(out, b"location", location);
    }
    put_appended_fields(edits, out);
    put_persistence(persistence, out);
    out.push(b"\r\n");
    out.push(reply.body_in(form).as_bytes());
}

/// Writes the status and the fields of an answer of our own, but for those that a rule drops.
fn put_local_fields(
    reply: &LocalReply,
    form: ReplyForm,
    edits: Option<&HeaderEdits>,
    date: &[u8],
    out: &mut Buffer,
) {
    let is_grpc = form == ReplyForm::Grpc;
    let (status, reason) = if is_grpc { (200, "OK") } else { (reply.status, reply.reason) };
    let length = if is_grpc { 0 } else { reply.body.len() };
    // A buffer takes all that is written.
    let _ = std::io::Write::write_fmt(
        out,
        format_args!("HTTP/1.1 {status} {reason}\r\ncontent-length: {length}\r\n"),
    );
    let content_type: &[u8] = if is_grpc { b"application/grpc" } else { b"text/plain" };
    if !drops(edits, b"content-type") {
        put_field(out, b"content-type", content_type);
    }
    if is_grpc {
        let (status, message) = (reply.grpc_status(), reply.grpc_message());
        let _ = std::io::Write::write_fmt(
            out,
            format_args!("grpc-status: {status}\r\ngrpc-message: {message}\r\n"),
        );
    }
    if !drops(edits, b"date") {
        put_field(out, b"date", date);
    }
}

/// Writes the response of a server that refuses the request.
pub(super) fn write_refusal(
    response: &RefusalResponse,
    form: ReplyForm,
    persistence: Persistence,
    date: &[u8],
    out: &mut Buffer,
) {
    let status = response.status;
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        out.push(part.as_bytes());
    }
    if response.has_length() {
        put_name(out, b"content-length");
        put_number(out, response.body.len() as u64);
        out.push(b"\r\n");
    }
    if !response.body.is_empty() && !response.fields.contains_key(CONTENT_TYPE) {
        put_field(out, b"content-type", b"text/plain");
    }
    put_field(out, b"date", date);
    for (name, value) in &response.fields {
        put_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    put_persistence(persistence, out);
    out.push(b"\r\n");
    if form != ReplyForm::HeadOnly {
        out.push(&response.body);
    }
}

impl Persistence {
    /// How an answer to a client of this version says whether its connection ends.
    pub(super) fn new(close: bool, version: Version) -> Self {
        match (close, version) {
            (true, _) => Self::Close,
            (false, Version::Http10) => Self::KeepAlive,
            (false, _) => Self::Implied,
        }
    }
}

/// Writes the fields that the mesh sets, in place of the client's: rules 2 to 4 of [`headers`].
fn put_forwarded(head: &RequestHead<'_>, info: &ConnectionInfo, out: &mut Buffer, notes: &mut Notes) {
    notes.forwarded_for = put_forwarded_for(head, info.peer.ip(), out);
    put_name(out, FORWARDED_PROTO.as_bytes());
    let proto = headers::forwarded_proto(head.fields.values(Field::ForwardedProto), info.is_https());
    out.push(proto.as_bytes());
    out.push(b"\r\n");

    if let Some(client) = &info.client {
        put_name(out, FORWARDED_CLIENT_CERT.as_bytes());
        for part in ["By=", &info.identity, ";", &client.forwarded, "\r\n"] {
            out.push(part.as_bytes());
        }
    }
}

/// Appends an address to the client's values, in one line.
fn put_forwarded_for(head: &RequestHead<'_>, address: IpAddr, out: &mut Buffer) -> Span {
    put_name(out, FORWARDED_FOR.as_bytes());
    let start = out.len();
    for addresses in head.fields.values(Field::ForwardedFor).filter(|addresses| !addresses.is_empty()) {
        out.push(addresses);
        out.push(b", ");
    }
    headers::write_address(out, address);
    let written = span(start, out);
    out.push(b"\r\n");
    written
}

fn put_status(head: &ResponseHead<'_>, out: &mut Buffer) {
    out.push(b"HTTP/1.1 ");
    put_number(out, u64::from(head.status));
    out.push(b" ");
    out.push(head.reason.as_bytes());
    out.push(b"\r\n");
}

/// Writes the app's fields without those for its own connection (RFC 9110 §7.6.1), and without those that a rule drops.
/// `with_length`: whether `content-length` holds for the client, too.
fn put_fields(head: &ResponseHead<'_>, with_length: bool, edits: Option<&HeaderEdits>, out: &mut Buffer) {
    let mut has_length = false;
    for (field, name, value) in head.fields.iter() {
        if drops(edits, name) {
            continue;
        }
        match field {
            Field::Connection | Field::HopByHop | Field::TransferEncoding | Field::Upgrade => continue,
            Field::ContentLength if !with_length || has_length => continue,
            Field::ContentLength => {
                has_length = true;
                put_name(out, name);
                // A list of equal lengths is sent on as one.
                out.push(headers::tokens(value).next().unwrap_or_default());
            }
            Field::Other if head.fields.is_named(name) => continue,
            _ if head.is_folded => {
                put_name(out, name);
                put_unfolded(out, value);
            }
            _ => {
                put_name(out, name);
                out.push(value);
            }
        }
        out.push(b"\r\n");
    }
}

/// Whether a switch is one to a websocket.
pub(super) fn is_websocket(fields: HeadFields<'_>) -> bool {
    let mut protocols = fields.values(Field::Upgrade).flat_map(upgrade_protocols);
    protocols.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
        && protocols.next().is_none()
}

/// A value in one line.
fn put_unfolded(out: &mut Buffer, value: &[u8]) {
    let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    for (at, line) in lines.enumerate() {
        if at > 0 {
            out.push(b" ");
        }
        out.push(line);
    }
}

/// Writes the protocols of all `upgrade` fields as one list.
fn put_upgrade(out: &mut Buffer, fields: HeadFields<'_>) {
    for (at, protocol) in fields.values(Field::Upgrade).flat_map(upgrade_protocols).enumerate() {
        if at > 0 {
            out.push(b", ");
        }
        out.push(protocol);
    }
}

fn put_persistence(persistence: Persistence, out: &mut Buffer) {
    match persistence {
        Persistence::Implied => {}
        Persistence::KeepAlive => out.push(b"connection: keep-alive\r\n"),
        Persistence::Close => out.push(b"connection: close\r\n"),
    }
}

/// Writes bytes, and returns where they are.
pub(super) fn put(out: &mut Buffer, bytes: &[u8]) -> Span {
    let start = out.len();
    out.push(bytes);
    span(start, out)
}

fn put_name(out: &mut Buffer, name: &[u8]) {
    out.push(name);
    out.push(b": ");
}

fn put_field(out: &mut Buffer, name: &[u8], value: &[u8]) {
    put_name(out, name);
    out.push(value);
    out.push(b"\r\n");
}

fn put_number(out: &mut Buffer, number: u64) {
    out.push(itoa::Buffer::new().format(number).as_bytes());
}

fn span(start: usize, out: &Buffer) -> Span {
    let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    Span { start: place(start), length: place(out.len() - start) }
}
