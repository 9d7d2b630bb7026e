//! Why there is no answer from an app, and what its client is told.

use std::error::Error as _;

use http::StatusCode;

use crate::telemetry::ResponseFlag;

/// Why a request got no answer from the app, or only a part of one. Every one is the app's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens, or the address cannot be reached.
    #[error("the app could not be reached")]
    Refused,
    /// The TCP handshake took too long.
    #[error("the app's TCP handshake took too long")]
    ConnectTimeout,
    /// The app does not speak the HTTP that it was spoken to in, or breaks its rules.
    #[error("the app's answer is not HTTP that can be passed on")]
    Protocol,
    /// The app closed the connection before its answer was complete.
    #[error("the app closed the connection")]
    Closed,
    /// The app reset the stream, with this code.
    #[error("the app reset the stream: {0}")]
    Reset(h2::Reason),
}

impl UpstreamError {
    /// Status of the answer to the client.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ConnectTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Protocol => StatusCode::BAD_GATEWAY,
            Self::Refused | Self::Closed | Self::Reset(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Its flag in the log.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Refused => ResponseFlag::UpstreamConnectionFailure,
            Self::ConnectTimeout => ResponseFlag::UpstreamTimeout,
            Self::Protocol => ResponseFlag::UpstreamProtocolError,
            Self::Closed | Self::Reset(_) => ResponseFlag::UpstreamConnectionTermination,
        }
    }

    /// Body of the answer to the client; Envoy's text.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Refused => {
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
            }
            Self::ConnectTimeout => {
                "upstream connect error or disconnect/reset before headers. reset reason: connection timeout"
            }
            Self::Protocol => {
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error"
            }
            Self::Closed => {
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
            }
            Self::Reset(h2::Reason::REFUSED_STREAM) => {
                "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset"
            }
            Self::Reset(_) => {
                "upstream connect error or disconnect/reset before headers. reset reason: remote reset"
            }
        }
    }

    /// A stable word on it for the log.
    pub fn details(&self) -> &'static str {
        match self {
            Self::Refused => "upstream_reset_before_response_started{remote_connection_failure}",
            Self::ConnectTimeout => "upstream_reset_before_response_started{connection_timeout}",
            Self::Protocol => "upstream_reset_before_response_started{protocol_error}",
            Self::Closed => "upstream_reset_before_response_started{connection_termination}",
            Self::Reset(_) => "upstream_reset_before_response_started{remote_reset}",
        }
    }
}

impl From<&hyper::Error> for UpstreamError {
    fn from(error: &hyper::Error) -> Self {
        let Some(cause) = http2_cause(error) else {
            return if error.is_parse() { Self::Protocol } else { Self::Closed };
        };
        match cause.reason() {
            Some(_) if cause.is_library() => Self::Protocol,
            Some(reason) if cause.is_reset() => Self::Reset(reason),
            Some(_) | None => Self::Closed,
        }
    }
}

/// What h2 says, if it was asked.
pub(super) fn http2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}
