//! Responses that the sidecar generates itself, the same for both codecs.
//!
//! Their bytes are part of the contract with users of Envoy: header order `content-length`, `content-type`, `date`,
//! names in lower case, no newline after the body. A gRPC call gets a status of gRPC instead ([`ReplyForm`]).

mod form;

use ::http::StatusCode;
use tidegate_core::policy::Reason;

pub(super) use self::form::{ReplyForm, grpc_message, grpc_status};
use crate::telemetry::ResponseFlag;
use crate::upstream::{ConnectFailure, ProxyFailure, TimedOut, UpstreamError};

/// A locally generated response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalReply {
    /// Status code of HTTP.
    pub status: u16,
    /// Reason phrase, for HTTP/1.
    pub reason: &'static str,
    /// Body, of type `text/plain`.
    pub body: &'static str,
    /// Whether the connection must be closed after it (HTTP/1).
    pub close: bool,
    /// Response flag in the access log.
    pub flag: ResponseFlag,
    /// Response code details in the access log.
    pub details: &'static str,
}

/// The policy denies the request for this reason. The connection stays open.
pub(super) fn denied(reason: &Reason) -> LocalReply {
    let flag = ResponseFlag::of_refusal(reason);
    match reason {
        Reason::ExternalAuthorizationInvalid(_) => {
            LocalReply { close: false, flag, body: "", ..client_error(403, "Forbidden", "ext_authz_error") }
        }
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

/// The request exceeds a rate limit with this status.
pub(super) fn rate_limited(status: u16) -> LocalReply {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    LocalReply {
        status,
        reason: reason.unwrap_or_default(),
        body: "local_rate_limited",
        close: false,
        flag: ResponseFlag::RateLimited,
        details: "local_rate_limited",
    }
}

/// The client has left while its request was checked; for the record only.
pub(super) fn client_left() -> LocalReply {
    LocalReply {
        status: 0,
        reason: "",
        body: "",
        close: true,
        flag: ResponseFlag::DownstreamConnectionTermination,
        details: "downstream_remote_disconnect",
    }
}

/// The request is malformed in the way that `details` names.
pub(super) fn bad_request(details: &'static str) -> LocalReply {
    client_error(400, "Bad Request", details)
}

/// `CONNECT` is not supported: there is nothing to tunnel to.
pub(super) fn method_not_allowed() -> LocalReply {
    client_error(405, "Method Not Allowed", "connect_not_supported")
}

/// The client took too long to send the head or the body.
pub(super) fn request_timeout(details: &'static str) -> LocalReply {
    LocalReply { flag: ResponseFlag::DownstreamTimeout, ..client_error(408, "Request Timeout", details) }
}

/// No room for the rest of the request's head: clients have sent too many unfinished heads.
pub(super) fn too_much_unfinished() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "too many unfinished requests",
        close: true,
        flag: ResponseFlag::Overload,
        details: "overload{unfinished_request_heads}",
    }
}

/// The client has half-closed and the app has not responded for long: the client is presumed gone.
pub(super) fn half_closed() -> LocalReply {
    LocalReply {
        flag: ResponseFlag::DownstreamConnectionTermination,
        ..client_error(408, "Request Timeout", "downstream_half_close_timeout")
    }
}

/// The request target is longer than a whole head may be.
pub(super) fn uri_too_long() -> LocalReply {
    client_error(414, "URI Too Long", "http1.uri_too_long")
}

/// The head has too many bytes or too many fields, as `details` says.
pub(super) fn header_fields_too_large(details: &'static str) -> LocalReply {
    client_error(431, "Request Header Fields Too Large", details)
}

/// The HTTP version is not supported.
pub(super) fn version_not_supported() -> LocalReply {
    client_error(505, "HTTP Version Not Supported", "http1.unsupported_version")
}

/// The app's response cannot be forwarded.
pub(super) fn bad_gateway() -> LocalReply {
    LocalReply {
        status: 502,
        reason: "Bad Gateway",
        body: "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        close: false,
        flag: ResponseFlag::UpstreamProtocolError,
        details: "upstream_reset_before_response_started{protocol_error}",
    }
}

/// The app refused the connection.
pub(super) fn connection_refused() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        close: false,
        flag: ResponseFlag::UpstreamConnectionFailure,
        details: "upstream_reset_before_response_started{remote_connection_failure}",
    }
}

