//! Malformed requests (RFC 9113 §8.1.1), which h2 does not return: each gets its line in the access log.
//!
//! What HTTP/1 also refuses gets the same response as there; violations that only HTTP/2 has reset the stream. Other
//! streams of the connection continue.

use std::time::{Duration, SystemTime};

use h2::malformed::{Fault, MalformedRequest, Observer, Verdict};
use http::header::{CONTENT_LENGTH, DATE, HOST, USER_AGENT};
use http::{HeaderValue, Response, StatusCode};

use super::exchange::Exchanges;
use crate::http::headers::REQUEST_ID;
use crate::http::local_reply::{self, LocalReply};
use crate::http::request::Version;
use crate::telemetry::{Record, ResponseFlag};

impl Observer for Exchanges {
    fn malformed(&self, request: MalformedRequest<'_>) -> Verdict {
        let outcome = outcome(request.fault);
        let field = |name| request.fields.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let authority = if request.authority.is_empty() { field(HOST) } else { request.authority };
        let env = self.env();
        env.telemetry.record(&Record {
            start: Some(SystemTime::now()),
            duration: Duration::ZERO,
            method: request.method,
            path: request.path,
            protocol: Version::Http2.as_str(),
            status: outcome.map_or(0, |reply| reply.status),
            flag: ResponseFlag::DownstreamProtocolError,
            details: outcome.map_or_else(|details| details, |reply| reply.details),
            authority,
            user_agent: field(USER_AGENT),
            request_id: request.fields.get(REQUEST_ID).map_or(b"", HeaderValue::as_bytes),
            ..Record::of(self.connection(), None)
        });
        match outcome {
            Ok(reply) => Verdict::Answer(answer(reply, &env.clock.date())),
            Err(_) => Verdict::Reset,
        }
    }
}

/// The response to a malformed request, or the response code details of one that is reset.
fn outcome(fault: Fault) -> Result<LocalReply, &'static str> {
    match fault {
        Fault::Method => Ok(local_reply::bad_request("http2.invalid_method")),
        Fault::Path => Ok(local_reply::bad_request("http2.invalid_path")),
        Fault::Authority => Ok(local_reply::bad_request("http2.invalid_authority")),
        Fault::FieldName | Fault::FieldValue => Ok(local_reply::bad_request("http2.invalid_header")),
        Fault::ContentLength => Ok(local_reply::bad_request("http2.invalid_content_length")),
        Fault::TooLarge => Ok(local_reply::header_fields_too_large("http2.headers_too_large")),
        Fault::UpperCaseName => Err("http2.upper_case_header"),
        Fault::ConnectionField => Err("http2.connection_header"),
        Fault::MissingBody => Err("http2.missing_body"),
        Fault::PseudoField => Err("http2.invalid_pseudo_header"),
        Fault::Scheme => Err("http2.invalid_scheme"),
        Fault::Dependency => Err("http2.self_dependency"),
        _ => Err("http2.protocol_error"),
    }
}

/// The head of a local response. It has no body: h2 sends it before the stream exists, and ends the stream with it.
fn answer(reply: LocalReply, date: &[u8]) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_REQUEST);
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    if let Ok(date) = HeaderValue::from_bytes(date) {
        response.headers_mut().insert(DATE, date);
    }
    response
}
