//! A request of HTTP/1 as the app gets it over HTTP/2.
//!
//! Its fields pass the rules of [`headers::apply`], as those of a client of HTTP/2 do, after what frames or controls
//! only the client's connection was left out.

use ::http::header::{CONTENT_LENGTH, USER_AGENT};
use ::http::uri::{Authority, PathAndQuery};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

use crate::connection_info::ServedConnection;
use crate::destinations::AppliedRule;
use crate::http::buffer::Buffer;
use crate::http::h1::forward::{Notes, put};
use crate::http::h1::head::{Framing, RequestHead};
use crate::http::h2::set_http2_target;
use crate::http::headers::{self, FORWARDED_FOR, Field, REQUEST_ID};
use crate::telemetry::trace::RequestTrace;

/// The request over HTTP/2 with the changes of the route's rule that applies, without a body; `None` if its target or a field
/// cannot be expressed there.
pub(in crate::http::h1) fn request(
    head: &RequestHead<'_>,
    connection: &ServedConnection,
    (rule, trace): (Option<&AppliedRule>, Option<&RequestTrace>),
) -> Option<Request<()>> {
    let path = PathAndQuery::try_from(head.request.path).ok()?;
    let authority = match rule.and_then(AppliedRule::hostname) {
        Some(hostname) => Some(Authority::try_from(hostname).ok()?),
        None => authority(head, connection)?,
    };
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.request.method).ok()?;
    *request.headers_mut() = fields(head)?;
    if let Some(edits) = rule.and_then(AppliedRule::request_edits) {
        headers::edit(request.headers_mut(), edits);
    }
    headers::apply(request.headers_mut(), connection, trace);
    set_http2_target(&mut request, authority, path);
    Some(request)
}

/// Writes the words that the access log needs of a request, and returns where they are.
pub(in crate::http::h1) fn note(head: &RequestHead<'_>, request: &Request<()>, out: &mut Buffer) -> Notes {
    let field = |name: &str| request.headers().get(name).map_or(&b""[..], HeaderValue::as_bytes);
    Notes {
        method: put(out, head.request.method),
        path: put(out, head.request.path),
        authority: put(out, request.uri().authority().map_or("", Authority::as_str).as_bytes()),
        user_agent: put(out, field(USER_AGENT.as_str())),
        forwarded_for: put(out, field(FORWARDED_FOR)),
        request_id: put(out, field(REQUEST_ID)),
        ..Notes::default()
    }
}

/// The authority that the client named, or the address that it dialled if it has no `host` (HTTP/1.0). `Some(None)`: it
/// sent an empty `host`, and the app gets no authority.
fn authority(head: &RequestHead<'_>, connection: &ServedConnection) -> Option<Option<Authority>> {
    if !head.request.authority.is_empty() {
        return Authority::try_from(head.request.authority).ok().map(Some);
    }
    let has_host = head.fields.values(Field::Host).next().is_some();
    if has_host {
        return Some(None);
    }
    Authority::try_from(connection.dialled().to_string()).ok().map(Some)
}

/// The client's fields, but for those that HTTP/2 has other means for.
fn fields(head: &RequestHead<'_>) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    for (field, name, value) in head.fields.iter() {
        match field {
            // `100 Continue` is ours.
            Field::Expect => {}
            Field::ContentLength => {
                if let Framing::Length(length) = head.framing {
                    fields.insert(CONTENT_LENGTH, length.into());
                }
            }
            Field::Other if head.fields.is_named(name) => {}
            _ => {
                fields.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
            }
        }
    }
    Some(fields)
}
