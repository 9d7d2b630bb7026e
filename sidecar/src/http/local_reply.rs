//! The answers that are ours and not the app's, the same for both codecs.
//!
//! Their bytes are part of the contract with those who know Envoy's: header order `content-length`, `content-type`,
//! `date`, names in lower case, no newline after the body.

use tidegate_core::policy::Reason;

use crate::telemetry::ResponseFlag;
use crate::upstream::{ConnectFailure, UpstreamError};

/// An answer of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// Status code.
    pub status: u16,
    /// Reason phrase, for HTTP/1.
    pub reason: &'static str,
    /// Body, of type `text/plain`.
    pub body: &'static str,
    /// Whether the connection must end after it, for HTTP/1.
    pub close: bool,
    /// The flag in the access log.
    pub flag: ResponseFlag,
    /// The word on it in the access log.
    pub details: &'static str,
}

/// The policy refuses the request, for this reason. The connection stays open.
pub fn denied(reason: &Reason) -> LocalReply {
    let flag = ResponseFlag::of_refusal(reason);
    match reason {
        Reason::Misdirected => LocalReply {
            close: false,
            flag,
            ..client_error(421, "Misdirected Request", "misdirected_request")
        },
        _ => LocalReply {
            status: 403,
            reason: "Forbidden",
            body: "RBAC: access denied",
            close: false,
            flag,
            details: "rbac_access_denied_matched_policy[none]",
        },
    }
}

/// The request is malformed; `details` says how.
pub fn bad_request(details: &'static str) -> LocalReply {
    client_error(400, "Bad Request", details)
}

/// `CONNECT`: there is nothing to tunnel to.
pub fn method_not_allowed() -> LocalReply {
    client_error(405, "Method Not Allowed", "connect_not_supported")
}

/// The client took too long to send its head or its body.
pub fn request_timeout(details: &'static str) -> LocalReply {
    LocalReply { flag: ResponseFlag::DownstreamTimeout, ..client_error(408, "Request Timeout", details) }
}

/// There is no room for the rest of the request's head: too much is unfinished.
pub fn too_much_unfinished() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "too many unfinished requests",
        close: true,
        flag: ResponseFlag::Overload,
        details: "overload{unfinished_request_heads}",
    }
}

/// The client has ended its side and the app has not answered for long: it is taken to have left.
pub fn half_closed() -> LocalReply {
    LocalReply {
        flag: ResponseFlag::DownstreamConnectionTermination,
        ..client_error(408, "Request Timeout", "downstream_half_close_timeout")
    }
}

/// The request's target is longer than a whole head may be.
pub fn uri_too_long() -> LocalReply {
    client_error(414, "URI Too Long", "http1.uri_too_long")
}

/// The request's head has too many bytes or too many fields; `details` says which.
pub fn header_fields_too_large(details: &'static str) -> LocalReply {
    client_error(431, "Request Header Fields Too Large", details)
}

/// A version of HTTP that is not spoken here.
pub fn version_not_supported() -> LocalReply {
    client_error(505, "HTTP Version Not Supported", "http1.unsupported_version")
}

/// The app's answer cannot be passed on.
pub fn bad_gateway() -> LocalReply {
    LocalReply {
        status: 502,
        reason: "Bad Gateway",
        body: "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        close: false,
        flag: ResponseFlag::UpstreamProtocolError,
        details: "upstream_reset_before_response_started{protocol_error}",
    }
}

/// Nothing listens where the app should.
pub fn connection_refused() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        close: false,
        flag: ResponseFlag::UpstreamConnectionFailure,
        details: "upstream_reset_before_response_started{remote_connection_failure}",
    }
}

/// The app closed the connection before it answered.
pub fn connection_terminated() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        close: false,
        flag: ResponseFlag::UpstreamConnectionTermination,
        details: "upstream_reset_before_response_started{connection_termination}",
    }
}

/// There is no way to the app that speaks its protocol.
pub fn no_upstream() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "no healthy upstream",
        close: false,
        flag: ResponseFlag::NoHealthyUpstream,
        details: "no_healthy_upstream",
    }
}

/// The app did not take the connection in time.
pub fn connect_timeout() -> LocalReply {
    LocalReply {
        status: 504,
        reason: "Gateway Timeout",
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
        close: false,
        flag: ResponseFlag::UpstreamTimeout,
        details: "upstream_reset_before_response_started{connection_timeout}",
    }
}

/// The app has more requests than it, or the client, may have.
pub fn overflow() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        close: false,
        flag: ResponseFlag::UpstreamOverflow,
        details: "upstream_reset_before_response_started{overflow}",
    }
}

/// The app stopped taking a request that it had begun to take.
pub fn stream_timeout() -> LocalReply {
    LocalReply {
        status: 504,
        reason: "Gateway Timeout",
        body: "stream timeout",
        close: false,
        flag: ResponseFlag::UpstreamTimeout,
        details: "stream_idle_timeout",
    }
}

/// The upstream gives no answer.
pub(crate) fn upstream_failed(error: &UpstreamError) -> LocalReply {
    match error {
        UpstreamError::Connect(ConnectFailure::Refused) => connection_refused(),
        UpstreamError::Connect(ConnectFailure::Timeout) => connect_timeout(),
        UpstreamError::Connect(failure @ ConnectFailure::TlsTimeout) => {
            LocalReply { details: failure.details(), ..connect_timeout() }
        }
        UpstreamError::Connect(failure) => {
            LocalReply { details: failure.details(), flag: failure.flag(), ..connection_refused() }
        }
        UpstreamError::Protocol(violation) => LocalReply { details: violation.details(), ..bad_gateway() },
        UpstreamError::Closed => connection_terminated(),
        UpstreamError::Overflow(limit) => LocalReply { details: limit.details(), ..overflow() },
        UpstreamError::Reset(h2::Reason::REFUSED_STREAM) => LocalReply {
            body: "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset",
            details: "upstream_reset_before_response_started{remote_refused_stream_reset}",
            ..connection_terminated()
        },
        UpstreamError::Reset(_) => LocalReply {
            body: "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
            details: "upstream_reset_before_response_started{remote_reset}",
            ..connection_terminated()
        },
    }
}

fn client_error(status: u16, reason: &'static str, details: &'static str) -> LocalReply {
    let flag = ResponseFlag::DownstreamProtocolError;
    LocalReply { status, reason, body: reason, close: true, flag, details }
}
