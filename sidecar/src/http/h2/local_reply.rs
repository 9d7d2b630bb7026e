//! Answers that are ours. Bytes and texts are Envoy's, which OSM's users and their dashboards know.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};

use super::upstream::UpstreamError;
use crate::telemetry::ResponseFlag;

/// An answer, and what the log says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LocalReply {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
    pub(super) flag: ResponseFlag,
    pub(super) details: &'static str,
}

impl LocalReply {
    /// The policy says no.
    pub(super) const FORBIDDEN: Self = Self {
        status: StatusCode::FORBIDDEN,
        text: "RBAC: access denied",
        flag: ResponseFlag::Refused,
        details: "rbac_access_denied_matched_policy[none]",
    };
    /// The request is not one that can be passed on.
    pub(super) const BAD_REQUEST: Self = Self {
        status: StatusCode::BAD_REQUEST,
        text: "Bad Request",
        flag: ResponseFlag::DownstreamProtocolError,
        details: "bad_request",
    };
    /// CONNECT: the sidecar is nobody's forward proxy.
    pub(super) const METHOD_NOT_ALLOWED: Self = Self {
        status: StatusCode::METHOD_NOT_ALLOWED,
        text: "Method Not Allowed",
        flag: ResponseFlag::DownstreamProtocolError,
        details: "connect_not_supported",
    };
    /// Too many header fields.
    pub(super) const TOO_MANY_HEADERS: Self = Self {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        text: "Request Header Fields Too Large",
        flag: ResponseFlag::DownstreamProtocolError,
        details: "too_many_headers",
    };

    /// The app gave no answer.
    pub(super) fn upstream(error: &UpstreamError) -> Self {
        Self { status: error.status(), text: error.text(), flag: error.flag(), details: error.details() }
    }

    /// The answer; hyper adds the date.
    pub(super) fn head(self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(self.text.len()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }

    /// The answer's body.
    pub(super) fn body(self) -> Bytes {
        Bytes::from_static(self.text.as_bytes())
    }
}
