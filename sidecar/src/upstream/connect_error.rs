//! Why there is no connection to an upstream.

use std::io;

use rustls::{CertificateError, Error, OtherError};

use super::proxy::{ProxyError, ProxyFailure};
use super::request_limit::RequestLimit;
use crate::lifeline::Cause;
use crate::telemetry::ResponseFlag;
use crate::tls::OriginTlsError;

/// Why there is no connection to an upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nothing listens, or the address cannot be reached.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// The TCP handshake took too long, by our time or by the kernel's.
    #[error("no answer in time")]
    Timeout,
    /// The connection that it was for has ended meanwhile.
    #[error("the connection that it was for has ended: {}", .0.details())]
    Ended(Cause),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// The certificate is a good one, and not that of the workload or the server that was expected.
    #[error("{0}")]
    OtherIdentity(String),
    #[error("the TLS handshake took too long")]
    TlsTimeout,
    /// The peer has not chosen this protocol by ALPN.
    #[error("the peer does not speak {}: it is not a sidecar of this mesh", .0.escape_ascii())]
    NotASidecar(&'static [u8]),
    #[error("there is no certificate to show")]
    NoCertificate,
    /// The server outside the mesh has not chosen HTTP/2 by ALPN.
    #[error("the server does not speak HTTP/2")]
    NotHttp2,
    /// TLS cannot be spoken as it is configured.
    #[error(transparent)]
    Origination(#[from] OriginTlsError),
    /// As much is open to the backend as may be.
    #[error("too much is open to the backend: {}", .0.details())]
    Overflow(RequestLimit),
    /// There is no way through the forward proxy.
    #[error("forward proxy: {0}")]
    Proxy(#[from] ProxyError),
}

/// What it means to a client that there is no connection: the flag and the word in the access log, for TCP and HTTP
/// alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    /// Nothing listens, or the address cannot be reached.
    Refused,
    /// The TCP handshake took too long.
    Timeout,
    /// The connection that it was for has ended meanwhile.
    Ended(Cause),
    /// There is no TLS with the peer, or not with the right one.
    Tls,
    /// The TLS handshake took too long.
    TlsTimeout,
    /// The sidecar has no certificate yet.
    NoCertificate,
    /// As much is open to the backend as may be.
    Overflow(RequestLimit),
    /// There is no way through the forward proxy.
    Proxy(ProxyFailure),
}

impl ConnectError {
    /// Of a TCP handshake.
    pub(super) fn of_tcp(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut { Self::Timeout } else { Self::Refused(error) }
    }

    /// Of a TLS handshake. rustls itself shows what a verifier of ours says in the words of `Debug`.
    pub(super) fn of_tls(error: io::Error) -> Self {
        match error.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => {
                Self::OtherIdentity(why.to_string())
            }
            _ => Self::Tls(error),
        }
    }

    /// What TLS has against it beside the handshake.
    pub(crate) fn other_tls(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Tls(io::Error::other(error))
    }

    /// The same on the way to a forward proxy, unless the connection that it was for has ended.
    pub(super) fn of_proxy(self) -> Self {
        match self {
            Self::Ended(_) | Self::Proxy(_) | Self::Overflow(_) => self,
            error => Self::Proxy(ProxyError::NotConnected(Box::new(error))),
        }
    }

    /// What it means to the one that the connection was for.
    pub(crate) fn failure(&self) -> ConnectFailure {
        match self {
            Self::Refused(_) => ConnectFailure::Refused,
            Self::Timeout => ConnectFailure::Timeout,
            Self::Ended(cause) => ConnectFailure::Ended(*cause),
            Self::Tls(_)
            | Self::OtherIdentity(_)
            | Self::NotASidecar(_)
            | Self::NotHttp2
            | Self::Origination(_) => ConnectFailure::Tls,
            Self::TlsTimeout => ConnectFailure::TlsTimeout,
            Self::NoCertificate => ConnectFailure::NoCertificate,
            Self::Overflow(limit) => ConnectFailure::Overflow(*limit),
            Self::Proxy(error) => ConnectFailure::Proxy(error.failure()),
        }
    }
}

impl From<RequestLimit> for ConnectError {
    fn from(limit: RequestLimit) -> Self {
        Self::Overflow(limit)
    }
}

impl ConnectFailure {
    /// A stable word for logs.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Refused => "upstream_connection_refused",
            Self::Timeout => "upstream_connection_timeout",
            Self::Ended(cause) => cause.details(),
            Self::Tls => "upstream_tls_failure",
            Self::TlsTimeout => "upstream_tls_timeout",
            Self::NoCertificate => "no_certificate",
            Self::Overflow(limit) => limit.details(),
            Self::Proxy(failure) => failure.details(),
        }
    }

    /// What is counted if a forward proxy is the reason.
    pub(crate) fn of_forward_proxy(self) -> Option<&'static str> {
        match self {
            Self::Proxy(failure) => Some(failure.details()),
            _ => None,
        }
    }

    /// Whether another endpoint may be reached instead, and this one is the last choice for a while.
    pub(crate) fn is_of_endpoint(self) -> bool {
        match self {
            Self::Proxy(failure) => failure.is_of_this_proxy(),
            Self::Overflow(_) => false,
            _ => true,
        }
    }

    /// The flag of a connection of opaque bytes; HTTP has one of its own for time that is up (`http/local_reply.rs`).
    pub(crate) fn flag(self) -> ResponseFlag {
        match self {
            Self::Ended(_) => ResponseFlag::None,
            Self::Overflow(_) => ResponseFlag::UpstreamOverflow,
            _ => ResponseFlag::UpstreamConnectionFailure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_gives_up_is_a_timeout_and_what_ends_the_client_is_not() {
        let told = |error: ConnectError| (error.failure().details(), error.failure().flag());
        let of_tcp = |kind: io::ErrorKind| told(ConnectError::of_tcp(kind.into()));
        let failed = |details| (details, ResponseFlag::UpstreamConnectionFailure);
        assert_eq!(of_tcp(io::ErrorKind::TimedOut), failed("upstream_connection_timeout"));
        assert_eq!(of_tcp(io::ErrorKind::ConnectionRefused), failed("upstream_connection_refused"));
        assert_eq!(of_tcp(io::ErrorKind::HostUnreachable), failed("upstream_connection_refused"));
        assert_eq!(told(ConnectError::Timeout), failed("upstream_connection_timeout"));
        assert_eq!(told(ConnectError::TlsTimeout), failed("upstream_tls_timeout"));
        assert_eq!(told(ConnectError::NotHttp2), failed("upstream_tls_failure"));
        assert_eq!(told(ConnectError::Ended(Cause::Draining)), ("drained", ResponseFlag::None));
    }
}
