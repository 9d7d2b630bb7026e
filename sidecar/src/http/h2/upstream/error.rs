//! Why there is no answer from an app, and what its client is told.

use std::error::Error as _;

use crate::http::local_reply::{self, LocalReply};

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
    /// What the client is told.
    pub fn reply(&self) -> LocalReply {
        match self {
            Self::Refused => local_reply::connection_refused(),
            Self::ConnectTimeout => local_reply::connect_timeout(),
            Self::Protocol => local_reply::bad_gateway(),
            Self::Closed => local_reply::connection_terminated(),
            Self::Reset(h2::Reason::REFUSED_STREAM) => LocalReply {
                body: "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset",
                details: "upstream_reset_before_response_started{remote_refused_stream_reset}",
                ..local_reply::connection_terminated()
            },
            Self::Reset(_) => LocalReply {
                body: "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
                details: "upstream_reset_before_response_started{remote_reset}",
                ..local_reply::connection_terminated()
            },
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
