//! The responses of the fake API server.

use std::io;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

/// Complete, or the lines of a watch as they come; an error ends the connection without an end of the body.
pub(super) type ApiBody = http_body_util::combinators::BoxBody<Bytes, io::Error>;
/// A response of the fake API server.
pub(super) type ApiResponse = http::Response<ApiBody>;

/// A `meta/v1` Status that reports a failure, with the reason that the API server gives for its code.
pub(super) fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "Unknown",
    };
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code})
}

/// A Status as the whole response.
pub(super) fn failure(code: u16, message: &str) -> ApiResponse {
    json_response(code, &status(code, message))
}

/// A JSON value as the whole response.
pub(super) fn json_response(code: u16, value: &Value) -> ApiResponse {
    text_response(code, value.to_string())
}

/// A text as the whole response.
pub(super) fn text_response(code: u16, text: String) -> ApiResponse {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let mut response = http::Response::new(BodyExt::boxed(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    response
}
