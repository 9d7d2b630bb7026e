//! Why there is no answer from an upstream.

use std::error::Error;
use std::io;
use std::sync::Arc;

use super::connect_error::ConnectError;
use super::request_limit::RequestLimit;

/// Why a request got no answer from the app, or only a part of one.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// The connection could not be opened. All requests that waited for it share the error.
    #[error("{0}")]
    Connect(Arc<ConnectError>),
    /// The app does not speak the HTTP that it was spoken to in, or breaks its rules.
    #[error("the app's answer is not HTTP that can be passed on")]
    Protocol(Violation),
    /// The app closed the connection before its answer was complete.
    #[error("the app closed the connection")]
    Closed,
    /// The endpoint acknowledges nothing any more, or the kernel has given it up: its node has vanished.
    #[error("the endpoint has vanished")]
    Vanished,
    /// The app reset the stream, with this code.
    #[error("the app reset the stream: {0}")]
    Reset(h2::Reason),
    /// The request's body broke off or is malformed, which is the client's fault: the app gets no more of it, and its
    /// answer, if any, is to something that the client has not sent.
    #[error("the client's request broke off")]
    Request,
    /// The time that the request's rule allows has passed.
    #[error("the app did not answer in time: {}", .0.details())]
    Timeout(TimedOut),
    /// There is no place for the request.
    #[error("too many requests for the app: {}", .0.details())]
    Overflow(RequestLimit),
}

/// Which time has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimedOut {
    /// The request's.
    Request,
    /// That of one attempt.
    Attempt,
}

/// What an app's answer breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// The first line of an HTTP/1 answer.
    Status,
    /// Its version; or it is another protocol altogether.
    Version,
    /// A field's name or value.
    Header,
    /// `content-length`.
    ContentLength,
    /// `transfer-encoding`.
    TransferEncoding,
    /// The bounds of a head.
    TooLarge,
    /// `101` to a request that asks for no upgrade.
    Switch,
    /// It hangs up on HTTP/2.
    NotHttp2,
    /// HTTP/2, by this code.
    Http2(h2::Reason),
}

impl UpstreamError {
    /// Whether the upstream is at fault, rather than the client or our own limits.
    pub(crate) fn is_of_upstream(&self) -> bool {
        !matches!(self, Self::Request | Self::Overflow(_))
    }

    /// The full error if no connection could be opened, for the access log.
    pub(crate) fn transport_failure(&self) -> Option<String> {
        match self {
            Self::Connect(error) => Some(error.to_string()),
            _ => None,
        }
    }

    /// Of a connection that this error has ended.
    fn of_connection(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut { Self::Vanished } else { Self::Closed }
    }

    /// The limit that was met, as in the metric.
    pub(crate) fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Overflow(limit) => Some(limit.limit()),
            _ => None,
        }
    }
}

impl TimedOut {
    /// A stable word for logs: Envoy's.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Request => "response_timeout",
            Self::Attempt => "upstream_per_try_timeout",
        }
    }
}

/// Of an app that there is no connection to.
impl From<ConnectError> for UpstreamError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::NotHttp2 => Self::Protocol(Violation::NotHttp2),
            ConnectError::Overflow(limit) => Self::Overflow(limit),
            error => Self::Connect(Arc::new(error)),
        }
    }
}

impl From<RequestLimit> for UpstreamError {
    fn from(limit: RequestLimit) -> Self {
        Self::Overflow(limit)
    }
}

/// Of an app that speaks HTTP/1.
impl From<&hyper::Error> for UpstreamError {
    fn from(error: &hyper::Error) -> Self {
        if error.is_parse() {
            return Self::Protocol(Violation::of(error));
        }
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        cause.map_or(Self::Closed, Self::of_connection)
    }
}

/// Of an app that speaks HTTP/2.
impl From<&h2::Error> for UpstreamError {
    fn from(error: &h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_library() => Self::Protocol(Violation::Http2(reason)),
            Some(reason) if error.is_reset() => Self::Reset(reason),
            Some(_) | None => error.get_io().map_or(Self::Closed, Self::of_connection),
        }
    }
}

impl Violation {
    /// Of an HTTP/1 answer that hyper refuses. Which field is to blame, only its words say.
    fn of(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() {
            return Self::TooLarge;
        }
        if error.is_parse_status() {
            return Self::Status;
        }
        let words = error.to_string();
        [("content-length", Self::ContentLength), ("transfer-encoding", Self::TransferEncoding)]
            .into_iter()
            .chain([("version", Self::Version), ("header", Self::Header)])
            .find_map(|(word, violation)| words.contains(word).then_some(violation))
            .unwrap_or(Self::Status)
    }

    /// A stable word for logs; the same as for clients of HTTP/1.
    pub(crate) fn details(self) -> &'static str {
        macro_rules! details {
            ($cause:literal) => {
                concat!("upstream_reset_before_response_started{protocol_error:", $cause, "}")
            };
        }
        match self {
            Self::Status => details!("http1.codec_error"),
            Self::Version => details!("http1.unsupported_version"),
            Self::Header => details!("http1.invalid_header"),
            Self::ContentLength => details!("http1.invalid_content_length:content-length"),
            Self::TransferEncoding => details!("http1.invalid_transfer_encoding:transfer-encoding"),
            Self::TooLarge => details!("http1.headers_too_large"),
            Self::Switch => details!("http1.unexpected_101"),
            Self::NotHttp2 => details!("not_http2"),
            Self::Http2(h2::Reason::FLOW_CONTROL_ERROR) => details!("http2.flow_control_error"),
            Self::Http2(h2::Reason::FRAME_SIZE_ERROR) => details!("http2.frame_size_error"),
            Self::Http2(h2::Reason::COMPRESSION_ERROR) => details!("http2.compression_error"),
            Self::Http2(h2::Reason::ENHANCE_YOUR_CALM) => details!("http2.enhance_your_calm"),
            Self::Http2(_) => details!("http2.protocol_error"),
        }
    }
}

/// With what a request is reset whose body broke off: with what the client has reset it, if it has.
pub(super) fn reset_reason(error: &(dyn Error + 'static)) -> h2::Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        cause = error.source();
    }
    h2::Reason::INTERNAL_ERROR
}