/// The destination of the app's request has no endpoint, for the reason that `details` names.
pub(super) fn no_endpoint(details: &'static str) -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "no healthy upstream",
        close: false,
        flag: ResponseFlag::NoHealthyUpstream,
        details,
    }
}

/// The controller refuses the app this destination.
pub(super) fn blocked(details: &'static str) -> LocalReply {
    LocalReply { body: "destination blocked", ..no_endpoint(details) }
}

/// No rule of the destination's routes applies to the request.
pub(super) fn no_route() -> LocalReply {
    LocalReply {
        status: 404,
        reason: "Not Found",
        body: "no route matches",
        close: false,
        flag: ResponseFlag::NoRoute,
        details: "route_not_found",
    }
}

/// The rule that applies leads to no backend, for the reason that `details` names.
pub(super) fn unrouted(status: u16, details: &'static str) -> LocalReply {
    LocalReply { flag: ResponseFlag::NoRoute, details, ..of_status(status) }
}

/// The rule that applies redirects the client.
pub(super) fn redirect(status: u16) -> LocalReply {
    LocalReply { details: "route_redirect", ..of_status(status) }
}

/// A response whose body is its reason phrase.
fn of_status(status: u16) -> LocalReply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reason = status.canonical_reason().unwrap_or_default();
    let flag = ResponseFlag::None;
    LocalReply { status: status.as_u16(), reason, body: reason, close: false, flag, details: "" }
}

/// No object has the address that the app requests something from. Istio's response with `REGISTRY_ONLY`.
pub(super) fn unregistered(details: &'static str) -> LocalReply {
    LocalReply { status: 502, reason: "Bad Gateway", body: "", ..no_endpoint(details) }
}

/// The app closed the connection before it responded.
pub(super) fn connection_terminated() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        close: false,
        flag: ResponseFlag::UpstreamConnectionTermination,
        details: "upstream_reset_before_response_started{connection_termination}",
    }
}

/// The app did not accept the connection in time.
pub(super) fn connect_timeout() -> LocalReply {
    LocalReply {
        status: 504,
        reason: "Gateway Timeout",
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
        close: false,
        flag: ResponseFlag::UpstreamTimeout,
        details: "upstream_reset_before_response_started{connection_timeout}",
    }
}

/// The app, or the client, has as many requests in flight as allowed.
pub(super) fn overflow() -> LocalReply {
    LocalReply {
        status: 503,
        reason: "Service Unavailable",
        body: "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        close: false,
        flag: ResponseFlag::UpstreamOverflow,
        details: "upstream_reset_before_response_started{overflow}",
    }
}

/// The app stopped reading a request or did not respond in time.
pub(super) fn stream_timeout() -> LocalReply {
    LocalReply {
        status: 504,
        reason: "Gateway Timeout",
        body: "stream timeout",
        close: false,
        flag: ResponseFlag::UpstreamTimeout,
        details: "stream_idle_timeout",
    }
}

/// The time that a rule allows for the request, or for one attempt, has passed.
pub(super) fn timed_out(which: TimedOut) -> LocalReply {
    LocalReply { body: "upstream request timeout", details: which.details(), ..stream_timeout() }
}

/// The upstream sends no response.
pub(crate) fn upstream_failed(error: &UpstreamError) -> LocalReply {
    match error {
        UpstreamError::Connect(error) => not_connected(error.failure()),
        UpstreamError::Protocol(violation) => LocalReply { details: violation.details(), ..bad_gateway() },
        UpstreamError::Closed | UpstreamError::Vanished => connection_terminated(),
        UpstreamError::Request => bad_request("request_body_incomplete"),
        UpstreamError::Timeout(which) => timed_out(*which),
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

/// The reply to a request for which no connection to the upstream could be opened.
fn not_connected(failure: ConnectFailure) -> LocalReply {
    match failure {
        ConnectFailure::Refused => connection_refused(),
        ConnectFailure::Timeout => connect_timeout(),
        ConnectFailure::TlsTimeout | ConnectFailure::Proxy(ProxyFailure::NoAnswer) => {
            LocalReply { details: failure.details(), ..connect_timeout() }
        }
        _ => LocalReply { details: failure.details(), flag: failure.flag(), ..connection_refused() },
    }
}

/// A refusal that closes the connection; its body is the reason phrase.
fn client_error(status: u16, reason: &'static str, details: &'static str) -> LocalReply {
    let flag = ResponseFlag::DownstreamProtocolError;
    LocalReply { status, reason, body: reason, close: true, flag, details }
}
