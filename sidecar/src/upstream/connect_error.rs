//! Why there is no connection to an upstream.

use std::io;

use rustls::{CertificateError, Error, OtherError};

use crate::lifeline::Cause;

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
    /// The certificate is a good one, and somebody else's.
    #[error("{0}")]
    OtherIdentity(String),
    #[error("the TLS handshake took too long")]
    TlsTimeout,
    /// The peer has not chosen this protocol by ALPN.
    #[error("the peer does not speak {}: it is no sidecar of this mesh", .0.escape_ascii())]
    NotASidecar(&'static [u8]),
    #[error("there is no certificate to show")]
    NoCertificate,
    #[error("{0} are not supported yet")]
    Unsupported(&'static str),
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

    /// A stable word for logs.
    pub(crate) fn details(&self) -> &'static str {
        match self {
            Self::Refused(_) => "upstream_connection_refused",
            Self::Timeout => "upstream_connection_timeout",
            Self::Ended(cause) => cause.details(),
            Self::Tls(_) | Self::OtherIdentity(_) | Self::NotASidecar(_) => "upstream_tls_failure",
            Self::TlsTimeout => "upstream_tls_timeout",
            Self::NoCertificate => "no_certificate",
            Self::Unsupported(_) => "upstream_connection_refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_gives_up_is_a_timeout_and_what_ends_the_client_is_not() {
        let details = |error: ConnectError| error.details();
        let of_tcp = |kind: io::ErrorKind| details(ConnectError::of_tcp(kind.into()));
        assert_eq!(of_tcp(io::ErrorKind::TimedOut), "upstream_connection_timeout");
        assert_eq!(of_tcp(io::ErrorKind::ConnectionRefused), "upstream_connection_refused");
        assert_eq!(of_tcp(io::ErrorKind::HostUnreachable), "upstream_connection_refused");
        assert_eq!(details(ConnectError::Timeout), "upstream_connection_timeout");
        assert_eq!(details(ConnectError::Ended(Cause::Draining)), "drained");
    }
}
